"""The verdict of a level: may its numbers be relied on, and if not, why and what to do."""

from __future__ import annotations

from loadgen.analysis.figures import LevelFigures, OpenLoopFigures, Reason, Verdict
from loadgen.analysis.stats import quantile_floor
from loadgen.analysis.steady import MIN_DRIFT
from loadgen.loads import Open
from loadgen.units import format_ms

MAX_ERROR_SHARE = 0.01
MAX_MISMATCH_SHARE = 0.01
MIN_IN_FLIGHT_SHARE = 0.95
MAX_RATE_DEVIATION = 0.01
MAX_LATENESS_SHARE = 0.05
MAX_UTILIZATION = 0.97


# Name and rule of every verdict but VALID; docs/metrics.md shows it.
VERDICTS: dict[str, str] = {
    "INTERRUPTED": "the level did not run to its end: Ctrl-C, a server that was gone, a full disk, a dead worker",
    "ERRORS": f"more than {MAX_ERROR_SHARE:.0%} of the measured requests failed",
    "TOO_FEW": f"fewer than {quantile_floor(0.5)} measured requests succeeded, so that not even a median can be shown",
    "LOAD_NOT_ACHIEVED": f"the time average in flight was below {MIN_IN_FLIGHT_SHARE:.0%} of the concurrency asked "
    f"for; in an open loop: the rate that was sent and the one that was due part by more than {MAX_RATE_DEVIATION:.0%}",
    "CLIENT_BOUND": f"our own stamps were late by more than {MAX_LATENESS_SHARE:.0%} of the mean TTFT on average; or "
    "their 99th percentile of lateness exceeded the median gap between tokens; or the busiest worker used more than "
    f"{MAX_UTILIZATION:.0%} of a core",
    "DRIFTING": "no steady state: TTFT, TPOT, E2E or the throughput went on changing over the measured window, by at "
    f"least {MIN_DRIFT:.0%} and by more than chance",
    "OUTPUT_MISMATCH": f"more than {MAX_MISMATCH_SHARE:.0%} of the successful requests returned another number of "
    "tokens than was asked for",
}


def judge(figures: LevelFigures) -> Verdict:
    """Every check of a level, the gravest first."""
    reasons = [
        reason
        for check in (_interrupted, _errors, _too_few, _load, _client, _drift, _output)
        for reason in check(figures)
    ]
    return Verdict(status=reasons[0].status if reasons else "VALID", reasons=reasons)


def _interrupted(figures: LevelFigures) -> list[Reason]:
    if figures.interrupted is None:
        return []
    return [Reason(status="INTERRUPTED", text=figures.interrupted, advice="run the level again")]


def _errors(figures: LevelFigures) -> list[Reason]:
    requests = figures.requests
    ended = requests.completed + requests.failed
    if not ended or requests.failed / ended <= MAX_ERROR_SHARE:
        return []
    example = next((e.message for e in figures.error_examples if e.kind != "cancelled"), "")
    return [
        Reason(
            status="ERRORS",
            text=f"{requests.failed} of {ended} requests failed (limit {MAX_ERROR_SHARE:.0%}); most often: {example}",
            advice="see the errors in records.jsonl and in the server's log",
        )
    ]


def _too_few(figures: LevelFigures) -> list[Reason]:
    needed = quantile_floor(0.5)
    if figures.requests.completed >= needed:
        return []
    return [
        Reason(
            status="TOO_FEW",
            text=f"{figures.requests.completed} successful requests; a median needs {needed}",
            advice=f"use a longer --duration, or --requests {needed} or more (p90 needs {quantile_floor(0.9)}, "
            f"p99 {quantile_floor(0.99)})",
        )
    ]


def _load(figures: LevelFigures) -> list[Reason]:
    if isinstance(figures.load, Open) and isinstance(figures.open_loop, OpenLoopFigures):
        return _rate(figures.load, figures.open_loop)
    asked = figures.load.slots
    reached = figures.client.in_flight
    if reached is None or asked is None or reached >= MIN_IN_FLIGHT_SHARE * asked:
        return []
    gap = figures.client.slot_gap_s
    return [
        Reason(
            status="LOAD_NOT_ACHIEVED",
            text=f"{reached:.1f} requests in flight on average, {asked} asked for "
            f"(a freed slot sent again after {format_ms(gap.mean)} ms on average)",
            advice="see whether requests fail or the server refuses connections; else use more --workers",
        )
    ]


def _rate(load: Open, kept: OpenLoopFigures) -> list[Reason]:
    due, sent = kept.intended_rate_rps, kept.achieved_rate_rps
    if not due or sent is None or abs(sent / due - 1) <= MAX_RATE_DEVIATION:
        return []
    lateness = kept.send_lateness_s
    return [
        Reason(
            status="LOAD_NOT_ACHIEVED",
            text=f"{sent:.4g} requests/s were sent, {due:.4g} were due; {kept.late} were sent late (mean "
            f"{format_ms(lateness.mean)} ms), {kept.dropped} never",
            advice=f"the server does not keep up with this rate ({load.max_in_flight} requests in flight at "
            "most); see whether loadgen was the bottleneck (CLIENT_BOUND), else raise --max-in-flight or lower --rate",
        )
    ]


def _client(figures: LevelFigures) -> list[Reason]:
    lateness = figures.client.lateness_s
    utilization = figures.client.utilization
    ttft, itl = figures.ttft_s, figures.itl_s
    found = []
    if lateness.mean is not None and ttft.mean is not None and lateness.mean > MAX_LATENESS_SHARE * ttft.mean:
        found.append(
            f"loadgen's own stamps were {format_ms(lateness.mean)} ms late on average, more than "
            f"{MAX_LATENESS_SHARE:.0%} of the TTFT of {format_ms(ttft.mean)} ms"
        )
    if lateness.p99 is not None and itl.p50 is not None and lateness.p99 > itl.p50:
        found.append(
            f"one stamp in a hundred was {format_ms(lateness.p99)} ms late or more, beyond the median gap between "
            f"tokens of {format_ms(itl.p50)} ms"
        )
    if utilization > MAX_UTILIZATION:
        found.append(f"loadgen's busiest worker used {utilization:.0%} of a core")
    if not found:
        return []
    return [
        Reason(
            status="CLIENT_BOUND",
            text="; ".join(found),
            advice="use more --workers, free cores on this machine, or run loadgen on another one; "
            "`loadgen calibrate` tells what this machine can measure",
        )
    ]


def _drift(figures: LevelFigures) -> list[Reason]:
    if figures.steady.steady is not False:
        return []
    return [
        Reason(
            status="DRIFTING",
            text=figures.steady.reason,
            advice="measure for longer, and see what was still changing: a cache that fills, a queue that grows, "
            "clocks that fall",
        )
    ]


def _output(figures: LevelFigures) -> list[Reason]:
    asked, mismatched = figures.tokens.asked, figures.tokens.mismatched
    if not asked or mismatched / asked <= MAX_MISMATCH_SHARE:
        return []
    mean = figures.output_tokens.mean
    return [
        Reason(
            status="OUTPUT_MISMATCH",
            text=f"{mismatched} of {asked} requests returned another number of tokens than asked for"
            + (f" (mean {mean:.1f})" if mean is not None else ""),
            advice="compare engines only at equal output; if the server knows ignore_eos and min_tokens, name its "
            "dialect with --dialect",
        )
    ]
