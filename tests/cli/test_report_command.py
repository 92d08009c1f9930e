"""``loadgen report`` on the committed runs, on what a killed run leaves, and on bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from made import MS, manifest_from, request, sample
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from typer.testing import CliRunner, Result

from loadgen.analysis.measure import summarize_run
from loadgen.cli.main import app
from loadgen.cli.reports import Format, publish
from loadgen.errors import LoadgenError, RunFolderError, UsageError
from loadgen.loads import Closed
from loadgen.records import LevelMark, encode_line, write_json, write_manifest
from loadgen.report.formats import TEXTS
from loadgen.run_folders import RUNS_FILE, RunIndex

ROOT = Path(__file__).parents[2]
BESIDE = ROOT / "reports" / "vllm-0.25.1-h200-qwen1.5-4b-kernels"
LIMIT_S = 60
LEVELS, TWICE = "levels", "twice"


def run(folder: Path) -> Path:
    """A run of two levels of 200 requests, TTFT 20 to 29 ms at 1 in flight and 40 to 58 at 2; TPOT 5 ms."""
    folder.mkdir(parents=True)
    loads = [Closed(concurrency=1), Closed(concurrency=2)]
    engine = {"kind": "vllm", "version": "0.25.1", "model": "m", "url": "http://127.0.0.1:8", "endpoint": "completions"}
    manifest = manifest_from(
        command=["loadgen", "sweep"], started_utc="2026-01-02T03:04:05+00:00", simulated=False,
        host={"name": "box", "processor": "CPU", "cores": 2, "kernel": "6.1"}, engine=engine,
        dataset={"kind": "synthetic token ids", "input_tokens": "10", "output_tokens": "5", "vocab_size": 32_000},
        seed=0, load={"model": "closed", "requests": 200, "duration_s": None}, levels=loads,
        client={"loadgen_version": "0.1.0", "workers": 1},
    )  # fmt: skip
    write_manifest(folder, manifest)
    records, log = [], []
    for index, slots in enumerate((1, 2)):
        clock = [index * 100_000] * slots
        for number in range(200):
            gaps = ((20 + number % 10) * slots, 5, 5, 5, 5)
            records.append(request(clock[number % slots], *gaps, level=index, seq=number))
            clock[number % slots] += sum(gaps)
        start, end = index * 100_000, min(clock)
        times = range(start, end, 100)
        log += [sample(t, cpu=t // 10, level=index, in_flight=slots, lateness_ns=[50_000]) for t in times]
        log.append(LevelMark(level=index, window_start_ns=start * MS, window_end_ns=end * MS))
    (folder / "records.jsonl").write_bytes(b"".join(map(encode_line, records)))
    (folder / "client.jsonl").write_bytes(b"".join(map(encode_line, log)))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and a sweep over two engines."""
    place = tmp_path_factory.mktemp("runs")
    run(place / LEVELS)
    for name in ("vllm", "vllm-2"):
        run(place / TWICE / name)
    write_json(place / TWICE / RUNS_FILE, RunIndex(command=[], runs=["vllm", "vllm-2"]))
    return place


def report(*words: object) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, words)], standalone_mode=False)


