"""A sweep: engines, or a server that runs already, measured at one load level after another.

Each engine gets a run folder of its own: the output folder itself when there is one engine, else a
folder in it, and ``runs.json`` beside them. Engines are measured one after another, in alternating
rounds (``interleave``), or, one on each MIG slice, all at once (``together``).
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import msgspec

from loadgen import __version__, control, environment
from loadgen.calibrate import kept_calibration
from loadgen.datasets import shipped
from loadgen.endpoint import DIALECTS, Api, Endpoint, check_prompt
from loadgen.engines.launch import Launched, launch, prepare
from loadgen.engines.spec import GIB, EngineCommand, EngineSpec
from loadgen.engines.trtllm_bench import run_offline
from loadgen.errors import EndpointError, EngineError, LoadgenError, RunFolderError, UsageError
from loadgen.gpus import Nvml, nvml
from loadgen.prompts import FIRST_TOKEN_ID, DatasetSource, SourceSpec
from loadgen.records import ClientSample, Manifest, write_json
from loadgen.runner import Interrupts, LevelSpec, Runner, default_workers, split_cores
from loadgen.server_metrics import reconcile
from loadgen.summary import RUNS_FILE, LevelSummary, RunIndex, RunTail, Summary, gather, summarize
from loadgen.watch import Watcher
from loadgen.wire import Timeouts

COUNTERS_WAIT_S = 2.0
SPARE_FILES = 100
# Synthetic prompts of one level; the next level's begin behind them.
PROMPTS_PER_LEVEL = 10_000_000
# What may stay in a GPU's memory of an engine that has ended, and how long its driver may take.
LEFT_BYTES = 512 * 2**20
FREE_WAIT_S = 60.0
MAX_OFFLINE_REQUESTS = 2048


class SweepSpec(msgspec.Struct, kw_only=True):
    """Everything that a sweep needs to know.

    Attributes:
        command: the command line, for the manifest.
        levels: concurrency of each level, in order.
        requests, duration_s: how much is measured at each level; exactly one is set.
        rounds: how often all levels are gone through.
        engines: launched one after another; else ``url`` is attached to.
        interleave: one round of each engine in turn, the order turned round each time.
        together: all engines at once, each on a device of its own.
        offline_ceiling: run trtllm-bench on the prompts of the highest level too.
        model: served name at ``url``; None takes the only one that the server lists.
        dialect: a key of DIALECTS; None goes by what the server says it is.
        api: None takes chat for prompts that are messages, else completions.
        headers: sent with every request; none of their values is kept.
        workers: None chooses from load and cores.
        watch: whether the engine's metrics and the GPUs are sampled while a level runs.
        output: the run folder; must not hold anything yet.
    """

    command: list[str]
    levels: list[int]
    requests: int | None = None
    duration_s: float | None = None
    rounds: int = 1
    warmup: bool = True
    engines: list[EngineSpec] = []
    interleave: bool = False
    together: bool = False
    offline_ceiling: bool = False
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
    watch: bool = True
    output: Path

    def level_specs(self) -> list[LevelSpec]:
        """The levels of all rounds, in the order in which they are run."""
        return [
            LevelSpec(
                index=round_index * len(self.levels) + position,
                concurrency=concurrency,
                requests=self.requests,
                duration_s=self.duration_s,
                warmup=self.warmup,
                round=round_index if self.rounds > 1 else None,
            )
            for round_index in range(self.rounds)
            for position, concurrency in enumerate(self.levels)
        ]


class Listener(Protocol):
    """Is told how a sweep gets on; the terminal shows it."""

    def said(self, text: str) -> None: ...
    def started(self, manifest: Manifest, run: Path) -> None: ...
    def level_started(self, spec: LevelSpec) -> None: ...
    def sampled(self, sample: ClientSample) -> None: ...
    def level_ended(self, summary: LevelSummary) -> None: ...


class SweepResult(msgspec.Struct, kw_only=True):
    """What a sweep left: each run's folder and summary, and the engines that failed."""

    runs: list[tuple[Path, Summary]] = []
    failures: list[str] = []

    @property
    def valid(self) -> bool:
        """Whether every level of every run is VALID, and nothing failed."""
        return bool(self.runs) and not self.failures and all(summary.valid for _, summary in self.runs)


