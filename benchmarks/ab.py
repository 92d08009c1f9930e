"""How often `loadgen compare` claims a difference between two equal engines, and how often it finds one.

    nice -n 19 python benchmarks/ab.py --output docs/validation-ab.md
    nice -n 19 python benchmarks/ab.py --capacity                       # the last table alone, printed

Runs are simulated: a server that decodes a batch step by step, in which the requests of a batch share
every step, steps are slower and faster for a while, prompts have answers of different lengths, launches
differ, and the machine drifts while a comparison goes on. B is A with every step longer by a planted
share, so that each latency is longer, and the throughput less, by exactly that. Each simulated round
becomes request records, and is read and compared by the code that reads a run folder. The last table is of
capacities at an equal SLO, from sweeps of such levels, closed and open.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loadgen.analysis.measure import Measured, summarize_level
from loadgen.analysis.outcome import outcome
from loadgen.analysis.slo import parse_slos
from loadgen.comparison.blocks import FAMILIES, THROUGHPUT
from loadgen.comparison.capacity import Capacities, capacities
from loadgen.comparison.differences import LAUNCH_SD, Comparison, compare
from loadgen.comparison.sides import Side, SideLevel, sample_of
from loadgen.environment import Host
from loadgen.loads import Closed, Load, Open
from loadgen.records import ClientEntry, EngineEntry, LevelMark, LoadEntry, Manifest, RequestRecord, UnknownDataset
from loadgen.report.compare import NAMES

S = 1_000_000_000
CONCURRENCIES = (8, 64)
WINDOW_S = 20.0
STEP_S = 3.4e-3  # of a batch of one
PER_SEQUENCE_S = 5e-5
PREFILL_S = 2.5e-3  # of one prompt, within the step
PREFILLS_PER_STEP = 8
OUTPUT_TOKENS = (96, 160)
STEP_NOISE_SD = 0.03
NOISE_TIME_S = 0.5  # within which the noise of steps forgets
EVENT_TOKENS = 16
DRIFT = 0.02  # of the machine, up and down within DRIFT_TIME_S
DRIFT_TIME_S = 900.0
LAUNCH_TIME_S = 60.0
PLANTED = 0.03
WARMUP_S = 5.0  # of an open loop
LAUNCH = LAUNCH_SD["tpot_s"]


class Case(NamedTuple):
    """What is simulated, and what compare() is told."""

    name: str
    pairs: int
    rounds: int
    launch_sd: float  # of the simulated launches
    interleaved: bool
    assumed: dict[str, float] | None
    planted: float


def simulate(concurrency: int, rng: np.random.Generator, lengths: list[int], slower: float) -> SideLevel:
    """One level of one round, in a closed loop.

    Args:
        lengths: output tokens of each prompt, in the order in which they are sent.
        slower: what every step is multiplied by.
    """
    records, start_s = serve(rng, lengths, slower, WINDOW_S, concurrency=concurrency)
    start = int(start_s * S)
    return SideLevel(
        load=Closed(concurrency=concurrency),
        round=0,
        verdict=["VALID"],
        sample=sample_of(records, start, start + int(WINDOW_S * S)),
        start_s=0.0,
    )


def serve(
    rng: np.random.Generator,
    lengths: list[int],
    slower: float,
    window_s: float,
    concurrency: int = 0,
    due_s: Sequence[float] = (),
) -> tuple[list[RequestRecord], float]:
    """The requests of a closed loop of so many in flight, or of those that are due, and the window's start in seconds.

    Args:
        due_s: of an open loop; the window then starts after WARMUP_S.
    """
    noise = _noise(rng, 40_000, NOISE_TIME_S / (STEP_S + PER_SEQUENCE_S * (concurrency or 32)))
    now, step, running, sent = 0.0, 0, 0, 0
    step_end: list[float] = []
    waiting: list[tuple[int, float]] = []
    ending: dict[int, list[tuple[int, float, int]]] = {}
    done: list[tuple[int, float, int]] = []  # prompt, sent, step of the first token
    for _ in range(concurrency):
        waiting.append((sent, 0.0))
        sent += 1
    start_s = math.inf if concurrency else WARMUP_S
    while now < start_s + window_s * 1.15:
        while sent < len(due_s) and due_s[sent] <= now:
            waiting.append((sent, due_s[sent]))
            sent += 1
        admitted, waiting = waiting[:PREFILLS_PER_STEP], waiting[PREFILLS_PER_STEP:]
        running += len(admitted)
        if not running and sent < len(due_s):
            now = due_s[sent]
            continue
        work = STEP_S + PER_SEQUENCE_S * running + PREFILL_S * len(admitted)
        now += work * noise[step] * slower
        step_end.append(now)
        for prompt, at in admitted:
            ending.setdefault(step + lengths[prompt] - 1, []).append((prompt, at, step))
        for request in ending.pop(step, ()):
            done.append(request)
            running -= 1
            if concurrency:
                waiting.append((sent, now))
                sent += 1
        if start_s == math.inf and len(done) >= 2 * concurrency:
            start_s = now
        step += 1
    ends = np.asarray(step_end)
    return [_record(request, lengths, ends, start_s, window_s, bool(due_s)) for request in done], start_s


def _noise(rng: np.random.Generator, steps: int, memory: float) -> list[float]:
    """A first-order autoregression of the logarithm of a step's time."""
    from scipy.signal import lfilter

    keep = math.exp(-1 / memory)
    shocks = rng.normal(0, STEP_NOISE_SD * math.sqrt(1 - keep**2), steps)
    shocks[0] /= math.sqrt(1 - keep**2)
    noise: list[float] = np.exp(lfilter([1.0], [1.0, -keep], shocks)).tolist()
    return noise


