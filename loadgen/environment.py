"""What machine this is, for the manifest."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import msgspec


class Host(msgspec.Struct, kw_only=True):
    """A machine; None where another tool's result does not say. ``cores`` are those that loadgen may use."""

    name: str | None = None
    kernel: str | None = None
    machine: str | None = None
    processor: str | None = None
    cores: int | None = None
    memory_bytes: int | None = None
    python: str | None = None


def host() -> Host:
    """This machine."""
    return Host(
        name=platform.node(),
        kernel=platform.release(),
        machine=platform.machine(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        python=platform.python_version(),
    )


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def cache_folder() -> Path:
    """Where loadgen keeps what later runs use: calibration, models made by shape, built engines."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loadgen"
