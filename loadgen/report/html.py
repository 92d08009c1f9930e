"""report.html: one file with everything in it, and no network access.

The text and the tables are made here and are there without a script. What is drawn, and the answers
to "what if", are made by the script in ``page/`` from the data in the page (:mod:`loadgen.report.page_data`);
its source is in ``web/``. Nothing in the page may load anything: its content security policy allows this one
script, by its hash, and no address at all.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from importlib import resources
from typing import Any

import msgspec

from loadgen import __version__, loads
from loadgen.analysis.figures import GpuDevice, GpuGauge, LevelSummary
from loadgen.analysis.metrics import SHORT, shown_in, value_at
from loadgen.analysis.slo import ATTAINMENT, Slo, parse_slos
from loadgen.comparison.differences import Comparison
from loadgen.loads import Open
from loadgen.records import EngineEntry, Manifest
from loadgen.report import csv
from loadgen.report import find as finding
from loadgen.report.answer import answer
from loadgen.report.compare import WEIGHTS, capacity_notes, capacity_table, capacity_title, grouped, verdict_words
from loadgen.report.entry import Entry
from loadgen.report.kernels import heading as kernel_heading
from loadgen.report.page_data import RunPage, encode
from loadgen.report.terminal import (
    SIMULATED,
    are_mixed,
    cells,
    latency_ms,
    rounds_table,
    withheld,
)
from loadgen.report.waterfall import Beside, Waterfall, why_no_sum
from loadgen.units import format_count, format_ms

# What the page asks about first where the sweep had no objectives.
START_SLO = "ttft=500ms,tpot=50ms"


def render(pages: Sequence[RunPage], comparison: Comparison | None = None) -> str:
    """The page of one run, or of several side by side.

    Args:
        pages: at least one.
        comparison: of the second run with the first.
    """
    first = pages[0]
    several = len(pages) > 1
    if several:
        pages = [page._replace(entry=_lettered(page.entry, place)) for place, page in enumerate(pages)]
    title = f"{len(pages)} runs" if several else _title(first.manifest)
    simulated = any(page.summary.simulated for page in pages)
    measured = any(page.summary.levels for page in pages)
    slo = next((",".join(level.slo.slos) for page in pages for level in page.summary.levels if level.slo), None)
    extra = {
        "initial": {"slos": [_slo(one) for one in parse_slos(slo or START_SLO)], "attainment": _attainment(first)},
        "comparison": comparison if comparison is not None and (comparison.comparable or comparison.forced) else None,
        "csv": csv.render([page.entry for page in pages]),
    }
    sections = [("results", "Results", "".join(_results(page, i, several) for i, page in enumerate(pages)))]
    for name, words, lines in (("search", "The search", _search), ("rounds", "Over the rounds", _rounds)):
        found = "".join(lines(page, several) for page in pages)
        if found:
            sections.append((name, words, found))
    if measured:
        sections += [
            ("verdicts", "Verdicts", "".join(_verdicts(page, several) for page in pages)),
            ("load", "Against load", '<div class="charts" id="charts-load"></div>'),
            ("percentiles", "Percentiles", '<div class="charts" id="charts-percentiles"></div>'),
            ("level", "One level", '<div id="level-form"></div><div class="charts" id="charts-level"></div>'),
            ("plan", "What if: SLO, peak and price", _plan(slo)),
        ]
    if comparison is not None:
        sections.append(("comparison", "Comparison", _comparison(comparison)))
    sections += [
        ("engine", "What the engine and the GPU say", text)
        for text in ["".join(_engine_section(page, several) for page in pages)]
        if text
    ]
    beside = [page.entry.beside for page in pages]
    kernels = "".join(_kernel_section(one, i) for i, one in enumerate(beside) if one is not None)
    if kernels:
        sections.append(("kernels", "Kernels beside TTFT and TPOT", kernels))
    sections.append(("run", "The runs" if several else "The run", "".join(_facts(page, several) for page in pages)))
    if measured:
        sections.append(("data", "The data", '<div id="downloads"></div>'))
    links = "".join(f'<a href="#{name}">{escape(words)}</a>' for name, words, _ in sections)
    body = [
        "<header>",
        f"<h1>{escape(title)}</h1>",
        *(f"<p>{escape(_about(page))}</p>" for page in pages),
        f'<p class="mark">{escape(SIMULATED)}</p>' if simulated else "",
        *(f'<p class="answer">{escape(_answer(page, several))}</p>' for page in pages),
        f'</header><nav aria-label="Sections">{links}</nav><main>',
        "<noscript><p>The charts need JavaScript; the tables hold the figures.</p></noscript>" if measured else "",
        *(f'<section id="{name}"><h2>{escape(words)}</h2>{content}</section>' for name, words, content in sections),
        *(f"<p>Note: {escape(note)}</p>" for page in pages for note in page.summary.notes),
        "</main>",
        f'<script type="text/plain" id="loadgen-data">{encode(pages, extra)}</script>',
        f"<script>{_script()}</script>",
    ]
    policy = (
        f"default-src 'none'; script-src '{_script_hash()}'; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>loadgen: {escape(title)}</title><style>{_page_file('page.css')}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


@cache
def _page_file(name: str) -> str:
    return resources.files("loadgen.report").joinpath("page", name).read_text(encoding="utf-8")


def _script() -> str:
    return _page_file("page.js")


@cache
def _script_hash() -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()


def _letter(place: int) -> str:
    """What stands for a run in charts of several; the script does the same."""
    return chr(ord("A") + place) if place < 26 else f"R{place + 1}"


def _attainment(page: RunPage) -> float:
    """The share of requests that a search went by, else that of a plan."""
    load = page.manifest.load
    return load.find.attainment if load.find is not None else load.attainment or ATTAINMENT


def _lettered(entry: Entry, place: int) -> Entry:
    return msgspec.structs.replace(entry, name=f"{_letter(place)}: {entry.name}")


def _slo(slo: Slo) -> dict[str, Any]:
    return {"metric": slo.metric, "limit_us": slo.limit_s * 1e6, "percentile": slo.percentile}


def _title(manifest: Manifest) -> str:
    return f"{manifest.engine.kind} serving {manifest.engine.model}"


def _about(page: RunPage) -> str:
    """What was measured, in words."""
    manifest = page.manifest
    owned = manifest.gpus if manifest.engine.gpu_uuids else []
    words = [manifest.engine.name]
    if owned:
        words.append(f"on {owned[0].name}")
    words.append(loads.in_words([level.load for level in page.summary.levels]))
    return f"{page.name}: {', '.join(words)}. Started {manifest.started_utc}."


def _answer(page: RunPage, named: bool) -> str:
    text = answer(page.summary, page.manifest)
    return f"{page.name}: {text}" if named else text


def _search(page: RunPage, named: bool) -> str:
    """What a search found, and its probes."""
    find = page.summary.find
    if not find:
        return ""
    words = "".join(f"<p>{escape(sentence)}</p>" for sentence in finding.sentences(find))
    return _head(page, named) + words + _lines(f"Probes of {page.name}", "\n".join(finding.rows(find)))


def _rounds(page: RunPage, named: bool) -> str:
    text = rounds_table(page.summary)
    return _head(page, named) + _lines(f"Rounds of {page.name}", text) if text else ""


def _head(page: RunPage, named: bool) -> str:
    return f"<h3>{escape(page.name)}</h3>" if named else ""


def _lines(label: str, text: str) -> str:
    """A table that is text."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><pre>{escape(text)}</pre></div>'
    )


