"""Runs one engine and sees to it that nothing of it is left behind, however loadgen ends.

A process of its own between loadgen and the engine, started as a script; standard library only,
so that it starts in a few milliseconds:

    python -I -S guard.py '{"argv": [...], "cwd": "...", "log": "...", "stop_s": 30}'

It is a child subreaper (prctl(2)): what the engine's processes leave behind becomes its own child,
also what has made itself a session of its own. When its standard input ends, which it does however
loadgen ends, or a line comes, the engine gets SIGTERM, and after ``stop_s`` seconds SIGKILL. What
it leaves behind gets SIGTERM too, and ``LEFTOVER_S`` seconds to end by itself, since Python's
resource tracker, for one, frees shared memory then; after that it is killed. Should the guard
itself be killed, the kernel kills the engine (PR_SET_PDEATHSIG).

The engine's output goes through the guard into the log, of which at most ``MAX_LOG_BYTES`` are
kept: the first part and the last.

It writes JSON lines to standard output: ``{"pid": N}`` first, ``{"exit": CODE}`` when the engine
itself has ended, ``{"exit": CODE, "stopped": BOOL, "killed": N}`` last, when nothing of it is left;
``{"error": TEXT}`` when the engine could not be started.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
MAX_LOG_BYTES = 64 * 2**20
KEPT_TAIL_BYTES = 2**20
SETTLE_S = 0.05
LEFTOVER_S = 2.0

libc = ctypes.CDLL(None, use_errno=True)


class Log:
    """A log file of bounded size: the first part as it comes, and the last part when it ends."""

    def __init__(self, path: str, limit: int = MAX_LOG_BYTES, tail: int = KEPT_TAIL_BYTES) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._room = limit - tail
        self._tail_bytes = tail
        self._tail: deque[bytes] = deque()
        self._held = 0
        self._left_out = 0

    def write(self, data: bytes) -> None:
        if self._room > 0:
            self._put(data[: self._room])
            self._room, data = self._room - len(data), data[self._room :]
        if data:
            self._tail.append(data)
            self._held += len(data)
            while self._held - len(self._tail[0]) >= self._tail_bytes:
                gone = len(self._tail.popleft())
                self._held -= gone
                self._left_out += gone

    def close(self) -> None:
        if self._left_out:
            self._put(b"\n[loadgen: %d bytes left out]\n" % self._left_out)
        for data in self._tail:
            self._put(data)
        os.close(self._fd)

    def _put(self, data: bytes) -> None:
        with suppress(OSError):  # a full disk must not end the engine
            while data:
                data = data[os.write(self._fd, data) :]


def descendants() -> list[int]:
    """Every living process that descends from this one."""
    parent_of: dict[int, int] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208  (pathlib takes longer to import)
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                fields = file.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields and fields[0] != b"Z":
            parent_of[int(name)] = int(fields[1])
    found: list[int] = []
    wave = {os.getpid()}
    while wave:
        wave = {pid for pid, parent in parent_of.items() if parent in wave}
        found += wave
    return found


def reap() -> tuple[dict[int, int], bool]:
    """Exit codes of the children that have ended, as subprocess gives them; whether any child is left."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended, False
        if pid == 0:
            return ended, True
        ended[pid] = os.waitstatus_to_exitcode(status)


def tell(message: dict[str, Any]) -> None:
    with suppress(OSError):  # loadgen may be gone
        os.write(1, json.dumps(message).encode() + b"\n")


def send(pid: int, signum: int) -> None:
    with suppress(OSError):
        os.kill(pid, signum)


def _die_with_guard() -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class Guard:
    """The engine, its output, and its end."""

    def __init__(self, argv: list[str], cwd: str, log: str, stop_s: float, cores: list[int] | None = None) -> None:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if cores:
            os.sched_setaffinity(0, cores)
        self._stop_s = stop_s
        self._log = Log(log)
        self._stop_asked = False
        self._wake, wake_in = os.pipe()
        os.set_blocking(wake_in, False)
        os.set_blocking(self._wake, False)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._output, theirs = os.pipe()
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=_die_with_guard,
        )
        os.close(theirs)
        # Only now: what is ignored here would be ignored in the engine too.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._ask_to_stop)
        signal.signal(signal.SIGHUP, self._ask_to_stop)
        process.returncode = 0  # reaped by reap(), not by subprocess
        self._pid = process.pid

    def _ask_to_stop(self, *_: object) -> None:
        self._stop_asked = True

    def run(self) -> None:
        tell({"pid": self._pid})
        exit_code: int | None = None
        terminated_s: float | None = None
        ended_s: float | None = None
        killed: set[int] = set()
        watched = [0, self._wake, self._output]
        while True:
            ended, anyone = reap()
            if self._pid in ended:
                exit_code = ended[self._pid]
                tell({"exit": exit_code})
            now = time.monotonic()
            if self._stop_asked and terminated_s is None:
                terminated_s = now
                with suppress(OSError):
                    os.killpg(self._pid, signal.SIGTERM)
            left = descendants() if exit_code is not None or terminated_s is not None else [self._pid]
            # A scan of /proc can miss a process; that no child is left is certain.
            if not anyone and exit_code is not None:
                break
            overdue = terminated_s is not None and now - terminated_s > self._stop_s
            # Once the engine itself has ended, what is left of it has no one to serve.
            if exit_code is not None and ended_s is None:
                ended_s = now
                for pid in left:
                    send(pid, signal.SIGTERM)
            if overdue or (ended_s is not None and now - ended_s > LEFTOVER_S):
                for pid in left:
                    send(pid, signal.SIGKILL)
                    killed.add(pid)
            wait = 1.0 if terminated_s is None and exit_code is None else SETTLE_S
            for fd in select.select(watched, [], [], wait)[0]:
                data = os.read(fd, 1 << 16)
                if fd == self._output:
                    self._log.write(data)
                    if not data:
                        watched.remove(fd)
                elif fd == 0:
                    watched.remove(fd)
                    self._stop_asked = True
        self._drain()
        self._log.close()
        tell({"exit": exit_code, "stopped": terminated_s is not None, "killed": len(killed)})

    def _drain(self) -> None:
        """What the engine wrote just before it ended."""
        os.set_blocking(self._output, False)
        with suppress(BlockingIOError):
            while data := os.read(self._output, 1 << 16):
                self._log.write(data)


def main() -> None:
    try:
        guard = Guard(**json.loads(sys.argv[1]))
    except OSError as error:
        tell({"error": f"{error.filename or ''}: {error.strerror}".removeprefix(": ")})
        return
    guard.run()


if __name__ == "__main__":
    main()
