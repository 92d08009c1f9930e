"""The figures of one level, as a pure function of its records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from loadgen.analysis.figures import (
    ClientFigures,
    ErrorExample,
    LevelFigures,
    OpenLoopFigures,
    Requests,
    ServiceLatencies,
    StallFigures,
    TokenFigures,
    Window,
)
from loadgen.analysis.gather import LevelAccumulator
from loadgen.analysis.intervals import intervals, mean_error, quantile_error, rate_error, rate_interval
from loadgen.analysis.outcome import LATENCIES, Outcome
from loadgen.analysis.slo import Slo, slo_figures
from loadgen.analysis.stats import Distribution, describe
from loadgen.analysis.steady import SteadyWindow, steady_window
from loadgen.loads import Load, Open
from loadgen.records import ClientSample
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LATE_S = 0.001


def steady_of(load: Load, gathered: LevelAccumulator) -> SteadyWindow:
    """The part of the window that is steady, and whether it is."""
    import numpy as np

    gathered.settle()
    outcomes = gathered.outcomes
    values = {
        name: np.array([math.nan if (v := getattr(one, name)) is None else v for one in outcomes]) for name in LATENCIES
    }
    return steady_window(
        np.array([one.issued_ns for one in outcomes], dtype=np.int64),
        values,
        start_ns=gathered.start_ns,
        end_ns=gathered.end_ns,
        slots=load.slots,
        amounts=gathered.token_bins if gathered.window_output else None,
    )


def level_figures(
    load: Load,
    gathered: LevelAccumulator,
    samples: list[ClientSample],
    interrupted: str | None = None,
    steady: SteadyWindow | None = None,
    slos: Sequence[Slo] = (),
) -> LevelFigures:
    """The figures of one level, all of whose records have been taken in.

    Args:
        load: the ``load`` entry.
        gathered: the level's records.
        samples: the workers' own, all of the level.
        interrupted: why the level did not run to its end, if so.
        steady: what was found of the window as it was measured, where something was cut off it since.
        slos: objectives that the requests are held against.
    """
    import numpy as np

    gathered.settle()
    outcomes = sorted(gathered.outcomes, key=lambda one: (one.issued_ns, one.seq))
    slots = load.slots
    window_s = (gathered.end_ns - gathered.start_ns) / NS_PER_S
    itl, itl_per_token = _inter_token(gathered)

    def rate(count: float) -> float | None:
        return count / window_s if window_s > 0 and gathered.completed else None

    def latency(name: str) -> Distribution:
        values = latencies(outcomes, name)
        found = describe(values, independent=False)
        found.ci95 = intervals(values, period=slots)
        return found

    ttft = latency("ttft_s")
    return LevelFigures(
        load=load,
        requests=Requests(
            issued=gathered.phases["measure"],
            completed=gathered.completed,
            failed=gathered.failed,
            cancelled=gathered.cancelled,
            warmup=gathered.phases["warmup"],
            drain=gathered.phases["drain"],
        ),
        duration_s=window_s,
        ttft_s=ttft,
        tpot_s=latency("tpot_s"),
        itl_s=itl,
        itl_per_token_s=itl_per_token,
        e2e_s=latency("e2e_s"),
        request_throughput_rps=rate(gathered.window_ended),
        output_throughput_tps=rate(gathered.window_output),
        total_throughput_tps=rate(gathered.window_output + gathered.window_input),
        input_tokens=describe(np.asarray(gathered.input_tokens)),
        output_tokens=describe(np.asarray(gathered.output_tokens)),
        tokens=_token_figures(gathered),
        stalls=StallFigures(
            longest_gap_s=describe(np.asarray(gathered.longest)),
            requests=gathered.stalled / len(gathered.longest) if gathered.longest else None,
        ),
        totals=gathered.totals,
        errors=dict(gathered.errors),
        error_examples=_examples(gathered),
        client=_client_figures(gathered, samples, window_s),
        window=Window(start_ns=gathered.start_ns, end_ns=gathered.end_ns),
        steady=steady or steady_of(load, gathered),
        ci95=_rate_intervals(gathered, window_s),
        standard_errors=_standard_errors(gathered, outcomes, ttft, slots, window_s)
        if load.round is not None
        else msgspec.UNSET,
        slo=slo_figures(outcomes, list(slos), start_ns=gathered.start_ns, end_ns=gathered.end_ns, slots=slots)
        if slos
        else msgspec.UNSET,
        open_loop=_open_figures(gathered, window_s) if isinstance(load, Open) else msgspec.UNSET,
        interrupted=interrupted,
    )


def _inter_token(gathered: LevelAccumulator) -> tuple[Distribution, Distribution]:
    """ITL, and ITL per token."""
    import numpy as np

    gaps = np.concatenate(gathered.gaps) if gathered.gaps else np.empty(0)
    tokens = np.concatenate(gathered.gap_tokens) if gathered.gap_tokens else np.empty(0)
    itl = describe(gaps, independent=False)
    if not (tokens > 1).any():
        return itl, itl
    return itl, describe(gaps / np.maximum(tokens, 1), independent=False)


def latencies(outcomes: Sequence[Outcome], name: str) -> NDArray[np.float64]:
    """``ttft_s``, ``tpot_s`` or ``e2e_s`` of those requests that have it, in their order."""
    import numpy as np

    return np.asarray([v for one in outcomes if (v := getattr(one, name)) is not None], dtype=float)


def _standard_errors(
    gathered: LevelAccumulator, outcomes: Sequence[Outcome], ttft: Distribution, slots: int | None, window_s: float
) -> dict[str, float]:
    """Standard errors of the figures that are averaged over rounds, by the same estimates as their intervals."""
    found: dict[str, float] = {}
    for name in ("ttft", "tpot"):
        known = mean_error(latencies(outcomes, f"{name}_s"), period=slots)
        if known is not None:
            found[f"{name}_mean_s"] = known[0]
    for quantile in ("p50", "p99"):
        if quantile in ttft.ci95:
            found[f"ttft_{quantile}_s"] = quantile_error(ttft.ci95[quantile])
    if gathered.completed and not isinstance(gathered.token_bins, int):
        error = rate_error(gathered.token_bins, window_s)
        if error is not None:
            found["output_throughput_tps"] = error
    return found


def _rate_intervals(gathered: LevelAccumulator, window_s: float) -> dict[str, tuple[float, float]]:
    found = {}
    for name, bins in (("output_throughput_tps", gathered.token_bins), ("request_throughput_rps", gathered.ended_bins)):
        if gathered.completed and not isinstance(bins, int):
            interval = rate_interval(bins, window_s)
            if interval is not None:
                found[name] = interval
    return found


def _examples(gathered: LevelAccumulator) -> list[ErrorExample]:
    """The most frequent failures."""
    return [
        ErrorExample(kind=kind, status=status, message=message, count=count)
        for (kind, status, message), count in gathered.examples.most_common(5)
    ]


def _token_figures(gathered: LevelAccumulator) -> TokenFigures:
    return TokenFigures(
        source=dict(gathered.sources),
        asked=gathered.asked,
        mismatched=gathered.mismatched,
        cached_input=gathered.cached_tokens,
        unstreamed=gathered.unstreamed,
        multi_token_events=gathered.multi / gathered.events if gathered.events else None,
        shared_read=gathered.shared / gathered.events if gathered.events else None,
    )


def _open_figures(gathered: LevelAccumulator, window_s: float) -> OpenLoopFigures:
    """How well an open loop's schedule was kept, and the latencies on the clock from the real send."""
    import numpy as np

    lateness = np.asarray(gathered.send_lateness)
    return OpenLoopFigures(
        intended_rate_rps=gathered.due / window_s if window_s > 0 else None,
        achieved_rate_rps=gathered.sent / window_s if window_s > 0 else None,
        send_lateness_s=describe(lateness, independent=False),
        late=int((lateness > LATE_S).sum()),
        dropped=gathered.errors["dropped"],
        service=ServiceLatencies(
            ttft_s=describe(np.asarray(gathered.service_ttft)),
            e2e_s=describe(np.asarray(gathered.service_e2e)),
        ),
    )


