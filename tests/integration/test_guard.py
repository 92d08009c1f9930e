"""The guard: whatever an engine does and however loadgen ends, nothing of it is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from servers import gone, wait_for

from loadgen.engines.guard import MAX_LOG_BYTES
from loadgen.engines.guarded import GUARD, GuardedProcess
from loadgen.errors import EngineError

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20

# An engine with all the children that are hard to be rid of; each appends its pid to the file `pids`.
FAMILY = """
import os, signal, sys, time

def note():
    with open("pids", "a") as file:
        file.write(f"{os.getpid()}\\n")

def child(session=False, deaf=False, below=lambda: None):
    if os.fork() == 0:
        if session:
            os.setsid()
        if deaf:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        below()
        note()
        while True:
            time.sleep(60)

def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            note()
            while True:
                time.sleep(60)
        os._exit(0)
    os.wait()

note()
child(below=lambda: child(deaf=True))
child(session=True, deaf=True)
daemon()
while len(open("pids").read().split()) < 5:
    time.sleep(0.01)
"""
WAIT = "while True: time.sleep(60)\n"


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def family_of(folder: Path) -> list[int]:
    """The five pids of FAMILY, when all are there."""
    path = folder / "pids"
    wait_for(lambda: path.exists() and path.read_text().count("\n") == 5)
    return [int(line) for line in path.read_text().split()]


def log_of(folder: Path) -> str:
    return (folder / "engine.log").read_text()


def says(folder: Path, text: str) -> None:
    """Waits until the engine has written that."""
    wait_for(lambda: (folder / "engine.log").exists() and text in log_of(folder))


@contextmanager
def guard(folder: Path, argv: list[str], stop_s: float = PATIENCE_S, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The guard as a process; it is ended with its engine when the context ends."""
    order = {"argv": argv, "cwd": str(folder), "log": str(folder / "engine.log"), "stop_s": stop_s}
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", *options, str(GUARD), json.dumps(order)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.communicate(timeout=PATIENCE_S + stop_s)


def end_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What the guard says last, after its first line; its input stays open meanwhile."""
    assert process.stdout is not None
    first, ended, last = (json.loads(line) for line in process.stdout)
    assert ended == {"exit": last["exit"]}, "its end is told at once, and again when nothing is left"
    assert set(first) == {"pid"}
    ending: dict[str, Any] = last
    return ending


def close_input(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.stdin = None  # or communicate would flush it


@contextmanager
def guarded(folder: Path, argv: list[str], stop_s: float = PATIENCE_S, **more: Any) -> Iterator[GuardedProcess]:
    process = GuardedProcess(argv, dict(os.environ), folder, folder / "engine.log", stop_s, **more)
    try:
        yield process
    finally:
        process.stop()


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("", 0), ("sys.exit(7)", 7), ("os.kill(os.getpid(), 9)", -9), ("os.abort()", -6)],
)
def test_the_output_is_in_the_log_and_the_exit_code_is_told(tmp_path: Path, code: str, exit_code: int) -> None:
    engine = f"import os, sys; print('on stdout', flush=True); print('on stderr', file=sys.stderr, flush=True); {code}"
    with guard(tmp_path, python(engine)) as process:
        assert end_of(process) == {"exit": exit_code, "stopped": False, "killed": 0}
    assert process.returncode == 0
    assert log_of(tmp_path) == "on stdout\non stderr\n"


def test_the_engine_has_no_input_and_runs_in_its_folder(tmp_path: Path) -> None:
    with guard(tmp_path, python("import os, sys; print(repr(sys.stdin.read()), os.getcwd())")) as process:
        end_of(process)
    assert log_of(tmp_path) == f"'' {tmp_path}\n"


def test_a_second_start_is_appended_to_the_log(tmp_path: Path) -> None:
    for word in ("first", "second"):
        with guard(tmp_path, python(f"print('{word}')")) as process:
            end_of(process)
    assert log_of(tmp_path) == "first\nsecond\n"


ENDINGS: dict[str, Callable[[subprocess.Popen[str]], None]] = {
    "its input is closed": close_input,
    "a line comes": lambda process: print(file=process.stdin, flush=True),
    "SIGTERM": lambda process: process.terminate(),
    "SIGHUP": lambda process: process.send_signal(signal.SIGHUP),
}


@pytest.mark.parametrize("ending", ENDINGS.values(), ids=ENDINGS.keys())
def test_the_engine_is_asked_to_end_and_may_clean_up(
    tmp_path: Path, ending: Callable[[subprocess.Popen[str]], None]
) -> None:
    engine = """
import signal, sys, time
def leave(*_):
    print("cleaned up", flush=True)
    sys.exit(4)
