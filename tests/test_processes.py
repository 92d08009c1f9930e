"""The environment of child processes, with real Pythons: what they can import, and what they must not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from loadgen.processes import PACKAGE, child_environ, clean_environ

# What a child can import, told as JSON. Names of modules come as arguments.
PROBE = """
import importlib.util, json, os, sys
import loadgen
places = {}
for name in sys.argv[1:]:
    spec = importlib.util.find_spec(name)
    places[name] = spec and (spec.origin or list(spec.submodule_search_locations))
file = loadgen.__file__
print(json.dumps({"path": sys.path, "as": file, "loadgen": os.path.realpath(file), "places": places}))
"""
# Runs in the Python that has loadgen: starts the other one, as loadgen does.
STARTER = """
import subprocess, sys
from loadgen.processes import child_environ
python = sys.argv[1]
other = None if python == sys.executable else python
sys.exit(subprocess.run([python, *sys.argv[2:]], env=child_environ(other)).returncode)
"""


class Place:
    """A virtual environment without pip."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False)
        self.python = str(folder / "bin" / "python")
        (self.packages,) = folder.glob("lib/python*/site-packages")

    def add(self, name: str) -> Path:
        path = self.packages / f"{name}.py"
        path.write_text("")
        return path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """An environment that has loadgen in its site-packages, where pip puts it."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    place = Place(tmp_path.resolve() / "installed")
    shutil.copytree(PACKAGE, place.packages / "loadgen", ignore=shutil.ignore_patterns("__pycache__"))
    return place


def probe(starter: str, python: str, *names: str) -> dict[str, Any]:
    """What a child in ``python`` can import, started by the loadgen of ``starter`` and not by this checkout's."""
    argv = [starter, "-I", "-c", STARTER, python, "-c", PROBE, *names]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_an_installed_loadgen_gives_another_python_itself_and_none_of_its_neighbours(
    installed: Place, tmp_path: Path
) -> None:
    other = Place(tmp_path / "other")
    installed.add("neighbour")
    installed.add("shared")
    own = other.add("shared")
    told = probe(installed.python, other.python, "neighbour", "shared")
    assert Path(told["loadgen"]) == installed.packages / "loadgen" / "__init__.py"
    assert told["places"] == {"neighbour": None, "shared": str(own)}
    assert not [folder for folder in told["path"] if folder.startswith(str(tmp_path / "installed"))]


def test_an_installed_loadgen_wins_over_one_that_the_other_python_has(installed: Place, tmp_path: Path) -> None:
    other = Place(tmp_path / "other")
    (other.packages / "loadgen").mkdir()
    (other.packages / "loadgen" / "__init__.py").touch()
    told = probe(installed.python, other.python)
    assert Path(told["loadgen"]) == installed.packages / "loadgen" / "__init__.py"


def test_nothing_is_left_of_the_folder_that_another_python_imports_from(installed: Place, tmp_path: Path) -> None:
    told = probe(installed.python, Place(tmp_path / "other").python)
    assert not Path(told["as"]).parents[1].exists()
    assert (installed.packages / "loadgen" / "__init__.py").exists()


def test_an_installed_loadgen_does_not_put_its_neighbours_ahead_of_the_standard_library(installed: Place) -> None:
    installed.add("colorsys")
    told = probe(installed.python, installed.python, "colorsys")
    assert Path(told["loadgen"]) == installed.packages / "loadgen" / "__init__.py"
    assert not told["places"]["colorsys"].startswith(str(installed.packages))


def test_a_checkout_gives_another_python_nothing_but_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert (PACKAGE.parent / "datasets").is_dir() and (PACKAGE.parent / "kernels").is_dir()
    other = Place(tmp_path / "other")
    environ = child_environ(other.python)
    done = subprocess.run(
        [other.python, "-c", PROBE, "datasets", "kernels", "tests"], env=environ, capture_output=True, check=True
    )
    told = json.loads(done.stdout)
    assert Path(told["loadgen"]) == PACKAGE / "__init__.py"
    assert told["places"] == {"datasets": None, "kernels": None, "tests": None}


def test_a_child_of_our_own_python_imports_this_loadgen_and_not_one_in_the_working_folder(tmp_path: Path) -> None:
    (tmp_path / "loadgen").mkdir()
    (tmp_path / "loadgen" / "__init__.py").touch()
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=child_environ(), cwd=tmp_path, capture_output=True, check=True
    )
    assert Path(json.loads(done.stdout)["loadgen"]) == PACKAGE / "__init__.py"


def test_a_child_of_our_own_python_keeps_pythonhome_and_another_does_not_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/usr")
    monkeypatch.setenv("PYTHONPATH", "/opt/lib")
    assert child_environ()["PYTHONHOME"] == "/usr"
    other = child_environ("/usr/bin/python3")
    assert "PYTHONHOME" not in other
    folder, inherited = other["PYTHONPATH"].split(os.pathsep)
    assert [path.name for path in Path(folder).iterdir()] == ["loadgen"] and inherited == "/opt/lib"


def test_a_process_of_another_environment_gets_ours_made_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "src", "/opt/lib", "", "."]))
    monkeypatch.setenv("PYTHONHOME", "/usr")
    monkeypatch.setenv("__PYVENV_LAUNCHER__", "/x")
    monkeypatch.setenv("KEPT", "as it is")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    before = dict(os.environ)
    environ = clean_environ()
    changed = {name: environ.get(name) for name in {*environ, *before} if environ.get(name) != before.get(name)}
    assert changed == {
        "PYTHONHOME": None,
        "__PYVENV_LAUNCHER__": None,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "src"), "/opt/lib", str(tmp_path)]),
        "PYTHONSAFEPATH": "1",
    }
    assert environ["KEPT"] == "as it is"
    assert dict(os.environ) == before


@pytest.mark.parametrize("value", [None, "", os.pathsep])
def test_an_empty_pythonpath_is_none(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if value is not None:
        monkeypatch.setenv("PYTHONPATH", value)
    assert "PYTHONPATH" not in clean_environ()
