"""The engine's own metrics under one set of names, whatever page they come from.

The names that each engine gives its series are in its row of the table of engines; names differ between
versions, so a metric may have several.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from loadgen.analysis.figures import Gauge, ServerFigures, Totals
from loadgen.records import ServerSample
from loadgen.units import NS_PER_S


class Metric(NamedTuple):
    """A metric of ours, and how several series of it become one.

    ``kind``: a ``counter`` only grows; a ``gauge`` is a state. ``over``: how the series of several
    labels (engines of data parallelism, reasons of finishing) become one number.
    """

    kind: Literal["counter", "gauge"]
    over: Literal["sum", "mean"] = "sum"


# Times of requests; each is two counters, of their sum and of their number.
HISTOGRAMS = ("ttft", "queue", "prefill", "decode", "e2e", "tpot")
METRICS: dict[str, Metric] = {
    "requests_running": Metric("gauge"),
    "requests_waiting": Metric("gauge"),
    "kv_cache_usage": Metric("gauge", "mean"),
    "requests": Metric("counter"),
    "prompt_tokens": Metric("counter"),
    "generation_tokens": Metric("counter"),
    "preemptions": Metric("counter"),
    "prefix_cache_queries": Metric("counter"),
    "prefix_cache_hits": Metric("counter"),
    **{f"{name}_s_{suffix}": Metric("counter") for name in HISTOGRAMS for suffix in ("sum", "count")},
    # Of engines that count their iterations.
    "iterations": Metric("counter"),
    "iteration_s_sum": Metric("counter"),
    "blocks_reused": Metric("counter"),
    "blocks_missed": Metric("counter"),
}
# What is compared with loadgen's own totals.
RECONCILED = ("requests", "prompt_tokens", "generation_tokens")


class SeriesNames:
    """By which names of Prometheus series our metrics are known, the names to be preferred first.

    Args:
        tables: names for each metric; a histogram's without ``_sum`` and ``_count``. Of several tables those of
            the first go before those of the next.
    """

    def __init__(self, *tables: Mapping[str, tuple[str, ...]]) -> None:
        self.of: dict[str, tuple[str, ...]] = {}
        for table in tables:
            for name, series in table.items():
                pairs = [(name, series)]
                if name in HISTOGRAMS:
                    pairs = [(f"{name}_s_{end}", tuple(f"{s}_{end}" for s in series)) for end in ("sum", "count")]
                for metric, known in pairs:
                    self.of[metric] = (*self.of.get(metric, ()), *known)
        self.all = frozenset(name for series in self.of.values() for name in series)


def parse_prometheus(text: str, names: SeriesNames) -> dict[str, float]:
    """Values of :data:`METRICS` that a Prometheus page has; an empty dict if it has none or cannot be parsed."""
    from prometheus_client.parser import text_string_to_metric_families

    # Only lines that are wanted are parsed: a page has hundreds of histogram buckets.
    lines = [line for line in text.split("\n") if line[: _name_end(line)] in names.all]
    found: dict[str, list[float]] = {}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                if not math.isfinite(sample.value):
                    continue
                found.setdefault(sample.name, []).append(sample.value)
    except ValueError:
        return {}
    values = {}
    for name, metric in METRICS.items():
        numbers = next((found[series] for series in names.of.get(name, ()) if series in found), None)
        if numbers:
            values[name] = sum(numbers) / (len(numbers) if metric.over == "mean" else 1)
    return values


def _name_end(line: str) -> int:
    ends = [end for end in (line.find("{"), line.find(" ")) if end >= 0]
    return min(ends, default=len(line))


def _grown(first: ServerSample, last: ServerSample, name: str) -> float | None:
    """What a counter grew by; None where one of the two lacks it, or the engine was started anew."""
    if name not in first.values or name not in last.values:
        return None
    grown = last.values[name] - first.values[name]
    return grown if grown >= 0 else None


def reconcile(samples: list[ServerSample], totals: Totals) -> tuple[dict[str, int], bool] | None:
    """What the engine counted over a level, and whether that is our own totals; None without both ends.

    Args:
        samples: of the level.
        totals: by our own records, warm-up and drain included.
    """
    first = next((s for s in samples if s.at == "start"), None)
    last = next((s for s in reversed(samples) if s.at == "end"), None)
    if first is None or last is None:
        return None
    counted = {name: int(grown) for name in RECONCILED if (grown := _grown(first, last, name)) is not None}
    if not counted:
        return None
    return counted, all(count == getattr(totals, name) for name, count in counted.items())


def server_figures(samples: list[ServerSample], start_ns: int, end_ns: int, totals: Totals) -> ServerFigures | None:
    """A level as the engine saw it; None when the engine told nothing.

    States (running, waiting, KV-cache use) are means and maxima over the samples of the measured
    window. Times are means over the requests that the engine finished between two samples: the
    first and the last of the window where it holds two, else the level's first and last (``span``).

    Args:
        samples: of the level, in order.
        start_ns, end_ns: the measured window.
        totals: as :func:`reconcile`.
    """
    if not samples:
        return None
    inside = [s for s in samples if start_ns <= s.t_ns <= end_ns]
    span = inside if len(inside) >= 2 else samples
    first, last = span[0], span[-1]
    hit_rate = _share(samples, "prefix_cache_hits", "prefix_cache_queries")
    if hit_rate is None:
        reused, missed = (_grown(samples[0], samples[-1], f"blocks_{word}") for word in ("reused", "missed"))
        if reused is not None and missed is not None and reused + missed > 0:
            hit_rate = reused / (reused + missed)
    preempted = _grown(samples[0], samples[-1], "preemptions")
    figures = ServerFigures(
        span="window" if span is inside else "level",
        preemptions=None if preempted is None else int(preempted),
        prefix_cache_hit_rate=hit_rate,
        scrapes=len(samples),
        scrape_s=sorted(s.took_ns for s in samples)[len(samples) // 2] / NS_PER_S,
    )
    counted = reconcile(samples, totals)
    if counted is not None:
        figures.agrees = counted[1]
        for name, tokens in counted[0].items():
            setattr(figures, name, tokens)
    for name, metric in METRICS.items():
        values = [s.values[name] for s in inside if name in s.values]
        if metric.kind == "gauge" and values:
            setattr(figures, name, Gauge(mean=math.fsum(values) / len(values), max=max(values)))
    for name in HISTOGRAMS:
        total, count = (_grown(first, last, f"{name}_s_{suffix}") for suffix in ("sum", "count"))
        if total is not None and count:
            setattr(figures, f"{name}_s", total / count)
    iterations, iteration_s = _grown(first, last, "iterations"), _grown(first, last, "iteration_s_sum")
    if iterations and iteration_s is not None:
        figures.iteration_s = iteration_s / iterations
    return figures


def _share(samples: list[ServerSample], part: str, whole: str) -> float | None:
    grown, of = _grown(samples[0], samples[-1], part), _grown(samples[0], samples[-1], whole)
    return grown / of if grown is not None and of else None
