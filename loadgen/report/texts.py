"""One or several runs in each of the text formats."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from loadgen.report import answer, csv, markdown, openmetrics, terminal
from loadgen.report.entry import Entry
from loadgen.report.kernels import render as render_kernels
from loadgen.report.text import fill, one_line
from loadgen.report.waterfall import render as render_waterfalls

FORMATS = ("terminal", "html", "markdown", "csv", "json", "openmetrics")


def render(form: str, entries: Sequence[Entry], *, alone: bool, together: bool = False) -> str:
    """The runs in one of :data:`FORMATS` but html.

    Args:
        alone: the one run is what was asked for: JSON is its summary, not a map of names to summaries.
        together: they were under load at the same time.
    """
    if form == "markdown":
        return markdown.render(entries)
    if form == "csv":
        return csv.render(entries)
    if form == "openmetrics":
        return openmetrics.render(entries)
    if form == "json":
        value = entries[0].summary if alone else {entry.name: entry.summary for entry in entries}
        return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"
    return _terminal(entries, together)


def _terminal(entries: Sequence[Entry], together: bool) -> str:
    parts = [part for entry in entries for part in _run(entry, named=len(entries) > 1)]
    if len(entries) > 1:
        parts.append(terminal.side_by_side([(entry.name, entry.summary) for entry in entries], together=together))
    return "\n".join(parts)


def _run(entry: Entry, named: bool) -> list[str]:
    name = [fill(f"{one_line(entry.name)}:")] if named else []
    parts = [*name, terminal.render(entry.manifest, entry.summary)]
    if entry.beside is not None:
        parts.append(render_kernels(entry.beside.manifest, entry.beside.records))
        parts.append(render_waterfalls(entry.beside.waterfalls))
    if entry.offline is not None:
        parts.append(terminal.offline(entry.offline, entry.summary))
    return [*parts, answer.render(entry.summary, entry.manifest)]
