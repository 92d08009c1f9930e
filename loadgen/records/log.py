"""What the workers and the engine say of themselves while a run goes on: client.jsonl, server_metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from loadgen.records.files import UNREADABLE

Ended = Literal["precision", "budget", "interrupted"]

Line = TypeVar("Line", bound=msgspec.Struct)


class ClientSample(msgspec.Struct, kw_only=True):
    """What one worker says of itself, about ten times a second; a line of ``client.jsonl``.

    ``lateness_ns`` holds, for each probe that came in since the last sample, the time from the
    probe's write by the parent to its stamp by the worker's loop: what a token event of that
    moment would have been late by. ``cpu_ns`` is the worker's CPU time so far, ``output_tokens``
    counts those of requests in flight too. TTFT and TPOT are summed over the requests that have ended.
    """

    t_ns: int
    level: int
    worker: int
    phase: str
    in_flight: int
    issued: int
    completed: int
    failed: int
    output_tokens: int
    ttft_sum_ns: int
    ttft_count: int
    tpot_sum_ns: int = 0
    tpot_count: int = 0
    cpu_ns: int
    max_rss_bytes: int
    lateness_ns: list[int]


class LevelMark(msgspec.Struct, kw_only=True, tag_field="mark", tag="level"):
    """The measured window of one level, written to ``client.jsonl`` when the level ends."""

    level: int
    window_start_ns: int
    window_end_ns: int
    interrupted: str | None = None
    ended: Ended | None = None  # of a level that was to be measured until it was precise: why it ended
    looks: int = 0


class NoteMark(msgspec.Struct, kw_only=True, tag_field="mark", tag="note"):
    """A remark about the run, in ``client.jsonl``: what the reports are to say."""

    text: str


class ServerSample(msgspec.Struct, kw_only=True):
    """The engine's own metrics at one moment; a line of ``server_metrics.jsonl``.

    Attributes:
        t_ns: when the answer had come.
        took_ns: how long the engine took to answer.
        level: the level that was running; at its ``start`` (before its first request) and its
            ``end`` (after its last) the counters are complete.
        values: by the names of :data:`loadgen.analysis.server_metrics.METRICS`, in the units of those names.
    """

    t_ns: int
    took_ns: int
    level: int
    at: Literal["start", "during", "end"]
    values: dict[str, float]


def read_client_log(path: Path) -> tuple[list[ClientSample], list[LevelMark], list[str]]:
    """Samples, level marks and remarks of a ``client.jsonl``; cut lines are skipped."""
    samples: list[ClientSample] = []
    marks: list[LevelMark] = []
    notes: list[str] = []
    if not path.exists():
        return samples, marks, notes
    with path.open("rb") as lines:
        for line in lines:
            try:
                if not line.startswith(b'{"mark"'):
                    samples.append(msgspec.json.decode(line, type=ClientSample))
                    continue
                mark = msgspec.json.decode(line, type=LevelMark | NoteMark)
                if isinstance(mark, LevelMark):
                    marks.append(mark)
                else:
                    notes.append(mark.text)
            except UNREADABLE:
                continue
    return samples, marks, notes


def read_lines(path: Path, kind: type[Line]) -> list[Line]:
    """The lines of a JSONL file of one kind; cut lines are skipped, and a file that is not there is empty."""
    found = []
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                found.append(msgspec.json.decode(line, type=kind))
            except UNREADABLE:
                continue
    return found
