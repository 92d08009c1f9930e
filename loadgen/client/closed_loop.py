"""A closed loop: each slot sends its next request when its last one has ended."""

from __future__ import annotations

from loadgen.client.exchange import Exchange
from loadgen.client.messages import (
    MeasureStarted,
    Prepare,
    TurnedOver,
)
from loadgen.client.pacer import Job, Pacer, Slot, Station
from loadgen.clock import now_ns

MAX_BACKOFF_S = 1.0

STARTS_PER_MS = 20


class ClosedLoop(Pacer):
    """Each slot sends its next request when its last has ended."""

    def __init__(self, station: Station, prepare: Prepare) -> None:
        self._slots = [Slot() for _ in range(prepare.slots)]
        self._warmup = prepare.warmup
        self._budget = prepare.budget
        self._not_turned = prepare.slots
        self._waiting = 0  # slots that wait before they try again
        super().__init__(
            station,
            prepare,
            ahead=2 * prepare.slots,
            workers=station.setup.workers,
            give_up_at=max(10, 2 * prepare.slots),
            alone=prepare.alone,
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
            self._station.loop.call_later(0.001, self._start_some, first + STARTS_PER_MS)

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
                    self._station.reply(TurnedOver())
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
            self._station.loop.call_later(delay, self._retry, slot)

    def _retry(self, slot: Slot) -> None:
        self._waiting -= 1
        self._next(slot)

    def measure(self) -> None:
        self._phase = "measure"
        self._station.reply(MeasureStarted(now_ns()))
        if self._budget == 0:
            self._phase = "drain"
            self._check_measured()

    def hold(self, at_ns: int) -> None:
        self._phase = "drain"
        self._check_measured()
