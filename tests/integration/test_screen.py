"""A real sweep on a pseudo-terminal of 80 x 24, as tmux, screen and a dumb terminal call themselves."""

from __future__ import annotations

import os
import pty
import re
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

import pytest

from loadgen.engines.launch import RunningSim

ROOT = Path(__file__).resolve().parents[2]


def on_a_terminal(words: list[str], term: str) -> tuple[int, str]:
    """Exit code, and everything that the terminal was sent."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": term, "NO_COLOR": "1"}
    command = [sys.executable, "-m", "loadgen", *words]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True)
    os.close(theirs)
    found = b""
    try:
        while piece := os.read(ours, 65536):
            found += piece
    except OSError:
        pass  # the other end is closed
    os.close(ours)
    return process.wait(30), found.decode()


@pytest.mark.parametrize("term", ["screen", "xterm-256color", "dumb"])
def test_a_sweep_on_a_terminal(sim: RunningSim, tmp_path: Path, term: str) -> None:
    words = ["sweep", "--url", sim.url, "--concurrency", "2,4", "--requests", "60", "--output-tokens", "20"]
    code, text = on_a_terminal([*words, "--output", str(tmp_path / "run")], term)
    assert code in (0, 1) and "Traceback" not in text
    codes = set(re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b.", text))
    assert codes <= {"\x1b[A", "\x1b[J"}
    if term == "dumb":
        assert not codes and "2 in flight: started (level 1 of 2)" in text
    else:
        assert "level 2 of 2: 4 in flight, " in text and "own stamps" in text
        drawn = [line.rpartition("\x1b[J")[2] for line in text.replace("\r", "").split("\n")]
        assert all(len(line) <= 80 for line in drawn if not line.startswith(("Run folder", "Report")))
    assert re.search(r"SIMULATED: .*[.]\r?\n\r?\nReport: ", text, re.DOTALL)
    samples = (tmp_path / "run" / "client.jsonl").read_text()
    assert re.search(r'"tpot_count":[1-9]', samples)
