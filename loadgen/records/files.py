"""How JSON is written and read: the parts that every file of a run folder shares."""

from __future__ import annotations

from pathlib import Path

import msgspec

FORMAT_VERSION = 1

# What decoding a line that was cut, or that is something else, can raise.
UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_encoder = msgspec.json.Encoder()


def encode_line(record: msgspec.Struct) -> bytes:
    """One JSON line, with its line feed."""
    return _encoder.encode(record) + b"\n"


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON in one step, so that a reader never sees half a file."""
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(msgspec.json.format(_encoder.encode(value), indent=2) + b"\n")
    partial.replace(path)
