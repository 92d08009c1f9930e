"""Statistics of samples: what is shown, with which interval, and from which sample size on.

scipy is imported on first use: it takes a quarter of a second, which a run of one request has no
use for.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

QUANTILES = {"p50": 0.50, "p90": 0.90, "p95": 0.95, "p99": 0.99}
CONFIDENCE = 0.95


class Distribution(msgspec.Struct, kw_only=True):
    """The ``D`` of summary.json; the unit is in the name of the field that holds it.

    ``stdev`` is that of the sample (n - 1). Quantiles interpolate linearly between order
    statistics (Hyndman and Fan 1996, type 7, numpy's default); one whose sample is below its floor
    (:func:`quantile_floor`) is null. ``ci95`` has a 95 % interval for the mean and for each quantile
    shown. Those of a level's latencies allow for requests that are alike
    (:func:`loadgen.analysis.intervals.intervals`); those of token counts take the values as independent
    (Student's t, order statistics).
    """

    count: int
    mean: float | None = None
    stdev: float | None = None
    min: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None
    ci95: dict[str, tuple[float, float]] = {}

    def half_width(self, name: str) -> float | None:
        """Half of the interval of ``mean`` or of a quantile."""
        interval = self.ci95.get(name)
        return None if interval is None else (interval[1] - interval[0]) / 2


@functools.cache
def quantile_floor(q: float) -> int:
    """The smallest sample for which quantile ``q`` is shown: 11, 64, 130 and 662 for the 50th,
    90th, 95th and 99th percentile.

    The smallest n at which, were the true share of values below the estimate only ``q``, at most
    one of n values above it would be seen with a probability of at most 1 %. That is the minimum
    query count of MLPerf's early stopping (MLCommons inference policies, "Early Stopping").
    """
    n = 2
    while q**n + n * (1 - q) * q ** (n - 1) > 0.01:
        n += 1
    return n


def describe(values: NDArray[Any], *, independent: bool = True) -> Distribution:
    """The distribution of a sample.

    Args:
        values: one-dimensional.
        independent: False leaves the intervals out, for samples that plainly depend on each other,
            such as the gaps within one request.
    """
    import numpy as np

    n = len(values)
    if n == 0:
        return Distribution(count=0)
    ordered = np.sort(np.asarray(values, dtype=float))
    result = Distribution(
        count=n,
        mean=float(ordered.mean()),
        stdev=float(ordered.std(ddof=1)) if n > 1 else None,
        min=float(ordered[0]),
        max=float(ordered[-1]),
    )
    for name, q in QUANTILES.items():
        if n >= quantile_floor(q):
            setattr(result, name, float(np.quantile(ordered, q)))
    if independent and n > 1:
        result.ci95 = _intervals(ordered, result)
    return result


def _intervals(ordered: NDArray[np.float64], result: Distribution) -> dict[str, tuple[float, float]]:
    from scipy import special

    n = len(ordered)
    assert result.mean is not None and result.stdev is not None
    half = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * result.stdev / math.sqrt(n)
    intervals = {"mean": (result.mean - half, result.mean + half)}
    tail = (1 - CONFIDENCE) / 2
    for name, q in QUANTILES.items():
        if getattr(result, name) is None:
            continue
        low = _binomial_quantile(tail, n, q)
        high = _binomial_quantile(1 - tail, n, q) + 1
        if low >= 1 and high <= n:  # else the sample is too small to bound it on that side
            intervals[name] = (float(ordered[low - 1]), float(ordered[high - 1]))
    return intervals


def _binomial_quantile(p: float, n: int, q: float) -> int:
    """The smallest k with P(Binomial(n, q) <= k) >= p."""
    from scipy import special

    k = max(0, math.ceil(float(special.bdtrik(p, n, q))))
    while k > 0 and special.bdtr(k - 1, n, q) >= p:
        k -= 1
    return k
