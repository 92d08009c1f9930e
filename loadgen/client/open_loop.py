"""An open loop: requests are sent when they are due, whatever the server does."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain, islice

from loadgen.client.alarm import Alarm
from loadgen.client.exchange import Exchange
from loadgen.client.messages import (
    MeasureStarted,
    PrepareOpen,
)
from loadgen.client.pacer import Job, Pacer, Station
from loadgen.client.pacing import schedule
from loadgen.clock import now_ns
from loadgen.records import Phase, RequestError, RequestRecord, encode_line
from loadgen.units import NS_PER_S


class OpenLoop(Pacer):
    """Requests are sent when they are due, whatever the server does.

    A request belongs to the phase that it is due in. Beyond ``most`` in flight a due request waits for another
    to end: its latency is counted from when it was due, and that it was late is in its record. What still waits
    when the level ends was never sent; it is recorded as ``dropped``.
    """

    def __init__(self, station: Station, prepare: PrepareOpen) -> None:
        self._warmup_ns = int(prepare.warmup_s * NS_PER_S)
        self._duration_ns = None if prepare.duration_s is None else int(prepare.duration_s * NS_PER_S)
        self._to_measure = prepare.requests
        self._most = prepare.most
        self._hold_ns: int | None = None
        self._start_ns = 0
        self._backlog: deque[tuple[int, Phase]] = deque()
        times = self._own_times(schedule(prepare.arrivals), station.setup.worker, prepare.workers)
        # The first is drawn now: with it numpy is imported, which would make the first requests late.
        self._times: Iterator[tuple[int, Phase]] = chain(list(islice(times, 1)), times)
        self._alarm = Alarm(station.loop, self._due)
        self._next_due: tuple[int, Phase] | None = None
        rate = prepare.arrivals.rate_rps / prepare.workers
        super().__init__(
            station,
            prepare,
            ahead=max(16, min(int(2 * rate), 4096)),
            workers=prepare.workers,
            give_up_at=max(50, int(5 * rate)),
            alone=prepare.workers == 1,
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
        self._station.reply(MeasureStarted(t_ns + self._warmup_ns))
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
            self._station.write(
                encode_line(
                    RequestRecord(
                        level=self._level,
                        seq=seq,
                        prompt_id="" if prompt is None else prompt.id,
                        worker=self._station.setup.worker,
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
