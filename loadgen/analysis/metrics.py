"""Metric definitions, and a level's summary as a pure function of its records.

:data:`METRICS` is the one place where a metric is defined; docs/metrics.md is made from it
(``make docs``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from loadgen.analysis.intervals import bin_amounts, intervals, mean_error, quantile_error, rate_error, rate_interval
from loadgen.analysis.slo import Outcome, Slo, SloFigures, outcome, slo_figures
from loadgen.analysis.stats import Distribution, describe
from loadgen.analysis.steady import SteadyWindow, steady_window
from loadgen.records import ClientSample, RequestRecord
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Metric(NamedTuple):
    """A row of the table of definitions."""

    key: str
    name: str
    unit: str
    definition: str
    why: str
    source: str


LATE_S = 0.001
MAX_EXAMPLES = 1000  # different error messages that are told apart
STALL_FACTOR, STALL_LEAST_NS = 5, 10_000_000  # a stall is a gap beyond both: times the request's median, and absolute
BATCH = 512  # records whose events are looked at together

METRICS = [
    Metric(
        "ttft_s",
        "TTFT, time to first token",
        "s",
        "`first_token - sent`: from just before the request's first byte is written, on a connection already held, "
        "to the socket read that completed the first event whose cumulative token count is at least 1; in an open "
        "loop `first_token - scheduled`, and the former stands in `open_loop.service`",
        "Response headers and a chat stream's role event come earlier and carry no token. A clock that starts at the "
        "actual send hides what waited in the client (coordinated omission).",
        "vLLM metrics; MLPerf Inference LoadGen",
    ),
    Metric(
        "tpot_s",
        "TPOT, time per output token",
        "s",
        "`(last_token - first_token) / (output_tokens - tokens_in_first_event)`, per request; undefined, and left "
        "out, when the divisor is 0 or all tokens came in one read",
        "Equals vLLM's `(latency - TTFT) / (n - 1)` when the first event has one token.",
        "vLLM benchmarks/serve.py",
    ),
    Metric(
        "itl_s",
        "ITL, inter-token latency",
        "s",
        "the gap between two consecutive token events of a request that came in different reads, pooled over requests",
        "Events that share a read share a stamp: a gap of 0 there is no latency. Their share is reported "
        "(`tokens.shared_read`).",
        "vLLM benchmarks/serve.py; sgl-project/sglang issue 12064",
    ),
    Metric(
        "itl_per_token_s",
        "ITL per token",
        "s",
        "the same gap divided by the tokens that arrived at its end",
        "Several tokens in an event, or several events in a read, are common under load.",
        "sgl-project/sglang issue 12064",
    ),
    Metric(
        "e2e_s",
        "E2E, end-to-end latency",
        "s",
        "`last_token - sent`; in an open loop `last_token - scheduled`",
        "The closing usage event and `[DONE]` carry no token.",
        "vLLM benchmarks/serve.py",
    ),
    Metric(
        "request_throughput_rps",
        "request throughput",
        "requests/s",
        "successful requests that ended inside the measured window, over the window",
        "",
        "",
    ),
    Metric(
        "output_throughput_tps",
        "output throughput",
        "tokens/s",
        "tokens whose events fall inside the measured window, over the window, whatever request they belong to",
        "Dividing by first send to last end puts ramp and drain into the average.",
        "evalscope issue 675; sgl-project/sglang issue 30918",
    ),
    Metric(
        "total_throughput_tps",
        "total throughput",
        "tokens/s",
        "output throughput plus the input tokens of the requests whose first token came inside the window, over the "
        "window",
        "",
        "",
    ),
    Metric(
        "input_tokens",
        "input tokens",
        "tokens",
        "`usage.prompt_tokens` of each successful measured request",
        "Counting on the client miscounts: chat templates and special tokens are the server's.",
        "triton-inference-server/perf_analyzer issue 433",
    ),
    Metric(
        "output_tokens",
        "output tokens",
        "tokens",
        "`usage.completion_tokens`; where the server sends no usage, its token events, and the summary says so "
        "(`tokens.source`)",
        "An event can hold no token, one, or several; re-tokenising text miscounts.",
        "triton-inference-server/perf_analyzer issue 433",
    ),
    Metric(
        "stalls.longest_gap_s",
        "longest gap",
        "s",
        "the longest gap between two token events of a request, one value per request",
        "TPOT hides a stall: 510 ms in a request of 100 tokens moves it by 5 ms.",
        "arXiv 2407.07000",
    ),
    Metric(
        "stalls.requests",
        "stalled requests",
        "share",
        "the share of requests with a gap of more than 5 times their own median gap (and more than 10 ms)",
        "",
        "arXiv 2407.07000",
    ),
    Metric(
        "open_loop.send_lateness_s",
        "send lateness",
        "s",
        "`sent - scheduled` of each measured request of an open loop; `late` counts those above 1 ms, `dropped` those "
        "that were never sent because too many were in flight",
        "The schedule is absolute: what is sent late was late, and its latency counts from when it was due.",
        "wrk2; MLPerf Inference LoadGen",
    ),
    Metric(
        "open_loop.achieved_rate_rps",
        "achieved rate",
        "requests/s",
        "requests sent inside the measured window, over the window; `intended_rate_rps` counts those due in it",
        "",
        "MLPerf Inference LoadGen",
    ),
    Metric(
        "client.lateness_s",
        "client lateness",
        "s",
        "from a probe's write by the parent process to its stamp by the worker's event loop; about 100 probes a "
        "second and worker, at exponential gaps, within the measured window",
        "What a token event of that moment was stamped late by: our own error, measured rather than assumed.",
        "Wolff 1982 (Poisson arrivals see time averages); arXiv 2605.24217",
    ),
    Metric(
        "client.utilization",
        "client utilization",
        "share",
        "CPU time of the busiest worker over the measured window",
        "One event loop is one server of a queue: near 1 its own delay grows without bound.",
        "arXiv 2605.24217",
    ),
    Metric(
        "client.slot_gap_s",
        "slot gap",
        "s",
        "from the end of a slot's request to the send of its next one",
        "In a closed loop the client's own delay lowers the load instead of raising a latency.",
        "Schroeder, Wierman and Harchol-Balter 2006",
    ),
    Metric(
        "client.in_flight",
        "in flight",
        "requests",
        "the time average over the window of requests sent and not ended",
        "Counting requests that touch a one-second bucket doubles it.",
        "vllm-project/vllm issue 56653",
    ),
    Metric(
        "client.littles_law_deviation",
        "deviation from Little's law",
        "share",
        "`|N - X R| / N` with N in flight, X ended requests per second and R their mean time from send to end, all "
        "within the window; of the order of N over the number of requests even when all is well",
        "Holds for any queue: a deviation means that requests were lost or counted twice.",
        "Little 1961",
    ),
]


class Requests(msgspec.Struct, kw_only=True):
    """Requests of the measured phase; ``issued`` is completed plus failed plus cancelled."""

    issued: int
    completed: int
    failed: int
    cancelled: int = 0
    warmup: int = 0
    drain: int = 0


class LevelFigures(msgspec.Struct, kw_only=True):
    """One level of summary.json, still without its verdict. See :data:`METRICS`."""

    load: dict[str, Any]
    requests: Requests
    duration_s: float
    ttft_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    itl_per_token_s: Distribution
    e2e_s: Distribution
    request_throughput_rps: float | None
    output_throughput_tps: float | None
    total_throughput_tps: float | None
    input_tokens: Distribution
    output_tokens: Distribution
    tokens: dict[str, Any]
    stalls: dict[str, Any]
    totals: dict[str, int]
    errors: dict[str, int]
    error_examples: list[dict[str, Any]]
    client: dict[str, Any]
    window: dict[str, int]
    steady: SteadyWindow
    ci95: dict[str, tuple[float, float]]  # of the throughputs, by their names
    standard_errors: dict[str, float] | msgspec.UnsetType = msgspec.UNSET  # by the names of rounds.METRICS; of a round
    slo: SloFigures | msgspec.UnsetType = msgspec.UNSET  # where objectives are set
    open_loop: dict[str, Any] | msgspec.UnsetType = msgspec.UNSET  # a closed loop has none
    interrupted: str | None = None


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
        self.totals = {"requests": 0, "prompt_tokens": 0, "generation_tokens": 0}
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
            self.totals["requests"] += 1
            self.totals["prompt_tokens"] += record.input_tokens or 0
            self.totals["generation_tokens"] += record.output_tokens or 0
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
        records = [record for record, _ in self._events_of]
        lengths = np.array([len(record.event_ns) for record in records])
        total = int(lengths.sum())
        gaps = np.fromiter(chain.from_iterable(record.event_ns for record in records), np.int64, total)
        tokens = np.fromiter(chain.from_iterable(record.event_tokens for record in records), np.int32, total)
        begins = np.cumsum(lengths) - lengths
        since = np.cumsum(gaps)
        sent = np.array([record.sent_ns for record in records], dtype=np.int64)
        self._came(since + np.repeat(sent - since[begins] + gaps[begins], lengths), tokens)
        measured = np.array([measured for _, measured in self._events_of], dtype=bool)
        self._events_of = []
        if measured.any():
            inside = np.repeat(measured, lengths)
            self._gaps(gaps[inside], tokens[inside], lengths[measured])

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


def slots_of(load: dict[str, Any]) -> int | None:
    """The concurrency of a closed loop."""
    return None if load.get("model") == "open" else int(load["concurrency"]) or None


def steady_of(load: dict[str, Any], gathered: LevelAccumulator) -> SteadyWindow:
    """The part of the window that is steady, and whether it is."""
    import numpy as np

    gathered.settle()
    outcomes = gathered.outcomes
    values = {
        name: np.array([math.nan if (v := getattr(one, name)) is None else v for one in outcomes])
        for name in ("ttft_s", "tpot_s", "e2e_s")
    }
    return steady_window(
        np.array([one.issued_ns for one in outcomes], dtype=np.int64),
        values,
        start_ns=gathered.start_ns,
        end_ns=gathered.end_ns,
        slots=slots_of(load),
        amounts=gathered.token_bins if gathered.window_output else None,
    )


def level_figures(
    load: dict[str, Any],
    gathered: LevelAccumulator,
    samples: list[ClientSample],
    interrupted: str | None = None,
    steady: SteadyWindow | None = None,
    slos: Sequence[Slo] = (),
) -> LevelFigures:
    """The figures of one level, all of whose records have been taken in.

    Args:
        load: the ``load`` entry.
        gathered: the level's records.
        samples: the workers' own, all of the level.
        interrupted: why the level did not run to its end, if so.
        steady: what was found of the window as it was measured, where something was cut off it since.
        slos: objectives that the requests are held against.
    """
    import numpy as np

    gathered.settle()
    outcomes = sorted(gathered.outcomes, key=lambda one: (one.issued_ns, one.seq))
    slots = slots_of(load)
    window_s = (gathered.end_ns - gathered.start_ns) / NS_PER_S
    gaps = np.concatenate(gathered.gaps) if gathered.gaps else np.empty(0)
    gap_tokens = np.concatenate(gathered.gap_tokens) if gathered.gap_tokens else np.empty(0)
    itl = itl_per_token = describe(gaps, independent=False)
    if (gap_tokens > 1).any():
        itl_per_token = describe(gaps / np.maximum(gap_tokens, 1), independent=False)

    def rate(count: float) -> float | None:
        return count / window_s if window_s > 0 and gathered.completed else None

    def latency(name: str) -> Distribution:
        values = latencies(outcomes, name)
        found = describe(values, independent=False)
        found.ci95 = intervals(values, period=slots)
        return found

    ttft = latency("ttft_s")
    return LevelFigures(
        load=load,
        requests=Requests(
            issued=gathered.phases["measure"],
            completed=gathered.completed,
            failed=gathered.failed,
            cancelled=gathered.cancelled,
            warmup=gathered.phases["warmup"],
            drain=gathered.phases["drain"],
        ),
        duration_s=window_s,
        ttft_s=ttft,
        tpot_s=latency("tpot_s"),
        itl_s=itl,
        itl_per_token_s=itl_per_token,
        e2e_s=latency("e2e_s"),
        request_throughput_rps=rate(gathered.window_ended),
        output_throughput_tps=rate(gathered.window_output),
        total_throughput_tps=rate(gathered.window_output + gathered.window_input),
        input_tokens=describe(np.asarray(gathered.input_tokens)),
        output_tokens=describe(np.asarray(gathered.output_tokens)),
        tokens={
            "source": dict(gathered.sources),
            "asked": gathered.asked,
            "mismatched": gathered.mismatched,
            "cached_input": gathered.cached_tokens,
            "unstreamed": gathered.unstreamed,
            "multi_token_events": gathered.multi / gathered.events if gathered.events else None,
            "shared_read": gathered.shared / gathered.events if gathered.events else None,
        },
        stalls={
            "longest_gap_s": describe(np.asarray(gathered.longest)),
            "requests": gathered.stalled / len(gathered.longest) if gathered.longest else None,
        },
        totals=gathered.totals,
        errors=dict(gathered.errors),
        error_examples=[
            {"kind": kind, "status": status, "message": message, "count": count}
            for (kind, status, message), count in gathered.examples.most_common(5)
        ],
        client=_client_figures(gathered, samples, window_s),
        window={"start_ns": gathered.start_ns, "end_ns": gathered.end_ns},
        steady=steady or steady_of(load, gathered),
        ci95=_rate_intervals(gathered, window_s),
        standard_errors=_standard_errors(gathered, outcomes, ttft, slots, window_s)
        if "round" in load
        else msgspec.UNSET,
        slo=slo_figures(outcomes, list(slos), start_ns=gathered.start_ns, end_ns=gathered.end_ns, slots=slots)
        if slos
        else msgspec.UNSET,
        open_loop=_open_figures(gathered, window_s) if load.get("model") == "open" else msgspec.UNSET,
        interrupted=interrupted,
    )


def latencies(outcomes: Sequence[Outcome], name: str) -> NDArray[np.float64]:
    """``ttft_s``, ``tpot_s`` or ``e2e_s`` of those requests that have it, in their order."""
    import numpy as np

    return np.asarray([v for one in outcomes if (v := getattr(one, name)) is not None], dtype=float)


def _standard_errors(
    gathered: LevelAccumulator, outcomes: Sequence[Outcome], ttft: Distribution, slots: int | None, window_s: float
) -> dict[str, float]:
    """Of what is averaged over rounds, by the same estimates as the intervals."""
    found: dict[str, float] = {}
    for name in ("ttft", "tpot"):
        known = mean_error(latencies(outcomes, f"{name}_s"), period=slots)
        if known is not None:
            found[f"{name}_mean_s"] = known[0]
    for quantile in ("p50", "p99"):
        if quantile in ttft.ci95:
            found[f"ttft_{quantile}_s"] = quantile_error(ttft.ci95[quantile])
    if gathered.completed and not isinstance(gathered.token_bins, int):
        error = rate_error(gathered.token_bins, window_s)
        if error is not None:
            found["output_throughput_tps"] = error
    return found


def _rate_intervals(gathered: LevelAccumulator, window_s: float) -> dict[str, tuple[float, float]]:
    found = {}
    for name, bins in (("output_throughput_tps", gathered.token_bins), ("request_throughput_rps", gathered.ended_bins)):
        if gathered.completed and not isinstance(bins, int):
            interval = rate_interval(bins, window_s)
            if interval is not None:
                found[name] = interval
    return found


def _open_figures(gathered: LevelAccumulator, window_s: float) -> dict[str, Any]:
    """How well an open loop's schedule was kept, and the latencies on the clock from the real send."""
    import numpy as np

    lateness = np.asarray(gathered.send_lateness)
    return {
        "intended_rate_rps": gathered.due / window_s if window_s > 0 else None,
        "achieved_rate_rps": gathered.sent / window_s if window_s > 0 else None,
        "send_lateness_s": describe(lateness, independent=False),
        "late": int((lateness > LATE_S).sum()),
        "dropped": gathered.errors["dropped"],
        "service": {
            "ttft_s": describe(np.asarray(gathered.service_ttft)),
            "e2e_s": describe(np.asarray(gathered.service_e2e)),
        },
    }