def _plan(slo: str | None) -> str:
    words = (
        "Every figure here is made from the requests of this page, as <code>loadgen plan</code> makes it. The first "
        "end of a range is what is planned with."
    )
    if slo is None:
        words += " The sweep had no objectives; these are only to begin with."
    return f'<p>{words}</p><div id="whatif-form"></div>'


def _comparison(comparison: Comparison) -> str:
    """The gate's findings; the ratios are drawn."""
    parts = [f"<p>{escape(verdict_words(comparison))}.</p>" if comparison.comparable else ""]
    if not comparison.comparable:
        parts.append(f'<p class="mark">{escape(verdict_words(comparison))}</p>')
    parts.append("<ul>")
    parts += [f"<li>{WEIGHTS[weight]}: {escape(text)}</li>" for weight, text in grouped(comparison.findings)]
    parts.append('</ul><div class="charts" id="charts-comparison"></div>')
    found = comparison.capacities
    if found is not None and found.refused:
        parts.append(f"<p>{escape(found.refused)}.</p>")
    elif found is not None:
        head, *rows = capacity_table(found)
        parts.append(
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(capacity_title(found))}"><table>'
            f"<caption>{escape(capacity_title(found))}</caption><thead><tr>"
            + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
            + "</tr></thead><tbody>"
            + "".join(
                f'<tr><th scope="row">{escape(row[0])}</th>'
                + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
                + "</tr>"
                for row in rows
            )
            + "</tbody></table></div>"
        )
        parts += [f"<p>{escape(note)}</p>" for note in capacity_notes(found)]
    return "".join(parts)


def _load_head(levels: list[LevelSummary]) -> str:
    if are_mixed(levels):
        return "Load"
    return "Requests/s due" if levels and isinstance(levels[0].load, Open) else "In flight"


def _load_cell(level: LevelSummary, levels: list[LevelSummary]) -> str:
    return level.load.text if are_mixed(levels) else level.load.short


