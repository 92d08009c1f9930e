"""From rounds to an effect: its size, its interval over rounds and levels, and the word that it gets."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import msgspec

from loadgen.analysis.stats import CONFIDENCE
from loadgen.comparison.blocks import THROUGHPUT, Drawn, Round, enough_blocks
from loadgen.comparison.sides import SideLevel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


Word = Literal["faster", "slower", "no detectable difference", "n/a"]

POWER = 0.80


class Effect(msgspec.Struct, kw_only=True):
    """One statistic of one metric, B against A.

    Attributes:
        a, b: means over the rounds; None for ``paired`` and over all levels, where they mean nothing.
        ratio: B/A, the geometric mean over the rounds; ``ratio_ci95`` its 95 % interval.
        difference: b - a in the metric's unit.
        p: of no difference, after Holm over the levels.
        word: B against A; of a throughput ``faster`` is more.
        detectable: the least relative difference (0.03 is 3 %) that would be found with 80 % power.
        why: what is missing where the word is ``n/a``.
        log_ratio, standard_error, degrees: what the intervals are made from.
    """

    metric: str
    statistic: str
    a: float | None = None
    b: float | None = None
    ratio: float | None = None
    ratio_ci95: tuple[float, float] | None = None
    difference: float | None = None
    difference_ci95: tuple[float, float] | None = None
    p: float | None = None
    word: Word = "n/a"
    detectable: float | None = None
    why: str | None = None
    log_ratio: float | None = None
    standard_error: float | None = None
    degrees: float | None = None

    def interval(self, confidence: float) -> tuple[float, float] | None:
        """Of the ratio, with that confidence."""
        if self.log_ratio is None or self.standard_error is None or self.degrees is None:
            return None
        half = student_t(self.degrees, (1 + confidence) / 2) * self.standard_error
        half = min(half, 300.0)  # e**300 is a number still
        return math.exp(self.log_ratio - half), math.exp(self.log_ratio + half)


class Estimate(msgspec.Struct, kw_only=True):
    """A mean over rounds, its standard error and its degrees of freedom."""

    value: float
    error: float
    degrees: float


def combine(values: Array, within: Array, degrees: Array, launch_variance: float) -> Estimate:
    """Rounds put together.

    Args:
        values: one a round.
        within: their variances by blocks.
        degrees: of those.
        launch_variance: what is added for launches that the rounds do not vary.
    """
    import numpy as np

    rounds = len(values)
    if rounds == 1:
        variance, freedom = float(within[0]), float(degrees[0])
    else:
        variance = max(float(np.var(values, ddof=1)), float(within.mean())) / rounds
        freedom = rounds - 1.0
    total = variance + launch_variance
    if variance > 0:
        freedom *= (total / variance) ** 2  # Satterthwaite 1946; what is added counts as known
    return Estimate(value=float(values.mean()), error=math.sqrt(total), degrees=min(freedom, 1e6))


def effect_of(family: tuple[str, str], levels: list[list[Round]], launch_sd: Mapping[str, float]) -> Effect:
    """One family over the rounds of one level, or of several: their geometric mean, round by round."""
    import numpy as np

    metric, statistic = family
    effect = Effect(metric=metric, statistic=statistic)
    rounds = min(len(rows) for rows in levels)
    # One that nobody has measured over launches is taken to differ as much as the worst that somebody has.
    sd = launch_sd.get(metric, max(launch_sd.values(), default=0.0))
    logs, within, degrees = [], [], []
    for number in range(rounds):
        parts: list[tuple[float, float, float]] = []  # signed value, variance, degrees
        for rows in levels:
            row = rows[number]
            sides = (
                [(row.paired[metric], 1.0)] if statistic == "paired" else [(row.b[family], 1.0), (row.a[family], -1.0)]
            )
            for drawn, sign in sides:
                if rounds == 1 and not isinstance(drawn, str):
                    drawn = enough_blocks(statistic, drawn)
                if isinstance(drawn, str):
                    effect.why = drawn
                    return effect
                parts.append((sign * drawn.value, drawn.variance, drawn.degrees))
        scale = len(levels)
        variances = np.array([part[1] for part in parts]) / scale**2
        logs.append(sum(part[0] for part in parts) / scale)
        within.append(float(variances.sum()))
        degrees.append(welch(variances, np.array([part[2] for part in parts])))
    estimate = combine(np.array(logs), np.array(within), np.array(degrees), 2 * sd**2)
    effect.log_ratio, effect.standard_error, effect.degrees = estimate.value, estimate.error, estimate.degrees
    effect.ratio = math.exp(estimate.value)
    effect.ratio_ci95 = effect.interval(CONFIDENCE)
    if statistic != "paired" and len(levels) == 1:
        _add_difference(effect, family, levels[0], sd)
    return effect


NO_DETAIL = "the file has no requests; save it with --save-detailed"


def totals_effect(
    family: tuple[str, str], group: list[tuple[SideLevel, SideLevel]], rows: list[Round]
) -> Effect | None:
    """Where a side has no requests, only figures: values and their ratio, without an interval; else None."""
    if all(level.figures is None for pair in group for level in pair):
        return None
    effect = Effect(metric=family[0], statistic=family[1], why=NO_DETAIL)
    means: list[float | None] = []
    for side in (0, 1):
        values = [_figure(pair[side], (row.a, row.b)[side], family) for pair, row in zip(group, rows, strict=True)]
        known = [value for value in values if value is not None]
        means.append(sum(known) / len(known) if len(known) == len(values) else None)
    effect.a, effect.b = means
    if effect.a and effect.b:
        effect.ratio, effect.difference = effect.b / effect.a, effect.b - effect.a
    return effect


def _figure(level: SideLevel, drawn: dict[tuple[str, str], Drawn | str], family: tuple[str, str]) -> float | None:
    """One statistic of a level: from its figures where these are all that there is, else from its requests."""
    if level.figures is not None:
        return level.figures.get(family)
    found = drawn.get(family)
    return math.exp(found.value) if isinstance(found, Drawn) else None


def welch(variances: Array, degrees: Array) -> float:
    """Degrees of freedom of a sum of variances (Welch 1947; Satterthwaite 1946)."""
    below = float((variances**2 / degrees).sum())
    return float(variances.sum()) ** 2 / below if below > 0 else float(degrees.sum())


def _add_difference(effect: Effect, family: tuple[str, str], rows: list[Round], sd: float) -> None:
    """b - a in the metric's unit: the same on the values themselves, their spread by the delta method."""
    import numpy as np

    ours = [drawn for row in rows if isinstance(drawn := row.a[family], Drawn)]
    theirs = [drawn for row in rows if isinstance(drawn := row.b[family], Drawn)]
    a, b = (np.array([math.exp(drawn.value) for drawn in side]) for side in (ours, theirs))
    spread = [np.array([drawn.variance for drawn in side]) * values**2 for side, values in ((ours, a), (theirs, b))]
    degrees = np.array(
        [
            welch(np.array([spread[0][i], spread[1][i]]), np.array([ours[i].degrees, theirs[i].degrees]))
            for i in range(len(rows))
        ]
    )
    launches = sd**2 * (float(a.mean()) ** 2 + float(b.mean()) ** 2)
    found = combine(b - a, spread[0] + spread[1], degrees, launches)
    half = student_t(found.degrees, (1 + CONFIDENCE) / 2) * found.error
    effect.a, effect.b = float(a.mean()), float(b.mean())
    effect.difference = effect.b - effect.a
    effect.difference_ci95 = effect.difference - half, effect.difference + half


