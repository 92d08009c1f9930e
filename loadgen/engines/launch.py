"""An engine's life: started, watched until it is ready, and stopped with everything that belongs to it."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from loadgen import gpus
from loadgen.engines.guarded import (
    POLL_S,
    SAY_EVERY_S,
    START_TIMEOUT_S,
    STOP_TIMEOUT_S,
    GuardedProcess,
    explain,
    last_line,
    last_matches,
    last_words,
    read_tail,
    shown,
)
from loadgen.engines.lookup import find_install
from loadgen.engines.server import Server, healthy, identify, stream_a_token
from loadgen.engines.sim_config import SimConfig
from loadgen.engines.sim_engine import command_for
from loadgen.engines.spec import EngineCommand, EngineSpec, write_files
from loadgen.engines.table import ENGINES
from loadgen.errors import EndpointError, EngineError, LoadgenError, UsageError
from loadgen.processes import clean_environ

# How long an engine may take to end once it answers wrongly.
DYING_S = 3.0


def prepare(spec: EngineSpec, found: list[gpus.Gpu]) -> EngineCommand:
    """The command for a spec; everything that can be checked before the start has been.

    Raises:
        UsageError: no such engine here, an option that it has not, or as the engines' own ``prepare``.
    """
    engine = ENGINES[spec.kind]
    if engine.simulated:
        return engine.prepare(spec, None, found)
    if spec.model is None:
        raise UsageError(f"--engine {spec.kind} needs --model: a folder, a name of the hub, or shape:NAME")
    if spec.backend is not None and spec.backend not in engine.backend_options:
        owners = ", ".join(kind for kind, row in ENGINES.items() if spec.backend in row.backend_options)
        raise UsageError(f"--backend {spec.backend} is for --engine {owners}; {engine.title} has no such backend")
    return engine.prepare(spec, find_install(spec.kind, spec.python), found)


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
        row = ENGINES[self.command.kind]
        return None if code is None else last_words(self._log, code, self._log_start, row.endings)

    def log_text(self) -> str:
        """The end of its log."""
        return read_tail(self._log, self._log_start)

    @property
    def ending(self) -> dict[str, Any] | None:
        """How it ended: exit code, whether we stopped it, and how many processes had to be killed."""
        return self._process.ending


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
    if not ENGINES[command.kind].simulated:
        say(f"starting {spec.name}: {command.shell()}")
    log = folder / "engine.log"
    log_start = log.stat().st_size if log.exists() else 0
    process = await asyncio.to_thread(
        GuardedProcess, command.argv, environ_for(command), folder, log, spec.stop_timeout_s, cores
    )
    try:
        launched = Launched(f"http://{spec.host}:{port}", command, process, log, log_start)
        await _wait_ready(launched, spec, log, cancelled, say)
        _read_log(launched, log, log_start)
        yield launched
    finally:
        await asyncio.shield(asyncio.to_thread(process.stop))


def _read_log(launched: Launched, log: Path, log_start: int) -> None:
    """What the log of a start tells: seconds of its phases, and sizes that the manifest keeps."""
    row = ENGINES[launched.command.kind]
    if not row.phases and not row.sizes:
        return
    with log.open("rb") as file:
        file.seek(log_start)
        text = file.read().decode("utf-8", "replace")
    launched.startup_s.update({name: float(value) for name, value in last_matches(row.phases, text).items()})
    found = last_matches(row.sizes, text)
    launched.command.facts.update({name: int(value.replace(",", "")) for name, value in found.items()})


async def _wait_ready(
    launched: Launched, spec: EngineSpec, log: Path, cancelled: Callable[[], bool], say: Callable[[str], None]
) -> None:
    kind, url, model = launched.command.kind, launched.url, launched.command.model
    row = ENGINES[kind]
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
                        f"--start-timeout. Its log: {log}{shown(launched.log_text())}"
                    )
                if now - said >= SAY_EVERY_S:
                    said = now
                    say(f"{kind} is starting, {now - started:.0f} s: {last_line(log)}")
                await asyncio.wait([attempt], timeout=POLL_S)
            return attempt.result()
        except EndpointError as error:
            # An engine that is dying answers wrongly first; what it died of is what counts.
            for _ in range(int(DYING_S / POLL_S)):
                if (death := launched.death()) is not None:
                    raise EngineError(f"{kind} ended while it was starting, {death}") from None
                await asyncio.sleep(POLL_S)
            text = launched.log_text()
            cause = explain(text, None, row.endings)
            raise EngineError(
                f"{kind} is up, but {what}: {error}{f'; {cause}' if cause else ''}; its log: {log}{shown(text)}"
            ) from None
        finally:
            attempt.cancel()

    async def answers() -> None:
        while not await healthy(url, kind):
            await asyncio.sleep(POLL_S)

    await until(asyncio.ensure_future(answers()), "/health has not answered yet")
    at_health = time.monotonic()
    launched.startup_s["healthy"] = at_health - started

    server = await until(asyncio.ensure_future(identify(url, {})), "does not say what it serves")
    if server.kind != kind:
        raise EngineError(f"{url} answers as {server.kind}, not as {kind}: something else took the port; run it again")
    if launched.command.version and server.version and server.version != launched.command.version:
        say(f"{kind} says it is {server.version}; its package says {launched.command.version}")
    if model not in server.models and not row.takes_any_model:
        raise EngineError(f"{url} serves {', '.join(server.models)}, not {model}: something else took the port")
    launched.server = server
    identified = time.monotonic()
    launched.startup_s["identified"] = identified - at_health

    first = asyncio.ensure_future(stream_a_token(url, model, spec.start_timeout_s))
    await until(first, "gives no token")
    launched.startup_s["first_token"] = time.monotonic() - identified
    launched.startup_s["total"] = time.monotonic() - started


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
    command = fill_in(command_for(config), port, Path())
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
