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

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from loadgen.analysis.probes import Ask, Kind, Probe, probe_of
from loadgen.analysis.search import (
    Ends,
    Knee,
    SearchEndedError,
    all_hold,
    confirming_runs,
    final_probes,
    knee_of,
    search_capacity,
    search_knee,
)
from loadgen.records import Goal
from loadgen.records.manifest import Over

if TYPE_CHECKING:
    from loadgen.analysis.figures import LevelSummary


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
    search = search_capacity(goal, log) if goal.kind == "capacity" else search_knee(goal, log)
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
    except SearchEndedError as ended:
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
        find.knee = knee_of(probes) if any(probe.purpose == "knee" for probe in probes) else None
    else:
        _tell_capacity(find)
    return find


# The search for a capacity.


def _tell_capacity(find: Find) -> None:
    probes = final_probes(find.probes)
    opened = [probe for probe in probes if probe.over == "rate"]
    confirming = confirming_runs(probes)
    good = [rate for rate, runs in confirming.items() if all_hold(runs)]
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