def _results(page: RunPage, index: int, named: bool) -> str:
    return _head(page, named) + (
        _table(page.summary.levels, index) if page.summary.levels else "<p>No level was measured.</p>"
    )


def _table(levels: list[LevelSummary], run: int) -> str:
    """The levels as rows; the script makes their first cells choose a level."""
    heads = ["Completed", "Failed", *_metric_heads()]
    rows = []
    for index, level in enumerate(levels):
        figures = [
            format_count(level.requests.completed),
            format_count(level.requests.failed),
            *cells(level, "page"),
        ]
        valid = level.verdict.status == "VALID"
        rows.append(
            f'<tr data-level="{run}.{index}"'
            + ("" if valid else f' class="bad" title="{escape(_reasons(level))}"')
            + f'><th scope="row"><button type="button" class="pick">{escape(_load_cell(level, levels))}</button></th>'
            + f'<td class="word{" good" if valid else ""}">{escape(level.verdict.status)}</td>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in figures)
            + "</tr>"
        )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Results of run {run + 1}"><table><thead><tr>'
        + f'<th scope="col">{_load_head(levels)}</th><th scope="col" class="word">Verdict</th>'
        + "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
        + "</tr></thead><tbody>"
        + "\n".join(rows)
        + "</tbody></table></div>"
        + ("<p>-: withheld, since loadgen's own delay is in it.</p>" if any(map(withheld, levels)) else "")
    )


def _metric_heads() -> list[str]:
    return [
        metric.short[:1].upper() + metric.short[1:] if statistic == "value" else f"{metric.short} {statistic}, ms"
        for metric, statistic in shown_in("page")
    ]


# What the engine and the GPUs say of a level: a heading, and how to get it.
Shown = Callable[[LevelSummary], str | None]


def _figure(key: str, form: str) -> tuple[str, Shown]:
    """A figure of the table of metrics; nothing where it is unknown."""

    def shown(level: LevelSummary) -> str | None:
        value = value_at(level, key)
        return None if value is None else form.format(value)

    return SHORT[key], shown


def _time(key: str) -> tuple[str, Shown]:
    """A time of the table of metrics, in ms."""
    return SHORT[key], lambda level: None if (value := value_at(level, key)) is None else format_ms(value)


def _of_gpu(head: str, shown: Callable[[GpuDevice], str | None]) -> tuple[str, Shown]:
    """Something of the engine's first GPU."""
    return head, lambda level: None if level.gpu is None else shown(level.gpu.devices[0])


def _mean(gauge: GpuGauge | None) -> str | None:
    return None if gauge is None else f"{gauge.mean:,.0f}"


_ENGINE_COLUMNS: list[tuple[str, Shown]] = [
    _figure("server.requests_running.mean", "{:.1f}"),
    _figure("server.requests_waiting.mean", "{:.1f}"),
    _figure("server.kv_cache_usage.max", "{:.1%}"),
    _figure("server.prefix_cache_hit_rate", "{:.1%}"),
    (SHORT["server.preemptions"], lambda level: f"{n:,}" if (n := value_at(level, "server.preemptions")) else None),
    _time("server.ttft_s"),
    _time("server.queue_s"),
    _time("server.prefill_s"),
    _time("server.decode_s"),
    _time("server.iteration_s"),
    _of_gpu("Power, W", lambda gpu: _mean(gpu.power_w)),
    _of_gpu("SM clock, MHz", lambda gpu: _mean(gpu.sm_clock_mhz)),
    _of_gpu("Throttled", lambda gpu: ", ".join(f"{why} {part:.0%}" for why, part in gpu.throttle.items()) or None),
    _figure("gpu.energy_per_output_token_j", "{:.3g}"),
]


def _engine_section(page: RunPage, named: bool) -> str:
    """A table of what the engine and its first GPU say; nothing where they say nothing."""
    levels = page.summary.levels
    label = f"What the engine and the GPU of {page.name} say"
    columns = [(head, [cell(level) for level in levels]) for head, cell in _ENGINE_COLUMNS]
    columns = [(head, cells) for head, cells in columns if any(cells)]
    if not columns:
        return ""
    client = [latency_ms(level, "ttft_s", "mean") for level in levels]
    heads = "".join(
        f'<th scope="col">{escape(head)}</th>' for head in ["TTFT here, mean, ms", *(h for h, _ in columns)]
    )
    rows = [
        f'<tr><th scope="row">{escape(_load_cell(level, levels))}</th>'
        + "".join(f"<td>{escape(cell or '-')}</td>" for cell in [client[i], *(cells[i] for _, cells in columns)])
        + "</tr>"
        for i, level in enumerate(levels)
    ]
    return (
        _head(page, named)
        + f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table><thead><tr>'
        f'<th scope="col">{_load_head(levels)}</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        "<p>The engine's times begin and end inside it; what its HTTP server and the network add is in the TTFT "
        "measured here and not in these.</p>"
    )