def _client_figures(gathered: LevelAccumulator, samples: list[ClientSample], window_s: float) -> ClientFigures:
    import numpy as np

    start, end = gathered.start_ns, gathered.end_ns
    in_flight = gathered.in_flight_ns / (end - start) if end > start else None
    deviation = None
    if in_flight and gathered.window_left:
        throughput = gathered.window_left / window_s
        mean_residence_s = gathered.residence_ns / gathered.window_left / NS_PER_S
        deviation = abs(in_flight - throughput * mean_residence_s) / in_flight
    # A sample speaks of the tenth of a second before it.
    inside = [s for s in samples if start < s.t_ns <= end + NS_PER_S // 10]
    lateness = np.asarray([ns for s in inside for ns in s.lateness_ns], dtype=float) / NS_PER_S
    utilization = 0.0
    for worker in {s.worker for s in samples}:
        own = [s for s in samples if s.worker == worker and start - NS_PER_S // 10 <= s.t_ns <= end + NS_PER_S // 10]
        if len(own) > 1 and own[-1].t_ns > own[0].t_ns:
            utilization = max(utilization, (own[-1].cpu_ns - own[0].cpu_ns) / (own[-1].t_ns - own[0].t_ns))
    return ClientFigures(
        workers=len({s.worker for s in samples}),
        utilization=utilization,
        lateness_s=describe(lateness, independent=False),
        slot_gap_s=describe(np.asarray(gathered.slot_gaps), independent=False),
        in_flight=in_flight,
        littles_law_deviation=deviation,
        connects=gathered.connects,
        retried=gathered.retried,
        max_rss_bytes=sum(max(s.max_rss_bytes for s in samples if s.worker == w) for w in {s.worker for s in samples}),
    )
