"""Made-up benchmarks of kernels for the tests: times in microseconds."""

from __future__ import annotations

from typing import Any

from loadgen.environment import Host
from loadgen.microbench.cases import ModelShape
from loadgen.microbench.records import Attempt, CaseSamples, DeviceFacts, KernelManifest, KernelTimes, Peaks, Use
from loadgen.microbench.rotation import Rotation

MIB = 2**20
PEAKS = Peaks(copy_bytes_per_s=4e12, read_bytes_per_s=4.2e12, matrix_flops={"bfloat16": 700e12}, empty_kernel_s=1e-6)
QWEN = ModelShape(
    name="qwen1.5-4b", hidden=2560, intermediate=6912, layers=40, heads=20, kv_heads=20, head_size=128, vocab=151_936
)


def manifest(**fields: Any) -> KernelManifest:
    made: dict[str, Any] = {
        "command": ["loadgen", "kernels", "bench"],
        "started_utc": "2026-11-24T06:00:00+00:00",
        "host": Host(),
        "gpus": [{"uuid": "GPU-1", "bandwidth_gbs": 4800, "bf16_tflops": 989}],
        "driver": "580",
        "device": DeviceFacts(
            name="NVIDIA H200",
            uuid="GPU-1",
            compute_capability=(9, 0),
            multiprocessors=132,
            l2_bytes=60 * MIB,
            memory_bytes=150 * 10**9,
            versions={"python": "3.12", "torch": "2.11.0", "triton": "3.6.0"},
        ),
        "peaks": PEAKS,
        "model": QWEN,
        "states": ["serving"],
    }
    return KernelManifest(**{**made, **fields})


def attempt(name: str, us: float, *, own: bool = True, windows: int = 40, **fields: Any) -> Attempt:
    """An implementation whose windows lie within 0.4 % of ``us``, the same ripple for all of them."""
    ripple = [1 + 0.001 * (i % 5 - 2) for i in range(windows)]
    made: dict[str, Any] = {
        "name": name,
        "own": own,
        "samples_s": [us * 1e-6 * part for part in ripple],
        "cupti": KernelTimes(call_s=us * 0.97e-6, names={f"{name}_kernel": 1}),
        "wall_s": us * 1.05e-6,
        "error_before": 1e-3,
        "error_after": 1e-3,
    }
    return Attempt(**{**made, **fields})


def samples(*attempts: Attempt, **fields: Any) -> CaseSamples:
    """A weight of 40 MiB that rotates, and activations of 1 MiB that stay."""
    made: dict[str, Any] = {
        "kernel": "matmul_bf16",
        "file": "kernels/matmul_bf16.py",
        "sha256": "0",
        "label": "qkv",
        "params": {"rows": 8},
        "uses": [Use(phase="decode", sequences=8, context=320, per_step=40)],
        "state": "serving",
        "seed": 0,
        "bytes": 41.0 * MIB,
        "flops": 1e9,
        "matrix_dtype": "bfloat16",
        "rotation": Rotation(sets=7, calls=98, set_bytes=40 * MIB, touched_bytes=40 * MIB, cache_bytes=60 * MIB),
        "staying_bytes": MIB,
        "attempts": list(attempts),
    }
    return CaseSamples(**{**made, **fields})
