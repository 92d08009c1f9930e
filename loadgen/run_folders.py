"""Run folders: made, listed, and found by a part of their name.

A listing reads manifest.json and summary.json only, and never a record.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadgen.errors import RunFolderError
from loadgen.loads import Load
from loadgen.records import FORMAT_VERSION, UNREADABLE, read_manifest

RUNS_FILE = "runs.json"
HOMES = (Path("reports/local"), Path("reports"))
DEPTH = 4  # folders below the one that is listed
# What a run or a benchmark of kernels begins to write; such a folder without a manifest cannot be read.
TRACES = {"records.jsonl", "records.jsonl.gz", "client.jsonl", "kernels.jsonl", "samples.jsonl", "summary.json"}
_LAST = re.compile(r"@last(?:~(\d{1,9}))?", re.ASCII)
SHOWN = 8  # candidates that an error message lists

Kind = Literal["run", "sweep", "kernels", "unreadable"]


def prepare_output(path: Path) -> None:
    """Makes the run folder.

    Raises:
        RunFolderError: it exists and is not empty, or cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise RunFolderError(f"{path}: exists and is not empty; name another folder with --output")
    except (NotADirectoryError, FileExistsError):
        raise RunFolderError(f"{path}: is a file, or lies below one; name another folder with --output") from None
    except OSError as error:
        raise RunFolderError(f"{path}: cannot be made: {error.strerror}; name another folder with --output") from None


