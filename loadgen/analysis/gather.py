"""Takes in the records of a level, and keeps of them what its figures need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from loadgen.analysis.figures import Totals
from loadgen.analysis.intervals import bin_amounts
from loadgen.analysis.outcome import Outcome, outcome
from loadgen.records import RequestRecord
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_EXAMPLES = 1000  # different error messages that are told apart
STALL_FACTOR, STALL_LEAST_NS = 5, 10_000_000  # a stall is a gap beyond both: times the request's median, and absolute
BATCH = 512  # records whose events are looked at together


class TokenEvents(NamedTuple):
    """The token events of several requests, one request behind another.

    ``gaps_ns`` is the time before each event, of a request's first one since its send; ``lengths`` counts the events
    of each request.
    """

    times_ns: NDArray[np.int64]
    gaps_ns: NDArray[np.int64]
    tokens: NDArray[np.int32]
    lengths: NDArray[np.int64]


def token_events(records: Sequence[RequestRecord]) -> TokenEvents:
    """When the tokens of requests came, for all of them at once.

    Args:
        records: at least one; each was sent and has events.
    """
    import numpy as np

    lengths = np.array([len(record.event_ns) for record in records])
    total = int(lengths.sum())
    gaps = np.fromiter(chain.from_iterable(record.event_ns for record in records), np.int64, total)
    tokens = np.fromiter(chain.from_iterable(record.event_tokens for record in records), np.int32, total)
    begins = np.cumsum(lengths) - lengths
    since = np.cumsum(gaps)
    sent = np.array([record.sent_ns for record in records], dtype=np.int64)
    return TokenEvents(since + np.repeat(sent - since[begins] + gaps[begins], lengths), gaps, tokens, lengths)


class LevelAccumulator:
    """Takes in a level's records one by one, and gives its figures.

    Only what the figures need is kept: 16 bytes per token event, not the records.

    Args:
        start_ns, end_ns: the measured window.
        cut: what was issued before ``start_ns`` is not measured, although its phase says so: a start-up
            transient was cut off the window.
    """

    def __init__(self, start_ns: int, end_ns: int, cut: bool = False) -> None:
        self.start_ns = start_ns
        self.end_ns = end_ns
        self.cut = cut
        self.phases: Counter[str] = Counter()
        # Over all phases, to compare with the engine's own counters.
        self.totals = Totals()
        self.completed = 0
        self.failed = 0
        self.cancelled = 0
        self.errors: Counter[str] = Counter()
        self.examples: Counter[tuple[str, int | None, str]] = Counter()
        self.outcomes: list[Outcome] = []
        self._events_of: list[tuple[RequestRecord, bool]] = []  # and whether they are measured; not yet looked at
        self._tokens_at: list[tuple[int, int]] = []  # ns, tokens of replies that were not streamed
        self._ended_at: list[int] = []
        # What came in equal parts of the window.
        self.token_bins: Any = 0
        self.ended_bins: Any = 0
        self.gaps: list[NDArray[np.float64]] = []
        self.gap_tokens: list[NDArray[np.int32]] = []
        self.longest: list[float] = []
        self.stalled = 0
        self.events = 0
        self.shared = 0
        self.multi = 0
        self.input_tokens: list[int] = []
        self.output_tokens: list[int] = []
        self.mismatched = 0
        self.asked = 0
        self.cached_tokens = 0
        self.sources: Counter[str] = Counter()
        self.unstreamed = 0
        self.window_output = 0
        self.window_input = 0
        self.window_ended = 0  # successes that ended inside the window
        self.window_left = 0  # requests that did, failures too
        self.residence_ns = 0
        self.in_flight_ns = 0
        self.slot_gaps: list[float] = []
        # Of an open loop.
        self.due = 0  # inside the window
        self.sent = 0
        self.service_ttft: list[float] = []
        self.service_e2e: list[float] = []
        self.send_lateness: list[float] = []
        self.connects = 0
        self.retried = 0

    def add(self, record: RequestRecord) -> None:
        """Takes one record of the level in, of whatever phase. Its events are looked at later (:meth:`settle`)."""
        self._window(record)
        self.phases[record.phase] += 1
        if record.error is None:
            self.totals.requests += 1
            self.totals.prompt_tokens += record.input_tokens or 0
            self.totals.generation_tokens += record.output_tokens or 0
        measured = record.phase == "measure"
        if measured:
            found = outcome(record)
            if self.cut and found.issued_ns < self.start_ns:
                self.phases["measure"] -= 1
                self.phases["warmup"] += 1
                measured = False
        if record.event_ns and record.sent_ns is not None:
            self._events_of.append((record, measured and record.error is None))
            if len(self._events_of) == BATCH:
                self.settle()
        if not measured:
            return
        self.outcomes.append(found)
        error = record.error
        if error is None:
            self.completed += 1
            self._success(record)
            return
        if error.kind == "cancelled":
            self.cancelled += 1
        else:
            self.failed += 1
        self.errors[error.kind] += 1
        example = (error.kind, error.status, error.message)
        if example in self.examples or len(self.examples) < MAX_EXAMPLES:
            self.examples[example] += 1

    def _window(self, record: RequestRecord) -> None:
        """What every record, whatever its phase, adds to the measured window."""
        start, end, sent = self.start_ns, self.end_ns, record.sent_ns
        if record.scheduled_ns is not None:
            self.due += start <= record.scheduled_ns < end
            self.sent += sent is not None and start <= sent < end
            if record.phase == "measure" and sent is not None:
                self.send_lateness.append((sent - record.scheduled_ns) / NS_PER_S)
        if sent is None or record.end_ns < start or sent > end:
            return
        self.in_flight_ns += min(record.end_ns, end) - max(sent, start)
        if record.end_ns <= end:
            self.window_left += 1
            self.residence_ns += record.end_ns - sent
            if record.error is None:
                self.window_ended += 1
                self._ended_at.append(record.end_ns)
        if record.event_ns:
            first = record.first_token_ns
            if first is not None and start <= first <= end:
                self.window_input += record.input_tokens or 0
        elif record.last_token_ns is not None and start <= record.last_token_ns <= end:
            self._tokens_at.append((record.last_token_ns, record.output_tokens or 0))
            self.window_input += record.input_tokens or 0
        if sent >= start:
            if record.slot_gap_ns is not None:
                self.slot_gaps.append(record.slot_gap_ns / NS_PER_S)
            self.connects += record.connect_ns > 0
            self.retried += record.retried

    def _success(self, record: RequestRecord) -> None:
        """What a successful measured request adds, but for its events."""
        sent, first, last = record.sent_ns, record.first_token_ns, record.last_token_ns
        assert sent is not None
        if record.input_tokens is not None:
            self.input_tokens.append(record.input_tokens)
        if record.output_tokens is not None:
            self.output_tokens.append(record.output_tokens)
        if record.requested_tokens is not None:
            self.asked += 1
            self.mismatched += record.output_tokens != record.requested_tokens
        self.cached_tokens += record.cached_tokens or 0
        self.sources[record.token_source or "none"] += 1
        if last is not None:
            self.service_e2e.append((last - sent) / NS_PER_S)
        if first is None or last is None:
            self.unstreamed += 1
            return
        self.service_ttft.append((first - sent) / NS_PER_S)

    def settle(self) -> None:
        """Looks at the events of the records taken in since the last call, all at once."""
        import numpy as np

        if self._ended_at:
            ended = np.array(self._ended_at, dtype=np.int64)
            self.ended_bins = self.ended_bins + self._binned(ended, np.ones(len(ended)))
            self._ended_at = []
        if self._tokens_at:
            at, counts = np.array(self._tokens_at, dtype=np.int64).T
            self._came(at, counts)
            self._tokens_at = []
        if not self._events_of:
            return
        events = token_events([record for record, _ in self._events_of])
        self._came(events.times_ns, events.tokens)
        measured = np.array([measured for _, measured in self._events_of], dtype=bool)
        self._events_of = []
        if measured.any():
            inside = np.repeat(measured, events.lengths)
            self._gaps(events.gaps_ns[inside], events.tokens[inside], events.lengths[measured])

    def _binned(self, times_ns: NDArray[Any], amounts: NDArray[Any]) -> NDArray[np.float64]:
        return bin_amounts(times_ns, amounts, self.start_ns, self.end_ns)

    def _came(self, times_ns: NDArray[Any], tokens: NDArray[Any]) -> None:
        """Tokens of whatever request, and when they came."""
        binned = self._binned(times_ns, tokens)
        self.window_output += int(binned.sum())
        self.token_bins = self.token_bins + binned

    def _gaps(self, gaps_ns: NDArray[np.int64], tokens: NDArray[np.int32], lengths: NDArray[Any]) -> None:
        """Gaps between the events of measured successes, one request behind another.

        Args:
            gaps_ns: before each event; that before a request's first one is its TTFT.
            tokens: of each event.
            lengths: events of each request.
        """
        import numpy as np

        firsts = np.cumsum(lengths) - lengths
        self.events += len(tokens)
        self.multi += int((tokens > 1).sum())
        begins = gaps_ns > 0  # what did not share the read of the event before it
        begins[firsts] = True
        self.shared += int(len(gaps_ns) - begins.sum())
        # Tokens that came with an event, and with those that shared its read.
        reads = np.flatnonzero(begins)
        arrived = np.add.reduceat(tokens, reads)
        request = np.repeat(np.arange(len(lengths)), lengths)[reads]
        later = np.ones(len(reads), dtype=bool)
        later[np.searchsorted(reads, firsts)] = False
        gaps, request = gaps_ns[reads[later]], request[later]
        if not len(gaps):
            return
        self.gaps.append(gaps / NS_PER_S)
        self.gap_tokens.append(arrived[later])
        own = np.flatnonzero(np.diff(request, prepend=-1))  # where each request's gaps begin
        counts = np.diff(own, append=len(gaps))
        longest = np.maximum.reduceat(gaps, own)
        self.longest += (longest / NS_PER_S).tolist()
        if not (longest > STALL_LEAST_NS).any():
            return
        ordered = gaps[np.lexsort((gaps, request))]
        medians = (ordered[own + (counts - 1) // 2] + ordered[own + counts // 2]) / 2
        self.stalled += int((longest > np.maximum(STALL_FACTOR * medians, STALL_LEAST_NS)).sum())
