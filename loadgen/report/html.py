"""report.html: one file, no network access, nothing but text, a table and drawn curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape
from typing import Any

from loadgen import __version__
from loadgen.records import Manifest
from loadgen.report.kernels import heading as kernel_heading
from loadgen.report.terminal import SIMULATED, in_words, is_open, latency_ms, level_name, load_value, withheld
from loadgen.report.waterfall import Beside, Waterfall, why_no_sum
from loadgen.summary import LevelSummary, Summary
from loadgen.units import format_count, format_ms

WIDTH, HEIGHT = 460, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 18, 40

STYLE = """
:root{color-scheme:light dark;--ink:#1a1d21;--soft:#5b6470;--line:#d8dde3;--back:#fff;--card:#f6f8fa;
--bad:#b3261e;--good:#1a7f4b;--a:#1f5fbf;--b:#b35c00;--c:#7a3fb0}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa4af;--line:#353c45;--back:#14171a;--card:#1c2126;
--bad:#ff8a80;--good:#62d29a;--a:#79aef5;--b:#f0a45b;--c:#c79bf2}}
body{margin:0 auto;padding:24px 16px 48px;max-width:1040px;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
h1{font-size:22px;margin:0 0 4px}h2{font-size:17px;margin:32px 0 8px}p{margin:4px 0;color:var(--soft)}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:6px 8px;text-align:right;border-bottom:1px solid var(--line);vertical-align:bottom}
td{white-space:nowrap}tbody th{font-size:15px;color:var(--ink)}
th{font-weight:600;color:var(--soft);font-size:13px}td.word,th.word{text-align:left}
tr.bad td{color:var(--soft)}tr.bad td.word{color:var(--bad);font-weight:600}td.good{color:var(--good);font-weight:600}
.mark{display:inline-block;padding:4px 10px;border:1px solid var(--bad);color:var(--bad);border-radius:4px;
font-weight:600;margin:8px 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:16px}
figure{margin:0;background:var(--card);border-radius:8px;padding:12px}figcaption{font-weight:600;font-size:14px}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font:11px system-ui,sans-serif}
caption{text-align:left;font-weight:600;padding:12px 8px 4px}
li{margin:4px 0}dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;font-size:14px}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
"""

Series = tuple[str, str, list[tuple[float, float | None, bool]]]


def render(manifest: Manifest, summary: Summary, beside: Beside | None = None) -> str:
    """The page.

    Args:
        beside: the kernels at the sizes that the run served, where they were measured.
    """
    title = f"{manifest.engine['kind']} serving {manifest.engine['model']}"
    mark = f'<p class="mark">{escape(SIMULATED)}</p>' if summary.simulated else ""
    levels = summary.levels
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_load_words(levels))}. Started {escape(manifest.started_utc)}.</p>",
        mark,
    ]
    if levels:
        body += [
            '<h2 id="results">Results</h2>',
            _table(levels),
            '<h2 id="curves">Against load</h2>',
            _charts(levels, summary.simulated),
            '<h2 id="verdicts">Verdicts</h2>',
            _verdicts(levels),
            _engine_section(levels),
            _kernel_section(beside) if beside is not None else "",
        ]
    else:
        body.append("<p>No level was measured.</p>")
    body += [f"<p>Note: {escape(note)}</p>" for note in summary.notes]
    body += ['<h2 id="run">The run</h2>', _facts(manifest)]
    policy = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>loadgen: {escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _load_head(levels: list[LevelSummary]) -> str:
    return "Requests/s due" if levels and is_open(levels[0].load) else "In flight"


def _load_words(levels: list[LevelSummary]) -> str:
    if not levels:
        return "No level"
    loads = ", ".join(f"{load_value(level.load):g}" for level in levels)
    if is_open(levels[0].load):
        return (
            f"Open loop at {loads} requests/s, {levels[0].load['arrival']} arrivals; latencies from when each was due"
        )
    return f"Closed loop at {loads} in flight"


def _table(levels: list[LevelSummary]) -> str:
    heads = [
        "Completed", "Failed", "TTFT p50, ms", "TTFT p90, ms", "TTFT p99, ms", "TPOT p50, ms",
        "TPOT p99, ms", "ITL p99, ms", "E2E p50, ms", "Output tokens/s", "Requests/s",
    ]  # fmt: skip
    rows = []
    for level in levels:
        cells = [
            format_count(level.requests.completed),
            format_count(level.requests.failed),
            *[latency_ms(level, "ttft_s", q) for q in ("p50", "p90", "p99")],
            *[latency_ms(level, "tpot_s", q) for q in ("p50", "p99")],
            latency_ms(level, "itl_s", "p99"),
            latency_ms(level, "e2e_s", "p50"),
            *[
                "n/a" if v is None else format_count(v)
                for v in (level.output_throughput_tps, level.request_throughput_rps)
            ],
        ]
        valid = level.verdict.status == "VALID"
        rows.append(
            ("<tr>" if valid else '<tr class="bad">')
            + f'<th scope="row">{level_name(level.load)}</th>'
            + f'<td class="word{" good" if valid else ""}">{escape(level.verdict.status)}</td>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            + "</tr>"
        )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Results"><table><thead><tr>'
        + f'<th scope="col">{_load_head(levels)}</th><th scope="col" class="word">Verdict</th>'
        + "".join(f'<th scope="col">{escape(head)}</th>' for head in heads)
        + "</tr></thead><tbody>"
        + "\n".join(rows)
        + "</tbody></table></div>"
        + ("<p>-: withheld, since loadgen's own delay is in it.</p>" if any(map(withheld, levels)) else "")
    )


# What the engine and the GPUs say of a level: a heading, and how to get it.
_ENGINE_COLUMNS: list[tuple[str, Callable[[dict[str, Any]], str | None]]] = [
    ("Running, mean", lambda s: _number(s.get("requests_running"), "mean", "{:.1f}")),
    ("Waiting, mean", lambda s: _number(s.get("requests_waiting"), "mean", "{:.1f}")),
    ("KV cache, most", lambda s: _number(s.get("kv_cache_usage"), "max", "{:.1%}")),
    ("Prefix-cache hits", lambda s: _number(s, "prefix_cache_hit_rate", "{:.1%}")),
    ("Preemptions", lambda s: f"{s['preemptions']:,}" if s.get("preemptions") else None),
    ("TTFT in the engine, ms", lambda s: _ms(s, "ttft_s")),
    ("Queue, ms", lambda s: _ms(s, "queue_s")),
    ("Prefill, ms", lambda s: _ms(s, "prefill_s")),
    ("Decode, ms", lambda s: _ms(s, "decode_s")),
    ("Iteration, ms", lambda s: _ms(s, "iteration_s")),
    ("Power, W", lambda s: _number(s.get("power_w"), "mean", "{:,.0f}")),
    ("SM clock, MHz", lambda s: _number(s.get("sm_clock_mhz"), "mean", "{:,.0f}")),
    ("Throttled", lambda s: ", ".join(f"{why} {part:.0%}" for why, part in s.get("throttle", {}).items()) or None),
    ("Energy, J/token", lambda s: _number(s, "energy_per_output_token_j", "{:.3g}")),
]


def _number(values: dict[str, Any] | None, name: str, form: str) -> str | None:
    return None if values is None or values.get(name) is None else form.format(values[name])


def _ms(values: dict[str, Any], name: str) -> str | None:
    return format_ms(values[name]) if name in values else None


def _engine_section(levels: list[LevelSummary]) -> str:
    """A table of what the engine and its first GPU say; nothing where they say nothing."""
    seen = []
    for level in levels:
        gpu = level.gpu or {"devices": [{}]}
        seen.append({**gpu["devices"][0], **(level.server or {}), **{k: v for k, v in gpu.items() if k != "devices"}})
    columns = [(head, [cell(s) for s in seen]) for head, cell in _ENGINE_COLUMNS]
    columns = [(head, cells) for head, cells in columns if any(cells)]
    if not columns:
        return ""
    client = [latency_ms(level, "ttft_s", "mean") for level in levels]
    heads = "".join(
        f'<th scope="col">{escape(head)}</th>' for head in ["TTFT here, mean, ms", *(h for h, _ in columns)]
    )
    rows = [
        f'<tr><th scope="row">{escape(level_name(level.load))}</th>'
        + "".join(f"<td>{escape(cell or '-')}</td>" for cell in [client[i], *(cells[i] for _, cells in columns)])
        + "</tr>"
        for i, level in enumerate(levels)
    ]
    return (
        '<h2 id="engine">What the engine and the GPU say</h2>'
        '<div class="scroll" tabindex="0" role="region" aria-label="What the engine and the GPU say"><table><thead><tr>'
        f'<th scope="col">{_load_head(levels)}</th>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        "<p>The engine's times begin and end inside it; what its HTTP server and the network add is in the TTFT "
        "measured here and not in these.</p>"
    )


def _kernel_section(beside: Beside) -> str:
    """The waterfalls, from the data sheet's roof to what was served, and each kernel of the steps."""
    parts = ['<h2 id="kernels">Kernels beside TTFT and TPOT</h2>']
    parts += [f"<p>{escape(line)}</p>" for line in kernel_heading(beside.manifest)]
    parts.append('<div class="charts">')
    parts += [_waterfall(fall) for fall in beside.waterfalls]
    parts.append("</div>")
    for fall in beside.waterfalls:
        if not fall.parts:
            continue
        rows = "".join(
            f'<tr><th scope="row" class="word">{escape(part.name)}</th>'
            f'<td class="word">{escape(part.implementation)}</td><td>{part.per_step}</td>'
            f"<td>{part.call_s * 1e6:,.1f}</td><td>{format_ms(part.total_s)}</td>"
            f"<td>{part.total_s / fall.kernels_s:.1%}</td><td>{part.roof_s / part.total_s:.0%}</td></tr>"
            for part in fall.parts
        )
        title = _fall_title(fall)
        heads = "".join(
            f'<th scope="col">{head}</th>'
            for head in ("A step", "A call, us", "A step, ms", "Of the sum", "Of the roof")
        )
        parts.append(
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}"><table>'
            f'<caption>{escape(title)}</caption><thead><tr><th scope="col" class="word">Kernel</th>'
            f'<th scope="col" class="word">Best</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        )
    return "\n".join(parts)


