"""Reading and printing quantities with units.

Inside loadgen a time is an ``int`` of nanoseconds, in summaries a ``float`` of seconds, and
milliseconds exist only here, for people.
"""

from __future__ import annotations

import math
import re

from loadgen.errors import UsageError

NS_PER_S = 1_000_000_000

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|min|m|h)", re.ASCII)
_PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*%", re.ASCII)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_duration_s(text: str) -> float:
    """Seconds from ``"500ms"``, ``"60s"``, ``"5m"``, ``"1h"`` or ``"1m30s"``.

    Raises:
        UsageError: the text has no unit, or is no positive duration.
    """
    pieces = list(_DURATION.finditer(text.strip()))
    if not pieces or "".join(p.group(0) for p in pieces) != text.strip():
        raise UsageError(f"not a duration: {text!r}; write it with a unit, such as 500ms, 60s or 5m")
    seconds = sum(float(p.group(1)) * _SECONDS[p.group(2)] for p in pieces)
    if seconds <= 0:
        raise UsageError(f"a duration must be above zero, not {text!r}")
    return seconds


def parse_share(text: str) -> float:
    """0.2 from ``"20%"``.

    Raises:
        UsageError: the text is no percentage.
    """
    found = _PERCENT.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"not a percentage: {text!r}; write it as 20%")
    return float(found[1]) / 100


def format_ms(seconds: float | None, half_width_s: float | None = None) -> str:
    """Milliseconds with the digits that the sample supports.

    The last digit shown is the first one that the 95 % interval's half-width leaves uncertain;
    without an interval three significant digits are shown. From 10 s on no decimals are. ``None``
    gives ``"n/a"``.
    """
    if seconds is None or not math.isfinite(seconds):
        return "n/a"
    ms = seconds * 1e3
    if half_width_s is not None and half_width_s > 0:
        decimals = -math.floor(math.log10(half_width_s * 1e3))
    elif ms:
        decimals = 2 - math.floor(math.log10(abs(ms)))
    else:
        decimals = 0
    most = 3 if abs(ms) < 10_000 else 0
    return f"{ms:,.{min(max(decimals, 0), most)}f}"


def format_count(value: float) -> str:
    """A count or rate for people: three significant digits below 100, thousands separated above."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"
