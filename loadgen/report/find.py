"""What a search found, for a terminal of 80 columns or a log file."""

from __future__ import annotations

from loadgen.analysis.find import Find
from loadgen.analysis.probes import Probe
from loadgen.analysis.search import CONFIRMING, Ends, Knee
from loadgen.report.table import laid
from loadgen.units import format_count, format_ms

WIDE = 1.5


def sentences(find: Find) -> list[str]:
    """The answer, in a sentence or two each."""
    return _knee_words(find) if find.kind == "knee" else _capacity_words(find)


def rows(find: Find) -> list[str]:
    """A table of the probes, in the order in which they were measured."""
    knee = find.kind == "knee"
    template = "{:>5}  {:<16}{:>7}{:>11}" + ("{:>10}{:>14}" if knee else "{:>9}{:>19}  {}")
    heads = ["level", "load", "for", "requests/s"]
    heads += ["tokens/s", "mean E2E"] if knee else ["kept it", "95 % interval", "the SLO"]
    found = []
    for probe in find.probes:
        name = probe_name(probe) + (" *" if probe.purpose != "search" else "")
        rate = "n/a" if probe.rate_rps is None else format_count(probe.rate_rps)
        row = [str(probe.index), name, f"{probe.duration_s:.0f} s", rate]
        if knee:
            tokens = "n/a" if probe.throughput_tps is None else format_count(probe.throughput_tps)
            row += [tokens, f"{format_ms(probe.e2e_s)} ms"]
        else:
            share = "?" if probe.share is None else f"{probe.share:.2%}"
            interval = "?" if probe.ci95 is None else f"{probe.ci95[0]:.2%} .. {probe.ci95[1]:.2%}"
            row += [share, interval, "-" if probe.word == "not counted" else probe.word]
        found.append(row)
    head, *lines = laid(template, [heads, *found])
    lines = [head, "-" * 79, *lines]
    if any(probe.word == "not counted" for probe in find.probes):
        lines.append("-: not counted, since something else than the server was the limit")
    if any(probe.purpose != "search" for probe in find.probes):
        lines.append("*: at N*, the knee" if knee else "*: to confirm the candidate")
    return lines


def probe_name(probe: Probe) -> str:
    """``8 in flight`` or ``12.5/s``."""
    return f"{probe.load:g}/s" if probe.over == "rate" else f"{probe.load:g} in flight"


def said(probe: Probe) -> str:
    """A probe in one line, while the search goes on."""
    if probe.share is None:
        rate = "n/a" if probe.throughput_tps is None else format_count(probe.throughput_tps)
        return f"{probe_name(probe)}: {rate} tokens/s"
    interval = "" if probe.ci95 is None else f" ({probe.ci95[0]:.2%} .. {probe.ci95[1]:.2%})"
    return f"{probe_name(probe)}: {probe.share:.2%} within the SLO{interval}: {probe.word}"


def _capacity_words(find: Find) -> list[str]:
    words = [f"{find.slo}, met by {find.attainment * 100:g} % of requests."]
    ends = find.capacity_rps
    if find.confirmed and ends is not None and ends[0] is not None:
        words.append(
            f"Capacity: {_between(ends)} requests/s. {CONFIRMING} open-loop runs at {ends[0]:g} requests/s held, each "
            f"with arrivals of its own (levels {_listed(find.confirming)})."
        )
    elif ends is None:
        words.append(f"NOT FOUND: {find.ended}.")
    else:
        why = f"{find.ended}. " if find.ended != "done" else ""
        words.append(f"NOT CONFIRMED: {why}Capacity, as far as it is known: {_between(ends)} requests/s.")
        held = [probe for probe in find.probes if probe.word == "holds" and probe.purpose == "search"]
        if ends[0] is None and held:
            best = max(held, key=lambda probe: probe.load)
            words.append(f"In the search, {probe_name(best)} held once, which confirms nothing.")
        if find.confirming:
            tried = {probe.index: probe for probe in find.probes}
            runs = "; ".join(said(tried[index]) for index in find.confirming)
            words.append(f"Of the last candidate's runs: {runs}.")
    if find.capacity_concurrency is not None and any(end is not None for end in find.capacity_concurrency):
        words.append(f"In a closed loop: {_between(find.capacity_concurrency)} requests in flight.")
    if ends is not None and ends[0] is not None and ends[1] is not None and ends[1] > WIDE * ends[0]:
        words.append(f"The ends are far apart: --find capacity --rate {ends[0]:g} looks between them.")
    if find.binds is not None:
        words.append(f"What binds: {find.binds}.")
    elif ends is not None and ends[1] is None:
        words.append("No load was shown to break the objectives.")
    return words


def _knee_words(find: Find) -> list[str]:
    knee = find.knee
    if knee is None or knee.level is None:
        return [f"NOT FOUND: {find.ended}.", *([] if knee is None else [_bound(knee)])]
    share = "" if knee.share_ci95 is None else f" ({knee.share_ci95[0]:.0%} .. {knee.share_ci95[1]:.0%})"
    there = next(probe for probe in find.probes if probe.index == knee.level)
    return [
        _bound(knee),
        f"At {there.load:g} in flight (level {knee.level}) the server gave {knee.share_of_max or 0:.0%}{share} of its "
        f"highest output throughput, with a mean E2E of {format_ms(knee.e2e_s)} ms.",
    ]


def _bound(knee: Knee) -> str:
    spread = knee.in_flight_ci95
    interval = "" if spread is None else f" ({spread[0]:.3g} .. {spread[1]:.3g})"
    return (
        f"Knee: N* = {knee.in_flight:.3g}{interval} requests in flight: the highest throughput, "
        f"{format_count(knee.max_rps)} requests/s, times the {format_ms(knee.single_s)} ms that a single request takes."
    )


def _between(ends: Ends) -> str:
    low, high = ends
    if low is None:
        return f"below {high:.4g}"
    return f"{low:.4g} or more" if high is None else f"{low:.4g} .. {high:.4g}"


def _listed(indices: list[int]) -> str:
    return f"{indices[0]} to {indices[-1]}" if len(indices) > 2 else ", ".join(map(str, indices))
