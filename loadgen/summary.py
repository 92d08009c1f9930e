"""summary.json: made from a run folder's records, and nothing else.

``loadgen sweep`` makes it level by level, ``loadgen report`` makes it again from what is there,
with the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from loadgen.metrics import LevelFigures, accumulator_for, level_figures
from loadgen.records import (
    FORMAT_VERSION,
    ClientSample,
    LevelMark,
    Manifest,
    RequestRecord,
    ServerCounters,
    decode_record,
    read_client_log,
    read_manifest,
    read_records,
    read_server_log,
    records_path,
)
from loadgen.verdicts import Verdict, judge

KILLED = "the run was ended from outside during this level"


class LevelSummary(LevelFigures, kw_only=True):
    """A level's figures and its verdict; ``server`` compares with the engine's own counters."""

    verdict: Verdict
    server: dict[str, Any] | None = None


class Summary(msgspec.Struct, kw_only=True):
    """The content of summary.json."""

    format_version: int = FORMAT_VERSION
    simulated: bool
    levels: list[LevelSummary]
    notes: list[str] = []

    @property
    def valid(self) -> bool:
        """Whether every level is VALID."""
        return bool(self.levels) and all(level.verdict.status == "VALID" for level in self.levels)


class RunTail:
    """Reads what has been appended to a run's records since the last look.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / "records.jsonl"
        self._offset = 0

    def records(self, unwritten: list[str]) -> Iterable[RequestRecord]:
        """New records, and those that the disk did not take."""
        with self._path.open("rb") as lines:
            lines.seek(self._offset)
            for line in lines:
                record = decode_record(line)
                if record is not None:
                    yield record
            self._offset = lines.tell()
        for text in unwritten:
            record = decode_record(text.encode())
            if record is not None:
                yield record


def summarize_level(
    load: dict[str, Any],
    records: Iterable[RequestRecord],
    samples: list[ClientSample],
    mark: LevelMark,
) -> LevelSummary:
    """One level that has ended; ``records`` are looked at once and not kept."""
    gathered = accumulator_for((), mark)
    for record in records:
        if record.level == mark.level:
            gathered.add(record)
    return _judged(level_figures(load, gathered, samples, mark.interrupted))


def _judged(figures: LevelFigures, server: dict[str, Any] | None = None) -> LevelSummary:
    return LevelSummary(**msgspec.structs.asdict(figures), verdict=judge(figures), server=server)


def compare_counters(
    before: ServerCounters | None, after: ServerCounters | None, totals: dict[str, int]
) -> dict[str, Any] | None:
    """What the engine's counters grew by over a level, and whether that is our own totals."""
    if before is None or after is None:
        return None
    grown = {key: int(after.counters[key] - before.counters[key]) for key in before.counters if key in after.counters}
    if not grown:
        return None
    return {**grown, "agrees": all(grown[key] == totals[key] for key in grown)}


def summarize_run(run: Path) -> tuple[Manifest, Summary]:
    """A whole run folder, finished or not.

    Raises:
        RunFolderError: it cannot be read at all.
    """
    manifest = read_manifest(run)
    path = records_path(run)
    samples, marks = read_client_log(run / "client.jsonl")
    mark_of = {mark.level: mark for mark in marks}
    counters = read_server_log(run / "server_metrics.jsonl")
    seen: set[int] = set()
    unmarked: dict[int, list[RequestRecord]] = {}
    if path.exists():
        for record in read_records(path)[0]:
            seen.add(record.level)
            if record.level not in mark_of:
                # Only the bounds of the window are looked for: the events can be forgotten.
                unmarked.setdefault(record.level, []).append(
                    msgspec.structs.replace(record, event_ns=[], event_tokens=[])
                )
    levels = sorted(seen | set(mark_of))
    gathered = {level: accumulator_for(unmarked.get(level, ()), mark_of.get(level)) for level in levels}
    bad_lines: list[int] = []
    if path.exists():
        records, bad_lines = read_records(path)
        for record in records:
            gathered[record.level].add(record)
    summaries = []
    for level in levels:
        mark = mark_of.get(level)
        own = [sample for sample in samples if sample.level == level]
        load = manifest.levels[level] if level < len(manifest.levels) else {"model": "closed", "concurrency": 0}
        figures = level_figures(load, gathered[level], own, mark.interrupted if mark else KILLED)
        server = compare_counters(counters.get(level - 1), counters.get(level), figures.totals)
        summaries.append(_judged(figures, server))
    notes = []
    if len(levels) < len(manifest.levels):
        notes.append(f"{len(manifest.levels) - len(levels)} of {len(manifest.levels)} levels were not run")
    if bad_lines:
        shown = ", ".join(map(str, bad_lines[:5])) + (", ..." if len(bad_lines) > 5 else "")
        notes.append(f"{path}: {len(bad_lines)} lines cannot be read and are left out (lines {shown})")
    return manifest, Summary(simulated=manifest.simulated, levels=summaries, notes=notes)
