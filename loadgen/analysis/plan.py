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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.analysis.capacity import Bracket, Headroom, Interval, Point, Ratio, bracket, headroom, points_of
from loadgen.analysis.criteria import (
    binds,
)
from loadgen.analysis.measure import Measured, measure_run
from loadgen.analysis.slo import ATTAINMENT, Slo, parse_slos
from loadgen.errors import UsageError
from loadgen.loads import Closed, Open
from loadgen.records import Manifest

if TYPE_CHECKING:
    pass

HOURS_PER_MONTH = 730.5
SPEEDS = (10, 20, 30, 50)  # output tokens/s of one user
GROWTH = (0.25, 0.5, 1.0)


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


class Speed(msgspec.Struct, kw_only=True):
    """The capacity at which each user gets ``tokens_per_s`` tokens/s, a limit that replaces the SLO's TPOT.

    Figures are None if the sweep does not show them.
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
        refused: why there is no plan, and what to measure; the attributes below are then not set.
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
    if demand.get("attainment") is None:
        demand["attainment"] = manifest.load.attainment or ATTAINMENT
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


def replicas_for(peak_rps: float, capacity_rps: float, headroom: float, spares: int) -> int:
    """ceil(peak / (capacity * (1 - headroom))) + spares, and a quotient that is whole but for rounding is whole."""
    quotient = peak_rps / (capacity_rps * (1 - headroom))
    return max(math.ceil(quotient * (1 - 1e-12)), 1) + spares


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
        words.append(burst_advice(", ".join(kinds)))
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


def burst_advice(arrivals: str) -> str:
    return (
        f"Arrivals were {arrivals}. Real traffic comes in bursts, which need more room (ServeGen, arXiv "
        "2505.09999): sweep --arrival gamma:2 and gamma:4 too, and give those runs beside this one."
    )
