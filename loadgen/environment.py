"""What machine this is, for the manifest."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any


def host() -> dict[str, Any]:
    """Name, kernel, processor, cores that loadgen may use, memory in bytes."""
    return {
        "name": platform.node(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def gpus() -> tuple[list[dict[str, Any]], str | None]:
    """The NVIDIA GPUs of this host and the driver's version, as nvidia-smi tells; none without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return [], None
    fields = ["name", "uuid", "memory.total", "driver_version"]
    try:
        answer = subprocess.run(
            [tool, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return [], None
    found, driver = [], None
    for line in answer.stdout.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == len(fields):
            name, uuid, memory, driver = parts
            memory_bytes = int(memory) * 2**20 if memory.isdigit() else None
            found.append({"name": name, "uuid": uuid, "memory_bytes": memory_bytes})
    return found, driver
