"""What a sweep is to do, from its options: checks that options go together, and reads those that name files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from loadgen.cli.options import Client, Engine, Load, Output, Prompts, Search, Server, Simulator, Stopping
from loadgen.cli.options import SweepOfEngines as Engines
from loadgen.cli.params import DURATION, EMBEDDED
from loadgen.errors import UsageError

if TYPE_CHECKING:
    from loadgen.sweeps.spec import SweepSpec
    from loadgen.workloads.prompts import SourceSpec

DEFAULT_DURATION_S = 20.0
DEFAULT_MAX_DURATION_S = 600.0
DEFAULT_MAX_FIND_S = 3600.0
DEFAULT_INPUT_TOKENS = 256
API_KEY_VARIABLE = "LOADGEN_API_KEY"


class Options(NamedTuple):
    """The panels of ``loadgen sweep``."""

    load: Load
    prompts: Prompts
    server: Server
    stopping: Stopping
    search: Search
    engines: Engines
    engine: Engine
    simulator: Simulator
    client: Client
    output: Output


def sweep_spec(options: Options, command: list[str]) -> SweepSpec:
    """The sweep that the options ask for.

    Args:
        command: the command line, for the manifest.

    Raises:
        UsageError: options that do not go together, or a value that cannot be used.
    """
    from loadgen.analysis.slo import parse_slos
    from loadgen.client.endpoint import check_url
    from loadgen.run_folders import default_output
    from loadgen.sweeps.spec import SweepSpec

    server, client = options.server, options.client
    load = _load_of(options) if options.search.find is None else _search_of(options)
    requests, duration_s = _amount_of(options, load)
    _check_engines(options)
    specs = _engine_specs_of(options)
    name = server.model or "server" if server.url is not None else "-".join(engine.name for engine in specs[:4])
    return SweepSpec(
        command=command,
        **load,
        requests=requests,
        duration_s=duration_s,
        **({} if options.search.find is not None else _precision_of(options.stopping, requests)),
        rounds=options.load.rounds,
        slos=[] if options.search.slo is None else parse_slos(options.search.slo),
        attainment=options.search.attainment if options.search.find is None else None,
        warmup=options.load.warmup,
        engines=specs,
        interleave=options.load.interleave,
        together=options.engines.mig is not None,
        offline_ceiling=options.engines.offline_ceiling,
        url=None if server.url is None else check_url(server.url),
        model=server.model,
        dialect=server.dialect,
        api=server.api,
        headers=_headers_of(server),
        verify_tls=not server.insecure,
        extra_body=_extra_body_of(server.extra_body),
        source=prompt_source(options.prompts, in_order="times_ns" in load),
        timeouts=_timeouts_of(client.timeout),
        workers=client.workers,
        watch=client.watch,
        output=options.output.folder or default_output(name),
    )


def _check_engines(options: Options) -> None:
    server, engines = options.server, options.engines
    kinds = server.engines or []
    if server.url is not None and (kinds or engines.mig):
        raise UsageError("--url and --engine exclude each other: measure a running server, or launch one")
    if options.load.interleave and len(kinds) < 2:
        raise UsageError("--interleave needs several engines: give --engine more than once")
    if server.api_key and server.url is None:
        raise UsageError("--api-key needs --url: an engine that loadgen launches takes no key")
    if engines.offline_ceiling:
        from loadgen.engines.table import ENGINES

        able = [kind for kind, row in ENGINES.items() if row.run_offline is not None]
        if not set(able) & set(kinds):
            raise UsageError(f"--offline-ceiling needs --engine {' or '.join(able)}, which can run without a server")
    if engines.offline_ceiling and engines.mig:
        raise UsageError("--offline-ceiling and --mig all exclude each other")
    if engines.kernels and (server.url is not None or not kinds or EMBEDDED in kinds or engines.mig):
        raise UsageError(
            "--kernels needs an --engine that leaves the GPU free when it stops, so not sim and not --mig. For a "
            "running server: loadgen kernels bench --from RUN, then loadgen report RUN KERNELS"
        )


def _refuse(given: dict[str, Any], why: str) -> None:
    """Refuses the first option that has a value."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise UsageError(f"{name} {why}")


