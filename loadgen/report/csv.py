"""A run as CSV (RFC 4180): one row a level, columns named as in summary.json, full precision, empty where unknown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any, get_args

import msgspec

from loadgen.analysis.metrics import LevelAccumulator, level_figures
from loadgen.analysis.slo import SloFigures
from loadgen.analysis.stats import QUANTILES, Distribution
from loadgen.analysis.summary import LevelSummary
from loadgen.analysis.verdicts import Verdict
from loadgen.records import ErrorKind
from loadgen.report.entry import Entry
from loadgen.report.terminal import withheld

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
    figures = level_figures({"model": "closed", "concurrency": 1}, LevelAccumulator(0, 0), [])
    empty = LevelSummary(**msgspec.structs.asdict(figures), verdict=Verdict(status="VALID"))
    return [*_about(None), *_figures(empty)]


def _row(entry: Entry, level: LevelSummary) -> dict[str, Cell]:
    return {**_about(entry), **_figures(level)}


def _about(entry: Entry | None) -> dict[str, Cell]:
    engine = entry.manifest.engine if entry is not None else {}
    return {
        "run": None if entry is None else entry.name,
        "started_utc": None if entry is None else entry.manifest.started_utc,
        "engine": engine.get("kind"),
        "engine_version": engine.get("version"),
        "model": engine.get("model"),
        "simulated": None if entry is None else entry.summary.simulated,
    }


def _figures(level: LevelSummary) -> dict[str, Cell]:
    load, hidden = level.load, withheld(level)
    row: dict[str, Cell] = {
        "load_model": load.get("model"),
        "concurrency": load.get("concurrency"),
        "rate_rps": load.get("rate_rps"),
        "arrival": load.get("arrival"),
        "max_in_flight": load.get("max_in_flight"),
        "round": load.get("round"),
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
    row |= {f"tokens_{name}": value for name, value in level.tokens.items() if name != "source"}
    row["tokens_source"] = ", ".join(level.tokens["source"]) or None
    row["stalls_requests"] = None if hidden else level.stalls["requests"]
    row |= _distribution("stalls_longest_gap_s", level.stalls["longest_gap_s"], hidden)
    row |= {f"errors_{kind}": level.errors.get(kind, 0) for kind in get_args(ErrorKind)}
    client = level.client
    row |= {
        f"client_{name}": client[name]
        for name in ("workers", "utilization", "in_flight", "littles_law_deviation", "connects", "retried")
    }
    row |= _distribution("client_lateness_s", client["lateness_s"])
    row |= _slo(level.slo if isinstance(level.slo, SloFigures) else None, hidden)
    row |= _open_loop(level.open_loop if isinstance(level.open_loop, dict) else {}, hidden)
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


def _open_loop(found: dict[str, Any], hidden: bool) -> dict[str, Cell]:
    names = ("intended_rate_rps", "achieved_rate_rps", "late", "dropped")
    row: dict[str, Cell] = {f"open_loop_{name}": found.get(name) for name in names}
    row |= _distribution("open_loop_send_lateness_s", found.get("send_lateness_s"))
    service = found.get("service", {})
    for name in ("ttft_s", "e2e_s"):
        row |= _distribution(f"open_loop_service_{name}", service.get(name), hidden)
    return row


def _around(level: LevelSummary) -> dict[str, Cell]:
    """What the engine and the GPUs say, as far as it is one number."""
    server, gpu = level.server or {}, level.gpu or {}
    row: dict[str, Cell] = {}
    for name, statistic in (("requests_running", "mean"), ("requests_waiting", "mean"), ("kv_cache_usage", "max")):
        row[f"server_{name}_{statistic}"] = server.get(name, {}).get(statistic)
    for name in ("prefix_cache_hit_rate", "preemptions", "ttft_s", "queue_s", "prefill_s", "decode_s", "agrees"):
        row[f"server_{name}"] = server.get(name)
    row["gpu_energy_j"] = gpu.get("energy_j")
    row["gpu_energy_per_output_token_j"] = gpu.get("energy_per_output_token_j")
    return row
