"""Every figure of a level, by hand, from requests of known times."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import MS, failure, figures_of, request, sample

from loadgen.analysis.figures import ErrorExample, LevelFigures, OpenLoopFigures, Totals
from loadgen.analysis.gather import LevelAccumulator
from loadgen.analysis.level import level_figures
from loadgen.analysis.metrics import METRICS
from loadgen.analysis.stats import Distribution
from loadgen.loads import Closed, Open
from loadgen.records import RequestRecord


def ms(distribution: Distribution) -> tuple[int, float, float] | int:
    """Count, least and greatest in milliseconds; 0 for none."""
    if not distribution.count:
        return 0
    assert distribution.min is not None
    assert distribution.max is not None
    return distribution.count, round(distribution.min * 1e3, 9), round(distribution.max * 1e3, 9)


# --- latencies


def test_latencies_of_one_request() -> None:
    figures = figures_of([request(100, 50, 10, 20, 30)])
    assert ms(figures.ttft_s) == (1, 50, 50)
    assert ms(figures.tpot_s) == (1, 20, 20)
    assert ms(figures.e2e_s) == (1, 110, 110)
    assert ms(figures.itl_s) == ms(figures.itl_per_token_s) == (3, 10, 30)


def test_latencies_are_one_value_a_request() -> None:
    figures = figures_of([request(0, 50, 10), request(100, 70, 20, 20)])
    assert ms(figures.ttft_s) == (2, 50, 70)
    assert ms(figures.tpot_s) == (2, 10, 20)
    assert ms(figures.e2e_s) == (2, 60, 110)
    assert figures.ttft_s.mean == pytest.approx(0.060)


def test_end_of_stream_after_the_last_token_is_in_no_latency() -> None:
    assert ms(figures_of([request(0, 50, 10, end=500)]).e2e_s) == (1, 60, 60)


@pytest.mark.parametrize(
    ("record", "tpot"),
    [
        pytest.param(
            request(0, 50, 10, 20, tokens=[3, 1, 2]), (1, 10, 10), id="tokens of the first event do not count"
        ),
        pytest.param(request(0, 50, tokens=[4]), 0, id="all tokens in one event"),
        pytest.param(request(0, 50), 0, id="one token"),
        pytest.param(request(0, 50, 0, 0), 0, id="all events in one read"),
        pytest.param(request(0, 50, 10, output_tokens=1), 0, id="a count of no token after the first event"),
        pytest.param(request(0, 50, 10, output_tokens=None), 0, id="no count"),
        pytest.param(
            request(0, 50, 10, 10, 20, output_tokens=9, token_source="usage_final"), (1, 5, 5), id="count at the end"
        ),
        pytest.param(request(0, 50, 60, tokens=[1, 6]), (1, 10, 10), id="several tokens in a later event"),
    ],
)
def test_tpot(record: RequestRecord, tpot: object) -> None:
    figures = figures_of([record])
    assert ms(figures.tpot_s) == tpot
    assert figures.ttft_s.count == figures.e2e_s.count == 1


@settings(deadline=None)
@given(st.integers(0, 10**15), st.lists(st.integers(0, 10**10), min_size=1, max_size=50))
def test_e2e_is_ttft_and_n_minus_1_times_tpot(sent_ns: int, event_ns: list[int]) -> None:
    first_ns, last_ns = sent_ns + event_ns[0], sent_ns + sum(event_ns)
    record = msgspec.structs.replace(
        request(0, *event_ns),
        sent_ns=sent_ns,
        event_ns=event_ns,
        first_token_ns=first_ns,
        last_token_ns=last_ns,
        end_ns=last_ns,
    )
    figures = figures_of([record])
    assert figures.ttft_s.mean is not None
    # Nothing is left after the first token when there is one, or all came in one read.
    assert (figures.tpot_s.mean is None) == (last_ns == first_ns)
    rest = 0.0 if figures.tpot_s.mean is None else (len(event_ns) - 1) * figures.tpot_s.mean
    assert figures.e2e_s.mean == pytest.approx(figures.ttft_s.mean + rest, rel=1e-9)


@pytest.mark.parametrize(
    ("gaps", "tokens", "itl", "per_token", "shared", "multi"),
    [
        ((50, 10, 30), [1, 1, 1], [10, 30], [10, 30], 0, 0),
        ((50, 10, 0, 20), [1, 1, 1, 1], [10, 20], [5, 20], 1 / 4, 0),
        ((50, 0, 10), [1, 1, 1], [10], [10], 1 / 3, 0),
        ((50, 10, 0, 0, 30, 0), [1, 1, 2, 1, 2, 4], [10, 30], [2.5, 5], 3 / 6, 3 / 6),
        ((50, 0, 0), [1, 1, 1], [], [], 2 / 3, 0),
        ((50,), [1], [], [], 0, 0),
    ],
)
def test_events_that_share_a_read_are_one_arrival(
    gaps: tuple[int, ...], tokens: list[int], itl: list[float], per_token: list[float], shared: float, multi: float
) -> None:
    figures = figures_of([request(0, *gaps, tokens=tokens)])
    assert ms(figures.itl_s) == ((len(itl), min(itl), max(itl)) if itl else 0)
    assert ms(figures.itl_per_token_s) == ((len(itl), min(per_token), max(per_token)) if itl else 0)
    assert figures.tokens.shared_read == pytest.approx(shared)
    assert figures.tokens.multi_token_events == pytest.approx(multi)


def test_gaps_are_pooled_over_requests_but_not_across_them() -> None:
    figures = figures_of([request(0, 50, 10), request(500, 50, 30, 20)])
    assert ms(figures.itl_s) == (3, 10, 30)
    assert figures.itl_s.mean == pytest.approx(0.020)
    assert figures.itl_s.ci95 == figures.itl_per_token_s.ci95 == {}


# --- stalls


@pytest.mark.parametrize(
    ("gaps", "longest", "stalled"),
    [
        ((500, 10, 10, 10, 51), 51, 1.0),
        ((500, 10, 10, 10, 50), 50, 0.0),
        ((500, 1, 1, 1, 10), 10, 0.0),
        ((500, 1, 1, 1, 11), 11, 1.0),
        ((500, 10, 0, 0, 0, 10, 51), 51, 1.0),
    ],
)
def test_stall_is_a_gap_of_over_5_medians_and_10_ms(gaps: tuple[int, ...], longest: int, stalled: float) -> None:
    stalls = figures_of([request(0, *gaps)]).stalls
    assert ms(stalls.longest_gap_s) == (1, longest, longest)
    assert stalls.requests == stalled


def test_share_of_stalled_requests_leaves_out_those_without_a_gap() -> None:
    stalls = figures_of([request(0, 5, 10, 10, 10, 60), request(0, 5, 10, 10), request(0, 5), request(0, 5, 0)]).stalls
    assert ms(stalls.longest_gap_s) == (2, 10, 60)
    assert stalls.requests == 0.5


# --- throughput


STRADDLERS = [
    # phase warm-up: events at 900, 1000 and 1100
    request(800, 100, 100, 100, phase="warmup"),
    # over both edges: events at 900, 1100, 1900 and 2100
    request(500, 400, 200, 800, 200, tokens=[1, 2, 3, 4]),
    # phase drain: events at 1950 and 2050
    request(1900, 50, 100, phase="drain"),
    # inside
    request(1200, 100, 100),
    # before and after
    request(0, 500, 499),
    request(2001, 10, 10, phase="drain"),
    # failed: events at 1300 and 1400
    failure(1250, 50, 100, end=1450, kind="stream_truncated"),
]


def test_tokens_count_where_their_events_fall() -> None:
    figures = figures_of(STRADDLERS, start=1000, end=2000)
    assert figures.output_throughput_tps == pytest.approx(2 + 5 + 1 + 2 + 0 + 0 + 2)


def test_requests_count_where_they_end_in_success() -> None:
    figures = figures_of(STRADDLERS, start=1000, end=2000)
    assert figures.request_throughput_rps == pytest.approx(2)  # of the warm-up, and inside


def test_input_tokens_count_where_the_first_token_falls() -> None:
    figures = figures_of(STRADDLERS, start=1000, end=2000)
    assert figures.output_throughput_tps is not None
    assert figures.total_throughput_tps == pytest.approx(figures.output_throughput_tps + 3 * 10)


@pytest.mark.parametrize(("start", "end", "total"), [(100, 1100, 11), (101, 1101, 0), (-900, 100, 11), (-901, 99, 0)])
def test_both_edges_belong_to_the_window(start: int, end: int, total: int) -> None:
    figures = figures_of([request(0, 100, end=5000)], start=start, end=end)
    assert figures.total_throughput_tps == total


def test_rates_are_over_the_window() -> None:
    figures = figures_of([request(100, 100, 100)], start=0, end=4000)
    assert figures.duration_s == 4
    assert figures.request_throughput_rps == 0.25
    assert figures.output_throughput_tps == 0.5
    assert figures.total_throughput_tps == 3.0


@pytest.mark.parametrize("records", [[], [failure(0, 10, end=20)], [request(0, 10, phase="warmup")]])
def test_rates_are_null_when_no_measured_request_succeeded(records: list[RequestRecord]) -> None:
    figures = figures_of(records)
    assert figures.request_throughput_rps is None
    assert figures.output_throughput_tps is None
    assert figures.total_throughput_tps is None


def test_rates_over_no_time_are_null() -> None:
    assert figures_of([request(0, 0)], end=0).request_throughput_rps is None


def test_reply_in_one_piece_has_no_ttft_but_counts_whole() -> None:
    record = request(100, last_token_ns=300 * MS, end=310, output_tokens=5, requested_tokens=5)
    figures = figures_of([record])
    assert ms(figures.e2e_s) == (1, 200, 200)
    assert figures.ttft_s.count == figures.tpot_s.count == figures.itl_s.count == 0
    assert figures.tokens.unstreamed == 1
    assert figures.output_throughput_tps == 5
    assert figures.total_throughput_tps == 15


@pytest.mark.parametrize(("start", "end", "tokens"), [(300, 1300, 5), (301, 1301, 0), (-700, 300, 5), (-701, 299, 0)])
def test_reply_in_one_piece_counts_when_it_came(start: int, end: int, tokens: int) -> None:
    record = request(100, last_token_ns=300 * MS, end=310, output_tokens=5)
    assert figures_of([record], start=start, end=end).output_throughput_tps == tokens


def test_unknown_counts_add_nothing_to_the_throughput() -> None:
    streamed = request(0, 10, 10, input_tokens=None)
    whole = request(100, last_token_ns=300 * MS, end=310, input_tokens=None, output_tokens=None)
    figures = figures_of([streamed, whole])
    assert figures.output_throughput_tps == figures.total_throughput_tps == 2


# --- tokens


@pytest.mark.parametrize(
    ("output", "requested", "asked", "mismatched"),
    [(8, 8, 1, 0), (7, 8, 1, 1), (9, 8, 1, 1), (None, 8, 1, 1), (8, None, 0, 0)],
)
def test_output_that_differs_from_what_was_asked_for_is_counted(
    output: int | None, requested: int | None, asked: int, mismatched: int
) -> None:
    tokens = figures_of([request(0, 10, 10, output_tokens=output, requested_tokens=requested)]).tokens
    assert (tokens.asked, tokens.mismatched) == (asked, mismatched)


def test_token_figures_are_those_of_successful_measured_requests() -> None:
    figures = figures_of(
        [
            request(0, 10, 10, input_tokens=100, cached_tokens=64),
            request(0, 10, 10, 10, 10, input_tokens=300, token_source="usage_final"),
            request(0, 10, input_tokens=None, output_tokens=None, token_source=None),
            request(0, 10, input_tokens=5000, cached_tokens=5000, phase="warmup"),
            failure(0, 10, end=20, input_tokens=5000, output_tokens=900, requested_tokens=1000),
        ]
    )
    assert (figures.input_tokens.count, figures.input_tokens.mean) == (2, 200)
    assert (figures.output_tokens.count, figures.output_tokens.mean) == (2, 3)
    assert figures.tokens.source == {"usage_continuous": 1, "usage_final": 1, "none": 1}
    assert figures.tokens.cached_input == 64
    assert figures.tokens.asked == 3


def test_totals_are_over_the_successful_requests_of_all_phases() -> None:
    figures = figures_of(
        [
            request(0, 10, phase="warmup"),
            request(0, 10, 10),
            request(5000, 10, 10, 10, phase="drain"),
            failure(0, 10, end=20),
        ]
    )
    assert figures.totals == Totals(requests=3, prompt_tokens=30, generation_tokens=6)


# --- failures


def test_requests_are_counted_by_outcome_and_phase() -> None:
    records = [
        *[request(0, 10)] * 5,
        *[failure(0, end=10)] * 3,
        *[failure(0, end=10, kind="cancelled")] * 2,
        *[request(0, 10, phase="warmup")] * 4,
        failure(0, end=10, phase="warmup"),
        request(0, 10, phase="drain"),
    ]
    requests = figures_of(records).requests
    assert (requests.issued, requests.completed, requests.failed, requests.cancelled) == (10, 5, 3, 2)
    assert (requests.warmup, requests.drain) == (5, 1)


@pytest.mark.parametrize("kind", ["connect", "timeout", "http_status", "stream_error", "stream_truncated", "cancelled"])
def test_failure_enters_no_latency(kind: str) -> None:
    failed = failure(None if kind == "connect" else 0, 700, 200, end=950, kind=kind)
    figures = figures_of([request(0, 50, 10), failed])
    assert ms(figures.ttft_s) == (1, 50, 50)
    assert ms(figures.e2e_s) == (1, 60, 60)
    assert ms(figures.tpot_s) == ms(figures.itl_s) == ms(figures.itl_per_token_s) == (1, 10, 10)
    assert ms(figures.stalls.longest_gap_s) == (1, 10, 10)
    assert figures.tokens.asked == 1
    assert figures.errors == {kind: 1}


def test_request_of_another_phase_enters_no_latency_and_no_error_count() -> None:
    figures = figures_of([request(0, 50, 10), request(0, 700, 70, phase="warmup"), failure(0, end=10, phase="drain")])
    assert ms(figures.ttft_s) == (1, 50, 50)
    assert figures.errors == {}


def test_most_frequent_errors_are_shown_with_their_counts() -> None:
    records = [failure(0, end=10, kind="connect", message=f"m{i}") for i in range(7) for _ in range(i + 1)]
    figures = figures_of(records)
    assert figures.errors == {"connect": 28}
    assert figures.error_examples == [
        ErrorExample(kind="connect", status=None, message=f"m{i}", count=i + 1) for i in (6, 5, 4, 3, 2)
    ]


def test_a_frequent_error_is_still_counted_after_1000_different_ones() -> None:
    frequent = failure(0, end=10, message="frequent")
    rare = [failure(0, end=10, message=f"rare {i}") for i in range(1500)]
    figures = figures_of([frequent, *rare, *[frequent] * 9])
    assert figures.error_examples[0].message == "frequent"
    assert figures.error_examples[0].count == 10


# --- the client's own figures


def test_in_flight_is_a_time_average_over_the_window() -> None:
    figures = figures_of(
        [
            request(100, 500),  # 500 ms inside
            request(-200, 100, 400, phase="warmup"),  # 300
            request(900, 50, 600, phase="drain"),  # 100
            failure(0, end=100),  # 100
            request(-500, 2000),  # 1000
            request(-500, 499),  # none
            request(1001, 10),  # none
            failure(None, end=500, kind="connect"),  # none
        ]
    )
    assert figures.client.in_flight == pytest.approx(2.0)


def test_in_flight_of_an_empty_window_is_unknown() -> None:
    assert figures_of([], end=0).client.in_flight is None


def test_littles_law_holds_for_requests_inside_the_window() -> None:
    figures = figures_of([request(0, 400), request(100, 600), request(400, 600)], end=2000)
    assert figures.client.in_flight == pytest.approx(0.8)
    assert figures.client.littles_law_deviation == pytest.approx(0.0, abs=1e-12)


def test_deviation_from_littles_law_by_hand() -> None:
    # N = 0.8 in flight; X R = 1/s * 0.4 s.
    figures = figures_of([request(0, 400), request(600, 800)])
    assert figures.client.littles_law_deviation == pytest.approx(0.5)


def test_littles_law_holds_when_requests_fail() -> None:
    figures = figures_of([request(0, 500), failure(500, end=1000)])
    assert figures.client.in_flight == pytest.approx(1.0)
    assert figures.client.littles_law_deviation == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("records", [[], [request(0, 5000)]])
def test_deviation_is_unknown_when_nothing_ended(records: list[RequestRecord]) -> None:
    assert figures_of(records).client.littles_law_deviation is None


def test_utilization_is_the_busiest_workers_within_the_window() -> None:
    samples = [
        sample(899, cpu=0),
        sample(900, cpu=400),  # one sample more on either side, a tenth of a second apart
        sample(1500, cpu=450),
        sample(2100, cpu=640),
        sample(2101, cpu=1640),
        sample(900, cpu=9000, worker=1),
        sample(2100, cpu=9100, worker=1),
        sample(9000, cpu=9999, worker=2),
    ]
    client = figures_of([], samples, start=1000, end=2000).client
    assert client.utilization == pytest.approx(0.2)
    assert client.workers == 3


def test_utilization_does_not_depend_on_how_workers_interleave() -> None:
    samples = [
        sample(t, cpu=cpu * (worker + 1), worker=worker) for t, cpu in ((0, 0), (1000, 300)) for worker in (1, 0)
    ]
    assert figures_of([], samples).client.utilization == pytest.approx(0.6)


def test_lateness_is_that_of_the_window() -> None:
    samples = [
        sample(1000, lateness_ns=[9 * MS]),  # of the tenth of a second before the window
        sample(1100, lateness_ns=[1 * MS, 2 * MS]),
        sample(1900, lateness_ns=[3 * MS], worker=1),
        sample(2100, lateness_ns=[4 * MS]),
        sample(2101, lateness_ns=[9 * MS]),
    ]
    assert ms(figures_of([], samples, start=1000, end=2000).client.lateness_s) == (4, 1, 4)


def test_no_sample_gives_no_lateness() -> None:
    client = figures_of([request(0, 10)]).client
    assert client.lateness_s == Distribution(count=0)
    assert (client.workers, client.utilization, client.max_rss_bytes) == (0, 0.0, 0)


def test_memory_is_the_sum_of_the_workers_peaks() -> None:
    samples = [sample(t, worker=w, max_rss_bytes=rss) for t, w, rss in ((0, 0, 5), (1, 0, 7), (0, 1, 20), (1, 1, 20))]
    assert figures_of([], samples).client.max_rss_bytes == 27


def test_slot_gaps_connects_and_retries_are_those_of_sends_in_the_window() -> None:
    counted: dict[str, Any] = {"slot_gap_ns": 2 * MS, "connect_ns": 5, "retried": True}
    client = figures_of(
        [
            request(0, 10, **counted),
            request(1000, 10, phase="drain", **counted),
            request(300, 10),
            request(-1, 10, **counted),
            request(1001, 10, **counted),
        ]
    ).client
    assert ms(client.slot_gap_s) == (2, 2, 2)
    assert (client.connects, client.retried) == (2, 2)


# --- the window


def test_an_empty_window_has_no_rates() -> None:
    gathered = LevelAccumulator(0, 0)
    gathered.add(request(0, 5, phase="warmup"))
    figures = level_figures(Closed(concurrency=1), gathered, [])
    assert figures.duration_s == 0
    assert figures.request_throughput_rps is None


def test_events_are_the_same_in_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [
        request(0, 50, 10, 0, 30, tokens=[1, 2, 1, 1]),
        request(5, 60, 200, 10, 10),
        request(7, 70),
        request(9, 20, 0, 0),
        request(10, 20, 40, phase="drain"),
        failure(12, end=50),
    ]
    whole = figures_of(records)
    monkeypatch.setattr("loadgen.analysis.gather.BATCH", 1)
    assert figures_of(records) == whole
    assert whole.stalls.requests == pytest.approx(1 / 2)


# --- the table of definitions


def test_every_figure_that_is_a_distribution_is_a_metric() -> None:
    distributions = {name for name, kind in LevelFigures.__annotations__.items() if kind == "Distribution"}
    assert distributions
    assert distributions <= {metric.key for metric in METRICS}


def test_table_has_each_key_once_with_its_unit_in_the_name() -> None:
    keys = [metric.key for metric in METRICS]
    assert len(keys) == len(set(keys))
    assert [metric.key for metric in METRICS if metric.key.endswith("_s") != (metric.unit == "s")] == []
    assert all(metric.name and metric.definition for metric in METRICS)
    assert {metric.key for metric in METRICS if not metric.unit} == {"steady.steady", "server.agrees"}, "yes or no"


def test_an_open_loops_latency_is_from_when_a_request_was_due() -> None:
    gathered = LevelAccumulator(0, 100 * MS)
    gathered.add(request(2, 10, 10, scheduled_ns=0))  # sent 2 ms late
    gathered.add(request(50, 10, 10, scheduled_ns=50 * MS))
    gathered.add(failure(None, end=100, kind="dropped", scheduled_ns=60 * MS))
    gathered.add(request(110, 10, scheduled_ns=90 * MS, phase="drain"))  # due inside the window, sent after it
    figures = level_figures(Open(rate_rps=40.0), gathered, [])
    kept = figures.open_loop
    assert isinstance(kept, OpenLoopFigures)
    assert figures.ttft_s.mean == pytest.approx(0.011)
    assert figures.e2e_s.mean == pytest.approx(0.021)
    assert kept.service.ttft_s.mean == pytest.approx(0.010)
    assert kept.service.e2e_s.mean == pytest.approx(0.020)
    assert kept.send_lateness_s.max == pytest.approx(0.002)
    assert (kept.late, kept.dropped) == (1, 1)
    assert kept.intended_rate_rps == pytest.approx(40)
    assert kept.achieved_rate_rps == pytest.approx(20)
    assert figures.requests.failed == 1
