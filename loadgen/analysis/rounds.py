"""What the rounds of a load say together: the mean over them, and how far they lie apart.

A round's own standard error tells how well its requests know its mean. Rounds can differ by more:
clocks, caches, placement, whatever else the machine does. That part is what is beyond the first one
in the variance of the rounds' means (one-way analysis of variance, the method of moments; Searle,
Casella and McCulloch 1992, "Variance Components"):

    within  = sqrt(mean of the squared standard errors)
    between = sqrt(max(0, variance of the means - within^2))

The interval of the mean over the rounds is Student's t of the means themselves, with one degree of
freedom less than there are rounds: both parts are in it, and nothing is assumed of either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from loadgen.analysis.stats import CONFIDENCE
from loadgen.loads import Load, without_round

if TYPE_CHECKING:
    from loadgen.analysis.figures import LevelSummary

MIN_ROUNDS = 2

# Name and field; of a latency its mean or the quantile.
METRICS: dict[str, tuple[str, str]] = {
    "ttft_mean_s": ("ttft_s", "mean"),
    "ttft_p50_s": ("ttft_s", "p50"),
    "ttft_p99_s": ("ttft_s", "p99"),
    "tpot_mean_s": ("tpot_s", "mean"),
    "output_throughput_tps": ("output_throughput_tps", ""),
}


class Spread(msgspec.Struct, kw_only=True):
    """One metric over the rounds of a load, in the unit of its name.

    Attributes:
        mean: of the rounds' figures.
        within: the standard error that a round has by its own requests (rms over the rounds); None
            where a round does not know it.
        between: the standard deviation of the rounds beyond that; None where ``within`` is.
        ci95: the 95 % interval of the mean.
    """

    mean: float
    within: float | None = None
    between: float | None = None
    ci95: tuple[float, float]


class RoundSpread(msgspec.Struct, kw_only=True):
    """The rounds of one load.

    Attributes:
        load: without its round.
        rounds: that are VALID, and count.
        left_out: each other one, and its verdict.
        metrics: by the names of :data:`METRICS`, those that every round has that counts; empty with
            fewer than two.
    """

    load: Load
    rounds: int
    left_out: list[str] = []
    metrics: dict[str, Spread] = {}


def over_rounds(levels: Sequence[LevelSummary]) -> list[RoundSpread]:
    """Of each load that was measured in rounds, smallest first; empty for a sweep of a single round."""
    loads: dict[Load, list[LevelSummary]] = {}
    for level in levels:
        if level.load.round is not None:
            loads.setdefault(without_round(level.load), []).append(level)
    found = [_of_load(load, same) for load, same in loads.items()]
    return sorted(found, key=lambda one: one.load.value)


def spread(figures: Sequence[float], errors: Sequence[float | None]) -> Spread:
    """The rounds' figures of one metric taken together.

    Args:
        figures: of at least two rounds.
        errors: the standard error of each.
    """
    from scipy import special

    count = len(figures)
    mean = math.fsum(figures) / count
    variance = math.fsum((figure - mean) ** 2 for figure in figures) / (count - 1)
    half = float(special.stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(variance / count)
    found = Spread(mean=mean, ci95=(mean - half, mean + half))
    known = [error for error in errors if error is not None]
    if len(known) == count:
        squared = math.fsum(error**2 for error in known) / count
        found.within, found.between = math.sqrt(squared), math.sqrt(max(0.0, variance - squared))
    return found


def _of_load(load: Load, levels: list[LevelSummary]) -> RoundSpread:
    counted = [level for level in levels if level.verdict.status == "VALID"]
    found = RoundSpread(
        load=load,
        rounds=len(counted),
        left_out=[
            f"round {_round(level) + 1}: {level.verdict.status}"
            for level in sorted(levels, key=lambda level: _round(level))
            if level.verdict.status != "VALID"
        ],
    )
    if len(counted) >= MIN_ROUNDS:
        for name, (field, part) in METRICS.items():
            figures = [_figure(level, field, part) for level in counted]
            known = [figure for figure in figures if figure is not None]
            if len(known) == len(counted):
                found.metrics[name] = spread(known, [_error(level, name) for level in counted])
    return found


def _round(level: LevelSummary) -> int:
    assert level.load.round is not None
    return level.load.round


def _error(level: LevelSummary, name: str) -> float | None:
    return None if isinstance(level.standard_errors, msgspec.UnsetType) else level.standard_errors.get(name)


def _figure(level: LevelSummary, field: str, part: str) -> float | None:
    value = getattr(level, field)
    if part:
        value = getattr(value, part)
    return None if value is None else float(value)
