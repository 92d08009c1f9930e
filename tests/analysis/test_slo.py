"""Objectives: how they are written, which requests meet them, and what no record may do to them."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import MS, failure, request

from loadgen.analysis.outcome import Outcome, outcome
from loadgen.analysis.slo import Slo, SloFigures, parse_slos, passes, slo_figures
from loadgen.errors import UsageError

TTFT, TPOT, E2E = (Slo(metric=metric, limit_s=1.0) for metric in ("ttft", "tpot", "e2e"))
P90 = Slo(metric="ttft", limit_s=1.0, percentile=90.0)


def took(ttft_s: float | None, issued: int = 0, **fields: Any) -> Outcome:
    """A successful request, issued at that many ms."""
    return Outcome(issued * MS, fields.pop("seq", 0), failed=False, ttft_s=ttft_s, **fields)


def failed(issued: int = 0) -> Outcome:
    return Outcome(issued * MS, 0, failed=True)


def figures(outcomes: list[Outcome], *slos: Slo, end: int = 1000, slots: int | None = None) -> SloFigures:
    return slo_figures(outcomes, list(slos), start_ns=0, end_ns=end * MS, slots=slots)


# --- how they are written


def test_objectives_of_requests_and_of_percentiles() -> None:
    assert parse_slos("ttft=500ms, tpot=50ms,e2e=1m30s,ttft:p99=0.8s,ttft:p99.9=2s") == [
        Slo(metric="ttft", limit_s=0.5),
        Slo(metric="tpot", limit_s=0.05),
        Slo(metric="e2e", limit_s=90.0),
        Slo(metric="ttft", limit_s=0.8, percentile=99.0),
        Slo(metric="ttft", limit_s=2.0, percentile=99.9),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ttft=500", "--slo ttft=500 has no unit; write ttft=500ms or ttft=500s"),
        ("ttft:p99=0.5", "write ttft:p99=0.5ms or ttft:p99=0.5s"),
        ("itl=50ms", "knows ttft, tpot and e2e, not 'itl'"),
        ("ttft", "not an objective: 'ttft'; write --slo ttft=500ms"),
        ("", "not an objective: ''"),
        ("ttft=500ms,", "not an objective: ''"),
        ("ttft:99=500ms", "not a percentile: '99' in 'ttft:99=500ms'; write ttft:p99=500ms"),
        ("ttft:p0=500ms", "not a percentile: 'p0'"),
        ("ttft:p100=500ms", "not a percentile: 'p100'"),
        ("ttft=0ms", "must be above zero"),
        ("ttft=fast", "not a duration: 'fast'"),
        ("ttft=-5ms", "not a duration: '-5ms'"),
        ("ttft=1s,ttft=2s", "two limits for ttft"),
        ("e2e:p90=1s,e2e:p90=1s", "two limits for e2e:p90"),
    ],
)
def test_what_is_no_objective_is_refused_with_what_to_write(text: str, says: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_slos(text)
    assert says in str(raised.value)


@given(
    st.sampled_from(["ttft", "tpot", "e2e"]),
    st.integers(1, 10_000_000).map(lambda us: us / 1e6),
    st.none() | st.integers(1, 999).map(lambda tenths: tenths / 10),
)
def test_text_is_read_back_as_the_same(metric: Any, limit_s: float, percentile: float | None) -> None:
    (read,) = parse_slos(Slo(metric=metric, limit_s=limit_s, percentile=percentile).text)
    assert (read.metric, read.percentile) == (metric, percentile)
    assert read.limit_s == pytest.approx(limit_s)


# --- one request


def test_latencies_of_a_record() -> None:
    found = outcome(request(1000, 100, 20, 40, tokens=[1, 2, 1], seq=7))
    assert found == Outcome(1000 * MS, 7, failed=False, ttft_s=0.1, tpot_s=0.02, e2e_s=0.16)


def test_open_loop_counts_from_the_intended_send() -> None:
    found = outcome(request(1000, 100, 20, scheduled_ns=400 * MS))
    assert found == Outcome(400 * MS, 0, failed=False, ttft_s=0.7, tpot_s=0.02, e2e_s=0.72)


@pytest.mark.parametrize(
    ("record", "issued"),
    [
        (failure(10, 5, end=20), 10),
        (failure(None, end=20, kind="connect"), 20),
        (failure(None, end=20, kind="connect", scheduled_ns=3 * MS), 3),
        (failure(10, 5, end=20, kind="cancelled"), 10),
    ],
)
def test_failure_has_no_latency_and_breaks_every_objective(record: Any, issued: int) -> None:
    found = outcome(record)
    assert found == Outcome(issued * MS, 0, failed=True)
    assert not passes(found, [])
    assert P90.is_met(found) is False


def test_limit_itself_is_met() -> None:
    assert passes(took(1.0), [TTFT])
    assert not passes(took(math.nextafter(1.0, 2)), [TTFT])


def test_undefined_metric_breaks_nothing() -> None:
    one_token = outcome(request(0, 100))
    assert one_token.tpot_s is None
    assert passes(one_token, [TPOT])
    assert TPOT.is_met(one_token) is None


def test_percentile_is_not_asked_of_a_request() -> None:
    assert passes(took(5.0), [P90])


# --- a level


def test_goodput_counts_what_was_offered_in_the_window() -> None:
    level = [took(0.5, 0), took(0.5, 500), took(2.0, 600), failed(700), took(0.5, 2000), took(0.5, 2001)]
    found = figures(level, TTFT, end=2000)
    assert (found.offered, found.good) == (5, 3)
    assert found.goodput_rps == 1.5
    assert found.attainment == 0.6
    assert found.attainment_ci95 is not None
    low, high = found.attainment_ci95
    assert (low, high) == pytest.approx((0.2307, 0.8824), abs=1e-4)  # Wilson's for 3 of 5


def test_every_objective_is_to_be_met() -> None:
    level = [took(0.5, e2e_s=0.5), took(0.5, e2e_s=2.0), took(2.0, e2e_s=2.0)]
    assert figures(level, TTFT, E2E).good == 1


def test_metric_that_no_reply_has_gives_no_goodput() -> None:
    level = [took(None, e2e_s=0.5), took(None, e2e_s=0.6)]
    found = figures(level, TTFT, E2E, msgspec.structs.replace(TTFT, percentile=50.0))
    assert (found.goodput_rps, found.attainment, found.attainment_ci95) == (None, None, None)
    assert found.undefined == {"ttft": 2, "e2e": 0}
    assert (found.percentiles[0].requests, found.percentiles[0].share) == (0, None)
    assert found.percentiles[0].decision == "undecided"


def test_nothing_offered_is_unknown_and_all_failed_is_zero() -> None:
    nothing, all_failed = figures([], TTFT, P90), figures([failed()] * 100, TTFT, P90)
    assert (nothing.goodput_rps, nothing.attainment) == (0.0, None)
    assert nothing.percentiles[0].decision == "undecided"
    assert (all_failed.goodput_rps, all_failed.attainment) == (0.0, 0.0)
    assert all_failed.percentiles[0].decision == "not met"


def test_percentiles_alone_give_no_goodput() -> None:
    found = figures([took(0.5)] * 100, P90)
    assert (found.goodput_rps, found.attainment) == (None, None)


@pytest.mark.parametrize(
    ("slow", "errors", "decision"),
    [(0, 0, "met"), (50, 0, "met"), (0, 50, "met"), (90, 0, "undecided"), (60, 50, "undecided"), (90, 90, "not met")],
)
def test_percentile_is_decided_on_its_interval(slow: int, errors: int, decision: str) -> None:
    """90 % of 1,000 with an interval of 1.9 % to either side; in random order, so that all are independent."""
    level = [took(2.0)] * slow + [failed()] * errors + [took(0.5)] * (1000 - slow - errors)
    random.Random(4).shuffle(level)
    level = [one._replace(issued_ns=place, seq=place) for place, one in enumerate(level)]
    (found,) = figures(level, P90).percentiles
    assert (found.requests, found.share) == (1000, pytest.approx(1 - (slow + errors) / 1000))
    assert found.decision == decision


def test_few_requests_decide_no_high_percentile() -> None:
    p99 = msgspec.structs.replace(P90, percentile=99.0)
    level = [took(0.5 + place % 7 / 100, place) for place in range(300)]
    assert figures(level, p99).percentiles[0].decision == "undecided"
    assert figures([one._replace(ttft_s=2.0) for one in level], p99).percentiles[0].decision == "not met"


# --- properties

latencies = st.none() | st.floats(0.0, 3.0)
outcomes = st.builds(
    lambda issued, ttft, tpot, e2e, bad: failed(issued) if bad else took(ttft, issued, tpot_s=tpot, e2e_s=e2e),
    st.integers(0, 1100),
    latencies,
    latencies,
    latencies,
    st.integers(0, 4).map(lambda drawn: drawn == 0),
)
levels = st.lists(outcomes, max_size=60).map(lambda level: [one._replace(seq=place) for place, one in enumerate(level)])
SLOS = (TTFT, TPOT, E2E, P90)


@given(levels, st.randoms(use_true_random=False))
def test_order_of_records_never_matters(level: list[Outcome], shuffler: random.Random) -> None:
    shuffled = shuffler.sample(level, len(level))
    assert figures(shuffled, *SLOS) == figures(level, *SLOS)


def no_better(after: SloFigures, before: SloFigures) -> None:
    pairs = [
        (after.goodput_rps, before.goodput_rps),
        (after.attainment, before.attainment),
        (after.percentiles[0].share, before.percentiles[0].share),
    ]
    for new, old in pairs:
        assert new is None or old is None or new <= old
    assert after.good <= before.good


@given(levels, st.data())
def test_request_that_fails_improves_nothing(level: list[Outcome], data: st.DataObject) -> None:
    before = figures(level, *SLOS)
    no_better(figures([*level, failed(data.draw(st.integers(0, 1000)))._replace(seq=99)], *SLOS), before)
    if level:
        place = data.draw(st.integers(0, len(level) - 1))
        spoilt = [*level[:place], Outcome(level[place].issued_ns, place, failed=True), *level[place + 1 :]]
        no_better(figures(spoilt, *SLOS), before)
