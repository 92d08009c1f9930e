"""A comparison of two runs, for a terminal of 80 columns or a log file, and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from loadgen.analysis.capacity import Ratio
from loadgen.analysis.outcome import LATENCIES
from loadgen.comparison.blocks import THROUGHPUT
from loadgen.comparison.capacity import Capacities, CapacityRow
from loadgen.comparison.decisions import Ruling, overall_decision
from loadgen.comparison.differences import Comparison
from loadgen.comparison.effects import Effect
from loadgen.comparison.gate import Finding
from loadgen.report.plan import interval
from loadgen.report.table import laid
from loadgen.report.terminal import SIMULATED
from loadgen.report.text import WIDTH, escaped, fill
from loadgen.units import format_count, format_ms

NAMES: dict[str, str] = {**LATENCIES, THROUGHPUT: "tokens/s"}
# Figures of both sides, and what follows from them; speeds; capacities.
EFFECTS = "{:<16}{:>8}{:>9}{:>9}{:>8}  {:<15}  {}"
SPEEDS = "{:<18}{:>10}{:>10}{:>8}   {}"
CAPACITIES = "{:<20}{:>15}{:>15}{:>15}  {}"
HEAD = (*laid(EFFECTS, [("latencies in ms", "A", "B", "B - A", "B/A", "95 % interval", "B is")]), "-" * 80)
WEIGHTS = {"spoils": "spoils", "limits": "caveat", "compared": "compared"}


def render(comparison: Comparison, rulings: Sequence[Ruling] = ()) -> str:
    """The whole text: the gate, a table a level and one over all, what the figures rest on, the rulings."""
    parts = [_heading(comparison)]
    if comparison.simulated:
        parts.append(SIMULATED)
    parts.append(_gate(comparison))
    for level in comparison.levels:
        title = (
            f"{level.name}: {level.requests_a:,} and {level.requests_b:,} requests, {_rounds(level.rounds)}, "
            f"{level.pairs:,} prompts answered by both"
        )
        parts.append("\n".join([fill(title), *HEAD, *map(_row, level.effects)]))
    if comparison.overall:
        title = f"All {len(comparison.levels)} levels: geometric mean of the ratios"
        shown = [effect for effect in comparison.overall if effect.ratio is not None]
        parts.append("\n".join([title, *HEAD, *map(_row, shown)]))
    if comparison.speeds:
        parts.append(_speeds(comparison))
    if comparison.levels:
        parts.append("\n".join(fill(line) for line in footnotes(comparison)))
    if comparison.capacities is not None:
        parts.append(_capacities(comparison.capacities))
    parts += [fill(line) for line in _rulings(rulings)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(comparison: Comparison) -> str:
    return "\n".join(
        fill(f"{letter}: {label} ({engine})")
        for letter, label, engine in (
            ("A", comparison.a, comparison.engine_a),
            ("B", comparison.b, comparison.engine_b),
        )
    )


def verdict_words(comparison: Comparison) -> str:
    """Comparable or not, in a line."""
    if comparison.comparable:
        caveats = sum(finding.weight == "limits" for finding in comparison.findings)
        return "COMPARABLE" + (f", with {caveats} caveat{'s' * (caveats != 1)}" if caveats else "")
    reasons = list(dict.fromkeys(f.name for f in comparison.findings if f.weight == "spoils"))
    words = f"NOT COMPARABLE: {', '.join(reasons)}"
    return f"{words}. The figures below are shown because of --force" if comparison.forced else words


def _gate(comparison: Comparison) -> str:
    lines = [fill(verdict_words(comparison))]
    lines += [fill(f"{WEIGHTS[weight]}: {text}", "  ") for weight, text in grouped(comparison.findings)]
    lines += [fill(text, "  ") for text in _alone(comparison)]
    return "\n".join(lines)


def grouped(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    """Each finding in words; one that several levels have alike is said once."""
    levels: dict[tuple[str, str, str, str, str], list[str]] = {}
    for f in findings:
        levels.setdefault((f.weight, f.name, f.a, f.b, f.text), []).extend([f.level] if f.level else [])
    words = []
    for (weight, name, a, b, text), where in levels.items():
        place = f"{'; '.join(where)}: " if where else ""
        # Where both values are the same word, it is about the pair.
        values = a if a == b else f"A {a or 'none'}; B {b or 'none'}"
        words.append((weight, f"{place}{name}: {values}" + (f" ({text})" if weight != "compared" else "")))
    return words


def _alone(comparison: Comparison) -> list[str]:
    pairs = (("A", comparison.only_a), ("B", comparison.only_b))
    return [f"only in {letter}, and not compared: {'; '.join(levels)}" for letter, levels in pairs if levels]


def _rounds(rounds: int) -> str:
    return "one round" if rounds == 1 else f"{rounds} rounds"


def _name(effect: Effect) -> str:
    statistic = "" if effect.metric == THROUGHPUT else f" {effect.statistic}"
    return NAMES[effect.metric] + statistic


def _value(effect: Effect, value: float | None, signed: bool = False) -> str:
    if value is None:
        return ""
    text = format_count(value) if effect.metric == THROUGHPUT else format_ms(value)
    return f"+{text}" if signed and value > 0 else text


def _word(effect: Effect) -> str:
    if effect.word == "no detectable difference":
        return f"none ({percent(effect.detectable)})"
    return effect.word


def percent(share: float | None) -> str:
    """Two digits below 10 %."""
    if share is None:
        return "n/a"
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"


def _ratio(value: float) -> str:
    return f"{value:.3f}" if value < 9.9995 else f"{value:,.1f}"


def _row(effect: Effect) -> str:
    if effect.ratio is None:
        room = WIDTH - 21
        why = effect.why or ""
        return f"{_name(effect):<16}n/a  {why if len(why) <= room else why[: room - 3] + '...'}".rstrip()
    sides = [_value(effect, effect.a), _value(effect, effect.b), _value(effect, effect.difference, signed=True)]
    cells = ["no interval", ""]
    if effect.ratio_ci95 is not None:
        low, high = effect.ratio_ci95
        cells = [f"[{_ratio(low)}, {_ratio(high)}]", _word(effect)]
    (row,) = laid(EFFECTS, [[_name(effect), *sides, _ratio(effect.ratio), *cells]])
    return row


def _speeds(comparison: Comparison) -> str:
    title = "Output tokens/s where a user gets as many (1 / TPOT p50), between levels"
    rows = [
        [
            format_count(speed.speed_tps),
            format_count(speed.a_tps),
            format_count(speed.b_tps),
            f"{speed.ratio:.3f}",
            "n/a" if speed.ratio_ci95 is None else f"[{speed.ratio_ci95[0]:.3f}, {speed.ratio_ci95[1]:.3f}]",
        ]
        for speed in comparison.speeds
    ]
    head, *body = laid(SPEEDS, [["tokens/s per user", "A", "B", "B/A", "95 % interval"], *rows])
    return "\n".join([title, head, "-" * 68, *body])


def capacity_title(found: Capacities) -> str:
    """The objectives of the table of capacities, in words."""
    asked = ", ".join(found.slos)
    share = f", met by {found.attainment * 100:g} % of requests" if any(":p" not in slo for slo in found.slos) else ""
    return f"At the same SLO: {asked}{share}"


def capacity_table(found: Capacities) -> list[list[str]]:
    """The SLO and each speed: capacities of A and B and their ratio, the first row being the head."""
    rows = [["", "A, requests/s", "B, requests/s", "B/A", ""]]
    for row in found.rows:
        sides = [interval(side.capacity_rps) if side.capacity_rps else "n/a" for side in (row.a, row.b)]
        rows.append([_at(row), *sides, ratio_interval(row.ratio), row.word if row.ratio else "n/a"])
    return rows


def capacity_notes(found: Capacities) -> list[str]:
    """Tokens and GPUs of both sides at the SLO, what a side lacks, what to measure, and how to read it."""
    notes = []
    for row in found.rows[:1]:
        for letter, side in (("A", row.a), ("B", row.b)):
            if side.capacity_rps is not None:
                notes.append(f"{letter} at the SLO: {interval(side.output_tps)} output tokens/s")
        if found.gpus_a != found.gpus_b or found.gpus_a > 1:
            per_gpu = [interval(side.capacity_rps_per_gpu) for side in (row.a, row.b)]
            notes.append(
                f"per GPU (A has {found.gpus_a}, B {found.gpus_b}): A {per_gpu[0]}, B {per_gpu[1]} requests/s; B/A "
                f"{ratio_interval(row.ratio_per_gpu)}: {row.word_per_gpu}"
            )
    lacks: dict[str, list[str]] = {}
    for row in found.rows:
        for letter, side in (("A", row.a), ("B", row.b)):
            if side.refused:
                lacks.setdefault(f"{letter}: {side.refused}", []).append(_at(row))
        if row.advice:
            lacks.setdefault(row.advice, []).append(_at(row))
    notes += [f"{'; '.join(rows)}: {text}" for text, rows in lacks.items()]
    notes.append(
        "a .. b: between the highest load that surely keeps the SLO and the lowest that surely breaks it; B/A from "
        "both. What launches of one engine differ by is not in it."
    )
    return notes


def ratio_interval(ratio: Ratio | None) -> str:
    """``0.912 .. 1.34``; a question mark for an end that is not known."""
    if ratio is None:
        return "n/a"
    return " .. ".join("?" if end is None else f"{end:.3g}" for end in ratio)


def _at(row: CapacityRow) -> str:
    return "at the SLO" if row.tokens_per_s is None else f"{row.tokens_per_s} tokens/s a user"


def _capacities(found: Capacities) -> str:
    if found.refused:
        return "\n".join([fill(capacity_title(found)), fill(f"n/a: {found.refused}", "  ")])
    head, *body = capacity_table(found)
    shown = [[*row[:4], _SHORT[row[4]] if row[4] else ""] for row in body]
    above, *lines = laid(CAPACITIES, [[*head[:4], "more"], *shown])
    return "\n".join(
        [
            fill(capacity_title(found)),
            above,
            "-" * 77,
            *lines,
            *(fill(note) for note in capacity_notes(found)),
        ]
    )


_SHORT = {"A carries more": "A", "B carries more": "B", "cannot be told": "not told", "n/a": "n/a"}


def footnotes(comparison: Comparison) -> list[str]:
    """What the words and intervals mean, and what they rest on."""
    lines = [
        "paired: geometric mean of B/A over the prompts that both answered. Words after Holm's correction "
        f"over {len(comparison.levels)} level{'s' * (len(comparison.levels) != 1)}, for each row apart; "
        "none (3.0%): no detectable difference, and one of 3.0% would have been seen with 80 % power.",
    ]
    if comparison.launch_sd:
        assumed = ", ".join(
            f"{NAMES[metric]} {comparison.launch_sd[metric]:.1%}"
            for metric in (*LATENCIES, THROUGHPUT)
            if metric in comparison.launch_sd
        )
        lines.append(
            f"Intervals include what launches of one engine differ by, as assumed (standard deviation: {assumed}): "
            "these runs do not tell. Measure it, and get shorter intervals, with both engines in one sweep, "
            "--interleave and --rounds 5 or more."
        )
    elif comparison.rounds > 1:
        lines.append(f"Intervals are from the spread over {comparison.rounds} rounds (Student's t).")
    else:
        lines.append("Intervals are from within one launch: what launches differ by is not in them.")
    return lines


def _rulings(rulings: Sequence[Ruling]) -> list[str]:
    lines = []
    for condition in dict.fromkeys(ruling.condition for ruling in rulings):
        own = [ruling for ruling in rulings if ruling.condition == condition]
        levels = "; ".join(f"{ruling.level} {ruling.decision} ({ruling.text})" for ruling in own)
        lines.append(f"--fail-on '{condition}': {overall_decision(own).upper()}: {levels}")
    return lines


def markdown(comparison: Comparison, rulings: Sequence[Ruling] = ()) -> str:
    """The same as Markdown, with the intervals of the differences."""
    parts = [
        f"**A** {escaped(comparison.a)} ({escaped(comparison.engine_a)}), "
        f"**B** {escaped(comparison.b)} ({escaped(comparison.engine_b)})"
    ]
    if comparison.simulated:
        parts.append(f"**{SIMULATED}**")
    parts.append(f"**{escaped(verdict_words(comparison))}**")
    lines = [f"- {WEIGHTS[weight]}: {escaped(text)}" for weight, text in grouped(comparison.findings)]
    parts.append("\n".join(lines + [f"- {escaped(text)}" for text in _alone(comparison)]))
    for level in comparison.levels:
        parts.append(
            f"### {level.name}\n\n{level.requests_a:,} and {level.requests_b:,} requests, {_rounds(level.rounds)}, "
            f"{level.pairs:,} prompts answered by both"
        )
        parts.append(_markdown_table(level.effects))
    if comparison.overall:
        parts.append(f"### All {len(comparison.levels)} levels\n\nGeometric mean of the ratios")
        parts.append(_markdown_table([effect for effect in comparison.overall if effect.ratio is not None]))
    if comparison.speeds:
        rows = ["| tokens/s per user | A, tokens/s | B, tokens/s | B/A | 95 % interval |", "|--:|--:|--:|--:|---|"]
        for speed in comparison.speeds:
            interval = "n/a" if speed.ratio_ci95 is None else f"{speed.ratio_ci95[0]:.3f} to {speed.ratio_ci95[1]:.3f}"
            rows.append(
                f"| {format_count(speed.speed_tps)} | {format_count(speed.a_tps)} | {format_count(speed.b_tps)} "
                f"| {speed.ratio:.3f} | {interval} |"
            )
        parts += ["### The same speed per user", "\n".join(rows)]
    if comparison.levels:
        parts += footnotes(comparison)
    if (found := comparison.capacities) is not None:
        parts.append(f"### {escaped(capacity_title(found))}")
        if found.refused:
            parts.append(f"n/a: {escaped(found.refused)}")
        else:
            head, *body = capacity_table(found)
            rows = [f"| {' | '.join(map(escaped, row))} |" for row in (head, *body)]
            parts.append("\n".join([rows[0], "|---|--:|--:|--:|---|", *rows[1:]]))
            parts += [escaped(note) for note in capacity_notes(found)]
    parts += [escaped(line) for line in _rulings(rulings)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _markdown_table(effects: Iterable[Effect]) -> str:
    rows = ["| | A | B | B - A | 95 % interval | B/A | 95 % interval | B is |", "|---|--:|--:|--:|---|--:|---|---|"]
    for effect in effects:
        unit = "" if effect.metric == THROUGHPUT else ", ms"
        if effect.ratio is not None and effect.ratio_ci95 is None:
            rows.append(
                f"| {_name(effect)}{unit} | {_value(effect, effect.a)} | {_value(effect, effect.b)} "
                f"| {_value(effect, effect.difference, signed=True)} | | {_ratio(effect.ratio)} | no interval | |"
            )
            continue
        if effect.ratio is None or effect.ratio_ci95 is None:
            rows.append(f"| {_name(effect)}{unit} | | | | | n/a | | {escaped(effect.why or 'n/a')} |")
            continue
        low, high = effect.ratio_ci95
        between = ""
        if effect.difference_ci95 is not None:
            between = " to ".join(_value(effect, end, signed=True) for end in effect.difference_ci95)
        rows.append(
            f"| {_name(effect)}{unit} | {_value(effect, effect.a)} | {_value(effect, effect.b)} "
            f"| {_value(effect, effect.difference, signed=True)} | {between} "
            f"| {_ratio(effect.ratio)} | {_ratio(low)} to {_ratio(high)} | {_word(effect)} |"
        )
    return "\n".join(rows)
