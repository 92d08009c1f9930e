"""How often 95 % intervals hold the truth, and how often a level is called steady that is, or is not.

    nice -n 19 python benchmarks/validation.py [--quick] [--output docs/validation.md]

Samples are drawn whose truth is known, and given to the code that makes summary.json. Writes the
tables, as Markdown. About five minutes on one core.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import signal, special

from loadgen.analysis.intervals import RATE_BINS, intervals, mean_interval, rate_interval, share_interval
from loadgen.analysis.precision import MIN_REQUESTS, MIN_TURNS, Looks, half_width
from loadgen.analysis.stats import describe
from loadgen.analysis.steady import SteadyWindow, steady_window

Series = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Series]
Interval = tuple[float, float]

COMMAND = "python benchmarks/validation.py"
SIGMA = 0.5  # of the logarithm of a latency
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
SIZES = (200, 700, 2000, 5000)
LEAST, LONGEST = 100, 20_000  # requests of a level that is measured until it is precise
MIN_GIVEN = 0.5  # below it what is given is a selection: cells are in brackets


def ar1(rng: np.random.Generator, n: int, phi: float) -> Series:
    """A stationary AR(1) series of variance 1."""
    noise = rng.standard_normal(n + 200) * math.sqrt(1 - phi**2)
    return np.asarray(signal.lfilter([1.0], [1.0, -phi], noise)[200:])


def lognormal(phi: float) -> Draw:
    return lambda rng, n: np.exp(SIGMA * ar1(rng, n, phi))


def waves(slots: int, between: float) -> Draw:
    """A server that takes ``slots`` requests at a time: a ramp by place in the wave, waves that differ, and noise."""

    def draw(rng: np.random.Generator, n: int) -> Series:
        count = n // slots + 2
        wave = np.repeat(between * rng.standard_normal(count), slots)
        ramp = np.tile(np.arange(slots) / slots, count)
        start = rng.integers(slots)
        return ((1 + ramp) * np.exp(wave + 0.1 * rng.standard_normal(count * slots)))[start : start + n]

    return draw


def wave_truth(slots: int, between: float) -> list[float]:
    """Mean, p50, p90 and p99 of :func:`waves`: a mixture of lognormals, one per place in the wave."""
    from scipy import optimize

    places = np.log1p(np.arange(slots) / slots)
    spread = math.hypot(between, 0.1)
    mean = float(np.exp(places).mean() * math.exp(spread**2 / 2))

    def at(q: float) -> float:
        return math.exp(optimize.brentq(lambda x: special.ndtr((x - places) / spread).mean() - q, -3, 3))

    return [mean, *(at(q) for q in QUANTILES.values())]


def stalls(rng: np.random.Generator, n: int) -> Series:
    """Independent latencies, but about every 500 requests the server stalls and ten in a row take 1 to 2 more."""
    stalled = np.convolve(rng.random(n + 10) < 0.002, np.ones(10))[10 : n + 10] > 0
    return np.exp(0.1 * rng.standard_normal(n)) + stalled * (1 + rng.random(n))


def stall_truth() -> list[float]:
    """Mean, p50, p90 and p99 of :func:`stalls`, from eight million requests."""
    rng = np.random.default_rng(0)
    values = np.concatenate([stalls(rng, 200_000) for _ in range(40)])
    return [float(values.mean()), *map(float, np.quantile(values, list(QUANTILES.values())))]


LOGNORMAL = [math.exp(SIGMA**2 / 2), *(math.exp(SIGMA * special.ndtri(q)) for q in QUANTILES.values())]
# Name, draw, truths, slots that the intervals are told of.
MODELS: list[tuple[str, Draw, list[float], int | None]] = [
    ("independent", lognormal(0.0), LOGNORMAL, None),
    ("AR(1), phi 0.3", lognormal(0.3), LOGNORMAL, None),
    ("AR(1), phi 0.6", lognormal(0.6), LOGNORMAL, None),
    ("waves of 8, spread 15 %", waves(8, 0.15), wave_truth(8, 0.15), 8),
    ("waves of 32, spread 15 %", waves(32, 0.15), wave_truth(32, 0.15), 32),
    ("waves of 32, spread 3 %", waves(32, 0.03), wave_truth(32, 0.03), 32),
    ("rare stalls", stalls, stall_truth(), None),
    ("waves of 32, spread 15 %, not told", waves(32, 0.15), wave_truth(32, 0.15), None),
]


class Count:
    """How often an interval was given, and how often it held the truth."""

    def __init__(self) -> None:
        self.runs = self.given = self.held = 0

    def add(self, interval: Interval | None, truth: float) -> None:
        self.runs += 1
        if interval is not None:
            self.given += 1
            self.held += interval[0] <= truth <= interval[1]

    def __str__(self) -> str:
        share = self.given / self.runs
        if self.given < 0.005 * self.runs:
            return "n/a"
        held = f"{self.held / self.given:.1%}"
        return held if share > 0.995 else f"{held} of {share:.0%}" if share >= MIN_GIVEN else f"({held} of {share:.0%})"


def table(head: list[str], rows: Iterable[list[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def coverage(runs: int) -> str:
    rows: list[list[object]] = []
    names = ["mean", *QUANTILES]
    for name, draw, truths, slots in MODELS:
        for n in SIZES:
            rng = np.random.default_rng([n, 1])
            counts = {key: Count() for key in [*names, "90 %", "99 %"]}
            for _ in range(runs):
                values = draw(rng, n)
                found = intervals(values, period=slots)
                for key, truth in zip(names, truths, strict=True):
                    counts[key].add(found.get(key), truth)
                for key, limit, share in (("90 %", truths[2], 0.9), ("99 %", truths[3], 0.99)):
                    counts[key].add(share_interval(values <= limit, values, period=slots), share)
            rows.append([name, n, *counts.values()])
    return table(["latencies", "requests", "mean", "p50", "p90", "p99", "attainment 90 %", "attainment 99 %"], rows)


def block_length(values: Series) -> float:
    """Politis and White (2004) for the stationary bootstrap, with Patton, Politis and White's (2009) correction."""
    n = len(values)
    run = max(5, math.ceil(math.sqrt(math.log10(n))))
    most = math.ceil(math.sqrt(n)) + run
    centred = values - values.mean()
    spectrum = np.fft.rfft(centred, 1 << (2 * n - 1).bit_length())
    covariances = np.fft.irfft(np.abs(spectrum) ** 2)[: most + 1] / n
    small = np.abs(covariances[1:] / covariances[0]) < 2 * math.sqrt(math.log10(n) / n)
    runs = np.convolve(small, np.ones(run), "valid") == run
    lag = int(runs.argmax()) if runs.any() else int(np.flatnonzero(~small)[-1]) + 1
    width = min(2 * max(lag, 1), most)
    lags = np.abs(np.arange(-width, width + 1))
    window = np.clip(2 * (1 - lags / width), 0, 1)  # flat top, sides of a trapezium
    weighted = window * covariances[lags]
    length = (n * (lags * weighted).sum() ** 2 / weighted.sum() ** 2) ** (1 / 3)
    return float(min(max(length, 1.0), math.ceil(min(3 * math.sqrt(n), n / 3))))


