"""The embedded engine in a process of its own: its command, and its row of the table."""

from __future__ import annotations

import sys

import msgspec

from loadgen import gpus
from loadgen.engines.engine import Engine
from loadgen.engines.installs import Install
from loadgen.engines.sim_config import SimConfig
from loadgen.engines.spec import EngineCommand, EngineSpec
from loadgen.engines.vllm import SERIES
from loadgen.processes import child_environ


def command_for(config: SimConfig) -> EngineCommand:
    """The command that runs the embedded engine."""
    path = child_environ().get("PYTHONPATH")
    return EngineCommand(
        kind="sim",
        version=None,
        argv=[sys.executable, "-m", "loadgen.engines.sim", msgspec.json.encode(config).decode(), "{port}"],
        env={} if path is None else {"PYTHONPATH": path},
        model=config.served_name,
        facts={"config": msgspec.to_builtins(config)},
    )


def prepare(spec: EngineSpec, install: Install | None, found: list[gpus.Gpu]) -> EngineCommand:
    """The command for a spec; nothing can be wrong with it."""
    return command_for(spec.sim or SimConfig())


ENGINE = Engine(
    title="the embedded engine",
    simulated=True,
    owned_by="loadgen-sim",
    prepare=prepare,
    series=SERIES,  # it writes vLLM's names
)
