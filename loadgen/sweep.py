"""A sweep: an engine, or a server that runs already, measured at one load level after another."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from loadgen import __version__, control, environment
from loadgen.calibrate import kept_calibration
from loadgen.clock import now_ns
from loadgen.datasets import shipped
from loadgen.endpoint import DIALECTS, Api, Endpoint, check_prompt
from loadgen.engines.launch import launch_sim
from loadgen.engines.sim import SimConfig
from loadgen.errors import EndpointError, LoadgenError, RunFolderError, UsageError
from loadgen.prompts import DatasetSource, SourceSpec
from loadgen.records import ClientSample, Manifest, ServerCounters, encode_line, write_json
from loadgen.runner import Interrupts, LevelSpec, Runner, default_workers, split_cores
from loadgen.summary import LevelSummary, RunTail, Summary, compare_counters, summarize_level
from loadgen.wire import Timeouts

COUNTERS_WAIT_S = 2.0
SPARE_FILES = 100


class SweepSpec(msgspec.Struct, kw_only=True):
    """Everything that a sweep needs to know.

    Attributes:
        command: the command line, for the manifest.
        levels: concurrency of each level, in order.
        requests, duration_s: how much is measured at each level; exactly one is set.
        sim: the embedded engine, launched when set; else ``url`` is attached to.
        model: served name; None takes the only one that the server lists.
        dialect: a key of DIALECTS; None goes by what the server says it is.
        api: None takes chat for prompts that are messages, else completions.
        headers: sent with every request; ``secret_headers`` names those kept out of the manifest.
        workers: None chooses from load and cores.
        output: the run folder; must not hold anything yet.
    """

    command: list[str]
    levels: list[int]
    requests: int | None = None
    duration_s: float | None = None
    warmup: bool = True
    sim: SimConfig | None = None
    url: str | None = None
    model: str | None = None
    dialect: str | None = None
    api: Api | None = None
    headers: dict[str, str] = {}
    verify_tls: bool = True
    extra_body: dict[str, bytes] = {}
    source: SourceSpec
    timeouts: Timeouts = Timeouts()
    workers: int | None = None
    output: Path


class Listener(Protocol):
    """Is told how a sweep gets on; the terminal shows it."""

    def started(self, manifest: Manifest, run: Path) -> None: ...
    def level_started(self, spec: LevelSpec) -> None: ...
    def sampled(self, sample: ClientSample) -> None: ...
    def level_ended(self, summary: LevelSummary) -> None: ...


def prepare_output(path: Path) -> None:
    """Makes the run folder.

    Raises:
        RunFolderError: it exists and is not empty, or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise RunFolderError(f"{path}: exists and is not empty; name another folder with --output")
        (path / "records.jsonl").touch()
    except (NotADirectoryError, FileExistsError):
        raise RunFolderError(f"{path}: is a file, or lies below one; name another folder with --output") from None
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be made: {error.strerror}; name another folder with --output") from None


def choose_api(spec: SweepSpec) -> tuple[Api, dict[str, Any]]:
    """The API to use and the manifest's ``dataset``; the whole dataset is checked on the way.

    Raises:
        DatasetError: it cannot be used.
        UsageError: a prompt does not fit the API.
    """
    source = spec.source.open()
    if not isinstance(source, DatasetSource):
        api: Api = spec.api or "completions"
        if api == "chat":
            raise UsageError("synthetic prompts are token ids, which --endpoint chat cannot carry; use a --dataset")
        return api, {
            "kind": "synthetic token ids",
            "input_tokens": str(spec.source.input_tokens),
            "output_tokens": str(spec.source.output_tokens),
            "vocab_size": spec.source.vocab_size,
        }
    api = spec.api or ("chat" if any(p.kind == "messages" for p in source.prompts) else "completions")
    for prompt in source.prompts:
        check_prompt(api, prompt)
    assert spec.source.path is not None
    path = Path(spec.source.path)
    return api, {
        "kind": "file",
        "path": f"datasets/{path.name}" if path in shipped().values() else str(path),
        "sha256": _sha256(path),
        "prompts": len(source.prompts),
    }


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def find_model(server: control.Server, url: str, wanted: str | None) -> str:
    """The model to ask for.

    Raises:
        EndpointError: the server does not list the one that is wanted, or lists several.
    """
    if wanted is None:
        if len(server.models) > 1:
            raise EndpointError(f"{url} serves several models; name one with --model: {', '.join(server.models)}")
        return server.models[0]
    # TensorRT-LLM lists its model by folder name and takes any; others answer 404 to a wrong one.
    if wanted not in server.models and server.kind != "trtllm":
        raise EndpointError(f"{url} does not serve {wanted!r}; it serves: {', '.join(server.models)}")
    return wanted


