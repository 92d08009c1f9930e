"""The levels of a search: what it asks for, and how it sees what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from loadgen.analysis.criteria import (
    SHOWS_LIMIT,
    Word,
    binds,
    criteria_of,
    needed_if_all_keep,
    tightest,
    word_of,
)
from loadgen.analysis.slo import SloFigures, parse_slos
from loadgen.loads import Open
from loadgen.records import Goal
from loadgen.records.manifest import Over

if TYPE_CHECKING:
    from loadgen.analysis.figures import LevelSummary


Kind = Literal["capacity", "knee"]

Purpose = Literal["search", "confirm", "knee"]

Interval = tuple[float, float]


# What ends a search, since it is not the server's limit, in words.
BLOCKS = {
    "CLIENT_BOUND": "loadgen itself, not the server, was the limit there: use more --workers, free cores, or run "
    "loadgen on another machine",
    "LOAD_NOT_ACHIEVED": "the load was not reached there, for another reason than the objectives",
    "OUTPUT_MISMATCH": "the server did not return as many tokens as were asked for",
    "INTERRUPTED": "the level did not run to its end",
}


class Ask(NamedTuple):
    """The load to measure next; ``again`` takes the place of the probe before."""

    over: Over
    load: float
    duration_s: float
    purpose: Purpose
    again: bool = False


class Probe(msgspec.Struct, kw_only=True):
    """A level as the search sees it.

    Attributes:
        index: of the level in the run.
        purpose, again: as it was asked for.
        over, load: requests in flight, or requests/s.
        duration_s: for how long it was to be measured.
        rate_rps, rate_ci95_rps: the rate of an open loop, the throughput of a closed one.
        share, ci95: of the criterion that is nearest to failing.
        word: what the level says of its load; ``not counted`` where something else than the server was its limit.
        favourable: nothing measured speaks against the load.
        needed: requests that would decide it, where all kept to it.
        binds: what broke, in words.
        statuses: of its verdict.
        throughput_tps, throughput_ci95_tps: output tokens/s.
        e2e_s, e2e_ci95_s: mean response time.
    """

    index: int = 0
    purpose: Purpose = "search"
    again: bool = False
    over: Over
    load: float
    duration_s: float
    rate_rps: float | None = None
    rate_ci95_rps: Interval | None = None
    share: float | None = None
    ci95: Interval | None = None
    word: Word
    favourable: bool = False
    needed: int | None = None
    binds: str | None = None
    statuses: list[str] = []
    throughput_tps: float | None = None
    throughput_ci95_tps: Interval | None = None
    e2e_s: float | None = None
    e2e_ci95_s: Interval | None = None

    @property
    def blocked(self) -> str | None:
        """The status that ends the search, if any."""
        found = [status for status in self.statuses if status not in SHOWS_LIMIT]
        return "CLIENT_BOUND" if "CLIENT_BOUND" in found else found[0] if found else None


def probe_of(goal: Goal, level: LevelSummary) -> Probe:
    """A measured level as the search sees it."""
    is_open = isinstance(level.load, Open)
    probe = Probe(
        over="rate" if is_open else "concurrency",
        load=level.load.value,
        duration_s=level.duration_s,
        word="undecided",
        statuses=list(dict.fromkeys(reason.status for reason in level.verdict.reasons)),
        throughput_tps=level.output_throughput_tps,
        throughput_ci95_tps=level.ci95.get("output_throughput_tps"),
        e2e_s=level.e2e_s.mean,
        e2e_ci95_s=level.e2e_s.ci95.get("mean"),
    )
    rate = probe.load if is_open else level.request_throughput_rps
    if rate:
        probe.rate_rps = rate
        probe.rate_ci95_rps = (rate, rate) if is_open else level.ci95.get("request_throughput_rps", (rate, rate))
    if goal.kind == "knee" or not isinstance(level.slo, SloFigures):
        return probe
    criteria = criteria_of(level.slo, parse_slos(goal.slo), goal.attainment)
    tight = criteria[tightest(criteria)]
    probe.share, probe.ci95, probe.word = tight.share, tight.ci95, word_of(criteria)
    statuses = set(probe.statuses)
    if is_open and "CLIENT_BOUND" not in statuses:
        # The server did not keep up: what was held back by those in flight counts from when it was due.
        probe.statuses = [status for status in probe.statuses if status != "LOAD_NOT_ACHIEVED"]
    if probe.blocked:
        probe.word = "not counted"
    elif statuses and probe.word == "holds":
        probe.word = "undecided"  # it drifts, say: what holds now may not hold for long
    if probe.word == "undecided":
        # Too few are no objection; requests that fail, or a level that drifts, are.
        probe.favourable = statuses <= {"TOO_FEW"} and all(c.slack >= 0 for c in criteria)
        probe.needed = needed_if_all_keep(criteria, None if is_open else int(probe.load))
    if probe.word == "breaks":
        load = f"{probe.load:g} requests/s" if is_open else f"{probe.load:g} in flight"
        probe.binds = binds(level.slo, level.server, load)
    return probe
