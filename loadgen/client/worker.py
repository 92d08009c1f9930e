"""One worker process: slots that send over the wire, and the records of what came back.

The parent (:mod:`loadgen.client.runner`) talks to it in JSON lines over standard input and output. When
standard input ends, the parent is gone and the worker leaves.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import struct

import uvloop

from loadgen.client.closed_loop import ClosedLoop
from loadgen.client.endpoint import RequestEncoder
from loadgen.client.exchange import Exchange
from loadgen.client.messages import (
    Cancel,
    Command,
    DiskFailed,
    Finish,
    Go,
    Hold,
    LevelDone,
    Measure,
    Prepare,
    PrepareOpen,
    Ready,
    Reply,
    Sample,
    Setup,
    decode_command,
    encode,
)
from loadgen.client.open_loop import OpenLoop
from loadgen.client.wire import Wire
from loadgen.clock import now_ns

SAMPLE_S = 0.1
OPEN_AHEAD = 64  # connections opened before an open loop begins


class Worker:
    """The process: its pipes, its wire, and the level that is running."""

    def __init__(self, setup: Setup, output: asyncio.WriteTransport) -> None:
        self.setup = setup
        self.loop = asyncio.get_running_loop()
        self._output = output
        self.source = setup.source.open()
        self.encoder = RequestEncoder(setup.endpoint)
        self.run_id = os.getppid()
        self.wire = Wire(setup.endpoint, setup.timeouts, self._settled)
        self._records = os.open(setup.records, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._unwritten: list[str] = []
        self._disk_failed = False
        self._run: ClosedLoop | OpenLoop | None = None
        self._lateness_ns: list[int] = []
        self._sampler: asyncio.TimerHandle | None = None
        self._probes = socket.socket(fileno=setup.probe_fd)
        self._probes.setblocking(False)
        self.loop.add_reader(self._probes.fileno(), self._probed)

    def reply(self, message: Reply) -> None:
        self._output.write(encode(message) + b"\n")

    async def command(self, message: Command) -> None:
        match message:
            case Prepare():
                self._run = ClosedLoop(self, message)
                await self._prepared(message.slots)
            case PrepareOpen():
                self._run = OpenLoop(self, message)
                await self._prepared(min(message.most, OPEN_AHEAD))
            case Go(t_ns):
                self._sample()
                self._level().go(t_ns)
            case Measure():
                self._level().measure()
            case Hold(at_ns):
                self._level().hold(at_ns)
            case Finish():
                self._level().finish()
            case Cancel(text):
                self._level().cancel(text)
            case Setup():
                raise AssertionError("set up twice")

    async def _prepared(self, connections: int) -> None:
        await self.wire.open(connections)
        self._lateness_ns.clear()
        # What is there now stays; no collection may stop the loop while it is measured.
        gc.collect()
        gc.freeze()
        gc.disable()
        self.reply(Ready())

    def _level(self) -> ClosedLoop | OpenLoop:
        assert self._run is not None
        return self._run

    def _settled(self, exchange: Exchange) -> None:
        if self._run is not None:
            self._run.settled(exchange)

    def level_done(self) -> None:
        self.wire.settle_all()
        self.wire.spare_time = None
        if self._sampler is not None:
            self._sampler.cancel()
        self._report_sample()
        unwritten, self._unwritten = self._unwritten, []
        self.reply(LevelDone(unwritten))
        gc.enable()

    def write(self, line: bytes) -> None:
        """Appends a record; O_APPEND keeps the lines of several workers whole."""
        if not self._disk_failed:
            try:
                written = 0
                while written < len(line):
                    written += os.write(self._records, line[written:])
                return
            except OSError as error:
                # Nothing is written after a line that may be cut; the parent gets the rest.
                self._disk_failed = True
                self.reply(DiskFailed(error.strerror or str(error)))
        self._unwritten.append(line.decode())

    # Self-observation.

    def _probed(self) -> None:
        """A probe is a datagram that holds the time of its own write by the parent."""
        now = now_ns()
        while True:
            try:
                data = self._probes.recv(64)
            except (BlockingIOError, ConnectionError):
                return
            self._lateness_ns.append(now - struct.unpack("q", data)[0])

    def _report_sample(self) -> None:
        lateness, self._lateness_ns = self._lateness_ns, []
        self.reply(Sample(self._level().sample(lateness)))

    def _sample(self) -> None:
        self._sampler = self.loop.call_later(SAMPLE_S, self._sample)
        self._report_sample()


async def _main() -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2**26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(0, "rb"))
    output, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(1, "wb"))
    worker = None
    while line := await reader.readline():
        message = decode_command(line)
        if isinstance(message, Setup):
            worker = Worker(message, output)
            worker.reply(Ready())
        else:
            assert worker is not None
            await worker.command(message)


def main() -> None:
    """``python -m loadgen.client.worker``: serves one parent until its pipe ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_main())


if __name__ == "__main__":
    main()
    # Nothing is left to clean up, and tearing down thousands of sockets one by one takes long.
    os._exit(0)
