"""The table and the words that end a sweep, for a terminal of 80 columns or a log file."""

from __future__ import annotations

import textwrap

import msgspec

from loadgen.analysis.figures import LevelSummary, OpenLoopFigures, Precision, ServerFigures
from loadgen.analysis.find import Find
from loadgen.analysis.metrics import SHORT, Metric, shown_in, value_at
from loadgen.analysis.precision import in_words as reached_in_words
from loadgen.analysis.rounds import METRICS as ROUNDED
from loadgen.analysis.rounds import Spread
from loadgen.analysis.server_metrics import RECONCILED
from loadgen.analysis.slo import SloFigures
from loadgen.analysis.stats import QUANTILES, Distribution, quantile_floor
from loadgen.analysis.summary import Summary
from loadgen.engines.offline import OfflineReport
from loadgen.loads import Open
from loadgen.records import LoadEntry, Manifest
from loadgen.report.find import rows, sentences
from loadgen.report.table import laid
from loadgen.report.text import WIDTH, fill, one_line, printable
from loadgen.units import format_count, format_ms

SIMULATED = "SIMULATED: these figures come from the embedded engine's model, not from a GPU."


SIDE_BY_SIDE = [column for column in shown_in("markdown") if column[0].key != "request_throughput_rps"]
WITHHELD = "-"
# Heads and width of the columns that are one number.
VALUE_HEADS = {"output_throughput_tps": ("output", "tokens/s", 11), "request_throughput_rps": ("requests", "/s", 9)}
ROUNDS = "2/8: the second round at 8 in flight"


def withheld(level: LevelSummary) -> bool:
    """Whether loadgen's own delay is in the level's latencies, so that none is shown to people.

    summary.json has them all the same, beside the verdict.
    """
    return any(reason.status == "CLIENT_BOUND" for reason in level.verdict.reasons)


def latency_ms(level: LevelSummary, field: str, name: str) -> str:
    """A quantile or the mean of a latency in ms, with the digits that its interval supports.

    "n/a" when the sample is too small, and :data:`WITHHELD` when loadgen itself spoilt it.
    """
    if withheld(level):
        return WITHHELD
    distribution: Distribution = getattr(level, field)
    return format_ms(getattr(distribution, name), distribution.half_width(name))


def cell(level: LevelSummary, metric: Metric, statistic: str) -> str:
    """One cell of a table for people: a latency in ms, anything else as a number."""
    if statistic != "value":
        return latency_ms(level, metric.key, statistic)
    value = value_at(level, metric.key)
    return "n/a" if value is None else format_count(value)


def cells(level: LevelSummary, table: str) -> list[str]:
    """The figures of a level in the table of a format (:func:`loadgen.analysis.metrics.shown_in`)."""
    return [cell(level, metric, statistic) for metric, statistic in shown_in(table)]


def render(manifest: Manifest, summary: Summary) -> str:
    """The whole text: what was measured, the table, the verdicts in words, the notes."""
    parts = [_heading(manifest)]
    if summary.simulated:
        parts.append(SIMULATED)
    if summary.levels:
        parts.append(_table(summary.levels))
        parts.append(_footnotes(summary))
        parts.append(rounds_table(summary))
        if isinstance(summary.find, Find):
            title = "Search for the knee" if summary.find.kind == "knee" else "Search for the capacity"
            parts.append("\n".join([title, *rows(summary.find)]))
            parts.append("\n".join(fill(sentence) for sentence in sentences(summary.find)))
        parts.append("\n".join(_judgement(level) for level in summary.levels))
    else:
        parts.append("No level was measured.")
    parts += [textwrap.fill(f"Note: {note}", WIDTH) for note in summary.notes]
    return printable("\n\n".join(part for part in parts if part)) + "\n"


def _heading(manifest: Manifest) -> str:
    engine, load = manifest.engine, manifest.load
    amount = f"{load.requests} requests" if load.requests else f"{load.duration_s:g} s"
    if load.precision is not None:
        amount = f"{load.duration_s:g} to {load.max_duration_s:g} s, until {load.precision * 100:g} % precise,"
    lines = [
        f"{engine.name} serving {engine.model} at {engine.url} (/v1, {engine.endpoint})",
        f"{manifest.dataset.text}; {_load_words(load)}, {amount} measured per level; seed {manifest.seed}",
    ]
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False) for line in lines)