def _client_figures(gathered: LevelAccumulator, samples: list[ClientSample], window_s: float) -> dict[str, Any]:
    import numpy as np

    start, end = gathered.start_ns, gathered.end_ns
    in_flight = gathered.in_flight_ns / (end - start) if end > start else None
    deviation = None
    if in_flight and gathered.window_left:
        throughput = gathered.window_left / window_s
        mean_residence_s = gathered.residence_ns / gathered.window_left / NS_PER_S
        deviation = abs(in_flight - throughput * mean_residence_s) / in_flight
    # A sample speaks of the tenth of a second before it.
    inside = [s for s in samples if start < s.t_ns <= end + NS_PER_S // 10]
    lateness = np.asarray([ns for s in inside for ns in s.lateness_ns], dtype=float) / NS_PER_S
    utilization = 0.0
    for worker in {s.worker for s in samples}:
        own = [s for s in samples if s.worker == worker and start - NS_PER_S // 10 <= s.t_ns <= end + NS_PER_S // 10]
        if len(own) > 1 and own[-1].t_ns > own[0].t_ns:
            utilization = max(utilization, (own[-1].cpu_ns - own[0].cpu_ns) / (own[-1].t_ns - own[0].t_ns))
    return {
        "workers": len({s.worker for s in samples}),
        "utilization": utilization,
        "lateness_s": describe(lateness, independent=False),
        "slot_gap_s": describe(np.asarray(gathered.slot_gaps), independent=False),
        "in_flight": in_flight,
        "littles_law_deviation": deviation,
        "connects": gathered.connects,
        "retried": gathered.retried,
        "max_rss_bytes": sum(
            max(s.max_rss_bytes for s in samples if s.worker == w) for w in {s.worker for s in samples}
        ),
    }