def _load_of(options: Options) -> dict[str, Any]:
    """The fields of SweepSpec that say how requests are sent."""
    from loadgen.loads import parse_arrival
    from loadgen.workloads.datasets import find_dataset, read_timestamps_ns

    load, dataset, search = options.load, options.prompts.dataset, options.search
    _refuse({"--max-find": search.max_find_s}, "needs --find")
    if search.attainment is not None and search.slo is None:
        raise UsageError("--attainment needs --slo: it is the share of requests that must meet the objectives")
    if load.levels is not None:
        given = {
            "--rate": load.rates,
            "--arrival": load.arrival,
            "--speedup": load.speedup,
            "--max-in-flight": load.max_in_flight,
        }
        _refuse(given, "does not go with --concurrency: it belongs to an open loop, which --rate sets")
        return {"levels": list(load.levels)}
    arrival = parse_arrival(load.arrival or "poisson")
    replay = arrival[0] == "replay"
    if load.speedup is not None and not replay:
        raise UsageError("--speedup needs --arrival replay")
    open_loop: dict[str, Any] = {"arrival": arrival}
    if load.max_in_flight is not None:
        open_loop["max_in_flight"] = load.max_in_flight
    if not replay:
        if load.rates is None:
            raise UsageError("give --concurrency 1,8,64 (a closed loop) or --rate 2,4,8 (an open loop)")
        return {**open_loop, "rates": list(load.rates)}
    if dataset is None or load.rates is not None:
        raise UsageError("--arrival replay takes its times from --dataset FILE.jsonl, so it needs one and no --rate")
    times_ns = read_timestamps_ns(find_dataset(dataset), load.speedup or 1.0)
    span_s = (times_ns[-1] - times_ns[0]) / 1e9
    return {**open_loop, "rates": [(len(times_ns) - 1) / span_s], "times_ns": times_ns}


def _search_of(options: Options) -> dict[str, Any]:
    """The fields of SweepSpec that say what is searched for."""
    from loadgen.analysis.slo import ATTAINMENT, EXAMPLE, parse_slos
    from loadgen.loads import parse_arrival
    from loadgen.records import Goal
    from loadgen.sweeps.spec import DEFAULT_IN_FLIGHT

    load, stopping, search = options.load, options.stopping, options.search
    assert search.find is not None
    given: dict[str, Any] = {
        "--interleave": load.interleave,
        "--mig": options.engines.mig,
        "--rounds": load.rounds > 1,
        "--precision": stopping.precision,
        "--requests": stopping.requests,
        "--speedup": load.speedup,
        "--arrival replay": load.arrival == "replay",
    }
    _refuse(given, "and --find exclude each other: a search chooses its levels itself")
    if load.levels is not None and load.rates is not None:
        raise UsageError("--find raises either load, not both: start from --concurrency N or from --rate R")
    if search.find == "knee":
        given = {"--rate": load.rates, "--arrival": load.arrival, "--attainment": search.attainment}
        _refuse(given, "does not go with --find knee, which raises the requests in flight")
    elif search.slo is None:
        raise UsageError(f"--find capacity needs objectives: --slo {EXAMPLE}")
    levels, rates = load.levels or (1,), load.rates or ()
    if len(levels) > 1 or len(rates) > 1:
        raise UsageError("--find starts from a single load: --concurrency N or --rate R")
    in_flight = load.max_in_flight or DEFAULT_IN_FLIGHT
    if levels[0] > in_flight:
        raise UsageError(f"--concurrency {levels[0]} is above --max-in-flight {in_flight}")
    least_s = stopping.duration_s or DEFAULT_DURATION_S
    goal = Goal(
        kind=search.find,
        over="rate" if rates else "concurrency",
        start=float(rates[0] if rates else levels[0]),
        highest=100_000.0 if rates else float(in_flight),
        slo="" if search.slo is None else ",".join(one.text for one in parse_slos(search.slo)),
        attainment=search.attainment or ATTAINMENT,
        duration_s=least_s,
        max_duration_s=max(least_s, stopping.max_duration_s or DEFAULT_MAX_DURATION_S),
        max_find_s=search.max_find_s or DEFAULT_MAX_FIND_S,
    )
    return {"find": goal, "arrival": parse_arrival(load.arrival or "poisson"), "max_in_flight": in_flight}


def _amount_of(options: Options, load: dict[str, Any]) -> tuple[int | None, float | None]:
    """Requests and seconds that each level measures; exactly one is set."""
    requests, duration_s = options.stopping.requests, options.stopping.duration_s
    if load.get("times_ns"):
        if requests is not None or duration_s is not None or options.load.rounds > 1:
            raise UsageError("--arrival replay sends the whole trace once: give no --requests, --duration or --rounds")
        requests = len(load["times_ns"])
    if requests is not None and duration_s is not None:
        raise UsageError("--requests and --duration exclude each other")
    return requests, None if requests is not None else duration_s or DEFAULT_DURATION_S


