"""A process that its guard ends when loadgen does, and what its log says of its end."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from loadgen.errors import EngineError
from loadgen.processes import LineProcess

GUARD = Path(__file__).with_name("guard.py")
POLL_S = 0.1
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
# How long the guard may take beyond the engine's own time to end.
KILL_TIMEOUT_S = 15.0
LOG_TAIL_BYTES = 200_000
SHOWN_LINES = 12
SAY_EVERY_S = 10.0

# A pattern in an engine's last words, and what it means; {0} is the pattern's first group.
Cause = tuple[str, str]

# What any engine may die of. The last one in the log is told: the engine survived what comes before it.
COMMON_CAUSES: tuple[Cause, ...] = (
    (r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|std::bad_alloc|Cannot allocate memory",
     "out of memory: use a smaller --kv-memory-fraction, --max-batch-size or --max-seq-len, or more GPUs"),
    (r"[Aa]ddress already in use|EADDRINUSE", "its port was taken: choose another --port"),
    (r"(lib[\w.+-]+\.so[\w.]*): cannot open shared object file",
     "a library is missing: {0}; install it, or put its folder into LD_LIBRARY_PATH"),
    (r"No module named '?([\w.]+)'?", "a Python package is missing in its environment: {0}"),
    (r"[Bb]float16 is only supported on GPUs|does not support bfloat16|fp8.{0,60}not supported|"
     r"[Uu]nsupported (?:data ?type|dtype)|dtype .{0,40} is not supported|(?:bfloat16|float16|half) is not supported",
     "the GPU does not support this dtype: choose another with --dtype"),
    (r"invalid literal for int\(\) with base 10: '(?:MIG|GPU)-",
     "this version cannot read the UUID of a GPU or MIG slice in CUDA_VISIBLE_DEVICES: use a later one, or a container "
     "that is given the device alone"),
    (r"unrecognized arguments: (.+)", "it does not know these arguments: {0}"),
    (r"No such option:? '?(--?[\w-]+)", "it does not know the option {0}"),
    (r"CUDA driver version is insufficient|no CUDA-capable device|No CUDA GPUs are available|Found no NVIDIA driver",
     "it found no GPU that it can use: see `loadgen engines doctor`"),
)  # fmt: skip
# The sentence of several engines for as many wordings.
NO_ROOM_FOR_CACHE = (
    "too little GPU memory for the KV cache: free the GPU, raise --kv-memory-fraction, or lower --max-seq-len"
)
_SURVIVED = re.compile(r"\b(?:DEBUG|INFO|WARN|WARNING)\b|\[[WIDV]\]")


class Endings(NamedTuple):
    """How an engine's log tells what it died of, besides what any engine may die of.

    Attributes:
        causes: as :data:`COMMON_CAUSES`.
        survived: a pattern of lines that tell of what it can do without, where its lines have no level.
        own_kill: a pattern and its meaning: where it matches, the engine sent SIGKILL to itself.
    """

    causes: tuple[Cause, ...] = ()
    survived: str | None = None
    own_kill: Cause | None = None


def explain(log: str, exit_code: int | None, endings: Endings = Endings()) -> str | None:  # noqa: B008 (immutable)
    """What an engine died of, as far as its log tells; None when nothing known is in it.

    Lines of a level below error are passed over: an engine warns of much that it can do without.

    Args:
        log: the end of it.
        exit_code: None while the engine lives.
        endings: the engine's own.
    """
    passed_over = [_SURVIVED, *([re.compile(endings.survived)] if endings.survived else [])]
    text = "\n".join("" if any(p.search(line[:120]) for p in passed_over) else line for line in log.splitlines())
    causes = (*COMMON_CAUSES, *endings.causes)
    found = [(match.start(), sentence.format(*match.groups())) for pattern, sentence in causes
             for match in re.finditer(pattern, text)]  # fmt: skip
    own_kill = endings.own_kill[1] if endings.own_kill and re.search(endings.own_kill[0], text) else None
    if exit_code == -signal.SIGKILL and not own_kill and not any("out of memory" in sentence for _, sentence in found):
        return "it was killed from outside: most likely the host ran out of memory (see dmesg)"
    return max(found)[1] if found else own_kill


class GuardedProcess:
    """A process that its guard ends when loadgen does. See :mod:`loadgen.engines.guard`.

    Args:
        argv: the command.
        environ: its whole environment.
        folder: its working folder.
        log: where its output goes.
        stop_s: from SIGTERM to SIGKILL.
        cores: pins it to these cores.

    Raises:
        EngineError: it could not be started.
    """

    def __init__(
        self,
        argv: list[str],
        environ: dict[str, str],
        folder: Path,
        log: Path,
        stop_s: float,
        cores: set[int] | None = None,
    ) -> None:
        order = {
            "argv": argv,
            "cwd": str(folder.resolve()),
            "log": str(log.resolve()) if log != Path(os.devnull) else os.devnull,
            "stop_s": stop_s,
            "cores": sorted(cores) if cores else None,
        }
        self._stop_s = stop_s
        # In a session of its own: Ctrl-C must not end it before the requests in flight.
        guard = [sys.executable, "-I", "-S", str(GUARD), json.dumps(order)]
        self._messages = LineProcess(guard, environ, keep_stderr=False)
        self._guard = self._messages.process
        self._exit_code: int | None = None
        # How it ended, once nothing of it is left.
        self.ending: dict[str, Any] | None = None
        first = self._next(START_TIMEOUT_S)
        if first is None or "pid" not in first:
            self.stop()
            raise EngineError(f"{argv[0]}: cannot be started: {(first or {}).get('error', 'its guard died')}")
        self.pid: int = first["pid"]

    def _next(self, timeout_s: float) -> dict[str, Any] | None:
        """The guard's next message; None when none came in time, or none will come."""
        line = self._messages.read_line(timeout_s)
        return None if line is None else json.loads(line)

    @property
    def exit_code(self) -> int | None:
        """How the process ended; None while it lives. Something that it started may live on for a moment."""
        if self._exit_code is None:
            self._take(self._next(0))
        if self._exit_code is None and self._guard.poll() is not None:
            # Its last message may have come since; without one the guard was killed.
            self._take(self._next(0) or {"exit": -signal.SIGKILL, "stopped": False, "killed": 0})
        return self._exit_code

    def _take(self, message: dict[str, Any] | None) -> None:
        if message is not None:
            self._exit_code = message.get("exit")
            if "killed" in message:
                self.ending = message

    def stop(self) -> None:
        """Ends the process and all that it started; returns when nothing is left."""
        self._messages.end_input()
        deadline = time.monotonic() + self._stop_s + KILL_TIMEOUT_S
        while self.ending is None and (message := self._next(deadline - time.monotonic())) is not None:
            self._take(message)
        self._messages.close(KILL_TIMEOUT_S)


