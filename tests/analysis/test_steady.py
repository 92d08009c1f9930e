"""The measured window: what is cut at its start, and whether the rest stays as it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import signal, stats

from loadgen.analysis.intervals import RATE_BINS
from loadgen.analysis.steady import MSER_BATCH, SteadyWindow, _mser_errors, mann_kendall, steady_window

MS = 1_000_000
Series = NDArray[np.float64]


def ar1(rng: np.random.Generator, n: int, phi: float = 0.5) -> Series:
    noise = rng.standard_normal(n + 100) * math.sqrt(1 - phi**2)
    return np.asarray(signal.lfilter([1.0], [1.0, -phi], noise)[100:])


def window_of(slots: int | None = None, amounts: Series | None = None, **values: Series) -> SteadyWindow:
    """The window of requests sent one a millisecond from the first on."""
    n = len(next(iter(values.values())))
    return steady_window(np.arange(n) * MS, values, start_ns=0, end_ns=n * MS, slots=slots, amounts=amounts)


def test_requests_outside_the_window_are_not_its() -> None:
    found = steady_window(np.arange(100) * MS, {"ttft_s": np.ones(100)}, start_ns=10 * MS, end_ns=89 * MS)
    assert (found.requests, found.start_ns, found.end_ns) == (80, 10 * MS, 89 * MS)


# --- MSER-5


def mser5(values: Series, slots: int | None = None) -> int:
    """How many values MSER-5 alone would cut."""
    errors = _mser_errors(values, slots)
    return int(errors.argmin()) * MSER_BATCH if len(errors) else 0


def test_mser_cuts_a_step_where_it_ends() -> None:
    assert mser5(np.concatenate([np.full(20, 5.0), np.tile([0.9, 1.1], 50)])) == 20


def test_mser_leaves_a_constant_and_a_short_series_alone() -> None:
    assert mser5(np.ones(100)) == 0
    assert mser5(np.arange(25.0)) == 0


def test_mser_minimises_the_standard_error_of_the_mean() -> None:
    values = np.exp(ar1(np.random.default_rng(3), 203))
    batches = values[:200].reshape(40, 5).mean(axis=1)
    errors = [batches[cut:].var() / (40 - cut) for cut in range(35)]
    assert mser5(values) == 5 * int(np.argmin(errors))


def test_mser_does_not_take_one_wave_for_a_steady_state() -> None:
    """Requests of a wave of 32 have the same TPOT: the last one alone would have no variance at all."""
    values = np.repeat(np.random.default_rng(5).normal(1, 0.1, 20), 32)
    assert mser5(values) > 320
    assert mser5(values, slots=32) <= 480


def test_start_up_transient_is_found_and_cut() -> None:
    rng = np.random.default_rng(1)
    values = np.exp(0.2 * ar1(rng, 600))
    values[:40] *= 3
    found = window_of(ttft_s=values, tpot_s=np.exp(0.1 * ar1(rng, 600)))
    assert 35 <= found.cut_transient <= 60
    assert found.cut_by == "ttft_s"
    assert found.requests == 600 - found.cut_transient
    assert found.start_ns == found.cut_transient * MS
    assert found.steady
    assert f"the first {found.cut_transient} requests, in which TTFT differed" in found.reason


def test_cut_counts_requests_without_a_value_too() -> None:
    values = np.concatenate([np.full(40, 3.0), np.ones(360)]) + 0.1 * ar1(np.random.default_rng(1), 400)
    values[5:25:2] = np.nan
    found = window_of(ttft_s=values)
    assert 35 <= found.cut_transient <= 60


def test_transient_longer_than_half_is_no_steady_state() -> None:
    values = np.concatenate([np.full(350, 3.0), np.ones(250)]) + 0.1 * ar1(np.random.default_rng(2), 600)
    found = window_of(ttft_s=values)
    assert found.steady is False
    assert found.drifting == ["ttft_s"]
    assert found.reason.startswith("TTFT had not settled after half of the requests")


# --- trend


def test_mann_kendall_of_independent_batches_is_kendalls_tau() -> None:
    batches = np.random.default_rng(7).normal(10, 1, 25)
    found, expected = mann_kendall(batches), stats.kendalltau(np.arange(25), batches, method="asymptotic")
    assert found.tau == pytest.approx(expected.statistic)
    assert found.p == pytest.approx(expected.pvalue)


def test_autocorrelation_makes_a_trend_less_certain() -> None:
    """Two long swings: no lag apart from the trend is independent, and Kendall's own p is far too small."""
    place = np.arange(25)
    batches = 10 + 0.05 * place + np.sin(place / 2.5)
    plain = stats.kendalltau(place, batches, method="asymptotic").pvalue
    assert mann_kendall(batches).p > 2 * plain