def _fall_title(fall: Waterfall) -> str:
    step = fall.step
    return f"{fall.metric.upper()} at {in_words(fall.load)}: {step.phase} of {step.sequences} x {step.context} tokens"


def _waterfall(fall: Waterfall) -> str:
    """Bars from the data sheet's roof down to what was served; the steps between them are the gaps."""
    title = _fall_title(fall)
    if fall.refused or fall.missing or fall.served_s is None:
        what = why_no_sum(fall) if fall.refused or fall.missing else f"no {fall.metric.upper()} was served"
        return f"<figure><figcaption>{escape(title)}</figcaption><p>{escape(what[0].upper() + what[1:])}.</p></figure>"
    bars: list[tuple[str, float, float, bool]] = [("data sheet roof", 0.0, fall.sheet_roof_s, False)]
    at = fall.sheet_roof_s
    totals = {0: ("measured roof", fall.roof_s), 2: ("sum of kernels", fall.kernels_s)}
    for index, gap in enumerate(fall.gaps):
        bars.append((gap.name, at, gap.seconds, True))
        at += gap.seconds
        if index in totals:
            bars.append((totals[index][0], 0.0, totals[index][1], False))
    bars.append((f"served {fall.metric.upper()}", 0.0, fall.served_s, False))
    most = max(max(start, start + size) for _, start, size, _ in bars)
    left, right, row = 150, 64, 20
    scale = (WIDTH - left - right) / most
    shapes = []
    for place, (name, start, size, is_gap) in enumerate(bars):
        y = TOP + place * row
        low, high = sorted((start, start + size))
        width = max((high - low) * scale, 1.0)
        fill = "var(--b)" if is_gap else "var(--a)"
        sign = "+" if is_gap and size >= 0 else ""
        shapes.append(
            f'<text x="{left - 6}" y="{y + 11}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="{left + max(low, 0.0) * scale:.1f}" y="{y}" width="{width:.1f}" height="14" fill="{fill}"/>'
            f'<text x="{left + max(high, 0.0) * scale + 4:.1f}" y="{y + 11}">{sign}{format_ms(size)}</text>'
        )
    height = TOP + len(bars) * row + 8
    reasons = "".join(
        f"<li>{escape(gap.name)}, {format_ms(gap.seconds)} ms: {escape(gap.why)}.</li>" for gap in fall.gaps
    )
    return (
        f'<figure><figcaption>{escape(title)}, ms</figcaption><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">{"".join(shapes)}</svg><ul>{reasons}</ul></figure>'
    )


