"""The run folder's files: what is written is read again, and what is broken is said."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import MS, failure, manifest_from, request, sample

from loadgen.errors import RunFolderError
from loadgen.gpus import GpuReading, GpuSample
from loadgen.records import (
    FORMAT_VERSION,
    ErrorKind,
    LevelMark,
    Manifest,
    NoteMark,
    Phase,
    RequestError,
    RequestRecord,
    ServerSample,
    TokenSource,
    decode_record,
    encode_line,
    read_bounds,
    read_client_log,
    read_lines,
    read_manifest,
    read_records,
    records_path,
    write_json,
    write_manifest,
)

counts = st.integers(0, 2**63 - 1)
maybe = st.none() | counts
texts = st.text(max_size=20)
errors = st.builds(
    RequestError,
    kind=st.sampled_from(get_args(ErrorKind)),
    status=st.none() | st.integers(100, 599),
    message=texts,
    body=st.none() | texts,
)
records = st.builds(
    RequestRecord,
    level=counts,
    seq=counts,
    prompt_id=texts,
    worker=counts,
    phase=st.sampled_from(get_args(Phase)),
    scheduled_ns=maybe,
    sent_ns=maybe,
    headers_ns=maybe,
    first_token_ns=maybe,
    last_token_ns=maybe,
    end_ns=counts,
    event_ns=st.lists(counts, max_size=3),
    event_tokens=st.lists(counts, max_size=3),
    input_tokens=maybe,
    output_tokens=maybe,
    cached_tokens=maybe,
    requested_tokens=maybe,
    token_source=st.none() | st.sampled_from(get_args(TokenSource)),
    finish_reason=st.none() | texts,
    connect_ns=counts,
    slot_gap_ns=maybe,
    retried=st.booleans(),
    error=st.none() | errors,
)


# --- records.jsonl


@settings(deadline=None, max_examples=50)
@given(records)
def test_record_survives_a_round_trip_in_one_line(record: RequestRecord) -> None:
    line = encode_line(record)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.count(b"\r") == 0
    assert decode_record(line) == record


def test_every_field_of_a_record_is_in_the_round_trip() -> None:
    full = encode_line(failure(0, 10, end=20, kind="http_status"))
    assert set(json.loads(full)) == set(RequestRecord.__struct_fields__)


def test_line_cut_anywhere_is_no_record() -> None:
    line = encode_line(failure(0, 10, 10, end=20, message="caf\u00e9 \U0001f600 zu"))
    assert [cut for cut in range(len(line) - 1) if decode_record(line[:cut]) is not None] == []


def test_unknown_fields_are_ignored() -> None:
    record = request(0, 10)
    later = {**json.loads(encode_line(record)), "of_a_later_version": {"a": [1]}}
    assert decode_record(json.dumps(later).encode()) == record


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"\0" * 100,
        b"null",
        b"[]",
        b"{}",
        encode_line(sample(5)),
        encode_line(LevelMark(level=0, window_start_ns=0, window_end_ns=1)),
        encode_line(request(0, 10)).replace(b'"measure"', b'"later"'),
        encode_line(request(0, 10)).replace(b'"seq":0', b'"seq":"0"'),
        encode_line(request(0, 10))[:50] + encode_line(request(0, 10)),
    ],
    ids=["empty", "blank", "zeros", "null", "list", "no field", "sample", "mark", "value", "type", "cut and glued"],
)
def test_what_is_no_record_is_none(line: bytes) -> None:
    assert decode_record(line) is None


def test_line_cut_inside_a_character_and_glued_to_the_next_is_no_record() -> None:
    line = encode_line(failure(0, 10, end=20, message="caf\u00e9"))
    cut = line[: line.index("\u00e9".encode()) + 1]
    assert decode_record(cut + line) is None


def test_lines_that_cannot_be_read_are_skipped_and_their_numbers_told(tmp_path: Path) -> None:
    good = [request(i, 10, seq=i) for i in range(3)]
    lines = [encode_line(record) for record in good]
    path = tmp_path / "records.jsonl"
    path.write_bytes(lines[0] + lines[1][:40] + b"\n" + lines[1] + b"garbage\n" + lines[2] + lines[0][:70])
    found, bad_lines = read_records(path)
    assert list(found) == good
    assert bad_lines == [2, 4, 6]


# --- client.jsonl, server_metrics.jsonl and gpu.jsonl

numbers = st.floats(allow_nan=False, allow_infinity=False)
servers = st.builds(
    ServerSample,
    t_ns=counts,
    took_ns=counts,
    level=counts,
    at=st.sampled_from(["start", "during", "end"]),
    values=st.dictionaries(texts, numbers, max_size=3),
)
readings = st.builds(
    GpuReading,
    uuid=texts,
    power_w=st.none() | numbers,
    energy_j=st.none() | numbers,
    sm_clock_mhz=maybe,
    memory_clock_mhz=maybe,
    temperature_c=maybe,
    utilization=st.none() | numbers,
    memory_utilization=st.none() | numbers,
    memory_used_bytes=maybe,
    throttle=st.lists(texts, max_size=2),
)
gpus = st.builds(GpuSample, t_ns=counts, level=counts, gpus=st.lists(readings, max_size=2))


def server(t_ns: int, **values: float) -> ServerSample:
    return ServerSample(t_ns=t_ns, took_ns=1, level=0, at="during", values=values)


def test_samples_marks_and_notes_are_told_apart_and_cut_lines_skipped(tmp_path: Path) -> None:
    samples = [sample(5, lateness_ns=[1, 2]), sample(9, worker=1)]
    marks = [
        LevelMark(level=0, window_start_ns=1, window_end_ns=2),
        LevelMark(level=1, window_start_ns=3, window_end_ns=4, interrupted="Ctrl-C"),
    ]
    notes = ["caf\u00e9\nand more", "{}"]
    written = [samples[0], marks[0], NoteMark(text=notes[0]), samples[1], marks[1], NoteMark(text=notes[1])]
    lines = [encode_line(item) for item in written]
    path = tmp_path / "client.jsonl"
    cuts = [lines[1][:20] + b"\n", lines[2][:15] + b"\n", b"\n"]
    path.write_bytes(b"".join([lines[0], cuts[0], *lines[1:3], cuts[1], *lines[3:5], cuts[2], lines[5], lines[0][:30]]))
    assert read_client_log(path) == (samples, marks, notes)


@settings(deadline=None, max_examples=50)
@given(st.one_of(servers, gpus))
def test_sample_of_server_or_gpus_survives_a_round_trip_in_one_line(line: ServerSample | GpuSample) -> None:
    raw = encode_line(line)
    assert (raw.count(b"\n"), raw.count(b"\r")) == (1, 0)
    assert msgspec.json.decode(raw, type=type(line)) == line


def test_lines_are_of_one_kind_and_cut_ones_are_skipped(tmp_path: Path) -> None:
    samples = [server(t_ns, requests=1.5 * t_ns) for t_ns in range(3)]
    lines = [encode_line(item) for item in samples]
    path = tmp_path / "server_metrics.jsonl"
    path.write_bytes(lines[0] + lines[1][:20] + b"\n" + encode_line(sample(1)) + lines[1] + b"\n" + lines[2][:-3])
    assert read_lines(path, ServerSample) == samples[:2]


def test_reading_of_a_gpu_that_says_little_is_read_as_that(tmp_path: Path) -> None:
    path = tmp_path / "gpu.jsonl"
    path.write_bytes(b'{"t_ns":1,"level":0,"gpus":[{"uuid":"GPU-1","of_a_later_version":2}]}\n')
    assert read_lines(path, GpuSample) == [GpuSample(t_ns=1, level=0, gpus=[GpuReading(uuid="GPU-1")])]


def test_logs_that_were_never_begun_are_empty(tmp_path: Path) -> None:
    assert read_client_log(tmp_path / "client.jsonl") == ([], [], [])
    assert read_lines(tmp_path / "server_metrics.jsonl", ServerSample) == []


def test_bytes_that_are_no_text_are_skipped_in_the_client_log(tmp_path: Path) -> None:
    path = tmp_path / "client.jsonl"
    bad_note = encode_line(NoteMark(text="gone")).replace(b"gone", b"g\xff")
    path.write_bytes(encode_line(sample(5)).replace(b"measure", b"m\xff") + bad_note + encode_line(sample(6)))
    assert read_client_log(path) == ([sample(6)], [], [])


def test_bytes_that_are_no_text_are_skipped_in_the_other_logs(tmp_path: Path) -> None:
    good = server(1, requests=1)
    path = tmp_path / "server_metrics.jsonl"
    path.write_bytes(encode_line(good).replace(b"requests", b"r\xff") + encode_line(good))
    assert read_lines(path, ServerSample) == [good]


# --- manifest.json


def manifest(**fields: Any) -> Manifest:
    made: dict[str, Any] = {
        "command": ["loadgen", "sweep"],
        "started_utc": "2024-05-01T00:00:00+00:00",
        "simulated": True,
        "host": {"name": "caf\u00e9"},
        "engine": {},
        "dataset": {},
        "seed": 0,
        "load": {},
        "levels": [{"model": "closed", "concurrency": 1}],
        "client": {},
    }
    return manifest_from(**{**made, **fields})


def test_manifest_survives_a_round_trip(tmp_path: Path) -> None:
    written = manifest(gpus=[{"name": "x"}], driver="1.2")
    write_manifest(tmp_path, written)
    assert read_manifest(tmp_path) == written


def test_manifest_of_this_format_with_unknown_fields_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path, manifest())
    fields = json.loads((tmp_path / "manifest.json").read_bytes())
    write_json(tmp_path / "manifest.json", {**fields, "of_a_later_version": 1})
    assert read_manifest(tmp_path) == manifest()


def test_later_format_is_refused_with_advice(tmp_path: Path) -> None:
    """Also when nothing else in it is what this version expects."""
    later = FORMAT_VERSION + 1
    write_json(tmp_path / "manifest.json", {"format_version": later, "levels": "elsewhere"})
    with pytest.raises(RunFolderError, match=rf"format_version {later}, .* up to {FORMAT_VERSION}; upgrade loadgen"):
        read_manifest(tmp_path)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="nowhere: no such run folder"):
        read_manifest(tmp_path / "nowhere")


def test_file_instead_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="file: is a file; name the folder of the run"):
        read_manifest(tmp_path / "file")


def test_folder_without_a_manifest_is_asked_about(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"manifest\.json: No such file.*is .* a run folder of loadgen\?"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"name": "another tool"}', "no format_version; this is no run folder of loadgen"),
        (b'{"format_version": "1"}', "this is no run folder of loadgen"),
        (b'{"format_version": null}', "this is no run folder of loadgen"),
        (b"[]", "object"),
        (b"", "truncated"),
        (b'{"format_version": 1, "comm', "truncated"),
        (b"not json", "malformed"),
        (b'{"format_version": 1}', "command"),
        (b'{"format_version": 1, "command": ["caf\xff"]}', "utf-8"),
    ],
)
def test_alien_manifest_is_refused_with_its_path(raw: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(raw)
    with pytest.raises(RunFolderError, match=reason) as caught:
        read_manifest(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")


# --- writing


def test_json_is_indented_and_replaces_the_file_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")
    write_json(path, {"a": [1], "b": "caf\u00e9"})
    assert path.read_text() == '{\n  "a": [\n    1\n  ],\n  "b": "caf\u00e9"\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_old_file_stays_when_the_new_one_cannot_be_made(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == "old"


def test_compressed_records_are_read_where_there_are_no_others(tmp_path: Path) -> None:
    made = RequestRecord(level=0, seq=7, prompt_id="a", worker=0, phase="measure", end_ns=5)
    (tmp_path / "records.jsonl.gz").write_bytes(gzip.compress(encode_line(made) * 3))
    path = records_path(tmp_path)
    assert path.suffix == ".gz"
    assert [record.seq for record in read_records(path)[0]] == [7, 7, 7]
    (tmp_path / "records.jsonl").touch()
    assert records_path(tmp_path).suffix == ".jsonl"


# --- the bounds of levels without a mark


def test_bounds_are_from_the_first_measured_send_to_the_last_measured_end(tmp_path: Path) -> None:
    records = [
        request(10, 5, phase="warmup"),
        request(200, 5, end=300),
        failure(100, end=900),
        failure(None, end=2000, kind="connect"),
        request(150, 5, end=400),
        request(850, 5, end=5000, phase="drain"),
        request(7, 5, level=2, phase="warmup"),
    ]
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"".join(encode_line(record) for record in records) + b'{"level": 3, "phase"')
    assert read_bounds(path) == {0: (100 * MS, 900 * MS), 2: (2**63 - 1, 0)}


def test_bounds_of_compressed_records(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl.gz"
    path.write_bytes(gzip.compress(encode_line(request(200, 5, end=300))))
    assert read_bounds(path) == {0: (200 * MS, 300 * MS)}
