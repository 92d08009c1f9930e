"""Real servers for the tests: the embedded engine, and a socket that says what a test tells it to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import FAKES, TPOT_S, TRTLLM_VERSIONS, TTFT_S

from loadgen.engines.launch import RunningSim, launch_sim
from loadgen.engines.sim_config import SimConfig

LAUNCHES = ("test_launch", "test_trtllm", "test_sglang", "test_engine_sweeps")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "integration" in item.path.parts:
            item.add_marker(pytest.mark.integration)
        if item.path.stem in LAUNCHES:
            item.add_marker(pytest.mark.launches)


@pytest.fixture(scope="session")
def sim() -> Iterator[RunningSim]:
    """The embedded engine with a fixed timing of 20 ms and 2 ms."""
    with launch_sim(SimConfig(mode="fixed", ttft_s=TTFT_S, tpot_s=TPOT_S)) as launched:
        yield launched


@pytest.fixture(scope="session")
def trtllm_installs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The Python of a fake environment of each version."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import trtllm; "
    code += "print(trtllm.install(Path(sys.argv[2]), sys.argv[3]))"
    found = {}
    for version in TRTLLM_VERSIONS:
        folder = tmp_path_factory.mktemp(f"trtllm-{version}")
        done = subprocess.run(
            [sys.executable, "-c", code, str(FAKES), str(folder), version], capture_output=True, text=True, check=True
        )
        found[version] = Path(done.stdout.strip())
    return found
