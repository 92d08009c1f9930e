"""Run folders that are listed, and found by a part of their name."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made import manifest_from
from typer.testing import CliRunner, Result

from loadgen.cli.main import app
from loadgen.errors import RunFolderError, UsageError
from loadgen.loads import Closed
from loadgen.records import write_json, write_manifest
from loadgen.report.listing import age, render
from loadgen.run_folders import RUNS_FILE, RunIndex, find_run, list_runs

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
VALID = ("VALID", "VALID")


def run(
    folder: Path, hours: float = 1, verdicts: tuple[str, ...] | None = VALID, planned: int = 2, **fields: Any
) -> Path:
    """A run that was started so long before NOW; without verdicts it was killed."""
    folder.mkdir(parents=True)
    loads: list[dict[str, Any]] = [Closed(concurrency=2**i) for i in range(planned)]
    engine = {"kind": "vllm", "version": "0.25.1", "model": "M"}
    manifest = manifest_from(
        command=[], started_utc=(NOW - timedelta(hours=hours)).isoformat(), host={}, dataset={}, seed=0,
        levels=loads, client={}, **{"simulated": False, "engine": engine, "load": {}, **fields},
    )  # fmt: skip
    write_manifest(folder, manifest)
    (folder / "records.jsonl").touch()
    if verdicts is not None:
        pairs = zip(loads, verdicts, strict=False)
        levels = [{"load": load, "verdict": {"status": status}, "more": 1} for load, status in pairs]
        write_json(folder / "summary.json", {"format_version": 1, "simulated": False, "levels": levels})
    return folder


def kernels(folder: Path, hours: float = 1) -> Path:
    folder.mkdir(parents=True)
    started = (NOW - timedelta(hours=hours)).isoformat()
    about = {"kind": "kernels", "started_utc": started, "device": {"name": "H200"}, "model": {"name": "q"}}
    write_json(folder / "manifest.json", about)
    (folder / "kernels.jsonl").touch()
    return folder


def sweep(folder: Path, hours: float = 1, *names: str, missing: str | None = None) -> Path:
    folder.mkdir(parents=True)
    write_json(folder / RUNS_FILE, RunIndex(command=[], runs=[*names, *([missing] if missing else [])]))
    for name in names:
        run(folder / name, hours)
    return folder


def listed(*homes: Path) -> list[str]:
    return [entry.name for entry in list_runs(homes)]


# --- the list


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    run(tmp_path / "old", 5)
    run(tmp_path / "deep" / "er" / "new", 1)
    kernels(tmp_path / "kernels", 3)
    sweep(tmp_path / "both", 2, "vllm", "trtllm")
    kernels(tmp_path / "old" / "kernels", 0)  # of the run, and no entry of its own
    (tmp_path / "empty").mkdir()
    (tmp_path / "a-file").touch()
    assert listed(tmp_path) == ["deep/er/new", "both", "kernels", "old"]
    assert [entry.kind for entry in list_runs([tmp_path])] == ["run", "sweep", "kernels", "run"]


def test_a_folder_below_two_homes_is_listed_once(tmp_path: Path) -> None:
    run(tmp_path / "local" / "a", 1)
    run(tmp_path / "b", 2)
    (tmp_path / "again").symlink_to(tmp_path / "b")
    (tmp_path / "round").symlink_to(tmp_path)
    assert listed(tmp_path / "local", tmp_path) in (["a", "again"], ["a", "b"])


def test_what_cannot_be_read_is_named_with_why_and_last(tmp_path: Path) -> None:
    good = msgspec.json.decode((run(tmp_path / "good", 9) / "manifest.json").read_bytes())
    broken = {
        "cut": b'{"format_ver',
        "list": b"[]",
        "later": b'{"format_version": 99}',
        "other": b'{"name": "something else"}',
        "bytes": b"\xff\xfe",
        "deep": b"[" * 100_000,
        "time": msgspec.json.encode({**good, "started_utc": "x"}),
        "kernels": b'{"kind": "kernels"}',
    }  # fmt: skip
    for name, content in broken.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_bytes(content)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "records.jsonl").touch()
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / RUNS_FILE).write_text("{")
    (tmp_path / "folder" / "manifest.json").mkdir(parents=True)
    entries = list_runs([tmp_path])
    assert entries[0].name == "good"
    assert {entry.name for entry in entries[1:]} == {*broken, "none", "index", "folder"}
    assert all(entry.kind == "unreadable" and entry.state for entry in entries[1:])
    text = render(entries, NOW)
    assert all(len(line) <= 80 for line in text.splitlines())
    text = " ".join(text.split())
    assert "later" in text and "upgrade loadgen" in text and "no format_version" in text


def test_a_run_that_was_killed_says_so(tmp_path: Path) -> None:
    run(tmp_path / "killed", verdicts=None)
    run(tmp_path / "half", 2, verdicts=("VALID",))
    (run(tmp_path / "bad", 3) / "summary.json").write_text("{")
    text = render(list_runs([tmp_path]), NOW)
    assert "no summary.json: killed in its first level" in text
    assert "1 of 2 levels" in text
    assert "summary.json: Input data was truncated" in text


def test_the_text(tmp_path: Path) -> None:
    run(tmp_path / "a", 0.5, simulated=True, engine={"kind": "sim", "version": "0.1.0", "model": "m"})
    run(tmp_path / "b", 3, verdicts=("VALID", "ERRORS"))
    kernels(tmp_path / "c", 50)
    sweep(tmp_path / "d", 900, "vllm", missing="trtllm")
    assert render(list_runs([tmp_path]), NOW) == (
        f"a{'30 min  SIMULATED':>79}\n"
        "  sim 0.1.0; m; 1, 2 in flight: VALID\n"
        f"b{'3 h':>79}\n"
        "  vllm 0.25.1; M; 1, 2 in flight: 2 ERRORS\n"
        f"c{'2 d':>79}\n"
        "  kernels: q on H200\n"
        f"d{'37 d':>79}\n"
        "  vllm: vllm 0.25.1; M; 1, 2 in flight: VALID\n"
        "  not measured: trtllm\n"
    )


def test_a_search_is_named_and_its_levels_are_only_counted(tmp_path: Path) -> None:
    goal = {
        "kind": "capacity", "over": "rate", "start": 1, "highest": 2, "duration_s": 1, "max_duration_s": 1,
        "max_find_s": 1,
    }  # fmt: skip
    run(tmp_path / "a", load={"model": "search", "find": goal})
    assert "; M; search for the capacity over 2 levels\n" in render(list_runs([tmp_path]), NOW)


def test_names_of_any_kind_fit_80_columns_and_move_no_cursor(tmp_path: Path) -> None:
    run(tmp_path / ("n" * 100), engine={"kind": "vllm", "version": None, "model": "\x1b[31m\n" + "m" * 300})
    text = render(list_runs([tmp_path]), NOW)
    assert "\x1b" not in text
    run(tmp_path / "x\n\x1b[2Jy", engine={})
    assert "\x1b" not in render(list_runs([tmp_path]), NOW)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0 s"), (0.4, "0 s"), (59, "59 s"), (61, "1 min"), (7300, "2 h"), (86400 * 3, "3 d"), (86400 * 800, "2 y")],
)
def test_age(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_hundreds_of_runs_are_listed_quickly(tmp_path: Path) -> None:
    source = run(tmp_path / "0")
    manifest, summary = ((source / name).read_bytes() for name in ("manifest.json", "summary.json"))
    padded = summary.replace(b'"more"', b'"more": [' + b"0.123456, " * 4000 + b'0], "rest"')
    for number in range(1, 400):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "manifest.json").write_bytes(manifest)
        (folder / "summary.json").write_bytes(padded)
    began = time.perf_counter()
    assert len(list_runs([tmp_path])) == 400
    assert time.perf_counter() - began < 10  # half a second on a machine with nothing else to do


# --- finding one


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with runs in reports/local and reports."""
    monkeypatch.chdir(tmp_path)
    run(Path("reports/local/20260301-100000-vllm"), 2)
    run(Path("reports/local/20260301-110000-vllm"), 1)
    kernels(Path("reports/local/20260301-115900-kernels"), 0.1)
    sweep(Path("reports/local/20260301-090000-both"), 3, "vllm", "trtllm")
    run(Path("reports/published"), 100)
    run(Path("reports/local/20260301-115959-cut"), 0, verdicts=None)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("@last", "reports/local/20260301-115959-cut"),
        ("@last~0", "reports/local/20260301-115959-cut"),
        ("@last~1", "reports/local/20260301-110000-vllm"),  # kernels do not count
        ("@last~3", "reports/local/20260301-090000-both"),
        ("@last~4", "reports/published"),
        ("pub", "reports/published"),
        ("published", "reports/published"),
        ("20260301-10", "reports/local/20260301-100000-vllm"),
        ("20260301-09", "reports/local/20260301-090000-both"),
        ("20260301-090000-both/v", "reports/local/20260301-090000-both/vllm"),
        ("20260301-1159", None),
        ("20260301-115900", "reports/local/20260301-115900-kernels"),
        ("reports/local/20260301-11000", "reports/local/20260301-110000-vllm"),
        ("reports/published", "reports/published"),
        ("reports", "reports"),
        (".", "."),
    ],
)
def test_a_run_is_found(homes: Path, text: str, found: str | None) -> None:
    if found is None:
        with pytest.raises(RunFolderError, match=r"any of 2 runs: .*115900-kernels, .*115959-cut"):
            find_run(text)
    else:
        assert find_run(text) == Path(found)


