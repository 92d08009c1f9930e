"""A run as CSV (RFC 4180): one row a level, columns named as in summary.json, full precision, empty where unknown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import get_args

import msgspec

from loadgen.analysis.figures import LevelSummary, OpenLoopFigures, TokenFigures, Verdict
from loadgen.analysis.gather import LevelAccumulator
from loadgen.analysis.level import level_figures
from loadgen.analysis.slo import SloFigures
from loadgen.analysis.stats import QUANTILES, Distribution
from loadgen.loads import Closed, kind_of
from loadgen.records import ErrorKind
from loadgen.report.entry import Entry
from loadgen.report.terminal import withheld

LOAD = ("concurrency", "rate_rps", "arrival", "max_in_flight", "round")

Cell = str | int | float | bool | None

LATENCIES = ("ttft_s", "tpot_s", "itl_s", "itl_per_token_s", "e2e_s")
RATES = ("request_throughput_rps", "output_throughput_tps", "total_throughput_tps")
STATISTICS = ("mean", "stdev", "min", *QUANTILES, "max")
WITH_INTERVALS = ("mean", *QUANTILES)
# Samples that depend on each other have no intervals: those of distributions that are not named here.
INDEPENDENT = {"ttft_s", "tpot_s", "e2e_s", "input_tokens", "output_tokens"}


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
    load, hidden = level.load, withheld(level)
    row: dict[str, Cell] = {
        "load_model": kind_of(load),
        **{name: getattr(load, name, None) for name in LOAD},
        "verdict": level.verdict.status,
        "verdict_reasons": "; ".join(f"{reason.status}: {reason.text}" for reason in level.verdict.reasons) or None,
    }
    row |= {f"requests_{name}": getattr(level.requests, name) for name in level.requests.__struct_fields__}
    row["duration_s"] = level.duration_s
    for name in LATENCIES:
        row |= _distribution(name, getattr(level, name), hidden)
    for name in RATES:
        row[name] = getattr(level, name)
        if name != "total_throughput_tps":
            row |= _interval(name, level.ci95.get(name))
    for name in ("input_tokens", "output_tokens"):
        row |= _distribution(name, getattr(level, name))
    counted = (name for name in TokenFigures.__struct_fields__ if name != "source")
    row |= {f"tokens_{name}": getattr(level.tokens, name) for name in counted}
    row["tokens_source"] = ", ".join(level.tokens.source) or None
    row["stalls_requests"] = None if hidden else level.stalls.requests
    row |= _distribution("stalls_longest_gap_s", level.stalls.longest_gap_s, hidden)
    row |= {f"errors_{kind}": level.errors.get(kind, 0) for kind in get_args(ErrorKind)}
    client = level.client
    row |= {
        f"client_{name}": getattr(client, name)
        for name in ("workers", "utilization", "in_flight", "littles_law_deviation", "connects", "retried")
    }
    row |= _distribution("client_lateness_s", client.lateness_s)
    row |= _slo(level.slo if isinstance(level.slo, SloFigures) else None, hidden)
    row |= _open_loop(level.open_loop if isinstance(level.open_loop, OpenLoopFigures) else None, hidden)
    row |= {
        "steady_steady": level.steady.steady,
        "steady_requests": level.steady.requests,
        "steady_cut_transient": level.steady.cut_transient,
        "steady_cut_turnover": level.steady.cut_turnover,
    }
    return row | _around(level)


def _distribution(name: str, found: Distribution | None, hidden: bool = False) -> dict[str, Cell]:
    """Its statistics and their intervals; of a latency that is withheld, only the count."""
    row: dict[str, Cell] = {f"{name}_count": None if found is None else found.count}
    shown = None if hidden else found
    for statistic in STATISTICS:
        row[f"{name}_{statistic}"] = None if shown is None else getattr(shown, statistic)
        if statistic in WITH_INTERVALS and name in INDEPENDENT:
            row |= _interval(f"{name}_{statistic}", None if shown is None else shown.ci95.get(statistic))
    return row


def _interval(name: str, found: tuple[float, float] | None) -> dict[str, Cell]:
    low, high = found or (None, None)
    return {f"{name}_ci95_low": low, f"{name}_ci95_high": high}


def _slo(slo: SloFigures | None, hidden: bool) -> dict[str, Cell]:
    shown = None if hidden else slo
    row: dict[str, Cell] = {
        "slo": None if slo is None else ", ".join(slo.slos),
        "slo_offered": None if slo is None else slo.offered,
        "slo_good": None if shown is None else shown.good,
        "slo_attainment": None if shown is None else shown.attainment,
        **_interval("slo_attainment", None if shown is None else shown.attainment_ci95),
        "slo_goodput_rps": None if shown is None else shown.goodput_rps,
        **_interval("slo_goodput_rps", None if shown is None else shown.goodput_ci95_rps),
    }
    decisions = [] if shown is None else [f"{one.slo} {one.decision}" for one in shown.percentiles]
    row["slo_percentiles"] = "; ".join(decisions) or None
    return row


def _open_loop(found: OpenLoopFigures | None, hidden: bool) -> dict[str, Cell]:
    names = ("intended_rate_rps", "achieved_rate_rps", "late", "dropped")
    row: dict[str, Cell] = {f"open_loop_{name}": getattr(found, name, None) for name in names}
    row |= _distribution("open_loop_send_lateness_s", None if found is None else found.send_lateness_s)
    service = None if found is None else found.service
    for name in ("ttft_s", "e2e_s"):
        row |= _distribution(f"open_loop_service_{name}", getattr(service, name, None), hidden)
    return row


def _around(level: LevelSummary) -> dict[str, Cell]:
    """What the engine and the GPUs say, as far as it is one number."""
    row: dict[str, Cell] = {}
    for name, statistic in (("requests_running", "mean"), ("requests_waiting", "mean"), ("kv_cache_usage", "max")):
        row[f"server_{name}_{statistic}"] = getattr(getattr(level.server, name, None), statistic, None)
    for name in ("prefix_cache_hit_rate", "preemptions", "ttft_s", "queue_s", "prefill_s", "decode_s", "agrees"):
        row[f"server_{name}"] = getattr(level.server, name, None)
    row["gpu_energy_j"] = None if level.gpu is None else level.gpu.energy_j
    row["gpu_energy_per_output_token_j"] = None if level.gpu is None else level.gpu.energy_per_output_token_j
    return row
