"""One worker process: slots that send over the wire, and the records of what came back.

The parent (:mod:`loadgen.client.runner`) talks to it in JSON lines over standard input and output. When
standard input ends, the parent is gone and the worker leaves.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import struct
import time
from collections import deque
from collections.abc import Generator, Iterator
from itertools import chain, islice
from typing import cast

import msgspec
import uvloop

from loadgen.analysis.outcome import outcome
from loadgen.client.alarm import Alarm
from loadgen.client.endpoint import Endpoint, RequestEncoder
from loadgen.client.exchange import Exchange
from loadgen.client.pacing import Arrivals, schedule
from loadgen.client.wire import Timeouts, Wire
from loadgen.clock import now_ns
from loadgen.records import ClientSample, Phase, RequestError, RequestRecord, encode_line
from loadgen.units import NS_PER_S
from loadgen.workloads.prompts import Prompt, SourceSpec, make_prompt

SAMPLE_S = 0.1
READY_AHEAD_BYTES = 64 * 2**20
MAX_BACKOFF_S = 1.0
STARTS_PER_MS = 20
OPEN_AHEAD = 64  # connections opened before an open loop begins

# Parent to worker.


class Setup(msgspec.Struct, tag=True, kw_only=True):
    """The first message: everything that holds for the whole run."""

    endpoint: Endpoint
    timeouts: Timeouts
    source: SourceSpec
    records: str
    worker: int
    workers: int
    probe_fd: int


class Prepare(msgspec.Struct, tag=True, kw_only=True):
    """A level: connections are opened and the first requests made, but nothing is sent.

    Attributes:
        slots: this worker's share of the level's concurrency.
        first_index: the level's first prompt.
        warmup: whether every slot turns over once before anything is measured.
        budget: this worker's share of the requests to measure; None measures until Hold.
        alone: no other worker takes part, so there is nobody to wait or to hold the load for.
    """

    level: int
    slots: int
    first_index: int
    warmup: bool
    budget: int | None
    alone: bool


class PrepareOpen(msgspec.Struct, tag=True, kw_only=True):
    """An open-loop level: likewise. Requests are sent at the times of a schedule, each worker taking its part.

    Attributes:
        arrivals: the whole schedule; this worker sends the arrivals whose number modulo ``workers`` is its own.
        workers: how many take part.
        first_index: the level's first prompt.
        warmup_s: what is due before that is not measured.
        duration_s: what is due in that time after it is; None measures ``requests``.
        requests: so many, of the whole schedule.
        most: requests in flight at most, of this worker; what is due beyond waits, and is late.
    """

    level: int
    arrivals: Arrivals
    workers: int
    first_index: int
    warmup_s: float
    duration_s: float | None
    requests: int | None
    most: int


class Go(msgspec.Struct, tag=True):
    """Start: every slot sends its first request; in an open loop, the schedule begins at ``t_ns``."""

    t_ns: int


class Measure(msgspec.Struct, tag=True):
    """Every worker's slots have turned over: what is sent from now on is measured."""


class Hold(msgspec.Struct, tag=True):
    """The measured time is over: hold the load until what was measured has ended.

    In an open loop, whose schedule ends it as a rule, what is due from ``at_ns`` on is not measured.
    """

    at_ns: int


class Finish(msgspec.Struct, tag=True):
    """Send no more; the level is done when nothing is in flight."""


class Cancel(msgspec.Struct, tag=True):
    """Send no more, and end what is in flight as cancelled."""

    message: str


Command = Setup | Prepare | PrepareOpen | Go | Measure | Hold | Finish | Cancel

# Worker to parent.


class Ready(msgspec.Struct, tag=True):
    """Set up, or prepared."""


class TurnedOver(msgspec.Struct, tag=True):
    """Every slot has ended its first request."""


class MeasureStarted(msgspec.Struct, tag=True):
    """Requests sent from ``t_ns`` on are measured."""

    t_ns: int


class MeasuredDone(msgspec.Struct, tag=True):
    """Everything that was measured has ended, at ``t_ns``."""

    t_ns: int


class Sample(msgspec.Struct, tag=True):
    """See :class:`loadgen.records.ClientSample`."""

    sample: ClientSample