def bootstrap(rng: np.random.Generator, values: Series, resamples: int = 500) -> dict[str, Interval]:
    """Percentile intervals of the stationary bootstrap (Politis and Romano 1994)."""
    n = len(values)
    new = rng.random((resamples, n)) < 1 / block_length(values)
    new[:, 0] = True
    last = np.maximum.accumulate(np.where(new, np.arange(n), 0), axis=1)
    starts = rng.integers(0, n, size=(resamples, n))
    drawn = values[(np.take_along_axis(starts, last, axis=1) + np.arange(n) - last) % n]
    found = {"mean": drawn.mean(axis=1)}
    found |= dict(zip(QUANTILES, np.quantile(drawn, list(QUANTILES.values()), axis=1), strict=True))
    return {key: (float(low), float(high)) for key, (low, high) in _ends(found).items()}


def _ends(found: dict[str, Series]) -> dict[str, Series]:
    return {key: np.quantile(of_key, [0.025, 0.975]) for key, of_key in found.items()}


def alternatives(runs: int) -> str:
    rows: list[list[object]] = []
    names = ["mean", *QUANTILES]
    for name, draw, truths, _ in MODELS[:5]:
        for n in (200, 700, 2000):
            rng = np.random.default_rng([n, 1])
            blocks, independent = ({key: Count() for key in names} for _ in range(2))
            for _ in range(runs):
                values = draw(rng, n)
                resampled, ordered = bootstrap(rng, values), describe(values).ci95
                for key, truth in zip(names, truths, strict=True):
                    blocks[key].add(resampled[key], truth)
                    independent[key].add(ordered.get(key), truth)
            rows.append([name, n, *blocks.values(), *independent.values()])
    head = [f"bootstrap {key}" for key in names] + [f"independent {key}" for key in names]
    return table(["latencies", "requests", *head], rows)