def run_to_end(
    name: str,
    argv: list[str],
    environ: dict[str, str],
    folder: Path,
    log: Path,
    say: Callable[[str], None],
    timeout_s: float = float("inf"),
) -> int:
    """Runs a program that ends by itself, such as an engine's build, and says now and then where it is.

    Returns:
        Its exit code. However this ends, nothing of the program is left.

    Raises:
        EngineError: it could not be started, or did not end in time.
    """
    log.unlink(missing_ok=True)
    process = GuardedProcess(argv, environ, folder, log, STOP_TIMEOUT_S)
    started = said = time.monotonic()
    try:
        while (code := process.exit_code) is None:
            time.sleep(POLL_S)
            now = time.monotonic()
            if now - started > timeout_s:
                raise EngineError(f"{name} did not end within {timeout_s:g} s; its log: {log}")
            if now - said >= SAY_EVERY_S:
                said = now
                say(f"{name}, {now - started:.0f} s: {last_line(log)}")
        return code
    finally:
        process.stop()


def read_tail(log: Path, since: int = 0) -> str:
    """The last part of a log from offset ``since`` on; "" when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(since, file.tell() - LOG_TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def shown(text: str) -> str:
    """The last lines of a log, each behind a bar."""
    lines = [line.rstrip()[:300] for line in text.splitlines() if line.strip()][-SHOWN_LINES:]
    return "".join(f"\n  | {line}" for line in lines)


def last_words(log: Path, exit_code: int, since: int = 0, endings: Endings = Endings()) -> str:  # noqa: B008
    """Exit code, known cause, and the last lines of the log from offset ``since`` on.

    Args:
        log, exit_code, endings: as for :func:`explain`.
        since: where this start's part of the log begins.
    """
    text = read_tail(log, since)
    how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
    cause = explain(text, exit_code, endings)
    return f"{how}{f': {cause}' if cause else ''}; the whole log is {log}{shown(text)}"


def last_line(log: Path) -> str:
    """Where a program is that writes this log."""
    lines = [line for line in read_tail(log).splitlines() if line.strip()]
    return lines[-1].strip()[:120] if lines else "nothing in its log yet"


def last_matches(patterns: dict[str, str], log: str) -> dict[str, str]:
    """What the only group of each pattern matched last; patterns that match nowhere are left out."""
    found = {name: re.findall(pattern, log) for name, pattern in patterns.items()}
    return {name: values[-1] for name, values in found.items() if values}