class GaveUp(msgspec.Struct, tag=True):
    """So many requests failed one after another that going on is no use."""

    failures: int
    last: str


class DiskFailed(msgspec.Struct, tag=True):
    """Records can no longer be written; they are kept for LevelDone."""

    message: str


class LevelDone(msgspec.Struct, tag=True):
    """Nothing is in flight; ``unwritten`` are lines that the disk did not take."""

    unwritten: list[str]


Reply = Ready | TurnedOver | MeasureStarted | MeasuredDone | Sample | GaveUp | DiskFailed | LevelDone

_encode = msgspec.json.Encoder().encode
_decode_command = msgspec.json.Decoder(Command).decode


class Slot:
    """One of a closed loop's requests in flight at a time."""

    __slots__ = ("failures", "free_ns", "turned")

    def __init__(self) -> None:
        self.free_ns: int | None = None  # end of its last request
        self.failures = 0  # in a row
        self.turned = False


class Job:
    """What the worker remembers about a request in flight: ``slot`` in a closed loop, ``due_ns`` in an open one."""

    __slots__ = ("due_ns", "gap_ns", "phase", "prompt", "seq", "slot")

    def __init__(self, seq: int, prompt: Prompt, phase: Phase, slot: Slot | None, due_ns: int | None) -> None:
        self.seq = seq
        self.prompt = prompt
        self.phase: Phase = phase
        self.slot = slot
        self.due_ns = due_ns
        self.gap_ns: int | None = None


