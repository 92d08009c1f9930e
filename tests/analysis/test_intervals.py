"""Intervals of series: exact where the arithmetic is known, and by simulation (long tables: docs/validation.md)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import signal, stats

from loadgen.analysis.intervals import (
    RATE_BINS,
    autocorrelation,
    bin_amounts,
    intervals,
    mean_interval,
    quantile_intervals,
    rate_interval,
    share_interval,
)
from loadgen.analysis.stats import describe

Series = NDArray[np.float64]


def ar1(rng: np.random.Generator, n: int, phi: float) -> Series:
    """A stationary AR(1) series of variance 1."""
    noise = rng.standard_normal(n + 200) * math.sqrt(1 - phi**2)
    return np.asarray(signal.lfilter([1.0], [1.0, -phi], noise)[200:])


def waves(rng: np.random.Generator, n: int, slots: int, between: float) -> Series:
    """Latencies of a server that takes ``slots`` requests at a time: a ramp in each wave, waves that differ."""
    count = n // slots + 2
    wave = np.repeat(between * rng.standard_normal(count), slots)
    ramp = np.tile(np.arange(slots) / slots, count)
    start = rng.integers(slots)
    return ((1 + ramp) * np.exp(wave + 0.1 * rng.standard_normal(count * slots)))[start : start + n]


def coverage(draw: Callable[[np.random.Generator], tuple[float, float] | None], truth: float, runs: int = 400) -> float:
    """How often intervals hold the truth; every run must give one."""
    rng = np.random.default_rng(20240601)
    held = 0
    for _ in range(runs):
        found = draw(rng)
        assert found is not None
        held += found[0] <= truth <= found[1]
    return held / runs


# Three standard errors of a coverage of 95 % seen 400 times.
TOLERANCE = 0.033


# --- exact


@pytest.mark.parametrize("n", [2, 3, 5])
def test_short_series_has_students_interval(n: int) -> None:
    """All n - 1 coefficients of the cosine transform together are the sample variance."""
    values = np.random.default_rng(n).normal(size=n)
    assert mean_interval(values) == pytest.approx(describe(values).ci95["mean"])


def test_autocorrelation_time_of_ar1_is_its_known_value() -> None:
    values = ar1(np.random.default_rng(0), 200_000, 0.6)
    assert autocorrelation(values).time == pytest.approx((1 + 0.6) / (1 - 0.6), rel=0.1)


def test_alternating_series_knows_its_mean_better_than_its_size_says() -> None:
    values = np.tile([0.0, 1.0], 200) + np.random.default_rng(0).normal(0, 0.01, 400)
    assert autocorrelation(values).effective > 1000


def test_constant_series_is_certain() -> None:
    assert intervals(np.full(1000, 2.0)) == dict.fromkeys(("mean", "p50", "p90", "p95", "p99"), (2.0, 2.0))


@pytest.mark.parametrize("n", [0, 1])
def test_one_value_has_no_interval(n: int) -> None:
    assert intervals(np.ones(n)) == {}


def test_independent_sample_has_about_the_interval_of_order_statistics() -> None:
    values = np.random.default_rng(5).lognormal(size=20_000)
    ours, independent = intervals(values), describe(values).ci95
    assert ours.keys() == independent.keys()
    for name in ours:
        widths = [high - low for low, high in (ours[name], independent[name])]
        assert widths[0] == pytest.approx(widths[1], rel=0.35), name


def test_p99_needs_its_floor_in_effective_requests() -> None:
    """1,500 requests that tell as much as 375 do not bound the 99th percentile; 6,000 do."""
    rng = np.random.default_rng(1)
    short, long = (np.exp(ar1(rng, n, 0.6)) for n in (1500, 6000))
    assert quantile_intervals(short, {"q": 0.99}) == {}
    assert quantile_intervals(short, {"q": 0.9}) != {}
    assert quantile_intervals(long, {"q": 0.99}) != {}


def test_fewer_than_six_waves_have_no_interval() -> None:
    values = np.random.default_rng(1).lognormal(size=100)
    assert intervals(values, period=17) == {}
    assert share_interval(values > 1, period=17) is None
    assert "mean" in intervals(values, period=16)


@given(st.lists(st.floats(0.001, 1000), min_size=30, max_size=200), st.floats(0.01, 100), st.sampled_from([None, 2, 5]))
def test_intervals_hold_the_estimate_and_scale_with_the_unit(
    sample: list[float], scale: float, period: int | None
) -> None:
    values = np.array(sample)
    found = intervals(values, period=period)
    scaled = intervals(values * scale, period=period)
    assert "mean" in found and found.keys() == scaled.keys()
    for name, (low, high) in found.items():
        estimate = values.mean() if name == "mean" else np.quantile(values, int(name[1:]) / 100)
        assert low - 1e-9 * estimate <= estimate <= high + 1e-9 * estimate
        assert scaled[name] == pytest.approx((low * scale, high * scale), rel=1e-6, abs=1e-6 * estimate * scale)


def test_intervals_are_quick() -> None:
    values = np.random.default_rng(0).lognormal(size=10_000)
    intervals(values)
    start = time.perf_counter()
    intervals(values)
    assert time.perf_counter() - start < 0.5  # about 2 ms


# --- by simulation


@pytest.mark.parametrize("phi", [0.0, 0.6])
@pytest.mark.parametrize(("name", "q"), [("p50", 0.5), ("p90", 0.9)])
def test_quantiles_of_correlated_latencies(phi: float, name: str, q: float) -> None:
    truth = math.exp(0.5 * stats.norm.ppf(q))
    found = coverage(lambda rng: quantile_intervals(np.exp(0.5 * ar1(rng, 3000, phi)), {"q": q}).get("q"), truth)
    assert found == pytest.approx(0.95, abs=TOLERANCE)


@pytest.mark.parametrize("n", [200, 1000])
def test_mean_of_correlated_latencies_where_students_interval_fails(n: int) -> None:
    truth = math.exp(0.125)

    def draw(rng: np.random.Generator) -> Series:
        return np.asarray(np.exp(0.5 * ar1(rng, n, 0.6)))

    assert coverage(lambda rng: mean_interval(draw(rng)), truth) == pytest.approx(0.95, abs=TOLERANCE)
    assert coverage(lambda rng: describe(draw(rng)).ci95["mean"], truth) < 0.8


def test_mean_of_waves() -> None:
    ramp = 1 + np.arange(32) / 32
    truth = float(ramp.mean()) * math.exp((0.15**2 + 0.1**2) / 2)
    found = coverage(lambda rng: mean_interval(waves(rng, 640, 32, 0.15), period=32), truth)
    assert found == pytest.approx(0.95, abs=TOLERANCE)


def test_known_period_keeps_a_regular_pattern_out() -> None:
    """Where waves hardly differ, what is within them averages out; without the period it is taken for noise."""
    values = waves(np.random.default_rng(3), 200, 32, 0.03)
    (low, high), (wide_low, wide_high) = mean_interval(values, period=32) or (0, 0), mean_interval(values) or (0, 0)
    assert high - low < 0.7 * (wide_high - wide_low)


# --- rates


def test_amounts_fall_into_the_bin_of_their_time() -> None:
    start = 10**15 + 7  # a float would lose the last digits
    times = start + np.array([-1, 0, 999, 1000, 255_999, 256_000, 256_001])
    found = bin_amounts(times, np.array([1, 2, 4, 8, 16, 32, 64]), start, start + 256_000)
    assert len(found) == RATE_BINS
    assert (found[0], found[1], found[-1], found.sum()) == (6, 8, 48, 62)


def test_interval_of_a_rate_is_per_second() -> None:
    amounts = np.random.default_rng(0).poisson(50, RATE_BINS).astype(float)
    found = rate_interval(amounts, window_s=64.0)
    mean = mean_interval(amounts)
    assert mean is not None
    assert found == pytest.approx((mean[0] * 4, mean[1] * 4))


def test_rate_of_a_handful_of_requests_has_no_interval_and_none_is_below_zero() -> None:
    amounts = np.zeros(RATE_BINS)
    amounts[:9] = 1
    assert rate_interval(amounts, 10.0) is None
    amounts[:12] = 1
    found = rate_interval(amounts, 10.0)
    assert found is not None and found[0] == 0.0


def test_throughput_of_a_server_whose_speed_wanders() -> None:
    found = coverage(lambda rng: rate_interval(100 + 20 * ar1(rng, RATE_BINS, 0.8), 60.0), 100 * RATE_BINS / 60)
    assert found == pytest.approx(0.95, abs=TOLERANCE)


# --- shares


def test_share_of_few_failures_is_wilsons() -> None:
    passed = np.ones(100, dtype=bool)
    passed[[10, 50, 90]] = False
    wilson = stats.binomtest(97, 100).proportion_ci(method="wilson")
    assert share_interval(passed) == pytest.approx((wilson.low, wilson.high))


def test_nothing_has_no_share() -> None:
    assert share_interval(np.array([], dtype=bool)) is None


def test_all_passed_is_no_certainty_and_less_so_where_latencies_hang_together() -> None:
    passed = np.ones(400, dtype=bool)
    alone = share_interval(passed)
    together = share_interval(passed, ar1(np.random.default_rng(2), 400, 0.8))
    assert alone is not None and together is not None
    assert alone == pytest.approx((400 / (400 + stats.norm.ppf(0.975) ** 2), 1.0))
    assert together[0] < alone[0] < together[1] == 1.0


def test_attainment_of_correlated_requests() -> None:
    limit = stats.norm.ppf(0.9)

    def draw(rng: np.random.Generator) -> tuple[float, float] | None:
        values = ar1(rng, 1000, 0.6)
        return share_interval(values <= limit, values)

    assert coverage(draw, 0.9) == pytest.approx(0.95, abs=TOLERANCE)
