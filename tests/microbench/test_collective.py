"""``kernels all-reduce``: what it says where there are no several GPUs, and what it passes on. No torch."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from loadgen.cli.main import app
from loadgen.errors import LoadgenError, UsageError
from loadgen.microbench.collective import BusTime, bus_bandwidth

ROW = BusTime(implementation="one_shot", ranks=2, tokens=1, hidden=5120, bytes=10240, timer="graph", seconds=[1e-5])
# Stands in for a Python that has torch and GPUs: writes its arguments down, then does as the test says.
PYTHON = """#!/bin/sh
echo "$@" > {folder}/asked
{does}
"""


def loadgen(*words: str) -> Result:
    return CliRunner().invoke(app, ["kernels", "all-reduce", *words], standalone_mode=False)


@pytest.fixture
def python(tmp_path: Path) -> Path:
    return tmp_path / "python"


def script(path: Path, does: str) -> None:
    path.write_text(PYTHON.format(folder=path.parent, does=does))
    path.chmod(0o755)


def without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This Python, with a torch before any other that cannot be imported."""
    (tmp_path / "torch.py").write_text("raise ImportError('none here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def without_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """This Python, with as much of torch as is asked for the number of GPUs."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(f"class cuda:\n    device_count = staticmethod(lambda: {count})\n")
    (tmp_path / "torch" / "multiprocessing.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_help_names_every_option() -> None:
    text = CliRunner().invoke(app, ["kernels", "all-reduce", "--help"]).stdout
    for option in ("--ranks", "--shape", "--one-gpu", "--python"):
        assert option in text
    assert "all-reduce" in CliRunner().invoke(app, ["kernels", "--help"]).stdout


def test_without_torch_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_torch(tmp_path, monkeypatch)
    done = loadgen("--ranks", "2")
    assert isinstance(done.exception, UsageError)
    assert str(done.exception).startswith(f"{sys.executable} has no torch: pip install 'loadgen[kernels]'")


@pytest.mark.parametrize(
    ("gpus", "words", "error"),
    [
        (0, [], "takes two ranks or more, not 0, one on each GPU; there are 0 GPUs"),
        (1, [], "takes two ranks or more, not 1, one on each GPU; there are 1 GPUs"),
        (1, ["--ranks", "2"], "over 2 ranks needs 2 GPUs, and there are 1; --one-gpu checks the kernels"),
        (0, ["--one-gpu"], "there is no GPU"),
    ],
)
def test_too_few_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, words: list[str], error: str) -> None:
    without_gpus(tmp_path, monkeypatch, gpus)
    done = loadgen(*words)
    assert isinstance(done.exception, UsageError) and error in str(done.exception)


def test_shapes_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_torch(tmp_path, monkeypatch)  # a shape is looked at before torch
    for shape, words in (("256", "takes tokens x hidden"), ("65536x65536", "fewer than 2^31")):
        done = loadgen("--shape", shape)
        assert isinstance(done.exception, UsageError) and words in str(done.exception)


@pytest.mark.parametrize("code", [0, 1])
def test_results_are_passed_on_with_the_exit_code(python: Path, code: int) -> None:
    line = msgspec.json.encode(ROW).decode()
    script(python, f"echo 'NCCL version 2' ; echo '{line}'; exit {code}")
    done = loadgen("--ranks", "2", "--shape", "1x5120", "--shape", "8x5120", "--python", str(python))
    assert done.return_value == code
    assert [msgspec.json.decode(row, type=BusTime) for row in done.stdout.splitlines()] == [ROW]
    asked = (python.parent / "asked").read_text().split()
    assert asked[:2] == ["-m", "loadgen.microbench.collective"]
    assert asked[2:] == ["--shape", "1x5120", "--shape", "8x5120", "--ranks", "2"]


def test_another_python_finds_loadgen_and_nothing_beside_it(python: Path) -> None:
    line = msgspec.json.encode(ROW).decode()
    script(python, f"ls \"${{PYTHONPATH%%:*}}\" > {python.parent}/found; echo '{line}'")
    assert loadgen("--python", str(python)).return_value == 0
    assert (python.parent / "found").read_text().split() == ["loadgen"]


def test_what_a_rank_says_when_it_fails(python: Path) -> None:
    script(python, "echo 'Error: a rank of the all-reduce failed: no room' >&2; exit 1")
    done = loadgen("--python", str(python))
    assert type(done.exception) is LoadgenError
    assert str(done.exception) == "a rank of the all-reduce failed: no room"
    script(python, "echo \"ModuleNotFoundError: No module named 'msgspec'\" >&2; exit 1")
    done = loadgen("--python", str(python))
    assert isinstance(done.exception, UsageError) and "No module named 'msgspec'" in str(done.exception)
    assert str(done.exception).endswith(f"; install it there with {python} -m pip install msgspec")


def test_a_python_that_is_none() -> None:
    done = loadgen("--python", "/no/such/python")
    assert isinstance(done.exception, UsageError) and "No such file" in str(done.exception)


def test_bus_bandwidth_is_what_each_ranks_links_carry() -> None:
    assert bus_bandwidth(2, 1000, 1e-6) == pytest.approx(1e9)
    assert bus_bandwidth(8, 1000, 1e-6) == pytest.approx(1.75e9)
