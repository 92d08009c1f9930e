"""A level's load: what was kept up, or sent on a schedule, while the level was measured.

A load is one of a tagged union. In JSON the tag stands first, in the field ``model``:

    {"model": "closed", "concurrency": 8}
    {"model": "open", "rate_rps": 4.0, "arrival": "poisson", "max_in_flight": 4096}
    {"model": "all at once", "requests": 500}

A further kind of load (sessions, a mix of classes) is a further struct with the same properties, added to
:data:`Load`. ``unit`` is the unit of ``value``; ``column`` is the heading of a narrow column of such loads, two lines.
Everything that is said about a load in a report is said here, so that no report needs to know the kinds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

import msgspec

from loadgen.errors import UsageError


class Closed(msgspec.Struct, frozen=True, kw_only=True, tag_field="model", tag="closed", omit_defaults=True):
    """A closed loop: ``concurrency`` requests are kept in flight.

    Attributes:
        concurrency: requests in flight; 0 where it is not known.
        round: index of the round, from 0, where there are several rounds.
    """

    unit: ClassVar[str] = "in flight"
    column: ClassVar[tuple[str, str]] = ("in", "flight")

    concurrency: int
    round: int | None = None

    @property
    def text(self) -> str:
        """As a sentence has it: ``8 in flight``, ``8 in flight, round 2``."""
        return _with_round(self.name, self.round)

    @property
    def name(self) -> str:
        """The load without its round, as a comparison or a plan has it."""
        return f"{self.concurrency} in flight"

    @property
    def short(self) -> str:
        """For a narrow column: ``8``, or ``2/8`` in the second round."""
        return _round_before(str(self.concurrency), self.round)

    @property
    def value(self) -> float:
        """The load as a number, in the unit of its column."""
        return float(self.concurrency)

    @property
    def slots(self) -> int | None:
        """Requests that are always in flight; None where their number is not fixed."""
        return self.concurrency or None

    @property
    def key(self) -> Closed:
        """Equal for loads that are compared with each other."""
        return msgspec.structs.replace(self, round=None)


class Open(msgspec.Struct, frozen=True, kw_only=True, tag_field="model", tag="open", omit_defaults=True):
    """An open loop: requests are sent when they are due, whatever the server does.

    Attributes:
        rate_rps: requests/s, on average.
        arrival: as ``--arrival`` takes it; None where it is not known.
        max_in_flight: requests due beyond this many are sent late; None where there is no limit.
        round: index of the round, from 0, where there are several rounds.
    """

    unit: ClassVar[str] = "requests/s"
    column: ClassVar[tuple[str, str]] = ("rate", "per s")

    rate_rps: float
    arrival: str | None = None
    max_in_flight: int | None = None
    round: int | None = None

    @property
    def text(self) -> str:
        """As a sentence has it: ``4 requests/s``, ``4 requests/s, round 2``."""
        return _with_round(f"{self.rate_rps:g} requests/s", self.round)

    @property
    def name(self) -> str:
        """The load without its round, as a comparison or a plan has it; two arrivals are two loads."""
        return f"{self.rate_rps:g} requests/s, {self.arrival or 'arrivals unknown'}"

    @property
    def short(self) -> str:
        """For a narrow column: ``4``, or ``2/4`` in the second round."""
        return _round_before(f"{self.rate_rps:g}", self.round)

    @property
    def value(self) -> float:
        """The load as a number, in the unit of its column."""
        return self.rate_rps

    @property
    def slots(self) -> int | None:
        """None: the number of requests in flight is the server's doing."""
        return None

    @property
    def key(self) -> Open:
        """Equal for loads that are compared with each other: what only bounds the load is left out."""
        return msgspec.structs.replace(self, round=None, max_in_flight=None)


class AllAtOnce(msgspec.Struct, frozen=True, kw_only=True, tag_field="model", tag="all at once", omit_defaults=True):
    """Every request sent at the start, as other tools can; loadgen measures no such level itself."""

    unit: ClassVar[str] = "requests at once"
    column: ClassVar[tuple[str, str]] = ("at", "once")

    requests: int
    round: int | None = None

    @property
    def text(self) -> str:
        """As a sentence has it."""
        return _with_round(self.name, self.round)

    @property
    def name(self) -> str:
        """The load without its round."""
        return f"{self.requests} requests at once"

    @property
    def short(self) -> str:
        """For a narrow column."""
        return _round_before(str(self.requests), self.round)

    @property
    def value(self) -> float:
        """The load as a number, in the unit of its column."""
        return float(self.requests)

    @property
    def slots(self) -> int | None:
        """None: what is in flight only falls."""
        return None

    @property
    def key(self) -> AllAtOnce:
        """Equal for loads that are compared with each other."""
        return msgspec.structs.replace(self, round=None)


ArrivalKind = Literal["constant", "poisson", "gamma", "replay"]

Load: TypeAlias = Closed | Open | AllAtOnce


def _with_round(words: str, index: int | None) -> str:
    return words if index is None else f"{words}, round {index + 1}"


def _round_before(words: str, index: int | None) -> str:
    return words if index is None else f"{index + 1}/{words}"


def parse_arrival(text: str) -> tuple[ArrivalKind, float]:
    """Kind and coefficient of variation from ``poisson``, ``constant``, ``gamma:2`` or ``replay``.

    Raises:
        UsageError: it is none of these.
    """
    kind, colon, value = text.partition(":")
    if kind == "gamma":
        try:
            cv = float(value)
        except ValueError:
            cv = 0.0
        if not colon or not 0.01 <= cv <= 100:
            raise UsageError(
                f"--arrival {text}: gamma takes a coefficient of variation from 0.01 to 100, such as gamma:2"
            )
        return "gamma", cv
    if colon or kind not in ("constant", "poisson", "replay"):
        raise UsageError(f"--arrival takes poisson, constant, gamma:CV or replay, not {text!r}")
    return kind, 0.0 if kind == "constant" else 1.0  # type: ignore[return-value]


def arrival_text(kind: ArrivalKind, cv: float) -> str:
    """As ``--arrival`` takes it."""
    return f"gamma:{cv:g}" if kind == "gamma" else kind


def kind_of(load: Load) -> str:
    """The tag of the load's kind, as JSON has it in ``model``: ``closed``, ``open`` or ``all at once``."""
    return str(load.__struct_config__.tag)


def sort_key(load: Load) -> tuple[str, float]:
    """Sorts loads by their kind, then by their size."""
    return kind_of(load), load.value


def without_round(load: Load) -> Load:
    """The load that its rounds have in common."""
    return msgspec.structs.replace(load, round=None)


def in_words(loads: Sequence[Load]) -> str:
    """All levels in a sentence: ``closed loop at 1, 8 in flight``; ``no level`` where there is none."""

    def values(kind: type[Load]) -> str:
        return ", ".join(dict.fromkeys(f"{load.value:g}" for load in loads if isinstance(load, kind)))

    words = [f"closed loop at {values(Closed)} in flight"] if values(Closed) else []
    if values(Open):
        arrivals = ", ".join(dict.fromkeys(str(load.arrival) for load in loads if isinstance(load, Open)))
        words.append(f"open loop at {values(Open)} requests/s, {arrivals} arrivals, latencies from when each was due")
    return " and ".join(words) or "no level"
