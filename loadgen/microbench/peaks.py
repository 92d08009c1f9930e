"""What the device itself can do: the denominators of every share, measured before the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from loadgen.microbench.records import Peaks

COPY_BYTES = 2 << 30
MATRIX_SIZES = (4096, 8192)
REPEATS = 15
EMPTY_KERNELS = 256


def _median_s(work: Callable[[], Any], repeats: int = REPEATS) -> float:
    work()
    torch.cuda.synchronize()
    events = []
    torch.cuda._sleep(1_000_000)
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    times = sorted(start.elapsed_time(end) / 1e3 for start, end in events)
    return float(times[len(times) // 2])


def measure_peaks() -> Peaks:
    """About two seconds on the current device; takes up to 4 GiB of it, or a quarter of what is free."""
    free, _ = torch.cuda.mem_get_info()
    size = min(COPY_BYTES, free // 8)
    copy, read = _memory_rates(size)
    rates = {}
    for dtype in ("bfloat16", "float16"):
        rates[dtype] = max(_matrix_rate(n, dtype) for n in MATRIX_SIZES)
    if torch.cuda.get_device_capability() >= (8, 9):
        rates["float8_e4m3fn"] = max(_fp8_rate(n) for n in MATRIX_SIZES)
    return Peaks(
        copy_bytes_per_s=copy,
        read_bytes_per_s=read,
        matrix_flops=rates,
        empty_kernel_s=_empty_kernel_s(),
    )


def _memory_rates(size: int) -> tuple[float, float]:
    """Bytes/s of a copy of ``size`` bytes, read and written ones counted, and of a sum over them."""
    source = torch.empty(size // 4, dtype=torch.float32, device="cuda").normal_()
    target = torch.empty_like(source)
    return 2 * size / _median_s(lambda: target.copy_(source)), size / _median_s(lambda: source.sum())


def _matrix_rate(n: int, dtype: str) -> float:
    a = torch.empty(n, n, dtype=getattr(torch, dtype), device="cuda").normal_()
    b = torch.empty_like(a).normal_()
    out = torch.empty_like(a)
    return 2.0 * n**3 / _median_s(lambda: torch.mm(a, b.t(), out=out))


def _fp8_rate(n: int) -> float:
    a = torch.empty(n, n, device="cuda").normal_().to(torch.float8_e4m3fn)
    b = torch.empty(n, n, device="cuda").normal_().to(torch.float8_e4m3fn)
    one = torch.ones((), device="cuda")
    return 2.0 * n**3 / _median_s(lambda: torch._scaled_mm(a, b.t(), one, one, out_dtype=torch.bfloat16))


def _empty_kernel_s() -> float:
    """From one node of a graph to the next, with as little work as a kernel can have."""
    cell = torch.zeros(1, device="cuda")
    cell.add_(1.0)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(EMPTY_KERNELS):
            cell.add_(1.0)
    return _median_s(graph.replay) / EMPTY_KERNELS