def _load_words(load: LoadEntry) -> str:
    if load.find is not None:
        return f"search for the {load.find.kind} over {load.find.over}"
    if load.model != "open":
        return "closed loop"
    return f"open loop, {load.arrival} arrivals, latencies from when a request was due"


def are_mixed(levels: list[LevelSummary]) -> bool:
    """Whether there are several kinds of load, as in a search for a capacity."""
    return len({type(level.load) for level in levels}) > 1


def load_column(levels: list[LevelSummary]) -> tuple[str, str]:
    """The head of a load's column, in two lines; where both kinds are in it, each load says which it is."""
    if are_mixed(levels):
        return "", "load"
    return levels[0].load.column if levels else ("in", "flight")


def _table(levels: list[LevelSummary]) -> str:
    upper, lower = load_column(levels)
    mixed = are_mixed(levels)
    above, below, widths = _columns(list(shown_in("terminal")))
    rows = [[upper, "requests", *above, ""], [lower, f"{'ok':>5} {'fail':>5}", *below, ""]]
    for level in levels:
        counts = f"{level.requests.completed:>5} {level.requests.failed:>5}"
        rows.append([_name(level, mixed), counts, *cells(level, "terminal"), _mark(level)])
    upper, lower, *body = laid(f"{{:>6}} {{:>11}}{widths}{{}}", rows)
    return "\n".join([upper, lower, "-" * 78, *body])


def _mark(level: LevelSummary) -> str:
    return "" if level.verdict.status == "VALID" else " !"


def _columns(shown: list[tuple[Metric, str]]) -> tuple[list[str], list[str], str]:
    """Upper heads, lower heads and template of these columns; the upper head of a latency stands over its last one."""
    above, below, template = [], [], ""
    for (metric, statistic), following in zip(shown, [*shown[1:], None], strict=True):
        upper, lower, width = VALUE_HEADS.get(metric.key, ("", statistic, 8))
        if statistic != "value" and (following is None or following[0] is not metric):
            upper = f"{metric.short}, ms"
        above.append(upper)
        below.append(lower)
        template += f"{{:>{width}}}"
    return above, below, template


def _name(level: LevelSummary, mixed: bool) -> str:
    load = level.load
    if not mixed or not isinstance(load, Open):
        return load.short
    return f"{load.rate_rps:.0f}/s" if load.rate_rps >= 100 else f"{load.rate_rps:.3g}/s"


SPREADS = "{:>6}  {:<16}{:>10}{:>19}{:>10}{:>10}"
ROUND_ROWS = {
    name: f"{SHORT[key]} {statistic}, ms" if statistic else SHORT[key] for name, (key, statistic) in ROUNDED.items()
}


def rounds_table(summary: Summary) -> str:
    """What the rounds of each load say together; empty for a single round."""
    if isinstance(summary.rounds, msgspec.UnsetType):
        return ""
    upper, lower = load_column(summary.levels)
    count = len({level.load.round for level in summary.levels})
    rows = [
        f"Over {count} round{'s' * (count != 1)}",
        *laid(
            SPREADS,
            [
                [upper, "", "mean over", "", "error in", "between"],
                [lower, "", "rounds", "95 % interval", "a round", "rounds"],
            ],
        ),
        "-" * 73,
    ]
    notes = []
    for one in summary.rounds:
        name = one.load.short
        if one.left_out:
            notes.append(f"{one.load.text}: left out, since not valid: {', '.join(one.left_out)}")
        if not one.metrics:
            rows.append(f"{name:>6}  {one.rounds} valid round{'s' * (one.rounds != 1)}: two are needed")
        for key, spread in one.metrics.items():
            rows += laid(SPREADS, [[name, ROUND_ROWS[key], *_spread_cells(key, spread)]])
            name = ""
    notes.append(
        "error in a round: of its mean, by its own requests; between rounds: standard deviation beyond that error"
    )
    return "\n".join([*rows, *(fill(note) for note in notes)])


