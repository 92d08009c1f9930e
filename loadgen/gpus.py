"""NVIDIA GPUs through NVML: what is there, what holds its memory, and samples while a level runs.

Everything here only reads; nothing about a card is ever changed. Without a driver there are no
GPUs, which is an answer, not an error.

Sources: NVML API reference (nvidia-ml-py 12 and later); peak rates and bandwidths: NVIDIA's data
sheets, dense.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from loadgen.clock import now_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# First CUDA toolkit whose nvcc compiles for an architecture (NVIDIA's toolkit and architecture matrix).
ARCHITECTURES: dict[tuple[int, int], tuple[str, str]] = {
    (7, 0): ("Volta", "9.0"),
    (7, 5): ("Turing", "10.0"),
    (8, 0): ("Ampere", "11.0"),
    (8, 6): ("Ampere", "11.1"),
    (8, 7): ("Ampere", "11.4"),
    (8, 9): ("Ada", "11.8"),
    (9, 0): ("Hopper", "11.8"),
    (10, 0): ("Blackwell", "12.8"),
    (10, 3): ("Blackwell", "12.9"),
    (12, 0): ("Blackwell", "12.8"),
    (12, 1): ("Blackwell", "12.9"),
}
FP8_SINCE = (8, 9)
BF16_SINCE = (8, 0)


class DataSheet(NamedTuple):
    """Dense rates in TFLOP/s (int8: TOP/s), memory bandwidth in GB/s; None where there is no unit for it."""

    bandwidth_gbs: float
    bf16_tflops: float | None
    fp8_tflops: float | None
    int8_tops: float | None


# By words of NVML's name, the more particular first; MIG slices have a share of these.
DATA_SHEETS: list[tuple[str, DataSheet]] = [
    ("GB200", DataSheet(8000, 2500, 5000, 5000)),
    ("B200", DataSheet(8000, 2250, 4500, 4500)),
    ("H200", DataSheet(4800, 989, 1979, 1979)),
    ("H100 PCIe", DataSheet(2000, 756, 1513, 1513)),
    ("H100 NVL", DataSheet(3900, 835, 1671, 1671)),
    ("H100", DataSheet(3350, 989, 1979, 1979)),
    ("A100-SXM4-80GB", DataSheet(2039, 312, None, 624)),
    ("A100 80GB PCIe", DataSheet(1935, 312, None, 624)),
    ("A100-SXM-80GB", DataSheet(2039, 312, None, 624)),
    ("A100", DataSheet(1555, 312, None, 624)),
    ("A30", DataSheet(933, 165, None, 330)),
    ("L40S", DataSheet(864, 362, 733, 733)),
    ("L40", DataSheet(864, 181, 362, 362)),
    ("L4", DataSheet(300, 121, 242, 242)),
    ("RTX 3090 Ti", DataSheet(1008, 80, None, 320)),
    ("RTX 3090", DataSheet(936, 71, None, 284)),
    ("V100", DataSheet(900, None, None, None)),
]

# nvmlClocksEventReason*: why clocks are below what was asked for. Idle and application clocks are no fault.
THROTTLE_REASONS = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}


class MigSlice(msgspec.Struct, kw_only=True):
    """One MIG instance: what ``--device`` takes, its profile's name, and its memory."""

    uuid: str
    name: str
    memory_bytes: int


class Gpu(msgspec.Struct, kw_only=True):
    """One GPU as NVML describes it; None where NVML says nothing."""

    index: int
    uuid: str
    name: str
    memory_bytes: int
    memory_used_bytes: int
    compute_capability: tuple[int, int]
    architecture: str
    bandwidth_gbs: float | None = None
    bf16_tflops: float | None = None
    fp8_tflops: float | None = None
    int8_tops: float | None = None
    power_limit_w: float | None = None
    sm_clock_mhz: int | None = None
    max_sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    mig_enabled: bool = False
    mig_slices: list[MigSlice] = []
    processes: list[dict[str, Any]] = []


