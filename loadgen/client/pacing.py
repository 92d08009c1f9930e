"""When requests are sent in an open loop: schedules that are drawn beforehand and never drift. Pure.

A schedule is absolute: the i-th request is due at a time that depends on the seed alone, not on when
the (i-1)-th was sent or answered. A client that waits for a slow server instead thins the load out just
when the server is slow, and reports latencies that no user would have seen (coordinated omission; Tene
2013, wrk2).

Arrivals, all of mean rate r:

    constant   every 1/r
    poisson    exponential gaps: independent users
    gamma:CV   gamma gaps of coefficient of variation CV: 1 is poisson, above it bursts (ServeGen, arXiv
               2505.09999, finds 1 to 4 in production)
    replay     the times of a trace
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from loadgen.loads import ArrivalKind, arrival_text
from loadgen.units import NS_PER_S

CHUNK = 4096


class Arrivals(msgspec.Struct, frozen=True, kw_only=True):
    """How requests arrive.

    Attributes:
        kind: as above.
        cv: of the gaps; for ``gamma`` only.
        rate_rps: mean rate; for ``replay`` that of the trace, sped up.
        seed: the same seed gives the same times.
        times_ns: of ``replay``, from its first; empty for the others.
    """

    kind: ArrivalKind
    rate_rps: float
    cv: float = 1.0
    seed: int = 0
    times_ns: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """As ``--arrival`` takes it."""
        return arrival_text(self.kind, self.cv)


def schedule(arrivals: Arrivals) -> Iterator[int]:
    """Due times in nanoseconds from the level's start, without end except for ``replay``.

    Every process that draws from the same arrivals gets the same times, so that workers split a schedule
    by taking every so many-th of it.
    """
    if arrivals.kind == "replay":
        yield from arrivals.times_ns
        return
    if arrivals.kind == "constant":
        number = 0
        while True:  # from the number, not by adding a rounded gap: no drift
            yield round(number * NS_PER_S / arrivals.rate_rps)
            number += 1
    import numpy as np

    rng = np.random.default_rng(arrivals.seed)
    cv = arrivals.cv if arrivals.kind == "gamma" else 1.0
    shape = 1 / cv**2
    at_s = 0.0
    while True:
        times_s = at_s + np.cumsum(rng.gamma(shape, 1 / (arrivals.rate_rps * shape), CHUNK))
        at_s = float(times_s[-1])
        yield from (times_s * NS_PER_S).astype(np.int64).tolist()
