"""How often the interval of `loadgen plan` holds the capacity of the embedded engine's model.

    python benchmarks/validation_plan.py [--seeds 10] [--attainment 99%,95%] [--output FILE.md]

The engine's model (loadgen/engines/sim_model.py) is run in virtual time, fed by the arrivals that an open loop
draws, so that a sweep of minutes takes seconds and no machine's noise is in it. The truth is found first, by
bisection over long runs of other seeds: the rate at which 99 % (or another share) of requests are within the SLO. Then
each seed sweeps a coarse grid of rates, and what summarizes and plans a real run is given its records.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from loadgen.analysis.measure import Measured, summarize_level
from loadgen.analysis.outcome import Outcome, outcome
from loadgen.analysis.plan import Demand, Plan, make_plan
from loadgen.analysis.slo import parse_slos, passes
from loadgen.client.pacing import Arrivals, schedule
from loadgen.engines.sim_model import GPUS, MODELS, BatchModel, Sequence
from loadgen.environment import Host
from loadgen.loads import Open
from loadgen.records import ClientEntry, EngineEntry, LevelMark, LoadEntry, Manifest, RequestRecord, UnknownDataset
from loadgen.units import parse_share

INPUT, OUTPUT = 256, 64
WARMUP_S = 20.0
TRUTH_S = 20.0  # of each second that a level is measured for
CASES = (  # arrivals, CV, SLO, seconds of a level: bursts come in long waves, and leave less room
    ("poisson", 1.0, "ttft=100ms,tpot=15ms", 180.0),
    ("poisson", 1.0, "e2e=1s", 180.0),
    ("gamma", 2.0, "ttft=100ms,tpot=15ms", 300.0),
)
GRID = (0.6, 0.75, 0.85, 0.92, 1.0, 1.08, 1.2)  # of a first guess, that is off by up to a tenth


def serve(times_ns: Iterator[int], end_s: float) -> list[RequestRecord]:
    """What the engine's model makes of these arrivals, up to ``end_s``; all that came are served to their end."""
    engine = BatchModel(GPUS["a100-80gb"], MODELS["qwen1.5-4b"], 256, 8192)
    arrived: dict[Sequence, int] = {}
    first: dict[Sequence, int] = {}
    records = []
    coming = next(times_ns)
    now_ns = 0
    while coming is not None or arrived:
        while coming is not None and coming <= now_ns:
            sequence = Sequence(INPUT, OUTPUT)
            arrived[sequence] = coming
            engine.add(sequence)
            after = next(times_ns)
            coming = after if after <= end_s * 1e9 else None
        step_s = engine.begin_step()
        if step_s is None:
            if coming is None:
                break
            now_ns = coming
            continue
        now_ns += round(step_s * 1e9)
        for sequence in engine.end_step():
            if sequence.generated == 1:
                first[sequence] = now_ns
            if sequence.generated == OUTPUT:
                engine.remove(sequence)
                records.append(record(len(records), arrived.pop(sequence), first.pop(sequence), now_ns))
    return records


def record(seq: int, at_ns: int, first_ns: int, last_ns: int) -> RequestRecord:
    measured = at_ns >= WARMUP_S * 1e9
    return RequestRecord(
        level=0,
        seq=seq,
        prompt_id="p",
        worker=0,
        phase="measure" if measured else "warmup",
        input_tokens=INPUT,
        output_tokens=OUTPUT,
        requested_tokens=OUTPUT,
        token_source="usage_continuous",
        scheduled_ns=at_ns,
        sent_ns=at_ns,
        first_token_ns=first_ns,
        last_token_ns=last_ns,
        end_ns=last_ns,
        event_ns=[first_ns - at_ns, last_ns - first_ns],
        event_tokens=[1, OUTPUT - 1],
    )


def arrivals(kind: str, cv: float, rate: float, seed: int) -> Iterator[int]:
    return schedule(Arrivals(kind=kind, cv=cv, rate_rps=rate, seed=seed))