def _spread_cells(key: str, spread: Spread) -> list[str]:
    low, high = spread.ci95
    half = (high - low) / 2
    if key.endswith("_s"):
        cells = [format_ms(spread.mean, half), f"{format_ms(low, half)} .. {format_ms(high, half)}"]
        cells += [format_ms(spread.within), format_ms(spread.between)]
    else:
        cells = [format_count(spread.mean), f"{format_count(low)} .. {format_count(high)}"]
        cells += ["n/a" if v is None else format_count(v) for v in (spread.within, spread.between)]
    return cells


def _footnotes(summary: Summary) -> str:
    lines = []
    missing = [
        (name, quantile_floor(q))
        for name, q in QUANTILES.items()
        if name in ("p50", "p90", "p99")
        and any(level.requests.completed < quantile_floor(q) for level in summary.levels)
    ]
    if missing:
        lines.append("n/a: " + ", ".join(f"{name} needs {floor} requests" for name, floor in missing))
    if any(level.verdict.status != "VALID" for level in summary.levels):
        lines.append("!: not valid, see below; do not rely on this row")
    if any(level.load.round is not None for level in summary.levels):
        lines.append(ROUNDS)
    if any(withheld(level) for level in summary.levels):
        lines.append(f"{WITHHELD}: withheld, since loadgen's own delay is in it")
    return "\n".join(lines)


def _judgement(level: LevelSummary) -> str:
    """A level's verdict in words, and what backs it."""
    load = level.load.text
    if level.verdict.status == "VALID":
        client = level.client
        late = client.lateness_s
        backing = [f"{client.in_flight:.1f} in flight on average"]
        if isinstance(level.open_loop, OpenLoopFigures):
            lateness = level.open_loop.send_lateness_s
            backing.append(f"sent {format_ms(lateness.mean)} ms after it was due on average")
        if late.mean is not None:
            backing.append(f"own stamps {format_ms(late.mean)} ms late on average")
        backing.append(f"{client.utilization:.0%} of a core used")
        if client.littles_law_deviation is not None:
            backing.append(f"Little's law within {client.littles_law_deviation:.1%}")
        if level.server is not None and level.server.agrees:
            backing.append("tokens agree with the server's count")
        text = f"{load}: VALID ({', '.join(backing)})"
        return "\n".join([textwrap.fill(text, WIDTH, subsequent_indent="  "), *_remarks(level)])
    lines = []
    for reason in level.verdict.reasons:
        lines.append(textwrap.fill(f"{load}: {reason.status}: {reason.text}", WIDTH, subsequent_indent="  "))
        lines.append(textwrap.fill(f"what to do: {reason.advice}", WIDTH, initial_indent="  ", subsequent_indent="  "))
    return "\n".join(lines + _remarks(level))


def _remarks(level: LevelSummary) -> list[str]:
    """What a reader should know beside the verdict."""
    remarks = []
    if isinstance(level.open_loop, OpenLoopFigures) and not withheld(level):
        service = level.open_loop.service.ttft_s
        remarks.append(
            f"from the real send, TTFT was {format_ms(service.p50)} ms (p50), {format_ms(service.p99)} ms (p99); "
            f"{level.open_loop.late} requests were sent more than 1 ms late, {level.open_loop.dropped} never"
        )
    tokens = level.tokens
    if tokens.source.get("events"):
        remarks.append("the server sends no usage: tokens are counted as events")
    elif tokens.source.get("usage_final"):
        remarks.append("usage comes once per request: the tokens of a single event are not known")
    if tokens.unstreamed:
        remarks.append(f"{tokens.unstreamed} replies were not streamed: they have no TTFT and no TPOT")
    if tokens.shared_read and tokens.shared_read > 0.05:
        remarks.append(f"{tokens.shared_read:.0%} of the token events shared a read with the one before")
    if level.steady.cut_transient and level.steady.steady is not False:
        remarks.append(f"steady state: {level.steady.reason}")
    if isinstance(level.precision, Precision):
        remarks.append(precision_words(level.precision))
    if isinstance(level.slo, SloFigures) and not withheld(level):
        remarks += slo_words(level.slo)
    if level.stalls.requests and not withheld(level):
        longest = level.stalls.longest_gap_s.max
        remarks.append(f"{level.stalls.requests:.1%} of the requests stalled; the longest gap: {format_ms(longest)} ms")
    server = level.server
    if server is not None and server.agrees is False:
        counted = [key for key in RECONCILED if getattr(server, key) is not None]
        counts = ", ".join(f"{key} {getattr(server, key):,}" for key in counted)
        own = ", ".join(f"{getattr(level.totals, key):,}" for key in counted)
        remarks.append(f"the server counted {counts}, loadgen {own}: something else uses it, or requests were lost")
    remarks += [text for text in (server_words(server), gpu_words(level)) if text]
    return [textwrap.fill(remark, WIDTH, initial_indent="  ", subsequent_indent="  ") for remark in remarks]


