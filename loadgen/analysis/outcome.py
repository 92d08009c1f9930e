"""What a request came to: its TTFT, TPOT and E2E. The one place where they are computed."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from loadgen.records import RequestRecord
from loadgen.units import NS_PER_S

Latency = Literal["ttft", "tpot", "e2e"]
# Names of the fields that hold one, and what people call it.
LATENCIES = {f"{name}_s": name.upper() for name in get_args(Latency)}


class Outcome(NamedTuple):
    """One request that was issued; latencies in seconds, None where undefined."""

    issued_ns: int
    seq: int
    failed: bool
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def latency_s(self, name: Latency) -> float | None:
        """One of the latencies, by its name."""
        value: float | None = getattr(self, f"{name}_s")
        return value


def outcome(record: RequestRecord) -> Outcome:
    """What a record came to.

    Latencies count from the intended send where there is one (open loop), else from the send. The
    definitions are those of :data:`loadgen.analysis.metrics.METRICS`. A request that never got a
    connection in a closed loop was issued, for all that is known, when it failed.
    """
    start = record.sent_ns if record.scheduled_ns is None else record.scheduled_ns
    issued = record.end_ns if start is None else start
    if record.error is not None or start is None:
        return Outcome(issued, record.seq, failed=True)
    first, last = record.first_token_ns, record.last_token_ns
    tpot = None
    if first is not None and last is not None and last > first and record.event_tokens:
        rest = (record.output_tokens or 0) - record.event_tokens[0]
        tpot = (last - first) / NS_PER_S / rest if rest > 0 else None
    return Outcome(
        issued,
        record.seq,
        failed=False,
        ttft_s=None if first is None else (first - start) / NS_PER_S,
        tpot_s=tpot,
        e2e_s=None if last is None else (last - start) / NS_PER_S,
    )
