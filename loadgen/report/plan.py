"""A capacity plan, for a terminal of 80 columns or a log file, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from loadgen.analysis.bursts import share_words
from loadgen.analysis.capacity import Interval
from loadgen.analysis.plan import Fleet, Plan, scaled
from loadgen.report.table import fitted
from loadgen.report.table import markdown as markdown_table
from loadgen.report.terminal import SIMULATED
from loadgen.report.text import escaped, fill
from loadgen.units import format_count

UNKNOWN = "?"


def render(plans: Sequence[Plan]) -> str:
    """Every plan in turn, then the capacities side by side where there are several."""
    parts = [_terminal(plan) for plan in plans]
    if len(plans) > 1:
        parts.append("\n".join(["Side by side", *fitted(side_by_side(plans))]))
    for plan in plans:
        if plan.bursts:
            parts.append("\n".join([fill(_burst_title(plan)), *fitted(bursts(plan))]))
    return "\n\n\n".join(parts) + "\n"


def markdown(plans: Sequence[Plan]) -> str:
    """The same as Markdown."""
    parts = [_markdown(plan) for plan in plans]
    if len(plans) > 1:
        parts.append("\n".join(["## Side by side", "", _table(side_by_side(plans))]))
    for plan in plans:
        if plan.bursts:
            parts.append("\n".join([f"### {escaped(_burst_title(plan))}", "", _table(bursts(plan))]))
    return "\n\n".join(parts) + "\n"


def heading(plan: Plan) -> list[str]:
    """What is planned, in words: the run, the workload, the SLO, the demand."""
    demand = plan.demand
    slo = ", ".join(slo.text for slo in demand.slos)
    if any(slo.percentile is None for slo in demand.slos):
        slo += f", met by {demand.attainment * 100:g} % of requests"
    where = f" on {plan.gpus_per_replica} {plan.gpu}" if plan.gpu else ""
    lines = [
        f"Capacity plan of {plan.run}: {plan.engine}{where} a replica",
        f"Workload: {plan.workload}",
        f"SLO: {slo}",
    ]
    if demand.peak_rps is not None:
        words = f"Demand: {demand.peak_rps:g} requests/s at the peak, {demand.headroom:.0%} headroom"
        words += f", {demand.spares} spare{'s' * (demand.spares != 1)}" if demand.spares else ""
        lines.append(words + (f", {demand.duty:.0%} of the peak on average" if demand.duty < 1 else ""))
    return lines


def replica(plan: Plan) -> list[tuple[str, str]]:
    """What one replica carries, and what that costs: names and values."""
    rows = [
        ("capacity, requests/s", interval(plan.capacity_rps)),
        ("output tokens/s", interval(plan.output_tps)),
        ("input and output tokens/s", interval(plan.total_tps)),
        ("what binds", plan.binds or UNKNOWN),
    ]
    if plan.scale_at_rps is not None:
        at = f"{format_count(plan.scale_at_rps)} requests/s a replica"
        if plan.in_flight is not None:
            at += f", or {max(int(plan.in_flight * (1 - plan.demand.headroom)), 1):,} in flight in it"
        rows.append(("add a replica at", at))
    if plan.per_million_output is not None:
        rows += [
            ("cost at capacity, of 1M output tokens", money(plan.per_million_output)),
            ("of 1M tokens in and out", money(plan.per_million_total)),
            ("of 1,000 requests", money(plan.per_thousand_requests)),
        ]
    if plan.energy_j_per_output_token is not None:
        kwh = plan.energy_j_per_output_token * 1e6 / 3.6e6
        rows.append(("energy of 1M output tokens, GPUs only", f"{kwh:.3g} kWh"))
    return rows


def levels(plan: Plan) -> list[list[str]]:
    """A table of the loads, the first row being its head."""
    rows = [["load", "requests/s", "kept to it", "95 % interval", "broken", "the SLO"]]
    for point in plan.points:
        criterion = point.criteria[point.tight]
        share = UNKNOWN if criterion.share is None else f"{criterion.share:.2%}"
        low_high = UNKNOWN if criterion.ci95 is None else f"{criterion.ci95[0]:.2%} .. {criterion.ci95[1]:.2%}"
        # The rate of an open loop stands in the next column.
        load = point.load.partition(",")[0]
        rows.append([load, format_count(point.rate_rps), share, low_high, chance(point.chance_broken), point.word])
    return rows


def fleets(plan: Plan) -> list[list[str]]:
    """A table of replicas and cost for the peak and the grown ones."""
    priced = plan.demand.gpu_hour is not None
    rows = [["peak, per s", "replicas", "GPUs", *(["cost/hour", "per month", "1M output"] * priced)]]
    for fleet in plan.fleets:
        row = [format_count(fleet.peak_rps), _replicas(fleet), f"{fleet.gpus:,}"]
        if priced:
            row += [
                money(fleet.cost_per_hour),
                money(fleet.cost_per_month),
                money(fleet.per_million_output),
            ]
        rows.append(row)
    return rows


def speeds(plan: Plan) -> list[list[str]]:
    """A table of what a replica carries at a speed for each user."""
    priced = plan.demand.gpu_hour is not None
    rows = [["tokens/s for each user", "requests/s", "output tokens/s", *(["1M output"] * priced)]]
    for speed in plan.speeds:
        if speed.capacity_rps is None:
            rows.append([str(speed.tokens_per_s), "cannot be told", "", *([""] * priced)])
            continue
        row = [str(speed.tokens_per_s), interval(speed.capacity_rps), interval(speed.output_tps)]
        rows.append(row + [money(speed.per_million_output)] * priced)
    return rows


def side_by_side(plans: Sequence[Plan]) -> list[list[str]]:
    """A table of several plans; GPUs and cost where a peak and a price were given."""
    rows = [["run", "requests/s a GPU", "output tokens/s a GPU", "GPUs for the peak", "cost/hour"]]
    for plan in plans:
        if plan.refused is not None:
            rows.append([plan.run, "no plan", "", "", ""])
            continue
        fleet = plan.fleets[0] if plan.fleets else None
        per_gpu = 1 / plan.gpus_per_replica
        rows.append(
            [
                plan.run,
                interval(scaled(plan.capacity_rps, per_gpu)),
                interval(scaled(plan.output_tps, per_gpu)),
                "" if fleet is None else f"{fleet.gpus:,}",
                "" if fleet is None or fleet.cost_per_hour is None else money(fleet.cost_per_hour),
            ]
        )
    shown = [column < 3 or any(row[column] for row in rows[1:]) for column in range(len(rows[0]))]
    return [[cell for cell, keep in zip(row, shown, strict=True) if keep] for row in rows]


def bursts(plan: Plan) -> list[list[str]]:
    """A table of what arrivals of other kinds make of the capacity, from the plan with Poisson ones."""
    rows = [["arrivals", "CV", "requests/s", "of Poisson's"]]
    rows.append(["poisson", "1", interval(plan.capacity_rps), ""])
    for burst in plan.bursts:
        ratio = "?" if burst.ratio is None else share_words(burst.ratio)
        rows.append([burst.arrival, f"{burst.cv:g}", interval(burst.capacity_rps), ratio])
    return rows


def _burst_title(plan: Plan) -> str:
    names = ", ".join([plan.run, *(burst.run for burst in plan.bursts)])
    return f"They differ only in their arrivals: {names}"


def footnotes(plan: Plan) -> list[str]:
    """How to read the plan, and what it does not know."""
    notes = [
        "a .. b: a is planned with; b is as good as it can be, the lowest load that breaks the SLO. Both are ends of "
        "95 % intervals.",
        "broken: the chance that the load breaks the SLO, as far as the measurements tell, taken never to fall as the "
        "load rises; between two loads it lies between theirs, and beyond them nothing is said.",
    ]
    if plan.demand.gpu_hour is not None:
        notes.append(f"Costs are in the currency of {plan.demand.gpu_hour:g} a GPU and hour; a month has 730.5 hours.")
    return notes + plan.limits


def undecided(plan: Plan) -> list[str]:
    """Why a load does not count, or what would decide it; not of those below one that holds."""
    held = max((point.order for point in plan.points if point.word == "holds"), default=0.0)
    return [
        f"{point.load}: {point.word}, {point.why}"
        for point in plan.points
        if point.why and not (point.word == "undecided" and point.order < held)
    ]


def interval(found: Interval | None) -> str:
    """``12 .. 15``, or ``12 or more``."""
    if found is None:
        return UNKNOWN
    low, high = found
    return f"{format_count(low)} or more" if high is None else f"{format_count(low)} .. {format_count(high)}"


def money(found: Interval | None) -> str:
    """``3.20 .. 2.90``, or ``3.20 at most``."""
    if found is None:
        return UNKNOWN
    dear, cheap = found
    return f"{_amount(dear)} at most" if cheap is None else f"{_amount(dear)} .. {_amount(cheap)}"


def chance(value: float | None) -> str:
    """A chance as a percentage; never 0 or 100."""
    if value is None:
        return ""
    if value < 0.001:
        return "<0.1%"
    return ">99.9%" if value > 0.999 else f"{value:.1%}" if value < 0.1 or value > 0.9 else f"{value:.0%}"


def _amount(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _replicas(fleet: Fleet) -> str:
    if fleet.replicas_at_best is None:
        return f"{fleet.replicas:,} at most"
    if fleet.replicas_at_best == fleet.replicas:
        return f"{fleet.replicas:,}"
    return f"{fleet.replicas:,} .. {fleet.replicas_at_best:,}"


def _terminal(plan: Plan) -> str:
    parts = ["\n".join(fill(line) for line in heading(plan))]
    if plan.simulated:
        parts.append(SIMULATED)
    if plan.refused is not None:
        parts.append(fill(f"NO PLAN: {plan.refused}."))
    else:
        parts.append("\n".join(["One replica", *(fill(f"{name}: {value}", "  ") for name, value in replica(plan))]))
        if plan.fleets:
            parts.append("\n".join(["Replicas, the peak as it is and grown", *fitted(fleets(plan))]))
        parts.append("\n".join(["At a speed for each user, in place of the SLO's TPOT", *fitted(speeds(plan))]))
    if plan.points:
        parts.append("\n".join(["What it rests on", *fitted(levels(plan))]))
    notes = undecided(plan) + (footnotes(plan) if plan.refused is None else [])
    if notes:
        parts.append("\n".join(fill(note) for note in notes))
    return "\n\n".join(parts)


def _markdown(plan: Plan) -> str:
    first, *rest = heading(plan)
    parts = [f"# {escaped(first)}", "  \n".join(map(escaped, rest))]
    if plan.simulated:
        parts.append(f"**{SIMULATED}**")
    if plan.refused is not None:
        parts.append(f"**NO PLAN:** {escaped(plan.refused)}.")
    else:
        parts.append("\n".join(["## One replica", "", _table([["", ""], *(list(row) for row in replica(plan))])]))
        if plan.fleets:
            parts.append("\n".join(["## Replicas, the peak as it is and grown", "", _table(fleets(plan))]))
        title = "## At a speed for each user, in place of the SLO's TPOT"
        parts.append("\n".join([title, "", _table(speeds(plan))]))
    if plan.points:
        parts.append("\n".join(["## What it rests on", "", _table(levels(plan))]))
    notes = undecided(plan) + (footnotes(plan) if plan.refused is None else [])
    if notes:
        parts.append("\n".join(f"- {escaped(note)}" for note in notes))
    return "\n\n".join(parts)


def _table(rows: list[list[str]]) -> str:
    return markdown_table([list(map(escaped, row)) for row in rows])