def _record(
    request: tuple[int, float, int],
    lengths: list[int],
    ends: np.ndarray,
    window_start_s: float,
    window_s: float,
    is_open: bool,
) -> RequestRecord:
    prompt, sent, first = request
    tokens = lengths[prompt]
    steps = [*range(0, tokens - 1, EVENT_TOKENS), tokens - 1]
    at = (ends[[first + step for step in steps]] * S).astype(np.int64)
    sent_ns = int(sent * S)
    measured = window_start_s <= sent <= window_start_s + window_s
    return RequestRecord(
        level=0,
        seq=prompt,
        prompt_id=str(prompt),
        worker=0,
        phase="measure" if measured else "warmup",
        scheduled_ns=sent_ns if is_open else None,
        sent_ns=sent_ns,
        first_token_ns=int(at[0]),
        last_token_ns=int(at[-1]),
        end_ns=int(at[-1]),
        event_ns=np.diff(at, prepend=sent_ns).tolist(),
        event_tokens=[1, *np.diff(steps).tolist()],
        input_tokens=256,
        output_tokens=tokens,
        requested_tokens=tokens,
        token_source="usage_continuous",
    )


def simulate_pair(case: Case, rng: np.random.Generator) -> tuple[Side, Side]:
    """Both sides of one comparison, in the order in which a sweep would measure them."""
    sides = (_side("A"), _side("B"))
    turns = [(number, which) for number in range(case.rounds) for which in ((0, 1) if number % 2 == 0 else (1, 0))]
    if not case.interleaved:
        turns.sort(key=lambda turn: turn[1])
    phase = rng.uniform(0, 2 * math.pi)
    lengths = {
        (number, concurrency): rng.integers(*OUTPUT_TOKENS, 4000, endpoint=True).tolist()
        for number in range(case.rounds)
        for concurrency in CONCURRENCIES
    }
    clock = 0.0
    launches = {which: math.exp(rng.normal(0, case.launch_sd)) for which in (0, 1)}
    for number, which in turns:
        clock += LAUNCH_TIME_S
        if case.interleaved:
            launches[which] = math.exp(rng.normal(0, case.launch_sd))
        for concurrency in CONCURRENCIES:
            drift = 1 + DRIFT * math.sin(2 * math.pi * clock / DRIFT_TIME_S + phase) if case.interleaved else 1.0
            slower = launches[which] * drift * (1 + case.planted * which)
            level = simulate(concurrency, rng, lengths[number, concurrency], slower)
            level.round, level.start_s = number, clock
            sides[which].levels.append(level)
            clock += WINDOW_S * 1.3
    return sides


