"""Schedules: their rate, their spread, the same for everybody, and never drifting. No clock."""

from __future__ import annotations

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadgen.client.pacing import Arrivals, schedule
from loadgen.errors import UsageError
from loadgen.loads import parse_arrival
from loadgen.units import NS_PER_S


def gaps_s(arrivals: Arrivals, count: int = 40_000) -> np.ndarray:
    return np.diff([0, *islice(schedule(arrivals), count)]) / NS_PER_S


@pytest.mark.parametrize("cv", [0.25, 1.0, 2.0, 4.0])
def test_gamma_gaps_have_the_rate_and_the_spread_that_were_asked_for(cv: float) -> None:
    gaps = gaps_s(Arrivals(kind="gamma", rate_rps=50, cv=cv, seed=3))
    # Standard error of the mean: cv / sqrt(n); four of them.
    assert gaps.mean() == pytest.approx(1 / 50, rel=4 * cv / 200)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)


def test_poisson_gaps_are_exponential() -> None:
    from scipy import stats

    gaps = gaps_s(Arrivals(kind="poisson", rate_rps=8, seed=1), 5000)
    assert stats.kstest(gaps * 8, "expon").pvalue > 0.001


@given(st.floats(0.1, 5000), st.integers(1, 2000))
@example(rate=0.3, number=100_000)
@example(rate=4999.7, number=100_000)
def test_constant_arrivals_never_drift(rate: float, number: int) -> None:
    at = next(islice(schedule(Arrivals(kind="constant", rate_rps=rate)), number, None))
    assert abs(at - number * NS_PER_S / rate) <= 0.5


def test_the_seed_decides() -> None:
    first, again = (list(islice(schedule(Arrivals(kind="poisson", rate_rps=5, seed=7)), 9000)) for _ in range(2))
    other = list(islice(schedule(Arrivals(kind="poisson", rate_rps=5, seed=8)), 9000))
    assert first == again != other
    assert all(a <= b for a, b in pairwise(first))


def test_replay_gives_the_trace_and_ends() -> None:
    arrivals = Arrivals(kind="replay", rate_rps=2, times_ns=(0, 5, 9))
    assert list(schedule(arrivals)) == [0, 5, 9]


@pytest.mark.parametrize(
    ("text", "found"),
    [("poisson", ("poisson", 1.0)), ("constant", ("constant", 0.0)), ("gamma:2.5", ("gamma", 2.5)),
     ("replay", ("replay", 1.0))],
)  # fmt: skip
def test_arrivals_by_name(text: str, found: tuple[str, float]) -> None:
    assert parse_arrival(text) == found


@pytest.mark.parametrize("text", ["gamma", "gamma:", "gamma:0", "gamma:nan", "gamma:x", "burst", "poisson:2", ""])
def test_arrivals_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--arrival"):
        parse_arrival(text)


def test_names_round_trip() -> None:
    for text in ("poisson", "constant", "gamma:2", "replay"):
        kind, cv = parse_arrival(text)
        assert Arrivals(kind=kind, rate_rps=1, cv=cv).name == text
