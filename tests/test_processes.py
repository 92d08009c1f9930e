"""Child processes, all of them real: what they can import, what they must not, and the lines that they answer with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loadgen.processes import PACKAGE, LineProcess, child_environ, clean_environ

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


# --- lines


@contextmanager
def child(code: str, **options: Any) -> Iterator[LineProcess]:
    process = LineProcess([sys.executable, "-c", code], dict(os.environ), **options)
    try:
        yield process
    finally:
        process.close(0)


def test_lines_come_whole_however_they_are_written() -> None:
    code = """
import sys, time
for piece in ("on", "e\\ntwo\\nth", "ree\\nfour"):
    sys.stdout.write(piece)
    sys.stdout.flush()
    time.sleep(0.05)
"""
    with child(code) as process:
        assert [process.read_line(5) for _ in range(3)] == [b"one", b"two", b"three"]
        assert process.read_line(5) is None and process.ended  # the fourth was cut off by its end


def test_what_is_sent_comes_back() -> None:
    with child("import sys\nfor line in sys.stdin: print(line.upper(), end='', flush=True)") as process:
        process.send(b"a")
        process.send(b"b")
        assert [process.read_line(5), process.read_line(5)] == [b"A", b"B"]
        process.end_input()
        assert process.read_line(5) is None and process.ended
        assert process.wait(5) == 0


def test_reading_does_not_wait_and_waiting_has_an_end() -> None:
    with child("import sys; sys.stdin.read()") as process:
        started = time.monotonic()
        assert process.read() == []
        assert process.read_line(0.05) is None
        assert not process.ended
        assert 0.05 <= time.monotonic() - started < 2
        assert process.wait(0) is None


def test_a_child_that_has_died_is_told_by_reading() -> None:
    with child("import sys; print('whole'); sys.exit('no space\\n left \\n\\n')") as process:
        assert process.wait(5) == 1
        process.send(b"x" * 1_000_000)  # more than the pipe holds
        assert process.read() == [b"whole"]
        assert process.read() == [] and process.ended
        assert process.last_line() == "left"


def test_standard_error_can_be_loadgens_own(capfd: pytest.CaptureFixture[str]) -> None:
    with child("import sys; sys.exit('in the open')", keep_stderr=False) as process:
        assert process.wait(5) == 1
        assert process.last_line() == ""
    assert capfd.readouterr().err == "in the open\n"


def test_a_child_that_will_not_leave_is_killed() -> None:
    with child("print(flush=True)\nwhile True:\n    import time; time.sleep(60)") as process:
        assert process.read_line(5) == b""
        process.close(0.05)
        assert process.process.returncode == -signal.SIGKILL
        assert process.read() == [] and process.read_line(5) is None
        process.close()  # again: nothing happens


@pytest.mark.parametrize("own", [True, False])
def test_a_session_of_its_own_keeps_ctrl_c_from_it(own: bool) -> None:
    with child("import os; print(os.getsid(0) == os.getpid())", own_session=own) as process:
        assert process.read_line(5) == str(own).encode()


def test_a_program_that_is_not_there_cannot_be_started() -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with pytest.raises(FileNotFoundError):
        LineProcess(["/nowhere/python"], {})
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
