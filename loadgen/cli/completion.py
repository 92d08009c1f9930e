"""What a shell offers on TAB: names of runs and of bundled datasets. docs/completion.md says how to switch it on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

LAST = ("@last", "@last~1", "@last~2")


def run_names(
    incomplete: str, homes: Sequence[Path] | None = None, env: Mapping[str, str] | None = None
) -> list[str]:
    """Names that begin with ``incomplete``, as ``loadgen report`` takes them, the newest run first.

    Args:
        homes: the folders that hold runs; None takes those of :mod:`loadgen.run_folders`.
        env: where bash says what was typed; None takes this process's environment.
    """
    from loadgen.run_folders import HOMES, list_runs

    before = _behind_an_at(os.environ if env is None else env)
    wanted = before + incomplete
    entries = [entry for entry in list_runs(HOMES if homes is None else homes) if entry.kind != "unreadable"]
    served = [entry for entry in entries if entry.kind in ("run", "sweep")]
    names = [*LAST[: len(served)], *(entry.name for entry in entries)]
    return [name.removeprefix(before) for name in names if name.startswith(wanted)]


def _behind_an_at(env: Mapping[str, str]) -> str:
    """``"@"`` where bash has cut ``@la`` in two: it completes only what stands behind an ``@``."""
    words, place = env.get("COMP_WORDS", "").split("\n"), env.get("COMP_CWORD", "")
    if not place.isdecimal() or not 0 < int(place) <= len(words):
        return ""
    here = words[int(place)] if int(place) < len(words) else ""
    return "@" if words[int(place) - 1] == "@" or here == "@" else ""


def dataset_names(incomplete: str) -> list[str]:
    """Bundled datasets whose names begin with ``incomplete``; files are the shell's own business."""
    from loadgen.workloads.datasets import shipped

    return [name for name in shipped() if name.startswith(incomplete)]