def test_an_existing_path_wins(homes: Path) -> None:
    Path("pub").mkdir()
    Path("@last").mkdir()
    assert find_run("pub") == Path("pub")
    assert find_run("@last") == Path("@last")


def test_a_name_in_full_is_no_beginning(homes: Path) -> None:
    run(Path("reports/local/published-2"))
    assert find_run("published") == Path("reports/published")
    with pytest.raises(RunFolderError, match="any of 2 runs"):
        find_run("publ")
    run(Path("reports/local/published"))
    with pytest.raises(RunFolderError, match="any of 2 runs: reports/local/published, reports/published"):
        find_run("published")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "no such path, and no run below reports/local or reports has a name that begins so"),
        ("", "no such run folder"),
        ("@last~9", "there are 5 runs below reports/local or reports"),
        ("@last~-1", "no such run folder"),
        ("/nowhere/at/all", "no such run folder"),
        ("x" * 5000, "no such run folder"),
    ],
)
def test_nothing_found_says_what_was_looked_for_and_where(homes: Path, text: str, message: str) -> None:
    with pytest.raises(RunFolderError, match=message):
        find_run(text)


def test_without_any_folder_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunFolderError, match="there are 0 runs below"):
        find_run("@last")


# --- the commands


def loadgen(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), standalone_mode=False)


