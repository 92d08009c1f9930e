"""Runs as OpenMetrics text, for a Prometheus textfile collector or ``promtool check metrics``.

Latencies are summaries, the type that has quantiles; everything else is a gauge. No sample has a time
stamp, which a textfile collector refuses. A figure that is unknown or withheld has no sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import get_args

from prometheus_client.core import Metric
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import CollectorRegistry

from loadgen.analysis.figures import LevelSummary, Status
from loadgen.analysis.slo import SloFigures
from loadgen.analysis.stats import QUANTILES, Distribution
from loadgen.loads import kind_of
from loadgen.report.entry import Entry
from loadgen.report.terminal import withheld

Labels = dict[str, str]

LATENCIES = {
    "ttft": "Time to first token; in an open loop from when the request was due.",
    "tpot": "Time per output token after the first event.",
    "itl": "Gap between two token events of a request.",
    "e2e": "From send to last token; in an open loop from when the request was due.",
}
THROUGHPUTS = {
    "request_throughput_rps": ("loadgen_requests_per_second", "Successful requests that ended, per second."),
    "output_throughput_tps": ("loadgen_output_tokens_per_second", "Output tokens received per second."),
    "total_throughput_tps": ("loadgen_tokens_per_second", "Input and output tokens per second."),
}


class _Families:
    """Metric families in the order in which they are first used; a value of None is left out."""

    def __init__(self) -> None:
        self._by_name: dict[str, Metric] = {}

    def collect(self) -> Iterator[Metric]:
        """What a registry of prometheus_client asks of a collector."""
        yield from self._by_name.values()

    def gauge(self, name: str, text: str, labels: Labels, value: float | None) -> None:
        if value is not None and math.isfinite(value):
            self._family(name, text, "gauge").add_sample(name, labels, float(value))

    def interval(self, name: str, text: str, labels: Labels, found: tuple[float, float] | None) -> None:
        for bound, value in zip(("lower", "upper"), found or (), strict=False):
            self.gauge(f"{name}_ci95", f"95 % interval. {text}", {**labels, "bound": bound}, value)

    def summary(self, name: str, text: str, labels: Labels, found: Distribution) -> None:
        if found.mean is None:
            return
        family = self._family(name, text, "summary")
        for quantile, q in QUANTILES.items():
            value = getattr(found, quantile)
            if value is not None:
                family.add_sample(name, {**labels, "quantile": repr(q)}, float(value))
        family.add_sample(f"{name}_count", labels, float(found.count))
        family.add_sample(f"{name}_sum", labels, found.mean * found.count)

    def _family(self, name: str, text: str, kind: str) -> Metric:
        return self._by_name.setdefault(name, Metric(name, text, kind))


def render(entries: Sequence[Entry]) -> str:
    """The whole text, its last line ``# EOF``."""
    families = _Families()
    for entry in entries:
        about = _about(entry)
        _run(families, entry, about)
        for index, level in enumerate(entry.summary.levels):
            _level(families, level, {**about, **_load(level, index)})
    registry = CollectorRegistry(auto_describe=False)
    registry.register(families)
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text.decode()


def _about(entry: Entry) -> Labels:
    engine = entry.manifest.engine
    return {
        "run": entry.name,
        "engine": engine.kind,
        "version": engine.version or "",
        "model": engine.model or "",
        "simulated": str(entry.summary.simulated).lower(),
    }


def _load(level: LevelSummary, index: int) -> Labels:
    return {
        "level": str(index),
        "load_model": kind_of(level.load),
        "load": f"{level.load.value:g}",
    }


def _run(families: _Families, entry: Entry, about: Labels) -> None:
    manifest = entry.manifest
    facts = {
        "loadgen_version": manifest.client.loadgen_version or "",
        "host": manifest.host.name or "",
        "gpu": ", ".join(dict.fromkeys(gpu.name for gpu in manifest.gpus)),
    }
    families.gauge("loadgen_run_info", "What was measured, where; always 1.", {**about, **facts}, 1)
    try:
        started_s = datetime.fromisoformat(manifest.started_utc).timestamp()
    except ValueError:
        return
    families.gauge("loadgen_run_start_timestamp_seconds", "When the run was started.", about, started_s)


def _level(families: _Families, level: LevelSummary, labels: Labels) -> None:
    held = {reason.status for reason in level.verdict.reasons} | {level.verdict.status}
    for status in get_args(Status):
        text = "1 where the verdict holds for the level; only figures of a VALID level can be relied on."
        families.gauge("loadgen_verdict", text, {**labels, "status": status}, float(status in held))
    families.gauge("loadgen_measured_window_seconds", "Time that was measured.", labels, level.duration_s)
    for outcome in ("completed", "failed", "cancelled"):
        count = getattr(level.requests, outcome)
        families.gauge("loadgen_requests", "Measured requests.", {**labels, "outcome": outcome}, count)
    for kind, count in level.errors.items():
        families.gauge("loadgen_request_errors", "Measured requests that failed.", {**labels, "kind": kind}, count)
    if not withheld(level):
        _latencies(families, level, labels)
    for field, (name, text) in THROUGHPUTS.items():
        families.gauge(name, text, labels, getattr(level, field))
        families.interval(name, text, labels, level.ci95.get(field))
    client = level.client
    text = "Requests in flight, time average."
    families.gauge("loadgen_in_flight_requests", text, labels, client.in_flight)
    text = "How late loadgen stamped a probe: its own error."
    families.summary("loadgen_client_lateness_seconds", text, labels, client.lateness_s)
    text = "CPU time of loadgen's busiest worker, of one core."
    families.gauge("loadgen_client_utilization_ratio", text, labels, client.utilization)
    _around(families, level, labels)


def _latencies(families: _Families, level: LevelSummary, labels: Labels) -> None:
    for name, text in LATENCIES.items():
        found: Distribution = getattr(level, f"{name}_s")
        families.summary(f"loadgen_{name}_seconds", text, labels, found)
        for statistic, interval in found.ci95.items():
            own = {**labels, "statistic": statistic}
            families.interval(f"loadgen_{name}_seconds", text, own, interval)
    slo = level.slo
    if not isinstance(slo, SloFigures):
        return
    own = {**labels, "slo": ",".join(slo.slos)}
    text = "Share of the offered requests that met every objective."
    families.gauge("loadgen_slo_attainment_ratio", text, own, slo.attainment)
    families.interval("loadgen_slo_attainment_ratio", text, own, slo.attainment_ci95)
    text = "Requests that met every objective, per second."
    families.gauge("loadgen_goodput_requests_per_second", text, own, slo.goodput_rps)
    families.interval("loadgen_goodput_requests_per_second", text, own, slo.goodput_ci95_rps)


def _around(families: _Families, level: LevelSummary, labels: Labels) -> None:
    """What the engine and the GPUs said."""
    rows: Iterable[tuple[str, str, str, str]] = (
        ("requests_running", "mean", "loadgen_server_running_requests", "Running in the engine, mean."),
        ("requests_waiting", "mean", "loadgen_server_waiting_requests", "Waiting in the engine, mean."),
        ("kv_cache_usage", "max", "loadgen_server_kv_cache_usage_ratio", "The KV cache at its fullest."),
    )
    for field, statistic, name, text in rows:
        families.gauge(name, text, labels, getattr(getattr(level.server, field, None), statistic, None))
    energy = None if level.gpu is None else level.gpu.energy_per_output_token_j
    text = "Energy of all the engine's GPUs for an output token."
    families.gauge("loadgen_energy_per_output_token_joules", text, labels, energy)
