"""What a script asks of a comparison (--fail-on), and what the comparison answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import msgspec

from loadgen.analysis.stats import CONFIDENCE
from loadgen.comparison.blocks import THROUGHPUT
from loadgen.comparison.differences import Comparison
from loadgen.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


Decision = Literal["fails", "passes", "undecided"]


_CONDITION = re.compile(
    r"(?:(ttft|tpot|e2e)_(paired|mean|p50|p90|p99)|(output_throughput))\s*([<>])\s*([+-]?)(\d+(?:\.\d+)?)\s*%", re.ASCII
)


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """``metric_statistic`` of B beyond ``bound`` (0.03 is +3 %) relative to A is a failure."""

    text: str
    metric: str
    statistic: str
    more: bool
    bound: float


class Ruling(msgspec.Struct, kw_only=True):
    """What became of a condition at one level; ``interval`` is of B/A - 1."""

    condition: str
    level: str
    decision: Decision
    interval: tuple[float, float] | None
    text: str


def fail_on(text: str) -> Condition:
    """The condition of ``"tpot_p50>+3%"`` or ``"output_throughput<-5%"``.

    Raises:
        UsageError: it is something else.
    """
    match = _CONDITION.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"not a condition: {text!r}; write METRIC_STATISTIC>+PERCENT such as 'tpot_p50>+3%' (ttft, tpot or e2e; "
            "paired, mean, p50, p90 or p99), or 'output_throughput<-5%'"
        )
    latency, statistic, _, operator, sign, number = match.groups()
    bound = float(number) / 100 * (-1 if sign == "-" else 1)
    if bound <= -1:
        raise UsageError(f"not a condition: {text!r}; nothing can fall by 100 % or more")
    return Condition(
        text=text.strip(),
        metric=f"{latency}_s" if latency else THROUGHPUT,
        statistic=statistic or "mean",
        more=operator == ">",
        bound=bound,
    )


def decide(condition: Condition, comparison: Comparison) -> list[Ruling]:
    """The condition at every level, decided on the interval and not on the point.

    ``>`` fails if the interval's lower end is above the bound and passes if its upper end is not. It is undecided
    if the bound is inside the interval, or there is no interval. ``<`` is the mirror image.
    Intervals hold at all levels together with 95 % confidence (Bonferroni), so that a comparison of many
    levels does not fail by chance more often than one of few.
    """
    rulings = []
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(comparison.levels))
    for level in comparison.levels:
        effect = next(e for e in level.effects if (e.metric, e.statistic) == (condition.metric, condition.statistic))
        ratio = effect.interval(confidence)
        if ratio is None:
            text = f"no interval: {effect.why}"
            rulings.append(
                Ruling(condition=condition.text, level=level.name, decision="undecided", interval=None, text=text)
            )
            continue
        low, high = ratio[0] - 1, ratio[1] - 1
        if low > condition.bound:
            decision: Decision = "fails" if condition.more else "passes"
        elif high < condition.bound:
            decision = "passes" if condition.more else "fails"
        else:
            decision = "undecided"
        text = f"between {low:+.1%} and {high:+.1%}"
        rulings.append(
            Ruling(condition=condition.text, level=level.name, decision=decision, interval=(low, high), text=text)
        )
    if not rulings:
        text = "no level was compared" + ("" if comparison.comparable else ": NOT COMPARABLE")
        rulings.append(Ruling(condition=condition.text, level="-", decision="undecided", interval=None, text=text))
    return rulings


def overall_decision(rulings: Iterable[Ruling]) -> Decision:
    """``fails`` where any does, else ``undecided`` where any is, else ``passes``."""
    decisions = {ruling.decision for ruling in rulings}
    return "fails" if "fails" in decisions else "undecided" if "undecided" in decisions or not decisions else "passes"