def test_the_command(homes: Path) -> None:
    done = loadgen("runs")
    assert done.return_value == 0
    assert done.stdout.splitlines()[0].startswith("20260301-115959-cut")
    found = msgspec.json.decode(loadgen("runs", "reports/local", "--json").stdout)
    assert [entry["name"] for entry in found][:2] == ["20260301-115959-cut", "20260301-115900-kernels"]
    assert found[-1]["runs"][0]["levels"] == [
        {"load": {"model": "closed", "concurrency": 1}, "verdict": "VALID"},
        {"load": {"model": "closed", "concurrency": 2}, "verdict": "VALID"},
    ]
    Path("empty").mkdir()
    assert loadgen("runs", "empty").stdout == "No runs below empty.\n"
    assert loadgen("runs", "empty", "--json").stdout == "[]\n"
    for folder, message in (("nosuch", "no such folder"), ("empty/../reports/published/records.jsonl", "is a file")):
        done = loadgen("runs", folder)
        assert isinstance(done.exception, UsageError) and message in str(done.exception)


@pytest.mark.parametrize(
    "words", [["report"], ["compare"], ["plan", "--slo", "ttft=1s"], ["kernels", "bench", "--from"]], ids=lambda w: w[0]
)
def test_every_command_that_takes_a_run_knows_a_part_of_its_name(homes: Path, words: list[str]) -> None:
    done = loadgen(*words, "2026")
    assert isinstance(done.exception, RunFolderError) and "can be any of 5 runs" in str(done.exception)