class Level:
    """One level on this worker: requests made ahead, what is in flight, and the records of what has ended.

    When requests are sent is :class:`ClosedLoop`'s and :class:`OpenLoop`'s.

    Args:
        ahead: requests to keep ready, so that one that is due can be sent at once.
        workers: that take part; this one sends every so many-th prompt.
        give_up_at: failures in a row that end the level.
    """

    def __init__(self, worker: Worker, level: int, first_index: int, ahead: int, workers: int, give_up_at: int) -> None:
        self._worker = worker
        self._wire = worker.wire
        self._level = level
        self._first_index = first_index
        self._ahead = ahead
        self._workers = workers
        self._phase: Phase = "warmup"
        self._measured_in_flight = 0
        self._measured_reported = False
        self._stopping = False
        self._done_reported = False
        self._next_number = 0
        self._ready: deque[tuple[int, Prompt, bytes]] = deque()
        self._ready_bytes = 0
        self._making: Generator[None, None, Prompt] | None = None
        self._failures_in_row = 0
        self._give_up_at = give_up_at
        self.issued = 0
        self.completed = 0
        self.failed = 0
        self.output_tokens = 0
        self.ttft_sum_ns = 0
        self.ttft_count = 0
        self.tpot_sum_ns = 0
        self.tpot_count = 0
        while self._wants_more():
            self._keep_ready(make_prompt(worker.source, self._first_index + self._seq()))
        self._wire.spare_time = self._make_ahead

    # Requests made ahead.

    def _seq(self) -> int:
        return self._worker.setup.worker + self._next_number * self._workers

    def _wants_more(self) -> bool:
        return len(self._ready) < self._ahead and (
            self._ready_bytes < READY_AHEAD_BYTES or len(self._ready) < self._ahead // 2
        )

    def _keep_ready(self, prompt: Prompt) -> None:
        seq = self._seq()
        self._next_number += 1
        request_id = b"loadgen-%d-%d-%d" % (self._worker.run_id, self._level, seq)
        payload = self._worker.encoder.encode(prompt, request_id)
        self._ready.append((seq, prompt, payload))
        self._ready_bytes += len(payload)

    def _make_ahead(self) -> bool:
        """One short step of making the next request; False when enough are ready."""
        if self._making is None:
            if self._stopping or not self._wants_more():
                return False
            self._making = self._worker.source.steps(self._first_index + self._seq())
        try:
            next(self._making)
        except StopIteration as stop:
            self._making = None
            self._keep_ready(cast(Prompt, stop.value))
        return True

    # Sending.

    def _send(self, phase: Phase, slot: Slot | None = None, due_ns: int | None = None) -> None:
        """Sends the next request now."""
        if not self._ready:
            while self._making is not None:
                self._make_ahead()
            if not self._ready:
                self._keep_ready(make_prompt(self._worker.source, self._first_index + self._seq()))
        seq, prompt, payload = self._ready.popleft()
        self._ready_bytes -= len(payload)
        if phase == "measure":
            self._measured_in_flight += 1
        self.issued += 1
        self._wire.send(Exchange(payload, self._ended, Job(seq, prompt, phase, slot, due_ns)))
        self._wire.work_soon()

    def _ended(self, exchange: Exchange) -> None:
        """Called in the read that ended the exchange: nothing here may take long."""
        raise NotImplementedError

    # Phases.

    def finish(self) -> None:
        self._stopping = True
        self._check_done()

    def cancel(self, message: str) -> None:
        self._stopping = True
        self._wire.cancel_all(message)
        self._check_done()

    def _report_measured(self, alone: bool) -> None:
        """Everything that was measured has ended; with nobody to hold the load for, the level ends too."""
        self._measured_reported = True
        self._worker.reply(MeasuredDone(now_ns()))
        if alone:
            self.finish()

    def _check_done(self) -> None:
        if self._stopping and not self._wire.active and not self._done_reported:
            self._done_reported = True
            # After the callback of the last exchange, since that is not settled yet.
            self._worker.loop.call_soon(self._worker.level_done)

    # Records.

    def settled(self, exchange: Exchange) -> None:
        """Makes and writes the record of an exchange whose results are known."""
        job: Job = exchange.job
        record = RequestRecord(
            level=self._level,
            seq=job.seq,
            prompt_id=job.prompt.id,
            worker=self._worker.setup.worker,
            phase=job.phase,
            scheduled_ns=job.due_ns,
            sent_ns=exchange.sent_ns,
            headers_ns=exchange.headers_ns,
            first_token_ns=exchange.first_token_ns,
            last_token_ns=exchange.last_token_ns,
            end_ns=exchange.end_ns,
            event_ns=exchange.event_gap_ns.tolist(),
            event_tokens=exchange.event_tokens.tolist(),
            input_tokens=exchange.input_tokens,
            output_tokens=exchange.output_tokens,
            cached_tokens=exchange.cached_tokens,
            requested_tokens=job.prompt.output_tokens,
            token_source=exchange.token_source,
            finish_reason=exchange.finish_reason,
            connect_ns=exchange.connect_ns,
            slot_gap_ns=job.gap_ns,
            retried=exchange.retried,
            error=exchange.error,
        )
        self._worker.write(encode_line(record))
        if exchange.error is None:
            self.completed += 1
            self._failures_in_row = 0
            self.output_tokens += exchange.output_tokens or 0
            found = outcome(record)
            if found.ttft_s is not None:
                self.ttft_sum_ns += round(found.ttft_s * NS_PER_S)
                self.ttft_count += 1
            if found.tpot_s is not None:
                self.tpot_sum_ns += round(found.tpot_s * NS_PER_S)
                self.tpot_count += 1
        else:
            self.failed += 1
            self._failures_in_row += 1
            if self._failures_in_row == self._give_up_at and not self._stopping:
                self._worker.reply(GaveUp(self._failures_in_row, exchange.error.message))

    def sample(self, lateness_ns: list[int]) -> ClientSample:
        return ClientSample(
            t_ns=now_ns(),
            level=self._level,
            worker=self._worker.setup.worker,
            phase=self._phase,
            in_flight=len(self._wire.active),
            issued=self.issued,
            completed=self.completed,
            failed=self.failed,
            output_tokens=self.output_tokens + sum(exchange.tokens for exchange in self._wire.active),
            ttft_sum_ns=self.ttft_sum_ns,
            ttft_count=self.ttft_count,
            tpot_sum_ns=self.tpot_sum_ns,
            tpot_count=self.tpot_count,
            cpu_ns=time.process_time_ns(),
            max_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            lateness_ns=lateness_ns,
        )


