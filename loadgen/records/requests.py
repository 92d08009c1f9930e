"""records.jsonl: one line per request that was attempted."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from loadgen.records.files import UNREADABLE

Phase = Literal["warmup", "measure", "drain"]
ErrorKind = Literal[
    "connect", "timeout", "http_status", "stream_error", "stream_truncated", "bad_payload", "cancelled", "dropped"
]
TokenSource = Literal["usage_continuous", "usage_final", "events"]


class RequestError(msgspec.Struct, kw_only=True):
    """Why a request failed. ``body`` is what the server sent, cut at 4,096 characters."""

    kind: ErrorKind
    status: int | None = None
    message: str
    body: str | None = None


class RequestRecord(msgspec.Struct, kw_only=True):
    """One request that was attempted. All ``_ns`` are CLOCK_MONOTONIC unless noted.

    Attributes:
        level: index of the load level in the run.
        seq: number of the request within its level, over all workers.
        prompt_id: the prompt's id in its dataset.
        worker: index of the worker process that sent it.
        phase: ``warmup`` before every slot had turned over once, ``measure``, or ``drain`` (sent
            only to hold the load while the last measured requests ended).
        scheduled_ns: intended send; null in a closed loop, where nothing is scheduled. One that was never sent,
            since too many were in flight, fails as ``dropped``.
        sent_ns: just before the first byte was written, on a connection already held; null when
            no connection was had.
        headers_ns: the read that completed the response headers.
        first_token_ns: the read that brought the first event whose cumulative token count is
            at least 1; null when the reply was not streamed.
        last_token_ns: the read that brought the last token event.
        end_ns: ``[DONE]`` seen, or the failure.
        event_ns: arrival of each token event: the first relative to ``sent_ns``, each further
            one relative to the one before. A zero means that both came in one read.
        event_tokens: tokens of each of those events.
        input_tokens, output_tokens: as the server's ``usage`` says, else see ``token_source``.
        cached_tokens: prompt tokens served from the prefix cache, where the server says so.
        requested_tokens: output tokens that were asked for.
        token_source: ``usage_continuous`` (a count with every event), ``usage_final`` (one count
            at the end; ``event_tokens`` are then events), ``events`` (no usage: events counted).
        finish_reason: as the server gave it.
        connect_ns: duration of the connect that this request waited for; 0 when it was reused.
        slot_gap_ns: from the end of the slot's previous request to ``sent_ns`` (closed loop).
        retried: the server closed an idle connection under the first attempt; ``sent_ns`` is
            still that of the first.
    """

    level: int
    seq: int
    prompt_id: str
    worker: int
    phase: Phase
    scheduled_ns: int | None = None
    sent_ns: int | None = None
    headers_ns: int | None = None
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    end_ns: int
    event_ns: list[int] = []
    event_tokens: list[int] = []
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    requested_tokens: int | None = None
    token_source: TokenSource | None = None
    finish_reason: str | None = None
    connect_ns: int = 0
    slot_gap_ns: int | None = None
    retried: bool = False
    error: RequestError | None = None


_line_decoder = msgspec.json.Decoder(RequestRecord)


def decode_record(line: bytes) -> RequestRecord | None:
    """The record of a line; None for a line that was cut, or is no record."""
    try:
        return _line_decoder.decode(line)
    except UNREADABLE:
        return None


def read_records(path: Path) -> tuple[Iterator[RequestRecord], list[int]]:
    """Records of a ``records.jsonl`` or ``.jsonl.gz``, and the numbers of the lines that could not be read.

    A run that was killed or whose disk was full can leave a cut line; such lines are skipped and
    their numbers appended to the list while the iterator runs.
    """
    bad_lines: list[int] = []

    def records() -> Iterator[RequestRecord]:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                record = decode_record(line)
                if record is None:
                    bad_lines.append(number)
                else:
                    yield record

    return records(), bad_lines


class RunTail:
    """Reads what has been appended to a run's records since the last look.

    Args:
        run: the run folder.
    """

    def __init__(self, run: Path) -> None:
        self._path = run / "records.jsonl"
        self._offset = self._before = 0

    def records(self, unwritten: list[str]) -> Iterable[RequestRecord]:
        """New records, and those that the disk did not take."""
        self._before = self._offset
        yield from self._read(unwritten)

    def peek(self) -> Iterable[RequestRecord]:
        """What :meth:`records` would give now, as far as the disk has it."""
        with self._path.open("rb") as lines:
            lines.seek(self._offset)
            for line in lines:
                record = decode_record(line)
                if record is not None:
                    yield record

    def again(self, unwritten: list[str]) -> Iterable[RequestRecord]:
        """What :meth:`records` gave last."""
        self._offset = self._before
        yield from self._read(unwritten)

    def _read(self, unwritten: list[str]) -> Iterable[RequestRecord]:
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


class _Bounds(msgspec.Struct):
    """What :func:`read_bounds` looks at; the rest of a line is skipped."""

    level: int
    phase: Phase
    end_ns: int
    sent_ns: int | None = None


def read_bounds(path: Path) -> dict[int, tuple[int, int]]:
    """Of each level in the records, its first measured send and last measured end, in ns.

    A level in which nothing was measured has its start above its end, which is 0.
    """
    decode = msgspec.json.Decoder(_Bounds).decode
    found: dict[int, tuple[int, int]] = {}
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
        for line in lines:
            try:
                record = decode(line)
            except UNREADABLE:
                continue
            start, end = found.setdefault(record.level, (2**63 - 1, 0))
            if record.phase == "measure" and record.sent_ns is not None:
                found[record.level] = min(start, record.sent_ns), max(end, record.end_ns)
    return found


def records_path(run: Path) -> Path:
    """The run's records; a run that is kept for long may have them compressed."""
    path, compressed = run / "records.jsonl", run / "records.jsonl.gz"
    return compressed if compressed.exists() and not path.exists() else path