signal.signal(signal.SIGTERM, leave)
print("up", flush=True)
"""
    with guard(tmp_path, python(engine + WAIT)) as process:
        says(tmp_path, "up\n")
        ending(process)
        assert end_of(process) == {"exit": 4, "stopped": True, "killed": 0}
    assert log_of(tmp_path) == "up\ncleaned up\n"


def test_ctrl_c_in_the_terminal_is_not_for_the_guard(tmp_path: Path) -> None:
    engine = "import time\nprint('up', flush=True)\n"
    with guard(tmp_path, python(engine + WAIT)) as process:
        says(tmp_path, "up\n")
        ignored = re.search(r"SigIgn:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
        assert ignored is not None
        assert int(ignored[1], 16) & 1 << signal.SIGINT - 1
        process.send_signal(signal.SIGINT)
        close_input(process)
        assert end_of(process)["stopped"] is True


def test_the_engine_gets_its_signals_as_from_a_shell(tmp_path: Path) -> None:
    engine = "import signal\nprint([s.name for s in signal.Signals if signal.getsignal(s) == signal.SIG_IGN])"
    with guard(tmp_path, python(engine)) as process:
        end_of(process)
    # Those that these tests were started with, under nohup for instance, and those that Python itself ignores.
    plain = subprocess.run([*python(engine)], capture_output=True, text=True, check=True).stdout
    assert "SIGXFSZ" in plain
    assert log_of(tmp_path).strip() == plain.strip()


DEAF = "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\n"


@pytest.mark.parametrize("last", ["", "os.kill(os.getpid(), signal.SIGSTOP)\n"], ids=["deaf", "stopped"])
def test_an_engine_that_does_not_end_is_killed_after_a_while(tmp_path: Path, last: str) -> None:
    with guard(tmp_path, python(DEAF + last + WAIT), 0.5) as process:
        says(tmp_path, "up\n")
        asked = time.monotonic()
        close_input(process)
        assert end_of(process) == {"exit": -9, "stopped": True, "killed": 1}
    assert time.monotonic() - asked >= 0.5, "it was given its time"


def test_nothing_that_the_engine_started_is_left(tmp_path: Path) -> None:
    with guard(tmp_path, python(FAMILY + WAIT)) as process:
        pids = family_of(tmp_path)
        close_input(process)
        ending = end_of(process)
        assert ending["exit"] == -15
        assert ending["killed"] >= 3, "the deaf ones; the fourth may have left when it was asked to"
        assert all(gone(pid) for pid in pids), "at the moment when the guard says so"


def test_the_family_of_an_engine_that_is_deaf_is_killed_with_it(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\n"
    with guard(tmp_path, python(FAMILY + deaf + WAIT), 0.3) as process:
        pids = family_of(tmp_path)
        says(tmp_path, "up\n")
        close_input(process)
        assert end_of(process)["exit"] == -9
        assert all(gone(pid) for pid in pids)


def test_an_engine_that_dies_takes_along_what_it_started(tmp_path: Path) -> None:
    with guard(tmp_path, python(FAMILY + "sys.exit(5)")) as process:
        # One of the four ends by itself when it is asked to; three are deaf.
        assert end_of(process) == {"exit": 5, "stopped": False, "killed": 3}
        assert all(gone(pid) for pid in family_of(tmp_path))


def test_an_engine_may_close_its_output_and_live_on(tmp_path: Path) -> None:
    engine = "import os, time\nos.close(1)\nos.close(2)\nopen('closed', 'w').close()\n"
    with guarded(tmp_path, python(engine + WAIT)) as process:
        wait_for((tmp_path / "closed").exists)
        assert process.exit_code is None
    assert process.ending == {"exit": -15, "stopped": True, "killed": 0}


def test_what_an_orphan_writes_is_in_the_log_too(tmp_path: Path) -> None:
    engine = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    print('orphan', flush=True)\n    "
    with guard(tmp_path, python(engine + WAIT + WAIT)) as process:
        says(tmp_path, "orphan\n")
        close_input(process)
        assert end_of(process)["killed"] == 0, "it is asked to end, and does"


def test_what_the_engine_leaves_behind_may_clean_up(tmp_path: Path) -> None:
    """As Python's resource tracker does: it is deaf to SIGTERM, and ends when its parent has gone."""
    engine = (
        "import os, signal, time\n"
        "if os.fork() == 0:\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    parent = os.getppid()\n"
        "    print('there', flush=True)\n"
        "    while os.getppid() == parent: time.sleep(0.01)\n"
        "    time.sleep(0.3)\n"
        "    open('cleaned', 'w').close()\n"
        "    os._exit(0)\n"
    )
    with guard(tmp_path, python(engine + WAIT)) as process:
        says(tmp_path, "there\n")
        close_input(process)
        assert end_of(process)["killed"] == 0
        assert (tmp_path / "cleaned").exists()


