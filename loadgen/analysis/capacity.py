"""What one replica carries: the loads of a sweep against the SLO, and the interval that the capacity lies in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.analysis.criteria import (
    SHOWS_LIMIT,
    Criterion,
    Word,
    criteria_of,
    needed_if_all_keep,
    tightest,
    word_of,
)
from loadgen.analysis.figures import LevelSummary
from loadgen.analysis.measure import Measured
from loadgen.analysis.slo import Slo
from loadgen.loads import Open

if TYPE_CHECKING:
    from numpy.typing import NDArray


Interval = tuple[float, float | None]  # the upper end is None where it is unknown
Ratio = tuple[float | None, float | None]  # either end is None where it is unknown


class Point(msgspec.Struct, kw_only=True):
    """One level, as the plan sees it.

    Attributes:
        index: of the level among those given.
        load: in words.
        rate_rps: what it is on the axis of the capacity: the rate of an open loop, or the
            throughput of a closed one, with the 95 % interval of that.
        concurrency: of a closed loop.
        criteria: at least one.
        word: what it says of its load.
        why: a reason that the level does not count, or what an undecided one would need.
        fit: the isotonic fit of the tightest criterion's share, over the points that count.
        chance_broken: that its load breaks the SLO, of the criterion that is the likeliest to be broken
            (:func:`chances_broken`); None where the level does not count, or a criterion has no interval.
        tight: index of the criterion that is nearest to failing, or fails by most.
    """

    index: int
    load: str
    rate_rps: float
    rate_ci95_rps: tuple[float, float]
    concurrency: int | None = None
    criteria: list[Criterion]
    word: Word
    why: str = ""
    fit: float | None = None
    chance_broken: float | None = None
    tight: int = 0

    @property
    def order(self) -> float:
        """What rises from one load to the next: near its limit a server's throughput no longer does."""
        return self.rate_rps if self.concurrency is None else self.concurrency


class Headroom(msgspec.Struct, kw_only=True):
    """Between two loads that were measured, one after the other: the chance of breaking the SLO lies between theirs."""

    loads: tuple[str, str]
    rates_rps: tuple[float, float]
    chance_broken: tuple[float, float]


class Bracket(msgspec.Struct, kw_only=True):
    """Where the capacity lies, in requests/s, and the points that it lies between; or why that is not known."""

    capacity_rps: Interval | None = None
    held: Point | None = None
    broken: Point | None = None
    refused: str = ""


def points_of(measured: list[Measured], slos: list[Slo], attainment: float) -> list[Point]:
    """Each level against the objectives, by rising rate; those that do not count last."""
    points = [_point(index, one, slos, attainment) for index, one in enumerate(measured)]
    points.sort(key=lambda point: (point.word == "not counted", point.order))
    counted = [p for p in points if p.word != "not counted" and p.criteria[p.tight].share is not None]
    for point, fit in zip(
        counted,
        isotonic([p.criteria[p.tight].share or 0.0 for p in counted], [p.criteria[p.tight].requests for p in counted]),
        strict=True,
    ):
        point.fit = fit
    _add_chances(counted)
    return points


def _add_chances(counted: list[Point]) -> None:
    by_load: dict[float, list[Point]] = {}
    for point in sorted(counted, key=lambda point: point.order):
        by_load.setdefault(point.order, []).append(point)
    curves = []
    for number in range(len(counted[0].criteria) if counted else 0):
        sizes: dict[float, float] = {}
        shares: dict[float, float] = {}
        for load, same in by_load.items():
            own = [point.criteria[number] for point in same]
            known = [(c.share, c.effective) for c in own if c.share is not None and c.effective is not None]
            if known:
                sizes[load] = math.fsum(size for _, size in known)
                shares[load] = math.fsum(share * size for share, size in known) / sizes[load]
        target = counted[0].criteria[number].target
        chances = chances_broken(list(shares.values()), list(sizes.values()), target)
        curves.append(dict(zip(shares, chances, strict=True)))
    for load, same in by_load.items():
        if all(load in curve for curve in curves):
            for point in same:
                point.chance_broken = max(curve[load] for curve in curves)


def chances_broken(shares: Sequence[float], sizes: Sequence[float], target: float) -> list[float]:
    """The chance, at each load by rising load, that the true share is below the target; it never falls.

    The shares are fitted so that they never rise. What is left out of order is so because a sample is small: that a
    load keeps the target is then taken from the best known of the loads above it, and that it breaks it from the
    best known below.

    Args:
        shares: of requests.
        sizes: of the effective samples.
    """
    fitted = isotonic(shares, sizes)
    chances = []
    for share, own, size in zip(fitted, shares, sizes, strict=True):
        pooled = math.fsum(n for n, other in zip(sizes, fitted, strict=True) if other == share)
        chances.append(chance_below(size if share == own else pooled, share, target))
    keeps = [chance for share, chance in zip(fitted, chances, strict=True) if share >= target]
    breaks = chances[len(keeps) :]
    return [*reversed(list(accumulate(reversed(keeps), min))), *accumulate(breaks, max)]


