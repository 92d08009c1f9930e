"""What a run leaves behind: the dataclasses, their JSON, the format's version and its history.

Format history (``format_version`` in manifest.json and summary.json):

1. first version.

Reading is lenient about fields it does not know, so that a later minor addition does not break an
older loadgen; a higher ``format_version`` is refused with a message.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from loadgen.errors import RunFolderError

FORMAT_VERSION = 1

Phase = Literal["warmup", "measure", "drain"]
ErrorKind = Literal[
    "connect", "timeout", "http_status", "stream_error", "stream_truncated", "bad_payload", "cancelled", "dropped"
]
Ended = Literal["precision", "budget", "interrupted"]
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


class GpuReading(msgspec.Struct, kw_only=True):
    """One GPU at one moment; None where NVML does not say. ``energy_j`` counts from the driver's start."""

    uuid: str
    power_w: float | None = None
    energy_j: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    utilization: float | None = None
    memory_utilization: float | None = None
    memory_used_bytes: int | None = None
    throttle: list[str] = []


class GpuSample(msgspec.Struct, kw_only=True):
    """A line of ``gpu.jsonl``; ``level`` is the one that was running."""

    t_ns: int
    level: int
    gpus: list[GpuReading]


class Manifest(msgspec.Struct, kw_only=True):
    """What was run, where, and how to run it again. Secrets are not kept."""

    format_version: int = FORMAT_VERSION
    command: list[str]
    started_utc: str
    simulated: bool
    host: dict[str, Any]
    gpus: list[dict[str, Any]] = []
    driver: str | None = None
    engine: dict[str, Any]
    dataset: dict[str, Any]
    seed: int
    load: dict[str, Any]
    levels: list[dict[str, Any]]
    client: dict[str, Any]


# What decoding a line that was cut, or that is something else, can raise.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

Line = TypeVar("Line", bound=msgspec.Struct)

_line_decoder = msgspec.json.Decoder(RequestRecord)
_encoder = msgspec.json.Encoder()


def encode_line(record: msgspec.Struct) -> bytes:
    """One JSON line, with its line feed."""
    return _encoder.encode(record) + b"\n"


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


def read_manifest(run: Path) -> Manifest:
    """The manifest of a run folder.

    Raises:
        RunFolderError: no such folder, no manifest in it, or one of a later format.
    """
    path = run / "manifest.json"
    if not run.is_dir():
        what = f"is a file; name the folder of the run, such as {run.parent}" if run.exists() else "no such run folder"
        raise RunFolderError(f"{run}: {what}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RunFolderError(f"{path}: {error.strerror}; is {run} a run folder of loadgen?") from None
    try:
        version = msgspec.json.decode(raw, type=dict[str, Any]).get("format_version")
        if not isinstance(version, int):
            raise RunFolderError(f"{path}: no format_version; this is no run folder of loadgen")
        if version > FORMAT_VERSION:
            raise RunFolderError(
                f"{path}: format_version {version}, but this loadgen reads up to {FORMAT_VERSION}; upgrade loadgen"
            )
        return msgspec.json.decode(raw, type=Manifest)
    except UNREADABLE as error:
        raise RunFolderError(f"{path}: {error}; is {run} a run folder of loadgen?") from None


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON in one step, so that a reader never sees half a file."""
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(msgspec.json.format(_encoder.encode(value), indent=2) + b"\n")
    partial.replace(path)
