"""A real SGLang on the CPU, serving the tiny model; ``make .venv-sglang/.made`` makes its environment."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from loadgen.engines.launch import Launched, launch, prepare
from loadgen.engines.server import reset_prefix_cache
from loadgen.engines.spec import EngineSpec
from loadgen.sweeps.selftest import run_selftest

pytestmark = pytest.mark.engines

PATIENCE_S = 600


@pytest.fixture
def python() -> str:
    """Python of the environment that SGLang is installed in."""
    path = os.environ.get("LOADGEN_SGLANG_PYTHON")
    if path is None:
        pytest.skip("LOADGEN_SGLANG_PYTHON names no environment")
    return str(Path(path).absolute())


def test_the_selftest_holds(python: str) -> None:
    said: list[str] = []
    assert run_selftest("sglang", python, said.append), "\n".join(said)
    assert "ok   its own counters agree with the records" in said


def test_its_cache_is_emptied_and_its_death_explained(python: str, tmp_path: Path) -> None:
    spec = EngineSpec(kind="sglang", name="sglang", model="shape:tiny", python=python, start_timeout_s=PATIENCE_S)
    deaths: list[str] = []

    async def work(engine: Launched) -> None:
        assert await reset_prefix_cache(engine.url, "sglang")
        children = Path(f"/proc/{engine.pid}/task/{engine.pid}/children").read_text().split()
        scheduler = next(pid for pid in children if b"scheduler" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(int(scheduler), signal.SIGQUIT)
        while (death := engine.death()) is None:
            await asyncio.sleep(0.1)
        deaths.append(death)

    async def run() -> None:
        async with launch(spec, prepare(spec, []), tmp_path) as engine:
            assert engine.startup_s["weights_s"] > 0
            assert engine.command.facts["kv_cache_tokens"] == 65_536
            await work(engine)

    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))
    assert "out of memory" not in deaths[0]
    assert "dmesg" not in deaths[0], deaths[0]
