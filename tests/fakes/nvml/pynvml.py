# ruff: noqa: N801, N802, N818  (the names are NVML's)
"""A stand-in for nvidia-ml-py: GPUs of a JSON file, for hosts without a driver.

Put this folder first on PYTHONPATH (or the module into ``sys.modules``) and name a file in the
variable ``FAKE_NVML``. Without it there is no driver: ``nvmlInit`` fails as the real one does. The
file is read anew at every call, so that a test can change it while a process runs; the number of
GPUs must stay.

The file holds a list of GPUs. Needed of each: ``name``, ``uuid``, ``memory`` (bytes), ``capability``
([major, minor]). What is null or left out of the following is Not Supported by the card::

    used                       bytes; 0 when left out
    power_mw, power_limit_mw   now, and enforced
    energy_mj                  since the driver was loaded
    temperature                degrees Celsius
    utilization                [GPU, memory], percent
    throttle                   bits of nvmlClocksThrottleReason*
    clocks, max_clocks         {"sm": MHz, "memory": MHz}
    bus_width                  bits
    mig                        false: off; a list of slices: on. A slice has uuid, name, memory and used;
                               null instead of one is a place that holds none
    processes                  [{"pid": N, "memory": bytes or null}]
    lost                       true: it fell off the bus, and every call about it fails

It has the functions that loadgen/gpus.py calls and no others, with the return types and errors of
nvidia-ml-py 13; tests/test_gpus.py compares the names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

DRIVER = "580.65.06"
CUDA = 13000
MAX_SLICES = 7

NVML_CLOCK_SM = 1
NVML_CLOCK_MEM = 2
NVML_TEMPERATURE_GPU = 0
_CLOCKS = {NVML_CLOCK_SM: "sm", NVML_CLOCK_MEM: "memory"}

_open = 0


class NVMLError(Exception):
    """Every failure of a call."""


class NVMLError_Uninitialized(NVMLError):
    """A call outside nvmlInit and nvmlShutdown."""


class NVMLError_InvalidArgument(NVMLError):
    """No such GPU."""


class NVMLError_NotSupported(NVMLError):
    """The card has no such thing."""


class NVMLError_NotFound(NVMLError):
    """No MIG slice in this place."""


class NVMLError_GpuIsLost(NVMLError):
    """The card has fallen off the bus."""


class NVMLError_LibraryNotFound(NVMLError):
    """No driver is installed."""


# A handle is the index of a GPU, and that of a slice in it, if it is one.
Handle = tuple[int, int | None]


def _gpus() -> list[dict[str, Any]]:
    if not _open:
        raise NVMLError_Uninitialized("Uninitialized")
    found: list[dict[str, Any]] = json.loads(Path(os.environ["FAKE_NVML"]).read_text())
    return found


def _device(handle: Handle) -> dict[str, Any]:
    index, place = handle
    gpu = _gpus()[index]
    if gpu.get("lost"):
        raise NVMLError_GpuIsLost("GPU is lost")
    device: dict[str, Any] = gpu if place is None else gpu["mig"][place]
    return device


def _supported(handle: Handle, key: str) -> Any:
    value = _device(handle).get(key)
    if value is None:
        raise NVMLError_NotSupported("Not Supported")
    return value


def nvmlInit() -> None:
    global _open
    if "FAKE_NVML" not in os.environ:
        raise NVMLError_LibraryNotFound("NVML Shared Library Not Found")
    _open += 1


def nvmlShutdown() -> None:
    global _open
    if not _open:
        raise NVMLError_Uninitialized("Uninitialized")
    _open -= 1


def nvmlSystemGetDriverVersion() -> str:
    _gpus()
    return DRIVER


def nvmlSystemGetCudaDriverVersion_v2() -> int:
    _gpus()
    return CUDA


def nvmlDeviceGetCount() -> int:
    return len(_gpus())


def nvmlDeviceGetHandleByIndex(index: int) -> Handle:
    if not 0 <= index < len(_gpus()):
        raise NVMLError_InvalidArgument("Invalid Argument")
    return (index, None)


def nvmlDeviceGetName(handle: Handle) -> str:
    return str(_device(handle)["name"])


def nvmlDeviceGetUUID(handle: Handle) -> str:
    return str(_device(handle)["uuid"])


def nvmlDeviceGetMemoryInfo(handle: Handle) -> SimpleNamespace:
    device = _device(handle)
    total, used = device["memory"], device.get("used", 0)
    return SimpleNamespace(total=total, used=used, free=total - used)


def nvmlDeviceGetCudaComputeCapability(handle: Handle) -> tuple[int, int]:
    major, minor = _device(handle)["capability"]
    return major, minor


def nvmlDeviceGetMigMode(handle: Handle) -> list[int]:
    mode = int(_supported(handle, "mig") is not False)
    return [mode, mode]


def nvmlDeviceGetMaxMigDeviceCount(handle: Handle) -> int:
    _supported(handle, "mig")
    return MAX_SLICES


def nvmlDeviceGetMigDeviceHandleByIndex(handle: Handle, index: int) -> Handle:
    slices = _supported(handle, "mig") or []
    if index >= len(slices) or slices[index] is None:
        raise NVMLError_NotFound("Not Found")
    return (handle[0], index)


def nvmlDeviceGetEnforcedPowerLimit(handle: Handle) -> int:
    return int(_supported(handle, "power_limit_mw"))


def nvmlDeviceGetPowerUsage(handle: Handle) -> int:
    return int(_supported(handle, "power_mw"))


def nvmlDeviceGetTotalEnergyConsumption(handle: Handle) -> int:
    return int(_supported(handle, "energy_mj"))


def nvmlDeviceGetTemperature(handle: Handle, sensor: int) -> int:
    if sensor != NVML_TEMPERATURE_GPU:
        raise NVMLError_InvalidArgument("Invalid Argument")
    return int(_supported(handle, "temperature"))


def nvmlDeviceGetUtilizationRates(handle: Handle) -> SimpleNamespace:
    gpu, memory = _supported(handle, "utilization")
    return SimpleNamespace(gpu=gpu, memory=memory)


def nvmlDeviceGetCurrentClocksThrottleReasons(handle: Handle) -> int:
    return int(_supported(handle, "throttle"))


def _clock(handle: Handle, key: str, kind: int) -> int:
    clock = _supported(handle, key).get(_CLOCKS[kind])
    if clock is None:
        raise NVMLError_NotSupported("Not Supported")
    return int(clock)


def nvmlDeviceGetClockInfo(handle: Handle, kind: int) -> int:
    return _clock(handle, "clocks", kind)


def nvmlDeviceGetMaxClockInfo(handle: Handle, kind: int) -> int:
    return _clock(handle, "max_clocks", kind)


def nvmlDeviceGetMemoryBusWidth(handle: Handle) -> int:
    return int(_supported(handle, "bus_width"))


def nvmlDeviceGetComputeRunningProcesses(handle: Handle) -> list[SimpleNamespace]:
    found = _device(handle).get("processes", [])
    return [SimpleNamespace(pid=process["pid"], usedGpuMemory=process.get("memory")) for process in found]
