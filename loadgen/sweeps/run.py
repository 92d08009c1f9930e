"""One engine, or one server that runs already, measured level by level into one run folder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from loadgen import __version__, environment
from loadgen.analysis.figures import Reached, Totals
from loadgen.analysis.measure import complete, gather_steady, look, precision_of, summarize
from loadgen.analysis.precision import in_words as reached_in_words
from loadgen.analysis.server_metrics import reconcile
from loadgen.analysis.summary import Summary
from loadgen.client.endpoint import DIALECTS, Endpoint
from loadgen.client.runner import LevelSpec, Look, Runner
from loadgen.engines.launch import Launched
from loadgen.engines.server import MetricsPage, Server, healthy, identify, reset_prefix_cache
from loadgen.engines.table import is_simulated, row_of
from loadgen.errors import EndpointError, RunFolderError
from loadgen.gpus import Nvml
from loadgen.processes import Interrupts
from loadgen.records import (
    ClientEntry,
    ClientSample,
    EngineEntry,
    Manifest,
    RequestRecord,
    RunTail,
    write_json,
    write_manifest,
)
from loadgen.run_folders import prepare_output
from loadgen.sweeps.calibrate import kept_calibration
from loadgen.sweeps.spec import Listener, SweepSpec, Workload
from loadgen.sweeps.watch import Watcher
from loadgen.units import NS_PER_S

COUNTERS_WAIT_S = 2.0
DYING_S = 10.0
FAILED = "failed while it was measured"
DOUBT_S = 2.0
RECORDS_A_BREATH = 20


def find_model(server: Server, url: str, wanted: str | None) -> str:
    """The model to ask for.

    Raises:
        EndpointError: the server does not list the one that is wanted, or lists several.
    """
    if wanted is None:
        if len(server.models) > 1:
            raise EndpointError(f"{url} serves several models; name one with --model: {', '.join(server.models)}")
        return server.models[0]
    row = row_of(server.kind)
    if wanted not in server.models and not (row is not None and row.takes_any_model):
        raise EndpointError(f"{url} does not serve {wanted!r}; it serves: {', '.join(server.models)}")
    return wanted


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
        self._engine_died = False
        self._disk_error: str | None = None

    @property
    def going(self) -> bool:
        """Whether a further level can be run."""
        usable = self._runner is None or (self._runner.usable and not self._runner.disk_error)
        self._look_for_death()
        return usable and not self._engine_died and not self._disk_error and not self._interrupts.count

    async def attach(self, url: str, launched: Launched | None, cores: set[int] | None) -> None:
        """Gets ready to measure a server that is up. The manifest is written the first time.

        Raises:
            EndpointError: what answers cannot be measured.
            RunFolderError: the folder cannot be written.
        """
        spec = self._spec
        if launched is None:
            server = await identify(url, spec.headers, spec.verify_tls)
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
        self.summary.simulated = is_simulated(server.kind)
        if launched is None:  # only now, so that a server that cannot be measured leaves no folder
            prepare_output(self.folder)
        try:
            (self.folder / "records.jsonl").touch()
            if self._manifest is None:
                self._manifest = self._make_manifest(server, endpoint)
                write_manifest(self.folder, self._manifest)
                self._listener.started(self._manifest, self.folder)
            self._runner = Runner(
                endpoint=endpoint,
                timeouts=spec.timeouts,
                source=spec.source,
                workers=self._workers,
                run=self.folder,
                interrupts=self._interrupts,
                cores=cores,
                on_sample=lambda sample: self._listener.sampled(sample, self.folder),
            )
        except OSError as error:
            raise RunFolderError(f"{self.folder}: cannot be written: {error.strerror}; nothing was measured") from None
        page = MetricsPage(url, spec.headers, spec.verify_tls, server.kind)
        uuids = launched.command.gpu_uuids if launched is not None else []
        # The GPUs of this host are a server's own only when loadgen started it here.
        session = self._nvml if launched is not None and launched.command.gpu_uuids else None
        self._watcher = Watcher(self.folder, page, session, uuids, periodic=spec.watch)
        await page.read()  # the first read of a server takes longer than the others
        await asyncio.to_thread(self._runner.wait_ready)

    def _make_manifest(self, server: Server, endpoint: Endpoint) -> Manifest:
        spec, launched = self._spec, self._launched
        command = launched.command if launched is not None else None
        gpus = self._nvml.gpus() if self._nvml is not None else []
        return Manifest(
            command=spec.command,
            started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            simulated=is_simulated(server.kind),
            host=environment.host(),
            gpus=gpus,
            driver=self._nvml.driver if self._nvml is not None else None,
            engine=EngineEntry(
                kind=server.kind,
                version=server.version,
                argv=command.argv if command else None,
                env=command.env if command else {},
                shell=command.shell() if command else None,
                url=endpoint.url,
                model=endpoint.model,
                dialect=endpoint.dialect,
                endpoint=endpoint.api,
                startup_s=launched.startup_s if launched else None,
                gpu_uuids=command.gpu_uuids if command else [],
                facts=command.facts if command else {},
            ),
            dataset=self._workload.dataset,
            seed=spec.source.seed,
            load=spec.load_entry(),
            levels=[level.load for level in spec.level_specs()],
            client=ClientEntry(
                loadgen_version=__version__,
                workers=self._workers,
                headers=sorted(spec.headers),
                calibration=kept_calibration(),
            ),
        )

    def announce(self, level: LevelSpec) -> None:
        """A level that is not in the manifest yet, since it follows from those before."""
        assert self._manifest is not None
        self._manifest.levels.append(level.load)
        try:
            write_manifest(self.folder, self._manifest)
        except OSError as error:
            self._disk_error = self._disk_error or error.strerror

    async def level(self, level: LevelSpec) -> None:
        """Measures one level; its summary is in the folder when this returns."""
        assert self._runner is not None and self._watcher is not None
        runner, watcher = self._runner, self._watcher
        engine = self._launched
        if (
            engine
            and engine.command.resets_prefix_cache
            and not await reset_prefix_cache(engine.url, engine.command.kind)
        ):
            self.note("the prefix cache could not be emptied between levels; see cached_input in summary.json")
        await watcher.start(level.index)
        self._listener.level_started(level, self.folder)
        samples: list[ClientSample] = []
        look = None if level.precision is None else self._looker(level)
        first = level.index * self._workload.stride
        mark = await asyncio.to_thread(runner.run_level, level, first, samples.append, look)
        await watcher.pause()
        unwritten = runner.take_unwritten()
        gathered, steady = gather_steady(
            level.load, lambda: self._tail.records(unwritten), mark, lambda: self._tail.again(unwritten)
        )
        if mark.interrupted is None:
            await self._read_counters(gathered.totals)
        elif not self._interrupts.count:
            await self._await_death()
        precision = None if level.precision is None else precision_of(level.precision, level.load, gathered, mark)
        result = summarize(
            level.load,
            gathered,
            samples,
            mark.interrupted,
            *watcher.taken(),
            steady=steady,
            slos=self._spec.slos,
            precision=precision,
        )
        if precision is not None and not precision.met and precision.ended == "budget":
            self.note(
                f"{level.load.text}: a precision of {precision.asked * 100:g} % was not reached within "
                f"{level.max_duration_s:g} s: {reached_in_words(precision.reached)}"
            )
        self.summary.levels.append(result)
        assert self._manifest is not None
        complete(self.summary, self._manifest.load.find)
        self._listener.level_ended(result, self.folder)
        self._disk_error = runner.disk_error or watcher.disk_error
        self._look_for_death()
        self.save()

    def _looker(self, level: LevelSpec) -> Look:
        """Looks at how well the level knows its figures by now, and says so; for the runner's thread."""

        def looked(start_ns: int, now_ns: int, breathe: Callable[[], None]) -> Reached:
            def read() -> Iterator[RequestRecord]:
                for number, record in enumerate(self._tail.peek()):
                    if number % RECORDS_A_BREATH == 0:
                        breathe()
                    yield record

            found, believed = look(level.index, level.load, read, start_ns, now_ns)
            seconds = (now_ns - start_ns) / NS_PER_S
            doubt = "" if believed else " (too few requests, or not steady)"
            self._listener.said(f"{level.load.text}: after {seconds:.0f} s {reached_in_words(found)}{doubt}")
            return found if believed else {}

        return looked

    def _look_for_death(self) -> None:
        if self._launched is not None and not self._engine_died and (death := self._launched.death()) is not None:
            self._engine_died = True
            self.note(f"{self._launched.command.kind} {FAILED}: {death.splitlines()[0]}")

    async def _await_death(self) -> None:
        """A level was given up. An engine that is dying answers wrongly first, then closes its port,
        and ends later: it is given a while, a shorter one if it still says that it is well."""
        started = time.monotonic()
        while self._launched is not None and self._launched.death() is None:
            well = await healthy(self._launched.url, self._launched.command.kind)
            waited = time.monotonic() - started
            if well and waited > DOUBT_S:
                return
            if waited > DYING_S:
                self._engine_died = True
                self.note(f"{self._launched.command.kind} {FAILED}: it answers no more, though its process lives")
                return
            await asyncio.sleep(0.1)

    async def _read_counters(self, totals: Totals) -> None:
        """The counters after a level. An engine counts a request a little after it has answered it,
        so a difference from our own totals is looked at again for a while."""
        assert self._watcher is not None
        deadline = time.monotonic() + COUNTERS_WAIT_S
        while (sample := await self._watcher.read("end")) is not None:
            compared = reconcile([*self._watcher.taken()[0], sample], totals)
            if compared is None or compared[1] or time.monotonic() > deadline:
                return
            await asyncio.sleep(0.2)

    def note(self, text: str) -> None:
        """Keeps a remark for the reports, now and when they are made again."""
        if text not in self.summary.notes:
            self.summary.notes.append(text)
            if self._runner is not None:
                self._runner.note(text)

    @property
    def failure(self) -> str | None:
        """Why the engine failed in the middle of the sweep, if it did."""
        return next((note for note in self.summary.notes if FAILED in note), None)

    def save(self) -> None:
        """Writes summary.json as far as there is one."""
        try:
            write_json(self.folder / "summary.json", self.summary)
        except OSError as error:
            self._disk_error = self._disk_error or error.strerror

    async def detach(self) -> None:
        """Ends the workers and the watching; the folder stays. The engine's own end is no death then."""
        self._launched = None
        if self._watcher is not None:
            await self._watcher.close()
            self._watcher = None
        if self._runner is not None:
            await asyncio.to_thread(self._runner.close)
            self._runner = None

    def finish(self) -> None:
        """Says what was not run."""
        planned = len(self._spec.level_specs()) or len(self._manifest.levels if self._manifest is not None else ())
        left = planned - len(self.summary.levels)
        if left:
            self.summary.notes.append(f"{left} of {left + len(self.summary.levels)} levels were not run")
        if self._disk_error:
            self.summary.notes.append(
                f"{self.folder}: {self._disk_error}: what could not be written is in the figures but not in the folder"
            )
        if self._manifest is not None:
            self.save()