def throughput(runs: int) -> str:
    def wandering(phi: float) -> Callable[[np.random.Generator], Series]:
        return lambda rng: 1000 * np.maximum(1 + 0.2 * ar1(rng, RATE_BINS, phi), 0)

    def in_waves(rng: np.random.Generator) -> Series:
        """Prefill, then decoding, over again; waves last 19 to 21 bins and are 10 % faster or slower."""
        bins: list[float] = []
        while len(bins) < 3 * RATE_BINS:
            length = int(rng.integers(19, 22))
            speed = 1 + 0.1 * rng.standard_normal()
            bins += [0.0] * 4 + [speed * 1250.0] * (length - 4)
        start = int(rng.integers(RATE_BINS))
        return np.array(bins[start : start + RATE_BINS])

    rng = np.random.default_rng(0)
    models: list[tuple[str, Callable[[np.random.Generator], Series], float]] = [
        (f"speed of an AR(1), phi {phi:g}, spread 20 %", wandering(phi), 1000.0) for phi in (0.0, 0.5, 0.8)
    ]
    mean_wave = 1250.0 * 16 / 20
    models.append(("waves of 20 parts, 4 of them prefill, spread 10 %", in_waves, mean_wave))
    rows: list[list[object]] = []
    for name, draw, truth in models:
        count = Count()
        for _ in range(4 * runs):
            count.add(rate_interval(draw(rng), float(RATE_BINS)), truth)
        rows.append([name, count])
    return table(["tokens in 256 parts of the window", "held the truth"], rows)


def stopped(values: Series, asked: float, slots: int | None, looks_met: int) -> tuple[int, Interval | None]:
    """How many requests a level measures that is to be so precise, and the interval of its mean then.

    Requests stand for the time that they take; the looks are those of ``sweep --precision`` after ``looks_met``
    good ones.
    """
    looks = Looks(asked, LEAST, len(values), looks_met)
    while True:
        count = int(looks.next_s)
        interval = mean_interval(values[:count], period=slots)
        told = count >= max(MIN_REQUESTS, MIN_TURNS * (slots or 0))
        width = half_width(float(values[:count].mean()), interval)
        if looks.enough(count, {"ttft_mean_s": width} if told else {}) or count >= len(values):
            return count, interval