def _charts(levels: list[LevelSummary], simulated: bool) -> str:
    def points(values: list[float | None], factor: float = 1.0) -> list[tuple[float, float | None, bool]]:
        found = [
            (
                load_value(level.load),
                None if value is None else value * factor,
                level.verdict.status == "VALID",
            )
            for level, value in zip(levels, values, strict=True)
        ]
        return sorted(found, key=lambda point: point[0])  # rounds go through the loads more than once

    def quantiles(field: str) -> list[Series]:
        found: list[Series] = []
        for name, colour in (("p50", "var(--a)"), ("p90", "var(--b)"), ("p99", "var(--c)")):
            values = [None if withheld(level) else getattr(getattr(level, field), name) for level in levels]
            found.append((name, colour, points(values, 1e3)))
        return found

    axis = "requests/s" if is_open(levels[0].load) else "in flight"
    charts = [
        _chart("TTFT, ms", quantiles("ttft_s"), simulated, axis),
        _chart("TPOT, ms", quantiles("tpot_s"), simulated, axis),
        _chart("E2E, ms", quantiles("e2e_s"), simulated, axis),
        _chart(
            "Output tokens/s",
            [("tokens/s", "var(--a)", points([level.output_throughput_tps for level in levels]))],
            simulated,
            axis,
        ),
    ]
    return '<div class="charts">' + "\n".join(charts) + "</div>"


