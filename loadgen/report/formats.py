"""One or several runs in each of the text formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from loadgen.report import answer, csv, markdown, openmetrics, terminal
from loadgen.report.entry import Entry
from loadgen.report.kernels import render as render_kernels
from loadgen.report.text import fill, json_text, one_line
from loadgen.report.waterfall import render as render_waterfalls


class Shown(NamedTuple):
    """Runs to be shown.

    Attributes:
        alone: the one run is what was asked for: its JSON is its summary, not a map of names to summaries.
        together: the runs were under load at the same time.
    """

    entries: Sequence[Entry]
    alone: bool = False
    together: bool = False


def _terminal(shown: Shown) -> str:
    entries = shown.entries
    parts = [part for entry in entries for part in _run(entry, named=len(entries) > 1)]
    if len(entries) > 1:
        sides = [(entry.name, entry.summary) for entry in entries]
        parts.append(terminal.side_by_side(sides, together=shown.together))
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


def _json(shown: Shown) -> str:
    entries = shown.entries
    value = entries[0].summary if shown.alone else {entry.name: entry.summary for entry in entries}
    return json_text(value)


# The text formats of ``loadgen report``. A further one is a module that makes it, and a row here.
TEXTS: dict[str, Callable[[Shown], str]] = {
    "terminal": _terminal,
    "markdown": lambda shown: markdown.render(shown.entries),
    "csv": lambda shown: csv.render(shown.entries),
    "json": _json,
    "openmetrics": lambda shown: openmetrics.render(shown.entries),
}