def prepare_output(path: Path) -> None:
    """Makes the run folder.

    Raises:
        RunFolderError: it exists and is not empty, or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise RunFolderError(f"{path}: exists and is not empty; name another folder with --output")
    except (NotADirectoryError, FileExistsError):
        raise RunFolderError(f"{path}: is a file, or lies below one; name another folder with --output") from None
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be made: {error.strerror}; name another folder with --output") from None


class Workload(msgspec.Struct, kw_only=True):
    """The prompts as every run sends them.

    Attributes:
        api: the API that carries them.
        dataset: the manifest's ``dataset``.
        stride: level k begins at prompt k * stride, in every run alike, so that engines get the same
            prompts at a level, and levels share none where there are enough.
        longest: tokens of the longest synthetic prompt and answer; None for a dataset.
    """

    api: Api
    dataset: dict[str, Any]
    stride: int
    longest: int | None = None


def choose_workload(spec: SweepSpec) -> Workload:
    """Looks through the prompts; a whole dataset is checked on the way.

    Raises:
        DatasetError: it cannot be used.
        UsageError: a prompt does not fit the API.
    """
    source = spec.source.open()
    if not isinstance(source, DatasetSource):
        if spec.api == "chat":
            raise UsageError("synthetic prompts are token ids, which --endpoint chat cannot carry; use a --dataset")
        assert spec.source.input_tokens is not None and spec.source.output_tokens is not None
        return Workload(
            api="completions",
            dataset={
                "kind": "synthetic token ids",
                "input_tokens": str(spec.source.input_tokens),
                "output_tokens": str(spec.source.output_tokens),
                "vocab_size": spec.source.vocab_size,
            },
            stride=PROMPTS_PER_LEVEL,
            longest=spec.source.input_tokens.high + spec.source.output_tokens.high,
        )
    api: Api = spec.api or ("chat" if any(p.kind == "messages" for p in source.prompts) else "completions")
    for prompt in source.prompts:
        check_prompt(api, prompt)
    assert spec.source.path is not None
    path = Path(spec.source.path)
    return Workload(
        api=api,
        dataset={
            "kind": "file",
            "path": f"datasets/{path.name}" if path in shipped().values() else str(path),
            "sha256": _sha256(path),
            "prompts": len(source.prompts),
        },
        stride=max(1, len(source.prompts) // (len(spec.levels) * spec.rounds)),
    )


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


def check_lengths(spec: EngineSpec, command: EngineCommand, longest: int | None) -> None:
    """Refuses synthetic prompts that are longer than the model, or the engine as it is told, can take.

    Raises:
        UsageError: says how long they may be.
    """
    limits = [n for n in (spec.max_seq_len, command.facts.get("max_position_embeddings")) if isinstance(n, int)]
    if longest is not None and limits and longest > min(limits):
        raise UsageError(
            f"prompt and answer take up to {longest:,} tokens, and {spec.name} serves {spec.model} with at most "
            f"{min(limits):,}; use a smaller --input-tokens or --output-tokens"
        )


class Run:
    """One engine's run folder while a sweep fills it.

    Args:
        spec: the sweep.
        workload: its prompts.
        folder: the run folder; exists.
        listener: is told.
        interrupts: asked all the time.
        session: NVML, where there is a GPU.
        workers: processes that send.
    """

    def __init__(
        self,
        spec: SweepSpec,
        workload: Workload,
        folder: Path,
        listener: Listener,
        interrupts: Interrupts,
        session: Nvml | None,
        workers: int,
    ) -> None:
        self.folder = folder
        self.summary = Summary(simulated=False, levels=[])
        self._spec = spec
        self._workload = workload
        self._listener = listener
        self._interrupts = interrupts
        self._nvml = session
        self._workers = workers
        self._tail = RunTail(folder)
        self._manifest: Manifest | None = None
        self._launched: Launched | None = None
        self._runner: Runner | None = None
        self._watcher: Watcher | None = None
        self._page: control.MetricsPage | None = None
        self._engine_died = False
        self._disk_error: str | None = None

    @property
    def going(self) -> bool:
        """Whether a further level can be run."""
        usable = self._runner is None or (self._runner.usable and not self._runner.disk_error)
        return usable and not self._engine_died and not self._disk_error and not self._interrupts.count

    async def attach(self, url: str, launched: Launched | None, cores: set[int] | None) -> None:
        """Gets ready to measure a server that is up. The manifest is written the first time.

        Raises:
            EndpointError: what answers cannot be measured.
            RunFolderError: the folder cannot be written.
        """
        spec = self._spec
        if launched is None:
            server = await control.identify(url, spec.headers, spec.verify_tls)
            model = find_model(server, url, spec.model)
        else:
            server, model = launched.server, launched.command.model
        endpoint = Endpoint(
            url=url,
            model=model,
            dialect=spec.dialect or server.kind,
            api=self._workload.api,
            headers=spec.headers,
            verify_tls=spec.verify_tls,
            extra_body=spec.extra_body,
        )
        assert endpoint.dialect in DIALECTS
        self._launched = launched
        self.summary.simulated = server.kind == "sim"
        if launched is None:  # only now, so that a server that cannot be measured leaves no folder
            prepare_output(self.folder)
        try:
            (self.folder / "records.jsonl").touch()
            if self._manifest is None:
                self._manifest = self._make_manifest(server, endpoint)
                write_json(self.folder / "manifest.json", self._manifest)
                self._listener.started(self._manifest, self.folder)
            self._runner = Runner(
                endpoint=endpoint,
                timeouts=spec.timeouts,
                source=spec.source,
                workers=self._workers,
                run=self.folder,
                interrupts=self._interrupts,
                cores=cores,
                on_sample=self._listener.sampled,
            )
        except OSError as error:
            raise RunFolderError(f"{self.folder}: cannot be written: {error.strerror}; nothing was measured") from None
        self._page = control.MetricsPage(url, spec.headers, spec.verify_tls, server.kind)
        uuids = launched.command.gpu_uuids if launched is not None else []
        # The GPUs of this host are a server's own only when loadgen started it here.
        session = self._nvml if launched is not None and launched.command.gpu_uuids else None
        self._watcher = Watcher(
            self.folder, self._page, session, uuids, periodic=spec.watch, waits=server.kind == "trtllm"
        )
        await self._page.read()  # the first read of a server takes longer than the others
        await asyncio.to_thread(self._runner.wait_ready)

    def _make_manifest(self, server: control.Server, endpoint: Endpoint) -> Manifest:
        spec, launched = self._spec, self._launched
        command = launched.command if launched is not None else None
        gpus = self._nvml.gpus() if self._nvml is not None else []
        return Manifest(
            command=spec.command,
            started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            simulated=server.kind == "sim",
            host=environment.host(),
            gpus=[msgspec.to_builtins(gpu) for gpu in gpus],
            driver=self._nvml.driver if self._nvml is not None else None,
            engine={
                "kind": server.kind,
                "version": server.version,
                "argv": command.argv if command else None,
                "env": command.env if command else {},
                "shell": command.shell() if command else None,
                "url": endpoint.url,
                "model": endpoint.model,
                "dialect": endpoint.dialect,
                "endpoint": endpoint.api,
                "startup_s": launched.startup_s if launched else None,
                "gpu_uuids": command.gpu_uuids if command else [],
                **(command.facts if command else {}),
            },
            dataset=self._workload.dataset,
            seed=spec.source.seed,
            load={
                "model": "closed",
                "requests": spec.requests,
                "duration_s": spec.duration_s,
                "rounds": spec.rounds,
                "warmup": spec.warmup,
                "timeouts": msgspec.to_builtins(spec.timeouts),
            },
            levels=[level.load for level in spec.level_specs()],
            client={
                "loadgen_version": __version__,
                "workers": self._workers,
                "headers": sorted(spec.headers),
                "calibration": kept_calibration(),
            },
        )

    async def level(self, level: LevelSpec) -> None:
        """Measures one level; its summary is in the folder when this returns."""
        assert self._runner is not None and self._watcher is not None
        runner, watcher = self._runner, self._watcher
        if self._launched is not None and self._launched.command.resets_prefix_cache:
            assert self._manifest is not None
            if not await control.reset_prefix_cache(self._launched.url):
                self._note("the prefix cache could not be emptied between levels; see cached_input in summary.json")
        await watcher.start(level.index)
        self._listener.level_started(level)
        samples: list[ClientSample] = []
        mark = await asyncio.to_thread(runner.run_level, level, level.index * self._workload.stride, samples.append)
        await watcher.pause()
        gathered = gather(self._tail.records(runner.take_unwritten()), mark)
        await self._read_counters(gathered.totals)
        result = summarize(level.load, gathered, samples, mark.interrupted, *watcher.taken())
        self.summary.levels.append(result)
        self._listener.level_ended(result)
        self._disk_error = runner.disk_error or watcher.disk_error
        if self._launched is not None and (death := self._launched.death()) is not None:
            self._engine_died = True
            self._note(f"{self._launched.command.kind} ended while it was measured, {death.splitlines()[0]}")
        self.save()

    async def _read_counters(self, totals: dict[str, int]) -> None:
        """The counters after a level. An engine counts a request a little after it has answered it,
        so a difference from our own totals is looked at again for a while."""
        assert self._watcher is not None
        deadline = time.monotonic() + COUNTERS_WAIT_S
        while (sample := await self._watcher.read("end")) is not None:
            compared = reconcile([*self._watcher.taken()[0], sample], totals)
            if compared is None or compared["agrees"] or time.monotonic() > deadline:
                return
            await asyncio.sleep(0.2)

    def _note(self, text: str) -> None:
        """Keeps a remark for the reports, now and when they are made again."""
        if text not in self.summary.notes:
            self.summary.notes.append(text)
            if self._runner is not None:
                self._runner.note(text)

    @property
    def failure(self) -> str | None:
        """Why the engine failed in the middle of the sweep, if it did."""
        return next((n for n in self.summary.notes if "ended while it was measured" in n), None)

    def save(self) -> None:
        """Writes summary.json as far as there is one."""
        try:
            write_json(self.folder / "summary.json", self.summary)
        except OSError as error:
            self._disk_error = self._disk_error or error.strerror

    async def detach(self) -> None:
        """Ends the workers and the watching; the folder stays."""
        if self._watcher is not None:
            await self._watcher.close()
            self._watcher = None
        if self._runner is not None:
            await asyncio.to_thread(self._runner.close)
            self._runner = None

    def finish(self) -> None:
        """Says what was not run."""
        left = len(self._spec.level_specs()) - len(self.summary.levels)
        if left:
            self.summary.notes.append(f"{left} of {left + len(self.summary.levels)} levels were not run")
        if self._disk_error:
            self.summary.notes.append(
                f"{self.folder}: {self._disk_error}: what could not be written is in the figures but not in the folder"
            )
        if self._manifest is not None and (left or self._disk_error):
            self.save()


def run_sweep(spec: SweepSpec, listener: Listener, interrupts: Interrupts) -> SweepResult:
    """Runs the sweep; everything is in ``spec.output`` when it returns.

    Raises:
        UsageError and its kinds: nothing was measured.
        EngineError: the first engine could not be launched.
    """
    return asyncio.run(_run_sweep(spec, listener, interrupts))


async def _run_sweep(spec: SweepSpec, listener: Listener, interrupts: Interrupts) -> SweepResult:
    with nvml() as session:
        gpus = session.gpus() if session is not None else []
        commands = [prepare(engine, gpus) for engine in spec.engines]
        spec = msgspec.structs.replace(spec, source=fit_vocabulary(spec.source, commands))
        workload = choose_workload(spec)
        for engine, command in zip(spec.engines, commands, strict=True):
            check_lengths(engine, command, workload.longest)
        share = len(spec.engines) if spec.together else 1
        workers = spec.workers or max(1, default_workers(max(spec.levels)) // share)
        check_open_files(max(spec.levels), workers)
        sweep = _Sweep(spec, workload, commands, listener, interrupts, session, workers)
        if not spec.engines:
            await sweep.attached()
        else:
            prepare_output(spec.output)
            if spec.together:
                await sweep.all_at_once()
            elif spec.interleave:
                await sweep.interleaved()
            else:
                await sweep.one_after_another()
        return sweep.result()


def fit_vocabulary(source: SourceSpec, commands: list[EngineCommand]) -> SourceSpec:
    """Synthetic prompts that every launched model has the words for."""
    sizes = [size for command in commands if isinstance(size := command.facts.get("vocab_size"), int)]
    if source.path is not None or not sizes or min(sizes) >= source.vocab_size:
        return source
    return msgspec.structs.replace(source, vocab_size=max(min(sizes), FIRST_TOKEN_ID + 1))


class _Sweep:
    """The order in which engines and levels are gone through."""

    def __init__(
        self,
        spec: SweepSpec,
        workload: Workload,
        commands: list[EngineCommand],
        listener: Listener,
        interrupts: Interrupts,
        session: Nvml | None,
        workers: int,
    ) -> None:
        self._spec = spec
        self._workload = workload
        self._commands = commands
        self._listener = listener
        self._interrupts = interrupts
        self._nvml = session
        self._workers = workers
        self._failures: list[str] = []
        self._memory_before: dict[str, int] = {}
        names = [engine.name for engine in spec.engines]
        folders = [spec.output / name for name in names] if len(names) > 1 else [spec.output]
        self._runs = [Run(spec, workload, folder, listener, interrupts, session, workers) for folder in folders]

    def result(self) -> SweepResult:
        """What there is.

        Raises:
            LoadgenError: there is nothing.
        """
        for run in self._runs:
            run.finish()
        measured = [run for run in self._runs if run.summary.levels]
        failures = self._failures + [f"{run.folder}: {run.failure}" for run in measured if run.failure]
        if not measured and self._failures:
            raise EngineError(self._failures[0])
        if not measured:
            raise LoadgenError("interrupted before anything was measured")
        return SweepResult(runs=[(run.folder, run.summary) for run in measured], failures=failures)

    async def attached(self) -> None:
        """A server that runs already."""
        assert self._spec.url is not None
        run = self._runs[0]
        try:
            await run.attach(self._spec.url, None, None)
            await self._levels(run, self._spec.level_specs())
        finally:
            await run.detach()

    async def one_after_another(self) -> None:
        """Every engine once, with all its rounds."""
        self._write_index()
        for position in range(len(self._runs)):
            await self._engine(position, self._spec.level_specs())
        await self._offline()

    async def interleaved(self) -> None:
        """One round of each engine in turn; every second time in the opposite order."""
        self._write_index()
        per_round = len(self._spec.levels)
        specs = self._spec.level_specs()
        for turn in range(self._spec.rounds):
            order = range(len(self._runs))
            for position in order if turn % 2 == 0 else reversed(order):
                await self._engine(position, specs[turn * per_round : (turn + 1) * per_round])
        await self._offline()

    async def _engine(self, position: int, levels: list[LevelSpec]) -> None:
        """Launches an engine, measures those levels, and stops it."""
        run = self._runs[position]
        if self._interrupts.count or not run.going:
            return
        try:
            async with AsyncExitStack() as stack:
                await self._start(stack, position, *self._cores())
                await self._levels(run, levels)
        except EngineError as error:
            self._failures.append(str(error))

    async def _offline(self) -> None:
        """The ceiling of every TensorRT-LLM engine, after its server has gone: both need the GPU."""
        for engine, command, run in zip(self._spec.engines, self._commands, self._runs, strict=True):
            if not self._spec.offline_ceiling or engine.kind != "trtllm" or not run.going or not run.summary.levels:
                continue
            top = max(range(len(run.summary.levels)), key=lambda i: run.summary.levels[i].load["concurrency"])
            count = min(run.summary.levels[top].requests.issued, MAX_OFFLINE_REQUESTS)
            first = top * self._workload.stride
            try:
                await self._memory_free(command)
                await asyncio.to_thread(
                    run_offline, engine, self._spec.source, first, count, run.folder, self._listener.said
                )
            except (EngineError, UsageError) as error:
                self._failures.append(str(error))

    async def _levels(self, run: Run, levels: list[LevelSpec]) -> None:
        for level in levels:
            if not run.going:
                return
            await run.level(level)

    async def all_at_once(self) -> None:
        """Every engine at the same time, level by level, each on its own device.

        An engine that fails takes no further part; the others go on.
        """
        self._write_index()
        async with AsyncExitStack() as stack:
            share = self._core_shares()
            started = await asyncio.gather(
                *(self._start(stack, position, *share[position]) for position in range(len(self._runs))),
                return_exceptions=True,
            )
            alive = []
            for run, outcome in zip(self._runs, started, strict=True):
                if isinstance(outcome, EngineError):
                    self._failures.append(str(outcome))
                elif isinstance(outcome, BaseException):
                    raise outcome
                else:
                    alive.append(run)
            for level in self._spec.level_specs():
                await asyncio.gather(*(run.level(level) for run in alive if run.going))

    async def _start(
        self, stack: AsyncExitStack, position: int, engine_cores: set[int] | None, worker_cores: set[int] | None
    ) -> None:
        """An engine that is up, and its run attached to it, until the stack is unwound."""
        engine, command, run = self._spec.engines[position], self._commands[position], self._runs[position]
        run.folder.mkdir(parents=True, exist_ok=True)
        # A slice's memory is not seen on its own; engines side by side do not wait for each other.
        if not self._spec.together:
            await self._memory_free(command)
        launched = await stack.enter_async_context(
            launch(
                engine,
                command,
                run.folder,
                cores=engine_cores,
                cancelled=lambda: self._interrupts.count > 0,
                say=self._listener.said,
            )
        )
        if command.kind != "sim":
            self._listener.said(f"{engine.name} is ready after {launched.startup_s['total']:.0f} s")
        stack.push_async_callback(run.detach)
        await run.attach(launched.url, launched, worker_cores)

    def _cores(self) -> tuple[set[int] | None, set[int] | None]:
        """Cores for the engine and for the workers."""
        return split_cores(self._workers)

    def _core_shares(self) -> list[tuple[set[int] | None, set[int] | None]]:
        """The same for engines side by side: each gets its part of the engines' cores and of the workers'."""
        count = len(self._runs)
        engine_cores, worker_cores = split_cores(self._workers * count)
        if engine_cores is None or worker_cores is None:
            return [(None, None)] * count
        return [(_part(engine_cores, i, count), _part(worker_cores, i, count)) for i in range(count)]

    async def _memory_free(self, command: EngineCommand) -> None:
        """Waits until the GPUs' memory is as free as it was before the first engine.

        Raises:
            EngineError: something still holds it.
        """
        if self._nvml is None or not command.gpu_uuids:
            return
        deadline = time.monotonic() + FREE_WAIT_S
        while True:
            gpus = [gpu for gpu in self._nvml.gpus() if gpu.uuid in command.gpu_uuids]
            for gpu in gpus:
                if gpu.uuid not in self._memory_before:
                    self._memory_before[gpu.uuid] = gpu.memory_used_bytes
                    if gpu.memory_used_bytes > gpu.memory_bytes * 0.05:
                        held = ", ".join(str(p["pid"]) for p in gpu.processes) or "unknown"
                        self._listener.said(
                            f"GPU {gpu.index}: {gpu.memory_used_bytes / GIB:.1f} GiB are in use already (processes: "
                            f"{held}); what else runs there will show in the figures"
                        )
            busy = [gpu for gpu in gpus if gpu.memory_used_bytes > self._memory_before[gpu.uuid] + LEFT_BYTES]
            if not busy:
                return
            if time.monotonic() > deadline:
                held = "; ".join(
                    f"GPU {gpu.index} still holds {gpu.memory_used_bytes / GIB:.1f} GiB (processes: "
                    + (", ".join(str(p["pid"]) for p in gpu.processes) or "unknown")
                    + ")"
                    for gpu in busy
                )
                raise EngineError(f"the GPU's memory was not freed within {FREE_WAIT_S:g} s of the last engine: {held}")
            await asyncio.sleep(0.5)

    def _write_index(self) -> None:
        """``runs.json``, where there are several."""
        if len(self._runs) > 1:
            index = RunIndex(
                command=self._spec.command,
                runs=[run.folder.name for run in self._runs],
                together=self._spec.together,
            )
            with contextlib.suppress(OSError):
                write_json(self._spec.output / RUNS_FILE, index)


def _part(cores: set[int], index: int, count: int) -> set[int]:
    """One of ``count`` parts of some cores; all of them where there are too few to share."""
    ordered = sorted(cores)
    return set(ordered[index::count]) or cores


def default_output(model: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Path:
    """``reports/local/<UTC time>-<name>``."""
    name = "".join(c if c.isalnum() or c in "-._" else "-" for c in model).strip("-.")[:40] or "run"
    return Path("reports") / "local" / f"{now():%Y%m%d-%H%M%S}-{name}"