class ClosedLoop(Level):
    """Each slot sends its next request when its last has ended."""

    def __init__(self, worker: Worker, prepare: Prepare) -> None:
        self._alone = prepare.alone
        self._slots = [Slot() for _ in range(prepare.slots)]
        self._warmup = prepare.warmup
        self._budget = prepare.budget
        self._not_turned = prepare.slots
        self._waiting = 0  # slots that wait before they try again
        super().__init__(
            worker,
            prepare.level,
            prepare.first_index,
            ahead=2 * prepare.slots,
            workers=worker.setup.workers,
            give_up_at=max(10, 2 * prepare.slots),
        )

    def go(self, t_ns: int) -> None:
        """Every slot sends its first request, 20 a millisecond, which spares the server's accept
        queue; with equal output lengths it also keeps 1,024 slots from ending in the same instant
        ever after."""
        if not self._warmup:
            self.measure()
        self._start_some(0)

    def _start_some(self, first: int) -> None:
        for slot in self._slots[first : first + STARTS_PER_MS]:
            self._next(slot)
        if first + STARTS_PER_MS < len(self._slots):
            self._worker.loop.call_later(0.001, self._start_some, first + STARTS_PER_MS)

    def _next(self, slot: Slot) -> None:
        """Sends the slot's next request, or lets the slot rest when the level is over."""
        if self._phase == "measure" and self._budget == 0:
            self._phase = "drain"
            self._check_measured()
        if self._stopping:
            self._check_done()
            return
        if self._phase == "measure" and self._budget is not None:
            self._budget -= 1
        self._send(self._phase, slot)

    def _ended(self, exchange: Exchange) -> None:
        job: Job = exchange.job
        slot = job.slot
        assert slot is not None
        if slot.free_ns is not None and exchange.sent_ns is not None:
            job.gap_ns = exchange.sent_ns - slot.free_ns
        slot.free_ns = exchange.end_ns
        if job.phase == "measure":
            self._measured_in_flight -= 1
        if not slot.turned:
            slot.turned = True
            self._not_turned -= 1
            if not self._not_turned and self._phase == "warmup":
                if self._alone:
                    self.measure()
                else:
                    self._worker.reply(TurnedOver())
        self._check_measured()
        if exchange.error is None and exchange.status == 200:
            slot.failures = 0
            self._next(slot)
        elif self._stopping:
            self._check_done()
        else:
            # A server that refuses at once must not be asked thousands of times a second.
            delay = min(0.05 * 2 ** min(slot.failures, 10), MAX_BACKOFF_S)
            slot.failures += 1
            self._waiting += 1
            self._worker.loop.call_later(delay, self._retry, slot)

    def _retry(self, slot: Slot) -> None:
        self._waiting -= 1
        self._next(slot)

    def measure(self) -> None:
        self._phase = "measure"
        self._worker.reply(MeasureStarted(now_ns()))
        if self._budget == 0:
            self._phase = "drain"
            self._check_measured()

    def hold(self, at_ns: int) -> None:
        self._phase = "drain"
        self._check_measured()

    def _check_measured(self) -> None:
        if self._phase == "drain" and not self._measured_in_flight and not self._measured_reported:
            self._report_measured(self._alone)


