"""What one round says of one level: every statistic on each side, and its bootstrap over blocks of time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.analysis.outcome import LATENCIES
from loadgen.analysis.stats import quantile_floor
from loadgen.comparison.sides import BINS, Sample, SideLevel, by_prompt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

THROUGHPUT = "output_throughput_tps"
QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
# ``paired`` is the geometric mean over the prompts that both sides answered of b/a.
STATISTICS = ("paired", "mean", *QUANTILES)
FAMILIES = [(metric, statistic) for metric in LATENCIES for statistic in STATISTICS] + [(THROUGHPUT, "mean")]

# A request is in the block of its send, and its tokens come in the blocks after it: blocks must be longer than it.
# Where the window is too short for MIN_BLOCKS of this length, they may be half as long.
BLOCK_E2E = 4.0
MIN_BLOCKS = 5
MAX_BLOCKS = 100
TAIL_BLOCKS = 0.5  # a quantile of one round needs this many blocks over 1 - q: bad moments, not requests, make a tail
MIN_PAIRS = 30


class Drawn(msgspec.Struct, kw_only=True):
    """The logarithm of one statistic on one side in one round: its value, and its bootstrap around it."""

    value: float
    draws: Array
    degrees: float

    @property
    def variance(self) -> float:
        """Of the value; as many blocks drawn with replacement vary too little by 1 / K."""
        return float(self.draws.var(ddof=1)) * (self.degrees + 1) / self.degrees


class Round(msgspec.Struct, kw_only=True):
    """Every statistic of one round; a text says why there is none."""

    a: dict[tuple[str, str], Drawn | str]
    b: dict[tuple[str, str], Drawn | str]
    paired: dict[str, Drawn | str]
    pairs: int


def draw(pair: tuple[SideLevel, SideLevel], number: int, resamples: int) -> Round:
    """One round of one level. Both sides are drawn from the same seed, so that exchanging them inverts the result.

    Args:
        pair: the level on either side.
        number: of the round; it seeds the resamples.
        resamples: how many.
    """
    a, b = pair[0].sample, pair[1].sample
    paired, pairs = _paired(a, b, number, resamples)
    return Round(a=_side(a, number, resamples), b=_side(b, number, resamples), paired=paired, pairs=pairs)


def block_count(sample: Sample) -> int:
    """How many blocks of time the window is cut into; 0 where it is too short for :data:`MIN_BLOCKS`."""
    import numpy as np

    if not sample.completed or np.isnan(sample.latencies["e2e_s"]).all():
        return 0
    fit = sample.window_s / max(BLOCK_E2E * float(np.nanmean(sample.latencies["e2e_s"])), 1e-9)
    blocks = min(MAX_BLOCKS, int(fit))
    if blocks < MIN_BLOCKS and fit >= MIN_BLOCKS / 2:
        return MIN_BLOCKS
    return blocks if blocks >= MIN_BLOCKS else 0


_SHORT = f"the window holds no {MIN_BLOCKS} blocks of {BLOCK_E2E / 2:g} times the mean E2E; measure for longer"


def _weights(blocks: int, number: int, resamples: int) -> Array:
    """How often each block comes in each resample."""
    import numpy as np

    return np.random.default_rng([blocks, number]).multinomial(blocks, [1 / blocks] * blocks, resamples).astype(float)


def _side(sample: Sample, number: int, resamples: int) -> dict[tuple[str, str], Drawn | str]:
    blocks = block_count(sample)
    if not blocks:
        return dict.fromkeys((family for family in FAMILIES if family[1] != "paired"), _SHORT)
    whole, thirds = (_bootstrapped(sample, count, number, resamples) for count in (blocks, 3 * blocks))
    return {family: _widened(drawn, thirds[family]) for family, drawn in whole.items()}


def _widened(whole: Drawn | str, thirds: Drawn | str) -> Drawn | str:
    """The bootstrap of whole blocks, wider by what its variance grew since blocks of a third of their length.

    Blocks that still depend on each other make a variance too small, and longer ones would show the
    rest: the lugsail correction of Vats and Flegal 2022 (r = 3, c = 1/2), taken only where it widens.
    """
    if isinstance(whole, str) or isinstance(thirds, str) or not whole.variance > thirds.variance:
        return whole
    factor = math.sqrt(2 - thirds.variance / whole.variance)
    centre = whole.draws.mean()
    return Drawn(value=whole.value, draws=centre + factor * (whole.draws - centre), degrees=whole.degrees)


def _bootstrapped(sample: Sample, blocks: int, number: int, resamples: int) -> dict[tuple[str, str], Drawn | str]:
    import numpy as np

    weights = _weights(blocks, number, resamples)
    places = np.clip((sample.sent_s / sample.window_s * blocks).astype(int), 0, blocks - 1)
    found: dict[tuple[str, str], Drawn | str] = {}
    for metric in LATENCIES:
        values = sample.latencies[metric]
        known = ~np.isnan(values)
        for statistic, drawn in _latency(values[known], places[known], places[sample.failed], weights).items():
            found[metric, statistic] = drawn
    edges = np.arange(blocks + 1) * BINS // blocks
    tokens = np.add.reduceat(sample.tokens, edges[:-1]) * (BINS / blocks) / np.diff(edges)
    total = float(sample.tokens.sum())
    found[THROUGHPUT, "mean"] = (
        _drawn(total / sample.window_s, weights @ tokens / sample.window_s, blocks)
        if total
        else "no token in the window"
    )
    return found


def _drawn(value: float, draws: Array, blocks: int) -> Drawn | str:
    import numpy as np

    if not value > 0 or not math.isfinite(value):
        return "reaches the failed requests" if value == math.inf else "no value above 0"
    usable = draws[(draws > 0) & np.isfinite(draws)]
    if len(usable) < 0.95 * len(draws):
        return "reaches the failed requests, or blocks without a request, in its resamples"
    return Drawn(value=math.log(value), draws=np.log(usable), degrees=blocks - 1)


def _latency(values: Array, places: Any, failed: Any, weights: Array) -> dict[str, Drawn | str]:
    """Mean and quantiles of one latency; failed requests are ranked behind all others.

    Args:
        values, places: of successful requests: the latency, and the block.
        failed: blocks of failed requests.
        weights: resamples x blocks.
    """
    import numpy as np

    blocks = weights.shape[1]
    if not len(values):
        return dict.fromkeys(("mean", *QUANTILES), "no request has it")
    sums = weights @ np.bincount(places, weights=values, minlength=blocks)
    counts = weights @ np.bincount(places, minlength=blocks)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {"mean": _drawn(float(values.mean()), sums / counts, blocks)}
    n = len(values) + len(failed)
    shown = {name: q for name, q in QUANTILES.items() if n >= quantile_floor(q)}
    order = np.argsort(values, kind="stable")
    ranked = np.concatenate((values[order], np.full(len(failed), np.inf)))
    labels = np.concatenate((places[order], failed)).astype(int)
    draws: dict[str, list[Array]] = {name: [] for name in shown}
    step = max(1, 2_000_000 // n)  # 16 MB at a time
    for start in range(0, len(weights), step) if shown else ():
        reached = np.cumsum(weights[start : start + step, labels], axis=1)
        for name, q in shown.items():
            below = (reached < q * reached[:, -1:]).sum(axis=1)
            draws[name].append(ranked[np.minimum(below, n - 1)])
    for name, q in QUANTILES.items():
        if name in shown:
            found[name] = _drawn(_quantile(ranked, q), np.concatenate(draws[name]), blocks)
        else:
            found[name] = f"needs {quantile_floor(q)} requests a round"
    return found


def _quantile(ranked: Array, q: float) -> float:
    """Type 7 of Hyndman and Fan 1996, as numpy, where values at the end may be infinite."""
    place = q * (len(ranked) - 1)
    low = math.floor(place)
    if place == low:
        return float(ranked[low])
    return float(ranked[low] + (place - low) * (ranked[low + 1] - ranked[low])) if ranked[low] < math.inf else math.inf


def _paired(a: Sample, b: Sample, number: int, resamples: int) -> tuple[dict[str, Drawn | str], int]:
    """The mean over prompts of log(b/a); blocks are of prompts that were sent one after another.

    Requests of one prompt are averaged where it was sent more than once.
    """
    import numpy as np

    blocks = min(block_count(a), block_count(b))
    found: dict[str, Drawn | str] = {}
    most = 0
    first = [_first_sent(sample) for sample in (a, b)]
    for metric in LATENCIES:
        ours, theirs = (by_prompt(s.prompt_ids, s.latencies[metric]) for s in (a, b))
        shared = [key for key in ours if key in theirs and ours[key] > 0 and theirs[key] > 0]
        most = max(most, len(shared))
        if len(shared) < MIN_PAIRS:
            found[metric] = f"{len(shared)} prompts were answered by both; {MIN_PAIRS} are needed"
            continue
        if not blocks:
            found[metric] = _SHORT
            continue
        shared.sort(key=lambda key: (first[0][key] + first[1][key], key))
        logs = np.array([math.log(theirs[key] / ours[key]) for key in shared])
        whole, thirds = (_mean_of_logs(logs, count, number, resamples) for count in (blocks, 3 * blocks))
        found[metric] = _widened(whole, thirds)
    return found, most


def _mean_of_logs(logs: Array, blocks: int, number: int, resamples: int) -> Drawn:
    import numpy as np

    blocks = min(blocks, len(logs))
    places = np.arange(len(logs)) * blocks // len(logs)
    weights = _weights(blocks, number, resamples)
    sums = np.bincount(places, weights=logs, minlength=blocks)
    draws = weights @ sums / (weights @ np.bincount(places, minlength=blocks))
    return Drawn(value=float(logs.mean()), draws=draws, degrees=blocks - 1)


def _first_sent(sample: Sample) -> dict[str, float]:
    return dict(reversed(list(zip(sample.prompt_ids, sample.sent_s.tolist(), strict=True))))


def enough_blocks(statistic: str, drawn: Drawn) -> Drawn | str:
    """With several rounds the spread over rounds tells; with one there are only the blocks."""
    needed = math.ceil(round(TAIL_BLOCKS / (1 - QUANTILES[statistic]), 6)) if statistic in QUANTILES else 0
    if drawn.degrees + 1 >= needed:
        return drawn
    return f"in one round needs {needed} blocks, has {drawn.degrees + 1:g}; or more rounds"