def _side(label: str) -> Side:
    manifest = Manifest(
        command=["loadgen"],
        started_utc="",
        simulated=False,
        host=Host(),
        engine=EngineEntry(kind="model"),
        dataset=UnknownDataset(),
        seed=0,
        load=LoadEntry(model=None, requests=None, duration_s=WINDOW_S, rounds=None, warmup=True, timeouts=None),
        levels=[],
        client=ClientEntry(),
    )
    return Side(label=label, manifest=manifest, levels=[], sweep="one")


class CapacityCase(NamedTuple):
    """Sweeps of both sides over their own loads, at one SLO."""

    name: str
    pairs: int
    loads: tuple[float, ...]  # in flight, or requests/s
    window_s: float
    planted: float


CAPACITY_CASES = [
    CapacityCase("closed loop", 100, (16, 32, 48, 64, 80, 96), 20.0, 0.0),
    CapacityCase("closed loop", 40, (16, 32, 48, 64, 80, 96), 20.0, 0.3),
    CapacityCase("open loop", 100, (30, 40, 50, 60, 70, 80), 40.0, 0.0),
    CapacityCase("open loop", 40, (30, 40, 50, 60, 70, 80), 40.0, 0.3),
]
CAPACITY_ATTAINMENT = 0.95  # 99 % takes five times the requests, and the machine's time
SLO_TPOT_MS = (6.0, 10.0)  # drawn anew for each pair, so that the limit is anywhere between loads


def capacity_pair(case: CapacityCase, rng: np.random.Generator) -> Capacities:
    """One comparison. The sides are two launches, and sweep loads that are up to a tenth apart."""
    slos = parse_slos(f"ttft=500ms,tpot={rng.uniform(*SLO_TPOT_MS):.3f}ms")
    sides = []
    for which in (0, 1):
        slower = math.exp(rng.normal(0, LAUNCH)) * (1 + case.planted * which)
        grid = rng.uniform(0.95, 1.05)
        side = _side("AB"[which])
        side.measured = [_measured(case, round(load * grid, 1), rng, slower) for load in case.loads]
        sides.append(side)
    found = capacities(sides[0], sides[1], [], slos, CAPACITY_ATTAINMENT)
    if found is None or found.refused:
        raise SystemExit(f"a simulated pair is refused: {found}")
    return found


def _measured(case: CapacityCase, load: float, rng: np.random.Generator, slower: float) -> Measured:
    lengths = rng.integers(*OUTPUT_TOKENS, 8000, endpoint=True).tolist()
    if case.name == "closed loop":
        words: Load = Closed(concurrency=round(load))
        records, start_s = serve(rng, lengths, slower, case.window_s, concurrency=round(load))
    else:
        words = Open(rate_rps=load, arrival="poisson")
        due = np.cumsum(rng.exponential(1 / load, int(load * (WARMUP_S + case.window_s) * 1.3))).tolist()
        records, start_s = serve(rng, lengths, slower, case.window_s, due_s=due)
    start, end = int(start_s * S), int((start_s + case.window_s) * S)
    level = summarize_level(words, records, [], LevelMark(level=0, window_start_ns=start, window_end_ns=end))
    outcomes = [outcome(one) for one in records if one.phase == "measure"]
    return Measured(level=level, outcomes=outcomes)


