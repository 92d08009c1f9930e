"""What the GPUs did while a level was measured."""

from __future__ import annotations

import math

from loadgen.analysis.figures import GpuDevice, GpuFigures, GpuGauge
from loadgen.gpus import THROTTLE_REASONS, GpuSample
from loadgen.units import NS_PER_S

# What a sample says of a GPU that is shown as mean, least and most.
GPU_GAUGES = (
    "power_w", "sm_clock_mhz", "memory_clock_mhz", "temperature_c", "utilization", "memory_utilization",
    "memory_used_bytes",
)  # fmt: skip


def gpu_figures(samples: list[GpuSample], start_ns: int, end_ns: int, output_tokens: float | None) -> GpuFigures | None:
    """What the GPUs did over the measured window; None without samples in it.

    Energy is the difference of the card's own counter between the window's ends, interpolated
    between samples; where a card has no counter, mean power times the window.

    Args:
        samples: of the level, in order.
        start_ns, end_ns: the measured window.
        output_tokens: generated inside the window; energy per token is of all GPUs together.
    """
    uuids = dict.fromkeys(reading.uuid for sample in samples for reading in sample.gpus)
    found = [_device(uuid, samples, start_ns, end_ns) for uuid in uuids]
    devices = [device for device in found if device is not None]
    if not devices:
        return None
    figures = GpuFigures(devices=devices, energy_per_output_token_j=None)
    if output_tokens and figures.energy_j is not None:
        figures.energy_per_output_token_j = figures.energy_j / output_tokens
    return figures


def _device(uuid: str, samples: list[GpuSample], start_ns: int, end_ns: int) -> GpuDevice | None:
    import numpy as np

    readings = [(s.t_ns, r) for s in samples for r in s.gpus if r.uuid == uuid]
    inside = [r for t_ns, r in readings if start_ns <= t_ns <= end_ns]
    if not inside:
        return None
    throttle = {
        reason: sum(reason in r.throttle for r in inside) / len(inside)
        for reason in THROTTLE_REASONS.values()
        if any(reason in r.throttle for r in inside)
    }
    device = GpuDevice(uuid=uuid, samples=len(inside), throttle=throttle)
    for name in GPU_GAUGES:
        values = [v for r in inside if (v := getattr(r, name)) is not None]
        if values:
            setattr(device, name, GpuGauge(mean=math.fsum(values) / len(values), min=min(values), max=max(values)))
    counter = [(t_ns, r.energy_j) for t_ns, r in readings if r.energy_j is not None]
    if len(counter) >= 2:
        at = np.interp([start_ns, end_ns], [t for t, _ in counter], [float(e) for _, e in counter])
        device.energy_j = float(at[1] - at[0])
    elif device.power_w is not None:
        device.energy_j = device.power_w.mean * (end_ns - start_ns) / NS_PER_S
    return device