def precision_words(precision: Precision) -> str:
    """How well a level knows its figures, and why it ended."""
    why = {
        "precision": "and so it ended",
        "budget": "when --max-duration was over",
        "interrupted": "when it was interrupted",
    }[precision.ended]
    word = "reached" if precision.met else "NOT REACHED"
    return f"precision of {precision.asked * 100:g} % {word}, {why}: {reached_in_words(precision.reached)}"


def slo_words(slo: SloFigures) -> list[str]:
    """How a level did against the objectives, a sentence each."""
    words = []
    asked = [text for text in slo.slos if ":" not in text]
    if slo.attainment is not None:
        text = f"{', '.join(asked)}: met by {slo.attainment:.1%} of {slo.offered} requests"
        if slo.attainment_ci95 is not None:
            text += f" (95 % interval {slo.attainment_ci95[0]:.1%} to {slo.attainment_ci95[1]:.1%})"
        if slo.goodput_rps is not None:
            text += f"; goodput {format_count(slo.goodput_rps)} requests/s"
        words.append(text)
    elif asked:
        words.append(f"{', '.join(asked)}: not known, since no reply has the latency that is asked for")
    for one in slo.percentiles:
        text = f"{one.slo}: {one.decision.upper()}"
        if one.share is not None:
            text += f" ({one.share:.2%} of {one.requests} requests within it"
            if one.ci95 is not None:
                text += f", 95 % interval {one.ci95[0]:.2%} to {one.ci95[1]:.2%}"
            text += ")"
        words.append(text)
    return words


def server_words(server: ServerFigures | None) -> str | None:
    """The level as the engine saw it, in a sentence."""
    if server is None:
        return None
    words = []
    for gauge, text in ((server.requests_running, "{:.1f} running"), (server.requests_waiting, "{:.1f} waiting")):
        if gauge is not None:
            words.append(text.format(gauge.mean))
    if server.kv_cache_usage is not None:
        words.append(f"KV cache {server.kv_cache_usage.max:.1%} full at most")
    if server.preemptions:
        words.append(f"{server.preemptions:,} preemptions")
    if server.prefix_cache_hit_rate:
        words.append(f"{server.prefix_cache_hit_rate:.1%} prefix-cache hits")
    named = (
        ("TTFT", server.ttft_s), ("queue", server.queue_s), ("prefill", server.prefill_s), ("decode", server.decode_s)
    )  # fmt: skip
    times = [f"{text} {format_ms(seconds)}" for text, seconds in named if seconds is not None]
    if times:
        words.append(f"mean {', '.join(times)} ms")
    if server.iteration_s is not None:
        words.append(f"{format_ms(server.iteration_s)} ms an iteration")
    return f"the engine says: {', '.join(words)}" if words else None