def chance_below(size: float, share: float, target: float) -> float:
    """The chance that a true share is below the target, of which a sample of independent requests has ``share``.

    Phi((target - share) sqrt(n / (target (1 - target)))): the score test that Wilson's interval is made of, so that
    at most 2.5 % is where a load ``holds``, and above 97.5 % where it ``breaks``. As a posterior it is the normal
    approximation with a flat prior. A beta posterior would put its 2.5 % elsewhere than the interval has its end,
    and call unsure what the word calls sure.
    """
    return 0.5 * math.erfc((share - target) * math.sqrt(size / (target * (1 - target)) / 2))


def headroom(points: Sequence[Point]) -> list[Headroom]:
    """The curve of the chance against the load: steps between loads that were measured, and nothing beyond them."""
    known = [point for point in points if point.chance_broken is not None]
    loads = list({point.order: point for point in sorted(known, key=lambda point: point.order)}.values())
    return [
        Headroom(
            loads=(lower.load, upper.load),
            rates_rps=(lower.rate_rps, upper.rate_rps),
            chance_broken=(lower.chance_broken, upper.chance_broken),
        )
        for lower, upper in pairwise(loads)
        if lower.chance_broken is not None and upper.chance_broken is not None
    ]


def isotonic(shares: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The least-squares fit that never rises (scipy's pool-adjacent-violators)."""
    from scipy.optimize import isotonic_regression

    if not shares:
        return []
    fitted: NDArray[Any] = isotonic_regression(shares, weights=weights, increasing=False).x
    return [float(value) for value in fitted]


def bracket(points: Sequence[Point]) -> Bracket:
    """The capacity, or why it is not known and what to measure.

    Rounds of one load are taken together: it holds where all of them hold, and breaks where one
    does and none holds. Where a load holds above one that breaks, the lower one is believed.
    """
    counted = [point for point in points if point.word != "not counted"]
    if not counted:
        reasons = "; ".join(f"{point.load}: {point.why}" for point in points) or "nothing was measured"
        return Bracket(refused=f"no level counts ({reasons})")
    loads: dict[float, list[Point]] = {}
    for point in counted:
        loads.setdefault(point.order, []).append(point)
    if len(loads) == 1:
        others = ", and no other counts" if len(counted) < len(points) else ""
        return Bracket(
            refused=f"a single load does not show where the limit is: {counted[0].load}{others}; sweep two or more, "
            "one of which breaks the SLO"
        )
    broken: list[Point] = []
    held: list[list[Point]] = []
    for _, same in sorted(loads.items()):
        words = {point.word for point in same}
        if words == {"holds"}:
            held.append(same)
        elif "breaks" in words and "holds" not in words:
            broken = same
            break
    if not held:
        if broken and broken[0].order == min(loads):
            lowest = f"{broken[0].load} ({broken[0].rate_rps:.3g} requests/s)"
            alone = broken[0].concurrency == 1
            advice = "with less in flight than one, only --rate goes lower" if alone else "sweep lower ones"
            return Bracket(refused=f"already the lowest load breaks the SLO: {lowest}; {advice}")
        return Bracket(refused="no load is shown to keep the SLO; loadgen plan says of each load what would show it")
    # What holds at a load holds at all lower ones: of the loads, that with the highest rate that is sure.
    lower = max((min(same, key=_sure_rate) for same in held), key=_sure_rate)
    if not broken:
        return Bracket(capacity_rps=(lower.rate_ci95_rps[0], None), held=lower)
    upper = max(broken, key=lambda point: point.rate_ci95_rps[1])
    # In a closed loop the throughput beyond the limit may be lower than at it.
    highest = max(point.rate_ci95_rps[1] for point in (lower, upper))
    return Bracket(capacity_rps=(lower.rate_ci95_rps[0], highest), held=lower, broken=upper)


def _sure_rate(point: Point) -> float:
    return point.rate_ci95_rps[0]


def _point(index: int, one: Measured, slos: list[Slo], attainment: float) -> Point:
    level = one.level
    figures = one.figures(slos)
    criteria = criteria_of(figures, slos, attainment)
    slots = level.load.slots
    rate, ci95 = _rate(level)
    statuses = {reason.status for reason in level.verdict.reasons}
    word = word_of(criteria)
    why = ""
    if rate is None:
        word, why = "not counted", "no request succeeded"
    elif statuses - SHOWS_LIMIT or (statuses and word != "breaks"):
        word, why = "not counted", f"its verdict is {level.verdict.status}"
    elif word == "undecided":
        most = max(c.requests for c in criteria)
        needed = needed_if_all_keep(criteria, slots)
        if needed is not None:
            advice = f"about {needed:,} would do if all keep to it"
        else:
            advice = "measure for longer, or at loads further apart"
        why = f"{most:,} requests leave it open; {advice}"
    return Point(
        index=index,
        load=level.load.name,
        rate_rps=rate or 0.0,
        rate_ci95_rps=ci95,
        concurrency=slots,
        criteria=criteria,
        word=word,
        why=why,
        tight=tightest(criteria),
    )


def _rate(level: LevelSummary) -> tuple[float | None, tuple[float, float]]:
    if isinstance(level.load, Open):
        return level.load.rate_rps, (level.load.rate_rps, level.load.rate_rps)
    found = level.request_throughput_rps
    if not found:
        return None, (0.0, 0.0)
    return found, level.ci95.get("request_throughput_rps", (found, found))
