"""What a run leaves behind: the structs, their JSON, the format's version and its history.

Format history (``format_version`` in manifest.json and summary.json):

1. first version.

Reading is lenient about fields it does not know, so that a later minor addition does not break an
older loadgen; a higher ``format_version`` is refused with a message.
"""

from __future__ import annotations

from loadgen.records.files import FORMAT_VERSION, UNREADABLE, encode_line, write_json
from loadgen.records.log import (
    ClientSample,
    Ended,
    LevelMark,
    NoteMark,
    ServerSample,
    read_client_log,
    read_lines,
)
from loadgen.records.manifest import (
    CalibrationEntry,
    ClientEntry,
    Dataset,
    EngineEntry,
    FileDataset,
    Goal,
    LoadEntry,
    Manifest,
    SyntheticDataset,
    UnknownDataset,
    manifest_of,
    read_manifest,
    write_manifest,
)
from loadgen.records.requests import (
    ErrorKind,
    Phase,
    RequestError,
    RequestRecord,
    RunTail,
    TokenSource,
    decode_record,
    read_bounds,
    read_records,
    records_path,
)

__all__ = [
    "FORMAT_VERSION", "UNREADABLE", "CalibrationEntry", "ClientEntry", "ClientSample", "Dataset", "Ended",
    "EngineEntry", "ErrorKind", "FileDataset", "Goal", "LevelMark", "LoadEntry", "Manifest", "NoteMark", "Phase",
    "RequestError", "RequestRecord", "RunTail", "ServerSample", "SyntheticDataset", "TokenSource", "UnknownDataset",
    "decode_record", "encode_line", "manifest_of", "read_bounds", "read_client_log", "read_lines", "read_manifest",
    "read_records", "records_path", "write_json", "write_manifest",
]  # fmt: skip
