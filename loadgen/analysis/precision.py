"""How well a level knows its figures, and when a level that is to know them well enough ends. Pure.

``--precision 5%`` asks that the 95 % intervals of mean TTFT, mean TPOT and output throughput, of
those that the level has, be at most 5 % of the figure wide on either side. The level is looked at
when ``--duration`` has passed, then each time half as much again has, and ends when the goal is
met at two looks one after the other, or when ``--max-duration`` is over.

To stop when an interval is narrow is sequential sampling (Chow and Robbins 1965): it stops more
often where the spread is underestimated by chance. The second look is the guard against that, and
so is that few requests, or a level that is not steady, never meet the goal; docs/validation.md has
how often the intervals hold the truth with one look and with two.
"""

from __future__ import annotations

from loadgen.analysis.figures import Reached
from loadgen.analysis.gather import LevelAccumulator
from loadgen.analysis.intervals import mean_interval, rate_interval
from loadgen.analysis.level import latencies
from loadgen.analysis.steady import SteadyWindow
from loadgen.loads import Load
from loadgen.units import NS_PER_S

GROWTH = 1.5
LOOKS_MET = 2  # one after the other
MIN_REQUESTS = 200  # fewer, or fewer turns of a closed loop's slots, do not tell how alike they are
MIN_TURNS = 10

NAMES = {"ttft_mean_s": "mean TTFT", "tpot_mean_s": "mean TPOT", "output_throughput_tps": "output throughput"}


class Looks:
    """When a level is looked at, and whether it ends then; times in seconds since it began to be measured.

    Args:
        asked: relative half width.
        least_s, most_s: for how long it is measured, at least and at most.
        needed: good looks one after the other.
    """

    def __init__(self, asked: float, least_s: float, most_s: float, needed: int = LOOKS_MET) -> None:
        self._asked = asked
        self._needed = needed
        self._most_s = most_s
        self._met = 0
        self.count = 0
        self.next_s = min(least_s, most_s)

    def enough(self, elapsed_s: float, found: Reached) -> bool:
        """Takes what a look has found, nothing if it may not be believed; whether the level may end.

        If not, ``next_s`` is the next look.
        """
        self.count += 1
        self._met = self._met + 1 if is_met(self._asked, found) else 0
        self.next_s = min(max(elapsed_s, self.next_s) * GROWTH, self._most_s)
        return self._met >= self._needed


def is_met(asked: float, found: Reached) -> bool:
    """Whether something is known, and everything well enough."""
    return bool(found) and all(width is not None and width <= asked for width in found.values())


def half_width(value: float | None, interval: tuple[float, float] | None) -> float | None:
    """Half the width of an interval over its figure."""
    return None if not value or interval is None else (interval[1] - interval[0]) / 2 / abs(value)


def reached(load: Load, gathered: LevelAccumulator) -> Reached:
    """How well the requests of a level's steady window know its figures: those of summary.json."""
    outcomes = sorted(gathered.outcomes, key=lambda one: (one.issued_ns, one.seq))
    found: Reached = {}
    for name, field in (("ttft_mean_s", "ttft_s"), ("tpot_mean_s", "tpot_s")):
        values = latencies(outcomes, field)
        if len(values):
            found[name] = half_width(float(values.mean()), mean_interval(values, period=load.slots))
    window_s = (gathered.end_ns - gathered.start_ns) / NS_PER_S
    if gathered.window_output and window_s > 0:
        rate = gathered.window_output / window_s
        found["output_throughput_tps"] = half_width(rate, rate_interval(gathered.token_bins, window_s))
    return found


def tells(load: Load, gathered: LevelAccumulator, steady: SteadyWindow) -> bool:
    """Whether a look may be believed: the level has requests enough, and is not seen to drift."""
    needed = max(MIN_REQUESTS, MIN_TURNS * (load.slots or 0))
    return gathered.completed >= needed and steady.steady is not False


def in_words(found: Reached) -> str:
    """``mean TTFT 4.1%, mean TPOT 0.3%``."""
    words = [f"{NAMES[name]} {'not known' if width is None else f'{width:.1%}'}" for name, width in found.items()]
    return ", ".join(words) or "nothing"
