"""summary.json, made from a run folder's records and nothing else.

``loadgen sweep`` makes it level by level, ``loadgen report`` makes it again from what is there,
with the same functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from loadgen.analysis.figures import LevelSummary, Precision, Reached
from loadgen.analysis.find import find_of
from loadgen.analysis.gather import LevelAccumulator
from loadgen.analysis.gpu_figures import gpu_figures
from loadgen.analysis.level import level_figures, steady_of
from loadgen.analysis.outcome import Outcome
from loadgen.analysis.precision import is_met, reached, tells
from loadgen.analysis.rounds import over_rounds
from loadgen.analysis.server_metrics import server_figures
from loadgen.analysis.slo import Slo, SloFigures, parse_slos, slo_figures
from loadgen.analysis.steady import SteadyWindow
from loadgen.analysis.summary import Summary
from loadgen.analysis.verdicts import judge
from loadgen.gpus import GpuSample
from loadgen.loads import Closed, Load
from loadgen.records import (
    ClientSample,
    Ended,
    Goal,
    LevelMark,
    Manifest,
    RequestRecord,
    ServerSample,
    read_bounds,
    read_client_log,
    read_lines,
    read_manifest,
    read_records,
    records_path,
)

KILLED = "the run was ended from outside during this level"


def summarize_level(
    load: Load,
    records: Iterable[RequestRecord],
    samples: list[ClientSample],
    mark: LevelMark,
    server: list[ServerSample] = [],  # noqa: B006  (never changed)
    gpu: list[GpuSample] = [],  # noqa: B006
) -> LevelSummary:
    """One level that has ended, from records that are kept."""
    kept = list(records)
    gathered, steady = gather_steady(load, lambda: kept, mark)
    return summarize(load, gathered, samples, mark.interrupted, server, gpu, steady)


def gather(records: Iterable[RequestRecord], mark: LevelMark, from_ns: int | None = None) -> LevelAccumulator:
    """The records of one level, as far as its figures need them.

    Args:
        from_ns: where the window begins, if later than the mark says.
    """
    start_ns = mark.window_start_ns if from_ns is None else from_ns
    gathered = LevelAccumulator(start_ns, mark.window_end_ns, cut=from_ns is not None)
    for record in records:
        if record.level == mark.level:
            gathered.add(record)
    gathered.settle()
    return gathered


def gather_steady(
    load: Load,
    read: Callable[[], Iterable[RequestRecord]],
    mark: LevelMark,
    again: Callable[[], Iterable[RequestRecord]] | None = None,
) -> tuple[LevelAccumulator, SteadyWindow]:
    """The records of one level inside its steady window, which takes a second reading where something is cut off.

    Args:
        read: gives the records.
        again: gives them once more; ``read`` itself where it can be called twice.
    """
    gathered = gather(read(), mark)
    steady = steady_of(load, gathered)
    if steady.start_ns > gathered.start_ns:
        gathered = gather((again or read)(), mark, steady.start_ns)
    return gathered, steady


def look(
    level: int, load: Load, read: Callable[[], Iterable[RequestRecord]], start_ns: int, now_ns: int
) -> tuple[Reached, bool]:
    """How well a level that goes on knows its figures by now, and whether that may be believed.

    The window ends as long before now as the longest request took: of what was issued later, those that
    have ended are the short ones, and the tokens of the others are not in the records yet.
    """
    longest = max((record.end_ns - _issued_ns(record) for record in read()), default=0)
    end_ns = max(start_ns, now_ns - longest)
    mark = LevelMark(level=level, window_start_ns=start_ns, window_end_ns=end_ns)

    def ended() -> Iterable[RequestRecord]:
        return (record for record in read() if _issued_ns(record) <= end_ns)

    gathered, steady = gather_steady(load, ended, mark)
    return reached(load, gathered), tells(load, gathered, steady)


def _issued_ns(record: RequestRecord) -> int:
    due = record.sent_ns if record.scheduled_ns is None else record.scheduled_ns
    return record.end_ns if due is None else due


def precision_of(asked: float, load: Load, gathered: LevelAccumulator, mark: LevelMark | None) -> Precision:
    """What a level that has ended came to, of the precision that was asked for."""
    found = reached(load, gathered)
    ended: Ended = "interrupted" if mark is None or mark.ended is None else mark.ended
    return Precision(
        asked=asked, reached=found, met=is_met(asked, found), ended=ended, looks=0 if mark is None else mark.looks
    )


def summarize(
    load: Load,
    gathered: LevelAccumulator,
    samples: list[ClientSample],
    interrupted: str | None,
    server: list[ServerSample],
    gpu: list[GpuSample],
    steady: SteadyWindow | None = None,
    slos: Sequence[Slo] = (),
    precision: Precision | None = None,
) -> LevelSummary:
    """One level from all that is known of it."""
    figures = level_figures(load, gathered, samples, interrupted, steady, slos)
    start, end = figures.window.start_ns, figures.window.end_ns
    tokens = None if figures.output_throughput_tps is None else figures.output_throughput_tps * figures.duration_s
    return LevelSummary(
        **msgspec.structs.asdict(figures),
        verdict=judge(figures),
        precision=msgspec.UNSET if precision is None else precision,
        server=server_figures(server, start, end, figures.totals),
        gpu=gpu_figures(gpu, start, end, tokens),
    )


class Measured(msgspec.Struct, kw_only=True):
    """A level and its measured requests; ``number`` is the ``level`` of their records."""

    level: LevelSummary
    outcomes: list[Outcome]
    number: int = 0

    def figures(self, slos: list[Slo]) -> SloFigures:
        """Attainment and percentiles, for whatever objectives."""
        window = self.level.window
        slots = self.level.load.slots
        return slo_figures(self.outcomes, slos, start_ns=window.start_ns, end_ns=window.end_ns, slots=slots)


def summarize_run(
    run: Path, slos: Sequence[Slo] | None = None, each: Callable[[RequestRecord], None] = lambda record: None
) -> tuple[Manifest, Summary]:
    """A whole run folder, finished or not; see :func:`measure_run`."""
    manifest, summary, _ = measure_run(run, slos, each)
    return manifest, summary


def measure_run(
    run: Path, slos: Sequence[Slo] | None = None, each: Callable[[RequestRecord], None] = lambda record: None
) -> tuple[Manifest, Summary, list[Measured]]:
    """A whole run folder, finished or not: its summary, and the requests behind each level.

    Args:
        slos: objectives in place of the run's own.
        each: is given every record once, of whatever phase.

    Raises:
        RunFolderError: it cannot be read at all.
    """
    manifest = read_manifest(run)
    if slos is None:
        slos = parse_slos(manifest.load.slo) if manifest.load.slo else ()
    path = records_path(run)
    samples, marks, notes = read_client_log(run / "client.jsonl")
    mark_of = {mark.level: mark for mark in marks}
    server: dict[int, list[ServerSample]] = {}
    for line in read_lines(run / "server_metrics.jsonl", ServerSample):
        server.setdefault(line.level, []).append(line)
    gpu: dict[int, list[GpuSample]] = {}
    for reading in read_lines(run / "gpu.jsonl", GpuSample):
        gpu.setdefault(reading.level, []).append(reading)
    own: dict[int, list[ClientSample]] = {}
    for sample in samples:
        own.setdefault(sample.level, []).append(sample)
    finished = len(mark_of) >= len(manifest.levels)
    bounds = {} if finished or not path.exists() else read_bounds(path)
    levels = sorted(bounds.keys() | mark_of.keys())
    mark_in = {level: mark_of.get(level) or _bounding_mark(level, bounds[level]) for level in levels}
    gathered = {level: gather((), mark_in[level]) for level in levels}
    bad_lines: list[int] = []
    if path.exists():
        records, bad_lines = read_records(path)
        for record in records:
            if record.level in gathered:  # the run may be going on
                gathered[record.level].add(record)
            each(record)
    measured = []
    for level in levels:
        load = manifest.levels[level] if level < len(manifest.levels) else Closed(concurrency=0)
        interrupted = mark_of[level].interrupted if level in mark_of else KILLED
        found = gathered.pop(level)
        steady = steady_of(load, found)
        if steady.start_ns > found.start_ns:
            found = gather(read_records(path)[0], mark_in[level], steady.start_ns)
        asked = manifest.load.precision
        precision = None if asked is None else precision_of(asked, load, found, mark_of.get(level))
        level_summary = summarize(
            load,
            found,
            own.get(level, []),
            interrupted,
            server.get(level, []),
            gpu.get(level, []),
            steady,
            slos,
            precision,
        )
        measured.append(Measured(level=level_summary, outcomes=found.outcomes, number=level))
    if len(levels) < len(manifest.levels):
        notes.append(f"{len(manifest.levels) - len(levels)} of {len(manifest.levels)} levels were not run")
    if bad_lines:
        shown = ", ".join(map(str, bad_lines[:5])) + (", ..." if len(bad_lines) > 5 else "")
        notes.append(f"{path}: {len(bad_lines)} lines cannot be read and are left out (lines {shown})")
    summary = Summary(simulated=manifest.simulated, levels=[one.level for one in measured], notes=notes)
    own_slos = ",".join(slo.text for slo in slos) == (manifest.load.slo or "")
    # A search went by its own objectives: under others it would have measured other loads.
    complete(summary, manifest.load.find if own_slos else None)
    return manifest, summary, measured


def complete(summary: Summary, find: Goal | None = None) -> None:
    """Fills in what is said of all levels together.

    Args:
        find: what was looked for, as the manifest has it.
    """
    summary.rounds = over_rounds(summary.levels) or msgspec.UNSET
    if find is not None:
        summary.find = find_of(find, summary.levels) or msgspec.UNSET


def _bounding_mark(level: int, bounds: tuple[int, int]) -> LevelMark:
    """The window of a level that was cut short: from its first measured send to its last measured end."""
    return LevelMark(level=level, window_start_ns=min(bounds), window_end_ns=bounds[1])
