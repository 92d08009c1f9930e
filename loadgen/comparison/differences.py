"""Two runs against each other: may they be compared, and if so, what is faster and how surely.

The gate comes first. What differs between the sides is listed with both values; what spoils the
comparison makes it NOT COMPARABLE, what only limits it is a caveat, and what is being compared (the
engine and its arguments) is named. Then every metric, per level and over all levels.

How a difference is judged, all on the logarithm of the ratio B/A:

- **Within a round** requests of a batched server depend on each other, so blocks of time, not
  requests, are drawn again: a bootstrap of non-overlapping blocks (Carlstein 1986; Lahiri 2003), each of
  :data:`loadgen.comparison.blocks.BLOCK_E2E` times the mean E2E where the window is long enough. Its
  variance is widened by K / (K - 1) for K blocks, with K - 1 degrees of freedom (Hesterberg 2015), and
  by what it grew from blocks of a third of the length (Vats and Flegal 2022).
- **Between rounds** the ratio of each round is one observation: Student's t over the rounds, with a
  spread never below what the blocks say. Drawing 3 to 10 rounds again instead would give intervals
  that are too short, and drawing both rounds and blocks counts the latter twice (Davison and Hinkley
  1997, section 3.8).
- **Between launches**: two launches of the same engine differ by more than their blocks tell. Only
  interleaved rounds launch anew each time and so have that in their spread. For any other pair
  :data:`LAUNCH_SD` is added, an assumption, and the result says so.
- **Words** are decided on p-values after Holm 1979 over the levels, for each metric and statistic
  apart; intervals are 95 % each, without a correction. The least difference that would be found with
  80 % power is (t_(1 - alpha/2) + t_0.8) standard errors (Bloom 1995), alpha = 5 % over the levels.

A failed request has no latency but a rank: it stands behind all others in every quantile, so that
failing the slow ones improves none. Tokens of failed requests are no throughput here. Cancelled
requests, which the end of a level cut off, are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from loadgen.analysis.slo import ATTAINMENT, Slo
from loadgen.analysis.stats import CONFIDENCE
from loadgen.comparison.blocks import FAMILIES, THROUGHPUT, Drawn, Round, draw, enough_blocks
from loadgen.comparison.capacity import Capacities, capacities
from loadgen.comparison.gate import Finding, Order, gate, level_name, match_levels, order_of
from loadgen.comparison.sides import Side, SideLevel
from loadgen.errors import UsageError
from loadgen.loads import Load

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# Standard deviation of the logarithm of a metric over launches of one engine on one machine, where the
# runs at hand do not tell it: of three launches of vLLM 0.25.1 on an H200 at 64 in flight (reports/):
# TPOT 6.71, 6.88, 6.72 ms; E2E 1.03, 1.07, 1.08 s; TTFT 193, 203, 234 ms; 7,837, 7,678, 7,593 tokens/s.
LAUNCH_SD = {"ttft_s": 0.10, "tpot_s": 0.015, "e2e_s": 0.02, THROUGHPUT: 0.015}

RESAMPLES = 400
POWER = 0.80
SPEEDS = (10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0)

Word = Literal["faster", "slower", "no detectable difference", "n/a"]
Decision = Literal["fails", "passes", "undecided"]


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
        half = min(_t(self.degrees, (1 + confidence) / 2) * self.standard_error, 300.0)  # e**300 is a number still
        return math.exp(self.log_ratio - half), math.exp(self.log_ratio + half)


class LevelComparison(msgspec.Struct, kw_only=True):
    """One load: rounds and requests of each side, prompts that both answered, and the effects."""

    load: Load
    name: str
    rounds: int
    requests_a: int
    requests_b: int
    pairs: int
    effects: list[Effect]


class SpeedComparison(msgspec.Struct, kw_only=True):
    """Output throughput at one speed per user (1 / median TPOT), interpolated between levels."""

    speed_tps: float
    a_tps: float
    b_tps: float
    ratio: float
    ratio_ci95: tuple[float, float] | None


class Comparison(msgspec.Struct, kw_only=True):
    """B against A.

    Attributes:
        comparable: nothing spoils it.
        forced: the figures are there although something does.
        only_a, only_b: levels that have no partner.
        order: ``interleaved`` rounds took turns, each with a launch of its own; ``separate`` runs are
            of no common sweep, so that nothing is known.
        launch_sd: what was assumed of launches; None where the rounds tell.
        overall: per metric and statistic the geometric mean over the levels.
        speeds: empty where the levels' speeds do not overlap.
        capacities: what the sides carry at the same SLO; None where there are no objectives.
    """

    a: str
    b: str
    engine_a: str
    engine_b: str
    comparable: bool
    forced: bool
    findings: list[Finding]
    only_a: list[str]
    only_b: list[str]
    rounds: int
    order: Order
    launch_sd: dict[str, float] | None
    simulated: bool
    levels: list[LevelComparison]
    overall: list[Effect]
    speeds: list[SpeedComparison]
    capacities: Capacities | None = None


def compare(
    a: Side,
    b: Side,
    *,
    force: bool = False,
    launch_sd: Mapping[str, float] | None = None,
    resamples: int = RESAMPLES,
    speeds: Sequence[float] = SPEEDS,
    slos: Sequence[Slo] | None = None,
    attainment: float = ATTAINMENT,
) -> Comparison:
    """Whether the sides can be compared, and B against A.

    Args:
        a, b: the sides; A is what B is measured against.
        force: figures even where something spoils the comparison.
        launch_sd: relative standard deviation over launches by metric, in place of
            :data:`LAUNCH_SD`; {} for sides that are known to be of one launch.
        resamples: of the blocks of each round.
        speeds: tokens/s per user at which throughputs are compared.
        slos, attainment: at which capacities are compared; None: the objectives of the runs, if they are the same.
    """
    order = order_of(a, b)
    matched = match_levels(a, b)
    findings = gate(a, b, matched, order)
    comparable = not any(finding.weight == "spoils" for finding in findings)
    groups = sorted(_by_load(matched), key=lambda group: group[0][0].load.value)
    rounds = min((len(group) for group in groups), default=0)
    told = order == "interleaved" and rounds > 1
    assumed = None if told else dict(LAUNCH_SD if launch_sd is None else launch_sd)
    partners = {id(level) for pair in matched for level in pair}
    result = Comparison(
        a=a.label,
        b=b.label,
        engine_a=a.manifest.engine.name,
        engine_b=b.manifest.engine.name,
        comparable=comparable,
        forced=force and not comparable,
        findings=findings,
        only_a=[level_name(level) for level in a.levels if id(level) not in partners],
        only_b=[level_name(level) for level in b.levels if id(level) not in partners],
        rounds=rounds,
        order=order,
        launch_sd=assumed or None,
        simulated=a.manifest.simulated or b.manifest.simulated,
        levels=[],
        overall=[],
        speeds=[],
        capacities=capacities(a, b, findings, slos, attainment, force),
    )
    if not groups or not (comparable or force):
        return result
    drawn = [[draw(pair, number, resamples) for number, pair in enumerate(group)] for group in groups]
    sd = assumed or {}
    for group, rows in zip(groups, drawn, strict=True):
        result.levels.append(
            LevelComparison(
                load=group[0][0].load,
                name=group[0][0].load.name,
                rounds=len(group),
                requests_a=sum(one.sample.completed for one, _ in group),
                requests_b=sum(other.sample.completed for _, other in group),
                pairs=sum(row.pairs for row in rows),
                effects=[_totals(family, group, rows) or _effect(family, [rows], sd) for family in FAMILIES],
            )
        )
    for position in range(len(FAMILIES)):
        _judge([level.effects[position] for level in result.levels])
    if len(drawn) > 1:
        result.overall = [_effect(family, drawn, sd) for family in FAMILIES]
        for effect in result.overall:
            _judge([effect])
    result.speeds = [found for speed in speeds if (found := _at_speed(speed, drawn, sd)) is not None]
    return result


def _by_load(matched: list[tuple[SideLevel, SideLevel]]) -> list[list[tuple[SideLevel, SideLevel]]]:
    """The rounds of each load. One that a round has twice is two levels, since a launch is no two launches."""
    groups: dict[tuple[Load, int], list[tuple[SideLevel, SideLevel]]] = {}
    for pair in matched:
        key, copy = pair[0].load.key, 0
        while any(other[0].round == pair[0].round for other in groups.get((key, copy), ())):
            copy += 1
        groups.setdefault((key, copy), []).append(pair)
    return list(groups.values())


# --- over rounds and levels


class Estimate(msgspec.Struct, kw_only=True):
    """A mean over rounds, its standard error and its degrees of freedom."""

    value: float
    error: float
    degrees: float


def _combine(values: Array, within: Array, degrees: Array, launch_variance: float) -> Estimate:
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


def _effect(family: tuple[str, str], levels: list[list[Round]], launch_sd: Mapping[str, float]) -> Effect:
    """One family over the rounds of one level, or of several: their geometric mean, round by round."""
    import numpy as np

    metric, statistic = family
    effect = Effect(metric=metric, statistic=statistic)
    rounds = min(len(rows) for rows in levels)
    sd = launch_sd.get(metric, 0.0)
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
        degrees.append(_welch(variances, np.array([part[2] for part in parts])))
    estimate = _combine(np.array(logs), np.array(within), np.array(degrees), 2 * sd**2)
    effect.log_ratio, effect.standard_error, effect.degrees = estimate.value, estimate.error, estimate.degrees
    effect.ratio = math.exp(estimate.value)
    effect.ratio_ci95 = effect.interval(CONFIDENCE)
    if statistic != "paired" and len(levels) == 1:
        _add_difference(effect, family, levels[0], sd)
    return effect


NO_DETAIL = "the file has no requests; save it with --save-detailed"


def _totals(family: tuple[str, str], group: list[tuple[SideLevel, SideLevel]], rows: list[Round]) -> Effect | None:
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


def _welch(variances: Array, degrees: Array) -> float:
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
            _welch(np.array([spread[0][i], spread[1][i]]), np.array([ours[i].degrees, theirs[i].degrees]))
            for i in range(len(rows))
        ]
    )
    launches = sd**2 * (float(a.mean()) ** 2 + float(b.mean()) ** 2)
    found = _combine(b - a, spread[0] + spread[1], degrees, launches)
    half = _t(found.degrees, (1 + CONFIDENCE) / 2) * found.error
    effect.a, effect.b = float(a.mean()), float(b.mean())
    effect.difference = effect.b - effect.a
    effect.difference_ci95 = effect.difference - half, effect.difference + half


def _t(degrees: float, p: float) -> float:
    from scipy import special

    return float(special.stdtrit(degrees, p))


def _judge(family: list[Effect]) -> None:
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
        reach = _t(effect.degrees, 1 - alpha / len(known) / 2) + _t(effect.degrees, POWER)
        effect.detectable = math.expm1(min(reach * effect.standard_error, 700.0))
        if largest >= alpha:
            effect.word = "no detectable difference"
        else:
            more = effect.log_ratio > 0
            effect.word = "faster" if more == (effect.metric == THROUGHPUT) else "slower"


# --- the same speed per user


def _at_speed(speed: float, levels: list[list[Round]], launch_sd: Mapping[str, float]) -> SpeedComparison | None:
    """Throughputs where each user gets ``speed`` tokens/s; None outside what either side measured.

    Straight lines between neighbouring levels, in logarithms of both.
    """
    import numpy as np

    rounds = min(len(rows) for rows in levels)
    values: dict[str, list[float]] = {"a": [], "b": []}
    within, degrees = [], []
    for number in range(rounds):
        parts = []
        for name in ("a", "b"):
            curve = []
            for rows in levels:
                side = getattr(rows[number], name)
                pace, tokens = side["tpot_s", "p50"], side[THROUGHPUT, "mean"]
                if isinstance(pace, str) or isinstance(tokens, str):
                    return None
                curve.append((pace, tokens))
            centre = _interpolate(
                math.log(speed), np.array([[-p.value] for p, _ in curve]), np.array([[t.value] for _, t in curve])
            )
            if math.isnan(centre[0]):
                return None
            count = min(len(drawn.draws) for pair in curve for drawn in pair)
            drawn = _interpolate(
                math.log(speed),
                np.array([-p.draws[:count] for p, _ in curve]),
                np.array([t.draws[:count] for _, t in curve]),
            )
            drawn = drawn[~np.isnan(drawn)]
            values[name].append(float(centre[0]))
            freedom = min(p.degrees for p, _ in curve)
            # At the end of a curve some resamples do not reach it; half of them must.
            parts.append((float(drawn.var(ddof=1)) if len(drawn) > count / 2 else math.nan, freedom))
        variances = np.array([part[0] for part in parts])
        within.append(float(variances.sum()))
        degrees.append(_welch(variances, np.array([part[1] for part in parts])))
    a, b = np.array(values["a"]), np.array(values["b"])
    interval = None
    # A launch that is slower moves along the curve and away from it; both are allowed for.
    sd = math.hypot(launch_sd.get("tpot_s", 0.0), launch_sd.get(THROUGHPUT, 0.0))
    ratio = math.exp(float((b - a).mean()))
    if not np.isnan(within).any():
        found = _combine(b - a, np.array(within), np.array(degrees), 2 * sd**2)
        half = _t(found.degrees, (1 + CONFIDENCE) / 2) * found.error
        interval = math.exp(found.value - half), math.exp(found.value + half)
    return SpeedComparison(
        speed_tps=speed,
        a_tps=math.exp(float(a.mean())),
        b_tps=math.exp(float(b.mean())),
        ratio=ratio,
        ratio_ci95=interval,
    )


def _interpolate(speed: float, paces: Array, tokens: Array) -> Array:
    """Levels x curves of log speed and log throughput to the throughput at that speed; NaN outside."""
    import numpy as np

    found = np.full(paces.shape[1], np.nan)
    for column in range(paces.shape[1]):
        order = np.argsort(paces[:, column], kind="stable")
        x, y = paces[order, column], tokens[order, column]
        if x[0] <= speed <= x[-1] and len(x) > 1:
            found[column] = np.interp(speed, x, y)
    return found


# --- decisions for scripts

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

    ``>`` fails where the interval's lower end is above the bound, passes where its upper end is not,
    and is undecided where the interval holds the bound, or there is none; ``<`` is the mirror image.
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
