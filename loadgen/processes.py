"""Ctrl-C, and the processes that loadgen starts."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import tempfile
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
