"""The part of a level that is measured: from when on it was steady, and whether it stayed so.

Two steps, each of which says what it did (:class:`SteadyWindow`):

1. MSER-5: a start-up transient is cut where that makes the mean best known (White 1997, "An
   effective truncation heuristic for bias reduction in simulation output"; Spratt 1998; Hoad,
   Robinson and Davies 2008, "Automating warm-up length estimation"). MSER alone cuts something
   from four clean runs in ten; so the cut is made only if what is cut differs from the rest, by
   more than chance and by at least 5 %.
2. A trend test on what is left: Mann-Kendall on batches of requests, its variance corrected for
   autocorrelation (Hamed and Rao 1998, "A modified Mann-Kendall trend test for autocorrelated
   data"), the size of the trend by Theil and Sen's slope.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.analysis.intervals import autocorrelation
from loadgen.analysis.outcome import LATENCIES

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MSER_BATCH = 5
MAX_CUT = 0.5  # of the requests; a longer transient leaves too little that could be called steady
CUT_CHANCE = 0.002  # two-sided; small, since MSER has already picked the cut that stands out most
UNSETTLED_CHANCE = 0.0005  # the same for more than half: a graver thing to say
BATCHES = 25  # of the trend test
MIN_BATCHES = 10
MIN_BATCH = 5  # requests
DRIFT_CHANCE = 0.025  # of a trend in any metric where there is none
STILL_CHANCE = 0.03  # of a trend after a cut, in a metric whose trend before it was real
MIN_DRIFT = 0.05  # relative change that matters: over the window, or by what is cut
HAMED_RAO_LAGS = 5  # batches are long against what is correlated; further lags add only noise


class Trend(msgspec.Struct, kw_only=True):
    """A metric's trend over the measured window.

    Attributes:
        tau: Kendall's rank correlation of the batches with their order, -1..1.
        p: two-sided chance of such a tau without a trend, allowing for autocorrelation.
        relative_change: Theil and Sen's slope times the window, over the median of the batches:
            0.15 is a rise by 15 %.
        batches: how many the test was made on.
    """

    tau: float
    p: float
    relative_change: float
    batches: int


class SteadyWindow(msgspec.Struct, kw_only=True):
    """The measured window of a level, what was cut for it, and whether it is steady.

    Attributes:
        start_ns, end_ns: the window; requests issued inside belong to it.
        requests: how many were.
        cut_transient: requests cut by MSER-5.
        cut_by: the metric that wanted the longest cut.
        trends: per metric; a metric without enough values for a test is left out.
        drifting: the metrics without a steady state: a trend that is both real (Holm 1979, 2.5 % over
            all metrics) and at least 5 % of the median over the window, in what is left after the cut or,
            where that still leans the same way, before it; or a transient of more than half.
        steady: None when there are too few requests to tell.
        reason: what was found, in words.
    """

    start_ns: int
    end_ns: int
    requests: int
    cut_transient: int = 0
    cut_by: str | None = None
    trends: dict[str, Trend] = {}
    drifting: list[str] = []
    steady: bool | None
    reason: str


def steady_window(
    sent_ns: NDArray[Any],
    values: dict[str, NDArray[Any]],
    *,
    start_ns: int,
    end_ns: int,
    slots: int | None = None,
    amounts: NDArray[Any] | None = None,
) -> SteadyWindow:
    """Chooses the measured window of a level, and says whether the level was steady in it.

    Args:
        sent_ns: when each request was issued: sent in a closed loop, due in an open one. In any order.
        values: by metric (``ttft_s``, ``tpot_s``, ``e2e_s``), one value per request, NaN where it has none.
        start_ns, end_ns: the window as it was measured.
        slots: the concurrency of a closed loop; None for an open one. Batches are then whole
            turns of the slots, so that what repeats with each turn is no trend.
        amounts: tokens in equal parts of the time from ``start_ns`` to ``end_ns``
            (:func:`loadgen.analysis.intervals.bin_amounts`), to test the throughput, too.
    """
    import numpy as np

    order = np.argsort(sent_ns, kind="stable")
    sent = np.asarray(sent_ns, dtype=np.int64)[order]
    series = {name: np.asarray(given, dtype=float)[order] for name, given in values.items()}
    first, last = (int(place) for place in np.searchsorted(sent, [start_ns, end_ns + 1]))
    window = SteadyWindow(
        start_ns=min(start_ns, end_ns),
        end_ns=end_ns,
        requests=last - first,
        steady=None,
        reason="",
    )
    inside = {name: given[first:last] for name, given in series.items()}
    uncut = msgspec.structs.replace(window)
    endless = _cut_transient(window, sent[first:last], inside, slots)
    window.trends = _trends(window, inside, amounts, start_ns, slots)
    drifting = [*endless, *_real(window.trends)]
    if window.cut_transient:
        # A drift, too, can look as if its start were to be cut, and what is left of it be hard to tell.
        before = _trends(uncut, inside, amounts, start_ns, slots)
        drifting += [name for name in _real(before) if _goes_on(before[name], window.trends.get(name))]
    window.drifting = list(dict.fromkeys(drifting))
    if window.drifting:
        window.steady = False
    elif any(name in window.trends for name in series):  # an even throughput alone says little of latencies
        window.steady = True
    window.reason = _in_words(window, endless, slots)
    return window


def mann_kendall(batches: NDArray[Any]) -> Trend:
    """The trend of a series of batches: Mann-Kendall with Hamed and Rao's variance.

    The variance of Kendall's score is multiplied by ``1 + 2 / (n (n-1) (n-2)) sum (n-i) (n-i-1)
    (n-i-2) r_i`` with r_i the autocorrelation of the ranks, after the trend was taken off, where
    it is significant (5 %). Only what makes the variance larger is counted, and only the first
    five lags: in series of 25 the others are noise, and negative ones made one flat run in ten a
    trend.
    """
    import numpy as np
    from scipy import special, stats

    n = len(batches)
    place = np.arange(n)
    found = stats.kendalltau(place, batches, method="asymptotic")
    if math.isnan(found.pvalue):  # all alike
        return Trend(tau=0.0, p=1.0, relative_change=0.0, batches=n)
    slope = float(stats.theilslopes(batches, place).slope)
    ranks = stats.rankdata(batches - slope * place)
    ranks -= ranks.mean()
    lags = np.arange(1, min(HAMED_RAO_LAGS, n - 3) + 1)
    square = float(ranks @ ranks)
    alike = np.array([ranks[lag:] @ ranks[:-lag] / square if square else 0.0 for lag in lags])
    alike[alike < special.ndtri(0.975) / math.sqrt(n)] = 0
    factor = 1 + 2 * float(((n - lags) * (n - lags - 1) * (n - lags - 2) * alike).sum()) / (n * (n - 1) * (n - 2))
    deviate = -special.ndtri(max(found.pvalue, np.finfo(float).tiny) / 2) / math.sqrt(factor)
    middle = float(np.median(batches)) or float(np.mean(batches))
    return Trend(
        tau=float(found.statistic),
        p=float(2 * special.ndtr(-deviate)),
        relative_change=slope * n / abs(middle) if middle else 0.0,
        batches=n,
    )


def _mser_errors(values: NDArray[Any], slots: int | None) -> NDArray[np.float64]:
    """The squared standard error of the mean, as MSER has it, for a cut of 0, 1, 2, ... batches."""
    import numpy as np

    count = len(values) // MSER_BATCH
    batches = np.asarray(values[: count * MSER_BATCH], dtype=float).reshape(count, MSER_BATCH).mean(axis=1)
    left = np.arange(count, 0, -1)
    centred = batches - batches.mean() if count else batches  # else the difference of two large sums
    total = np.cumsum(centred[::-1])[::-1]
    squares = np.cumsum(centred[::-1] ** 2)[::-1]
    errors: NDArray[np.float64] = ((squares - total**2 / left) / left**2)[: max(count - max(MSER_BATCH, slots or 0), 0)]
    return errors


def _cut_transient(
    window: SteadyWindow, sent: NDArray[np.int64], series: dict[str, NDArray[np.float64]], slots: int | None
) -> list[str]:
    """Cuts what MSER-5 wants cut for any metric; returns the metrics that want more than half gone."""
    import numpy as np

    endless = []
    for name, given in series.items():
        known = np.flatnonzero(~np.isnan(given))
        settled = given[known]
        errors = _mser_errors(settled, slots)
        if not len(errors):
            continue
        # The best cut of at most half, and the best of all.
        cut = int(errors[: int(len(settled) * MAX_CUT) // MSER_BATCH + 1].argmin()) * MSER_BATCH
        furthest = int(errors.argmin()) * MSER_BATCH
        if cut and _differs(settled, cut, slots, CUT_CHANCE):
            if known[cut] > window.cut_transient:
                window.cut_transient, window.cut_by = int(known[cut]), name
        else:
            cut = 0
        far = furthest > MAX_CUT * len(known)
        if far and _differs(settled[cut:], furthest - cut, slots, UNSETTLED_CHANCE):
            endless.append(name)
    if window.cut_transient:
        window.start_ns = int(sent[window.cut_transient])
        window.requests -= window.cut_transient
    return endless


def _differs(values: NDArray[np.float64], count: int, slots: int | None, chance: float) -> bool:
    """Whether the mean of the first ``count`` values differs from the rest's, really and by enough to matter.

    Both are means of whole turns of the slots, as near as can be: within a turn places differ by
    nature. Really: Student's t on the rest's long-run variance.
    """
    from scipy import special

    if slots:
        count = -(-count // slots) * slots
    first, rest = values[:count], values[count:]
    if len(rest) < 2:
        return False
    difference = abs(float(first.mean() - rest.mean()))
    found = autocorrelation(rest, period=slots)
    error = math.sqrt(found.time * float(rest.var(ddof=1)) * (1 / count + 1 / len(rest)))
    limit = float(special.stdtrit(found.coefficients, 1 - chance / 2))
    return difference > limit * error and difference >= MIN_DRIFT * abs(float(rest.mean()))


def _batched(series: NDArray[np.float64], period: int) -> NDArray[np.float64] | None:
    """A series as rows of whole periods, about 25 of them; None if it does not give 10.

    What does not fill a row is left out at the start: a drift is seen best at the end.
    """
    size = max(len(series) // BATCHES, MIN_BATCH)
    size = max(round(size / period), 1) * period
    count = len(series) // size
    return series[len(series) - count * size :].reshape(count, size) if count >= MIN_BATCHES else None


def _trends(
    window: SteadyWindow,
    series: dict[str, NDArray[np.float64]],
    amounts: NDArray[Any] | None,
    start_ns: int,
    slots: int | None,
) -> dict[str, Trend]:
    """The trend of each metric over the window's requests, which are the last of the series, and of the throughput."""
    import numpy as np

    found = {}
    for name, given in series.items():
        kept = given[len(given) - window.requests :]
        batches = _batched(kept[~np.isnan(kept)], slots or 1)
        if batches is not None:
            found[name] = mann_kendall(np.median(batches, axis=1))
    span = window.end_ns - start_ns
    if amounts is not None and span > 0:
        parts = np.asarray(amounts, dtype=float)[-(-(window.start_ns - start_ns) * len(amounts) // span) :]
        turns = window.requests / slots if slots else 0.0
        batches = _batched(parts, max(round(len(parts) / turns), 1) if turns else 1)
        if batches is not None and parts.any():
            # Means: a rate is a sum, and the median of short times is none.
            found["throughput"] = mann_kendall(batches.mean(axis=1))
    return found


def _goes_on(before: Trend, after: Trend | None) -> bool:
    """Whether what is left after a cut still has the trend that was real before it."""
    return (
        after is not None
        and after.p < STILL_CHANCE
        and abs(after.relative_change) >= MIN_DRIFT
        and after.relative_change * before.relative_change > 0
    )


def _real(trends: dict[str, Trend]) -> list[str]:
    """The metrics whose trend is not by chance (Holm 1979 over the metrics) and large enough to matter."""
    real = []
    for place, (name, trend) in enumerate(sorted(trends.items(), key=lambda item: item[1].p)):
        if trend.p >= DRIFT_CHANCE / (len(trends) - place):
            break
        if abs(trend.relative_change) >= MIN_DRIFT:
            real.append(name)
    return real


def _in_words(window: SteadyWindow, endless: list[str], slots: int | None) -> str:
    said = [f"{LATENCIES.get(name, name)} had not settled after half of the requests" for name in endless]
    for name in window.drifting:
        if name not in endless:
            trend = window.trends[name]
            verb = "rose" if trend.relative_change > 0 else "fell"
            said.append(
                f"{LATENCIES.get(name, name)} {verb} by {abs(trend.relative_change):.0%} over the window "
                f"(Kendall's tau {trend.tau:.2f}, p {trend.p:.1g})"
            )
    if window.steady is None:
        needed = MIN_BATCHES * max(MIN_BATCH, slots or 1)
        said.append(f"{window.requests} requests are too few to tell whether the level was steady; {needed} would do")
    elif window.steady:
        name, trend = max(window.trends.items(), key=lambda item: abs(item[1].relative_change))
        change = f"{LATENCIES.get(name, name)} changed by {abs(trend.relative_change):.1%} over the window"
        if abs(trend.relative_change) < MIN_DRIFT:
            said.append(f"no trend of {MIN_DRIFT:.0%} or more; at most, {change}")
        else:
            said.append(f"no trend that could not be chance; at most, {change} (p {trend.p:.1g})")
    if window.cut_transient:
        cut_by = LATENCIES.get(window.cut_by or "", window.cut_by)
        said.append(f"the first {window.cut_transient} requests, in which {cut_by} differed, are not measured")
    return "; ".join(said)