class OpenLoop(Level):
    """Requests are sent when they are due, whatever the server does.

    A request belongs to the phase that it is due in. Beyond ``most`` in flight a due request waits for another
    to end: its latency is counted from when it was due, and that it was late is in its record. What still waits
    when the level ends was never sent; it is recorded as ``dropped``.
    """

    def __init__(self, worker: Worker, prepare: PrepareOpen) -> None:
        self._alone = prepare.workers == 1
        self._warmup_ns = int(prepare.warmup_s * NS_PER_S)
        self._duration_ns = None if prepare.duration_s is None else int(prepare.duration_s * NS_PER_S)
        self._to_measure = prepare.requests
        self._most = prepare.most
        self._hold_ns: int | None = None
        self._start_ns = 0
        self._backlog: deque[tuple[int, Phase]] = deque()
        times = self._own_times(schedule(prepare.arrivals), worker.setup.worker, prepare.workers)
        # The first is drawn now: with it numpy is imported, which would make the first requests late.
        self._times: Iterator[tuple[int, Phase]] = chain(list(islice(times, 1)), times)
        self._alarm = Alarm(worker.loop, self._due)
        self._next_due: tuple[int, Phase] | None = None
        rate = prepare.arrivals.rate_rps / prepare.workers
        super().__init__(
            worker,
            prepare.level,
            prepare.first_index,
            ahead=max(16, min(int(2 * rate), 4096)),
            workers=prepare.workers,
            give_up_at=max(50, int(5 * rate)),
        )

    def _own_times(self, times: Iterator[int], worker: int, workers: int) -> Iterator[tuple[int, Phase]]:
        """This worker's due times with their phases, which are decided on the whole schedule."""
        measured = 0
        for number, due_ns in enumerate(times):
            phase: Phase = "measure"
            if due_ns < self._warmup_ns:
                phase = "warmup"
            elif self._duration_ns is not None:
                phase = "measure" if due_ns < self._warmup_ns + self._duration_ns else "drain"
            elif self._to_measure is not None and measured >= self._to_measure:
                phase = "drain"
            measured += phase == "measure"
            if number % workers == worker:
                yield due_ns, phase

    def go(self, t_ns: int) -> None:
        """The schedule begins at ``t_ns``."""
        self._start_ns = t_ns
        self._worker.reply(MeasureStarted(t_ns + self._warmup_ns))
        self._advance()

    def _advance(self) -> None:
        """Looks at the next arrival, and sets the alarm for it."""
        found = next(self._times, None)
        self._next_due = None
        if found is None:  # a trace has ended
            self._enter("drain")
            return
        self._next_due = (self._start_ns + found[0], found[1])
        self._alarm.set(self._next_due[0])

    def _due(self) -> None:
        """The alarm: sends everything that is due by now."""
        while self._next_due is not None and not self._stopping:
            due_ns, phase = self._next_due
            if due_ns > now_ns():
                self._alarm.set(due_ns)
                return
            if self._hold_ns is not None and due_ns >= self._hold_ns:
                phase = "drain"
            self._enter(phase)
            if self._stopping:
                return  # nothing measured was in flight: with that the level has ended
            if len(self._wire.active) < self._most:
                self._send(phase, due_ns=due_ns)
            else:
                self._backlog.append((due_ns, phase))
                self._measured_in_flight += phase == "measure"
            self._advance()

    def _enter(self, phase: Phase) -> None:
        if phase != self._phase:
            self._phase = phase
            self._check_measured()

    def _ended(self, exchange: Exchange) -> None:
        job: Job = exchange.job
        if job.phase == "measure":
            self._measured_in_flight -= 1
        if self._stopping:
            self._check_done()
        elif self._backlog:
            due_ns, phase = self._backlog.popleft()
            self._measured_in_flight -= phase == "measure"
            self._send(phase, due_ns=due_ns)
        self._check_measured()

    def _check_measured(self) -> None:
        if self._phase == "drain" and not self._measured_in_flight and not self._measured_reported:
            self._report_measured(self._alone)

    def finish(self) -> None:
        self._end()
        super().finish()

    def cancel(self, message: str) -> None:
        self._end()
        super().cancel(message)

    def _end(self) -> None:
        """No more is sent; what was due and still waits is recorded as never sent."""
        self._alarm.close()
        now = now_ns()
        while self._backlog:
            due_ns, phase = self._backlog.popleft()
            self._measured_in_flight -= phase == "measure"
            seq, prompt, _ = self._ready.popleft() if self._ready else (self._seq(), None, b"")
            if prompt is None:
                self._next_number += 1
            self.issued += 1
            self.failed += 1
            self._worker.write(
                encode_line(
                    RequestRecord(
                        level=self._level,
                        seq=seq,
                        prompt_id="" if prompt is None else prompt.id,
                        worker=self._worker.setup.worker,
                        phase=phase,
                        scheduled_ns=due_ns,
                        end_ns=now,
                        error=RequestError(
                            kind="dropped",
                            message=f"never sent: {self._most} requests were in flight until the level ended",
                        ),
                    )
                )
            )

    def measure(self) -> None:
        """Phases follow from the schedule, but for an end that comes earlier."""

    def hold(self, at_ns: int) -> None:
        self._hold_ns = at_ns


