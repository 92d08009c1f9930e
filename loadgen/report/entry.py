"""A run as the reports take it: everything that was read of its folder, and the name that it goes by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadgen.analysis.summary import Summary
from loadgen.engines.offline import OfflineReport
from loadgen.records import Manifest
from loadgen.report.waterfall import Beside


class Entry(msgspec.Struct, kw_only=True):
    """One run of a report.

    Attributes:
        name: short, and another for each run of the report.
        folder: the run folder.
        beside: kernels at the sizes that it served, where they were measured.
        offline: a report of trtllm-bench, where it has one.
    """

    name: str
    folder: Path
    manifest: Manifest
    summary: Summary
    beside: Beside | None = None
    offline: OfflineReport | None = None


def names_of(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell it from the others; a folder that comes twice is numbered."""
    parts = [folder.resolve().parts[1:] or ("/",) for folder in folders]
    names = []
    for index, own in enumerate(parts):
        others = [other for other in parts if other != own]
        count = next((n for n in range(1, len(own)) if all(other[-n:] != own[-n:] for other in others)), len(own))
        again = parts[:index].count(own)
        names.append("/".join(own[-count:]) + (f" ({again + 1})" if again else ""))
    return names
