"""Watching while a level runs: the engine's own metrics and the GPUs, on the clock of the records.

One reader for each: a second one would take away what the first is to see (some pages are emptied by
a read), and each read costs the engine time. What it costs is measured before a level's first request, when
the engine has nothing else to do, and the engine is asked no oftener than that it spends at most
``MAX_SCRAPE_SHARE`` of its time answering: a page that takes 20 ms is read every 4 s.
A page may also wait before it answers; that costs the engine nothing.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import msgspec

from loadgen.clock import now_ns
from loadgen.engines.server import MetricsPage
from loadgen.gpus import GpuSample, Nvml
from loadgen.records import ServerSample, encode_line
from loadgen.units import NS_PER_S

SERVER_PERIOD_S = 1.0
MAX_SCRAPE_SHARE = 0.005
GPU_PERIOD_S = 0.25


class Watcher:
    """Appends to ``server_metrics.jsonl`` and ``gpu.jsonl`` of one run.

    Args:
        run: the run folder.
        page: the engine's metrics.
        nvml: None where there is no GPU to watch.
        gpu_uuids: which GPUs; empty takes all.
        periodic: whether to look while a level runs, and not only before and after it.
    """

    def __init__(
        self,
        run: Path,
        page: MetricsPage,
        nvml: Nvml | None,
        gpu_uuids: list[str],
        *,
        periodic: bool = True,
    ) -> None:
        self._run = run
        self._page = page
        self._nvml = nvml
        self._uuids = set(gpu_uuids) or None
        self._periodic = periodic
        self._tasks: list[asyncio.Task[None]] = []
        self._server: list[ServerSample] = []
        self._gpu: list[GpuSample] = []
        self._level = 0
        self._stop = asyncio.Event()
        self.disk_error: str | None = None

    async def read(self, at: Literal["start", "during", "end"]) -> ServerSample | None:
        """One read of the engine's metrics, kept; None when it has none."""
        before = now_ns()
        values = await self._page.read()
        if not values:
            return None
        now = now_ns()
        sample = ServerSample(t_ns=now, took_ns=now - before, level=self._level, at=at, values=values)
        self._server.append(sample)
        self._log("server_metrics.jsonl", sample)
        return sample

    async def start(self, level: int) -> None:
        """Begins a level; its first samples are taken before this returns."""
        self._level = level
        self._server, self._gpu = [], []
        self._stop.clear()
        await self.read("start")
        await self._sample_gpu()
        if self._periodic:
            self._tasks = [asyncio.create_task(self._watch_server()), asyncio.create_task(self._watch_gpu())]

    async def pause(self) -> None:
        """Ends the periodic samples of a level. A read under way is waited for: what it brings is gone
        from the engine's page."""
        self._stop.set()
        await asyncio.gather(*self._tasks)
        self._tasks = []
        await self._sample_gpu()

    def taken(self) -> tuple[list[ServerSample], list[GpuSample]]:
        """The samples of the level that has ended."""
        return self._server, self._gpu

    async def close(self) -> None:
        if self._tasks:
            await self.pause()
        await self._page.close()

    async def _stopped_after(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _watch_server(self) -> None:
        if not self._server:
            return  # it has none
        idle_s = 0.0 if self._page.waits else self._server[0].took_ns / NS_PER_S
        while not await self._stopped_after(max(SERVER_PERIOD_S, idle_s / MAX_SCRAPE_SHARE)):
            await self.read("during")

    async def _watch_gpu(self) -> None:
        while self._nvml is not None and not await self._stopped_after(GPU_PERIOD_S):
            await self._sample_gpu()

    async def _sample_gpu(self) -> None:
        if self._nvml is None:
            return
        sample = await asyncio.to_thread(self._nvml.sample, self._level, self._uuids)
        self._gpu.append(sample)
        self._log("gpu.jsonl", sample)

    def _log(self, name: str, line: msgspec.Struct) -> None:
        try:
            with (self._run / name).open("ab") as log:
                log.write(encode_line(line))
        except OSError as error:
            self.disk_error = self.disk_error or error.strerror