def truth_rps(kind: str, cv: float, slo: str, target: float, window_s: float) -> float:
    slos = parse_slos(slo)

    def attainment(rate: float) -> float:
        found: list[Outcome] = [
            outcome(one)
            for one in serve(arrivals(kind, cv, rate, 900_001), TRUTH_S * window_s)
            if one.phase == "measure"
        ]
        return sum(passes(one, slos) for one in found) / len(found)

    low, high = 1.0, 120.0
    while high / low > 1.005:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if attainment(middle) >= target else (low, middle)
    return (low * high) ** 0.5


def planned(kind: str, cv: float, slo: str, target: float, rates: list[float], window_s: float, seed: int) -> Plan:
    measured = []
    for index, rate in enumerate(rates):
        records = serve(arrivals(kind, cv, rate, 1000 * seed + index), WARMUP_S + window_s)
        load = Open(arrival=kind, rate_rps=rate)
        start, end = round(WARMUP_S * 1e9), round((WARMUP_S + window_s) * 1e9)
        mark = LevelMark(level=0, window_start_ns=start, window_end_ns=end)
        level = summarize_level(load, records, [], mark)
        measured.append(Measured(level=level, outcomes=[outcome(one) for one in records if one.phase == "measure"]))
    manifest = Manifest(
        command=[],
        started_utc="",
        simulated=True,
        host=Host(),
        engine=EngineEntry(kind="sim"),
        dataset=UnknownDataset(),
        seed=seed,
        load=LoadEntry(model="open", requests=None, duration_s=window_s, rounds=1, warmup=True, timeouts=None),
        levels=[],
        client=ClientEntry(),
    )
    return make_plan("model", manifest, measured, Demand(slos=parse_slos(slo), attainment=target))


HEAD = """# Capacity plans of an engine whose capacity is known

Made by `python benchmarks/validation_plan.py --seeds {seeds} --attainment {attainments}`, which describes the
simulation. True: the rate at which so many requests are within the SLO. Each of {seeds} seeds sweeps {grid} rates, from
0.6 to 1.2 of a guess that is off by up to a tenth, for so many seconds each, and is planned. Held: plans whose interval
of the capacity holds the truth. Refused: the requests did not suffice for a plan. The interval: medians of its ends
over the truth; none: no level broke the SLO surely.

| arrivals | SLO | within it | s a level | true, requests/s | plans | held | refused | interval |
|---|---|--:|--:|--:|--:|--:|--:|--:|
"""


def validate(seeds: int, targets: list[float]) -> Iterator[str]:
    """The document, line by line."""
    attainments = ",".join(f"{target * 100:g}%" for target in targets)
    yield HEAD.format(seeds=seeds, attainments=attainments, grid=len(GRID))
    for target in targets:
        for number, (kind, cv, slo, window_s) in enumerate(CASES):
            true = truth_rps(kind, cv, slo, target, window_s)
            ends = []
            for seed in range(seeds):
                # Another guess for each seed, so that the truth is at another place of the grid.
                guess = true * (0.9 + 0.2 * ((seed * 7 + number * 3) % seeds) / seeds)
                rates = [guess * share for share in GRID]
                capacity = planned(kind, cv, slo, target, rates, window_s, seed).capacity_rps
                if capacity is not None:
                    ends.append((capacity[0] / true, math.inf if capacity[1] is None else capacity[1] / true))
            held = sum(low <= 1 <= high for low, high in ends)
            low, high = (statistics.median(column) for column in zip(*ends, strict=True)) if ends else (0.0, math.inf)
            name = kind if cv == 1 else f"{kind}, CV {cv:g}"
            yield (
                f"| {name} | {slo} | {target * 100:g} % | {window_s:.0f} | {true:.2f} | {len(ends)} | {held} "
                f"| {seeds - len(ends)} | {low:.2f} .. {'none' if math.isinf(high) else f'{high:.2f}'} |\n"
            )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--attainment", default="99%,95%", help="the shares of requests that are to keep to the SLO")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    lines = []
    for line in validate(args.seeds, [parse_share(text) for text in args.attainment.split(",")]):
        print(line, end="", flush=True)
        lines.append(line)
    if args.output is not None:
        args.output.write_text("".join(lines))


if __name__ == "__main__":
    main()
