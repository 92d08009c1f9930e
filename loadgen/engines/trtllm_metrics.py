"""TensorRT-LLM's metrics: a JSON page of iterations, which a read empties, and a Prometheus page where
``return_perf_metrics`` is on.

Sources: TensorRT-LLM 1.0 to 1.3 ``serve/openai_server.py`` and ``metrics/collector.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec

SERIES = {
    "requests_running": ("trtllm_num_requests_running",),
    "requests_waiting": ("trtllm_num_requests_waiting",),
    "kv_cache_usage": ("trtllm_kv_cache_utilization",),
    "requests": ("trtllm_request_success_total", "request_success_total"),
    "prompt_tokens": ("trtllm_prompt_tokens_total",),
    "generation_tokens": ("trtllm_generation_tokens_total",),
    "ttft": ("trtllm_time_to_first_token_seconds", "time_to_first_token_seconds"),
    "queue": ("trtllm_request_queue_time_seconds", "request_queue_time_seconds"),
    "prefill": ("trtllm_request_prefill_time_seconds",),
    "decode": ("trtllm_request_decode_time_seconds",),
    "e2e": ("trtllm_e2e_request_latency_seconds", "e2e_request_latency_seconds"),
    "tpot": ("trtllm_time_per_output_token_seconds", "time_per_output_token_seconds"),
}


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
