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
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from loadgen.analysis.slo import Slo
from loadgen.analysis.stats import CONFIDENCE
from loadgen.comparison.blocks import FAMILIES, THROUGHPUT, Round, draw
from loadgen.comparison.capacity import Capacities, capacities
from loadgen.comparison.effects import Effect, combine, effect_of, judge, student_t, totals_effect, welch
from loadgen.comparison.gate import Finding, Order, gate, level_name, match_levels, order_of
from loadgen.comparison.sides import Side, SideLevel
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
SPEEDS = (10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0)


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
    attainment: float | None = None,
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
                effects=[totals_effect(family, group, rows) or effect_of(family, [rows], sd) for family in FAMILIES],
            )
        )
    for position in range(len(FAMILIES)):
        judge([level.effects[position] for level in result.levels])
    if len(drawn) > 1:
        result.overall = [effect_of(family, drawn, sd) for family in FAMILIES]
        for effect in result.overall:
            judge([effect])
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
        degrees.append(welch(variances, np.array([part[1] for part in parts])))
    a, b = np.array(values["a"]), np.array(values["b"])
    interval = None
    # A launch that is slower moves along the curve and away from it; both are allowed for.
    sd = math.hypot(launch_sd.get("tpot_s", 0.0), launch_sd.get(THROUGHPUT, 0.0))
    ratio = math.exp(float((b - a).mean()))
    if not np.isnan(within).any():
        found = combine(b - a, np.array(within), np.array(degrees), 2 * sd**2)
        half = student_t(found.degrees, (1 + CONFIDENCE) / 2) * found.error
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
