"""Times kernels on a GPU: CUDA graphs over rotated buffers, CUPTI, and the host's clock.

The primary figure is a CUDA graph of many calls, replayed, with events around each replay: no launch is
in it but the gaps between kernels are, as in a server that decodes through graphs. Windows of all
implementations of a case are interleaved in random order, so that clocks that drift touch all alike.
Nothing waits for the device inside a window, and the device is kept behind the host so that no window
begins on an idle one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import torch

from loadgen.analysis.stats import describe
from loadgen.microbench.records import KernelTimes
from loadgen.microbench.rotation import WINDOW_S, Rotation

FEWEST_WINDOWS = 30
MOST_WINDOWS = 200
BATCH = 10
HALF_WIDTH = 0.01
AHEAD_CYCLES = 400_000  # some 0.2 ms: the host records its events while the device still spins
WALL_S = 0.02
MARKER = "spin_kernel"  # of torch.cuda._sleep; parts one implementation's kernels from the next one's in a trace


class Timed:
    """One implementation, captured over the buffers of a rotation.

    Args:
        name: of the implementation.
        call: runs it once on a set of tensors.
        sets: the buffer sets.
        calls: in one window.

    Attributes:
        timer: ``graph``, or ``events`` when it cannot be captured.
        kept: what the last call of the graph returned: outputs that the implementation made itself.
        samples_s: time of one call in each window.
    """

    def __init__(self, name: str, call: Callable[..., Any], sets: list[dict[str, Any]], calls: int) -> None:
        self.name = name
        self.calls = calls
        self.samples_s: list[float] = []
        self.kept: Any = None
        self._call = call
        self._sets = sets
        self._graph: Any = None
        self.timer = "graph"
        self.why_not: str | None = None
        try:
            self._graph = self._capture()
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:
            torch.cuda.synchronize()
            # Ending a capture in which memory ran out fails too, and that is the error that arrives here.
            if isinstance(error.__context__, torch.cuda.OutOfMemoryError):
                raise error.__context__ from None
            self.timer, self.why_not = "events", f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"

    def _capture(self) -> Any:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._call(**self._sets[0])
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._loop()
        graph.replay()
        torch.cuda.synchronize()
        return graph

    def _loop(self) -> None:
        for index in range(self.calls):
            self.kept = self._call(**self._sets[index % len(self._sets)])

    def window(self) -> None:
        """Enqueues one window."""
        if self._graph is not None:
            self._graph.replay()
        else:
            self._loop()

    def host_s(self) -> float:
        """Host time of one call in a plain loop, the device's work waited for at the end."""
        torch.cuda.synchronize()
        count, started = 0, time.perf_counter()
        while count < self.calls and (count < 3 or time.perf_counter() - started < WALL_S):
            self._call(**self._sets[count % len(self._sets)])
            count += 1
        torch.cuda.synchronize()
        return (time.perf_counter() - started) / count


def estimate_s(call: Callable[..., Any], tensors: dict[str, Any]) -> float:
    """A rough time of one call: the fastest of a few, by events."""
    call(**tensors)
    torch.cuda.synchronize()
    best = float("inf")
    for _ in range(3):
        torch.cuda._sleep(AHEAD_CYCLES)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call(**tensors)
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) / 1e3)
    return best


class Flush:
    """Empties the cache of what was there, by reading other memory: written lines would still have to
    go to memory while the next kernel runs."""

    def __init__(self, size: int) -> None:
        self._memory = torch.zeros(max(size // 4, 1), dtype=torch.int32, device="cuda") if size else None
        self._sum = torch.zeros((), dtype=torch.int64, device="cuda")

    def __call__(self) -> None:
        if self._memory is not None:
            torch.sum(self._memory, dim=0, out=self._sum)


def enough(timed: list[list[float]]) -> bool:
    """Whether every implementation's median is known to :data:`HALF_WIDTH`, with windows enough."""
    import numpy as np

    for samples in timed:
        if len(samples) < FEWEST_WINDOWS:
            return False
        found = describe(np.asarray(samples))
        half = found.half_width("p50")
        if half is None or half > HALF_WIDTH * float(np.median(samples)):
            return False
    return True


def run_windows(
    timed: list[Timed],
    rotation: Rotation,
    seconds: float,
    shuffle: random.Random,
    sample_clocks: Callable[[], None],
) -> None:
    """Fills ``samples_s`` of each, windows interleaved in an order that is drawn anew each round.

    Args:
        seconds: about what it may take; at least :data:`FEWEST_WINDOWS` windows each are measured.
        sample_clocks: called once a batch while the device works.
    """
    flush = Flush(rotation.flush_bytes)
    for one in timed:
        flush()
        one.window()
    torch.cuda.synchronize()
    started = time.perf_counter()
    rounds = 0
    while rounds < MOST_WINDOWS:
        torch.cuda._sleep(AHEAD_CYCLES)
        pending: list[tuple[Timed, Any, Any]] = []
        for _ in range(BATCH):
            for one in shuffle.sample(timed, len(timed)):
                flush()
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                one.window()
                end.record()
                pending.append((one, start, end))
        sample_clocks()
        torch.cuda.synchronize()
        for one, start, end in pending:
            one.samples_s.append(start.elapsed_time(end) / 1e3 / one.calls)
        rounds += BATCH
        if enough([one.samples_s for one in timed]):
            return
        if rounds >= FEWEST_WINDOWS and time.perf_counter() - started > seconds:
            return


def kernel_times(timed: list[Timed], rotation: Rotation) -> dict[str, KernelTimes]:
    """What CUPTI says of one window of each, by name; empty where it says nothing.

    The windows are parted by a spin kernel, so that kernels of the same name in two implementations are
    told apart.
    """
    from torch.profiler import ProfilerActivity, profile

    flush = Flush(rotation.flush_bytes)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as trace:
        for one in timed:
            flush()
            torch.cuda._sleep(1000)
            one.window()
            torch.cuda._sleep(1000)
            torch.cuda.synchronize()
    events = [
        (event.time_range.start, event.time_range.elapsed_us(), event.name)
        for event in trace.events() or []
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    return split_trace(events, [(one.name, one.calls) for one in timed])


def split_trace(events: list[tuple[float, float, str]], windows: list[tuple[str, int]]) -> dict[str, KernelTimes]:
    """Kernels between each pair of markers, summed for one call.

    Args:
        events: start in us, duration in us, name.
        windows: name of each window in order, and the calls in it.
    """
    found: dict[str, KernelTimes] = {}
    inside: list[tuple[float, str]] = []
    marks = 0
    for _, duration_us, name in sorted(events):
        if MARKER not in name:
            if marks % 2:
                inside.append((duration_us, name))
            continue
        marks += 1
        if marks % 2:
            inside = []
        elif inside and marks // 2 <= len(windows):
            window, calls = windows[marks // 2 - 1]
            names: dict[str, int] = {}
            for _, kernel in inside:
                names[kernel] = names.get(kernel, 0) + 1
            found[window] = KernelTimes(
                call_s=sum(d for d, _ in inside) / 1e6 / calls,
                names={kernel: max(1, round(count / calls)) for kernel, count in names.items()},
            )
    return found


__all__ = ["WINDOW_S", "Flush", "Timed", "enough", "estimate_s", "kernel_times", "run_windows", "split_trace"]