class GpuReading(msgspec.Struct, kw_only=True):
    """One GPU at one moment; None where NVML does not say. ``energy_j`` counts from the driver's start."""

    uuid: str
    power_w: float | None = None
    energy_j: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    utilization: float | None = None
    memory_utilization: float | None = None
    memory_used_bytes: int | None = None
    throttle: list[str] = []


class GpuSample(msgspec.Struct, kw_only=True):
    """A line of ``gpu.jsonl``; ``level`` is the one that was running."""

    t_ns: int
    level: int
    gpus: list[GpuReading]


def data_sheet(name: str) -> DataSheet | None:
    """The data sheet's rates for a GPU's name, or None."""

    def words(text: str) -> str:
        return f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "

    return next((sheet for piece, sheet in DATA_SHEETS if words(piece) in words(name)), None)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class Nvml:
    """An open NVML session. Use :func:`nvml`, which closes it again."""

    def __init__(self) -> None:
        import pynvml

        self._lib = pynvml
        pynvml.nvmlInit()
        try:
            self._handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        except BaseException:
            pynvml.nvmlShutdown()
            raise

    def _ask(self, call: Callable[[], Any]) -> Any:
        """The answer, or None: what a card, a driver or a MIG slice does not support."""
        try:
            return call()
        except (self._lib.NVMLError, AttributeError, ValueError):
            return None

    @property
    def driver(self) -> str:
        return _text(self._lib.nvmlSystemGetDriverVersion())

    @property
    def cuda(self) -> str | None:
        """The newest CUDA that the driver runs, such as ``"13.0"``."""
        version = self._ask(self._lib.nvmlSystemGetCudaDriverVersion_v2)
        return None if version is None else f"{version // 1000}.{version % 1000 // 10}"

    def gpus(self) -> list[Gpu]:
        """Every GPU that this process may see through NVML (CUDA_VISIBLE_DEVICES does not matter here)."""
        return [self._describe(index, handle) for index, handle in enumerate(self._handles)]

    def _describe(self, index: int, handle: Any) -> Gpu:
        lib, ask = self._lib, self._ask
        name = _text(lib.nvmlDeviceGetName(handle))
        memory = lib.nvmlDeviceGetMemoryInfo(handle)
        capability = tuple(lib.nvmlDeviceGetCudaComputeCapability(handle))
        sheet = data_sheet(name)
        mig = ask(lambda: lib.nvmlDeviceGetMigMode(handle)[0])
        limit = ask(lambda: lib.nvmlDeviceGetEnforcedPowerLimit(handle))
        return Gpu(
            index=index,
            uuid=_text(lib.nvmlDeviceGetUUID(handle)),
            name=name,
            memory_bytes=int(memory.total),
            memory_used_bytes=int(memory.used),
            compute_capability=capability,
            architecture=ARCHITECTURES.get(capability, ("unknown", ""))[0],
            bandwidth_gbs=self._bandwidth(handle) if sheet is None else sheet.bandwidth_gbs,
            bf16_tflops=sheet.bf16_tflops if sheet else None,
            fp8_tflops=sheet.fp8_tflops if sheet else None,
            int8_tops=sheet.int8_tops if sheet else None,
            power_limit_w=None if limit is None else limit / 1000,
            sm_clock_mhz=ask(lambda: lib.nvmlDeviceGetClockInfo(handle, lib.NVML_CLOCK_SM)),
            max_sm_clock_mhz=ask(lambda: lib.nvmlDeviceGetMaxClockInfo(handle, lib.NVML_CLOCK_SM)),
            memory_clock_mhz=ask(lambda: lib.nvmlDeviceGetClockInfo(handle, lib.NVML_CLOCK_MEM)),
            mig_enabled=bool(mig),
            mig_slices=self._slices(handle) if mig else [],
            processes=self._processes(handle),
        )

    def _bandwidth(self, handle: Any) -> float | None:
        """GB/s from bus width and clock, two transfers a clock, where no data sheet is known."""
        width = self._ask(lambda: self._lib.nvmlDeviceGetMemoryBusWidth(handle))
        clock = self._ask(lambda: self._lib.nvmlDeviceGetMaxClockInfo(handle, self._lib.NVML_CLOCK_MEM))
        return None if not width or not clock else width / 8 * clock * 1e6 * 2 / 1e9

    def _slices(self, handle: Any) -> list[MigSlice]:
        lib = self._lib
        found = []
        for index in range(self._ask(lambda: lib.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0):
            mig = self._ask(partial(lib.nvmlDeviceGetMigDeviceHandleByIndex, handle, index))
            if mig is None:
                continue
            found.append(
                MigSlice(
                    uuid=_text(lib.nvmlDeviceGetUUID(mig)),
                    name=_text(lib.nvmlDeviceGetName(mig)),
                    memory_bytes=int(lib.nvmlDeviceGetMemoryInfo(mig).total),
                )
            )
        return found

    def _processes(self, handle: Any) -> list[dict[str, Any]]:
        found = self._ask(lambda: self._lib.nvmlDeviceGetComputeRunningProcesses(handle)) or []
        return [{"pid": p.pid, "memory_bytes": p.usedGpuMemory} for p in found]

    def sample(self, level: int, uuids: set[str] | None = None) -> GpuSample:
        """A reading of each GPU, or of those named, for a level. A few milliseconds."""
        t_ns = now_ns()
        readings = []
        for handle in self._handles:
            raw = self._ask(partial(self._lib.nvmlDeviceGetUUID, handle))
            if raw is None:
                continue  # the card is gone: it fell off the bus
            uuid = _text(raw)
            if uuids is None or uuid in uuids:
                readings.append(self._read(handle, uuid))
        return GpuSample(t_ns=t_ns, level=level, gpus=readings)

    def _read(self, handle: Any, uuid: str) -> GpuReading:
        lib, ask = self._lib, self._ask
        power = ask(lambda: lib.nvmlDeviceGetPowerUsage(handle))
        energy = ask(lambda: lib.nvmlDeviceGetTotalEnergyConsumption(handle))
        rates = ask(lambda: lib.nvmlDeviceGetUtilizationRates(handle))
        memory = ask(lambda: lib.nvmlDeviceGetMemoryInfo(handle))
        reasons = ask(lambda: lib.nvmlDeviceGetCurrentClocksThrottleReasons(handle)) or 0
        return GpuReading(
            uuid=uuid,
            power_w=None if power is None else power / 1000,
            energy_j=None if energy is None else energy / 1000,
            sm_clock_mhz=ask(lambda: lib.nvmlDeviceGetClockInfo(handle, lib.NVML_CLOCK_SM)),
            memory_clock_mhz=ask(lambda: lib.nvmlDeviceGetClockInfo(handle, lib.NVML_CLOCK_MEM)),
            temperature_c=ask(lambda: lib.nvmlDeviceGetTemperature(handle, lib.NVML_TEMPERATURE_GPU)),
            utilization=None if rates is None else rates.gpu / 100,
            memory_utilization=None if rates is None else rates.memory / 100,
            memory_used_bytes=None if memory is None else int(memory.used),
            throttle=[text for bit, text in THROTTLE_REASONS.items() if reasons & bit],
        )

    def close(self) -> None:
        self._lib.nvmlShutdown()


@contextmanager
def nvml() -> Iterator[Nvml | None]:
    """NVML while the context lasts; None where there is no driver."""
    try:
        import pynvml

        session = Nvml()
    except ImportError:
        yield None
        return
    except (pynvml.NVMLError, OSError):
        yield None
        return
    try:
        yield session
    finally:
        session.close()


def find_gpus() -> tuple[list[Gpu], str | None]:
    """The GPUs of this host and the driver's version; none without a driver."""
    with nvml() as session:
        return (session.gpus(), session.driver) if session is not None else ([], None)
