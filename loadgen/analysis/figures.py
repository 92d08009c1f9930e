"""The figures of one level of summary.json, typed. What they mean stands in loadgen/analysis/metrics.py."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from loadgen.analysis.slo import SloFigures
from loadgen.analysis.stats import Distribution
from loadgen.analysis.steady import SteadyWindow
from loadgen.loads import Load
from loadgen.records import Ended

Status = Literal[
    "VALID", "INTERRUPTED", "ERRORS", "TOO_FEW", "LOAD_NOT_ACHIEVED", "CLIENT_BOUND", "DRIFTING", "OUTPUT_MISMATCH"
]

Reached = dict[str, float | None]


class Requests(msgspec.Struct, kw_only=True):
    """Requests of the measured phase; ``issued`` is completed plus failed plus cancelled."""

    issued: int
    completed: int
    failed: int
    cancelled: int = 0
    warmup: int = 0
    drain: int = 0


class TokenFigures(msgspec.Struct, kw_only=True):
    """How the tokens of the successful measured requests were counted.

    Attributes:
        source: successes by the source of their counts, ``none`` where there was no count.
        asked, mismatched: successes that were asked for a number of tokens, and those that returned another.
        cached_input: input tokens from the server's prefix cache, as its replies say.
        unstreamed: replies that came in one piece.
        multi_token_events, shared_read: share of the token events that held several tokens, and of those that came
            in one read with the event before; None without an event.
    """

    source: dict[str, int]
    asked: int
    mismatched: int
    cached_input: int
    unstreamed: int
    multi_token_events: float | None
    shared_read: float | None


class StallFigures(msgspec.Struct, kw_only=True):
    """The longest gap of each request, and the share of requests that stalled; None without a gap."""

    longest_gap_s: Distribution
    requests: float | None


class Totals(msgspec.Struct, kw_only=True):
    """Successful requests of all phases and their tokens, to compare with the engine's own counters."""

    requests: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0


class ErrorExample(msgspec.Struct, kw_only=True):
    """One kind of failure as its first request said it, and how often it came."""

    kind: str
    status: int | None
    message: str
    count: int


class ClientFigures(msgspec.Struct, kw_only=True):
    """The client's own part in the figures.

    Attributes:
        workers: processes that sent.
        utilization: of one core, by the busiest of them.
        lateness_s: of a timestamp.
        slot_gap_s: from the end of a slot's request to the send of its next one.
        in_flight: average over the window.
        littles_law_deviation: share; None where nothing ended in the window.
        connects, retried: connections made and requests sent again within the window.
        max_rss_bytes: peak memory of all workers together.
    """

    workers: int
    utilization: float
    lateness_s: Distribution
    slot_gap_s: Distribution
    in_flight: float | None
    littles_law_deviation: float | None
    connects: int
    retried: int
    max_rss_bytes: int


class Window(msgspec.Struct, kw_only=True):
    """The measured window, in CLOCK_MONOTONIC."""

    start_ns: int
    end_ns: int


class ServiceLatencies(msgspec.Struct, kw_only=True):
    """Latencies from the actual send, where the level's own count from when a request was due."""

    ttft_s: Distribution
    e2e_s: Distribution


class OpenLoopFigures(msgspec.Struct, kw_only=True):
    """How well the schedule of an open loop was kept.

    Attributes:
        intended_rate_rps, achieved_rate_rps: requests due, and sent, in the window; None for an empty window.
        send_lateness_s: from when a request was due to its send.
        late: requests sent more than 1 ms late.
        dropped: requests never sent, since too many were in flight.
        service: latencies from the actual send.
    """

    intended_rate_rps: float | None
    achieved_rate_rps: float | None
    send_lateness_s: Distribution
    late: int
    dropped: int
    service: ServiceLatencies


class Gauge(msgspec.Struct, kw_only=True):
    """A state of the engine over the samples of the window."""

    mean: float
    max: int | float


