"""A list of runs, for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from loadgen.report.text import WIDTH, fill, one_line
from loadgen.run_folders import RunEntry

UNITS = ((86400 * 365, "y"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def render(entries: Sequence[RunEntry], now: datetime) -> str:
    """Each run in a few lines: its name and age, then engine, model, loads and verdicts.

    Args:
        now: with its time zone.
    """
    return "\n".join(_run(entry, now) for entry in entries) + "\n"


def age(seconds: float) -> str:
    """``3 h``, in the largest unit of which there is one; what lies ahead of this clock is 0 s old."""
    for size, name in UNITS:
        if seconds >= size:
            return f"{int(seconds / size)} {name}"
    return "0 s"


def verdicts(entry: RunEntry) -> str:
    """``1, 8, 64 in flight: VALID``; those that are not valid by their loads."""
    loads = entry.levels
    if not loads:
        return "no level"
    if entry.search is not None:
        return f"search for the {entry.search} over {len(loads)} levels"
    values = dict.fromkeys(f"{level.load.value:g}" for level in loads)
    words = f"{', '.join(values)} {loads[0].load.unit}"
    rounds = len({level.load.round for level in loads})
    if rounds > 1:
        words += f", {rounds} rounds"
    bad = [f"{level.load.short} {level.verdict}" for level in loads if level.verdict != "VALID"]
    return f"{words}: {', '.join(bad) if bad else 'VALID'}"


def _run(entry: RunEntry, now: datetime) -> str:
    if entry.kind == "unreadable":
        return "\n".join([_head(entry.name, "unreadable"), fill(one_line(entry.state or ""), "  ")])
    when = "" if entry.started_utc is None else age((now - datetime.fromisoformat(entry.started_utc)).total_seconds())
    lines = [_head(entry.name, "  ".join(word for word in (when, "SIMULATED" if entry.simulated else "") if word))]
    if entry.kind == "kernels":
        about = [text for text in (entry.model, entry.engine) if text]
        lines.append(fill(one_line(f"kernels: {' on '.join(about) or 'no device'}"), "  "))
    elif entry.kind == "sweep":
        lines += [fill(f"{one_line(run.name)}: {_about(run)}", "  ") for run in entry.runs]
    else:
        lines.append(fill(_about(entry), "  "))
    if entry.state:
        lines.append(fill(one_line(entry.state), "  "))
    return "\n".join(lines)


def _about(entry: RunEntry) -> str:
    engine = " ".join(word for word in (entry.engine, entry.version) if word)
    words = "; ".join(word for word in (engine, entry.model) if word) or "engine unknown"
    state = f" ({entry.state})" if entry.state and entry.kind == "run" and not entry.levels else ""
    return one_line(f"{words}; {verdicts(entry)}{state}")


def _head(name: str, right: str) -> str:
    name = one_line(name)
    gap = WIDTH - len(name) - len(right)
    return f"{name}{' ' * gap}{right}".rstrip() if gap >= 2 else f"{name}\n{right:>{WIDTH}}"