def sequential(runs: int) -> str:
    rows: list[list[object]] = []
    for name, draw, truths, slots in MODELS[:6]:
        for asked in (0.05, 0.02):
            counts, sizes = {1: Count(), 2: Count(), 0: Count()}, []
            for seed in range(runs):
                values = draw(np.random.default_rng([seed, 4]), LONGEST)
                for looks_met in (1, 2):
                    size, interval = stopped(values, asked, slots, looks_met)
                    counts[looks_met].add(interval, truths[0])
                sizes.append(size)
            size = int(np.median(sizes))
            for seed in range(runs):
                values = draw(np.random.default_rng([seed, 4]), LONGEST)
                counts[0].add(mean_interval(values[:size], period=slots), truths[0])
            rows.append([name, f"{asked:.0%}", *counts.values(), f"{size:,}"])
    head = ["latencies", "asked", "one look", "two looks", "as many requests, fixed", "requests, median"]
    return table(head, rows)


def level(
    rng: np.random.Generator, n: int, phi: float, drift: float = 0.0, transient: float = 0.0, slots: int | None = None
) -> SteadyWindow:
    """A level of ``n`` requests, judged.

    TTFT has a spread of 30 %, TPOT of 5 %; both, and the throughput, which has 5 %, follow AR(1)
    series, or waves of ``slots``. ``drift`` is added in a straight line over the level;
    ``transient`` to TTFT at its start, decaying over the first 5 % of the requests.
    """
    place = np.arange(n) / n
    grown = 1 + drift * place
    start = 1 + transient * np.exp(-place / 0.05)
    if slots is None:
        common = ar1(rng, n, phi)
        ttft = 0.2 * np.exp(0.3 * (0.5 * common + math.sqrt(0.75) * ar1(rng, n, phi)))
    else:
        common = np.repeat(rng.standard_normal(n // slots + 1), slots)[:n]
        ttft = 0.2 * (1 + np.arange(n) % slots / slots) * np.exp(0.1 * common + 0.1 * rng.standard_normal(n))
    tpot = 0.02 * np.exp(0.05 * common) * grown
    ttft = ttft * grown * start
    tokens = 128 * np.exp(0.3 * rng.standard_normal(n))
    speed = 1000 * (1 + 0.05 * ar1(rng, RATE_BINS, phi)) / (1 + drift * np.arange(RATE_BINS) / RATE_BINS)
    return steady_window(
        np.arange(n) * 10_000_000,
        {"ttft_s": ttft, "tpot_s": tpot, "e2e_s": ttft + tpot * tokens},
        start_ns=0,
        end_ns=n * 10_000_000,
        slots=slots,
        amounts=speed,
    )


def steadiness(runs: int) -> str:
    rows: list[list[object]] = []
    kinds: list[tuple[str, float, int | None]] = [
        ("independent", 0.0, None),
        ("AR(1), phi 0.3", 0.3, None),
        ("AR(1), phi 0.6", 0.6, None),
        ("waves of 8", 0.3, 8),
        ("waves of 32", 0.3, 32),
    ]
    for name, phi, slots in kinds:
        for n in (200, 500, 2000):
            if slots and n < 10 * slots:
                continue
            cells: list[object] = []
            for drift, transient in ((0.0, 0.0), (0.15, 0.0), (0.0, 2.0)):
                rng = np.random.default_rng([n, 2])
                found = [level(rng, n, phi, drift, transient, slots) for _ in range(runs)]
                cells.append(f"{np.mean([one.steady is False for one in found]):.1%}")
                if not drift:
                    cells.append(f"{np.mean([one.cut_transient > 0 for one in found]):.1%}")
            cut = np.median([one.cut_transient / n for one in found])
            rows.append([name, n, *cells, f"{cut:.0%}"])
    head = ["flat: DRIFTING", "flat: cut", "+15 %: DRIFTING", "transient: DRIFTING", "transient: found", "median cut"]
    return table(["requests", "count", *head], rows)


def small_drifts(runs: int) -> str:
    rows: list[list[object]] = []
    for drift in (0.003, 0.03, 0.05, 0.07, 0.1, 0.15):
        cells: list[object] = []
        for n in (500, 2000, 10_000):
            rng = np.random.default_rng([n, 3])
            cells.append(f"{np.mean([level(rng, n, 0.3, drift).steady is False for _ in range(runs)]):.0%}")
        rows.append([f"{drift:.1%}", *cells])
    return table(["planted drift", "500 requests", "2,000", "10,000"], rows)


TEXT = """# How often the statistics are right

Made by `nice -n 19 {command}`, which describes the simulations. {runs:,}
drawn samples a row unless said otherwise: an interval that is right 95 % of the time then shows {low:.1%} to
{high:.1%} in 19 cells of 20.

## 95 % intervals

How often the interval of a mean, a quantile or an attainment held the truth. "94.0% of 80%": in 80 % of the samples
there was an interval, and 94.0 % of those held the truth; in the others the effective sample was below the
quantile's floor. In brackets: an interval in fewer than half of the samples, namely those that look less correlated
than they are.

Latencies are lognormal with a sigma of 0.5; or come in waves as from a server that takes a batch at a time, where
latency doubles from the first place in a wave to the last, waves differ by the spread that is named, and requests of a
wave by 10 %; or are alike but for a stall every 500 requests, which hits ten in a row. A closed loop tells the
intervals how many slots it has; the last rows are for one that does not.

{coverage}

Weak spots: a tail, or even a mean, that a handful of events decide, be it slow waves or stalls. Nothing in a sample
that holds none, one or two of them can tell how often they come.

### Throughput

{rate_runs:,} samples a row.

{throughput}

### Why not a block bootstrap, or independence

On the same kind of samples, {boot_runs} a row: percentile intervals of the stationary bootstrap (Politis and Romano
1994; block length by Politis and White 2004, corrected by Patton, Politis and White 2009), and the intervals of
independent samples (Student's t and order statistics).

{alternatives}

## Measured until precise

`sweep --precision` looks at a level at growing intervals, and ends it when the intervals are narrow: how often the
interval of the mean at that moment held the truth. The first look comes at {least} requests, the last at {longest:,};
looks at fewer than {few} requests or {turns} turns of a closed loop's slots do not count. loadgen ends a level at the
second good look in a row.

{sequential}

## Steady state

Levels with a TTFT that spreads by 30 %, a TPOT and a throughput that spread by 5 %, all autocorrelated; {steady_runs}
a row. Four metrics are tested; a level is called DRIFTING if any of them drifts. Planted are a drift of 15 % over the
level in all metrics, and a start-up transient: TTFT begins at three times its value and decays over the first 5 % of
the requests.

{steadiness}

A drift below 5 % of the median is left alone, however many requests show it. Share of {drift_runs} levels called
DRIFTING, AR(1) with phi 0.3:

{small}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the samples")
    parser.add_argument("--output", type=Path, help="the Markdown file; else standard output")
    args = parser.parse_args()
    runs, boot_runs, steady_runs = (100, 20, 40) if args.quick else (1000, 200, 400)
    started = time.monotonic()
    error = 1.96 * math.sqrt(0.95 * 0.05 / runs)
    text = TEXT.format(
        command=COMMAND + (" --quick" if args.quick else "") + (f" --output {args.output}" if args.output else ""),
        runs=runs,
        rate_runs=4 * runs,
        boot_runs=boot_runs,
        steady_runs=steady_runs,
        low=0.95 - error,
        high=0.95 + error,
        coverage=coverage(runs),
        throughput=throughput(runs),
        alternatives=alternatives(boot_runs),
        least=LEAST,
        longest=LONGEST,
        few=MIN_REQUESTS,
        turns=MIN_TURNS,
        sequential=sequential(runs),
        steadiness=steadiness(steady_runs),
        drift_runs=steady_runs // 2,
        small=small_drifts(steady_runs // 2),
    )
    print(text if args.output is None else f"{args.output}: {time.monotonic() - started:.0f} s")
    if args.output is not None:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
