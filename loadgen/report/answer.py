"""What a run answers, in at most two sentences made from its summary.

Only levels that are VALID are used, and the second sentence names those that are not. Whether
objectives are met is decided by the lower end of the 95 % interval, as in a capacity plan; whether
throughput rises, by intervals that do not overlap.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from loadgen.analysis.criteria import Criterion, Word, word_of
from loadgen.analysis.figures import LevelSummary
from loadgen.analysis.find import Find
from loadgen.analysis.slo import ATTAINMENT, Slo, SloFigures, parse_slos
from loadgen.analysis.summary import Summary
from loadgen.loads import Open, sort_key, without_round
from loadgen.records import Manifest
from loadgen.report.find import sentences
from loadgen.report.terminal import latency_ms
from loadgen.report.text import fill, one_line
from loadgen.units import format_count

FLAT = 0.1  # output that rises by no more than this is called flat
MARK = "SIMULATED: "


def answer(summary: Summary, manifest: Manifest) -> str:
    """The answer, in one line; nothing in it that the figures do not carry."""
    if isinstance(summary.find, Find):
        text = _found(summary.find)
    else:
        text = _answer(summary.levels, manifest.load.attainment or ATTAINMENT)
    return (MARK if summary.simulated else "") + text


def render(summary: Summary, manifest: Manifest) -> str:
    """The same in lines of at most 80 columns, none of which parts a number from its unit."""
    joined = re.sub(r"(?<=\d) (?=m?s\b)", "\N{NO-BREAK SPACE}", answer(summary, manifest))
    return fill(joined).replace("\N{NO-BREAK SPACE}", " ") + "\n"


def _answer(levels: Sequence[LevelSummary], target: float) -> str:
    if not levels:
        return "No level was measured."
    if not any(level.requests.completed for level in levels):
        return _nothing(levels)
    valid = [level for level in levels if level.verdict.status == "VALID"]
    if not valid:
        return f"No level is valid ({_verdicts(levels)}), so nothing is concluded."
    loads = _by_load(valid)
    sentences = [_objectives(loads, target) or _throughput(loads)]
    unused = [level for level in levels if level.verdict.status != "VALID"]
    if unused:
        sentences.append(f"Not used, since not valid: {_verdicts(unused)}.")
    return " ".join(sentences)


def _found(find: Find) -> str:
    """What a search looked for; what its levels beyond the limit are like is no part of it."""
    if find.kind == "knee":
        return one_line(" ".join(sentences(find)[:2]))
    names = " and ".join(map(_objective, find.slo.split(",")))
    low, high = find.capacity_rps or (None, None)
    binds = "" if find.binds is None else f" What binds: {find.binds}."
    if find.found:
        up = "" if high is None else f"; {high:.4g} requests/s is shown to be too much"
        text = f"{low:.4g} requests/s keeps {names} for {_percent(find.attainment)} of requests"
        return one_line(f"{text}, confirmed by {len(find.confirming)} open-loop runs{up}.{binds}")
    text = f"No rate is confirmed to keep {names} for {_percent(find.attainment)} of requests"
    if find.ended != "done":
        text += f": {find.ended}"
    return one_line(f"{text}.{binds}")


def _nothing(levels: Sequence[LevelSummary]) -> str:
    errors: Counter[str] = Counter()
    for level in levels:
        errors.update(level.errors)
    if not errors:
        return "No request ended in the measured time, so nothing is concluded."
    kind, count = errors.most_common(1)[0]
    return f"No request succeeded: {errors.total():,} failed, most often as {kind} ({count:,})."


def _verdicts(levels: Iterable[LevelSummary]) -> str:
    return one_line(", ".join(f"{level.load.text} {level.verdict.status}" for level in levels))


def _by_load(levels: Iterable[LevelSummary]) -> list[list[LevelSummary]]:
    """Levels by rising load; the rounds of one load together."""
    loads: dict[tuple[str, float], list[LevelSummary]] = {}
    for level in levels:
        loads.setdefault(sort_key(level.load), []).append(level)
    return [same for _, same in sorted(loads.items())]


def _load(levels: Sequence[LevelSummary]) -> str:
    return without_round(levels[0].load).text


# With objectives.


class _Judged:
    """A load against the objectives: what all its rounds say, and the round with the lowest lower bound.

    ``word`` is that of :class:`loadgen.analysis.plan.Criterion`, of the objective that is worst off.
    """

    def __init__(self, levels: Sequence[LevelSummary], target: float) -> None:
        self.load = _load(levels)
        self.short = self.load.partition(" ")[0]
        rounds = [(level.slo, _criteria(level.slo, target)) for level in levels if isinstance(level.slo, SloFigures)]
        words = {word_of(criteria) for _, criteria in rounds}
        self.word: Word = "undecided"
        if words == {"holds"}:
            self.word = "holds"
        elif "breaks" in words and "holds" not in words:
            self.word = "breaks"
        self.slo, self.criteria = min(rounds, key=lambda one: min(_low(criterion) for criterion in one[1]))
        self.worst = min(self.criteria, key=lambda one: (_low(one) - one.target) / (1 - one.target))


def _criteria(slo: SloFigures, target: float) -> list[Criterion]:
    asked = [text for text in slo.slos if ":" not in text]
    found = [
        Criterion(
            name=_objective(one.slo),
            target=(_parsed(one.slo).percentile or 0) / 100,
            requests=one.requests,
            share=one.share,
            ci95=one.ci95,
        )
        for one in slo.percentiles
    ]
    if asked:
        name = " and ".join(map(_objective, asked))
        of_all = Criterion(
            name=name, target=target, requests=slo.offered, share=slo.attainment, ci95=slo.attainment_ci95
        )
        found.insert(0, of_all)
    return found


def _parsed(text: str) -> Slo:
    return parse_slos(text)[0]


def _objective(text: str) -> str:
    """``TTFT < 500 ms`` or ``TTFT p99 < 500 ms``."""
    slo = _parsed(text)
    name = slo.metric.upper() if slo.percentile is None else f"{slo.metric.upper()} p{slo.percentile:g}"
    limit = slo.text.partition("=")[2]
    return f"{name} < {limit.removesuffix('ms')} ms" if limit.endswith("ms") else f"{name} < {limit[:-1]} s"


def _low(criterion: Criterion) -> float:
    return 0.0 if criterion.ci95 is None else criterion.ci95[0]


def _objectives(loads: Sequence[Sequence[LevelSummary]], target: float) -> str:
    """What is met and where it breaks; empty where nothing was asked."""
    asked = [levels for levels in loads if any(isinstance(lv.slo, SloFigures) and lv.slo.slos for lv in levels)]
    if not asked:
        return ""
    judged = [_Judged(levels, target) for levels in asked]
    broken = next((one for one in judged if one.word == "breaks"), None)
    below = judged if broken is None else judged[: judged.index(broken)]
    held = [one for one in below if one.word == "holds"]
    names = " and ".join(criterion.name for criterion in judged[0].criteria)
    if broken is not None and not below:
        return f"No load is shown to meet {names}: already at {broken.load} {_breaks(broken)}."
    if held:
        best = held[-1]
        text = f"{best.load} meets {' and '.join(map(_met, best.criteria))}"
        if broken is not None:
            return f"{text}; at {broken.short} {_breaks(broken)}."
        if best is judged[-1]:
            return f"{text}, {'the only valid load' if len(judged) == 1 else 'the highest valid load'}."
        return f"{text}; at {judged[judged.index(best) + 1].short} it is undecided ({_span(judged[-1].worst)})."
    best = max(below, key=lambda one: _low(one.worst))
    if best.worst.share is None:
        return f"Whether {best.worst.name} is met is not known: no reply has the latency that is asked for."
    share = "" if _of_percentile(best.worst) else f" for {_percent(best.worst.target)} of requests"
    text = f"No load is shown to meet {best.worst.name}{share}: at {best.load} {_span(best.worst)}"
    return f"{text}, and at {broken.short} {_breaks(broken)}." if broken is not None else f"{text}."


def _met(criterion: Criterion) -> str:
    assert criterion.share is not None
    least = f"at least {_percent(_low(criterion))}"
    if _of_percentile(criterion):
        return f"{criterion.name} ({_percent(criterion.share)} within it, {least})"
    return f"{criterion.name} for {_percent(criterion.share)} of requests ({least})"


def _of_percentile(criterion: Criterion) -> bool:
    return " p" in criterion.name


def _span(criterion: Criterion) -> str:
    """``98.2% are within it, 97.1% to 99%``."""
    if criterion.share is None:
        return "not known"
    text = f"{_percent(criterion.share)} are within it"
    if criterion.ci95 is None:
        return f"{text}, of too few requests for an interval"
    return f"{text}, {_percent(criterion.ci95[0])} to {_percent(criterion.ci95[1], up=True)}"


def _breaks(one: _Judged) -> str:
    """Which objective breaks at a load, and how many requests keep to it."""
    missed = {_objective(text): share for text, share in one.slo.missed.items() if ":" not in text}
    for criterion in one.criteria:
        if _of_percentile(criterion) and criterion.word == "breaks" and criterion.share is not None:
            missed[criterion.name] = 1 - criterion.share
    failed = one.slo.failed / one.slo.offered if one.slo.offered else 0.0
    if failed > max(missed.values(), default=0.0):
        return f"requests fail ({_percent(failed, up=True)} of them)"
    if not missed:
        assert one.worst.share is not None
        return f"it breaks ({_percent(one.worst.share)} within)"
    name = max(missed, key=lambda key: missed[key])
    metric = name.partition(" <")[0]
    first = f"{metric} breaks first" if len(one.slo.slos) > 1 else f"{metric} breaks"
    return f"{first} ({_percent(1 - missed[name])} within)"


def _percent(share: float, up: bool = False) -> str:
    """One decimal, rounded down, so that 99.96 % is not all of them; an upper bound is rounded up."""
    tenths = math.ceil(share * 1000 - 1e-9) if up else math.floor(share * 1000 + 1e-9)
    return f"{tenths / 10:g}%"


# Without objectives.


def _throughput(loads: Sequence[Sequence[LevelSummary]]) -> str:
    """Where output stops rising, and what a request sees there; or the range."""
    lowest, highest = loads[0], loads[-1]
    if len(loads) == 1:
        return f"{_load(highest)} gives {_figures(highest)}."
    if isinstance(highest[0].load, Open):
        return f"{_load(lowest).partition(' ')[0]} to {_load(highest)} are kept up with: {_range(loads)}."
    spans = [_output(levels) for levels in loads]
    if any(span is None for span in spans):
        return f"From {_load(lowest).partition(' ')[0]} to {_load(highest)}: {_range(loads)}."
    known = [span for span in spans if span is not None]
    knee = next(i for i in range(len(known)) if all(later[0] <= known[i][1] for later in known[i + 1 :]))
    if knee == len(loads) - 1:
        return f"Output still rises at the highest valid load: {_load(highest)} gives {_figures(highest)}."
    at, figures = _load(loads[knee]), _figures(loads[knee])
    most = max(range(knee + 1, len(known)), key=lambda i: known[i][1])
    gain = known[most][1] / known[knee][0] - 1 if known[knee][0] > 0 else math.inf
    if gain <= FLAT:
        return f"Beyond {at} output rises by at most {_percent(max(gain, 0.0), up=True)}: {figures} there."
    low, high = (format_count(round(end)) for end in known[most])
    beyond = _load(loads[most]).partition(" ")[0]
    return f"{at} gives {figures}; whether output rises beyond is not shown (at {beyond} {low} to {high} tokens/s)."


def _output(levels: Sequence[LevelSummary]) -> tuple[float, float] | None:
    """From the lowest lower end to the highest upper one, over the rounds, in tokens/s."""
    found = [level.ci95.get("output_throughput_tps") for level in levels]
    known = [interval for interval in found if interval is not None]
    if not known or len(known) < len(found):
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def _tokens(levels: Sequence[LevelSummary]) -> float | None:
    found = [level.output_throughput_tps for level in levels]
    return None if any(one is None for one in found) else sum(one or 0.0 for one in found) / len(found)


def _figures(levels: Sequence[LevelSummary]) -> str:
    """Throughput with its interval, TTFT and TPOT; of several rounds, the latencies' range."""
    tokens, span = _tokens(levels), _output(levels)
    words = []
    if tokens is not None:
        words.append(f"{format_count(round(tokens) if tokens >= 100 else tokens)} output tokens/s")
        if span is not None:
            words[0] += f" ({format_count(span[0])} to {format_count(span[1])})"
    for field, name in (("ttft_s", "TTFT"), ("tpot_s", "TPOT")):
        values = _known(levels, field)
        if values:
            words.append(f"{name} p50 {values[0] if values[0] == values[-1] else f'{values[0]} to {values[-1]}'} ms")
    return ", ".join(words) if words else "no figure that can be shown"


def _range(loads: Sequence[Sequence[LevelSummary]]) -> str:
    """Throughput and latencies from the lowest load to the highest."""
    words = []
    tokens = [_tokens(loads[0]), _tokens(loads[-1])]
    if tokens[0] is not None and tokens[1] is not None:
        words.append(f"output {format_count(tokens[0])} to {format_count(tokens[1])} tokens/s")
    for field, name in (("ttft_s", "TTFT"), ("tpot_s", "TPOT")):
        first, last = _known(loads[0], field), _known(loads[-1], field)
        if first and last:
            words.append(f"{name} p50 {first[0]} to {last[-1]} ms")
    return ", ".join(words) if words else "no figure that can be shown"


def _known(levels: Sequence[LevelSummary], field: str) -> list[str]:
    """The medians that can be shown, smallest first."""
    shown: list[tuple[Any, str]] = [
        (getattr(level, field).p50, text) for level in levels if (text := latency_ms(level, field, "p50")) != "n/a"
    ]
    return [text for _, text in sorted(shown)]