def default_output(model: str, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> Path:
    """``reports/local/<UTC time>-<name>``."""
    name = "".join(c if c.isalnum() or c in "-._" else "-" for c in model).strip("-.")[:40] or "run"
    return Path("reports") / "local" / f"{now():%Y%m%d-%H%M%S}-{name}"


class RunIndex(msgspec.Struct, kw_only=True):
    """``runs.json`` of a sweep over several engines: the names of the run folders beside it."""

    format_version: int = FORMAT_VERSION
    command: list[str]
    runs: list[str]
    together: bool = False


def run_folders(folder: Path) -> list[Path]:
    """The run folders of a sweep: the folder itself, or those that its ``runs.json`` names.

    Raises:
        RunFolderError: ``runs.json`` cannot be read, or nothing in it was measured.
    """
    index = _read_index(folder)
    if index is None:
        return [folder]
    found = [folder / name for name in index.runs if (folder / name / "manifest.json").exists()]
    if not found:
        raise RunFolderError(f"{folder}: none of its runs was measured ({', '.join(index.runs)})")
    return found


def is_together(folder: Path) -> bool:
    """Whether the runs of a sweep were under load at the same time."""
    index = _read_index(folder)
    return index is not None and index.together


def _read_index(folder: Path) -> RunIndex | None:
    path = folder / RUNS_FILE
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    try:
        index = msgspec.json.decode(raw, type=RunIndex)
        if index.format_version > FORMAT_VERSION:
            raise RunFolderError(
                f"{path}: format_version {index.format_version}, but this loadgen reads {FORMAT_VERSION}; upgrade it"
            )
        return index
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RunFolderError(f"{path}: {error}") from None


class LevelEntry(msgspec.Struct, kw_only=True):
    """What a listing says of a level."""

    load: Load
    verdict: str


class RunEntry(msgspec.Struct, kw_only=True):
    """One folder of a listing.

    Attributes:
        name: its path below the folder that was listed.
        kind: ``sweep`` is one over several engines, whose runs are in ``runs``.
        started_utc: ISO 8601; of a sweep, when its first run was started.
        search: what was looked for, by a sweep that found its levels itself.
        planned: levels that the sweep was to measure, of a run.
        levels: those that summary.json has.
        state: why there is less than a whole run, in words.
    """

    name: str
    path: str
    kind: Kind
    started_utc: str | None = None
    engine: str | None = None
    version: str | None = None
    model: str | None = None
    simulated: bool = False
    search: str | None = None
    planned: int = 0
    levels: list[LevelEntry] = []
    runs: list[RunEntry] = []
    state: str | None = None


class _Verdict(msgspec.Struct):
    status: str


class _Level(msgspec.Struct):
    load: Load
    verdict: _Verdict


class _Summary(msgspec.Struct):
    """What is looked at of a summary.json."""

    levels: list[_Level]


def list_runs(homes: Sequence[Path]) -> list[RunEntry]:
    """Every run, sweep and benchmark of kernels below some folders, the newest first; unreadable ones last."""
    entries = [_entry(home, folder) for home, folder in _folders(homes)]
    return sorted(entries, key=lambda entry: (entry.kind != "unreadable", _started(entry), entry.name), reverse=True)


def find_run(text: str, homes: Sequence[Path] = HOMES) -> Path:
    """The folder that a user means.

    A path that exists is that path. ``@last`` is the newest run or sweep below ``homes``, ``@last~1`` the one
    before it; benchmarks of kernels do not count there. Anything else is the name of a folder below
    ``homes``, or the beginning of just one such name.

    Raises:
        RunFolderError: nothing is found, or several are.
    """
    path = Path(text)
    if text and os.path.lexists(path):
        return path
    where = " or ".join(map(str, homes))
    last = _LAST.fullmatch(text)
    if last is not None:
        back = int(last[1] or 0)
        runs = [entry for entry in list_runs(homes) if entry.kind in ("run", "sweep") and _started(entry)]
        if back < len(runs):
            return Path(runs[back].path)
        raise RunFolderError(f"{text}: there are {len(runs)} runs below {where}; `loadgen runs` lists them")
    folders = list(_folders(homes))
    found = _named(text, folders)
    if not found:  # the runs of a sweep over several engines come second: its own name is the beginning of theirs
        inside = [(home, folder / run) for home, folder in folders for run in _runs_of(folder)]
        found = _named(text, [(home, run) for home, run in inside if (run / "manifest.json").exists()])
    if len(found) == 1:
        return found[0]
    if found:
        shown = ", ".join(sorted(map(str, found))[:SHOWN]) + (", ..." if len(found) > SHOWN else "")
        raise RunFolderError(f"{text!r} can be any of {len(found)} runs: {shown}")
    raise RunFolderError(
        f"{text!r}: no such run folder: there is no such path, and no run below {where} has a name that begins so; "
        "`loadgen runs` lists them"
    )


def _named(text: str, folders: Sequence[tuple[Path, Path]]) -> list[Path]:
    """Those that are called so below their home, or as a path; else those whose name begins so."""
    names = [({str(folder.relative_to(home)), str(folder)}, folder) for home, folder in folders]
    exact = [folder for own, folder in names if text in own]
    return exact or [folder for own, folder in names if text and any(name.startswith(text) for name in own)]


def _folders(homes: Sequence[Path]) -> Iterator[tuple[Path, Path]]:
    """Folders that a run was written to, each with the home that it is below, and each once."""
    seen: set[str] = set()
    for home in homes:
        for folder in _below(home, DEPTH, seen):
            yield home, folder


def _below(folder: Path, depth: int, seen: set[str]) -> Iterator[Path]:
    try:
        with os.scandir(folder) as found:
            inside = sorted(found, key=lambda one: one.name)
    except OSError:
        return
    for one in inside:
        real = os.path.realpath(one.path)
        if not one.is_dir() or one.name.startswith(".") or real in seen:
            continue
        path = Path(one.path)
        try:
            names = set(os.listdir(path))  # noqa: PTH208  (a path object for each file of a run takes longer)
        except OSError:
            names = {"manifest.json"}  # a folder that cannot be looked into is told of
        if names & {"manifest.json", RUNS_FILE, *TRACES}:
            seen.add(real)
            yield path
        elif depth > 1:
            yield from _below(path, depth - 1, seen)


def _started(entry: RunEntry) -> str:
    """Sorts by time: all are UTC, in one form."""
    return entry.started_utc or ""


def _runs_of(folder: Path) -> list[str]:
    index = _index(folder)
    return [] if index is None else index.runs


def _index(folder: Path) -> RunIndex | None:
    try:
        return msgspec.json.decode((folder / RUNS_FILE).read_bytes(), type=RunIndex)
    except (OSError, *UNREADABLE):
        return None


def _entry(home: Path, folder: Path) -> RunEntry:
    name = str(folder.relative_to(home))
    if (folder / RUNS_FILE).exists() and not (folder / "manifest.json").exists():
        return _sweep(name, folder)
    return _run(name, folder)


def _sweep(name: str, folder: Path) -> RunEntry:
    index = _index(folder)
    if index is None:
        return RunEntry(name=name, path=str(folder), kind="unreadable", state=f"{RUNS_FILE} cannot be read")
    runs = [_run(run, folder / run) for run in index.runs if (folder / run / "manifest.json").exists()]
    missing = [run for run in index.runs if not (folder / run / "manifest.json").exists()]
    return RunEntry(
        name=name,
        path=str(folder),
        kind="sweep",
        started_utc=min((run.started_utc for run in runs if run.started_utc), default=None),
        simulated=any(run.simulated for run in runs),
        runs=runs,
        state=f"not measured: {', '.join(missing)}" if missing else None,
    )


def _run(name: str, folder: Path) -> RunEntry:
    entry = RunEntry(name=name, path=str(folder), kind="run")
    try:
        fields = msgspec.json.decode((folder / "manifest.json").read_bytes())
        if isinstance(fields, dict) and fields.get("kind") == "kernels":
            return _kernels(entry, folder, fields)
        manifest = read_manifest(folder)
        started = datetime.fromisoformat(manifest.started_utc)
    except OSError as error:
        return _unreadable(entry, f"manifest.json: {error.strerror}")
    except UNREADABLE as error:
        return _unreadable(entry, f"manifest.json: {error}")
    except RunFolderError as error:
        return _unreadable(entry, str(error).removeprefix(f"{folder}/"))
    except ValueError:
        return _unreadable(entry, f"manifest.json: started_utc is no time: {manifest.started_utc!r}")
    entry.started_utc = _utc(started)
    entry.engine, entry.version = manifest.engine.kind, manifest.engine.version
    entry.model = manifest.engine.model
    entry.simulated = manifest.simulated
    entry.search = None if manifest.load.find is None else manifest.load.find.kind
    entry.planned = len(manifest.levels)
    try:
        summary = msgspec.json.decode((folder / "summary.json").read_bytes(), type=_Summary)
    except FileNotFoundError:
        entry.state = "no summary.json: killed in its first level, or still there; `loadgen report` makes it"
    except OSError as error:
        entry.state = f"summary.json: {error.strerror}"
    except UNREADABLE as error:
        entry.state = f"summary.json: {error}"
    else:
        entry.levels = [LevelEntry(load=level.load, verdict=level.verdict.status) for level in summary.levels]
        if len(entry.levels) < entry.planned:
            entry.state = f"{len(entry.levels)} of {entry.planned} levels"
    return entry


def _kernels(entry: RunEntry, folder: Path, fields: dict[str, Any]) -> RunEntry:
    entry.kind = "kernels"
    try:
        entry.started_utc = _utc(datetime.fromisoformat(fields["started_utc"]))
    except (KeyError, TypeError, ValueError):
        return _unreadable(entry, "manifest.json: it does not say when it was started")
    device, model = fields.get("device"), fields.get("model")
    entry.engine = _text(device.get("name")) if isinstance(device, dict) else None
    entry.model = _text(model.get("name")) if isinstance(model, dict) else None
    if not (folder / "kernels.jsonl").exists():
        entry.state = "no kernels.jsonl: killed, or still running"
    return entry


def _unreadable(entry: RunEntry, why: str) -> RunEntry:
    return RunEntry(name=entry.name, path=entry.path, kind="unreadable", state=why)


def _utc(moment: datetime) -> str:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC).isoformat(timespec="seconds")


def _text(value: object) -> str | None:
    return None if value is None else str(value)
