"""The runner: prompts x load x wire -> records, over worker processes.

The parent sends nothing itself. It starts the workers, tells them when a level's phases begin,
takes their samples, and sends each a probe every 10 ms on average: a datagram with the time of
its own write. How late the worker's stamp of a probe is, is how late its stamp of a token is.
"""

from __future__ import annotations

import os
import random
import selectors
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from loadgen.analysis.figures import Reached
from loadgen.analysis.precision import Looks
from loadgen.client.endpoint import Endpoint
from loadgen.client.messages import (
    Cancel,
    Command,
    DiskFailed,
    Finish,
    GaveUp,
    Go,
    Hold,
    LevelDone,
    Measure,
    MeasuredDone,
    MeasureStarted,
    Prepare,
    PrepareOpen,
    Ready,
    Reply,
    Sample,
    Setup,
    TurnedOver,
    decode_reply,
)
from loadgen.client.pacing import Arrivals
from loadgen.client.wire import Timeouts
from loadgen.clock import now_ns
from loadgen.errors import LoadgenError
from loadgen.loads import Closed, Load, Open
from loadgen.processes import Interrupts, LineProcess, child_environ
from loadgen.records import ClientSample, LevelMark, NoteMark, encode_line
from loadgen.units import NS_PER_S
from loadgen.workloads.prompts import SourceSpec

PROBE_MEAN_S = 0.01
# One worker core measures about 100,000 tokens/s; a stream that a person reads is 20 to 100.
SLOTS_PER_WORKER = 512
# An open loop's schedule begins so long after the workers are told.
START_AHEAD_NS = 20_000_000

# What has been reached, from the start of the window and now; the last argument is called all the time meanwhile.
Look = Callable[[int, int, Callable[[], None]], Reached]


class LevelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One load level. Either ``requests`` or ``duration_s`` says how much is measured.

    Attributes:
        concurrency: requests in flight of a closed loop; in an open one, at most.
        arrivals: of an open loop; None for a closed one.
        warmup: whether something is sent before anything is measured.
        warmup_s: of an open loop: how long.
        precision: goes on beyond ``duration_s`` until the figures are known so well (relative half
            width), for ``max_duration_s`` at most.
    """

    index: int
    concurrency: int
    arrivals: Arrivals | None = None
    requests: int | None = None
    duration_s: float | None = None
    warmup: bool = True
    warmup_s: float = 0.0
    precision: float | None = None
    max_duration_s: float | None = None
    round: int | None = None

    @property
    def most_s(self) -> float | None:
        """For how long it is measured at most; None where requests are counted."""
        return self.duration_s if self.max_duration_s is None else self.max_duration_s

    @property
    def load(self) -> Load:
        """The ``load`` of the level in summary.json; ``round`` only where there are several."""
        if self.arrivals is None:
            return Closed(concurrency=self.concurrency, round=self.round)
        return Open(
            rate_rps=self.arrivals.rate_rps,
            arrival=self.arrivals.name,
            max_in_flight=self.concurrency,
            round=self.round,
        )


def default_workers(max_concurrency: int) -> int:
    """Worker processes for a load: one per 512 slots, one core left over for the rest."""
    cores = len(os.sched_getaffinity(0))
    return max(1, min(-(-max_concurrency // SLOTS_PER_WORKER), cores - 1))


def split_cores(workers: int = 1) -> tuple[set[int] | None, set[int] | None]:
    """Cores for an engine on this machine and cores for the workers, one for each of those.

    Without this, Linux often wakes the engine on the core of the worker that wrote to it, where it
    waits for milliseconds until that worker is done. The engine keeps at least one core; with a
    single core there is nothing to split.
    """
    cores = sorted(os.sched_getaffinity(0))
    count = min(max(1, workers), len(cores) - 1)
    return (set(cores[count:]), set(cores[:count])) if count >= 1 else (None, None)


def shares(total: int, parts: int) -> list[int]:
    """``total`` split into ``parts`` whole numbers that differ by at most one."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _prepare(spec: LevelSpec, count: int, first_index: int) -> Sequence[Prepare | PrepareOpen]:
    """What each of ``count`` workers is to do of a level."""
    if spec.arrivals is not None:
        return [
            PrepareOpen(
                level=spec.index,
                arrivals=spec.arrivals,
                workers=count,
                first_index=first_index,
                warmup_s=spec.warmup_s if spec.warmup else 0.0,
                duration_s=spec.most_s,
                requests=spec.requests,
                most=most,
            )
            for most in shares(spec.concurrency, count)
        ]
    budgets: list[int] | list[None] = [None] * count if spec.requests is None else shares(spec.requests, count)
    return [
        Prepare(
            level=spec.index, slots=slots, first_index=first_index, warmup=spec.warmup, budget=budget, alone=count == 1
        )
        for slots, budget in zip(shares(spec.concurrency, count), budgets, strict=True)
    ]