def loadgen(words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """A shell's command line, with loadgen in it."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = words.replace("loadgen", f"{sys.executable} -m loadgen")
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=LIMIT_S, env=env, cwd=cwd)


# --- formats


def test_the_table_ends_with_the_answer_and_the_page(folder: Path) -> None:
    page = folder / LEVELS / "report.html"
    done = report(folder / LEVELS)
    assert done.return_value == 0
    answer, last = done.stdout.rstrip().split("\n\n")[-2:]
    assert answer.startswith("Output still rises at the highest valid load: 2 in flight") and answer.endswith(".")
    assert last == f"Report: {page}" and page.exists()


@pytest.mark.parametrize("form", ["markdown", "csv", "json", "openmetrics"])
def test_a_format_goes_to_standard_output_or_a_file(folder: Path, tmp_path: Path, form: str) -> None:
    (folder / LEVELS / "report.html").unlink(missing_ok=True)
    done = report(folder / LEVELS, "--format", form)
    assert done.return_value == 0 and done.stdout
    assert report(folder / LEVELS, "--format", form, "--output", tmp_path / "out").stdout == ""
    assert (tmp_path / "out").read_bytes() == done.stdout_bytes
    assert not (folder / LEVELS / "report.html").exists()


def test_json_is_the_summary_and_json_is_its_synonym(folder: Path) -> None:
    done = report(folder / LEVELS, "--json")
    assert json.loads(done.stdout) == json.loads((folder / LEVELS / "summary.json").read_text())
    assert report(folder / LEVELS, "--format", "json").stdout == done.stdout
    refused = report(folder / LEVELS, "--json", "--format", "csv")
    assert isinstance(refused.exception, UsageError)


def test_the_page_goes_where_it_is_told(folder: Path, tmp_path: Path) -> None:
    done = report(folder / LEVELS, "--format", "html", "--output", tmp_path / "page.html")
    assert done.stdout.strip() == f"Report: {tmp_path / 'page.html'}"
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")
    assert report(folder / LEVELS, "--format", "html").stdout.strip() == f"Report: {folder / LEVELS / 'report.html'}"


def test_several_runs(folder: Path) -> None:
    runs = (folder / LEVELS, folder / TWICE)
    text = report(*runs).stdout
    assert "Side by side" in text and text.count("Report: ") == 3
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("Report: "))
    rows = list(csv.DictReader(io.StringIO(report(*runs, "--format", "csv").stdout)))
    assert [row["run"] for row in rows] == [LEVELS] * 2 + ["vllm"] * 2 + ["vllm-2"] * 2
    value = json.loads(report(*runs, "--json").stdout)
    assert list(value) == [LEVELS, "vllm", "vllm-2"]
    families = list(text_string_to_metric_families(report(*runs, "--format", "openmetrics").stdout))
    assert {sample.labels["run"] for family in families for sample in family.samples} == set(value)
    assert "### Side by side" in report(*runs, "--format", "markdown").stdout


def test_one_page_of_several_runs(folder: Path, tmp_path: Path) -> None:
    assert report(folder / TWICE, "--format", "html").stdout.count("Report: ") == 3, "each run, and both"
    assert "A: vllm" in (folder / TWICE / "report.html").read_text()
    done = report(folder / LEVELS, folder / TWICE, "--format", "html", "--output", tmp_path / "p.html")
    assert done.stdout.strip() == f"Report: {tmp_path / 'p.html'}"
    page = (tmp_path / "p.html").read_text()
    assert "A: levels" in page and "B: vllm" in page and "C: vllm-2" in page


def test_other_objectives_reach_every_format(folder: Path) -> None:
    slo = ("--slo", "ttft=45ms,tpot=50ms,ttft:p90=29ms")
    words = " ".join(report(folder / LEVELS, *slo).stdout.split())
    assert "at 1 in flight 100% are within it, 98.1% to 100%, and at 2 TTFT p90 breaks first (0% within)." in words
    assert "attainment |" in report(folder / LEVELS, *slo, "--format", "markdown").stdout
    assert "loadgen_slo_attainment_ratio{" in report(folder / LEVELS, *slo, "--format", "openmetrics").stdout


# --- kernels


def test_kernels_are_recognised_wherever_they_stand(tmp_path: Path) -> None:
    served, kernels = tmp_path / "served", BESIDE / "kernels"
    shutil.copytree(BESIDE, served, ignore=shutil.ignore_patterns("kernels"))
    assert "served TPOT" not in report(served).stdout
    text = report(kernels, served).stdout
    assert "served TPOT" in text and text.rstrip().endswith("report.html")
    alone = report(kernels)
    assert "NVIDIA H200" in alone.stdout and "Report:" not in alone.stdout
    for words in ((kernels, "--format", "csv"), (served, kernels, kernels)):
        assert isinstance(report(*words).exception, UsageError)


# --- what is broken


def killed(folder: Path) -> Path:
    """A run without a summary, its records cut in the middle of a line and of its second level."""
    run(folder)
    records = (folder / "records.jsonl").read_bytes()
    (folder / "records.jsonl").write_bytes(records[: len(records) * 3 // 4])
    log = (folder / "client.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "client.jsonl").write_bytes(b"".join(log[: len(log) * 3 // 4]))
    return folder


def test_a_run_that_was_killed_gets_its_summary(tmp_path: Path) -> None:
    place = killed(tmp_path / "run")
    done = report(place, "--format", "csv")
    assert done.return_value == 1
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["verdict"] for row in rows] == ["VALID", "INTERRUPTED"]
    assert (place / "summary.json").exists()
    assert "Not used, since not valid: 2 in flight INTERRUPTED." in " ".join(report(place).stdout.split())


@pytest.mark.parametrize("form", ["terminal", "html", "markdown", "csv", "json", "openmetrics"])
def test_a_run_without_a_record(folder: Path, tmp_path: Path, form: str) -> None:
    shutil.copy(folder / LEVELS / "manifest.json", tmp_path)
    done = report(tmp_path, "--format", form)
    assert done.exception is None and done.return_value == 1 and done.stdout


def test_what_is_no_run_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path / "empty", "is .*empty a run folder of loadgen"),
        (tmp_path / "file", "file: is a file; name the folder of the run"),
        (folder / LEVELS / "summary.json", f"is a file; name the folder of the run, such as {folder / LEVELS}"),
        (tmp_path / "nosuch", "no such run folder"),
    ):
        with pytest.raises(RunFolderError, match=message):
            raise report(path).exception  # type: ignore[misc]


def test_a_file_that_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    for form in ("csv", "html"):
        for output, message in (("/dev/full", "No space left"), (tmp_path / "no" / "such", "No such file")):
            done = report(folder / LEVELS, "--format", form, "--output", output)
            assert isinstance(done.exception, LoadgenError) and message in str(done.exception)
            assert done.exception.exit_code == 1


@pytest.mark.integration
@pytest.mark.parametrize("form", ["terminal", "csv"])
def test_a_pipe_that_is_closed_and_a_full_disk(folder: Path, form: str) -> None:
    place = folder / LEVELS
    done = loadgen(f"loadgen report {place} --format {form} | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}")
    assert done.stderr == "" and done.returncode in (0, 1)
    done = loadgen(f"loadgen report {place} --format {form} >/dev/full")
    assert done.stderr.strip() == "loadgen: standard output: no space left on device" and done.returncode == 1


def test_formats_of_the_option_are_those_that_are_rendered() -> None:
    assert set(get_args(Format)) == {*TEXTS, "html"}


def test_results_are_shown_where_the_folders_have_none_to_compare(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that was full: the sweep knows the figures, its folders do not."""
    shutil.copytree(folder / TWICE, tmp_path / TWICE)
    measured = [(tmp_path / TWICE / name, summarize_run(tmp_path / TWICE / name)[1]) for name in ("vllm", "vllm-2")]
    for place, _ in measured:
        (place / "records.jsonl").unlink()
        (place / "client.jsonl").unlink()
    publish(tmp_path / TWICE, measured, as_json=False)
    said = capsys.readouterr()
    assert "Side by side" in said.out and said.out.count("Report: ") == 3
    assert "the page has no comparison" in said.err