def check_open_files(concurrency: int, workers: int) -> None:
    """Refuses a level that needs more connections than this system lets a process open.

    Raises:
        UsageError: says how many can be had.
    """
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    usable = limit - SPARE_FILES
    if -(-concurrency // workers) > usable:
        raise UsageError(
            f"--concurrency {concurrency}: {workers} worker process(es) can open {usable * workers:,} connections here "
            f"(ulimit -Hn {limit}); use more --workers, or raise the limit"
        )


def run_sweep(spec: SweepSpec, listener: Listener, interrupts: Interrupts) -> Summary:
    """Runs the sweep; everything is in ``spec.output`` when it returns.

    Raises:
        UsageError and its kinds: nothing was measured.
        EngineError: the engine could not be launched.
    """
    api, dataset = choose_api(spec)
    workers = spec.workers or default_workers(max(spec.levels))
    check_open_files(max(spec.levels), workers)
    with ExitStack() as stack:
        worker_cores = None
        if spec.sim is not None:
            engine_cores, worker_cores = split_cores()
            prepare_output(spec.output)
            launched = stack.enter_context(launch_sim(spec.sim, spec.output / "engine.log", engine_cores))
            url, argv = launched.url, launched.argv
        else:
            assert spec.url is not None
            url, argv = spec.url, None
        server = control.identify(url, spec.headers, spec.verify_tls)
        model = find_model(server, url, spec.model if spec.sim is None else None)
        dialect = spec.dialect or server.kind
        endpoint = Endpoint(
            url=url,
            model=model,
            dialect=dialect,
            api=api,
            headers=spec.headers,
            verify_tls=spec.verify_tls,
            extra_body=spec.extra_body,
        )
        assert dialect in DIALECTS
        if spec.sim is None:  # only now, so that a server that cannot be measured leaves no folder
            prepare_output(spec.output)
        levels = [
            LevelSpec(
                index=index,
                concurrency=concurrency,
                requests=spec.requests,
                duration_s=spec.duration_s,
                warmup=spec.warmup,
            )
            for index, concurrency in enumerate(spec.levels)
        ]
        gpus, driver = environment.gpus()
        simulated = server.kind == "sim"
        manifest = Manifest(
            command=spec.command,
            started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            simulated=simulated,
            host=environment.host(),
            gpus=gpus,
            driver=driver,
            engine={
                "kind": server.kind,
                "version": server.version,
                "argv": argv,
                "env": {},
                "url": url,
                "model": model,
                "dialect": dialect,
                "endpoint": api,
                "config": None if spec.sim is None else msgspec.to_builtins(spec.sim),
            },
            dataset=dataset,
            seed=spec.source.seed,
            load={
                "model": "closed",
                "requests": spec.requests,
                "duration_s": spec.duration_s,
                "warmup": spec.warmup,
                "timeouts": msgspec.to_builtins(spec.timeouts),
            },
            levels=[level.load for level in levels],
            client={
                "loadgen_version": __version__,
                "workers": workers,
                "headers": sorted(spec.headers),
                "calibration": kept_calibration(),
            },
        )
        try:
            write_json(spec.output / "manifest.json", manifest)
            runner = Runner(
                endpoint=endpoint,
                timeouts=spec.timeouts,
                source=spec.source,
                workers=workers,
                run=spec.output,
                interrupts=interrupts,
                cores=worker_cores,
                on_sample=listener.sampled,
            )
        except OSError as error:
            raise RunFolderError(f"{spec.output}: cannot be written: {error.strerror}; nothing was measured") from None
        listener.started(manifest, spec.output)
        stack.callback(runner.close)
        return _run_levels(spec, levels, runner, endpoint, listener, interrupts, simulated)


def _run_levels(
    spec: SweepSpec,
    levels: list[LevelSpec],
    runner: Runner,
    endpoint: Endpoint,
    listener: Listener,
    interrupts: Interrupts,
    simulated: bool,
) -> Summary:
    tail = RunTail(spec.output)
    summary = Summary(simulated=simulated, levels=[])
    first_index = 0
    before = _read_counters(endpoint, -1)
    _log_counters(spec.output, before, runner)
    runner.wait_ready()
    if interrupts.count:
        raise LoadgenError("interrupted before anything was measured")
    for level in levels:
        listener.level_started(level)
        samples: list[ClientSample] = []
        mark = runner.run_level(level, first_index, samples.append)
        result = summarize_level(level.load, tail.records(runner.take_unwritten()), samples, mark)
        # Prompts go on where this level stopped, so that no level finds another's in a prefix cache.
        first_index += result.requests.issued + result.requests.warmup + result.requests.drain
        if before.counters:
            after = _counters_after(endpoint, level.index, before, result.totals)
            result.server = compare_counters(before, after, result.totals)
            _log_counters(spec.output, after, runner)
            before = after
        summary.levels.append(result)
        listener.level_ended(result)
        try:
            write_json(spec.output / "summary.json", summary)
        except OSError as error:
            runner.disk_error = runner.disk_error or error.strerror
        if interrupts.count or runner.disk_error or not runner.usable:
            break
    left = len(levels) - len(summary.levels)
    if left:
        summary.notes.append(f"{left} of {len(levels)} levels were not run")
    if runner.disk_error:
        summary.notes.append(
            f"{spec.output}: {runner.disk_error}: what could not be written is in the figures but not in the folder"
        )
    return summary


def _read_counters(endpoint: Endpoint, after_level: int) -> ServerCounters:
    counters = control.read_counters(endpoint.url, endpoint.headers, endpoint.verify_tls)
    return ServerCounters(t_ns=now_ns(), after_level=after_level, counters=counters)


def _counters_after(endpoint: Endpoint, level: int, before: ServerCounters, totals: dict[str, int]) -> ServerCounters:
    """The counters after a level. An engine counts a request a little after it has answered it, so
    a difference from our own totals is looked at again for a while."""
    deadline = time.monotonic() + COUNTERS_WAIT_S
    while True:
        after = _read_counters(endpoint, level)
        compared = compare_counters(before, after, totals)
        if compared is None or compared["agrees"] or time.monotonic() > deadline:
            return after
        time.sleep(0.1)


def _log_counters(run: Path, counters: ServerCounters, runner: Runner) -> None:
    if not counters.counters:
        return
    try:
        with (run / "server_metrics.jsonl").open("ab") as log:
            log.write(encode_line(counters))
    except OSError as error:
        runner.disk_error = runner.disk_error or error.strerror


def default_output(model: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Path:
    """``reports/local/<UTC time>-<name>``."""
    name = "".join(c if c.isalnum() or c in "-._" else "-" for c in model).strip("-.")[:40] or "run"
    return Path("reports") / "local" / f"{now():%Y%m%d-%H%M%S}-{name}"
