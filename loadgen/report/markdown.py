"""Runs as Markdown that fits a pull request.

Strings of users and servers are escaped so that they stay text: no table, no markup and no mention can
come of a model's name or of an error's body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from loadgen.analysis.figures import LevelSummary
from loadgen.analysis.metrics import SHORT, shown_in
from loadgen.analysis.slo import SloFigures
from loadgen.analysis.stats import QUANTILES, quantile_floor
from loadgen.analysis.summary import Summary
from loadgen.loads import Open
from loadgen.records import Manifest
from loadgen.report.answer import answer
from loadgen.report.entry import Entry
from loadgen.report.table import markdown
from loadgen.report.terminal import SIMULATED, WITHHELD, are_mixed, cells, slo_words, withheld
from loadgen.report.text import code, escaped
from loadgen.units import format_count


def render(entries: Sequence[Entry]) -> str:
    """Every run, then all side by side where there are several."""
    parts = [part for entry in entries for part in _run(entry, named=len(entries) > 1)]
    if len(entries) > 1:
        parts += ["### Side by side", _side_by_side(entries)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _run(entry: Entry, named: bool) -> list[str]:
    manifest, summary = entry.manifest, entry.summary
    engine = manifest.engine
    title = f"{escaped(engine.name)} serving {code(str(engine.model))}"
    parts = [f"### {code(entry.name) + ': ' if named else ''}{title}"]
    if summary.simulated:
        parts.append(f"**{SIMULATED}**")
    parts += [escaped(answer(summary, manifest)), _table(summary.levels), _notes(summary), _reasons(summary.levels)]
    parts += [f"Note: {escaped(note)}" for note in summary.notes]
    parts.append(_details(manifest))
    return parts


def _table(levels: Sequence[LevelSummary]) -> str:
    if not levels:
        return ""
    mixed = are_mixed(list(levels))
    with_slo = any(isinstance(level.slo, SloFigures) for level in levels)
    load = "load" if mixed else "requests/s due" if isinstance(levels[0].load, Open) else "in flight"
    heads = [load, "verdict", *_heads(), *([SHORT["slo.goodput_rps"], SHORT["slo.attainment"]] * with_slo)]
    rows = [
        [_load(level, mixed), level.verdict.status, *cells(level, "markdown"), *(_slo(level) if with_slo else [])]
        for level in levels
    ]
    return markdown([heads, *rows], words=(1,))


def _load(level: LevelSummary, mixed: bool) -> str:
    return escaped(level.load.text if mixed else level.load.short)


def _heads() -> list[str]:
    """``TTFT p50, ms``, then ``p99`` for the next column of the same latency."""
    heads, before = [], None
    for metric, statistic in shown_in("markdown"):
        name = metric.short if statistic == "value" else f"{metric.short} {statistic}, ms"
        heads.append(statistic if metric is before else name)
        before = metric
    return heads


def _count(value: float | None) -> str:
    return "n/a" if value is None else format_count(value)


def _slo(level: LevelSummary) -> list[str]:
    slo = level.slo
    if withheld(level):
        return [WITHHELD, WITHHELD]
    if not isinstance(slo, SloFigures):
        return ["n/a", "n/a"]
    share = "n/a" if slo.attainment is None else f"{slo.attainment:.1%}"
    if slo.attainment_ci95 is not None:
        share += f" ({slo.attainment_ci95[0]:.1%} to {slo.attainment_ci95[1]:.1%})"
    return [_count(slo.goodput_rps), share]


def _notes(summary: Summary) -> str:
    notes = []
    missing = [
        f"{name} needs {quantile_floor(QUANTILES[name])} requests"
        for name in ("p50", "p99")
        if any(level.requests.completed < quantile_floor(QUANTILES[name]) for level in summary.levels)
    ]
    if missing:
        notes.append(f"n/a: {', '.join(missing)}.")
    if any(withheld(level) for level in summary.levels):
        notes.append(f"{WITHHELD}: withheld, since loadgen's own delay is in it.")
    return escaped(" ".join(notes))


def _reasons(levels: Sequence[LevelSummary]) -> str:
    """Why levels are not valid, and how percentiles did."""
    lines = []
    for level in levels:
        load = escaped(level.load.text)
        lines += [
            f"- {load}: **{reason.status}**: {escaped(reason.text)}. What to do: {escaped(reason.advice)}."
            for reason in level.verdict.reasons
        ]
        if isinstance(level.slo, SloFigures) and level.slo.percentiles and not withheld(level):
            lines += [f"- {load}: {escaped(text)}" for text in slo_words(level.slo)[-len(level.slo.percentiles) :]]
    return "\n".join(lines)


def facts(manifest: Manifest) -> dict[str, str]:
    """What was run, on what, and how to run it again."""
    host, engine, client = manifest.host, manifest.engine, manifest.client
    versions: dict[str, Any] = engine.facts.get("versions") or {}
    found = {
        "Command": " ".join(manifest.command),
        "Started": manifest.started_utc,
        "Engine": f"{engine.kind} {engine.version or ''} at {engine.url}",
        "Started as": engine.shell,
        "Versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
        "Dataset": ", ".join(f"{key} {value}" for key, value in msgspec.to_builtins(manifest.dataset).items()),
        "Seed": str(manifest.seed),
        "Objectives": manifest.load.slo,
        "Host": f"{host.name}: {host.processor}, {host.cores} cores, Linux {host.kernel}",
        "GPUs": ", ".join(gpu.name for gpu in manifest.gpus) or "none seen by loadgen",
        "Driver": manifest.driver,
        "Client": f"loadgen {client.loadgen_version}, {client.workers} worker process(es)",
    }
    return {name: str(value) for name, value in found.items() if value}


def _details(manifest: Manifest) -> str:
    rows = [f"- {name}: {code(value)}" for name, value in facts(manifest).items()]
    return "\n".join(["<details><summary>The run</summary>", "", *rows, "", "</details>"])


def _side_by_side(entries: Sequence[Entry]) -> str:
    mixed = are_mixed([level for entry in entries for level in entry.summary.levels])
    loads = list(dict.fromkeys(_load(level, mixed) for entry in entries for level in entry.summary.levels))
    rows = []
    for load in loads:
        for entry in entries:
            own = [level for level in entry.summary.levels if _load(level, mixed) == load]
            name = code(entry.name) + (" (SIMULATED)" if entry.summary.simulated else "")
            rows += [[load, name, level.verdict.status, *cells(level, "markdown")] for level in own]
            if not own:
                rows.append([load, name, "not measured", *["n/a"] * 6])
    heads = ["load", "run", "verdict", *_heads()]
    return markdown([heads, *rows], words=(1, 2)) if rows else ""
