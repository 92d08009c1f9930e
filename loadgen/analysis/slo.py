"""Service-level objectives: what ``--slo`` says, which requests meet it, and what that makes of a level.

``ttft=500ms`` is asked of every request: it makes goodput and attainment. ``ttft:p99=500ms`` is
asked of the level: 99 % of its requests within 500 ms. In either a request that failed is one
that did not meet the objective, so that refusing requests never helps (arXiv 2410.14257).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, get_args

import msgspec

from loadgen.analysis.intervals import bin_amounts, rate_interval, share_interval
from loadgen.analysis.outcome import Latency, Outcome
from loadgen.errors import UsageError
from loadgen.units import NS_PER_S, parse_duration_s

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Decision = Literal["met", "not met", "undecided"]

ATTAINMENT = 0.99  # share of requests that must meet what is asked of each, where no other is given
EXAMPLE = "ttft=500ms,tpot=50ms,e2e=10s, or ttft:p99=500ms for a percentile"
_ITEM = re.compile(r"(?P<metric>[a-z0-9_]+)(?::(?P<percentile>[^=]*))?=(?P<limit>.*)", re.ASCII)
_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)", re.ASCII)


class Slo(msgspec.Struct, kw_only=True, frozen=True):
    """One objective: ``metric`` of at most ``limit_s``.

    ``percentile`` is None where every request is asked, else the per cent of a level's requests
    that are to be within the limit.
    """

    metric: Latency
    limit_s: float
    percentile: float | None = None

    @property
    def text(self) -> str:
        """As ``--slo`` takes it."""
        name = self.metric if self.percentile is None else f"{self.metric}:p{self.percentile:g}"
        ms = self.limit_s * 1e3
        return f"{name}={self.limit_s:.10g}s" if ms >= 1000 else f"{name}={ms:.10g}ms"

    def is_met(self, one: Outcome) -> bool | None:
        """Whether a request is within the limit. One that failed is not; None where the metric is undefined."""
        if one.failed:
            return False
        value = one.latency_s(self.metric)
        return None if value is None else value <= self.limit_s


class PercentileFigures(msgspec.Struct, kw_only=True):
    """An objective on a percentile, and how the level did.

    Attributes:
        slo: as ``--slo`` takes it.
        requests: those that the metric is defined for, and those that failed.
        share: of them, within the limit.
        ci95: the 95 % interval of the share.
        decision: ``met`` when the whole interval is at or above the percentile, ``not met`` when
            it is below, else ``undecided``. That is the interval of the percentile against the
            limit, turned round: the upper end of the one is at the limit where the lower end of
            the other is at the percentile; but failed requests, which have no latency, are in it.
    """

    slo: str
    requests: int
    share: float | None = None
    ci95: tuple[float, float] | None = None
    decision: Decision = "undecided"


class SloFigures(msgspec.Struct, kw_only=True):
    """What a level's requests make of the objectives.

    Attributes:
        slos: as ``--slo`` takes them.
        offered: requests issued in the window, whatever became of them.
        good: those that met every objective asked of a request.
        undefined: per metric that an objective is about, the successful requests without it.
        goodput_rps: ``good`` over the window; None when nothing is asked of a request, or when an
            objective's metric is defined for none, as TTFT is of replies that are not streamed.
        goodput_ci95_rps: its 95 % interval.
        attainment: ``good`` over ``offered``; None as goodput is, or when nothing was offered.
        attainment_ci95: its 95 % interval.
        percentiles: objectives on percentiles.
        failed: requests offered that failed.
        missed: per objective, as ``--slo`` takes it, the share of the successful requests beyond the
            limit; left out where the metric is defined for none.
    """

    slos: list[str]
    offered: int
    good: int
    undefined: dict[str, int]
    goodput_rps: float | None = None
    goodput_ci95_rps: tuple[float, float] | None = None
    attainment: float | None = None
    attainment_ci95: tuple[float, float] | None = None
    percentiles: list[PercentileFigures] = []
    failed: int = 0
    missed: dict[str, float] = {}


def parse_slos(text: str) -> list[Slo]:
    """The objectives of ``--slo``, such as ``ttft=500ms,tpot=50ms`` or ``ttft:p99=500ms``.

    Raises:
        UsageError: an unknown metric, a limit without a unit, a percentile that is none, or the
            same objective twice; with what to write.
    """
    slos: list[Slo] = []
    for item in text.split(","):
        slo = _parse(item.strip())
        if any((slo.metric, slo.percentile) == (other.metric, other.percentile) for other in slos):
            raise UsageError(f"--slo has two limits for {item.strip().split('=')[0]}; keep one")
        slos.append(slo)
    return slos


def passes(one: Outcome, slos: Iterable[Slo]) -> bool:
    """Whether a request succeeded and breaks no objective that is asked of every request.

    A metric that is undefined for a request, such as TPOT of a single token, breaks nothing.
    """
    return not one.failed and all(slo.is_met(one) is not False for slo in slos if slo.percentile is None)


def slo_figures(
    outcomes: Iterable[Outcome], slos: list[Slo], *, start_ns: int, end_ns: int, slots: int | None = None
) -> SloFigures:
    """Goodput, attainment and percentiles of one level.

    Args:
        outcomes: of the measured requests, in any order; those issued outside the window do not count.
        slos: at least one.
        start_ns, end_ns: the measured window.
        slots: the concurrency of a closed loop, for the intervals (see :mod:`loadgen.analysis.intervals`).
    """
    import numpy as np

    offered = sorted(
        (one for one in outcomes if start_ns <= one.issued_ns <= end_ns), key=lambda one: (one.issued_ns, one.seq)
    )
    passed = np.array([passes(one, slos) for one in offered], dtype=bool)
    successes = [one for one in offered if not one.failed]
    undefined: dict[str, int] = {
        name: sum(one.latency_s(name) is None for one in successes) for name in (slo.metric for slo in slos)
    }
    figures = SloFigures(
        slos=[slo.text for slo in slos],
        offered=len(offered),
        good=int(passed.sum()),
        undefined=undefined,
        percentiles=[_percentile(offered, slo, slots) for slo in slos if slo.percentile is not None],
        failed=len(offered) - len(successes),
        missed={
            slo.text: judged.count(False) / len(judged)
            for slo in slos
            if (judged := [met for one in successes if (met := slo.is_met(one)) is not None])
        },
    )
    asked = [slo for slo in slos if slo.percentile is None]
    if not asked or (successes and any(undefined[slo.metric] == len(successes) for slo in asked)):
        return figures
    window_s = (end_ns - start_ns) / NS_PER_S
    if window_s > 0:
        figures.goodput_rps = figures.good / window_s
        issued = np.array([one.issued_ns for one in offered], dtype=np.int64)
        figures.goodput_ci95_rps = rate_interval(bin_amounts(issued, passed, start_ns, end_ns), window_s)
    if offered:
        figures.attainment = figures.good / len(offered)
        figures.attainment_ci95 = share_interval(passed, _strain(offered, asked), period=slots)
    return figures


def _parse(item: str) -> Slo:
    found = _ITEM.fullmatch(item)
    if found is None:
        raise UsageError(f"not an objective: {item!r}; write --slo {EXAMPLE}")
    name, limit = found["metric"], found["limit"]
    metrics: dict[str, Latency] = {name: name for name in get_args(Latency)}
    if name not in metrics:
        raise UsageError(f"--slo knows ttft, tpot and e2e, not {name!r}; write {EXAMPLE}")
    percentile = None
    if found["percentile"] is not None:
        number = _PERCENTILE.fullmatch(found["percentile"])
        percentile = float(number[1]) if number else 0.0
        if percentile == 0:
            raise UsageError(f"not a percentile: {found['percentile']!r} in {item!r}; write {name}:p99={limit}")
    try:
        limit_s = parse_duration_s(limit)
    except UsageError as error:
        if re.fullmatch(r"\d+(\.\d+)?", limit):
            raise UsageError(f"--slo {item} has no unit; write {item}ms or {item}s") from None
        raise UsageError(f"--slo {item}: {error}") from None
    return Slo(metric=metrics[name], limit_s=limit_s, percentile=percentile)


def _percentile(offered: list[Outcome], slo: Slo, slots: int | None) -> PercentileFigures:
    import numpy as np

    assert slo.percentile is not None
    judged = [(one, met) for one in offered if (met := slo.is_met(one)) is not None]
    figures = PercentileFigures(slo=slo.text, requests=len(judged))
    if not judged or (any(not one.failed for one in offered) and all(one.failed for one, _ in judged)):
        return figures  # nothing is known of the metric
    within = np.array([met for _, met in judged], dtype=bool)
    figures.share = float(within.mean())
    figures.ci95 = share_interval(within, _strain([one for one, _ in judged], [slo]), period=slots)
    if figures.ci95 is not None:
        target = slo.percentile / 100
        if figures.ci95[0] >= target:
            figures.decision = "met"
        elif figures.ci95[1] < target:
            figures.decision = "not met"
    return figures


def _strain(outcomes: list[Outcome], slos: list[Slo]) -> NDArray[np.float64]:
    """Of each request the latency that is nearest to its limit, over that limit; NaN where there is none."""
    import numpy as np

    ratios = [
        [value / slo.limit_s for slo in slos if (value := one.latency_s(slo.metric)) is not None] for one in outcomes
    ]
    return np.array([max(of_one, default=math.nan) for of_one in ratios], dtype=float)