def capacity_table() -> str:
    """The Markdown of the capacities."""
    closed, _, open_, _ = CAPACITY_CASES
    note = (
        f"What each side carries at the same SLO, met by {CAPACITY_ATTAINMENT:.0%} of requests, of which the TPOT is "
        f"drawn anew for each pair from {SLO_TPOT_MS[0]:g} to {SLO_TPOT_MS[1]:g} ms: sweeps over {len(closed.loads)} "
        f"loads, of {closed.window_s:g} s a level in the closed loop and {open_.window_s:g} s in the open one, a "
        f"launch a side (standard deviation {LAUNCH:.1%}), loads up to a tenth apart between the sides. `nice -n 19 "
        "python benchmarks/ab.py --capacity` makes this table alone. Told: pairs in which both sides have a capacity. "
        "Held: of these, intervals of B/A that hold 1. The median interval is that of its two ends. Planted: every "
        f"step of B takes {CAPACITY_CASES[1].planted:.0%} longer."
    )
    lines = [
        "", "## Capacity at the same SLO", "", *textwrap.wrap(note, 120), "",
        "| | pairs | told | held | cannot be told | A carries more | B carries more | median interval |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for number, case in enumerate(CAPACITY_CASES):
        started = time.perf_counter()
        rows = [capacity_pair(case, np.random.default_rng([9, number, n])).rows[0] for n in range(case.pairs)]
        ratios = [row.ratio for row in rows if row.ratio is not None]
        ends = [(low or 0.0, math.inf if high is None else high) for low, high in ratios]
        words = Counter(row.word for row in rows if row.ratio is not None)
        held = sum(low <= 1 <= high for low, high in ends)
        low, high = (float(np.median(column)) for column in zip(*ends, strict=True))
        kind = f"planted {case.planted:.0%}" if case.planted else "equal"
        lines.append(
            f"| {case.name}, {kind} | {len(rows)} | {len(ratios)} | {held if not case.planted else ''} "
            f"| {words['cannot be told']} | {words['A carries more']} | {words['B carries more']} "
            f"| {low:.2f} .. {high:.2f} |"
        )
        print(f"capacity, {case.name}, {kind}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return "\n".join(lines) + "\n"


class Tally:
    """Of the pairs of one case, by metric and statistic: claims, and intervals that held the truth."""

    def __init__(self) -> None:
        self.pairs = 0
        self.claimed: Counter[tuple[str, str]] = Counter()  # a difference, at any level
        self.found: Counter[tuple[str, str]] = Counter()  # the planted one: its direction, at any level
        self.overall: Counter[tuple[str, str]] = Counter()  # a difference, over all levels
        self.overall_known: Counter[tuple[str, str]] = Counter()
        self.held: Counter[tuple[str, str]] = Counter()
        self.intervals: Counter[tuple[str, str]] = Counter()
        self.detectable: dict[tuple[str, str], list[float]] = {}

    def add(self, comparison: Comparison, planted: float) -> None:
        """Counts one pair, which must have passed the gate."""
        if not comparison.comparable:
            raise SystemExit(f"a simulated pair is not comparable: {comparison.findings}")
        self.pairs += 1
        for position, family in enumerate(FAMILIES):
            effects = [level.effects[position] for level in comparison.levels]
            words = [effect.word for effect in effects]
            self.claimed[family] += "faster" in words or "slower" in words
            self.found[family] += "slower" in words
            overall = comparison.overall[position].word
            self.overall[family] += overall in ("faster", "slower")
            self.overall_known[family] += overall != "n/a"
            truth = 1 / (1 + planted) if family[0] == THROUGHPUT else 1 + planted
            for effect in effects:
                if effect.ratio_ci95 is not None and effect.detectable is not None:
                    self.intervals[family] += 1
                    self.held[family] += effect.ratio_ci95[0] <= truth <= effect.ratio_ci95[1]
                    self.detectable.setdefault(family, []).append(effect.detectable)

    def overall_share(self, family: tuple[str, str]) -> str:
        """Of the pairs that had a word over all levels."""
        known = self.overall_known[family]
        return f"{self.overall[family] / known:.1%}" if known else "n/a"

    def shown(self) -> list[tuple[str, str]]:
        """The families that had any interval."""
        return [family for family in FAMILIES if self.intervals[family]]


CASES = [
    Case("one launch", 200, 1, 0.0, False, {}, 0.0),
    Case("one launch", 200, 1, 0.0, False, {}, PLANTED),
    Case("two launches", 200, 1, LAUNCH, False, None, 0.0),
    Case("two launches", 200, 1, LAUNCH, False, None, PLANTED),
    Case("interleaved", 80, 6, 0.005, True, None, 0.0),
    Case("interleaved", 80, 6, 0.005, True, None, PLANTED),
]
NOTES = {
    "one launch": "the default sample: "
    f"one round of {WINDOW_S:g} s at {CONCURRENCIES[0]} and {CONCURRENCIES[1]} in flight a side, no "
    "difference between launches, and `launch_sd={}`: what the blocks within a round can do alone",
    "two launches": f"the same with launches that differ (standard deviation {LAUNCH:.1%}), as two runs of today's "
    "engines do, and compared by default, which allows for that",
    "interleaved": "six interleaved rounds of the same, each a launch of its own (standard deviation 0.5 %), on a "
    f"machine that gets {DRIFT:.0%} slower and faster again within {DRIFT_TIME_S / 60:g} minutes",
}


PREFACE = (
    "Made by `nice -n 19 python benchmarks/ab.py --output docs/validation-ab.md`, which describes the simulation. "
    "A claim is the word faster or slower for one metric and statistic at any of the "
    f"{len(CONCURRENCIES)} levels, after Holm's correction over them: of equal pairs at most 5 % may have one in a row "
    f"below. Planted: every step of B takes {PLANTED:.0%} longer; found: B is called slower at any level. Overall: the "
    "word for the geometric mean of the levels. Held: 95 % intervals of a level's ratio that hold the true one, of "
    "equal and unequal pairs together. Detectable: the median of what `compare` says it would have seen at a level "
    "with 80 % power."
)


def run(number: int, case: Case) -> Tally:
    """All pairs of a case; the same seeds give the same."""
    tally = Tally()
    for pair in range(case.pairs):
        a, b = simulate_pair(case, np.random.default_rng([number, pair]))
        tally.add(compare(a, b, launch_sd=case.assumed), case.planted)
    return tally


def table(tallies: dict[tuple[str, float], Tally]) -> str:
    """The Markdown."""
    lines = ["# Comparing equal and unequal engines", "", *textwrap.wrap(PREFACE, 120)]
    for name, note in NOTES.items():
        same, other = tallies[name, 0.0], tallies[name, PLANTED]
        lines += [
            "",
            f"## {name.capitalize()}",
            "",
            *textwrap.wrap(f"{note[0].upper()}{note[1:]}; {same.pairs} pairs of each kind.", 120),
            "",
            "| | equal: claimed | overall | planted: found | overall | held | detectable |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        for family in same.shown():
            metric, statistic = family
            held = (same.held[family] + other.held[family]) / (same.intervals[family] + other.intervals[family])
            title = f"{NAMES[metric]} {statistic}" if metric != THROUGHPUT else NAMES[metric]
            lines.append(
                f"| {title} | {same.claimed[family] / same.pairs:.1%} | {same.overall_share(family)} "
                f"| {other.found[family] / other.pairs:.1%} | {other.overall_share(family)} "
                f"| {held:.1%} | {np.median(same.detectable[family]):.1%} |"
            )
        claims = sum(same.claimed[family] for family in same.shown())
        lines += [
            "",
            f"All rows together: {claims} claims in {same.pairs * len(same.shown()):,} families of equal pairs "
            f"({claims / same.pairs / len(same.shown()):.1%}).",
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, help="Markdown; else it is printed")
    parser.add_argument("--pairs", type=int, help="of each case, for a quick look")
    parser.add_argument("--capacity", action="store_true", help="the table of capacities alone")
    arguments = parser.parse_args()
    if arguments.capacity:
        print(capacity_table(), end="")
        return
    tallies = {}
    for number, case in enumerate(CASES):
        if arguments.pairs:
            case = case._replace(pairs=arguments.pairs)
        started = time.perf_counter()
        tallies[case.name, case.planted] = run(number, case)
        print(f"{case.name}, {case.planted:.0%}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    text = table(tallies) + capacity_table()
    if arguments.output:
        arguments.output.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
