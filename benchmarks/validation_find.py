"""How often `loadgen sweep --find capacity` holds the open-loop capacity of the embedded engine's model.

    nice -n 19 python benchmarks/validation_find.py [--seeds 8] [--output docs/validation-find.md]

The engine's model (loadgen/engines/sim_model.py) is run in virtual time, as benchmarks/validation_plan.py does, whose
truth this is too: the rate at which 99 % of requests are within the SLO, by bisection over long runs of other
arrivals. The search is the one of `sweep --find`, and each level that it asks for is served by the model, summarized
and judged as a real one is. About ten minutes on one core.
"""

from __future__ import annotations

import argparse
import heapq
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from validation_plan import INPUT, OUTPUT, WARMUP_S, record, serve, truth_rps

from loadgen.analysis.figures import LevelSummary
from loadgen.analysis.find import Find, follow, found_by
from loadgen.analysis.measure import gather_steady, summarize
from loadgen.analysis.probes import Ask, Probe, probe_of
from loadgen.analysis.slo import ATTAINMENT, parse_slos
from loadgen.client.pacing import Arrivals, schedule
from loadgen.engines.sim_model import GPUS, MODELS, BatchModel, Sequence
from loadgen.loads import Closed, Open
from loadgen.records import Goal, LevelMark, RequestRecord
from loadgen.records.manifest import Over

TRUTH_WINDOW_S = 180.0
DURATION_S = 20.0
CASES: tuple[tuple[Over, float, str], ...] = (
    ("rate", 5.0, "ttft=100ms,tpot=15ms"),
    ("rate", 100.0, "e2e=1s"),
    ("concurrency", 1.0, "ttft=100ms,tpot=15ms"),
    ("concurrency", 1.0, "e2e=1s"),
)


def serve_closed(slots: int, end_s: float, spread_ns: int) -> list[RequestRecord]:
    """What the engine's model makes of so many requests in flight, up to ``end_s``.

    Args:
        spread_ns: between the first sends of two slots.
    """
    engine = BatchModel(GPUS["a100-80gb"], MODELS["qwen1.5-4b"], 256, 8192)
    coming = [slot * spread_ns for slot in range(slots)]
    arrived: dict[Sequence, int] = {}
    first: dict[Sequence, int] = {}
    records: list[RequestRecord] = []
    now_ns = 0
    while now_ns < end_s * 1e9:
        while coming and coming[0] <= now_ns:
            sequence = Sequence(INPUT, OUTPUT)
            arrived[sequence] = heapq.heappop(coming)
            engine.add(sequence)
        step_s = engine.begin_step()
        if step_s is None:
            now_ns = coming[0]
            continue
        now_ns += round(step_s * 1e9)
        for sequence in engine.end_step():
            if sequence.generated == 1:
                first[sequence] = now_ns
            if sequence.generated == OUTPUT:
                engine.remove(sequence)
                sent = arrived.pop(sequence)
                records.append(record(len(records), sent, first.pop(sequence), now_ns))
                records[-1].scheduled_ns = None
                heapq.heappush(coming, now_ns)
    return records


def measured(ask: Ask, index: int, seed: int, slo: str) -> LevelSummary:
    """The level that the search asks for."""
    start, end = round(WARMUP_S * 1e9), round((WARMUP_S + ask.duration_s) * 1e9)
    mark = LevelMark(level=0, window_start_ns=start, window_end_ns=end)
    if ask.over == "rate":
        load = Open(rate_rps=ask.load, arrival="poisson", max_in_flight=4096)
        times = schedule(Arrivals(kind="poisson", rate_rps=ask.load, seed=seed * 1_000_003 + index))
        records = serve(times, WARMUP_S + ask.duration_s)
    else:
        load = Closed(concurrency=int(ask.load))
        # What was sent in the window ends under the same load, which goes on behind it.
        records = serve_closed(int(ask.load), WARMUP_S + ask.duration_s + 20, 50_000 * (1 + seed))
        for one in records:
            if (one.sent_ns or 0) > end:
                one.phase = "drain"
    gathered, steady = gather_steady(load, lambda: records, mark)
    return summarize(load, gathered, [], None, [], [], steady, parse_slos(slo))


def searched(over: Over, start: float, slo: str, seed: int) -> Find:
    goal = Goal(
        kind="capacity", over=over, start=start, highest=4096, slo=slo, attainment=ATTAINMENT,
        duration_s=DURATION_S, max_duration_s=600, max_find_s=math.inf,
    )  # fmt: skip
    seen: list[Probe] = []
    while True:
        _, ask, _ = follow(goal, seen)
        if ask is None:
            return found_by(goal, seen)
        seen.append(probe_of(goal, measured(ask, len(seen), seed, slo)))


HEAD = """# Searches for the capacity of an engine whose capacity is known

Made by `python benchmarks/validation_find.py --seeds {seeds}`, which describes the simulation. True: the rate at which
{attainment:.0%} of requests of an open loop are within the SLO. Each of {seeds} seeds searches for it as
`loadgen sweep --find capacity --duration {duration:.0f}s` does, from the load that is named. Confirmed: five open-loop
runs held. Of those: how many intervals hold the truth, and the medians of their ends over the truth; of all, the
medians of the levels and of the minutes that they measure.

| from | SLO | true, requests/s | searches | confirmed | held | interval | levels | minutes |
|---|---|--:|--:|--:|--:|--:|--:|--:|
"""


def validate(seeds: int) -> Iterator[str]:
    """The document, line by line."""
    yield HEAD.format(seeds=seeds, attainment=ATTAINMENT, duration=DURATION_S)
    truths: dict[str, float] = {}
    for over, start, slo in CASES:
        if slo not in truths:
            truths[slo] = truth_rps("poisson", 1.0, slo, ATTAINMENT, TRUTH_WINDOW_S)
        true = truths[slo]
        finds = [searched(over, start, slo, seed) for seed in range(1, seeds + 1)]
        sure = [find for find in finds if find.confirmed]
        ends = [find.capacity_rps or (None, None) for find in sure]
        lows = [(low or 0.0) / true for low, _ in ends]
        highs = [math.inf if high is None else high / true for _, high in ends]
        held = sum(low <= 1 <= high for low, high in zip(lows, highs, strict=True))
        interval = f"{statistics.median(lows):.2f} .. {statistics.median(highs):.2f}" if sure else "none"
        levels = statistics.median(len(find.probes) for find in finds)
        minutes = statistics.median(sum(probe.duration_s for probe in find.probes) / 60 for find in finds)
        name = f"{start:g} requests/s" if over == "rate" else f"{start:g} in flight"
        yield (
            f"| {name} | {slo} | {true:.2f} | {seeds} | {len(sure)} | {held} | {interval} | {levels:g} | "
            f"{minutes:.0f} |\n"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    started = time.monotonic()
    lines = []
    for line in validate(args.seeds):
        print(line, end="", flush=True)
        lines.append(line)
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    if args.output is not None:
        args.output.write_text("".join(lines))


if __name__ == "__main__":
    main()
