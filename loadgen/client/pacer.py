"""What paces a level on a worker: requests made ahead, what is in flight, and the records of what has ended."""

from __future__ import annotations

import asyncio
import resource
import time
from collections import deque
from collections.abc import Generator
from typing import Protocol, cast

from loadgen.analysis.outcome import outcome
from loadgen.client.endpoint import RequestEncoder
from loadgen.client.exchange import Exchange
from loadgen.client.messages import (
    GaveUp,
    MeasuredDone,
    Prepare,
    PrepareOpen,
    Reply,
    Setup,
)
from loadgen.client.wire import Wire
from loadgen.clock import now_ns
from loadgen.records import ClientSample, Phase, RequestRecord, encode_line
from loadgen.units import NS_PER_S
from loadgen.workloads.prompts import Prompt, PromptSource, make_prompt

READY_AHEAD_BYTES = 64 * 2**20


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


class Station(Protocol):
    """What a pacer needs of its worker."""

    setup: Setup
    loop: asyncio.AbstractEventLoop
    source: PromptSource
    encoder: RequestEncoder
    run_id: int
    wire: Wire

    def reply(self, message: Reply) -> None: ...
    def write(self, line: bytes) -> None: ...
    def level_done(self) -> None: ...


class Pacer:
    """Paces one level on this worker: requests made ahead, what is in flight, and the records of what has ended.

    When requests are sent is :class:`ClosedLoop`'s and :class:`OpenLoop`'s.

    Args:
        station: the worker.
        prepare: what the parent said of the level.
        ahead: requests to keep ready, so that one that is due can be sent at once.
        workers: that take part; this one sends every so many-th prompt.
        give_up_at: failures in a row that end the level.
        alone: no other worker takes part, so that nobody needs to be waited for.
    """

    def __init__(
        self,
        station: Station,
        prepare: Prepare | PrepareOpen,
        *,
        ahead: int,
        workers: int,
        give_up_at: int,
        alone: bool,
    ) -> None:
        self._station = station
        self._alone = alone
        self._wire = station.wire
        self._level = prepare.level
        self._first_index = prepare.first_index
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
            self._keep_ready(make_prompt(station.source, self._first_index + self._seq()))
        self._wire.spare_time = self._make_ahead

    # Requests made ahead.

    def _seq(self) -> int:
        return self._station.setup.worker + self._next_number * self._workers

    def _wants_more(self) -> bool:
        return len(self._ready) < self._ahead and (
            self._ready_bytes < READY_AHEAD_BYTES or len(self._ready) < self._ahead // 2
        )

    def _keep_ready(self, prompt: Prompt) -> None:
        seq = self._seq()
        self._next_number += 1
        request_id = b"loadgen-%d-%d-%d" % (self._station.run_id, self._level, seq)
        payload = self._station.encoder.encode(prompt, request_id)
        self._ready.append((seq, prompt, payload))
        self._ready_bytes += len(payload)

    def _make_ahead(self) -> bool:
        """One short step of making the next request; False when enough are ready."""
        if self._making is None:
            if self._stopping or not self._wants_more():
                return False
            self._making = self._station.source.steps(self._first_index + self._seq())
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
                self._keep_ready(make_prompt(self._station.source, self._first_index + self._seq()))
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

    def _check_measured(self) -> None:
        """Whether everything that was measured has ended; with nobody to hold the load for, the level ends too."""
        if self._phase == "drain" and not self._measured_in_flight and not self._measured_reported:
            self._measured_reported = True
            self._station.reply(MeasuredDone(now_ns()))
            if self._alone:
                self.finish()

    def _check_done(self) -> None:
        if self._stopping and not self._wire.active and not self._done_reported:
            self._done_reported = True
            # After the callback of the last exchange, since that is not settled yet.
            self._station.loop.call_soon(self._station.level_done)

    # Records.

    def settled(self, exchange: Exchange) -> None:
        """Makes and writes the record of an exchange whose results are known."""
        job: Job = exchange.job
        record = RequestRecord(
            level=self._level,
            seq=job.seq,
            prompt_id=job.prompt.id,
            worker=self._station.setup.worker,
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
        self._station.write(encode_line(record))
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
                self._station.reply(GaveUp(self._failures_in_row, exchange.error.message))

    def sample(self, lateness_ns: list[int]) -> ClientSample:
        return ClientSample(
            t_ns=now_ns(),
            level=self._level,
            worker=self._station.setup.worker,
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