class _WorkerProcess:
    """A worker, and the socket of its probes."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.probe, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.probe.setblocking(False)
        with theirs:
            self.probe_fd = theirs.fileno()
            argv = [sys.executable, "-m", "loadgen.client.worker"]
            self._child = LineProcess(argv, child_environ(), pass_fds=(self.probe_fd,))
        self.process = self._child.process
        self.fd = self._child.fd
        self.next_probe_ns = 0

    def send(self, command: Command) -> None:
        self._child.send(msgspec.json.encode(command))

    def read(self) -> tuple[list[Reply], bool]:
        """What has come, and whether the worker is still there."""
        return [decode_reply(line) for line in self._child.read()], not self._child.ended

    def last_words(self) -> str:
        """Why it died, as far as it said."""
        code, line = self._child.wait(5), self._child.last_line()
        return f"exit code {code}" + (f": {line}" if line else "")

    def close(self) -> None:
        """Waits for it to leave, its input being closed, and makes it leave if it does not."""
        self._child.close()
        self.probe.close()


class _Level:
    """Where a level stands, as the workers have told."""

    def __init__(
        self, spec: LevelSpec, workers: list[_WorkerProcess], on_sample: Callable[[ClientSample], None]
    ) -> None:
        self.spec = spec
        self.on_sample = on_sample
        self.workers = workers
        self.ready = 0
        self.turned_over = 0
        self.started_ns: list[int] = []
        self.measured_ns: list[int] = []
        self.done = 0
        self.hold_at_ns: int | None = None
        self.looks: Looks | None = None
        if spec.precision is not None:
            assert spec.duration_s is not None and spec.max_duration_s is not None
            self.looks = Looks(spec.precision, spec.duration_s, spec.max_duration_s)
        self.look_at_ns: int | None = None
        self.end_ns: int | None = None  # of the window, where that was decided on the way
        self.finishing = False
        self.interrupted: str | None = None
        self.unwritten: list[str] = []


class Runner:
    """Worker processes for one endpoint, over any number of levels.

    Args:
        endpoint, timeouts, source: what every worker needs.
        workers: how many.
        run: the run folder; records.jsonl and client.jsonl are appended to.
        interrupts: checked all the time.
        cores: pins the workers to these cores.
        on_sample: called with every worker sample.
    """

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        timeouts: Timeouts,
        source: SourceSpec,
        workers: int,
        run: Path,
        interrupts: Interrupts,
        cores: set[int] | None = None,
        on_sample: Callable[[ClientSample], None] = lambda sample: None,
    ) -> None:
        self._interrupts = interrupts
        interrupts.kills.append(self.kill)
        self._on_sample = on_sample
        self._selector = selectors.DefaultSelector()
        self._client_log = (run / "client.jsonl").open("ab")
        self._rng = random.Random(0)
        self._unwritten: list[str] = []
        self._lost: list[_WorkerProcess] = []
        self.disk_error: str | None = None
        self._workers = [_WorkerProcess(index) for index in range(workers)]
        for worker in self._workers:
            if cores is not None:
                os.sched_setaffinity(worker.process.pid, cores)
            self._selector.register(worker.fd, selectors.EVENT_READ, worker)
            worker.send(
                Setup(
                    endpoint=endpoint,
                    timeouts=timeouts,
                    source=source,
                    records=str((run / "records.jsonl").resolve()),
                    worker=worker.index,
                    workers=workers,
                    probe_fd=worker.probe_fd,
                )
            )

    def wait_ready(self) -> None:
        """Returns when every worker has been set up.

        Raises:
            LoadgenError: a worker could not start.
        """
        waiting = {worker.index for worker in self._workers}
        deadline = time.monotonic() + 60
        while waiting:
            if time.monotonic() > deadline:
                raise LoadgenError("the worker processes did not start within 60 s")
            for key, _ in self._selector.select(1.0):
                replies, alive = key.data.read()
                if any(isinstance(reply, Ready) for reply in replies):
                    waiting.discard(key.data.index)
                elif not alive:
                    raise LoadgenError(f"a worker process could not start ({key.data.last_words()})")

    @property
    def usable(self) -> bool:
        """Whether a further level can be run: every worker lives."""
        return not self._lost

    def take_unwritten(self) -> list[str]:
        """Record lines that the disk did not take, since the last call."""
        lines, self._unwritten = self._unwritten, []
        return lines

    def run_level(
        self,
        spec: LevelSpec,
        first_index: int,
        on_sample: Callable[[ClientSample], None] = lambda sample: None,
        look: Look | None = None,
    ) -> LevelMark:
        """Runs one level to its end; its records are in the run folder then.

        Args:
            spec: the level.
            first_index: index of its first prompt in the source.
            on_sample: called with every worker sample, beside the runner's own.
            look: of a level that is to be precise: what has been reached by now.
        """
        count = min(len(self._workers), spec.concurrency)
        level = _Level(spec, self._workers[:count], on_sample)
        for worker, message in zip(level.workers, _prepare(spec, count, first_index), strict=True):
            worker.send(message)
        seen_interrupts = 0
        while level.done < len(level.workers):
            if self._interrupts.count > seen_interrupts:
                seen_interrupts = self._interrupts.count
                self._stop(level, "interrupted", cancel="interrupted by the user")
            if look is not None and level.look_at_ns is not None and now_ns() >= level.look_at_ns:
                self._look(level, look)
            if level.hold_at_ns is not None and now_ns() >= level.hold_at_ns:
                self._tell(level, Hold(level.hold_at_ns))
                level.hold_at_ns = None
            self._pump(level)
        self._unwritten += level.unwritten
        mark = self._mark(level)
        self._log(mark)
        return mark

    def _look(self, level: _Level, look: Look) -> None:
        """Ends the measured time if the level is precise enough, else says when to look again.

        What a look computes is computed here, in the thread that sends the probes: in another one Python would
        switch threads between a probe's stamp and its write, and call that the workers' lateness. It costs about
        0.13 ms a record of 128 tokens; every 20 records the probes that are due are sent, so that they pause for
        3 ms at a time, and once for what the intervals take at the end, some tens of ms. All looks of a level
        together go through at most three times as many records as it has.
        """
        assert level.looks is not None
        start_ns = max(level.started_ns)
        elapsed_s = (now_ns() - start_ns) / NS_PER_S
        level.look_at_ns = None
        enough = level.looks.enough(elapsed_s, look(start_ns, now_ns(), lambda: self._pump(level, wait=False)))
        if level.finishing:
            return  # it was stopped meanwhile
        if enough:
            # An open loop's workers are told beforehand, so that all of them stop at the same arrival.
            level.end_ns = now_ns() + (0 if level.spec.arrivals is None else START_AHEAD_NS)
            level.hold_at_ns = None
            self._tell(level, Hold(level.end_ns))
        elif level.looks.next_s < (level.spec.max_duration_s or 0):
            level.look_at_ns = start_ns + int(level.looks.next_s * NS_PER_S)

    def _mark(self, level: _Level) -> LevelMark:
        now = now_ns()
        everyone = len(level.workers)  # 0 when all have died
        start = max(level.started_ns) if everyone and len(level.started_ns) == everyone else now
        end = now
        if level.interrupted is None and level.spec.most_s is not None:
            end = level.end_ns or start + int(level.spec.most_s * NS_PER_S)
        elif everyone and len(level.measured_ns) == everyone:
            end = max(level.measured_ns)
        mark = LevelMark(
            level=level.spec.index,
            window_start_ns=start,
            window_end_ns=max(start, min(end, now)),
            interrupted=level.interrupted,
        )
        if level.looks is not None:
            mark.looks = level.looks.count
            mark.ended = "budget" if level.end_ns is None else "precision"
            mark.ended = mark.ended if level.interrupted is None else "interrupted"
        return mark

    def _pump(self, level: _Level, wait: bool = True) -> None:
        """Sends the probes that are due, then waits for messages until the next one is, or takes those there are."""
        now = now_ns()
        wake = now + NS_PER_S // 50
        for worker in level.workers:
            if worker.next_probe_ns <= now:
                try:
                    worker.probe.send(struct.pack("q", now_ns()))
                except OSError:
                    pass  # its queue is full, or it has died: the next message says
                # Exponential gaps, so that probes fall on the load's own rhythm at random.
                worker.next_probe_ns = now + int(self._rng.expovariate(1 / PROBE_MEAN_S) * NS_PER_S)
            wake = min(wake, worker.next_probe_ns)
        for moment in (level.hold_at_ns, level.look_at_ns):
            wake = wake if moment is None else min(wake, moment)
        for key, _ in self._selector.select(max(0.0, (wake - now_ns()) / NS_PER_S) if wait else 0.0):
            replies, alive = key.data.read()
            for reply in replies:
                self._take(level, reply)
            if not alive:
                self._died(level, key.data)

    def _take(self, level: _Level, reply: Reply) -> None:
        everyone = len(level.workers)
        match reply:
            case Sample(sample):
                self._log(sample)
                level.on_sample(sample)
                self._on_sample(sample)
            case Ready():
                level.ready += 1
                if level.ready == everyone:
                    self._tell(level, Go(now_ns() + START_AHEAD_NS))
                    if level.interrupted is not None:
                        self._tell(level, Cancel(level.interrupted))
            case TurnedOver():
                level.turned_over += 1
                if level.turned_over == everyone and not level.finishing:
                    self._tell(level, Measure())
            case MeasureStarted(t_ns):
                level.started_ns.append(t_ns)
                if len(level.started_ns) == everyone:
                    if level.spec.most_s is not None and level.spec.arrivals is None:
                        level.hold_at_ns = max(level.started_ns) + int(level.spec.most_s * NS_PER_S)
                    if level.looks is not None:
                        level.look_at_ns = max(level.started_ns) + int(level.looks.next_s * NS_PER_S)
            case MeasuredDone(t_ns):
                level.measured_ns.append(t_ns)
                if len(level.measured_ns) == everyone and not level.finishing:
                    level.finishing = True
                    self._tell(level, Finish())
            case GaveUp(failures, last):
                self._stop(level, f"stopped after {failures} failures in a row; the last: {last}")
            case DiskFailed(message):
                self.disk_error = message
                self._stop(level, f"records cannot be written: {message}")
            case LevelDone(unwritten):
                level.done += 1
                level.unwritten += unwritten

    def _stop(self, level: _Level, reason: str, cancel: str | None = None) -> None:
        """Ends the level early."""
        if level.interrupted is None:
            level.interrupted = reason
        level.finishing = True
        level.hold_at_ns = level.look_at_ns = None
        if level.ready >= len(level.workers):
            self._tell(level, Finish() if cancel is None else Cancel(cancel))

    def _died(self, level: _Level, worker: _WorkerProcess) -> None:
        self._selector.unregister(worker.fd)
        self._workers.remove(worker)
        self._lost.append(worker)
        if worker in level.workers:
            level.workers.remove(worker)
            # What the others have told still counts; what this one would have told is not waited for.
            self._stop(level, f"worker {worker.index} died ({worker.last_words()})", cancel="another worker died")

    def _tell(self, level: _Level, command: Command) -> None:
        for worker in level.workers:
            worker.send(command)

    def _log(self, line: msgspec.Struct) -> None:
        try:
            self._client_log.write(encode_line(line))
            self._client_log.flush()
        except OSError as error:
            self.disk_error = self.disk_error or error.strerror or str(error)

    def note(self, text: str) -> None:
        """Keeps a remark about the run beside its samples."""
        self._log(NoteMark(text=text))

    def kill(self) -> None:
        """Ends the workers now."""
        for worker in self._workers:
            worker.process.kill()

    def close(self) -> None:
        """Ends the workers; they leave when their input ends."""
        self._interrupts.kills.remove(self.kill)
        for worker in self._workers + self._lost:
            worker.close()
        self._selector.close()
        try:
            self._client_log.close()
        except OSError:
            pass  # a full disk, reported already
