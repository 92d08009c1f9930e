"""What the parent and a worker tell each other: JSON lines over pipes."""

from __future__ import annotations

import msgspec

from loadgen.client.endpoint import Endpoint
from loadgen.client.pacing import Arrivals
from loadgen.client.wire import Timeouts
from loadgen.records import ClientSample
from loadgen.workloads.prompts import SourceSpec


class Setup(msgspec.Struct, tag=True, kw_only=True):
    """The first message: everything that holds for the whole run."""

    endpoint: Endpoint
    timeouts: Timeouts
    source: SourceSpec
    records: str
    worker: int
    workers: int
    probe_fd: int


class Prepare(msgspec.Struct, tag=True, kw_only=True):
    """A level: connections are opened and the first requests made, but nothing is sent.

    Attributes:
        slots: this worker's share of the level's concurrency.
        first_index: the level's first prompt.
        warmup: whether every slot turns over once before anything is measured.
        budget: this worker's share of the requests to measure; None measures until Hold.
        alone: no other worker takes part, so there is nobody to wait or to hold the load for.
    """

    level: int
    slots: int
    first_index: int
    warmup: bool
    budget: int | None
    alone: bool


class PrepareOpen(msgspec.Struct, tag=True, kw_only=True):
    """An open-loop level: likewise. Requests are sent at the times of a schedule, each worker taking its part.

    Attributes:
        arrivals: the whole schedule; this worker sends the arrivals whose number modulo ``workers`` is its own.
        workers: how many take part.
        first_index: the level's first prompt.
        warmup_s: what is due before that is not measured.
        duration_s: what is due in that time after it is; None measures ``requests``.
        requests: so many, of the whole schedule.
        most: requests in flight at most, of this worker; what is due beyond waits, and is late.
    """

    level: int
    arrivals: Arrivals
    workers: int
    first_index: int
    warmup_s: float
    duration_s: float | None
    requests: int | None
    most: int


class Go(msgspec.Struct, tag=True):
    """Start: every slot sends its first request; in an open loop, the schedule begins at ``t_ns``."""

    t_ns: int


class Measure(msgspec.Struct, tag=True):
    """Every worker's slots have turned over: what is sent from now on is measured."""


class Hold(msgspec.Struct, tag=True):
    """The measured time is over: hold the load until what was measured has ended.

    In an open loop, whose schedule ends it as a rule, what is due from ``at_ns`` on is not measured.
    """

    at_ns: int


class Finish(msgspec.Struct, tag=True):
    """Send no more; the level is done when nothing is in flight."""


class Cancel(msgspec.Struct, tag=True):
    """Send no more, and end what is in flight as cancelled."""

    message: str


Command = Setup | Prepare | PrepareOpen | Go | Measure | Hold | Finish | Cancel


class Ready(msgspec.Struct, tag=True):
    """Set up, or prepared."""


class TurnedOver(msgspec.Struct, tag=True):
    """Every slot has ended its first request."""


class MeasureStarted(msgspec.Struct, tag=True):
    """Requests sent from ``t_ns`` on are measured."""

    t_ns: int


class MeasuredDone(msgspec.Struct, tag=True):
    """Everything that was measured has ended, at ``t_ns``."""

    t_ns: int


class Sample(msgspec.Struct, tag=True):
    """See :class:`loadgen.records.ClientSample`."""

    sample: ClientSample


class GaveUp(msgspec.Struct, tag=True):
    """So many requests failed one after another that going on is no use."""

    failures: int
    last: str


class DiskFailed(msgspec.Struct, tag=True):
    """Records can no longer be written; they are kept for LevelDone."""

    message: str


class LevelDone(msgspec.Struct, tag=True):
    """Nothing is in flight; ``unwritten`` are lines that the disk did not take."""

    unwritten: list[str]


Reply = Ready | TurnedOver | MeasureStarted | MeasuredDone | Sample | GaveUp | DiskFailed | LevelDone

encode = msgspec.json.Encoder().encode
decode_command = msgspec.json.Decoder(Command).decode
decode_reply = msgspec.json.Decoder(Reply).decode
