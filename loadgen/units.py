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
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*(%?)", re.ASCII)
_MONEY = re.compile(r"([$€£¥]?)\s*(\d+(?:\.\d+)?)\s*([$€£¥]|[A-Z]{3})?", re.ASCII)
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_duration_s(text: str, *, bare_seconds: bool = False) -> float:
    """Seconds from ``"500ms"``, ``"60s"``, ``"5m"``, ``"1h"`` or ``"1m30s"``.

    Args:
        bare_seconds: read a number without a unit as seconds, as the options of the command line do. An
            objective such as ``ttft=500`` stays an error: it could be milliseconds.

    Raises:
        UsageError: not a duration, a unit is missing, or the duration is not above zero.
    """
    given = text.strip()
    pieces = list(_DURATION.finditer(given))
    if bare_seconds and _NUMBER.fullmatch(given):
        seconds = float(given)
    elif pieces and "".join(p.group(0) for p in pieces) == given:
        seconds = sum(float(p.group(1)) * _SECONDS[p.group(2)] for p in pieces)
    elif bare_seconds:
        raise UsageError(f"not a duration: {text!r}; write it as 500ms, 60s or 5m, or as a number of seconds")
    else:
        raise UsageError(f"not a duration: {text!r}; write it with a unit, such as 500ms, 60s or 5m")
    if not 0 < seconds < math.inf:
        raise UsageError(f"a duration must be above zero, not {text!r}")
    return seconds


def parse_share(text: str) -> float:
    """0.2 from ``"20%"``, ``"20"`` or ``"0.2"``: a bare number above 1 is per cent, at most 1 a share.

    Raises:
        UsageError: not a share.
    """
    found = _SHARE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"not a share: {text!r}; write it as 20% or 0.2")
    value = float(found[1])
    return value / 100 if found[2] or value > 1 else value


def parse_money(text: str) -> float:
    """2.5 from ``"2.50"``, ``"$2.50"``, ``"2.50 €"`` or ``"2.50 USD"``; the currency is not kept.

    Raises:
        UsageError: not a price, or not above zero.
    """
    found = _MONEY.fullmatch(text.strip())
    if found is None or (found[1] and found[3]):
        raise UsageError(f"not a price: {text!r}; write it as 2.50, '$2.50' or '2.50 EUR'")
    amount = float(found[2])
    if not 0 < amount < math.inf:
        raise UsageError(f"a price must be above zero, not {text!r}")
    return amount


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
