"""From a sweep to a capacity plan: what one replica carries under the SLO, and what that costs.

The capacity is an interval between two loads that were measured: the highest at which the lower
end of the share of requests within the SLO still reaches its target, and the lowest at which even
the upper end does not. The only assumption is that more load never raises the share, so that a
bound at one load holds for all on its one side. Between the two nothing is claimed, and nothing is
extrapolated beyond the loads of the sweep.

The chance that a load breaks the SLO (:func:`chances_broken`) is what the same intervals say at other
confidences than 95 %, made to rise with the load by the same assumption.

    replicas = ceil(peak rate / (capacity * (1 - headroom))) + spares

Everything that follows from the capacity is given for both of its ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.analysis.criteria import (
    SHOWS_LIMIT,
    Criterion,
    Word,
    binds,
    criteria_of,
    needed_if_all_keep,
    tightest,
    word_of,
)
from loadgen.analysis.figures import LevelSummary
from loadgen.analysis.measure import Measured, measure_run
from loadgen.analysis.slo import ATTAINMENT, Slo, parse_slos
from loadgen.errors import UsageError
from loadgen.loads import Closed, Open, parse_arrival
from loadgen.records import Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

HOURS_PER_MONTH = 730.5
SPEEDS = (10, 20, 30, 50)  # output tokens/s of one user
GROWTH = (0.25, 0.5, 1.0)
Interval = tuple[float, float | None]  # the upper end is None where it is unknown
Ratio = tuple[float | None, float | None]  # either end is None where it is unknown


class Demand(msgspec.Struct, kw_only=True):
    """What is to be served, and at what price.

    Attributes:
        slos: at least one.
        attainment: the share of requests, in 0..1, that are to meet what is asked of each request.
        peak_rps: requests/s at the peak; None: only one replica is looked at.
        duty: mean rate over peak rate, in 0..1.
        headroom: the share of a replica's capacity that is kept free at the peak.
        spares: replicas beyond what the peak needs.
        growth: by how much the peak may grow; 0.25 is 25 %.
        gpu_hour: the price of one GPU for one hour, in whatever currency.
        gpus: per replica; None: those that the run's engine had.
    """

    slos: list[Slo]
    attainment: float = ATTAINMENT
    peak_rps: float | None = None
    duty: float = 1.0
    headroom: float = 0.2
    spares: int = 0
    growth: Sequence[float] = GROWTH
    gpu_hour: float | None = None
    gpus: int | None = None


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


class Speed(msgspec.Struct, kw_only=True):
    """The capacity at which users get so many tokens/s each, in place of the SLO's TPOT.

    None where it cannot be told.
    """

    tokens_per_s: int
    capacity_rps: Interval | None
    output_tps: Interval | None = None
    per_million_output: Interval | None = None


class Fleet(msgspec.Struct, kw_only=True):
    """Replicas for a peak: of the capacity's lower end, and of its upper one (None where that is unknown).

    Costs are in the currency of the price, at the lower end and at the upper one; None without a price.
    """

    peak_rps: float
    replicas: int
    replicas_at_best: int | None
    gpus: int
    cost_per_hour: Interval | None = None
    cost_per_month: Interval | None = None
    per_million_output: Interval | None = None
    per_million_total: Interval | None = None
    per_thousand_requests: Interval | None = None


class Burst(msgspec.Struct, kw_only=True):
    """What arrivals of another kind make of the capacity.

    Attributes:
        arrival: as ``--arrival`` takes it; ``cv`` is the coefficient of variation of its gaps.
        ratio: of the capacity to that with Poisson arrivals; an end that is unknown is None.
    """

    run: str
    arrival: str
    cv: float
    capacity_rps: Interval | None
    ratio: Ratio | None


class Plan(msgspec.Struct, kw_only=True):
    """The plan of one run.

    Attributes:
        setting: what has to be the same in runs that differ only in their arrivals.
        arrival: of an open loop, as ``--arrival`` takes it; None where levels differ in it.
        headroom: the chance of breaking the SLO between neighbouring loads, by rising load.
        bursts: of a run with Poisson arrivals: what the runs beside it say that differ only in these
            (:func:`add_bursts`).
        refused: why there is none, and what to measure; then nothing below it is set.
        capacity_rps: of one replica; the upper end is None where the sweep never reached the limit.
        binds: what breaks first.
        input_tokens, output_tokens: means per request at the load of the capacity's lower end.
        output_tps, total_tps: tokens/s of a replica at its capacity.
        in_flight: requests in a replica at its lower capacity (Little's law).
        per_million_output, per_million_total, per_thousand_requests: cost of a replica that is
            always at its capacity.
        fleets: for the peak, then for the grown ones.
        energy_j_per_output_token: of all GPUs of the replica, at the lower capacity's level.
        limits: what the plan does not know, in words.
    """

    run: str
    engine: str
    simulated: bool
    workload: str
    gpu: str
    gpus_per_replica: int
    demand: Demand
    points: list[Point]
    setting: dict[str, str] = {}
    arrival: str | None = None
    headroom: list[Headroom] = []
    bursts: list[Burst] = []
    refused: str | None = None
    capacity_rps: Interval | None = None
    binds: str | None = None
    input_tokens: float | None = None
    output_tokens: float | None = None
    output_tps: Interval | None = None
    total_tps: Interval | None = None
    in_flight: float | None = None
    per_million_output: Interval | None = None
    per_million_total: Interval | None = None
    per_thousand_requests: Interval | None = None
    fleets: list[Fleet] = []
    speeds: list[Speed] = []
    scale_at_rps: float | None = None
    energy_j_per_output_token: float | None = None
    limits: list[str] = []

    @property
    def total_tokens(self) -> float | None:
        """Input and output tokens of a request; None where either is unknown."""
        if self.input_tokens is None or self.output_tokens is None:
            return None
        return self.input_tokens + self.output_tokens


def plan_run(run: Path, slos: list[Slo] | None = None, **demand: Any) -> Plan:
    """The plan of a run folder.

    Args:
        slos: objectives; None: those that the sweep itself was given.
        demand: the other fields of :class:`Demand`.

    Raises:
        RunFolderError: it cannot be read.
        UsageError: there is no objective.
    """
    manifest, _, measured = measure_run(run, ())
    if slos is None:
        if not manifest.load.slo:
            raise UsageError(f"{run}: the sweep had no objectives; give --slo ttft=500ms,tpot=50ms")
        slos = parse_slos(manifest.load.slo)
    return make_plan(run.name, manifest, measured, Demand(slos=slos, **demand))


def make_plan(run: str, manifest: Manifest, measured: list[Measured], demand: Demand) -> Plan:
    """The plan of levels that are known.

    Args:
        run: its name.
        measured: in any order.
    """
    closed = [one for one in measured if isinstance(one.level.load, Closed)]
    left_out = len(closed) if len(closed) < len(measured) else 0
    if left_out:
        measured = [one for one in measured if not isinstance(one.level.load, Closed)]
    points = points_of(measured, demand.slos, demand.attainment)
    owned = len(manifest.engine.gpu_uuids)
    engine = manifest.engine
    plan = Plan(
        run=run,
        engine=engine.name,
        simulated=manifest.simulated,
        workload=_workload(measured),
        gpu=manifest.gpus[0].name if manifest.gpus and owned else "",
        gpus_per_replica=demand.gpus or owned or 1,
        demand=demand,
        points=points,
        setting=_setting(manifest),
        arrival=_arrival(measured),
        headroom=headroom(points),
    )
    found = bracket(points)
    capacity = found.capacity_rps
    aside = f"{left_out} closed-loop levels of this run are left out: a plan rests on one kind of load"
    if capacity is None or found.held is None:
        plan.refused = f"{found.refused}; {aside}" if left_out else found.refused
        return plan
    plan.limits = _limits(plan, manifest, measured, found, assumed=demand.gpus is None and not owned)
    if left_out:
        plan.limits.append(f"{aside}, here the open loop.")
    lower = measured[found.held.index]
    plan.capacity_rps = capacity
    plan.binds = _binds(found.broken, measured, demand.slos)
    plan.input_tokens = lower.level.input_tokens.mean
    plan.output_tokens = lower.level.output_tokens.mean
    plan.output_tps = scaled(capacity, plan.output_tokens)
    plan.total_tps = scaled(capacity, plan.total_tokens)
    plan.in_flight = None if lower.level.e2e_s.mean is None else capacity[0] * lower.level.e2e_s.mean
    plan.scale_at_rps = capacity[0] * (1 - demand.headroom)
    plan.energy_j_per_output_token = None if lower.level.gpu is None else lower.level.gpu.energy_per_output_token_j
    if demand.gpu_hour is not None:
        hourly = demand.gpu_hour * plan.gpus_per_replica
        plan.per_thousand_requests = _cost(hourly, capacity, 1e3)
        plan.per_million_output = _cost(hourly, plan.output_tps, 1e6)
        plan.per_million_total = _cost(hourly, plan.total_tps, 1e6)
    if demand.peak_rps is not None:
        plan.fleets = [
            _fleet(plan, demand.peak_rps * factor, capacity) for factor in (1.0, *(1 + g for g in demand.growth))
        ]
    plan.speeds = [_speed(plan, measured, speed) for speed in SPEEDS]
    return plan


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


def replicas_for(peak_rps: float, capacity_rps: float, headroom: float, spares: int) -> int:
    """ceil(peak / (capacity * (1 - headroom))) + spares, and a quotient that is whole but for rounding is whole."""
    quotient = peak_rps / (capacity_rps * (1 - headroom))
    return max(math.ceil(quotient * (1 - 1e-12)), 1) + spares


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


def _binds(broken: Point | None, measured: list[Measured], slos: list[Slo]) -> str:
    """What breaks at the lowest load that does, in words."""
    if broken is None:
        return "nothing up to the highest load of the sweep: the limit was not found"
    one = measured[broken.index]
    return binds(one.figures(slos), one.level.server, broken.load)


def _setting(manifest: Manifest) -> dict[str, str]:
    engine = manifest.engine
    words = {key: str(getattr(engine, key)) for key in ("kind", "version", "model", "endpoint", "dummy_weights")}
    return words | {
        "arguments": " ".join(engine.arguments),
        "gpus": ", ".join(gpu.name for gpu in manifest.gpus),
        "prompts": manifest.dataset.source,
        "simulated": str(manifest.simulated),
    }


def _arrival(measured: list[Measured]) -> str | None:
    kinds = {m.level.load.arrival if isinstance(m.level.load, Open) else None for m in measured}
    return kinds.pop() if len(kinds) == 1 else None


def _workload(measured: list[Measured]) -> str:
    """The tokens of the requests, in words."""
    into = [m.level.input_tokens for m in measured if m.level.input_tokens.count]
    out = [m.level.output_tokens for m in measured if m.level.output_tokens.count]

    def words(found: list[Any], name: str) -> str:
        if not found:
            return f"{name} tokens unknown"
        low, high = min(d.min for d in found), max(d.max for d in found)
        mean = sum(d.mean * d.count for d in found) / sum(d.count for d in found)
        spread = f" ({low:,.0f} to {high:,.0f})" if low != high else ""
        return f"{mean:,.0f} tokens {name}{spread}"

    return f"{words(into, 'in')}, {words(out, 'out')} a request"


def _limits(plan: Plan, manifest: Manifest, measured: list[Measured], found: Bracket, assumed: bool) -> list[str]:
    counted = [point for point in plan.points if point.word != "not counted"]
    capacity = found.capacity_rps or (0.0, None)
    low, high = min(p.rate_rps for p in counted), max(p.rate_rps for p in counted)
    words = [
        f"It rests on {len(counted)} of {len(plan.points)} levels, from {low:.3g} to {high:.3g} requests/s a replica, "
        "and says nothing of other prompts, lengths, engines or machines.",
    ]
    if capacity[1] is None:
        words.append(
            f"No load of the sweep breaks the SLO: a replica may carry more than {capacity[0]:.3g} requests/s. "
            "Sweep higher loads to find the limit."
        )
    elif capacity[1] > 1.25 * capacity[0]:
        words.append("The two ends are more than 25 % apart: sweep loads between them to narrow the plan.")
    if found.broken is not None and any(p.word == "holds" and p.order > found.broken.order for p in counted):
        words.append("A higher load kept the SLO where a lower one broke it: the lower one is believed. Measure again.")
    if any(point.concurrency for point in counted):
        words.append(
            "Measured in a closed loop, where a slow answer holds the next request back. Traffic that comes when it "
            "likes needs more room at the same rate: confirm with loadgen sweep --rate "
            f"{capacity[0]:.3g} and plan that run."
        )
    else:
        kinds = sorted({getattr(m.level.load, "arrival", None) or "unknown" for m in measured})
        words.append(_burst_advice(", ".join(kinds)))
        seconds = min(m.level.duration_s for m in measured)
        words.append(
            f"The shortest level measured {seconds:.0f} s: a load just beyond the limit builds up its queue slowly, "
            "and may need longer to show it."
        )
    if plan.demand.peak_rps is not None:
        words.append("Replicas are taken to share the traffic evenly, and to be alike.")
    if assumed and plan.demand.gpu_hour is not None:
        words.append("The run names no GPU of its engine: one a replica is assumed; --gpus-per-replica says otherwise.")
    if manifest.engine.dummy_weights:
        words.append("The engine had made-up weights: real ones may stop or speculate otherwise.")
    return words


def _burst_advice(arrivals: str) -> str:
    return (
        f"Arrivals were {arrivals}. Real traffic comes in bursts, which need more room (ServeGen, arXiv "
        "2505.09999): sweep --arrival gamma:2 and gamma:4 too, and give those runs beside this one."
    )


def _fleet(plan: Plan, peak: float, capacity: Interval) -> Fleet:
    demand = plan.demand
    low = replicas_for(peak, capacity[0], demand.headroom, demand.spares)
    best = None if capacity[1] is None else replicas_for(peak, capacity[1], demand.headroom, demand.spares)
    fleet = Fleet(peak_rps=peak, replicas=low, replicas_at_best=best, gpus=low * plan.gpus_per_replica)
    if demand.gpu_hour is None:
        return fleet
    price = demand.gpu_hour * plan.gpus_per_replica
    fleet.cost_per_hour = (low * price, None if best is None else best * price)
    fleet.cost_per_month = scaled(fleet.cost_per_hour, HOURS_PER_MONTH)
    requests = peak * demand.duty * 3600  # an hour
    fleet.per_thousand_requests = scaled(fleet.cost_per_hour, 1e3 / requests)
    if plan.output_tokens:
        fleet.per_million_output = scaled(fleet.cost_per_hour, 1e6 / (requests * plan.output_tokens))
    if plan.total_tokens:
        fleet.per_million_total = scaled(fleet.cost_per_hour, 1e6 / (requests * plan.total_tokens))
    return fleet


def _speed(plan: Plan, measured: list[Measured], speed: int) -> Speed:
    slos = slos_at_speed(plan.demand.slos, speed)
    capacity = bracket(points_of(measured, slos, plan.demand.attainment)).capacity_rps
    found = Speed(tokens_per_s=speed, capacity_rps=capacity)
    if capacity is not None:
        found.output_tps = scaled(capacity, plan.output_tokens)
        if plan.demand.gpu_hour is not None:
            found.per_million_output = _cost(plan.demand.gpu_hour * plan.gpus_per_replica, found.output_tps, 1e6)
    return found


def slos_at_speed(slos: Sequence[Slo], tokens_per_s: float) -> list[Slo]:
    """The objectives where each user is to get so many output tokens/s: that in place of TPOT and E2E."""
    return [slo for slo in slos if slo.metric == "ttft"] + [Slo(metric="tpot", limit_s=1 / tokens_per_s)]


def add_bursts(plans: Sequence[Plan]) -> None:
    """Fills in ``bursts`` of the plans with Poisson arrivals, from those that differ only in their arrivals."""
    for plan in plans:
        alike = [other for other in plans if _alike(plan, other) and cv_of(other.arrival) is not None]
        if plan.arrival != "poisson" or len({other.arrival for other in alike}) < 2:
            continue
        plan.bursts = [
            Burst(
                run=other.run,
                arrival=other.arrival or "",
                cv=cv_of(other.arrival) or 0.0,
                capacity_rps=other.capacity_rps,
                ratio=ratio_of(other.capacity_rps, plan.capacity_rps),
            )
            for other in sorted(alike, key=lambda other: cv_of(other.arrival) or 0.0)
            if other is not plan and other.arrival != "poisson"
        ]
        if plan.refused is None:
            known = [limit for limit in plan.limits if limit != _burst_advice("poisson")]
            plan.limits = known + [burst_words(burst) for burst in plan.bursts]


def burst_words(burst: Burst) -> str:
    """What the arrivals do to the capacity, in a sentence."""
    who = f"Bursts of CV {burst.cv:g}" if burst.cv > 1 else f"Arrivals of CV {burst.cv:g}"
    if burst.ratio is None or burst.ratio == (None, None):
        return f"{who}: what they do to the capacity cannot be told ({burst.run} has no plan or shows no limit)."
    return f"{who} take the capacity to {share_words(burst.ratio)} of Poisson's ({burst.run})."


def share_words(ratio: Ratio) -> str:
    """``38 to 45 %``, ``38 % or more``, ``45 % at most`` or ``?``."""
    low, high = (None if end is None else f"{end * 100:.0f}" for end in ratio)
    if low is not None and high is not None:
        return f"{low} to {high} %"
    return f"{low} % or more" if low is not None else "?" if high is None else f"{high} % at most"


def _alike(a: Plan, b: Plan) -> bool:
    return a.setting == b.setting and a.gpus_per_replica == b.gpus_per_replica and a.demand == b.demand


def cv_of(arrival: str | None) -> float | None:
    """The coefficient of variation of the gaps; None where it is not known, as of a trace."""
    if arrival in (None, "replay"):
        return None
    try:
        kind, cv = parse_arrival(arrival or "")
    except UsageError:
        return None
    return 1.0 if kind == "poisson" else cv


def ratio_of(over: Interval | None, under: Interval | None) -> Ratio | None:
    """Between which two numbers the ratio of two capacities lies, both being somewhere in their intervals."""
    if over is None or under is None:
        return None
    low = None if under[1] is None else over[0] / under[1]
    return low, None if over[1] is None or under[0] <= 0 else over[1] / under[0]


def scaled(interval: Interval | None, factor: float | None) -> Interval | None:
    """Both ends times a factor; None where either of the two is unknown."""
    if interval is None or factor is None:
        return None
    return interval[0] * factor, None if interval[1] is None else interval[1] * factor


def _cost(hourly: float, per_s: Interval | None, amount: float) -> Interval | None:
    """What an amount costs at both ends of a rate per second."""
    if per_s is None or per_s[0] <= 0:
        return None
    dear = hourly / 3600 / per_s[0] * amount
    return dear, None if per_s[1] is None else hourly / 3600 / per_s[1] * amount