def student_t(degrees: float, p: float) -> float:
    from scipy import special

    return float(special.stdtrit(degrees, p))


def judge(family: list[Effect]) -> None:
    """p-values after Holm 1979 over the levels of one family, the words, and what could have been seen."""
    from scipy import special

    known: list[tuple[float, Effect]] = []
    for effect in family:
        if effect.log_ratio is None or effect.standard_error is None or effect.degrees is None:
            continue
        if effect.standard_error > 0:
            statistic = abs(effect.log_ratio) / effect.standard_error
            p = 2 * float(special.stdtr(effect.degrees, -statistic))
        else:
            p = 1.0 if effect.log_ratio == 0 else 0.0
        known.append((p, effect))
    known.sort(key=lambda pair: pair[0])
    alpha = 1 - CONFIDENCE
    largest = 0.0
    for rank, (p, effect) in enumerate(known):
        assert effect.log_ratio is not None and effect.standard_error is not None and effect.degrees is not None
        largest = effect.p = min(1.0, max(largest, p * (len(known) - rank)))
        reach = student_t(effect.degrees, 1 - alpha / len(known) / 2) + student_t(effect.degrees, POWER)
        effect.detectable = math.expm1(min(reach * effect.standard_error, 700.0))
        if largest >= alpha:
            effect.word = "no detectable difference"
        else:
            more = effect.log_ratio > 0
            effect.word = "faster" if more == (effect.metric == THROUGHPUT) else "slower"
