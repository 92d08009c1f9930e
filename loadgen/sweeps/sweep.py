"""A sweep: engines, or a server that runs already, measured at one load level after another.

Each engine gets a run folder of its own: the output folder itself when there is one engine, else a
folder in it, and ``runs.json`` beside them. Engines are measured one after another, in alternating
rounds (``interleave``), or, one on each MIG slice, all at once (``together``).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from loadgen.analysis.find import follow
from loadgen.analysis.probes import probe_of
from loadgen.analysis.summary import Summary
from loadgen.client.runner import LevelSpec, split_cores
from loadgen.engines.launch import check_port, launch, prepare
from loadgen.engines.lookup import find_install
from loadgen.engines.spec import GIB, EngineCommand
from loadgen.engines.table import ENGINES, is_simulated
from loadgen.errors import EngineError, LoadgenError, UsageError
from loadgen.gpus import Nvml, nvml
from loadgen.processes import Interrupts
from loadgen.records import Goal, write_json
from loadgen.report.find import said
from loadgen.run_folders import RUNS_FILE, RunIndex, prepare_output
from loadgen.sweeps.run import Run
from loadgen.sweeps.spec import (
    Listener,
    SweepSpec,
    Workload,
    check_lengths,
    check_open_files,
    choose_workload,
    fit_vocabulary,
)

# What may stay in a GPU's memory of an engine that has ended, and how long its driver may take.
LEFT_BYTES = 512 * 2**20
FREE_WAIT_S = 60.0
MAX_OFFLINE_REQUESTS = 2048


class SweepResult(msgspec.Struct, kw_only=True):
    """What a sweep left: each run's folder and summary, what went wrong beside them, and the exit code."""

    runs: list[tuple[Path, Summary]]
    failures: list[str]
    exit_code: int

    @property
    def valid(self) -> bool:
        """Whether every level of every run is VALID, and nothing failed."""
        return self.exit_code == 0


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
        for engine in spec.engines:
            if engine.port is not None:
                check_port(engine.host, engine.port)
        workers = spec.workers or max(1, spec.default_workers() // share)
        check_open_files(spec.most_in_flight, workers)
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
        self._failures: list[LoadgenError] = []
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
        if not measured:
            raise self._failures[0] if self._failures else LoadgenError("interrupted before anything was measured")
        failures = self._failures + [EngineError(f"{run.folder}: {run.failure}") for run in measured if run.failure]
        if not failures and len(measured) < len(self._runs):
            left = ", ".join(run.folder.name for run in self._runs if run not in measured)
            failures.append(LoadgenError(f"interrupted: not measured: {left}"))
        valid = all(run.summary.valid for run in measured)
        return SweepResult(
            runs=[(run.folder, run.summary) for run in measured],
            failures=[str(error) for error in failures],
            exit_code=max((error.exit_code for error in failures), default=0 if valid else 1),
        )

    async def attached(self) -> None:
        """A server that runs already."""
        assert self._spec.url is not None
        run = self._runs[0]
        try:
            await run.attach(self._spec.url, None, None)
            await self._measure(run, self._spec.level_specs())
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
        per_round = self._spec.loads
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
                await self._start(stack, position, *split_cores(self._workers))
                await self._measure(run, levels)
        except LoadgenError as error:
            self._failures.append(error)  # what was measured before is still to be shown

    async def _offline(self) -> None:
        """The ceiling of every engine that can be measured without HTTP, after its server has gone: both need the
        GPU."""
        for engine, command, run in zip(self._spec.engines, self._commands, self._runs, strict=True):
            run_offline = ENGINES[engine.kind].run_offline
            if not self._spec.offline_ceiling or run_offline is None or not run.going or not run.summary.levels:
                continue
            top = max(range(len(run.summary.levels)), key=lambda i: run.summary.levels[i].client.in_flight or 0)
            count = min(run.summary.levels[top].requests.issued, MAX_OFFLINE_REQUESTS)
            first = top * self._workload.stride
            try:
                await self._memory_free(command)
                install = find_install(engine.kind, engine.python)
                await asyncio.to_thread(
                    run_offline, engine, install, self._spec.source, first, count, run.folder, self._listener.said
                )
            except (EngineError, UsageError) as error:
                self._failures.append(error)

    async def _measure(self, run: Run, levels: list[LevelSpec]) -> None:
        """Those levels, or as many as a search takes."""
        if self._spec.find is not None:
            await self._search(run, self._spec.find)
        for level in levels:
            if not run.going:
                return
            await run.level(level)

    async def _search(self, run: Run, goal: Goal) -> None:
        started = time.monotonic()
        while run.going:
            seen = [probe_of(goal, level) for level in run.summary.levels]
            probes, ask, _ = follow(goal, seen)
            if probes:
                self._listener.said(said(probes[-1]))
            if ask is None:
                return
            if time.monotonic() - started > goal.max_find_s:
                run.note(f"the search was stopped when --max-find, {goal.max_find_s:g} s, was over")
                return
            level = self._spec.asked(len(seen), ask)
            run.announce(level)
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
                    self._failures.append(outcome)
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
        if not is_simulated(command.kind):
            self._listener.said(f"{engine.name} is ready after {launched.startup_s['total']:.0f} s")
        stack.push_async_callback(run.detach)
        await run.attach(launched.url, launched, worker_cores)

    def _core_shares(self) -> list[tuple[set[int] | None, set[int] | None]]:
        """Cores for engines side by side: each gets its part of the engines' cores and of the workers'."""
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