def test_nothing_is_left_when_loadgen_is_killed(tmp_path: Path) -> None:
    parent = f"""
import os, sys, time
from pathlib import Path
from loadgen.engines.guarded import GuardedProcess
process = GuardedProcess({python(FAMILY + WAIT)!r}, dict(os.environ), Path("."), Path("engine.log"), {PATIENCE_S})
print(process._guard.pid, flush=True)
time.sleep({PATIENCE_S})
"""
    loadgen = subprocess.Popen(
        [sys.executable, "-c", parent],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert loadgen.stdout is not None
    with loadgen:
        guard_pid = int(loadgen.stdout.readline())
        pids = [*family_of(tmp_path), guard_pid]
        loadgen.kill()
    wait_for(lambda: all(gone(pid) for pid in pids))


def test_the_engine_ends_when_the_guard_is_killed(tmp_path: Path) -> None:
    with guarded(tmp_path, python(DEAF + WAIT)) as process:
        says(tmp_path, "up\n")
        process._guard.kill()
        wait_for(lambda: gone(process.pid))
        wait_for(lambda: process.exit_code is not None)
        assert process.exit_code == -9


FLOOD = """
import os
line = b"x" * 1023 + b"\\n"
os.write(1, b"the first line\\n")
for _ in range(100):
    data = line * 1024
    while data:
        data = data[os.write(1, data):]
os.write(1, b"the last line\\n")
"""


def test_a_flood_is_bounded_and_does_not_hold_up_the_engine(tmp_path: Path) -> None:
    with guard(tmp_path, python(FLOOD)) as process:
        assert end_of(process) == {"exit": 0, "stopped": False, "killed": 0}
    log = (tmp_path / "engine.log").read_bytes()
    assert log.startswith(b"the first line\nxxx")
    assert log.endswith(b"xxx\nthe last line\n")
    remark = re.search(rb"\n\[loadgen: (\d+) bytes left out\]\n", log)
    assert remark is not None
    written = 100 * 2**20 + len(b"the first line\nthe last line\n")
    assert len(log) - len(remark[0]) + int(remark[1]) == written, "every byte is there, or counted"
    assert len(log) <= MAX_LOG_BYTES + 2**17, "one piece and the remark more than the limit, at most"


def test_a_log_that_is_just_full_is_whole(tmp_path: Path) -> None:
    size = MAX_LOG_BYTES - 2**20 + 5
    with guard(tmp_path, python(f"import sys; sys.stdout.write('y' * {size})")) as process:
        end_of(process)
    assert (tmp_path / "engine.log").stat().st_size == size


def test_an_engine_that_cannot_be_started_is_told_in_words(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.write_text("")
    with pytest.raises(EngineError, match=r"/nowhere/vllm: cannot be started: /nowhere/vllm: No such file"):
        GuardedProcess(["/nowhere/vllm"], dict(os.environ), tmp_path, tmp_path / "engine.log", 1)
    with pytest.raises(EngineError, match=r"locked: cannot be started: .*Permission denied"):
        GuardedProcess([str(locked)], dict(os.environ), tmp_path, tmp_path / "engine.log", 1)
    with pytest.raises(EngineError, match=r"cannot be started: .*missing.*: No such file"):
        GuardedProcess(python(""), dict(os.environ), tmp_path, tmp_path / "missing" / "engine.log", 1)
    with pytest.raises(EngineError, match=r"cannot be started: .*missing.*: No such file"):
        GuardedProcess(python(""), dict(os.environ), tmp_path / "missing", tmp_path / "engine.log", 1)


def test_the_engine_and_its_children_are_pinned(tmp_path: Path) -> None:
    core = max(os.sched_getaffinity(0))
    engine = "import os\nprint(os.sched_getaffinity(0), flush=True)\nos.fork() or print(os.sched_getaffinity(0))\n"
    with guarded(tmp_path, python(engine), cores={core}) as process:
        wait_for(lambda: process.exit_code is not None)
    assert log_of(tmp_path).splitlines()[0] == f"{{{core}}}"
    assert os.sched_getaffinity(0) >= {core}, "loadgen itself is not"


def test_an_ended_process_can_be_stopped_again(tmp_path: Path) -> None:
    with guarded(tmp_path, python("print('done')")) as process:
        wait_for(lambda: process.exit_code == 0)
        process.stop()
    assert process.ending == {"exit": 0, "stopped": False, "killed": 0}


def test_the_guard_imports_nothing_but_the_standard_library(tmp_path: Path) -> None:
    with guard(tmp_path, python(""), PATIENCE_S, "-X", "importtime") as process:
        end_of(process)
        assert process.stderr is not None
        lines = process.stderr.read().splitlines()
    names = {line.rpartition("|")[2].strip().partition(".")[0] for line in lines if line.startswith("import time:")}
    assert "subprocess" in names, "the list is there"
    assert names - set(sys.stdlib_module_names) <= {"imported package"}


def test_loadgen_starts_the_guard_without_site_packages(tmp_path: Path) -> None:
    with guarded(tmp_path, python("import time\n" + WAIT)) as process:
        words = Path(f"/proc/{process._guard.pid}/cmdline").read_bytes().split(b"\0")
        assert words[1:4] == [b"-I", b"-S", str(GUARD).encode()]
