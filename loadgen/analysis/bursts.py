"""What bursts take from a capacity: plans of runs that differ in their arrivals only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loadgen.analysis.capacity import Interval, Ratio
from loadgen.analysis.plan import Burst, Plan, burst_advice
from loadgen.errors import UsageError
from loadgen.loads import parse_arrival

if TYPE_CHECKING:
    pass


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
            known = [limit for limit in plan.limits if limit != burst_advice("poisson")]
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