def _ticks(top: float) -> list[float]:
    step = 10 ** math.floor(math.log10(top / 4))
    step *= next(m for m in (1, 2, 5, 10) if top / (step * m) <= 5)
    return [step * i for i in range(math.floor(top / step) + 1)]


def _chart(title: str, series: list[Series], simulated: bool, axis: str) -> str:
    """Curves against the load, on a logarithmic axis; levels not valid are hollow."""
    known = [y for _, _, line in series for _, y, _ in line if y is not None]
    caption = title + (" (SIMULATED)" if simulated else "")
    if not known:
        return f"<figure><figcaption>{escape(caption)}</figcaption><p>Nothing to show.</p></figure>"
    loads = sorted({x for _, _, line in series for x, _, _ in line})
    top = max(max(known) * 1.08, 1e-9)
    low, high = math.log(loads[0]), math.log(loads[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        share = (math.log(x) - low) / (high - low) if high > low else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT), TOP + (1 - y / top) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick in _ticks(top):
        _, y = at(loads[0], tick)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(format_count(tick))}</text>'
        )
    for load in loads:
        x, _ = at(load, 0)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{load:g}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{axis}</text>')
    for place, (name, colour, line) in enumerate(series):
        spots = [(*at(x, y), x, y, valid) for x, y, valid in line if y is not None]
        if not spots:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, *_ in spots)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y, load, value, valid in spots:
            fill = colour if valid else "var(--card)"
            label = f"{name} at {load:g} {axis}: {format_count(value)}" + ("" if valid else " (not valid)")
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="2">'
                f"<title>{escape(label)}</title></circle>"
            )
        if len(series) > 1:
            parts.append(f'<text x="{LEFT + 8 + 44 * place}" y="{TOP - 5}" style="fill:{colour}">{escape(name)}</text>')
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(caption)} against {axis}">{"".join(parts)}</svg></figure>'
    )


def _verdicts(levels: list[LevelSummary]) -> str:
    items = []
    for level in levels:
        load = in_words(level.load)
        client = level.client
        if level.verdict.status == "VALID":
            late = client["lateness_s"].mean
            words = f"{load}: VALID; {client['in_flight']:.1f} in flight on average, own stamps "
            words += "not probed" if late is None else f"{format_ms(late)} ms late on average"
            items.append(f"<li>{escape(words)}, {client['utilization']:.0%} of a core used.</li>")
        for reason in level.verdict.reasons:
            items.append(
                f"<li>{escape(load)}: <strong>{escape(reason.status)}</strong>: {escape(reason.text)}. "
                f"What to do: {escape(reason.advice)}.</li>"
            )
    return f"<ul>{''.join(items)}</ul>"


def _launch_facts(engine: dict[str, Any]) -> dict[str, str]:
    """How an engine that loadgen launched was started; nothing for one that ran already."""
    facts = {}
    if engine.get("shell"):
        facts["Started as"] = engine["shell"]
    if engine.get("startup_s"):
        facts["Start-up"] = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in engine["startup_s"].items())
    if engine.get("dummy_weights"):
        facts["Weights"] = "made up by the engine (dummy): timing is the model's, text is noise"
    return facts


def _facts(manifest: Manifest) -> str:
    host = manifest.host
    gpus = ", ".join(str(gpu["name"]) for gpu in manifest.gpus) or "none seen by loadgen"
    facts = {
        "Command": " ".join(manifest.command),
        "Engine": f"{manifest.engine['kind']} {manifest.engine['version'] or ''} at {manifest.engine['url']}",
        "Model": manifest.engine["model"],
        **_launch_facts(manifest.engine),
        "Dataset": ", ".join(f"{key} {value}" for key, value in manifest.dataset.items()),
        "Seed": str(manifest.seed),
        "Host": f"{host['name']}: {host['processor']}, {host['cores']} cores, Linux {host['kernel']}",
        "GPUs": gpus,
        "Client": f"loadgen {manifest.client['loadgen_version']}, {manifest.client['workers']} worker process(es)",
        "Made by": f"loadgen {__version__}",
    }
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in facts.items()) + "</dl>"
