"""The parent of a benchmark: a worker that breaks costs its own case. The worker is a stand-in, its process real."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner, Result

from loadgen.cli.main import app
from loadgen.errors import LoadgenError, UsageError
from loadgen.microbench import bench
from loadgen.microbench.bench import BenchSpec, run_bench, run_checks
from loadgen.microbench.records import KernelRecord, is_kernel_folder, read_kernel_manifest
from loadgen.records import read_lines
from loadgen.report.kernels import render

FAKE = Path(__file__).parents[1] / "fakes" / "kernel_worker.py"
KERNEL = '''"""Adds nothing."""
OUTPUTS = ("out",)
CASES = []
def inputs(make): ...
def reference(out): ...
def traffic(): ...
IMPLEMENTATIONS = {"triton": None}
BASELINES = {"eager": None, "vllm": None}
'''


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "made_up.py"
    path.write_text(KERNEL)
    return path


def spec(kernel: Path, **fields: object) -> BenchSpec:
    made = {"command": ["loadgen"], "files": [kernel], "states": ["serving"], "python": str(FAKE)}
    return BenchSpec(**{**made, "output": kernel.parent / "out", **fields})  # type: ignore[arg-type]


def test_every_record_is_in_the_folder(kernel: Path) -> None:
    said: list[str] = []
    result = run_bench(spec(kernel), said.append)
    folder = kernel.parent / "out"
    assert result.exit_code == 0
    assert is_kernel_folder(folder)
    assert read_lines(folder / "kernels.jsonl", KernelRecord) == result.records
    assert [(r.implementation, r.params["tokens"]) for r in result.records] == [
        ("triton", 1), ("eager", 1), ("triton", 2), ("eager", 2),
    ]  # fmt: skip
    assert result.records[0].best_baseline is not None and result.records[0].best_baseline.ratio == pytest.approx(1.5)
    assert read_kernel_manifest(folder).took_s is not None
    assert any("copy 4,000 GB/s" in line for line in said)


@pytest.mark.parametrize(("case", "left"), [(0, [2]), (1, [1])])
def test_a_case_that_breaks_the_process_costs_no_other(
    kernel: Path, monkeypatch: pytest.MonkeyPatch, case: int, left: list[int]
) -> None:
    monkeypatch.setenv("FAKE_WORKER", f"break-{case}")
    result = run_bench(spec(kernel), lambda _: None)
    assert [r.params["tokens"] for r in result.records if r.time_s is not None and r.own] == left
    broken = [r for r in result.records if r.status == "failed"]
    assert len(broken) == 1 and broken[0].params == {"tokens": case + 1}
    assert broken[0].message is not None and "illegal memory access" in broken[0].message
    assert "signal 9" in broken[0].message
    assert result.exit_code == 1


def test_a_case_that_does_not_fit_costs_no_other(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WORKER", "short-0")
    said: list[str] = []
    result = run_bench(spec(kernel), said.append)
    assert [(r.params["tokens"], r.status) for r in result.records if r.own] == [(1, "out_of_memory"), (2, "ok")]
    assert result.exit_code == 0
    words = "48.43 GiB more wanted, 42.11 GiB free, for inputs or reference"
    assert result.records[0].message == words and result.records[0].time_s is None
    assert any("triton OUT OF MEMORY" in line and words in line for line in said)
    table = render(result.manifest, result.records)
    assert f"out of memory: {words}" in " ".join(table.split())
    assert all(len(line) <= 80 for line in table.splitlines())


def test_a_benchmark_without_a_single_time_fails(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WORKER", "short-0 short-1")
    assert run_bench(spec(kernel), lambda _: None).exit_code == 1


def test_a_file_that_breaks_every_process_is_given_up(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WORKER", "break-always")
    other = kernel.parent / "second.py"
    other.write_text(KERNEL)
    result = run_bench(spec(kernel, files=[kernel, other]), lambda _: None)
    assert [r.kernel for r in result.records] == ["made_up"] * 2 + ["second"] * 2
    assert all(r.status == "failed" for r in result.records)


def test_a_wrong_kernel_has_no_time_and_fails_the_benchmark(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WORKER", "wrong")
    result = run_bench(spec(kernel), lambda _: None)
    assert [r.status for r in result.records] == ["wrong", "ok"] * 2
    assert result.records[0].time_s is None
    assert result.exit_code == 1


def test_a_worker_that_says_nothing_is_ended(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WORKER", "silent")
    monkeypatch.setattr(bench, "CASE_TIMEOUT_S", 1.0)
    result = run_bench(spec(kernel), lambda _: None)
    assert result.exit_code == 1 and not result.records
    assert any("broke" in note for note in result.manifest.notes)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("no-torch", r"loadgen\[kernels\]"),
        ("no-gpu", "no GPU"),
        ("dies", f"No module named 'msgspec'.*{FAKE.name} -m pip install msgspec"),
    ],
)
def test_machines_that_cannot_measure(kernel: Path, monkeypatch: pytest.MonkeyPatch, asked: str, words: str) -> None:
    monkeypatch.setenv("FAKE_WORKER", asked)
    with pytest.raises(UsageError, match=words):
        run_bench(spec(kernel), lambda _: None)
    assert not (kernel.parent / "out").exists()  # nothing is left of a benchmark that could not begin


def test_a_python_that_is_none(kernel: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        run_bench(spec(kernel, python="/no/such/python"), lambda _: None)


def test_another_python_finds_loadgen_and_nothing_beside_it(kernel: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nls "${{PYTHONPATH%%:*}}" > {tmp_path}/found\nexec {FAKE}\n')
    python.chmod(0o755)
    run_bench(spec(kernel, python=str(python)), lambda _: None)
    assert (tmp_path / "found").read_text().split() == ["loadgen"]


def test_peaks_that_cannot_be_measured(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_WORKER", "no-peaks")
    with pytest.raises(LoadgenError, match="rates could not be measured"):
        run_bench(spec(kernel), lambda _: None)


def test_stopping_keeps_what_was_measured(kernel: Path) -> None:
    said: list[str] = []
    result = run_bench(spec(kernel, stopped=lambda: len(said) > 1), said.append)
    assert len(result.records) == 2
    assert read_lines(kernel.parent / "out" / "kernels.jsonl", KernelRecord) == result.records


def test_checks_count_what_is_wrong(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    assert run_checks(spec(kernel), said.append) == (2, 0)
    assert any("vllm" in line and "skipped" in line for line in said)
    monkeypatch.setenv("FAKE_WORKER", "wrong no-gpu")
    assert run_checks(spec(kernel), said.append) == (0, 2)


def loadgen(*words: str) -> Result:
    return CliRunner().invoke(app, words, standalone_mode=False)


def test_command_line_prints_the_table_and_report_makes_it_again(kernel: Path) -> None:
    folder = kernel.parent / "run"
    done = loadgen("kernels", "bench", str(kernel), "--python", str(FAKE), "--output", str(folder))
    assert done.return_value == 0
    assert "triton" in done.stdout and "1.50x eager" in done.stdout and "made_up" in done.stdout
    again = loadgen("report", str(folder))
    assert again.return_value == 0
    assert "1.50x eager" in again.stdout
    lines = loadgen("report", str(folder), "--json").stdout.splitlines()
    assert len([msgspec.json.decode(line, type=KernelRecord) for line in lines]) == 4


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--state", "warm"], "cold, serving and hot"),
        (["--model", "nosuch"], "nosuch"),
        (["--model", "qwen1.5-4b", "--concurrency", "0"], "1 or above"),
        (["--model", "qwen1.5-4b", "--context", "x"], "takes numbers"),
        (["--from", "/no/such/run"], "no such run folder"),
        (["--from", str(FAKE), "--context", "5"], "exclude each other"),
        (["/no/such/kernel.py"], "no kernel of that name"),
    ],
)
def test_bad_command_lines(words: list[str], error: str) -> None:
    done = loadgen("kernels", "bench", *words, "--python", str(FAKE))
    assert isinstance(done.exception, UsageError | typer.BadParameter)
    assert error in str(done.exception)


def test_report_refuses_a_second_folder_that_is_no_benchmark(tmp_path: Path) -> None:
    done = loadgen("report", str(tmp_path), str(tmp_path))
    assert isinstance(done.exception, UsageError) and "a run folder of loadgen?" in str(done.exception)


def test_sweep_with_kernels_needs_an_engine_of_its_own() -> None:
    for words in (["--kernels"], ["--kernels", "--url", "http://127.0.0.1:1"], ["--kernels", "--engine", "sim"]):
        done = loadgen("sweep", "--concurrency", "1", *words)
        assert isinstance(done.exception, UsageError) and "kernels bench --from RUN" in str(done.exception)
