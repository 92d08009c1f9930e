"""Which load a search measures next: generators, outcomes in and the next load out. Pure."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import msgspec

from loadgen.analysis.criteria import (
    requests_needed,
)
from loadgen.analysis.probes import BLOCKS, Ask, Interval, Probe, Purpose
from loadgen.records import Goal
from loadgen.records.manifest import Over

if TYPE_CHECKING:
    pass


Ends = tuple[float | None, float | None]

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


class SearchEndedError(Exception):
    """The search cannot go on; says why."""


Search = Generator[Ask, Probe, str]

Decided = Generator[Ask, Probe, Probe]


def _spent(log: list[Probe]) -> bool:
    return sum(probe.purpose == "search" for probe in log) >= MAX_SEARCH


def _one(ask: Ask) -> Decided:
    """One load; where something else than the server was its limit, once more, since that may pass."""
    probe = yield ask
    if probe.blocked is not None:
        probe = yield ask._replace(again=True)
    if probe.blocked is not None:
        text = f"{'requests/s' if ask.over == 'rate' else 'in flight'}: {BLOCKS[probe.blocked]}"
        raise SearchEndedError(f"{probe.blocked} at {ask.load:g} {text}")
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


def search_capacity(goal: Goal, log: list[Probe]) -> Search:
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
    confirmed = [load for load, runs in confirming_runs(final_probes(log)).items() if all_hold(runs)]
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


def final_probes(probes: Sequence[Probe]) -> list[Probe]:
    """Without those that were measured again."""
    found: list[Probe] = []
    for probe in probes:
        if probe.again:
            same = [i for i, one in enumerate(found) if (one.over, one.load, one.purpose) == load_key(probe)]
            del found[same[-1]]
        found.append(probe)
    return found


def load_key(probe: Probe) -> tuple[Over, float, Purpose]:
    return probe.over, probe.load, probe.purpose


def confirming_runs(probes: Sequence[Probe]) -> dict[float, list[Probe]]:
    """The runs of each candidate, of probes that are final."""
    found: dict[float, list[Probe]] = {}
    for probe in probes:
        if probe.purpose == "confirm":
            found.setdefault(probe.load, []).append(probe)
    return found


def all_hold(runs: list[Probe]) -> bool:
    return len(runs) == CONFIRMING and all(run.word == "holds" for run in runs)


def search_knee(goal: Goal, log: list[Probe]) -> Search:
    def at(load: float, purpose: Purpose) -> Decided:
        probe = yield from _one(Ask("concurrency", load, goal.duration_s, purpose))
        if is_unsure(probe) and _longer(goal, probe) > goal.duration_s:
            longer = Ask("concurrency", load, _longer(goal, probe), purpose, again=True)
            probe = yield from _one(longer)
        if is_unsure(probe):
            why = ", ".join(probe.statuses) or "no interval of its throughput"
            raise SearchEndedError(f"{why} at {load:g} in flight, also when it was measured for longer")
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
        flat = 0 if gain_of(probe, before)[0] > LEAST_GAIN else flat + 1
        before, load = probe, 2 * load
    knee = knee_of(log)
    if knee is None:
        return "the throughput is not known"
    yield from at(max(float(round(knee.in_flight)), 1.0), "knee")
    return "done"


def is_unsure(probe: Probe) -> bool:
    return bool(probe.statuses) or probe.throughput_ci95_tps is None or probe.rate_ci95_rps is None


def ratio(
    value: float | None, interval: Interval | None, other: float | None, other_interval: Interval | None
) -> Interval:
    """The 95 % interval of value / other, of two independent figures: their relative half widths, in logarithms,
    add up as squares. From 0 to infinity where one is not known."""
    if not value or not other or interval is None or other_interval is None:
        return 0.0, math.inf
    spread = math.hypot(relative_width(value, interval), relative_width(other, other_interval))
    return value / other * math.exp(-spread), value / other * math.exp(spread)


def gain_of(probe: Probe, other: Probe) -> Interval:
    """The output throughput of one over that of the other."""
    return ratio(probe.throughput_tps, probe.throughput_ci95_tps, other.throughput_tps, other.throughput_ci95_tps)


def relative_width(value: float, interval: Interval) -> float:
    return (interval[1] - interval[0]) / 2 / value


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


def knee_of(probes: Sequence[Probe]) -> Knee | None:
    sure = [probe for probe in final_probes(probes) if not is_unsure(probe) and probe.rate_rps and probe.e2e_s]
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
        parts = relative_width(top.rate_rps, top.rate_ci95_rps), relative_width(single.e2e_s, single.e2e_ci95_s)
        spread = math.hypot(*parts)
        knee.in_flight_ci95 = (knee.in_flight * math.exp(-spread), knee.in_flight * math.exp(spread))
    there = next((probe for probe in sure if probe.purpose == "knee"), None)
    if there is not None and there.throughput_tps and top.throughput_tps:
        knee.level, knee.e2e_s = there.index, there.e2e_s
        knee.share_of_max = there.throughput_tps / top.throughput_tps
        knee.share_ci95 = gain_of(there, top)
    return knee