def gpu_words(level: LevelSummary) -> str | None:
    """What the GPUs did, in a sentence."""
    if level.gpu is None:
        return None
    words = []
    for device in level.gpu.devices:
        parts = []
        if device.power_w is not None:
            parts.append(f"{device.power_w.mean:.0f} W")
        if device.sm_clock_mhz is not None:
            parts.append(f"{device.sm_clock_mhz.mean:,.0f} MHz")
        if device.memory_used_bytes is not None:
            parts.append(f"{device.memory_used_bytes.max / 2**30:.1f} GiB used")
        parts += [f"{reason} {share:.0%} of the time" for reason, share in device.throttle.items()]
        words.append(", ".join(parts))
    energy = level.gpu.energy_per_output_token_j
    tail = "" if energy is None else f"; {energy:.3g} J an output token"
    return f"GPU: {'; '.join(words)}{tail}"


def side_by_side(runs: list[tuple[str, Summary]], together: bool) -> str:
    """Several runs of one sweep, level by level.

    It claims no difference between them: that takes intervals and a check that they are comparable.

    Args:
        runs: name and summary of each.
        together: they were under load at the same time; their throughputs are summed then.
    """
    upper, lower = load_column([level for _, summary in runs for level in summary.levels])
    wide = min(max(12, *(len(name) for name, _ in runs)), 26)
    above, below, widths = _columns(SIDE_BY_SIDE)
    template = f"{{:>6}}  {{:<{wide}}}{widths}{{}}"
    rows = [*laid(template, [[upper, "", *above, ""], [lower, "run", *below, ""]]), "-" * 78]
    mixed = are_mixed([level for _, summary in runs for level in summary.levels])
    loads = list(dict.fromkeys(_name(level, mixed) for _, summary in runs for level in summary.levels))
    for load in loads:
        total: float | None = 0.0
        for name, summary in runs:
            level = next((lv for lv in summary.levels if _name(lv, mixed) == load), None)
            if level is None:
                rows.append(f"{load:>6}  {_cell(name, wide)}   not measured")
                total = None
                continue
            found = [cell(level, metric, statistic) for metric, statistic in SIDE_BY_SIDE]
            tokens = level.output_throughput_tps
            total = None if total is None or tokens is None else total + tokens
            rows += laid(template, [[load, _cell(name, wide), *found, _mark(level)]])
        if together:
            summed = "n/a" if total is None else format_count(total)
            rows.append(f"{load:>6}  {'all together':<{wide + 32}}{summed:>11}")
    invalid = any(level.verdict.status != "VALID" for _, summary in runs for level in summary.levels)
    notes = ["!: not valid, see above; do not rely on this row"] if invalid else []
    notes += [fill(f"SIMULATED: {one_line(name)}") for name, summary in runs if summary.simulated]
    if any(level.load.round is not None for _, summary in runs for level in summary.levels):
        notes.append(ROUNDS)
    return "\n".join(["Side by side", "", *rows, *notes]) + "\n"


def _cell(name: str, wide: int) -> str:
    """A run's name in so many columns: the end of one that is longer, which tells runs of one day apart."""
    name = one_line(name)
    return f"{name:<{wide}}" if len(name) <= wide else f"...{name[3 - wide :]}"


def offline(report: OfflineReport, summary: Summary) -> str:
    """trtllm-bench's throughput, and how much of it the served levels reach."""
    words = [f"{format_count(report.output_throughput_tps)} output tokens/s"]
    if report.mean_input_tokens is not None and report.mean_output_tokens is not None:
        words.append(f"{report.mean_input_tokens:,.0f} tokens in and {report.mean_output_tokens:,.0f} out on average")
    if report.mean_tpot_s is not None:
        words.append(f"TPOT {format_ms(report.mean_tpot_s)} ms")
    lines = [
        f"Offline ceiling by trtllm-bench {report.version or ''}: {', '.join(words)}; {report.requests:,} requests "
        "there at once, without HTTP, ramp and drain counted in.",
    ]
    for level in summary.levels:
        tokens = level.output_throughput_tps
        if tokens is not None and report.output_throughput_tps > 0:
            lines.append(f"  {level.load.text}: {tokens / report.output_throughput_tps:.0%} of it served")
    return "\n".join(textwrap.fill(line, WIDTH, subsequent_indent="  ") for line in lines) + "\n"
