"""What a dataset holds, for a terminal."""

from __future__ import annotations

import msgspec

from loadgen.report.table import laid
from loadgen.report.text import fill
from loadgen.workloads.datasets import Inspection, Spread

COLUMNS = "{:<18}{:>12}{:>12}{:>12}{:>12}{:>12}"
SHOWN_FIELDS = 10


def render(found: Inspection) -> str:
    """The inspection in lines of at most 80 columns."""
    kinds = ", ".join(f"{kind.replace('_', ' ')} {count:,}" for kind, count in found.kinds.items())
    rows = [["", "min", "mean", "p50", "p90", "max"]]
    for name in ("input_characters", "input_words", "input_tokens", "output_tokens"):
        values: Spread | None = getattr(found, name)
        if values is not None:
            figures = (values.min, values.mean, values.p50, values.p90, values.max)
            rows.append([name.replace("_", " "), *map(_figure, figures)])
    duplicates = "none"
    if found.duplicate_prompts:
        duplicates = (
            f"{found.duplicate_prompts:,} of {found.prompts:,} repeat an earlier one;"
            " a prefix cache makes those cheaper than new ones"
        )
    # As JSON, so that no control character of a field's name reaches the terminal.
    unsent = [f"{msgspec.json.encode(name).decode()} ({count:,})" for name, count in found.unsent_fields.items()]
    if len(unsent) > SHOWN_FIELDS:
        unsent[SHOWN_FIELDS:] = [f"and {len(unsent) - SHOWN_FIELDS:,} more"]
    return "\n".join(
        [
            fill(f"{found.path}: {found.prompts:,} prompts ({kinds})"),
            "",
            *laid(COLUMNS, rows),
            "",
            fill(f"duplicate prompts: {duplicates}"),
            fill(f"fields not sent: {', '.join(unsent) if unsent else 'none'}"),
        ]
    )


def _figure(value: float) -> str:
    if value >= 1e8:
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
