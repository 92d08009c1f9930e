"""The command line: arguments -> calls -> exit code. The only place that prints or exits.

Everything beyond click is imported inside the command that needs it, so that ``--help`` is quick.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import click

from loadgen import __version__
from loadgen.cli.engines import engine_options, engine_specs, engines, sim_options
from loadgen.cli.kernels import kernels, measure_beside
from loadgen.cli.reports import EPILOG, compare, plan, publish, report
from loadgen.cli.runs import runs
from loadgen.errors import LoadgenError, UsageError

DEFAULT_DURATION = "20s"
DEFAULT_MAX_DURATION = "10m"
DEFAULT_MAX_FIND = "1h"


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="loadgen")
def cli() -> None:
    """A load tester for LLM servers whose numbers are true.

    \b
    loadgen sweep --concurrency 1,8,64                 the embedded engine: a first look
    loadgen sweep --concurrency 1,8,64 --url http://127.0.0.1:8000
    loadgen sweep --concurrency 1,8,64 --engine vllm --engine trtllm --model M
    loadgen runs                                       what was measured here
    loadgen report RUN                                 the table and page of a run, again
    loadgen compare A B                                what is faster, and how surely
    loadgen plan RUN --slo ttft=500ms --peak-rate 40   replicas, GPUs and cost
    loadgen kernels bench --model qwen1.5-4b           the GPU kernels that servers stand on
    loadgen calibrate                                  what this machine can measure
    """


def main() -> None:
    """The entry point: no user's mistake ends in a traceback."""
    try:
        code = cli.main(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except LoadgenError as error:
        click.echo(f"loadgen: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # Standard output takes no more. What Python still holds for it would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.ENOSPC:
            click.echo("loadgen: standard output: no space left on device", err=True)
        sys.exit(1)


def _parse_levels(text: str) -> list[int]:
    levels = []
    for piece in text.split(","):
        try:
            level = int(piece)
        except ValueError:
            raise UsageError(f"--concurrency takes numbers such as 1,8,64; {piece.strip()!r} is none") from None
        if level < 1:
            raise UsageError(f"--concurrency: a level must be 1 or above, not {level}")
        levels.append(level)
    return levels


def _parse_load(
    concurrency: str | None,
    rate: str | None,
    arrival: str | None,
    speedup: float | None,
    max_in_flight: int | None,
    dataset: str | None,
) -> dict[str, Any]:
    """The fields of SweepSpec that say how requests are sent."""
    from loadgen.loads import parse_arrival
    from loadgen.workloads.datasets import find_dataset, read_timestamps_ns

    kind = parse_arrival(arrival or "poisson")
    replay = kind[0] == "replay"
    if concurrency is not None:
        given = {"--rate": rate, "--arrival": arrival, "--speedup": speedup, "--max-in-flight": max_in_flight}
        for name, value in given.items():
            if value is not None:
                raise UsageError(f"{name} is of an open loop, and --concurrency of a closed one: give one of them")
        return {"levels": _parse_levels(concurrency)}
    if speedup is not None and not replay:
        raise UsageError("--speedup goes with --arrival replay")
    open_loop: dict[str, Any] = {"arrival": kind}
    if max_in_flight is not None:
        open_loop["max_in_flight"] = max_in_flight
    if replay:
        if dataset is None or rate is not None:
            raise UsageError("--arrival replay takes its times from --dataset FILE.jsonl, and no --rate")
        times_ns = read_timestamps_ns(find_dataset(dataset), speedup or 1.0)
        span_s = (times_ns[-1] - times_ns[0]) / 1e9
        return {**open_loop, "rates": [(len(times_ns) - 1) / span_s], "times_ns": times_ns}
    if rate is None:
        raise UsageError("give --concurrency 1,8,64 (a closed loop) or --rate 2,4,8 (an open one)")
    return {**open_loop, "rates": _parse_rates(rate)}


def _parse_find(
    kind: str,
    concurrency: str | None,
    rate: str | None,
    arrival: str | None,
    max_in_flight: int | None,
    slo: str | None,
    attainment: str | None,
    duration: str | None,
    max_duration: str | None,
    max_find: str | None,
) -> dict[str, Any]:
    """The fields of SweepSpec that say what is looked for."""
    from loadgen.analysis.slo import EXAMPLE, parse_slos
    from loadgen.loads import parse_arrival
    from loadgen.records import Goal
    from loadgen.sweeps.spec import DEFAULT_IN_FLIGHT
    from loadgen.units import parse_duration_s, parse_share

    if concurrency is not None and rate is not None:
        raise UsageError("--find raises one of the two: start from --concurrency N or from --rate R")
    if kind == "knee":
        for name, value in {"--rate": rate, "--arrival": arrival, "--attainment": attainment}.items():
            if value is not None:
                raise UsageError(f"{name} does not go with --find knee, which raises the requests in flight")
    elif slo is None:
        raise UsageError(f"--find capacity needs to know what is to be kept: --slo {EXAMPLE}")
    starts = [1] if concurrency is None else _parse_levels(concurrency)
    rates = [] if rate is None else _parse_rates(rate)
    if len(starts) > 1 or len(rates) > 1:
        raise UsageError("--find starts from a single load: --concurrency N or --rate R")
    share = parse_share(attainment or "99%")
    if not 0 < share < 1:
        raise UsageError(f"--attainment takes a share between 0 and 100%, not {attainment}")
    least_s = parse_duration_s(duration or DEFAULT_DURATION)
    in_flight = max_in_flight or DEFAULT_IN_FLIGHT
    if starts[0] > in_flight:
        raise UsageError(f"--concurrency {starts[0]} is above --max-in-flight {in_flight}")
    goal = Goal(
        kind=kind,  # type: ignore[arg-type]
        over="rate" if rates else "concurrency",
        start=float(rates[0] if rates else starts[0]),
        highest=100_000.0 if rates else float(in_flight),
        slo="" if slo is None else ",".join(one.text for one in parse_slos(slo)),
        attainment=share,
        duration_s=least_s,
        max_duration_s=max(least_s, parse_duration_s(max_duration or DEFAULT_MAX_DURATION)),
        max_find_s=parse_duration_s(max_find or DEFAULT_MAX_FIND),
    )
    return {"find": goal, "arrival": parse_arrival(arrival or "poisson"), "max_in_flight": in_flight}


def _parse_precision(
    precision: str | None, duration: str | None, max_duration: str | None, requests: int | None
) -> dict[str, Any]:
    """The fields of SweepSpec that say for how long a level is measured, beside ``duration_s``."""
    from loadgen.units import parse_duration_s, parse_share

    if precision is None:
        if max_duration is not None:
            raise UsageError("--max-duration goes with --precision 5%; without it --duration says how long")
        return {}
    if requests is not None:
        raise UsageError("--precision decides how much is measured: give no --requests and no --arrival replay")
    share = parse_share(precision)
    if not 0 < share < 1:
        raise UsageError(f"--precision takes a share of the figures between 0 and 100%, not {precision}")
    least_s = parse_duration_s(duration or DEFAULT_DURATION)
    most_s = parse_duration_s(max_duration or DEFAULT_MAX_DURATION)
    if least_s > most_s:
        raise UsageError(f"--duration, the least, is {least_s:g} s, and --max-duration {most_s:g} s: give more for it")
    return {"precision": share, "max_duration_s": most_s}


def _parse_rates(text: str) -> list[float]:
    rates = []
    for piece in text.split(","):
        try:
            rate = float(piece)
        except ValueError:
            raise UsageError(f"--rate takes requests/s such as 0.5,2,8; {piece.strip()!r} is none") from None
        if not 0 < rate <= 100_000:
            raise UsageError(f"--rate: {piece.strip()} requests/s; a rate is above 0 and at most 100,000")
        rates.append(rate)
    return rates


def _parse_headers(lines: tuple[str, ...], api_key: str | None) -> dict[str, str]:
    from loadgen.client.endpoint import check_header

    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise UsageError(f"--header takes 'Name: value', not {line!r}")
        headers[name.strip()] = value.strip()
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    for name, value in headers.items():
        check_header(name, value)
    return headers


def _parse_timeouts(text: str | None) -> Any:
    from loadgen.client.wire import Timeouts
    from loadgen.units import parse_duration_s

    names = {name.removesuffix("_s"): name for name in Timeouts.__struct_fields__}
    values = {}
    for piece in text.split(",") if text else []:
        name, equals, value = piece.partition("=")
        key = names.get(name.strip().replace("-", "_"))
        if not equals or key is None:
            raise UsageError(
                f"--timeout takes {', '.join(names)} with a duration, such as first_token=60s; not {piece!r}"
            )
        values[key] = parse_duration_s(value)
    return Timeouts(**values)


def _parse_extra_body(text: str | None) -> dict[str, bytes]:
    import msgspec

    if not text:
        return {}
    try:
        return {key: bytes(value) for key, value in msgspec.json.decode(text, type=dict[str, msgspec.Raw]).items()}
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise UsageError(f"--extra-body takes a JSON object: {error}") from None


def _source(
    dataset: str | None,
    input_tokens: str | None,
    output_tokens: str | None,
    vocab: int,
    seed: int,
    in_order: bool = False,
) -> Any:
    from loadgen.workloads.datasets import find_dataset
    from loadgen.workloads.prompts import (
        DEFAULT_OUTPUT_TOKENS,
        FIRST_TOKEN_ID,
        SourceSpec,
        TokenRange,
        parse_token_range,
    )

    output = None if output_tokens is None else parse_token_range(output_tokens, "--output-tokens")
    if dataset is not None:
        if input_tokens is not None:
            raise UsageError("--dataset and --input-tokens exclude each other: the prompts come from one of them")
        if output is not None and output.low != output.high:
            raise UsageError("--output-tokens must be one number beside --dataset")
        return SourceSpec(seed=seed, path=str(find_dataset(dataset)), output_tokens=output, in_order=in_order)
    if vocab <= FIRST_TOKEN_ID:
        raise UsageError(f"--vocab-size must be above {FIRST_TOKEN_ID}, not {vocab}")
    return SourceSpec(
        seed=seed,
        input_tokens=TokenRange(256, 256)
        if input_tokens is None
        else parse_token_range(input_tokens, "--input-tokens"),
        output_tokens=output or TokenRange(DEFAULT_OUTPUT_TOKENS, DEFAULT_OUTPUT_TOKENS),
        vocab_size=vocab,
    )


@cli.command(epilog=EPILOG)
@click.option("--concurrency", metavar="1,8,64", help="Requests in flight at each level: a closed loop.")
@click.option("--find", type=click.Choice(["capacity", "knee"]),
              help="Look for the highest load that keeps --slo, or for the one above which throughput rises no more, "
              "from 1 in flight, --concurrency N or --rate R on.")  # fmt: skip
@click.option("--attainment", metavar="99%", help="Of --find capacity: so many requests are to keep --slo.  "
              "[default: 99%]")  # fmt: skip
@click.option("--max-find", metavar="1h", help=f"Of --find: at most, in all.  [default: {DEFAULT_MAX_FIND}]")
@click.option("--rate", metavar="2,4,8", help="Requests/s at each level, whatever the server does: an open loop.")
@click.option("--arrival", metavar="A", help="Of an open loop: poisson, constant, gamma:CV, or replay, the time "
              "stamps of the dataset.  [default: poisson]")  # fmt: skip
@click.option("--speedup", type=click.FloatRange(0, min_open=True), metavar="X", help="Replay so much faster.")
@click.option("--max-in-flight", type=click.IntRange(1), metavar="N",
              help="Of an open loop; what is due beyond is sent late.  [default: 4096]")  # fmt: skip
@click.option("--url", metavar="URL", help="A server that runs already, such as http://127.0.0.1:8000.")
@click.option("--model", metavar="M",
              help="With --engine: a folder, shape:NAME, or a name of the hub. With --url: the served model's name, "
              "needed when there are several.")  # fmt: skip
@click.option("--engine", "kinds", type=click.Choice(["sim", "vllm", "trtllm"]), multiple=True,
              help="Launch this engine; repeatable: one after another.  [default without --url: sim]")  # fmt: skip
@click.option(
    "--dataset", type=click.Path(), metavar="FILE.jsonl", help="Prompts, one a line; or a shipped set: chat-256, ..."
)
@click.option("--input-tokens", metavar="N|A:B", help="Synthetic prompts of so many token ids.  [default: 256]")
@click.option("--output-tokens", metavar="N|A:B", help="Tokens to ask for.  [default: the dataset's, else 128]")
@click.option("--vocab-size", type=int, default=32_000, show_default=True,
              help="Synthetic ids stay below this, and below a launched model's own vocabulary.")  # fmt: skip
@click.option("--requests", type=int, metavar="N", help="Measure N requests at each level.")
@click.option("--duration", metavar="60s", help=f"Measure for so long at each level.  [default: {DEFAULT_DURATION}]")
@click.option("--precision", metavar="5%",
              help="Measure on until the 95 % intervals of mean TTFT, mean TPOT and output throughput are at most so "
              "wide on either side; --duration is the least.")  # fmt: skip
@click.option("--max-duration", metavar="10m",
              help=f"At most, of a level with --precision or --find.  [default: {DEFAULT_MAX_DURATION}]")  # fmt: skip
@click.option("--slo", metavar="ttft=500ms,tpot=50ms",
              help="Objectives of each request, or of a percentile (ttft:p99=500ms): attainment, goodput.")  # fmt: skip
@click.option(
    "--rounds", type=click.IntRange(1, 1000), default=1, show_default=True,
    help="Go through all levels so often, each time in an order drawn from the seed.",
)  # fmt: skip
@click.option("--interleave", is_flag=True, help="Several engines: one round of each in turn, launched anew each time.")
@click.option("--mig", type=click.Choice(["all"]), help="One engine on each slice, all at once.")
@click.option("--offline-ceiling", is_flag=True,
              help="TensorRT-LLM: run trtllm-bench on the same prompts too, and show its throughput.")  # fmt: skip
@click.option("--kernels", "with_kernels", is_flag=True,
              help="After an engine has ended, measure its kernels at the sizes that it served.")  # fmt: skip
@click.option("--watch/--no-watch", default=True,
              help="Sample the engine's own metrics and the GPUs while a level runs.")  # fmt: skip
@click.option("--warmup/--no-warmup", default=True, help="Let every slot turn over once before measuring.")
@click.option("--endpoint", type=click.Choice(["completions", "chat"]), help="Default: by what the prompts are.")
@click.option("--dialect", type=click.Choice(["vllm", "trtllm", "sim", "openai"]),
              help="Request fields that the server knows.  [default: by what it says it is]")  # fmt: skip
@click.option(
    "--api-key", envvar="LOADGEN_API_KEY", metavar="KEY", help="Sent as a bearer token. Env: LOADGEN_API_KEY."
)
@click.option("--header", "headers", multiple=True, metavar="'Name: value'", help="Extra header; repeatable.")
@click.option("--insecure", is_flag=True, help="Accept any TLS certificate.")
@click.option("--extra-body", metavar="JSON", help="Fields to add to every request.")
@click.option("--timeout", metavar="NAME=60s,...",
              help="connect, first_token, between_tokens, request.  [default: 10s, 5m, 1m, 1h]")  # fmt: skip
@click.option("--workers", type=int, metavar="N", help="Worker processes.  [default: by load and cores]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Run folder.  [default: reports/local/...]"
)
@click.option("--json", "as_json", is_flag=True, help="Print summary.json to standard output instead of the table.")
@engine_options
@sim_options
def sweep(
    concurrency: str | None,
    find: str | None,
    attainment: str | None,
    max_find: str | None,
    rate: str | None,
    arrival: str | None,
    speedup: float | None,
    max_in_flight: int | None,
    url: str | None,
    model: str | None,
    kinds: tuple[str, ...],
    dataset: str | None,
    input_tokens: str | None,
    output_tokens: str | None,
    vocab_size: int,
    requests: int | None,
    duration: str | None,
    precision: str | None,
    max_duration: str | None,
    slo: str | None,
    rounds: int,
    interleave: bool,
    mig: str | None,
    offline_ceiling: bool,
    with_kernels: bool,
    watch: bool,
    warmup: bool,
    endpoint: str | None,
    dialect: str | None,
    api_key: str | None,
    headers: tuple[str, ...],
    insecure: bool,
    extra_body: str | None,
    timeout: str | None,
    workers: int | None,
    seed: int,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Measure a server at one load level after another.

    With --concurrency so many requests are kept in flight at each level (a closed loop); with --rate
    they are sent when they are due, whatever the server does (an open loop). --engine launches vLLM or
    TensorRT-LLM and stops it again; with several, one after another with the same prompts. With
    neither --url nor --engine the embedded engine is measured, and every figure is marked
    SIMULATED.
    """
    from loadgen.analysis.slo import parse_slos
    from loadgen.cli.progress import Progress
    from loadgen.client.endpoint import check_url
    from loadgen.processes import Interrupts
    from loadgen.run_folders import default_output
    from loadgen.sweeps.spec import SweepSpec
    from loadgen.sweeps.sweep import run_sweep
    from loadgen.units import parse_duration_s

    if find is None:
        for name, value in (("--attainment", attainment), ("--max-find", max_find)):
            if value is not None:
                raise UsageError(f"{name} goes with --find")
        load = _parse_load(concurrency, rate, arrival, speedup, max_in_flight, dataset)
    else:
        refused = {
            "--interleave": interleave, "--mig": mig, "--rounds": rounds > 1, "--precision": precision,
            "--requests": requests, "--speedup": speedup, "--arrival replay": arrival == "replay",
        }  # fmt: skip
        for name, given_value in refused.items():
            if given_value:
                raise UsageError(f"{name} and --find exclude each other: a search chooses its levels itself")
        load = _parse_find(
            find, concurrency, rate, arrival, max_in_flight, slo, attainment, duration, max_duration, max_find
        )
    if load.get("times_ns"):
        if requests is not None or duration is not None or rounds > 1:
            raise UsageError("--arrival replay sends the whole trace once: no --requests, --duration or --rounds")
        requests = len(load["times_ns"])
    if requests is not None and duration is not None:
        raise UsageError("--requests and --duration exclude each other")
    if requests is not None and requests < 1:
        raise UsageError(f"--requests must be 1 or above, not {requests}")
    if workers is not None and workers < 1:
        raise UsageError(f"--workers must be 1 or above, not {workers}")
    if url is not None and (kinds or mig):
        raise UsageError("--url and --engine exclude each other: attach to a server, or launch one")
    if interleave and len(kinds) < 2:
        raise UsageError("--interleave needs several engines: give --engine more than once")
    if api_key and url is None:
        given = click.get_current_context().get_parameter_source("api_key")
        if given is click.core.ParameterSource.COMMANDLINE:
            raise UsageError("--api-key is for a server that runs already; an engine that loadgen launches takes none")
        api_key = None  # from the environment, meant for another server
    if offline_ceiling and "trtllm" not in kinds:
        raise UsageError("--offline-ceiling is TensorRT-LLM's: it goes with --engine trtllm")
    if offline_ceiling and mig:
        raise UsageError("--offline-ceiling and --mig all exclude each other")
    if with_kernels and (url is not None or not kinds or "sim" in kinds or mig):
        raise UsageError(
            "--kernels goes with --engine vllm or trtllm, which leave the GPU free when they end; for a server that "
            "runs already: loadgen kernels bench --from RUN, then loadgen report RUN KERNELS"
        )
    specs = [] if url is not None else engine_specs(kinds or ("sim",), model, mig is not None, options)
    name = model or "server" if url is not None else "-".join(engine.name for engine in specs[:4])
    spec = SweepSpec(
        command=_command(),
        **load,
        requests=requests,
        duration_s=None if requests is not None else parse_duration_s(duration or DEFAULT_DURATION),
        **({} if find is not None else _parse_precision(precision, duration, max_duration, requests)),
        rounds=rounds,
        slos=[] if slo is None else parse_slos(slo),
        warmup=warmup,
        engines=specs,
        interleave=interleave,
        together=mig is not None,
        offline_ceiling=offline_ceiling,
        url=None if url is None else check_url(url),
        model=model,
        dialect=dialect,
        api=endpoint,  # type: ignore[arg-type]
        headers=_parse_headers(headers, api_key),
        verify_tls=not insecure,
        extra_body=_parse_extra_body(extra_body),
        source=_source(dataset, input_tokens, output_tokens, vocab_size, seed, in_order="times_ns" in load),
        timeouts=_parse_timeouts(timeout),
        workers=workers,
        watch=watch,
        output=output or default_output(name),
    )
    if url is None and not kinds:
        click.echo("No --url given: measuring the embedded engine; every figure is SIMULATED.", err=True)
    with Interrupts().watching() as interrupts:
        result = run_sweep(spec, Progress(sys.stderr, together=mig is not None), interrupts)
        if with_kernels:
            result.failures += measure_beside(result.runs, interrupts)
    publish(spec.output, result.runs, as_json)
    for failure in result.failures:
        click.echo(f"loadgen: {failure}", err=True)
    return result.exit_code or (1 if result.failures else 0)


def _command() -> list[str]:
    """The command line without what must not be kept."""
    words = ["loadgen", *sys.argv[1:]]
    for index, word in enumerate(words):
        if word in ("--api-key", "--header") and index + 1 < len(words):
            words[index + 1] = "***"
        elif word.startswith(("--api-key=", "--header=")):
            words[index] = word.partition("=")[0] + "=***"
    return words


@cli.command()
@click.option("--concurrency", default="1,8,64,256,512,1024", show_default=True, help="Loads to try.")
@click.option("--duration", default="4s", show_default=True, help="Measure for so long at each load.")
@click.option("--workers", type=int, metavar="N", help="Worker processes.  [default: by load and cores]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def calibrate(concurrency: str, duration: str, workers: int | None, as_json: bool) -> int:
    """Measure loadgen's own error on this machine.

    The embedded engine sends tokens at known times, and what loadgen measures is compared with the
    engine's own stamps, at rising loads.
    """
    import msgspec

    from loadgen.sweeps.calibrate import calibrate as run_calibration
    from loadgen.sweeps.calibrate import render
    from loadgen.units import parse_duration_s

    result = run_calibration(
        _parse_levels(concurrency),
        parse_duration_s(duration),
        workers,
        lambda text: click.echo(text, err=True),
    )
    click.echo(msgspec.json.format(msgspec.json.encode(result), indent=2) if as_json else render(result))
    return 0


for command in (report, compare, plan, runs, engines, kernels):
    cli.add_command(command)


@cli.group("dataset")
def dataset_group() -> None:
    """Datasets: JSONL files with one prompt a line."""


@dataset_group.command("make")
@click.argument("kind")
@click.option("--prompts", type=int, metavar="N", default=256, show_default=True, help="How many.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--output", required=True, metavar="FILE", help="A file that does not exist yet; - for standard output.")
def make_dataset(kind: str, prompts: int, seed: int, output: str) -> int:
    """Make a dataset from a seed, the same on every machine.

    \b
    KIND is one of
      chat        a system and a user message
      completion  a text to continue
      tokens      256 token ids in, 128 tokens out, in the form of trtllm-bench
      prefixed    64 token ids after one of 8 prefixes of 1,024 ids, for prefix caches
    """
    from loadgen.workloads.datasets import make, write

    lines = make(kind, prompts, seed)
    if output == "-":
        sys.stdout.buffer.writelines(lines)
    else:
        write(Path(output), lines)
        click.echo(f"{output}: {prompts:,} prompts")
    return 0


@dataset_group.command("convert")
@click.argument("file")
@click.argument("output", metavar="OUTPUT")
@click.option("--to", "to", required=True, type=click.Choice(["loadgen", "trtllm-bench", "vllm"]), help="The format.")
@click.option("--output-tokens", type=click.IntRange(1), metavar="N", help="Replaces each line's own number.")
def convert_dataset(file: str, output: str, to: str, output_tokens: int | None) -> int:
    """Write a dataset in the format of another tool; every tool's format is read.

    OUTPUT is a file that does not exist yet, or - for standard output.
    """
    from loadgen.workloads.datasets import convert, find_dataset, write

    lines = list(convert(find_dataset(file), to, output_tokens))
    if output == "-":
        sys.stdout.buffer.writelines(lines)
    else:
        write(Path(output), lines)
        click.echo(f"{output}: {len(lines):,} prompts in the format of {to}")
    return 0


@dataset_group.command("inspect")
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def inspect_dataset(file: str, as_json: bool) -> int:
    """Check a dataset, and show what it holds.

    FILE is a path or the name of a dataset that comes with loadgen, such as chat-256.
    """
    import msgspec

    from loadgen.workloads.datasets import find_dataset, inspect, render

    found = inspect(find_dataset(file))
    click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2) if as_json else render(found))
    return 0


if __name__ == "__main__":
    main()
