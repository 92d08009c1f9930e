"""Starting and stopping an engine that loadgen launches."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from loadgen.engines.sim import SimConfig
from loadgen.errors import EngineError

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0


class Launched(msgspec.Struct, frozen=True, kw_only=True):
    """A running engine: where it answers, and the command that started it."""

    url: str
    argv: list[str]
    pid: int


@contextmanager
def launch_sim(config: SimConfig, log: Path | None = None, cores: set[int] | None = None) -> Iterator[Launched]:
    """Runs the embedded engine in a process of its own while the context lasts.

    The engine serves until its standard input ends, so it cannot outlive loadgen, however that
    ends.

    Args:
        config: how it behaves.
        log: a file for what it prints.
        cores: pins it to these cores.

    Raises:
        EngineError: it did not start.
    """
    argv = [sys.executable, "-m", "loadgen.engines.sim", msgspec.json.encode(config).decode()]
    package = str(Path(__file__).resolve().parent.parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    with (log or Path(os.devnull)).open("ab") as log_file:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log_file,
            start_new_session=True,  # Ctrl-C must not end it before the requests in flight
            env={**os.environ, "PYTHONPATH": f"{package}{os.pathsep}{inherited}" if inherited else package},
        )
    assert process.stdin is not None and process.stdout is not None
    try:
        if cores is not None:
            os.sched_setaffinity(process.pid, cores)
        first = process.stdout.readline()
        if not first:
            where = f"; see {log}" if log is not None else ""
            raise EngineError(f"the embedded engine did not start (exit code {process.wait()}){where}")
        port = msgspec.json.decode(first)["port"]
        yield Launched(url=f"http://{config.host}:{port}", argv=argv, pid=process.pid)
    finally:
        process.stdin.close()
        try:
            process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
