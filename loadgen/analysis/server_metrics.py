"""The engine's own metrics under one set of names, whatever page they come from.

vLLM has a Prometheus page; TensorRT-LLM has a JSON page of iterations, which a read empties, and a
Prometheus page where ``return_perf_metrics`` is on. Names differ between versions, so each metric
lists those it has been known by, the newest first.

Sources: vLLM 0.32.0 and 0.25.1 ``/metrics``; TensorRT-LLM 1.0 to 1.3 ``serve/openai_server.py`` and
``metrics/collector.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import msgspec

from loadgen.analysis.figures import Gauge, ServerFigures, Totals
from loadgen.records import ServerSample
from loadgen.units import NS_PER_S


class Metric(NamedTuple):
    """A metric of ours: how several series of it become one, and the series that carry it.

    ``kind``: a ``counter`` only grows; a ``gauge`` is a state. ``over``: how the series of several
    labels (engines of data parallelism, reasons of finishing) become one number.
    """

    kind: Literal["counter", "gauge"]
    series: tuple[str, ...]
    over: Literal["sum", "mean"] = "sum"


def _times(vllm: tuple[str, ...], trtllm: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    return {
        suffix: tuple(f"{name}_{suffix}" for name in (*(f"vllm:{v}" for v in vllm), *trtllm))
        for suffix in ("sum", "count")
    }


_HISTOGRAMS = {
    "ttft": _times(
        ("time_to_first_token_seconds",), ("trtllm_time_to_first_token_seconds", "time_to_first_token_seconds")
    ),
    "queue": _times(
        ("request_queue_time_seconds",), ("trtllm_request_queue_time_seconds", "request_queue_time_seconds")
    ),
    "prefill": _times(("request_prefill_time_seconds",), ("trtllm_request_prefill_time_seconds",)),
    "decode": _times(("request_decode_time_seconds",), ("trtllm_request_decode_time_seconds",)),
    "e2e": _times(
        ("e2e_request_latency_seconds",), ("trtllm_e2e_request_latency_seconds", "e2e_request_latency_seconds")
    ),
    "tpot": _times(
        ("request_time_per_output_token_seconds", "time_per_output_token_seconds"),
        ("trtllm_time_per_output_token_seconds", "time_per_output_token_seconds"),
    ),
}

METRICS: dict[str, Metric] = {
    "requests_running": Metric("gauge", ("vllm:num_requests_running", "trtllm_num_requests_running")),
    "requests_waiting": Metric("gauge", ("vllm:num_requests_waiting", "trtllm_num_requests_waiting")),
    "kv_cache_usage": Metric(
        "gauge", ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "trtllm_kv_cache_utilization"), "mean"
    ),
    "requests": Metric(
        "counter", ("vllm:request_success_total", "trtllm_request_success_total", "request_success_total")
    ),
    "prompt_tokens": Metric("counter", ("vllm:prompt_tokens_total", "trtllm_prompt_tokens_total")),
    "generation_tokens": Metric("counter", ("vllm:generation_tokens_total", "trtllm_generation_tokens_total")),
    "preemptions": Metric("counter", ("vllm:num_preemptions_total",)),
    "prefix_cache_queries": Metric(
        "counter", ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
    ),
    "prefix_cache_hits": Metric("counter", ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")),
    **{
        f"{name}_s_{suffix}": Metric("counter", series)
        for name, suffixes in _HISTOGRAMS.items()
        for suffix, series in suffixes.items()
    },
    # TensorRT-LLM's iterations.
    "iterations": Metric("counter", ()),
    "iteration_s_sum": Metric("counter", ()),
    "blocks_reused": Metric("counter", ()),
    "blocks_missed": Metric("counter", ()),
}
# What is compared with loadgen's own totals.
RECONCILED = ("requests", "prompt_tokens", "generation_tokens")

_WANTED = {series for metric in METRICS.values() for series in metric.series}


def parse_prometheus(text: str) -> dict[str, float]:
    """The metrics of :data:`METRICS` on a Prometheus page; {} when there are none, or the page is broken."""
    from prometheus_client.parser import text_string_to_metric_families

    # Only lines that are wanted are parsed: a page has hundreds of histogram buckets.
    lines = [line for line in text.split("\n") if line[: _name_end(line)] in _WANTED]
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
        numbers = next((found[series] for series in metric.series if series in found), None)
        if numbers:
            values[name] = sum(numbers) / (len(numbers) if metric.over == "mean" else 1)
    return values


def _name_end(line: str) -> int:
    ends = [end for end in (line.find("{"), line.find(" ")) if end >= 0]
    return min(ends, default=len(line))


class _KvCache(msgspec.Struct, rename="camel"):
    max_num_blocks: int = 0
    used_num_blocks: int = 0
    reused_blocks: int | None = None
    missed_blocks: int | None = None


class _Iteration(msgspec.Struct, rename="camel"):
    iter: int | None = None
    iter_latency_ms: float | None = msgspec.field(default=None, name="iterLatencyMS")
    num_active_requests: int | None = None
    num_queued_requests: int | None = None
    kv_cache_stats: _KvCache | None = None


_iterations = msgspec.json.Decoder(list[_Iteration])


class IterationPage:
    """TensorRT-LLM's ``/metrics``: a read empties it, so there must be one reader, and this is it.

    Gauges are means over the iterations since the last read; counters go on from read to read.
    """

    def __init__(self) -> None:
        self._last: int | None = None
        self._counters = {"iterations": 0.0, "iteration_s_sum": 0.0}

    def take(self, body: bytes) -> dict[str, float]:
        """The values of one read; {} when the page is no list of iterations."""
        try:
            items = _iterations.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return {}
        fresh = []
        for item in items:
            if item.iter is not None:
                if self._last is not None and item.iter <= self._last:
                    continue  # given twice
                self._last = item.iter
            fresh.append(item)
        self._counters["iterations"] += len(fresh)
        self._counters["iteration_s_sum"] += sum((i.iter_latency_ms or 0.0) / 1e3 for i in fresh)
        caches = [i.kv_cache_stats for i in fresh if i.kv_cache_stats is not None]
        for name, blocks in (
            ("blocks_reused", [c.reused_blocks for c in caches if c.reused_blocks is not None]),
            ("blocks_missed", [c.missed_blocks for c in caches if c.missed_blocks is not None]),
        ):
            if blocks:  # counts of the server's whole life
                self._counters[name] = float(blocks[-1])
        gauges = {
            "requests_running": _mean(i.num_active_requests for i in fresh),
            "requests_waiting": _mean(i.num_queued_requests for i in fresh),
            "kv_cache_usage": _mean(c.used_num_blocks / c.max_num_blocks for c in caches if c.max_num_blocks),
        }
        return {**self._counters, **{name: value for name, value in gauges.items() if value is not None}}


def _mean(values: Iterable[Any]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


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
    for name in _HISTOGRAMS:
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
