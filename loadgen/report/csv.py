"""A run as CSV (RFC 4180): one row a level, columns named as in summary.json, full precision, empty where unknown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import msgspec

from loadgen.analysis.figures import LevelSummary, Verdict
from loadgen.analysis.gather import LevelAccumulator
from loadgen.analysis.level import level_figures
from loadgen.analysis.metrics import METRICS, Metric, interval_of, value_at
from loadgen.analysis.slo import SloFigures
from loadgen.analysis.stats import QUANTILES, Distribution
from loadgen.loads import Closed, kind_of
from loadgen.report.entry import Entry
from loadgen.report.terminal import withheld

LOAD = ("concurrency", "rate_rps", "arrival", "max_in_flight", "round")

Cell = str | int | float | bool | None

STATISTICS = ("mean", "stdev", "min", *QUANTILES, "max")
WITH_INTERVALS = ("mean", *QUANTILES)
# Rows of the table that are one number with an interval, and of distributions that may be missing from a level.
INTERVALS = {"request_throughput_rps", "output_throughput_tps", "slo.attainment", "slo.goodput_rps"}
DISTRIBUTIONS = {"open_loop.send_lateness_s", "open_loop.service.ttft_s", "open_loop.service.e2e_s"}
# In summary.json, the page and OpenMetrics: the columns of CSV are a contract, and these would be new ones.
LEFT_OUT = {"client.slot_gap_s", "server.iteration_s"}


def render(entries: Sequence[Entry]) -> str:
    """The header and a row for every level of every run, with CRLF line ends."""
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    rows = [_row(entry, level) for entry in entries for level in entry.summary.levels]
    writer.writerow(rows[0] if rows else _row_names())
    writer.writerows([[_cell(value) for value in row.values()] for row in rows])
    return out.getvalue()


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return guarded(value)
    return repr(value) if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def guarded(text: str) -> str:
    """Text that no spreadsheet takes for a formula: an apostrophe before =, +, -, @, and what they may hide behind."""
    hidden = text.lstrip()
    return f"'{text}" if hidden[:1] in ("=", "+", "-", "@") or text[:1] in ("\t", "\r", "\n") else text


def _row_names() -> list[str]:
    """The header of a table without rows."""
    figures = level_figures(Closed(concurrency=1), LevelAccumulator(0, 0), [])
    empty = LevelSummary(**msgspec.structs.asdict(figures), verdict=Verdict(status="VALID"))
    return [*_about(None), *_figures(empty)]


def _row(entry: Entry, level: LevelSummary) -> dict[str, Cell]:
    return {**_about(entry), **_figures(level)}


def _about(entry: Entry | None) -> dict[str, Cell]:
    engine = None if entry is None else entry.manifest.engine
    return {
        "run": None if entry is None else entry.name,
        "started_utc": None if entry is None else entry.manifest.started_utc,
        "engine": None if engine is None else engine.kind,
        "engine_version": None if engine is None else engine.version,
        "model": None if engine is None else engine.model,
        "simulated": None if entry is None else entry.summary.simulated,
    }


def _figures(level: LevelSummary) -> dict[str, Cell]:
    row: dict[str, Cell] = {
        "load_model": kind_of(level.load),
        **{name: getattr(level.load, name, None) for name in LOAD},
        "verdict": level.verdict.status,
        "verdict_reasons": "; ".join(f"{reason.status}: {reason.text}" for reason in level.verdict.reasons) or None,
    }
    for metric in METRICS:
        if metric.key not in LEFT_OUT:
            row |= _texts_before(metric, level) | _columns(metric, level)
    return row


def _columns(metric: Metric, level: LevelSummary) -> dict[str, Cell]:
    """The columns of a row of the table of metrics."""
    value = value_at(level, metric.key)
    hidden = metric.withheld and withheld(level)
    if isinstance(value, Distribution) or metric.key in DISTRIBUTIONS:
        return _distribution(metric, value, hidden)
    row: dict[str, Cell] = {metric.column: None if hidden else value}
    if metric.key in INTERVALS:
        row |= _interval(metric.column, None if hidden else interval_of(level, metric))
    return row


def _distribution(metric: Metric, found: Distribution | None, hidden: bool) -> dict[str, Cell]:
    """Its statistics and their intervals; of a latency that is withheld, only the count."""
    name = metric.column
    row: dict[str, Cell] = {f"{name}_count": None if found is None else found.count}
    shown = None if hidden else found
    for statistic in STATISTICS:
        row[f"{name}_{statistic}"] = None if shown is None else getattr(shown, statistic)
        if statistic in WITH_INTERVALS and metric.intervals:
            row |= _interval(f"{name}_{statistic}", None if shown is None else shown.ci95.get(statistic))
    return row


def _interval(name: str, found: tuple[float, float] | None) -> dict[str, Cell]:
    low, high = found or (None, None)
    return {f"{name}_ci95_low": low, f"{name}_ci95_high": high}


def _texts_before(metric: Metric, level: LevelSummary) -> dict[str, Any]:
    """Columns of words, each before the figure that it stands beside."""
    slo = level.slo if isinstance(level.slo, SloFigures) else None
    if metric.key == "stalls.requests":
        return {"tokens_source": ", ".join(level.tokens.source) or None}
    if metric.key == "slo.offered":
        return {"slo": None if slo is None else ", ".join(slo.slos)}
    if metric.key == "open_loop.intended_rate_rps":
        shown = [] if slo is None or withheld(level) else slo.percentiles
        return {"slo_percentiles": "; ".join(f"{one.slo} {one.decision}" for one in shown) or None}
    return {}
