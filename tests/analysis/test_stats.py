"""Quantiles, their floors and their intervals, against exact arithmetic and by simulation."""

from __future__ import annotations

import math
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from loadgen.analysis.stats import QUANTILES, Distribution, describe, quantile_floor

EXACT = {"p50": Fraction(1, 2), "p90": Fraction(9, 10), "p95": Fraction(19, 20), "p99": Fraction(99, 100)}


def binomial_cdf(k: int, n: int, p: Fraction) -> Fraction:
    """P(Binomial(n, p) <= k), exactly."""
    a, b = p.numerator, p.denominator - p.numerator
    return Fraction(sum(comb(n, i) * a**i * b ** (n - i) for i in range(k + 1)), p.denominator**n)


def rank_reaching(p: Fraction, n: int, q: Fraction) -> int:
    """The smallest k with P(Binomial(n, q) <= k) >= p, exactly."""
    a, b = q.numerator, q.denominator - q.numerator
    total, goal = 0, p * q.denominator**n
    for k in range(n + 1):
        total += comb(n, k) * a**k * b ** (n - k)
        if total >= goal:
            return k
    raise AssertionError("unreachable")


# --- floors


@pytest.mark.parametrize(("name", "floor"), [("p50", 11), ("p90", 64), ("p95", 130), ("p99", 662)])
def test_floor_is_the_first_sample_that_bounds_the_quantile_with_99_percent(name: str, floor: int) -> None:
    above = 1 - EXACT[name]
    assert binomial_cdf(1, floor, above) <= Fraction(1, 100) < binomial_cdf(1, floor - 1, above)
    assert quantile_floor(QUANTILES[name]) == floor


@pytest.mark.parametrize("name", QUANTILES)
def test_quantile_is_null_below_its_floor(name: str) -> None:
    floor = quantile_floor(QUANTILES[name])
    below, at = describe(np.arange(floor - 1)), describe(np.arange(floor))
    assert getattr(below, name) is None
    assert name not in below.ci95
    assert getattr(at, name) is not None


# --- known samples


def test_no_value_is_described_by_its_count_alone() -> None:
    assert describe(np.array([])) == Distribution(count=0)


def test_one_value_has_no_spread_and_no_interval() -> None:
    assert describe(np.array([3.0])) == Distribution(count=1, mean=3.0, min=3.0, max=3.0)


def test_two_values() -> None:
    found = describe(np.array([4.0, 2.0]))
    assert (found.count, found.mean, found.min, found.max) == (2, 3.0, 2.0, 4.0)
    assert found.stdev == pytest.approx(math.sqrt(2))
    half = 12.706204736432095 * math.sqrt(2) / math.sqrt(2)  # Student's t for one degree of freedom
    assert found.ci95 == {"mean": pytest.approx((3 - half, 3 + half))}


@pytest.mark.parametrize(
    ("n", "quantiles"),
    [
        (10, {}),
        (11, {"p50": 6.0}),
        (64, {"p50": 32.5, "p90": 57.7}),
        (201, {"p50": 101.0, "p90": 181.0, "p95": 191.0}),
        (1001, {"p50": 501.0, "p90": 901.0, "p95": 951.0, "p99": 991.0}),
    ],
)
def test_quantiles_of_the_first_n_numbers(n: int, quantiles: dict[str, float]) -> None:
    found = describe(np.random.default_rng(0).permutation(np.arange(1, n + 1)))
    assert {name: getattr(found, name) for name in QUANTILES} == {
        name: None if name not in quantiles else pytest.approx(quantiles[name]) for name in QUANTILES
    }
    assert (found.count, found.min, found.max) == (n, 1, n)
    assert found.mean == pytest.approx((n + 1) / 2)
    assert found.stdev == pytest.approx(math.sqrt(n * (n + 1) / 12))


def test_the_sample_is_left_as_it_was() -> None:
    values = np.array([3, 1, 2])
    describe(values)
    assert values.tolist() == [3, 1, 2]


# --- intervals


def test_interval_of_the_mean_is_students() -> None:
    found = describe(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    half = 2.7764451051977987 * math.sqrt(2.5) / math.sqrt(5)
    assert found.ci95 == {"mean": pytest.approx((3 - half, 3 + half))}
    assert found.half_width("mean") == pytest.approx(half)


@pytest.mark.parametrize("n", [11, 12, 25, 64, 130, 200, 500, 662, 900])
def test_intervals_of_quantiles_are_the_exact_order_statistics(n: int) -> None:
    found = describe(np.arange(1, n + 1))  # each value is its own rank
    names = [name for name in EXACT if n >= quantile_floor(QUANTILES[name])]
    assert "p50" in names and set(names) == found.ci95.keys() - {"mean"}
    for name in names:
        q = EXACT[name]
        low = rank_reaching(Fraction(1, 40), n, q)
        high = rank_reaching(Fraction(39, 40), n, q) + 1
        assert binomial_cdf(high - 1, n, q) - binomial_cdf(low - 1, n, q) >= Fraction(95, 100)
        assert found.ci95[name] == (low, high)


def test_half_width_of_what_has_no_interval_is_unknown() -> None:
    assert describe(np.arange(20)).half_width("p99") is None


def test_values_that_depend_on_each_other_get_no_interval() -> None:
    found = describe(np.arange(1000), independent=False)
    assert found.ci95 == {}
    assert found.p99 is not None


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """The mean's exactly; the median's a little more often, since ranks are whole numbers."""
    samples = np.random.default_rng(20240501).normal(10.0, 2.0, size=(1500, 40))
    found = [describe(sample).ci95 for sample in samples]
    share = {
        name: np.mean([low <= 10.0 <= high for low, high in (ci[name] for ci in found)]) for name in ("mean", "p50")
    }
    # Three standard errors are 0.017.
    assert 0.933 < share["mean"] < 0.967
    half = Fraction(1, 2)
    low, high = rank_reaching(Fraction(1, 40), 40, half), rank_reaching(Fraction(39, 40), 40, half) + 1
    exact = float(binomial_cdf(high - 1, 40, half) - binomial_cdf(low - 1, 40, half))
    assert share["p50"] == pytest.approx(exact, abs=0.017)