class ServerFigures(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A level as the engine saw it; a field that the engine says nothing of is left out.

    Attributes:
        requests, prompt_tokens, generation_tokens: counted by the engine over the level.
        agrees: whether these equal loadgen's own totals.
        span: what the mean times are taken over: the measured window, or the whole level.
        requests_running, requests_waiting, kv_cache_usage: states; the last as a share.
        preemptions: over the level.
        prefix_cache_hit_rate: share of the prompt tokens, or of the blocks, that were in the prefix cache.
        ttft_s, queue_s, prefill_s, decode_s, e2e_s, tpot_s: means over requests, by the engine's own clock.
        iteration_s: mean time of a step.
        scrapes, scrape_s: how often the engine was asked, and the median of how long it took to answer.
    """

    requests: int | None = None
    prompt_tokens: int | None = None
    generation_tokens: int | None = None
    agrees: bool | None = None
    span: Literal["window", "level"]
    requests_running: Gauge | None = None
    requests_waiting: Gauge | None = None
    kv_cache_usage: Gauge | None = None
    preemptions: int | None = None
    prefix_cache_hit_rate: float | None
    ttft_s: float | None = None
    queue_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    e2e_s: float | None = None
    tpot_s: float | None = None
    iteration_s: float | None = None
    scrapes: int
    scrape_s: float


class GpuGauge(msgspec.Struct, kw_only=True):
    """A state of a GPU over the samples of the window."""

    mean: float
    min: int | float
    max: int | float


class GpuDevice(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One GPU over the measured window; what NVML does not say is left out.

    Attributes:
        samples: in the window.
        throttle: share of the samples with each reason for clocks below what was asked for.
        energy_j: over the window.
    """

    uuid: str
    samples: int
    power_w: GpuGauge | None = None
    sm_clock_mhz: GpuGauge | None = None
    memory_clock_mhz: GpuGauge | None = None
    temperature_c: GpuGauge | None = None
    utilization: GpuGauge | None = None
    memory_utilization: GpuGauge | None = None
    memory_used_bytes: GpuGauge | None = None
    throttle: dict[str, float]
    energy_j: float | None = None


class GpuFigures(msgspec.Struct, kw_only=True):
    """The GPUs over the measured window; energy per token is of all of them together, None where one is not known."""

    devices: list[GpuDevice]
    energy_per_output_token_j: float | None

    @property
    def energy_j(self) -> float | None:
        """Joules that all GPUs together used over the window; None unless the energy of every GPU is known."""
        known = [device.energy_j for device in self.devices if device.energy_j is not None]
        return math.fsum(known) if known and len(known) == len(self.devices) else None


class LevelFigures(msgspec.Struct, kw_only=True):
    """One level of summary.json, still without its verdict.

    Attributes:
        ci95: 95 % intervals of the throughputs, by their names.
        standard_errors: of a round, by the names of :data:`loadgen.analysis.rounds.METRICS`.
        slo: where objectives are set.
        open_loop: left out for a closed loop.
        interrupted: why the level did not run to its end.
    """

    load: Load
    requests: Requests
    duration_s: float
    ttft_s: Distribution
    tpot_s: Distribution
    itl_s: Distribution
    itl_per_token_s: Distribution
    e2e_s: Distribution
    request_throughput_rps: float | None
    output_throughput_tps: float | None
    total_throughput_tps: float | None
    input_tokens: Distribution
    output_tokens: Distribution
    tokens: TokenFigures
    stalls: StallFigures
    totals: Totals
    errors: dict[str, int]
    error_examples: list[ErrorExample]
    client: ClientFigures
    window: Window
    steady: SteadyWindow
    ci95: dict[str, tuple[float, float]]
    standard_errors: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    slo: SloFigures | msgspec.UnsetType = msgspec.UNSET
    open_loop: OpenLoopFigures | msgspec.UnsetType = msgspec.UNSET
    interrupted: str | None = None


class Reason(msgspec.Struct, kw_only=True):
    """One failed check: what was seen, and what to do about it."""

    status: Status
    text: str
    advice: str


class Verdict(msgspec.Struct, kw_only=True):
    """``status`` is VALID, or that of the first reason; all reasons are listed."""

    status: Status
    reasons: list[Reason] = []


class Precision(msgspec.Struct, kw_only=True):
    """What was asked of a level, and what it came to.

    Attributes:
        asked: relative half width, 0.05 for 5 %.
        reached: by the names of :data:`loadgen.analysis.precision.NAMES`, of the figures that the level has; None
            where a figure has no interval.
        met: whether all of them are at most what was asked.
        ended: why the level ended: ``precision``, ``budget`` (--max-duration) or ``interrupted``.
        looks: how often it was looked at.
    """

    asked: float
    reached: Reached
    met: bool
    ended: Ended
    looks: int


class LevelSummary(LevelFigures, kw_only=True):
    """A level's figures and its verdict; ``server`` is what the engine says of it, ``gpu`` what the cards do."""

    verdict: Verdict
    precision: Precision | msgspec.UnsetType = msgspec.UNSET  # where one was asked for
    server: ServerFigures | None = None
    gpu: GpuFigures | None = None
