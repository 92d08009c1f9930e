"""An engine's life: started, watched until it is ready, and stopped with everything that belongs to it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from loadgen import gpus
from loadgen.engines import trtllm, vllm
from loadgen.engines.server import Server, healthy, identify, stream_a_token
from loadgen.engines.sim import SimConfig
from loadgen.engines.spec import EngineCommand, EngineSpec, write_files
from loadgen.errors import EndpointError, EngineError, LoadgenError, UsageError
from loadgen.processes import LineProcess, child_environ, clean_environ

GUARD = Path(__file__).with_name("guard.py")
POLL_S = 0.1
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
# How long the guard may take beyond the engine's own time to end.
KILL_TIMEOUT_S = 15.0
LOG_TAIL_BYTES = 200_000
SHOWN_LINES = 12
SAY_EVERY_S = 10.0
# How long an engine may take to end once it answers wrongly.
DYING_S = 3.0

# What an engine's last words mean. The last of them in the log is told: what comes before it was survived.
CAUSES: list[tuple[str, str]] = [
    (r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|std::bad_alloc|Cannot allocate memory",
     "out of memory: use a smaller --kv-memory-fraction, --max-batch-size or --max-seq-len, or more GPUs"),
    (r"No available memory for the cache blocks|To serve at least one request with the models?'s max seq len|"
     r"Free memory on device",
     "too little GPU memory for the KV cache: free the GPU, raise --kv-memory-fraction, or lower --max-seq-len"),
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
    (r"Extra inputs are not permitted|LLM got invalid argument", "it does not know one of its extra options"),
    (r"CUDA driver version is insufficient|no CUDA-capable device|No CUDA GPUs are available|Found no NVIDIA driver",
     "it found no GPU that it can use: see `loadgen engines doctor`"),
]  # fmt: skip
_SURVIVED = re.compile(r"\b(?:DEBUG|INFO|WARN|WARNING)\b|\[[WIDV]\]")


def explain(log: str, exit_code: int | None) -> str | None:
    """What an engine died of, as far as its log tells; None when nothing known is in it.

    Lines of a level below error are passed over: an engine warns of much that it can do without.
    """
    text = "\n".join("" if _SURVIVED.search(line[:120]) else line for line in log.splitlines())
    found = [(match.start(), sentence.format(*match.groups())) for pattern, sentence in CAUSES
             for match in re.finditer(pattern, text)]  # fmt: skip
    if exit_code == -signal.SIGKILL and not any("out of memory" in sentence for _, sentence in found):
        return "it was killed from outside: most likely the host ran out of memory (see dmesg)"
    return max(found)[1] if found else None


def prepare(spec: EngineSpec, found: list[gpus.Gpu]) -> EngineCommand:
    """The command for a spec; everything that can be checked before the start has been.

    Raises:
        UsageError: as the engines' own ``prepare``.
    """
    if spec.kind == "sim":
        return prepare_sim(spec.sim or SimConfig())
    if spec.model is None:
        raise UsageError(f"--engine {spec.kind} needs --model: a folder, a name of the hub, or shape:NAME")
    return {"vllm": vllm.prepare, "trtllm": trtllm.prepare}[spec.kind](spec, found)


def prepare_sim(config: SimConfig) -> EngineCommand:
    """The embedded engine in a process of its own."""
    path = child_environ().get("PYTHONPATH")
    return EngineCommand(
        kind="sim",
        version=None,
        argv=[sys.executable, "-m", "loadgen.engines.sim", msgspec.json.encode(config).decode(), "{port}"],
        env={} if path is None else {"PYTHONPATH": path},
        model=config.served_name,
        facts={"config": msgspec.to_builtins(config)},
    )


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
                say(f"{name}, {now - started:.0f} s: {_last_line(log)}")
        return code
    finally:
        process.stop()


class Launched:
    """A running engine.

    Attributes:
        url: where it answers.
        command: with its port and folder filled in.
        pid: of the engine itself.
        server: what it said of itself.
        startup_s: seconds of each phase of its start: ``healthy`` (from the start until /health was
            good), ``identified``, ``first_token``, their ``total``, and what its log names.
    """

    def __init__(self, url: str, command: EngineCommand, process: GuardedProcess, log: Path, log_start: int) -> None:
        self.url = url
        self.command = command
        self.pid = process.pid
        self.server = Server(kind=command.kind, version=command.version, models=[command.model])
        self.startup_s: dict[str, float] = {}
        self._process = process
        self._log = log
        self._log_start = log_start  # an engine that is started again goes on in the same log

    def death(self) -> str | None:
        """Why the engine has died; None while it lives."""
        code = self._process.exit_code
        return None if code is None else last_words(self._log, code, self._log_start)

    def log_text(self) -> str:
        """The end of its log."""
        return read_tail(self._log, self._log_start)

    @property
    def ending(self) -> dict[str, Any] | None:
        """How it ended: exit code, whether we stopped it, and how many processes had to be killed."""
        return self._process.ending


def read_tail(log: Path, since: int = 0) -> str:
    """The last part of a log from offset ``since`` on; "" when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(since, file.tell() - LOG_TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _shown(text: str) -> str:
    lines = [line.rstrip()[:300] for line in text.splitlines() if line.strip()][-SHOWN_LINES:]
    return "".join(f"\n  | {line}" for line in lines)


def last_words(log: Path, exit_code: int, since: int = 0) -> str:
    """Exit code, known cause, and the last lines of the log from offset ``since`` on."""
    text = read_tail(log, since)
    how = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
    cause = explain(text, exit_code)
    return f"{how}{f': {cause}' if cause else ''}; the whole log is {log}{_shown(text)}"


def free_port(host: str) -> int:
    """A port that nothing listens on now."""
    with socket.create_server((host, 0)) as free:
        port: int = free.getsockname()[1]
        return port


def check_port(host: str, port: int) -> None:
    """Refuses a port on which something answers, which would be measured in the engine's stead.

    Raises:
        UsageError: it answers, or cannot be had.
    """
    try:
        with socket.create_connection((host, port), timeout=2):
            raise UsageError(
                f"--port {port}: something answers at {host}:{port} already; stop it, choose another port, or measure "
                f"it as it is with --url http://{host}:{port}"
            )
    except OSError:
        pass
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise UsageError(f"--port {port}: cannot be had at {host}: {error.strerror}; choose another") from None


def fill_in(command: EngineCommand, port: int, folder: Path) -> EngineCommand:
    """The command with its port and its folder."""
    words = [word.replace("{port}", str(port)).replace("{folder}", str(folder.resolve())) for word in command.argv]
    return msgspec.structs.replace(command, argv=words)


def environ_for(command: EngineCommand) -> dict[str, str]:
    """The whole environment that an engine gets."""
    environ = clean_environ()
    for name, value in command.env.items():
        if value is None:
            environ.pop(name, None)
        else:
            environ[name] = value
    return environ


@asynccontextmanager
async def launch(
    spec: EngineSpec,
    command: EngineCommand,
    folder: Path,
    *,
    cores: set[int] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda text: None,
) -> AsyncIterator[Launched]:
    """An engine that is ready, while the context lasts; afterwards nothing of it is left.

    Ready means: the process lives, ``/health`` is good, ``/v1/models`` and ``/version`` are those
    of the engine that was started, and one token has been streamed.

    Args:
        spec: its port and time-outs.
        command: from :func:`prepare`.
        folder: where it runs, and where engine.log and its files are written.
        cores: pins it to these cores.
        cancelled: asked all the time; True ends the start.
        say: told how the start gets on.

    Raises:
        UsageError: the port is taken.
        EngineError: it died, did not get ready in time, or something else answers.
    """
    if spec.port is not None:
        check_port(spec.host, spec.port)
    port = spec.port or free_port(spec.host)
    command = fill_in(command, port, folder)
    write_files(command, folder)
    if command.kind != "sim":
        say(f"starting {spec.name}: {command.shell()}")
    log = folder / "engine.log"
    log_start = log.stat().st_size if log.exists() else 0
    process = await asyncio.to_thread(
        GuardedProcess, command.argv, environ_for(command), folder, log, spec.stop_timeout_s, cores
    )
    try:
        launched = Launched(f"http://{spec.host}:{port}", command, process, log, log_start)
        await _wait_ready(launched, spec, log, cancelled, say)
        if command.kind == "vllm":
            with log.open("rb") as file:
                file.seek(log_start)
                text = file.read().decode("utf-8", "replace")
            launched.startup_s.update(vllm.startup_phases(text))
            command.facts.update(vllm.memory_facts(text))
        yield launched
    finally:
        await asyncio.shield(asyncio.to_thread(process.stop))


async def _wait_ready(
    launched: Launched, spec: EngineSpec, log: Path, cancelled: Callable[[], bool], say: Callable[[str], None]
) -> None:
    kind, url, model = launched.command.kind, launched.url, launched.command.model
    started = said = time.monotonic()

    async def until(attempt: asyncio.Future[Any], what: str) -> Any:
        """The attempt's result, while the engine lives and time is left."""
        nonlocal said
        try:
            while not attempt.done():
                if cancelled():
                    raise LoadgenError(f"interrupted while {kind} was starting")
                if (death := launched.death()) is not None:
                    raise EngineError(f"{kind} ended while it was starting, {death}")
                now = time.monotonic()
                if now - started > spec.start_timeout_s:
                    raise EngineError(
                        f"{kind} did not get ready within {spec.start_timeout_s:g} s ({what}); give it more with "
                        f"--start-timeout. Its log: {log}{_shown(launched.log_text())}"
                    )
                if now - said >= SAY_EVERY_S:
                    said = now
                    say(f"{kind} is starting, {now - started:.0f} s: {_last_line(log)}")
                await asyncio.wait([attempt], timeout=POLL_S)
            return attempt.result()
        except EndpointError as error:
            # An engine that is dying answers wrongly first; what it died of is what counts.
            for _ in range(int(DYING_S / POLL_S)):
                if (death := launched.death()) is not None:
                    raise EngineError(f"{kind} ended while it was starting, {death}") from None
                await asyncio.sleep(POLL_S)
            text = launched.log_text()
            cause = explain(text, None)
            raise EngineError(
                f"{kind} is up, but {what}: {error}{f'; {cause}' if cause else ''}; its log: {log}{_shown(text)}"
            ) from None
        finally:
            attempt.cancel()

    async def answers() -> None:
        while not await healthy(url):
            await asyncio.sleep(POLL_S)

    await until(asyncio.ensure_future(answers()), "/health has not answered yet")
    at_health = time.monotonic()
    launched.startup_s["healthy"] = at_health - started

    server = await until(asyncio.ensure_future(identify(url, {})), "does not say what it serves")
    if server.kind != kind:
        raise EngineError(f"{url} answers as {server.kind}, not as {kind}: something else took the port; run it again")
    if launched.command.version and server.version and server.version != launched.command.version:
        say(f"{kind} says it is {server.version}; its package says {launched.command.version}")
    if model not in server.models and kind != "trtllm":
        raise EngineError(f"{url} serves {', '.join(server.models)}, not {model}: something else took the port")
    launched.server = server
    identified = time.monotonic()
    launched.startup_s["identified"] = identified - at_health

    first = asyncio.ensure_future(stream_a_token(url, model, spec.start_timeout_s))
    await until(first, "gives no token")
    launched.startup_s["first_token"] = time.monotonic() - identified
    launched.startup_s["total"] = time.monotonic() - started


def _last_line(log: Path) -> str:
    lines = [line for line in read_tail(log).splitlines() if line.strip()]
    return lines[-1].strip()[:120] if lines else "nothing in its log yet"


class RunningSim:
    """The embedded engine in a process of its own: where it answers, and its process."""

    def __init__(self, url: str, process: GuardedProcess) -> None:
        self.url = url
        self.pid = process.pid


@contextmanager
def launch_sim(config: SimConfig, cores: set[int] | None = None) -> Iterator[RunningSim]:
    """The embedded engine while the context lasts, for callers without an event loop.

    Raises:
        EngineError: it did not start.
    """
    port = free_port(config.host)
    command = fill_in(prepare_sim(config), port, Path())
    process = GuardedProcess(command.argv, environ_for(command), Path(), Path(os.devnull), STOP_TIMEOUT_S, cores)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                socket.create_connection((config.host, port), timeout=1).close()
                break
            except OSError:
                if process.exit_code is not None or time.monotonic() > deadline:
                    raise EngineError(f"the embedded engine did not start (exit code {process.exit_code})") from None
                time.sleep(0.01)
        yield RunningSim(f"http://{config.host}:{port}", process)
    finally:
        process.stop()
