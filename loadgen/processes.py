"""Ctrl-C, the environment of child processes, and child processes that talk in lines."""

from __future__ import annotations

import atexit
import functools
import os
import re
import select
import shutil
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

PACKAGE = Path(__file__).resolve().parent


class Interrupts:
    """Counts Ctrl-C. The first asks for a clean end; the second ends now, after everything in ``kills`` was called."""

    def __init__(self) -> None:
        self.count = 0
        self.kills: list[Callable[[], None]] = []

    def _take(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count >= 2:
            for kill in self.kills:
                kill()
            os._exit(130)

    @contextmanager
    def watching(self) -> Iterator[Interrupts]:
        """Handles SIGINT and SIGTERM while the context lasts."""
        before = {s: signal.signal(s, self._take) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)


def clean_environ() -> dict[str, str]:
    """This process's environment, made safe for a program of another Python environment.

    Entries of PYTHONPATH are made absolute, and Python is told not to put the working folder on its
    path: a folder named ``datasets`` or ``kernels`` there would hide a package that engines import.
    """
    environ = _safe_environ()
    for name in ("PYTHONHOME", "__PYVENV_LAUNCHER__"):  # they belong to this Python
        environ.pop(name, None)
    return environ


def child_environ(python: str | None = None) -> dict[str, str]:
    """The environment of a child process that runs one of loadgen's modules, from this very loadgen.

    Another Python finds loadgen through a folder that contains nothing else. The folder above the
    package will not do: if that is site-packages, all packages of this environment would hide the
    other's own, and in a checkout ``datasets`` and ``kernels`` would look like packages.

    Args:
        python: the other Python; None for the one that runs loadgen.
    """
    environ = _safe_environ() if python is None else clean_environ()
    if python is not None:
        folder = _folder_of_loadgen_alone()
    elif PACKAGE.parent.name not in ("site-packages", "dist-packages"):
        folder = str(PACKAGE.parent)
    else:
        return environ  # installed; ahead of the standard library, site-packages could hide parts of it
    others = environ.get("PYTHONPATH")
    environ["PYTHONPATH"] = f"{folder}{os.pathsep}{others}" if others else folder
    return environ


def how_to_install(python: str, words: str) -> str:
    """What to do about the package that a child's last words say its Python lacks; "" when they say something else."""
    missing = re.search(r"No module named '(\w+)", words)
    return f"; install it there with {python} -m pip install {missing[1]}" if missing else ""


def _safe_environ() -> dict[str, str]:
    environ = dict(os.environ)
    entries = [str(Path(entry).absolute()) for entry in environ.pop("PYTHONPATH", "").split(os.pathsep) if entry]
    if entries:
        environ["PYTHONPATH"] = os.pathsep.join(entries)
    environ["PYTHONSAFEPATH"] = "1"
    return environ


@functools.cache
def _folder_of_loadgen_alone() -> str:
    """A folder that contains a link to this loadgen; removed when this process exits."""
    folder = tempfile.mkdtemp(prefix="loadgen-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Path(folder, "loadgen").symlink_to(PACKAGE, target_is_directory=True)
    return folder


class LineProcess:
    """A child process that is sent lines on its standard input and answers with lines on its standard output.

    Attributes:
        process: for its pid, and to kill it.
        fd: its standard output, for a selector; non-blocking.
        ended: whether its output has ended, as it does when the process dies.

    Args:
        argv: the command.
        environ: its whole environment.
        pass_fds: file descriptors that it inherits.
        own_session: keeps a Ctrl-C in the terminal from it.
        keep_stderr: writes its standard error to a temporary file, for :meth:`last_line`; otherwise it is
            loadgen's own. Not a pipe: nobody reads it meanwhile, and a full pipe would stop the process.

    Raises:
        OSError: it could not be started.
    """

    def __init__(
        self,
        argv: list[str],
        environ: dict[str, str],
        *,
        pass_fds: tuple[int, ...] = (),
        own_session: bool = True,
        keep_stderr: bool = True,
    ) -> None:
        self._stderr = tempfile.TemporaryFile() if keep_stderr else None  # noqa: SIM115  (closed in close)
        try:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                pass_fds=pass_fds,
                start_new_session=own_session,
                env=environ,
            )
        except OSError:
            if self._stderr is not None:
                self._stderr.close()
            raise
        assert self.process.stdin is not None and self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        self.fd = self._stdout.fileno()
        os.set_blocking(self.fd, False)
        self.ended = False
        self._part = b""  # of a line that has not come whole
        self._lines: deque[bytes] = deque()

    def send(self, line: bytes) -> None:
        """Sends a line. That the process has died is told by reading from it, not here."""
        try:
            self._stdin.write(line + b"\n")
            self._stdin.flush()
        except OSError:
            pass

    def read(self) -> list[bytes]:
        """The lines that have come; does not wait."""
        self._take()
        lines = list(self._lines)
        self._lines.clear()
        return lines

    def read_line(self, timeout_s: float) -> bytes | None:
        """The next line; None when none came within that many seconds, or none will come (:attr:`ended`)."""
        deadline = time.monotonic() + timeout_s
        while not self._lines and not self.ended:
            if not select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            self._take()
        return self._lines.popleft() if self._lines else None

    def _take(self) -> None:
        if self.ended:
            return
        try:
            data = os.read(self.fd, 1 << 20)
        except BlockingIOError:
            return
        self.ended = not data
        *lines, self._part = (self._part + data).split(b"\n")
        self._lines += lines

    def last_line(self) -> str:
        """The last line of its standard error with anything in it; "" when there is none or it is not kept."""
        if self._stderr is None:
            return ""
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code, negative for a signal; None when it still lives after that many seconds."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def end_input(self) -> None:
        """Closes its standard input, which asks it to leave."""
        try:
            self._stdin.close()
        except OSError:
            pass  # it has died with something unsent in the pipe

    def close(self, timeout_s: float = 5.0) -> None:
        """Asks it to leave, and kills it when it has not left after that many seconds."""
        self.end_input()
        if self.wait(timeout_s) is None:
            self.process.kill()
            self.process.wait()
        self.ended = True
        self._stdout.close()
        if self._stderr is not None:
            self._stderr.close()
