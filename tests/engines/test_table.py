"""The table of engines: whole, light, and the only place that knows their names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from loadgen.analysis.server_metrics import METRICS
from loadgen.client.endpoint import DIALECTS
from loadgen.engines.installs import EngineKind
from loadgen.engines.table import ENGINES, UNKNOWN, is_simulated, kind_of, row_of

PACKAGE = Path(__file__).resolve().parents[2] / "loadgen"
KINDS = get_args(EngineKind)
# Names of formats of files, which happen to be those of engines.
FORMATS = "workloads/datasets.py"


def test_every_kind_has_a_row_and_a_dialect() -> None:
    assert tuple(ENGINES) == KINDS
    assert DIALECTS.keys() == {*KINDS, UNKNOWN}


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_whole(kind: EngineKind) -> None:
    row = ENGINES[kind]
    assert row.simulated == (not row.packages), "what is not installed is embedded"
    assert row.watched <= METRICS.keys()
    assert set(row.zero_until_seen) <= METRICS.keys()
    assert row.simulated or row.watched, "the self-test looks for something"


def test_servers_are_told_apart_by_their_owner() -> None:
    assert [kind_of(row.owned_by) for row in ENGINES.values()] == list(KINDS)
    assert kind_of("someone") == UNKNOWN
    assert row_of(UNKNOWN) is None
    assert [is_simulated(kind) for kind in (*KINDS, UNKNOWN)] == [kind == "sim" for kind in (*KINDS, UNKNOWN)]


def test_the_table_is_light() -> None:
    code = "import sys, loadgen.engines.table; print([m for m in ('aiohttp', 'click', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_nothing_outside_the_engines_compares_with_their_names() -> None:
    found, compared = [], 0
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith("cli/") or name == FORMATS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Compare):
                continue
            compared += 1
            constants = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            own = path.parent.name == "engines" and any(path.stem.startswith(kind) for kind in KINDS)
            if set(constants) & set(KINDS) and not own:
                found.append(f"{name}:{node.lineno}")
    assert compared > 1000
    assert not found