class Worker:
    """The process: its pipes, its wire, and the level that is running."""

    def __init__(self, setup: Setup, output: asyncio.WriteTransport) -> None:
        self.setup = setup
        self.loop = asyncio.get_running_loop()
        self._output = output
        self.source = setup.source.open()
        self.encoder = RequestEncoder(setup.endpoint)
        self.run_id = os.getppid()
        self.wire = Wire(setup.endpoint, setup.timeouts, self._settled)
        self._records = os.open(setup.records, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._unwritten: list[str] = []
        self._disk_failed = False
        self._run: ClosedLoop | OpenLoop | None = None
        self._lateness_ns: list[int] = []
        self._sampler: asyncio.TimerHandle | None = None
        self._probes = socket.socket(fileno=setup.probe_fd)
        self._probes.setblocking(False)
        self.loop.add_reader(self._probes.fileno(), self._probed)

    def reply(self, message: Reply) -> None:
        self._output.write(_encode(message) + b"\n")

    async def command(self, message: Command) -> None:
        match message:
            case Prepare():
                self._run = ClosedLoop(self, message)
                await self._prepared(message.slots)
            case PrepareOpen():
                self._run = OpenLoop(self, message)
                await self._prepared(min(message.most, OPEN_AHEAD))
            case Go(t_ns):
                self._sample()
                self._level().go(t_ns)
            case Measure():
                self._level().measure()
            case Hold(at_ns):
                self._level().hold(at_ns)
            case Finish():
                self._level().finish()
            case Cancel(text):
                self._level().cancel(text)
            case Setup():
                raise AssertionError("set up twice")

    async def _prepared(self, connections: int) -> None:
        await self.wire.open(connections)
        self._lateness_ns.clear()
        # What is there now stays; no collection may stop the loop while it is measured.
        gc.collect()
        gc.freeze()
        gc.disable()
        self.reply(Ready())

    def _level(self) -> ClosedLoop | OpenLoop:
        assert self._run is not None
        return self._run

    def _settled(self, exchange: Exchange) -> None:
        if self._run is not None:
            self._run.settled(exchange)

    def level_done(self) -> None:
        self.wire.settle_all()
        self.wire.spare_time = None
        if self._sampler is not None:
            self._sampler.cancel()
        self._report_sample()
        unwritten, self._unwritten = self._unwritten, []
        self.reply(LevelDone(unwritten))
        gc.enable()

    def write(self, line: bytes) -> None:
        """Appends a record; O_APPEND keeps the lines of several workers whole."""
        if not self._disk_failed:
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._records, line[written:])
                return
            except OSError as error:
                # Nothing is written after a line that may be cut; the parent gets the rest.
                self._disk_failed = True
                self.reply(DiskFailed(error.strerror or str(error)))
        self._unwritten.append(line.decode())

    # Self-observation.

    def _probed(self) -> None:
        """A probe is a datagram that holds the time of its own write by the parent."""
        now = now_ns()
        while True:
            try:
                data = self._probes.recv(64)
            except (BlockingIOError, ConnectionError):
                return
            self._lateness_ns.append(now - struct.unpack("q", data)[0])

    def _report_sample(self) -> None:
        lateness, self._lateness_ns = self._lateness_ns, []
        self.reply(Sample(self._level().sample(lateness)))

    def _sample(self) -> None:
        self._sampler = self.loop.call_later(SAMPLE_S, self._sample)
        self._report_sample()


async def _main() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2**26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb"))
    output, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(1, "wb"))
    worker = None
    while line := await reader.readline():
        message = _decode_command(line)
        if isinstance(message, Setup):
            worker = Worker(message, output)
            worker.reply(Ready())
        else:
            assert worker is not None
            await worker.command(message)


def main() -> None:
    """``python -m loadgen.client.worker``: serves one parent until its pipe ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_main())


if __name__ == "__main__":
    main()
    # Nothing is left to clean up, and tearing down thousands of sockets one by one takes long.
    os._exit(0)