@pytest.mark.parametrize("sign", [1, -1])
def test_size_of_a_straight_trend(sign: int) -> None:
    found = mann_kendall(10 * (1 + sign * 0.15 * (np.arange(20) - 9.5) / 20))
    assert found.tau == pytest.approx(sign)
    assert found.relative_change == pytest.approx(sign * 0.15)
    assert found.p < 1e-6


def test_constant_has_no_trend() -> None:
    found = mann_kendall(np.ones(20))
    assert (found.tau, found.p, found.relative_change) == (0.0, 1.0, 0.0)


def test_drift_is_told_with_its_size() -> None:
    rng = np.random.default_rng(4)
    grown = np.linspace(1, 1.2, 1000)
    found = window_of(ttft_s=np.exp(0.1 * ar1(rng, 1000)), tpot_s=0.02 * grown * np.exp(0.05 * ar1(rng, 1000)))
    assert found.steady is False
    assert found.drifting == ["tpot_s"]
    assert found.trends["tpot_s"].relative_change == pytest.approx(0.18, abs=0.04)
    assert found.reason.startswith("TPOT rose by 1")


def test_certain_but_small_drift_is_left_alone() -> None:
    values = np.linspace(1, 1.003, 20_000) + 1e-4 * np.random.default_rng(0).standard_normal(20_000)
    found = window_of(ttft_s=values)
    assert found.trends["ttft_s"].p < 1e-6
    assert found.steady
    assert "no trend of 5% or more; at most, TTFT changed by 0.3%" in found.reason


def test_throughput_that_sinks_is_a_drift() -> None:
    rng = np.random.default_rng(0)
    amounts = np.linspace(100, 80, RATE_BINS) + rng.standard_normal(RATE_BINS)
    found = window_of(amounts=amounts, ttft_s=np.exp(0.1 * ar1(rng, 500)))
    assert found.drifting == ["throughput"]
    assert found.trends["throughput"].relative_change == pytest.approx(-0.22, abs=0.02)


def test_pattern_that_repeats_with_the_slots_is_no_trend() -> None:
    values = np.tile(np.linspace(1, 2, 16), 30) + 0.01 * np.random.default_rng(0).standard_normal(480)
    found = window_of(slots=16, ttft_s=values)
    assert found.steady and not found.cut_transient


def test_too_few_requests_cannot_tell() -> None:
    assert window_of(ttft_s=np.arange(49.0)).steady is None
    assert window_of(ttft_s=np.ones(49), amounts=np.ones(RATE_BINS)).steady is None
    found = window_of(slots=20, ttft_s=np.ones(199))
    assert found.steady is None
    assert "199 requests are too few" in found.reason and "200 would do" in found.reason
    assert window_of(slots=20, ttft_s=np.ones(200)).steady


def test_nothing_at_all_cannot_tell() -> None:
    found = steady_window(np.array([], dtype=np.int64), {"ttft_s": np.array([])}, start_ns=0, end_ns=MS)
    assert (found.requests, found.steady) == (0, None)


@given(st.integers(0, 2**32 - 1), st.integers(0, 300), st.sampled_from([None, 4, 32]), st.floats(0, 5))
def test_order_of_records_never_matters(seed: int, n: int, slots: int | None, burst: float) -> None:
    rng = np.random.default_rng(seed)
    values = np.exp(0.3 * rng.standard_normal(n))
    values[: n // 10] *= 1 + burst
    values[rng.random(n) < 0.1] = np.nan
    sent = rng.permutation(10 * n)[:n].astype(np.int64) * MS

    def found(order: NDArray[Any]) -> SteadyWindow:
        return steady_window(sent[order], {"ttft_s": values[order]}, start_ns=0, end_ns=10 * n * MS, slots=slots)

    here = found(np.arange(n))
    assert here == found(rng.permutation(n))
    assert here.requests + here.cut_transient == n
    assert here.cut_transient <= n / 2
    assert here.requests == int((sent >= here.start_ns).sum())


# --- by simulation (long tables: docs/validation.md)


@pytest.mark.parametrize("phi", [0.0, 0.6])
def test_drift_is_called_and_flat_is_not(phi: float) -> None:
    called = {0.0: 0, 0.15: 0}
    cut = 0
    for drift in called:
        rng = np.random.default_rng(11)
        grown = np.linspace(1, 1 + drift, 1000)
        for _ in range(100):
            found = window_of(
                ttft_s=grown * np.exp(0.3 * ar1(rng, 1000, phi)), tpot_s=grown * np.exp(0.05 * ar1(rng, 1000, phi))
            )
            called[drift] += found.steady is False
            cut += found.cut_transient > 0 and not drift
    assert called[0.0] <= 5
    assert called[0.15] >= 95
    assert cut <= 5