def _kernel_section(beside: Beside, index: int) -> str:
    """Where the kernels come from, the waterfalls' reasons, and each kernel of the steps; the rest is drawn."""
    parts = [f"<p>{escape(line)}</p>" for line in kernel_heading(beside.manifest)]
    parts.append(f'<div class="charts" id="charts-kernels-{index}"></div>')
    for fall in beside.waterfalls:
        title = _fall_title(fall)
        if fall.refused or fall.missing or fall.served_s is None:
            parts.append(f"<p>{escape(title)}: {escape(_no_sum(fall))}.</p>")
            continue
        rows = "".join(
            f'<tr><th scope="row" class="word">{escape(part.name)}</th>'
            f'<td class="word">{escape(part.implementation)}</td><td>{part.per_step}</td>'
            f"<td>{part.call_s * 1e6:,.1f}</td><td>{format_ms(part.total_s)}</td>"
            f"<td>{part.total_s / fall.kernels_s:.1%}</td><td>{part.roof_s / part.total_s:.0%}</td></tr>"
            for part in fall.parts
        )
        heads = "".join(
            f'<th scope="col">{head}</th>'
            for head in ("A step", "A call, us", "A step, ms", "Of the sum", "Of the roof")
        )
        gaps = "".join(
            f"<li>{escape(gap.name)}, {format_ms(gap.seconds)} ms: {escape(gap.why)}.</li>" for gap in fall.gaps
        )
        parts.append(
            f"<details><summary>{escape(title)}: {format_ms(fall.served_s)} ms, and what it is made of</summary>"
            f"<ul>{gaps}</ul>"
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}"><table>'
            f'<thead><tr><th scope="col" class="word">Kernel</th>'
            f'<th scope="col" class="word">Best</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div></details>'
        )
    return "\n".join(parts)


def _no_sum(fall: Waterfall) -> str:
    return why_no_sum(fall) if fall.refused or fall.missing else f"no {fall.metric.upper()} was served"


def _fall_title(fall: Waterfall) -> str:
    step = fall.step
    return f"{fall.metric.upper()} at {fall.load.text}: {step.phase} of {step.sequences} x {step.context} tokens"


def _reasons(level: LevelSummary) -> str:
    return "; ".join(f"{reason.status}: {reason.text}" for reason in level.verdict.reasons)


def _verdicts(page: RunPage, named: bool) -> str:
    items = []
    for level in page.summary.levels:
        load = level.load.text
        client = level.client
        if level.verdict.status == "VALID":
            late = client.lateness_s.mean
            flying = "" if client.in_flight is None else f"{client.in_flight:.1f} in flight on average, "
            words = f"{load}: VALID; {flying}own stamps "
            words += "not probed" if late is None else f"{format_ms(late)} ms late on average"
            items.append(f"<li>{escape(words)}, {client.utilization:.0%} of a core used.</li>")
        for reason in level.verdict.reasons:
            items.append(
                f"<li>{escape(load)}: <strong>{escape(reason.status)}</strong>: {escape(reason.text)}. "
                f"What to do: {escape(reason.advice)}.</li>"
            )
    return _head(page, named) + f"<ul>{''.join(items)}</ul>"


def _launch_facts(engine: EngineEntry) -> dict[str, str]:
    """How an engine that loadgen launched was started; nothing for one that ran already."""
    facts = {}
    if engine.shell:
        facts["Started as"] = engine.shell
    if engine.startup_s:
        facts["Start-up"] = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in engine.startup_s.items())
    if engine.dummy_weights:
        facts["Weights"] = "made up by the engine (dummy): timing is the model's, text is noise"
    return facts


def _facts(page: RunPage, named: bool) -> str:
    manifest = page.manifest
    host = manifest.host
    gpus = ", ".join(gpu.name for gpu in manifest.gpus) or "none seen by loadgen"
    facts = {
        "Command": " ".join(manifest.command),
        "Engine": f"{manifest.engine.kind} {manifest.engine.version or ''} at {manifest.engine.url}",
        "Model": str(manifest.engine.model),
        **_launch_facts(manifest.engine),
        "Dataset": ", ".join(f"{key} {value}" for key, value in msgspec.to_builtins(manifest.dataset).items()),
        "Seed": str(manifest.seed),
        "Host": f"{host.name}: {host.processor}, {host.cores} cores, Linux {host.kernel}",
        "GPUs": gpus,
        "Client": f"loadgen {manifest.client.loadgen_version}, {manifest.client.workers} worker process(es)",
        "Made by": f"loadgen {__version__}",
    }
    return (
        _head(page, named)
        + "<dl>"
        + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items())
        + "</dl>"
    )
