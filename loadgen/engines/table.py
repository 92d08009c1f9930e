"""The table of engines: a row for each, made in the engine's own file.

Nothing else in the package compares with an engine's name. To add an engine: a file with its row, the
row here, its name in :data:`loadgen.engines.installs.EngineKind`, and the request fields that it
takes in :data:`loadgen.client.endpoint.DIALECTS`. docs/engines.md says what belongs into a row.
"""

from __future__ import annotations

from loadgen.engines import sglang, sim_engine, trtllm, vllm
from loadgen.engines.engine import Engine
from loadgen.engines.installs import EngineKind

ENGINES: dict[EngineKind, Engine] = {
    "sim": sim_engine.ENGINE,
    "vllm": vllm.ENGINE,
    "trtllm": trtllm.ENGINE,
    "sglang": sglang.ENGINE,
}
# An OpenAI-compatible server that is none of them.
UNKNOWN = "openai"


def kind_of(owned_by: str) -> str:
    """The kind of a server, by what its ``/v1/models`` says; :data:`UNKNOWN` for another one."""
    return next((kind for kind, row in ENGINES.items() if row.owned_by == owned_by), UNKNOWN)


def row_of(kind: str) -> Engine | None:
    """The row of a server's kind; None for :data:`UNKNOWN`."""
    return next((row for name, row in ENGINES.items() if name == kind), None)


def is_simulated(kind: str) -> bool:
    """Whether figures of a server of this kind are to be marked."""
    row = row_of(kind)
    return row is not None and row.simulated
