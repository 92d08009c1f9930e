"""What each side carries at the same SLO, and at the same speed for each user; and the ratio of the two.

The capacity of a side is the interval that a plan gives (:mod:`loadgen.analysis.plan`), between two loads that were
measured. The ratio B/A lies between B's lower end over A's upper end and B's upper end over A's lower
end; an end that is not known leaves it open. Nothing narrower is claimed: where in its interval a capacity
lies is not known, and no chance is given to any place in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from loadgen.analysis.bursts import ratio_of
from loadgen.analysis.capacity import Interval, Ratio, bracket, points_of
from loadgen.analysis.plan import SPEEDS, scaled, slos_at_speed
from loadgen.analysis.slo import ATTAINMENT, Slo, parse_slos
from loadgen.comparison.gate import MAX_TOKEN_DIFFERENCE, Finding
from loadgen.comparison.sides import Side

More = Literal["B carries more", "A carries more", "cannot be told"]

# What spoils the comparison of levels one by one, but not that of capacities: a sweep to the limit has levels that
# are not VALID, of which the plan makes its own, and the sides' limits may lie at other loads.
OF_LEVELS = {"verdict", "errors", "levels"}


class Carried(msgspec.Struct, kw_only=True):
    """The capacity of one side in requests/s and output tokens/s, of a replica and per GPU; or why there is none."""

    capacity_rps: Interval | None = None
    output_tps: Interval | None = None
    capacity_rps_per_gpu: Interval | None = None
    output_tps_per_gpu: Interval | None = None
    refused: str = ""


class CapacityRow(msgspec.Struct, kw_only=True):
    """Both sides under the same objectives.

    Attributes:
        slos: as ``--slo`` takes them.
        tokens_per_s: for each user, where the row is about a speed.
        ratio: of the capacities in requests/s, B/A; an end that is unknown is None.
        word: decided on the ratio; ``ratio_per_gpu`` and ``word_per_gpu`` are of each GPU's share.
        advice: what to measure where the word is that it cannot be told.
    """

    slos: list[str]
    tokens_per_s: int | None = None
    a: Carried
    b: Carried
    ratio: Ratio | None = None
    word: More = "cannot be told"
    ratio_per_gpu: Ratio | None = None
    word_per_gpu: More = "cannot be told"
    advice: str = ""


class Capacities(msgspec.Struct, kw_only=True):
    """What the sides carry: at the SLO, then at each speed.

    Attributes:
        gpus_a, gpus_b: of a replica; 1 where a run names none.
        refused: why there is nothing; then there are no rows.
    """

    slos: list[str]
    attainment: float
    gpus_a: int = 1
    gpus_b: int = 1
    rows: list[CapacityRow] = []
    refused: str = ""


def capacities(
    a: Side,
    b: Side,
    findings: Iterable[Finding],
    slos: Sequence[Slo] | None = None,
    attainment: float | None = None,
    force: bool = False,
) -> Capacities | None:
    """Both sides' capacities and their ratios; None where no objectives were given and the sides have none in common.

    Args:
        findings: the gate's; what spoils more than single levels refuses this too, unless ``force`` is given.
        slos: objectives; None: those of both runs, where they are the same.
        attainment: the share of requests that must meet what is asked of each; None: that of both runs, where it is
            the same, else the usual one.
    """
    if attainment is None:
        shares = {side.manifest.load.attainment or ATTAINMENT for side in (a, b)}
        attainment = shares.pop() if len(shares) == 1 else ATTAINMENT
    if slos is None:
        own = [side.manifest.load.slo for side in (a, b)]
        if not own[0] or own[0] != own[1]:
            return None
        slos = parse_slos(str(own[0]))
    found = Capacities(slos=[slo.text for slo in slos], attainment=attainment, gpus_a=_gpus(a), gpus_b=_gpus(b))
    found.refused = _refusal(a, b, findings, force)
    if not found.refused:
        found.rows = [_row(a, b, list(slos), attainment, None)]
        found.rows += [_row(a, b, slos_at_speed(slos, speed), attainment, speed) for speed in SPEEDS]
    return found


def word_of(ratio: Ratio | None) -> More:
    """Who carries more: said where the whole interval of B/A is on one side of 1."""
    low, high = ratio or (None, None)
    if low is not None and low > 1:
        return "B carries more"
    return "A carries more" if high is not None and high < 1 else "cannot be told"


def _refusal(a: Side, b: Side, findings: Iterable[Finding], force: bool) -> str:
    for side in (a, b):
        if not side.measured:
            return f"the levels of {side.label} have no verdicts of loadgen, so that none can show a capacity"
    if force:
        return ""
    spoilt = [finding for finding in findings if finding.weight == "spoils"]
    reasons = list(dict.fromkeys(finding.name for finding in spoilt if finding.name not in OF_LEVELS))
    if not reasons and any(finding.name == "levels" for finding in spoilt):
        reasons = _other_tokens(a, b)  # no pair of levels has told
    return f"the sides cannot be compared: {', '.join(reasons)}" if reasons else ""


def _other_tokens(a: Side, b: Side) -> list[str]:
    """Which of the means of input and output tokens over all levels differ."""
    found = []
    for name in ("input_tokens", "output_tokens"):
        means = []
        for side in (a, b):
            known = [d for one in side.measured if (d := getattr(one.level, name)).count]
            if known:
                means.append(sum(d.mean * d.count for d in known) / sum(d.count for d in known))
        if len(means) == 1 or (means and abs(means[0] - means[1]) > MAX_TOKEN_DIFFERENCE * max(means)):
            found.append(name.replace("_", " "))
    return found


def _gpus(side: Side) -> int:
    return len(side.manifest.engine.gpu_uuids) or 1


def _row(a: Side, b: Side, slos: list[Slo], attainment: float, speed: int | None) -> CapacityRow:
    row = CapacityRow(
        slos=[slo.text for slo in slos],
        tokens_per_s=speed,
        a=_carried(a, slos, attainment),
        b=_carried(b, slos, attainment),
    )
    row.ratio = ratio_of(row.b.capacity_rps, row.a.capacity_rps)
    row.word = word_of(row.ratio)
    row.ratio_per_gpu = ratio_of(row.b.capacity_rps_per_gpu, row.a.capacity_rps_per_gpu)
    row.word_per_gpu = word_of(row.ratio_per_gpu)
    if row.ratio is not None and row.word == "cannot be told":
        row.advice = _advice(row.a, row.b)
    return row


def _carried(side: Side, slos: list[Slo], attainment: float) -> Carried:
    found = bracket(points_of(side.measured, slos, attainment))
    if found.capacity_rps is None or found.held is None:
        return Carried(refused=found.refused)
    tokens = side.measured[found.held.index].level.output_tokens.mean
    output_tps = scaled(found.capacity_rps, tokens)
    share = 1 / _gpus(side)
    return Carried(
        capacity_rps=found.capacity_rps,
        output_tps=output_tps,
        capacity_rps_per_gpu=scaled(found.capacity_rps, share),
        output_tps_per_gpu=scaled(output_tps, share),
    )


def _advice(a: Carried, b: Carried) -> str:
    """What would narrow the wider interval; an end that is missing comes first."""
    open_ends = [
        f"{letter} at more than {side.capacity_rps[0]:.3g} requests/s"
        for letter, side in (("A", a), ("B", b))
        if side.capacity_rps is not None and side.capacity_rps[1] is None
    ]
    if open_ends:
        return f"no load broke the SLO: sweep {' and '.join(open_ends)}"
    between = [
        f"{letter} between {low:.3g} and {high:.3g}"
        for letter, side in (("A", a), ("B", b))
        if side.capacity_rps is not None and (high := side.capacity_rps[1]) is not None
        for low in (side.capacity_rps[0],)
    ]
    return f"the intervals overlap: sweep {' and '.join(between)} requests/s, with loads closer together"
