"""95 % intervals of what was measured one request after another, and so is no independent sample.

Requests that are served together are slow together: an interval that takes them for independent
promises too much. Everything here rests on one figure, the long-run variance of a series: the
limit of n times the variance of the mean of n consecutive values. Divided by the variance of a
single value it is the integrated autocorrelation time, by which the effective sample is smaller
than the sample (:func:`autocorrelation`).

It is estimated by the mean square of the first K coefficients of the series' cosine transform
(Müller 2007, "A theory of robust long-run variance estimation"; Lazarus, Lewis, Stock and Watson
2018, "HAR inference: recommendations for practice"; in simulation, Foley and Goldsman 1999, on
orthonormally weighted standardized time series). That is batch means without edges: each
coefficient is one independent look at the slow movements of the series, and with K of them the
mean is Student's with K degrees of freedom. For K = n - 1 it is the textbook interval of
independent values.

Block bootstraps are not used. On the same simulated samples their 95 % intervals hold the truth
too seldom when the sample is short or the correlation long; docs/validation.md has both.

Values are to be in order of issue; order within the sample is the information.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.analysis.stats import CONFIDENCE, QUANTILES, quantile_floor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_COEFFICIENTS = 4  # fewer give intervals that are wider than useful: Student's t of 3 is 3.2
MIN_PERIODS = 6  # of a known length, in a sample that is to have an interval
FLATNESS = 0.05  # chance at which a flat spectrum is taken for one that is not
MIN_TIME = 0.05  # no sample counts for more than 20 times its size, however regular it looks
RATE_BINS = 256  # of a window, in which tokens or requests are counted for the interval of a rate
MIN_OF_EACH = 10  # passes and failures, below which their own correlation cannot be told


class Autocorrelation(msgspec.Struct, kw_only=True):
    """How far the values of a series depend on those before.

    Attributes:
        count: values in the series.
        time: the integrated autocorrelation time, in values: 1 for independent ones, above 1
            where neighbours are alike, below 1 where they make up for each other.
        coefficients: of the cosine transform that it was estimated from; the degrees of freedom
            of what is derived from it.
    """

    count: int
    time: float
    coefficients: int

    @property
    def effective(self) -> float:
        """The size of the independent sample whose mean is known equally well."""
        return self.count / self.time

    @property
    def normal_effective(self) -> float:
        """The same, smaller still by what Student's t is wider than a normal deviate.

        With it a formula for independent samples and a known variance, a binomial one for
        instance, gives an interval that allows for the estimated autocorrelation time.
        """
        from scipy import special

        tail = (1 + CONFIDENCE) / 2
        ratio = special.ndtri(tail) / special.stdtrit(self.coefficients, tail)
        return float(self.effective * ratio**2)


def autocorrelation(values: NDArray[Any], *, period: int | None = None) -> Autocorrelation:
    """The autocorrelation time of a series.

    Of the cosine transform's coefficients those up to 0.4 n^(2/3) are used, or fewer, down to 4,
    as long as their power is not flat: a segment at the low end with more power than the rest
    (F test, 5 %, at the split that is the clearest) means that the correlation is long, and only
    that segment tells of it.

    Args:
        values: one-dimensional, in order of issue.
        period: after how many values a pattern comes back, where that is known: the slots of a
            closed loop, since a server that batches serves them in waves. Only movements slower
            than four periods are then looked at (but at least 4 coefficients), so that a regular
            pattern, which averages out, is not taken for noise, and the variation between waves
            is not averaged away. The intervals below are None for fewer than 6 periods.
    """
    power = _power(values, period)
    variance = float(values.var(ddof=1)) if len(values) > 1 else 0.0
    time = float(power.mean()) / variance if variance > 0 else 1.0
    return Autocorrelation(count=len(values), time=max(time, MIN_TIME), coefficients=max(len(power), 1))


def mean_interval(values: NDArray[Any], *, period: int | None = None) -> tuple[float, float] | None:
    """The interval of the mean, in the unit of the values; None for fewer than two of them, or than six periods.

    Student's t on the long-run variance (see the module). ``period`` is that of
    :func:`autocorrelation`.
    """
    from scipy import special

    found = mean_error(values, period=period)
    if found is None:
        return None
    error, freedom = found
    mean = float(values.mean())
    half = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return mean - half, mean + half


def mean_error(values: NDArray[Any], *, period: int | None = None) -> tuple[float, int] | None:
    """The standard error of the mean, in the unit of the values, and its degrees of freedom.

    None as :func:`mean_interval` is, which rests on it.
    """
    n = len(values)
    if n < 2 or _too_short(n, period):
        return None
    power = _power(values, period)
    return math.sqrt(float(power.mean()) / n), len(power)


def quantile_intervals(
    values: NDArray[Any], quantiles: dict[str, float] = QUANTILES, *, period: int | None = None
) -> dict[str, tuple[float, float]]:
    """The intervals of several quantiles, by name, in the unit of the values; one of too small a sample is left out.

    Order statistics (Hutson 1999, "Calculating nonparametric confidence intervals for quantiles
    using fractional order statistics") of a sample that is as large as the effective one: the
    autocorrelation is that of the series of ones and zeros that says which values are below the
    estimate, since that series' mean is what is uncertain (Woodruff 1952).

    A quantile is left out when the effective sample (:attr:`Autocorrelation.normal_effective`) is below
    :func:`loadgen.analysis.stats.quantile_floor`: 662 for the 99th percentile; below it such intervals hold
    the truth too seldom. The median's effective sample is counted: that at a far quantile rests on
    the few values above it, and to leave out where those happen to lie close together would keep
    the intervals that are too narrow.
    """
    import numpy as np

    n = len(values)
    if n < quantile_floor(0.5) or _too_short(n, period):
        return {}
    ordered = np.sort(np.asarray(values, dtype=float))
    middle = _below(values, ordered, 0.5, period)
    found = {}
    for name, q in quantiles.items():
        if min(n, middle.normal_effective) < quantile_floor(q):
            continue
        ranks = _ranks(_below(values, ordered, q, period).normal_effective, q)
        if ranks is not None:
            low, high = np.interp(np.multiply(ranks, n + 1), np.arange(1, n + 1), ordered)
            found[name] = (float(low), float(high))
    return found


def quantile_error(interval: tuple[float, float]) -> float:
    """The standard error of a quantile whose 95 % interval is known, as Woodruff (1952) has it: an
    interval of order statistics is two normal deviates wide on either side, whatever the density."""
    from scipy import special

    return (interval[1] - interval[0]) / (2 * float(special.ndtri((1 + CONFIDENCE) / 2)))


def intervals(values: NDArray[Any], *, period: int | None = None) -> dict[str, tuple[float, float]]:
    """The ``ci95`` of a :class:`~loadgen.analysis.stats.Distribution`: of the mean and the quantiles that have one."""
    mean = mean_interval(values, period=period)
    return ({} if mean is None else {"mean": mean}) | quantile_intervals(values, period=period)


def bin_amounts(
    times_ns: NDArray[Any], amounts: NDArray[Any], start_ns: int, end_ns: int, bins: int = RATE_BINS
) -> NDArray[np.float64]:
    """What came in each of ``bins`` equal parts of a window: tokens, say, or ended requests.

    Adds up over records: a level's amounts are the sum of those of its requests.
    """
    import numpy as np

    # Relative to the window: a float has no room for nanoseconds since the machine's start.
    since = np.asarray(times_ns, dtype=np.int64) - start_ns
    inside = (since >= 0) & (since <= end_ns - start_ns)
    place = np.minimum(since[inside] * bins // max(end_ns - start_ns, 1), bins - 1)
    binned: NDArray[np.float64] = np.bincount(
        place, weights=np.asarray(amounts, dtype=float)[inside], minlength=bins
    ).astype(float)
    return binned


def rate_interval(amounts: NDArray[Any], window_s: float) -> tuple[float, float] | None:
    """The interval of a throughput, in amounts per second.

    The mean of the amounts in equal parts of the window (:func:`bin_amounts`), as
    :func:`mean_interval` has it; not below 0. None when fewer than :data:`MIN_OF_EACH` parts hold
    anything: a handful of requests says nothing about how evenly they come.
    """
    mean = mean_interval(amounts) if _rate_is_known(amounts, window_s) else None
    if mean is None:
        return None
    bin_s = window_s / len(amounts)
    return max(mean[0] / bin_s, 0.0), mean[1] / bin_s


def rate_error(amounts: NDArray[Any], window_s: float) -> float | None:
    """The standard error of a throughput, in amounts per second; None as :func:`rate_interval` is."""
    found = mean_error(amounts) if _rate_is_known(amounts, window_s) else None
    return None if found is None else found[0] * len(amounts) / window_s


def _rate_is_known(amounts: NDArray[Any], window_s: float) -> bool:
    import numpy as np

    return window_s > 0 and int(np.count_nonzero(amounts)) >= MIN_OF_EACH


def share_interval(
    passed: NDArray[np.bool_], like: NDArray[Any] | None = None, *, period: int | None = None
) -> tuple[float, float] | None:
    """The interval of the share of requests that passed, in 0..1; None for no request, or fewer than six periods.

    Wilson's (1927) score interval with the effective sample in place of the sample.

    Args:
        passed: of each request, in order of issue.
        like: the latency that is judged, of the same requests, NaN where there is none. Where
            fewer than 10 failed (or passed) their own autocorrelation cannot be told, and that of
            the 10 highest (lowest) of these values, the nearest to failing, stands in for it.
            Without it such requests are taken for independent.
        period: that of :func:`autocorrelation`.
    """
    import numpy as np
    from scipy import special

    n = len(passed)
    if n == 0 or _too_short(n, period):
        return None
    passes = int(np.count_nonzero(passed))
    size: float = n
    if min(passes, n - passes) >= MIN_OF_EACH:
        size = autocorrelation(np.asarray(passed, dtype=float), period=period).normal_effective
    elif like is not None:
        known = np.asarray(like, dtype=float)
        known = known[~np.isnan(known)]
        if len(known) >= 2 * MIN_OF_EACH:
            far = MIN_OF_EACH / len(known)
            nearest = _below(known, np.sort(known), 1 - far if passes > n - passes else far, period)
            size = min(n, nearest.normal_effective * n / len(known))
    share, z = passes / n, float(special.ndtri((1 + CONFIDENCE) / 2))
    centre = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(share * (1 - share) / size + (z / (2 * size)) ** 2)
    # At the ends the formula gives 0 and 1, but for rounding.
    return max(centre - half, 0.0) if passes else 0.0, min(centre + half, 1.0) if passes < n else 1.0


def _too_short(count: int, period: int | None) -> bool:
    """Whether there are too few waves to tell how unlike each other they are."""
    return period is not None and count < MIN_PERIODS * period


def _power(values: NDArray[Any], period: int | None) -> NDArray[np.float64]:
    """Squares of those coefficients of the cosine transform that tell of the long-run variance.

    The mean's own coefficient is left out. Each has the long-run variance for its mean, as far as
    the series' spectrum is flat over them.
    """
    import numpy as np
    from scipy import special
    from scipy.fft import dct

    n = len(values)
    if n < 2:
        return np.zeros(1)
    series = np.asarray(values, dtype=float)
    count = int(0.4 * n ** (2 / 3))
    if period is not None:
        count = min(count, n // max(2 * period, 1))
    count = min(max(count, MIN_COEFFICIENTS), n - 1)
    power: NDArray[np.float64] = dct(series - series.mean(), norm="ortho")[1 : count + 1] ** 2
    while len(power) > MIN_COEFFICIENTS:
        splits = np.unique(np.geomspace(MIN_COEFFICIENTS, len(power) - 1, 12).astype(int))
        sums = np.cumsum(power)
        rest = np.maximum((sums[-1] - sums[splits - 1]) / (len(power) - splits), np.finfo(float).tiny)
        chances = special.fdtrc(splits, len(power) - splits, sums[splits - 1] / splits / rest)
        clearest = int(chances.argmin())
        if chances[clearest] >= FLATNESS:
            break
        power = power[: splits[clearest]]
    return power


def _below(values: NDArray[Any], ordered: NDArray[np.float64], q: float, period: int | None) -> Autocorrelation:
    """The autocorrelation of whether a value is below quantile ``q``; one that equals it is half below."""
    import numpy as np

    estimate = np.quantile(ordered, q)
    series = np.asarray(values, dtype=float)
    return autocorrelation((series < estimate) + 0.5 * (series == estimate), period=period)


def _ranks(size: float, q: float) -> tuple[float, float] | None:
    """The ranks, as shares of size + 1, of the order statistics that bound quantile ``q``.

    The rank r for which the r-th smallest of ``size`` values is at or below the quantile with
    97.5 %, and with 2.5 %; both by the binomial distribution, continued to fractions.
    """
    from scipy import special

    tail = (1 - CONFIDENCE) / 2
    low, high = special.bdtrik([tail, 1 - tail], size, q) + 1
    if not (low > 1 and high <= size):  # else the sample is too small to bound it on that side
        return None
    return float(low / (size + 1)), float(high / (size + 1))
