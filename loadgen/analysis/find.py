"""Searches for a server's limit: which load to measure next, and what the measured ones tell. Pure.

``capacity``: the load doubles until it is shown to break the objectives, then the gap between the
highest that keeps them and the lowest that does not is halved (geometrically) until its ends are
within 10 %, or neighbours. A load ``holds`` only where the lower bound of the share of requests that
keep the objectives reaches the target, and ``breaks`` where the upper bound does not
(:mod:`loadgen.analysis.criteria`). One that is undecided is measured once more for longer, and if it still is,
it counts as not held; but while the load doubles, one that nothing speaks against is passed by, and
measured for longer only when it is the highest of its kind. The candidate, of a closed loop the lower
end of its throughput's interval, is confirmed by five open-loop runs (MLPerf Inference's rule),
each with arrivals of its own: all five have to hold. If one does not, a lower rate is tried, and if
that is confirmed, one in between. The upper end of the capacity is the lowest rate of an open loop that was
shown to break; where a closed loop was searched, the rate is doubled once more for it.

A level whose limit was something else than the server, such as loadgen itself, is measured again; if
it is still so, the search ends there, and says it.

``knee``: concurrency doubles until throughput has stopped rising: until twice in a row the gain of a
doubling is not surely above 5 %. With X the highest throughput and R the response time of a single
request, N* = X R is the load above which requests wait (asymptotic bounds: Lazowska, Zahorjan, Graham
and Sevcik 1984, "Quantitative System Performance", chapter 5). A level is measured there.

A search is a generator that is given each probe's outcome and says which load to measure next. It
reads no clock: :func:`follow` goes through it again over the levels of a run folder, and so makes the
same result from it.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from loadgen.analysis.criteria import (
    SHOWS_LIMIT,
    Word,
    binds,
    criteria_of,
    needed_if_all_keep,
    requests_needed,
    tightest,
    word_of,
)
from loadgen.analysis.slo import SloFigures, parse_slos
from loadgen.loads import Open
from loadgen.records import Goal

if TYPE_CHECKING:
    from loadgen.analysis.figures import LevelSummary

Kind = Literal["capacity", "knee"]
Over = Literal["concurrency", "rate"]
Purpose = Literal["search", "confirm", "knee"]
Ends = tuple[float | None, float | None]
Interval = tuple[float, float]

NEAR = 1.10  # ends of the gap that are no further apart than this are near enough
LONGER = 3.0  # so many times as long is an undecided load measured again
ROOM = 1.2  # of the requests that would decide a load if all keep to it
MAX_SEARCH = 24  # probes
CONFIRMING = 5  # runs (MLCommons inference rules)
MAX_CANDIDATES = 4
MAX_UPWARDS = 6
MOST_TRIES = 4  # of one load: twice where the client was the limit, and that for longer
MAX_LEVELS = MAX_SEARCH + MOST_TRIES * (1 + CONFIRMING * MAX_CANDIDATES + MAX_UPWARDS)
LEAST_GAIN = 1.05  # of a doubling
FLAT = 2  # doublings in a row without it
# What ends a search, since it is not the server's limit, in words.
BLOCKS = {
    "CLIENT_BOUND": "loadgen itself, not the server, is what binds there: use more --workers, free cores, or another "
    "machine for it",
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


class Knee(msgspec.Struct, kw_only=True):
    """Where throughput stops rising.

    Attributes:
        max_rps, max_ci95_rps: the highest throughput, in requests/s.
        single_s, single_ci95_s: the response time of a single request.
        in_flight, in_flight_ci95: N*, their product; the intervals are taken together as independent ones are.
        level: index of the level that was measured there.
        share_of_max: output throughput there over the highest, and its interval.
        e2e_s: mean response time there.
    """

    max_rps: float
    max_ci95_rps: Interval | None = None
    single_s: float
    single_ci95_s: Interval | None = None
    in_flight: float
    in_flight_ci95: Interval | None = None
    level: int | None = None
    share_of_max: float | None = None
    share_ci95: Interval | None = None
    e2e_s: float | None = None


class Find(msgspec.Struct, kw_only=True):
    """What was found: ``find`` in summary.json.

    Attributes:
        ended: why the search ended: ``done``, or what stopped it.
        capacity_rps: from a rate that held to the lowest that was shown to break, of open loops; either
            None where it is not known. The lower one is sure only where it is ``confirmed``.
        capacity_concurrency: likewise, where concurrency was raised; of a closed loop.
        confirmed: five open-loop runs at the lower end held, each for itself.
        confirming: levels of the last candidate's runs.
        binds: what breaks first.
    """

    kind: Kind
    over: Over
    slo: str
    attainment: float
    ended: str
    probes: list[Probe]
    capacity_rps: Ends | None = None
    capacity_concurrency: Ends | None = None
    confirmed: bool = False
    confirming: list[int] = []
    binds: str | None = None
    knee: Knee | None = None

    @property
    def found(self) -> bool:
        """Whether there is what was looked for, and it is sure."""
        return self.confirmed if self.kind == "capacity" else self.knee is not None and self.knee.level is not None


class _EndedError(Exception):
    """The search cannot go on; says why."""


Search = Generator[Ask, Probe, str]
Decided = Generator[Ask, Probe, Probe]


def follow(goal: Goal, seen: Sequence[Probe]) -> tuple[list[Probe], Ask | None, str]:
    """The search after so many levels.

    Args:
        seen: the levels so far, in order.

    Returns:
        The probes with their purpose, the load to measure next (None when the search has ended), and
        why it has ended.

    Raises:
        ValueError: the levels are not those that this search asks for.
    """
    log: list[Probe] = []
    search = _capacity(goal, log) if goal.kind == "capacity" else _knee(goal, log)
    try:
        ask = next(search)
        for index, probe in enumerate(seen):
            if (probe.over, probe.load) != (ask.over, ask.load):
                raise ValueError(f"level {index} is not the load that the search asked for")
            log.append(
                msgspec.structs.replace(
                    probe, index=index, purpose=ask.purpose, again=ask.again, duration_s=ask.duration_s
                )
            )
            ask = search.send(log[-1])
    except StopIteration as stop:
        return log, None, str(stop.value)
    except _EndedError as ended:
        return log, None, str(ended)
    return log, ask, "not ended yet"


def found_by(goal: Goal, seen: Sequence[Probe], stopped: str = "stopped before it was done") -> Find:
    """What the levels tell.

    Args:
        stopped: why no more were measured, where the search would have gone on.
    """
    probes, ask, ended = follow(goal, seen)
    find = Find(
        kind=goal.kind,
        over=goal.over,
        slo=goal.slo,
        attainment=goal.attainment,
        ended=ended if ask is None else stopped,
        probes=probes,
    )
    if goal.kind == "knee":
        # Before throughput has stopped rising its highest value says nothing.
        find.knee = _knee_of(probes) if any(probe.purpose == "knee" for probe in probes) else None
    else:
        _tell_capacity(find)
    return find


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


# The search for a capacity.


def _spent(log: list[Probe]) -> bool:
    return sum(probe.purpose == "search" for probe in log) >= MAX_SEARCH


def _one(ask: Ask) -> Decided:
    """One load; where something else than the server was its limit, once more, since that may pass."""
    probe = yield ask
    if probe.blocked is not None:
        probe = yield ask._replace(again=True)
    if probe.blocked is not None:
        text = f"{'requests/s' if ask.over == 'rate' else 'in flight'}: {BLOCKS[probe.blocked]}"
        raise _EndedError(f"{probe.blocked} at {ask.load:g} {text}")
    return probe


def _decide(goal: Goal, ask: Ask, patient: bool = True) -> Decided:
    """One load, measured again for longer where it is undecided.

    Args:
        patient: False leaves a load open that nothing speaks against.
    """
    probe = yield from _one(ask)
    longer = _longer(goal, probe)
    if probe.word == "undecided" and longer > ask.duration_s and (patient or not probe.favourable):
        probe = yield from _one(ask._replace(duration_s=longer, again=True))
    return probe


def _longer(goal: Goal, probe: Probe) -> float:
    """Three times as long, or as long as it takes for enough requests; seconds."""
    wanted = LONGER * probe.duration_s
    if probe.needed is not None and probe.rate_rps:
        wanted = max(wanted, ROOM * probe.needed / probe.rate_rps)
    return float(f"{min(wanted, goal.max_duration_s):.4g}")


def _between(over: Over, low: float, high: float) -> float | None:
    """The load in the middle; None where the two are near enough."""
    if high / low <= NEAR:
        return None
    middle = math.sqrt(low * high)
    if over == "concurrency":
        middle = min(max(round(middle), low + 1), high - 1)
    else:
        middle = float(f"{middle:.4g}")
    return middle if low < middle < high else None


def _capacity(goal: Goal, log: list[Probe]) -> Search:
    held = yield from _bracket(goal, log)
    if held is None:
        known = [probe for probe in log if probe.word == "breaks"]
        if known and goal.over == "concurrency" and min(probe.load for probe in known) == 1:
            return "already a single request in flight breaks the objectives; only --rate goes lower"
        return "no load was shown to hold; what would decide it is a longer --duration or --max-duration"
    rate = held.load
    if goal.over == "concurrency":
        assert held.rate_ci95_rps is not None
        rate = _down(held.rate_ci95_rps[0])
        if not rate > 0:
            return "the throughput of the load that held is not known well enough for an open-loop run"
    ended = yield from _confirm(goal, rate, held.duration_s)
    confirmed = [load for load, runs in _confirming(_final(log)).items() if _all_hold(runs)]
    if confirmed and not any(probe.over == "rate" and probe.word == "breaks" for probe in log):
        yield from _upwards(goal, max(confirmed), log)
    return ended


def _upwards(goal: Goal, rate: float, log: list[Probe]) -> Generator[Ask, Probe, None]:
    """Doubles the rate of an open loop until it is shown to break.

    The load that breaks a closed loop does not tell it: requests that began together stay together
    there, and wait for each other where arrivals at random do not.
    """
    if goal.over == "rate":
        return  # it went up to the highest load that may be tried
    for _ in range(MAX_UPWARDS):
        rate = float(f"{2 * rate:.4g}")
        probe = yield from _decide(goal, Ask("rate", rate, goal.duration_s, "search"), patient=False)
        if probe.word == "breaks":
            return


def _down(value: float) -> float:
    """Four digits, not rounded up."""
    rounded = float(f"{value:.4g}")
    return rounded if rounded <= value else float(f"{value * (1 - 5e-4):.4g}")


def _bracket(goal: Goal, log: list[Probe]) -> Generator[Ask, Probe, Probe | None]:
    """The highest load that holds, its neighbour that does not having been measured."""
    last: dict[float, Probe] = {}
    open_loads: list[float] = []  # held, or undecided with nothing against them; all below ``above``
    above: float | None = None  # the lowest that does not hold

    def at(load: float, patient: bool, duration_s: float | None = None) -> Decided:
        nonlocal above
        ask = Ask(goal.over, load, duration_s or goal.duration_s, "search", again=duration_s is not None)
        probe = yield from _decide(goal, ask, patient)
        last[load] = probe
        open_ = probe.word == "holds" or (not patient and probe.favourable)
        if open_ and (above is None or load < above):
            if load not in open_loads:
                open_loads.append(load)
        elif not open_:
            above = load if above is None else min(above, load)
            open_loads[:] = [one for one in open_loads if one < above]
        return probe

    load = goal.start
    while True:
        probe = yield from at(load, patient=False)
        if probe.word == "breaks" or load >= goal.highest or _spent(log):
            break
        load = min(2 * load, goal.highest)
    load = goal.start
    while not open_loads and not _spent(log):
        if goal.over == "concurrency" and load <= 1:
            return None
        load = max(1.0, load // 2) if goal.over == "concurrency" else float(f"{load / 2:.4g}")
        yield from at(load, patient=False)
    while open_loads and not _spent(log):
        low = max(open_loads)
        middle = None if above is None else _between(goal.over, low, above)
        if middle is not None:
            yield from at(middle, patient=True)
        elif last[low].word == "holds":
            break
        else:
            yield from at(low, patient=True, duration_s=max(_longer(goal, last[low]), goal.duration_s))
    shown = [load for load in open_loads if last[load].word == "holds"]
    return last[max(shown)] if shown else None


def _confirm(goal: Goal, first: float, duration_s: float) -> Search:
    """Five open-loop runs at a candidate, lower ones, and ones in between."""
    good: float | None = None
    bad: float | None = None
    rate: float | None = first
    for _ in range(MAX_CANDIDATES):
        assert rate is not None
        # No shorter than what takes enough requests at all.
        least_s = float(f"{ROOM * requests_needed(goal.attainment, None) / rate:.4g}")
        run_s = min(max(duration_s, least_s), goal.max_duration_s)
        for _ in range(CONFIRMING):
            probe = yield from _decide(goal, Ask("rate", rate, run_s, "confirm"))
            run_s = probe.duration_s  # what one needed, the others are likely to need
            if probe.word != "holds":
                bad = rate
                break
        else:
            good = rate
        if bad is None:
            return "done"
        rate = _between("rate", first / 2 if good is None else good, bad)
        if rate is None:
            break
    return "done" if good is not None else f"not confirmed: of {MAX_CANDIDATES} rates none held five times"


def _final(probes: Sequence[Probe]) -> list[Probe]:
    """Without those that were measured again."""
    found: list[Probe] = []
    for probe in probes:
        if probe.again:
            same = [i for i, one in enumerate(found) if (one.over, one.load, one.purpose) == _key(probe)]
            del found[same[-1]]
        found.append(probe)
    return found


def _key(probe: Probe) -> tuple[Over, float, Purpose]:
    return probe.over, probe.load, probe.purpose


def _confirming(probes: Sequence[Probe]) -> dict[float, list[Probe]]:
    """The runs of each candidate, of probes that are final."""
    found: dict[float, list[Probe]] = {}
    for probe in probes:
        if probe.purpose == "confirm":
            found.setdefault(probe.load, []).append(probe)
    return found


def _all_hold(runs: list[Probe]) -> bool:
    return len(runs) == CONFIRMING and all(run.word == "holds" for run in runs)


def _tell_capacity(find: Find) -> None:
    probes = _final(find.probes)
    opened = [probe for probe in probes if probe.over == "rate"]
    confirming = _confirming(probes)
    good = [rate for rate, runs in confirming.items() if _all_hold(runs)]
    if confirming:
        shown = max(good) if good else list(confirming)[-1]
        find.confirming = [run.index for run in confirming[shown]]
    find.confirmed = bool(good)
    if good:
        lower: float | None = max(good)
    else:
        # A load that was passed by, nothing speaking against it, is no objection to a higher one that held.
        passed = [probe.index for probe in opened if probe.purpose == "search" and probe.favourable]
        not_held = [probe.load for probe in opened if probe.word != "holds" and probe.index not in passed]
        held = [p.load for p in opened if p.word == "holds" and all(p.load < load for load in not_held)]
        lower = max(held, default=None)
    broken = [(probe.load, probe) for probe in opened if probe.word == "breaks"]
    if find.over == "concurrency":
        closed = [probe for probe in probes if probe.over == "concurrency"]
        holding = max((p for p in closed if p.word == "holds"), key=lambda p: p.load, default=None)
        breaking = min((p for p in closed if p.word == "breaks"), key=lambda p: p.load, default=None)
        find.capacity_concurrency = (
            None if holding is None else holding.load,
            None if breaking is None else breaking.load,
        )
        find.binds = None if breaking is None else breaking.binds
    # The lowest that breaks above what holds; all of them where nothing does.
    broken = [(rate, probe) for rate, probe in broken if lower is None or rate > lower]
    upper = min(broken, key=lambda pair: pair[0], default=None)
    if lower is not None or upper is not None:
        find.capacity_rps = (lower, None if upper is None else upper[0])
    if upper is not None:
        find.binds = upper[1].binds
    elif find.probes and find.probes[-1].blocked == "CLIENT_BOUND":
        find.binds = "loadgen itself, not the server"


# The search for the knee.


def _knee(goal: Goal, log: list[Probe]) -> Search:
    def at(load: float, purpose: Purpose) -> Decided:
        probe = yield from _one(Ask("concurrency", load, goal.duration_s, purpose))
        if _unsure(probe) and _longer(goal, probe) > goal.duration_s:
            longer = Ask("concurrency", load, _longer(goal, probe), purpose, again=True)
            probe = yield from _one(longer)
        if _unsure(probe):
            why = ", ".join(probe.statuses) or "no interval of its throughput"
            raise _EndedError(f"{why} at {load:g} in flight, also when it was measured for longer")
        return probe

    before = yield from at(1.0, "search")
    flat = 0
    load = max(goal.start, 2.0)
    if load > 2:  # where it is to begin; the first of the doublings
        before = yield from at(load, "search")
        load *= 2
    while flat < FLAT:
        if load > goal.highest or _spent(log):
            return f"throughput still rose at {before.load:g} in flight"
        probe = yield from at(load, "search")
        flat = 0 if _gain(probe, before)[0] > LEAST_GAIN else flat + 1
        before, load = probe, 2 * load
    knee = _knee_of(log)
    if knee is None:
        return "the throughput is not known"
    yield from at(max(float(round(knee.in_flight)), 1.0), "knee")
    return "done"


def _unsure(probe: Probe) -> bool:
    return bool(probe.statuses) or probe.throughput_ci95_tps is None or probe.rate_ci95_rps is None


def ratio(
    value: float | None, interval: Interval | None, other: float | None, other_interval: Interval | None
) -> Interval:
    """The 95 % interval of value / other, of two independent figures: their relative half widths, in logarithms,
    add up as squares. From 0 to infinity where one is not known."""
    if not value or not other or interval is None or other_interval is None:
        return 0.0, math.inf
    spread = math.hypot(_relative(value, interval), _relative(other, other_interval))
    return value / other * math.exp(-spread), value / other * math.exp(spread)


def _gain(probe: Probe, other: Probe) -> Interval:
    """The output throughput of one over that of the other."""
    return ratio(probe.throughput_tps, probe.throughput_ci95_tps, other.throughput_tps, other.throughput_ci95_tps)


def _relative(value: float, interval: Interval) -> float:
    return (interval[1] - interval[0]) / 2 / value


def _knee_of(probes: Sequence[Probe]) -> Knee | None:
    sure = [probe for probe in _final(probes) if not _unsure(probe) and probe.rate_rps and probe.e2e_s]
    search = [probe for probe in sure if probe.purpose == "search"]
    single = next((probe for probe in search if probe.load == 1), None)
    if single is None or len(search) < 1 + FLAT:
        return None
    top = max(search, key=lambda probe: probe.throughput_tps or 0.0)
    assert top.rate_rps is not None and single.e2e_s is not None
    knee = Knee(
        max_rps=top.rate_rps,
        max_ci95_rps=top.rate_ci95_rps,
        single_s=single.e2e_s,
        single_ci95_s=single.e2e_ci95_s,
        in_flight=top.rate_rps * single.e2e_s,
    )
    if top.rate_ci95_rps is not None and single.e2e_ci95_s is not None:
        spread = math.hypot(_relative(top.rate_rps, top.rate_ci95_rps), _relative(single.e2e_s, single.e2e_ci95_s))
        knee.in_flight_ci95 = (knee.in_flight * math.exp(-spread), knee.in_flight * math.exp(spread))
    there = next((probe for probe in sure if probe.purpose == "knee"), None)
    if there is not None and there.throughput_tps and top.throughput_tps:
        knee.level, knee.e2e_s = there.index, there.e2e_s
        knee.share_of_max = there.throughput_tps / top.throughput_tps
        knee.share_ci95 = _gain(there, top)
    return knee


def find_of(goal: Goal, levels: Sequence[LevelSummary]) -> Find | None:
    """What a run folder's levels tell of what was looked for.

    Args:
        goal: the manifest's ``load.find``.

    Returns:
        None where the levels are not those of this search, as in a run of another version.
    """
    try:
        return found_by(goal, [probe_of(goal, level) for level in levels])
    except ValueError:
        return None
