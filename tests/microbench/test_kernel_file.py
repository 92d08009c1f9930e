"""Kernel files as text: found by path, told by name, refused with a place. No torch."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from loadgen.cli.kernels import parse_params
from loadgen.cli.main import app
from loadgen.errors import UsageError
from loadgen.microbench.kernel_file import describe, find

GOOD = '''"""Adds two vectors.

More.
"""
OUTPUTS = ("out",)
CASES = []
IMPLEMENTATIONS = {"triton": None, "cuda": None}
BASELINES: dict = {"eager": None}
def inputs(make): ...
def reference(out): ...
def traffic(): ...
'''


def test_a_file_is_described_without_being_imported(tmp_path: Path) -> None:
    path = tmp_path / "add.py"
    path.write_text(GOOD + "raise SystemExit('imported')\n")
    found = describe(path)
    assert (found.name, found.title) == ("add", "Adds two vectors")
    assert found.implementations == ["triton", "cuda"] and found.baselines == ["eager"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = (\n", r"bad\.py:1: is no Python"),
        ("import os\n", "no OUTPUTS, inputs, reference, traffic, IMPLEMENTATIONS, cases"),
        (GOOD.replace("def reference(out): ...\n", ""), "it has no reference"),
        (GOOD.replace("CASES = []\n", ""), r"it has no cases \(or CASES\)"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        describe(path)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"bad\.py"):
        describe(path)


def test_files_by_path_folder_and_name(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "c.cu"):
        (tmp_path / name).write_text("")
    assert find([str(tmp_path)]) == [tmp_path / "a.py", tmp_path / "b.py"]
    assert find([str(tmp_path / "a.py"), str(tmp_path)]) == [tmp_path / "a.py", tmp_path / "b.py"]
    shipped = find([])
    assert find(["add_rms_norm"])[0] in shipped
    with pytest.raises(UsageError, match=r"ends in \.py"):
        find([str(tmp_path / "c.cu")])
    with pytest.raises(UsageError, match="add_rms_norm"):
        find(["nosuch"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no kernel file"):
        find([str(tmp_path / "empty")])


def test_every_kernel_that_comes_along_can_be_described() -> None:
    paths = find([])
    assert paths
    for path in paths:
        found = describe(path)
        assert found.implementations, path
        assert 10 < len(found.title) <= 110, path


def test_list_needs_no_torch() -> None:
    done = CliRunner().invoke(app, ["kernels", "list", "add_rms_norm"], standalone_mode=False)
    assert done.return_value == 0
    assert "add_rms_norm: Fused residual add" in done.stdout and "own triton, cuda; against eager" in done.stdout


def test_a_case_is_given_as_it_is_shown() -> None:
    assert parse_params(("tokens=64 hidden=2560", "dtype=bfloat16", "scale=0.5,flag=true")) == {
        "tokens": 64, "hidden": 2560, "dtype": "bfloat16", "scale": 0.5, "flag": True,
    }  # fmt: skip
    with pytest.raises(UsageError, match="name=value"):
        parse_params(("tokens",))
