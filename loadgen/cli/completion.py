"""What a shell offers on TAB: names of runs and of bundled datasets. docs/completion.md says how to switch it on."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from pathlib import Path

VARIABLE = "_LOADGEN_COMPLETE"  # set by the shell's completion script
LAST = ("@last", "@last~1", "@last~2")


def run_names(incomplete: str, homes: Sequence[Path] | None = None) -> list[str]:
    """Names that begin with ``incomplete``, as ``loadgen report`` takes them, the newest run first.

    Args:
        homes: folders that hold runs; None takes those of :mod:`loadgen.run_folders`.
    """
    from loadgen.run_folders import HOMES, list_runs

    entries = [entry for entry in list_runs(HOMES if homes is None else homes) if entry.kind != "unreadable"]
    served = [entry for entry in entries if entry.kind in ("run", "sweep")]
    names = [*LAST[: len(served)], *(entry.name for entry in entries)]
    return [name for name in names if name.startswith(incomplete)]


def dataset_names(incomplete: str) -> list[str]:
    """Bundled datasets whose names begin with ``incomplete``; files are the shell's own business."""
    from loadgen.workloads.datasets import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


def rejoin_words(environ: MutableMapping[str, str]) -> None:
    """Undoes what bash does to the words of a command line: it cuts ``@last`` and ``--engine=sim`` at ``@`` and ``=``.

    Bash gives the words in ``COMP_WORDS``, one a line, and the place of the cursor's word in ``COMP_CWORD``.
    """
    place = environ.get("COMP_CWORD", "")
    if not place.isdecimal():
        return
    joined: list[str] = []
    here = None
    for index, word in enumerate(environ.get("COMP_WORDS", "").split("\n")):
        before = joined[-1] if joined else ""
        option = before.startswith("--")
        if before == "@" or (option and (word == "=" or before.endswith("="))):
            joined[-1] += word
        else:
            joined.append(word)
        if index == int(place):
            here = len(joined) - 1
    environ["COMP_WORDS"] = "\n".join(joined)
    environ["COMP_CWORD"] = str(len(joined) if here is None else here)
