"""The content of summary.json. How it is made from a run folder's records stands in loadgen/analysis/measure.py."""

from __future__ import annotations

import msgspec

from loadgen.analysis.figures import LevelSummary
from loadgen.analysis.find import Find
from loadgen.analysis.rounds import RoundSpread
from loadgen.records import FORMAT_VERSION


class Summary(msgspec.Struct, kw_only=True):
    """The content of summary.json; ``rounds`` where there are several, ``find`` where something was looked for."""

    format_version: int = FORMAT_VERSION
    simulated: bool
    levels: list[LevelSummary]
    rounds: list[RoundSpread] | msgspec.UnsetType = msgspec.UNSET
    find: Find | msgspec.UnsetType = msgspec.UNSET
    notes: list[str] = []

    @property
    def valid(self) -> bool:
        """Whether every level is VALID; or what was looked for is found, beyond which no level need be."""
        if isinstance(self.find, Find):
            return self.find.found
        return bool(self.levels) and all(level.verdict.status == "VALID" for level in self.levels)
