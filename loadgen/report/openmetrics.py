"""Runs as OpenMetrics text, for a Prometheus textfile collector or ``promtool check metrics``.

Latencies are summaries, the type that has quantiles; everything else is a gauge. No sample has a time
stamp, which a textfile collector refuses. A figure that is unknown or withheld has no sample.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import get_args

from prometheus_client.core import Metric as MetricFamily
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import CollectorRegistry

from loadgen.analysis.figures import LevelSummary, Status
from loadgen.analysis.metrics import METRICS, Metric, interval_of, value_at
from loadgen.analysis.slo import SloFigures
from loadgen.analysis.stats import QUANTILES, Distribution
from loadgen.loads import kind_of
from loadgen.report.entry import Entry
from loadgen.report.terminal import withheld

Labels = dict[str, str]
LABELLED = {"requests", "errors"}  # one family each, with a label for the outcome or the kind


class _Families:
    """Metric families in the order in which they are first used; a value of None is left out."""

    def __init__(self) -> None:
        self._by_name: dict[str, MetricFamily] = {}

    def collect(self) -> Iterator[MetricFamily]:
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

    def _family(self, name: str, text: str, kind: str) -> MetricFamily:
        return self._by_name.setdefault(name, MetricFamily(name, text, kind))


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
    text = "Requests of the level; those of warm-up and drain are not measured."
    for outcome in level.requests.__struct_fields__:
        families.gauge("loadgen_requests", text, {**labels, "outcome": outcome}, getattr(level.requests, outcome))
    text = "Measured requests that failed."
    for kind, count in level.errors.items():
        families.gauge("loadgen_request_errors", text, {**labels, "kind": kind}, count)
    for metric in METRICS:
        if metric.key.partition(".")[0] not in LABELLED and not (metric.withheld and withheld(level)):
            _metric(families, metric, level, labels)


def _metric(families: _Families, metric: Metric, level: LevelSummary, labels: Labels) -> None:
    """A row of the table of metrics, with its intervals."""
    name, text = metric.exported, metric.help or f"{metric.name[:1].upper()}{metric.name[1:]}."
    value = value_at(level, metric.key)
    if metric.key.startswith("slo."):
        if not isinstance(level.slo, SloFigures):
            return
        labels = {**labels, "slo": ",".join(level.slo.slos)}
    if isinstance(value, Distribution):
        families.summary(name, text, labels, value)
        for statistic, interval in value.ci95.items() if metric.intervals else ():
            families.interval(name, text, {**labels, "statistic": statistic}, interval)
        return
    families.gauge(name, text, labels, value)
    families.interval(name, text, labels, interval_of(level, metric))