def _precision_of(stopping: Stopping, requests: int | None) -> dict[str, Any]:
    """The fields of SweepSpec that let a level end when its figures are precise."""
    if stopping.precision is None:
        if stopping.max_duration_s is not None:
            raise UsageError("--max-duration goes with --precision or --find; otherwise --duration sets the length")
        return {}
    if requests is not None:
        raise UsageError("--precision decides how much is measured: give no --requests and no --arrival replay")
    least_s = stopping.duration_s or DEFAULT_DURATION_S
    most_s = stopping.max_duration_s or DEFAULT_MAX_DURATION_S
    if least_s > most_s:
        raise UsageError(f"--duration {least_s:g} s is the minimum; raise --max-duration {most_s:g} s above it")
    return {"precision": stopping.precision, "max_duration_s": most_s}


def _engine_specs_of(options: Options) -> list[Any]:
    from loadgen.cli.engine_options import engine_specs

    server = options.server
    if server.url is not None:
        return []
    kinds = server.engines or [EMBEDDED]
    return engine_specs(kinds, server.model, options.engines.mig is not None, options.engine, options.simulator)


def _headers_of(server: Server) -> dict[str, str]:
    from loadgen.client.endpoint import check_header

    headers = {}
    for line in server.headers or []:
        name, colon, value = line.partition(":")
        if not colon:
            raise UsageError(f"--header takes 'Name: value', not {line!r}")
        headers[name.strip()] = value.strip()
    # The variable may be meant for another server, so it is no mistake where loadgen launches one itself.
    key = server.api_key or (os.environ.get(API_KEY_VARIABLE) if server.url is not None else None)
    if key:
        headers["Authorization"] = f"Bearer {key}"
    for name, value in headers.items():
        check_header(name, value)
    return headers


def _timeouts_of(text: str | None) -> Any:
    from loadgen.client.wire import Timeouts

    names = {name.removesuffix("_s"): name for name in Timeouts.__struct_fields__}
    values = {}
    for piece in text.split(",") if text else []:
        name, equals, value = piece.partition("=")
        key = names.get(name.strip().replace("-", "_"))
        if not equals or key is None:
            raise UsageError(
                f"--timeout takes {', '.join(names)} with a duration, such as first_token=60s; not {piece!r}"
            )
        values[key] = DURATION.parse(value)
    return Timeouts(**values)


def _extra_body_of(text: str | None) -> dict[str, bytes]:
    import msgspec

    if not text:
        return {}
    try:
        return {key: bytes(value) for key, value in msgspec.json.decode(text, type=dict[str, msgspec.Raw]).items()}
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise UsageError(f"--extra-body takes a JSON object: {error}") from None


def prompt_source(prompts: Prompts, in_order: bool = False) -> SourceSpec:
    """Where the prompts come from: a file, a bundled dataset, or random token ids."""
    from loadgen.workloads.datasets import find_dataset
    from loadgen.workloads.prompts import DEFAULT_OUTPUT_TOKENS, FIRST_TOKEN_ID, SourceSpec, TokenRange

    output = prompts.output_tokens
    if prompts.dataset is not None:
        if prompts.input_tokens is not None:
            raise UsageError("--dataset and --input-tokens exclude each other: prompts come from a file or are made")
        if output is not None and output.low != output.high:
            raise UsageError("--output-tokens takes a single number with --dataset")
        path = find_dataset(prompts.dataset)
        return SourceSpec(seed=prompts.seed, path=str(path), output_tokens=output, in_order=in_order)
    if prompts.vocab_size <= FIRST_TOKEN_ID:
        raise UsageError(f"--vocab-size must be above {FIRST_TOKEN_ID}, not {prompts.vocab_size}")
    return SourceSpec(
        seed=prompts.seed,
        input_tokens=prompts.input_tokens or TokenRange(DEFAULT_INPUT_TOKENS, DEFAULT_INPUT_TOKENS),
        output_tokens=output or TokenRange(DEFAULT_OUTPUT_TOKENS, DEFAULT_OUTPUT_TOKENS),
        vocab_size=prompts.vocab_size,
    )


def kept_command(words: list[str]) -> list[str]:
    """The command line without its secrets."""
    words = ["loadgen", *words]
    for index, word in enumerate(words):
        if word in ("--api-key", "--header") and index + 1 < len(words):
            words[index + 1] = "***"
        elif word.startswith(("--api-key=", "--header=")):
            words[index] = word.partition("=")[0] + "=***"
    return words
