"""The table of metrics: what a level's figures are, in which unit, why, and where they are shown.

Every format reads this table: the terminal, CSV, Markdown, OpenMetrics, the page and docs/metrics.md (``make docs``).
A further figure is a field of :mod:`loadgen.analysis.figures` and a row here. tests/report/test_fields.py fails where a
format shows nothing of a field, unless it is on that test's list of reasons.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import msgspec

from loadgen.analysis.figures import LevelSummary
from loadgen.records import ErrorKind


class Metric(NamedTuple):
    """A row of the table.

    Attributes:
        key: the path of the field in a level of summary.json.
        name: in full.
        unit: ``s``, ``tokens``, ``requests``, ``share``, ``tokens/s``, ...; empty for a yes or no.
        definition, why, source: for docs/metrics.md.
        short: as the head of a table or the title of a chart has it.
        chart: title of its chart against the load on the page; empty for no chart.
        terminal, markdown, page: statistics that the table of that format shows; ``value`` for one number.
        place: in tables for people, columns of a higher place stand further right.
        withheld: loadgen's own delay would be in it, so that a CLIENT_BOUND level shows none to people.
        intervals: of a distribution: whether its mean and quantiles have 95 % intervals.
        interval: of one number: the path of its 95 % interval, where the level's ``ci95`` does not have it.
        family, help: name and help text of the OpenMetrics family; empty takes those that follow from key and name.
    """

    key: str
    name: str
    unit: str
    definition: str
    why: str = ""
    source: str = ""
    short: str = ""
    chart: str = ""
    terminal: tuple[str, ...] = ()
    markdown: tuple[str, ...] = ()
    page: tuple[str, ...] = ()
    withheld: bool = False
    intervals: bool = False
    interval: str = ""
    place: int = 0
    family: str = ""
    help: str = ""

    @property
    def column(self) -> str:
        """The name of its column in CSV, or what its columns begin with."""
        return self.key.replace(".", "_")

    @property
    def exported(self) -> str:
        """The name of its OpenMetrics family, with the unit as that format spells it."""
        if self.family:
            return self.family
        name = f"loadgen_{self.column}"
        for ending, spelt in SPELT.items():
            if name.endswith(ending):
                return name.removesuffix(ending) + spelt
        return f"{name}_ratio" if self.unit == "share" else name


SPELT = {"_s": "_seconds", "_rps": "_requests_per_second", "_tps": "_tokens_per_second", "_j": "_joules"}

METRICS = [
    Metric(
        "requests.issued", "issued requests", "requests",
        "requests sent, or due, inside the measured window",
    ),
    Metric(
        "requests.completed", "completed requests", "requests",
        "issued requests that succeeded",
    ),
    Metric(
        "requests.failed", "failed requests", "requests",
        "issued requests that failed; see below",
    ),
    Metric(
        "requests.cancelled", "cancelled requests", "requests",
        "issued requests that loadgen itself gave up, since the level was stopped",
    ),
    Metric(
        "requests.warmup", "warm-up requests", "requests",
        "requests before the measured window",
    ),
    Metric(
        "requests.drain", "drain requests", "requests",
        "requests sent only to hold the load while the last measured ones ended",
    ),
    Metric(
        "duration_s", "measured window", "s",
        "from the start to the end of the measured window",
        family="loadgen_measured_window_seconds", help="Time that was measured.",
    ),
    Metric(
        "ttft_s",
        "TTFT, time to first token",
        "s",
        "`first_token - sent`: from just before the request's first byte is written, on a connection already held, "
        "to the socket read that completed the first event whose cumulative token count is at least 1; in an open "
        "loop `first_token - scheduled`, and the former stands in `open_loop.service`",
        "Response headers and a chat stream's role event come earlier and carry no token. A clock that starts at the "
        "actual send hides what waited in the client (coordinated omission).",
        "vLLM metrics; MLPerf Inference LoadGen",
        short="TTFT", chart="TTFT", terminal=("p50", "p90", "p99"), markdown=("p50", "p99"), page=("p50", "p90", "p99"),
        withheld=True, intervals=True, family="loadgen_ttft_seconds",
        help="Time to first token; in an open loop from when the request was due.",
    ),
    Metric(
        "tpot_s",
        "TPOT, time per output token",
        "s",
        "`(last_token - first_token) / (output_tokens - tokens_in_first_event)`, per request; undefined, and left "
        "out, when the divisor is 0 or all tokens came in one read",
        "Equals vLLM's `(latency - TTFT) / (n - 1)` when the first event has one token.",
        "vLLM benchmarks/serve.py",
        short="TPOT", chart="TPOT", terminal=("p50", "p99"), markdown=("p50", "p99"), page=("p50", "p99"),
        withheld=True, intervals=True, family="loadgen_tpot_seconds",
        help="Time per output token after the first event.",
    ),
    Metric(
        "itl_s",
        "ITL, inter-token latency",
        "s",
        "the gap between two consecutive token events of a request that came in different reads, pooled over requests",
        "Events that share a read share a stamp: a gap of 0 there is no latency. Their share is reported "
        "(`tokens.shared_read`).",
        "vLLM benchmarks/serve.py; sgl-project/sglang issue 12064",
        short="ITL", chart="ITL, between tokens", page=("p99",), withheld=True, family="loadgen_itl_seconds",
        help="Gap between two token events of a request.",
    ),
    Metric(
        "itl_per_token_s",
        "ITL per token",
        "s",
        "the same gap divided by the tokens that arrived at its end",
        "Several tokens in an event, or several events in a read, are common under load.",
        "sgl-project/sglang issue 12064",
        short="ITL per token", withheld=True,
    ),
    Metric(
        "e2e_s",
        "E2E, end-to-end latency",
        "s",
        "`last_token - sent`; in an open loop `last_token - scheduled`",
        "The closing usage event and `[DONE]` carry no token.",
        "vLLM benchmarks/serve.py",
        short="E2E", chart="E2E", page=("p50",), withheld=True, intervals=True, family="loadgen_e2e_seconds",
        help="From send to last token; in an open loop from when the request was due.",
    ),
    Metric(
        "request_throughput_rps",
        "request throughput",
        "requests/s",
        "successful requests that ended inside the measured window, over the window",
        "",
        "",
        short="requests/s", place=1, terminal=("value",), markdown=("value",), page=("value",),
        family="loadgen_requests_per_second", help="Successful requests that ended, per second.",
    ),
    Metric(
        "output_throughput_tps",
        "output throughput",
        "tokens/s",
        "tokens whose events fall inside the measured window, over the window, whatever request they belong to",
        "Dividing by first send to last end puts ramp and drain into the average.",
        "evalscope issue 675; sgl-project/sglang issue 30918",
        short="output tokens/s", terminal=("value",), markdown=("value",), page=("value",),
        family="loadgen_output_tokens_per_second", help="Output tokens received per second.",
    ),
    Metric(
        "total_throughput_tps",
        "total throughput",
        "tokens/s",
        "output throughput plus the input tokens of the requests whose first token came inside the window, over the "
        "window",
        "",
        "",
        short="tokens/s", family="loadgen_tokens_per_second", help="Input and output tokens per second.",
    ),
    Metric(
        "input_tokens",
        "input tokens",
        "tokens",
        "`usage.prompt_tokens` of each successful measured request",
        "Counting on the client miscounts: chat templates and special tokens are the server's.",
        "triton-inference-server/perf_analyzer issue 433",
        short="input tokens", intervals=True,
    ),
    Metric(
        "output_tokens",
        "output tokens",
        "tokens",
        "`usage.completion_tokens`; where the server sends no usage, its token events, and the summary says so "
        "(`tokens.source`)",
        "An event can hold no token, one, or several; re-tokenising text miscounts.",
        "triton-inference-server/perf_analyzer issue 433",
        short="output tokens", intervals=True,
    ),
    Metric(
        "tokens.asked", "requests with a fixed length", "requests",
        "successes that were asked for a number of output tokens",
    ),
    Metric(
        "tokens.mismatched", "requests of another length", "requests",
        "of these, the ones that returned another number",
    ),
    Metric(
        "tokens.cached_input", "cached input tokens", "tokens",
        "input tokens from the prefix cache, where replies say so (`usage.prompt_tokens_details`)",
    ),
    Metric(
        "tokens.unstreamed", "unstreamed replies", "requests",
        "successes whose reply came in one piece: they have no TTFT and no TPOT",
    ),
    Metric(
        "tokens.multi_token_events", "events of several tokens", "share",
        "token events that held more than one token",
    ),
    Metric(
        "tokens.shared_read", "events that share a read", "share",
        "token events that came in one socket read with the event before",
    ),
    Metric(
        "stalls.requests",
        "stalled requests",
        "share",
        "the share of requests with a gap of more than 5 times their own median gap (and more than 10 ms)",
        "",
        "arXiv 2407.07000",
        short="stalled", withheld=True,
    ),
    Metric(
        "stalls.longest_gap_s",
        "longest gap",
        "s",
        "the longest gap between two token events of a request, one value per request",
        "TPOT hides a stall: 510 ms in a request of 100 tokens moves it by 5 ms.",
        "arXiv 2407.07000",
        short="longest gap", withheld=True,
    ),
    *[
        Metric(f"errors.{kind}", f"{kind} failures", "requests", f"measured requests that failed as `{kind}`")
        for kind in get_args(ErrorKind)
    ],
    Metric(
        "client.workers", "worker processes", "processes",
        "processes that sent the level",
    ),
    Metric(
        "client.utilization",
        "client utilization",
        "share",
        "CPU time of the busiest worker over the measured window",
        "One event loop is one server of a queue: near 1 its own delay grows without bound.",
        "arXiv 2605.24217",
        short="CPU", family="loadgen_client_utilization_ratio",
        help="CPU time of loadgen's busiest worker, of one core.",
    ),
    Metric(
        "client.in_flight",
        "in flight",
        "requests",
        "the time average over the window of requests sent and not ended",
        "Counting requests that touch a one-second bucket doubles it.",
        "vllm-project/vllm issue 56653",
        short="in flight", family="loadgen_in_flight_requests", help="Requests in flight, time average.",
    ),
    Metric(
        "client.littles_law_deviation",
        "deviation from Little's law",
        "share",
        "`|N - X R| / N` with N in flight, X ended requests per second and R their mean time from send to end, all "
        "within the window; of the order of N over the number of requests even when all is well",
        "Holds for any queue: a deviation means that requests were lost or counted twice.",
        "Little 1961",
    ),
    Metric(
        "client.connects", "connections", "connections",
        "connections made inside the window",
    ),
    Metric(
        "client.retried", "retried requests", "requests",
        "requests sent again because the server closed an idle connection under them",
    ),
    Metric(
        "client.lateness_s",
        "client lateness",
        "s",
        "from a probe's write by the parent process to its stamp by the worker's event loop; about 100 probes a "
        "second and worker, at exponential gaps, within the measured window",
        "What a token event of that moment was stamped late by: our own error, measured rather than assumed.",
        "Wolff 1982 (Poisson arrivals see time averages); arXiv 2605.24217",
        short="timestamp error", family="loadgen_client_lateness_seconds",
        help="How late loadgen stamped a probe: its own error.",
    ),
    Metric(
        "slo.offered", "offered requests", "requests",
        "requests issued inside the window, whatever became of them",
    ),
    Metric(
        "slo.good", "good requests", "requests",
        "offered requests that met every objective asked of a request",
        withheld=True,
    ),
    Metric(
        "slo.attainment", "attainment", "share",
        "good requests over offered ones",
        short="attainment", withheld=True, family="loadgen_slo_attainment_ratio",
        help="Share of the offered requests that met every objective.", interval="slo.attainment_ci95",
    ),
    Metric(
        "slo.goodput_rps", "goodput", "requests/s",
        "good requests over the window",
        short="goodput/s", withheld=True, family="loadgen_goodput_requests_per_second",
        help="Requests that met every objective, per second.", interval="slo.goodput_ci95_rps",
    ),
    Metric(
        "open_loop.intended_rate_rps", "intended rate", "requests/s",
        "requests due inside the measured window, over the window",
    ),
    Metric(
        "open_loop.achieved_rate_rps",
        "achieved rate",
        "requests/s",
        "requests sent inside the measured window, over the window; `intended_rate_rps` counts those due in it",
        "",
        "MLPerf Inference LoadGen",
    ),
    Metric(
        "open_loop.late", "late requests", "requests",
        "measured requests sent more than 1 ms after they were due",
    ),
    Metric(
        "open_loop.dropped", "dropped requests", "requests",
        "measured requests never sent, because too many were in flight",
    ),
    Metric(
        "open_loop.send_lateness_s",
        "send lateness",
        "s",
        "`sent - scheduled` of each measured request of an open loop; `late` counts those above 1 ms, `dropped` those "
        "that were never sent because too many were in flight",
        "The schedule is absolute: what is sent late was late, and its latency counts from when it was due.",
        "wrk2; MLPerf Inference LoadGen",
        short="send lateness",
    ),
    Metric(
        "open_loop.service.ttft_s", "TTFT from the actual send", "s",
        "`first_token - sent`",
        withheld=True,
    ),
    Metric(
        "open_loop.service.e2e_s", "E2E from the actual send", "s",
        "`last_token - sent`",
        withheld=True,
    ),
    Metric(
        "steady.steady", "steady", "",
        "whether no trend was found over the window; empty where there are too few requests to tell",
    ),
    Metric(
        "steady.requests", "requests of the steady window", "requests",
        "requests issued inside the window that is reported",
    ),
    Metric(
        "steady.cut_transient", "cut requests", "requests",
        "requests of a start-up transient that were cut off the window",
    ),
    Metric(
        "server.requests_running.mean", "running in the engine", "requests",
        "mean over the reads inside the window",
        short="Running, mean", family="loadgen_server_running_requests", help="Running in the engine, mean.",
    ),
    Metric(
        "server.requests_waiting.mean", "waiting in the engine", "requests",
        "mean over the reads inside the window",
        short="Waiting, mean", family="loadgen_server_waiting_requests", help="Waiting in the engine, mean.",
    ),
    Metric(
        "server.kv_cache_usage.max", "KV cache at its fullest", "share",
        "most over the reads inside the window",
        short="KV cache, most", family="loadgen_server_kv_cache_usage_ratio", help="The KV cache at its fullest.",
    ),
    Metric(
        "server.prefix_cache_hit_rate", "prefix-cache hit rate", "share",
        "hits over queries over the level, in tokens (vLLM) or blocks (TensorRT-LLM)",
        short="Prefix-cache hits",
    ),
    Metric(
        "server.preemptions", "preemptions", "requests",
        "requests that the engine preempted over the level",
        short="Preemptions",
    ),
    Metric(
        "server.ttft_s", "TTFT in the engine", "s",
        "mean by the engine's own clock",
        short="TTFT in the engine, ms",
    ),
    Metric(
        "server.queue_s", "queue time", "s",
        "mean by the engine's own clock",
        short="Queue, ms",
    ),
    Metric(
        "server.prefill_s", "prefill time", "s",
        "mean by the engine's own clock",
        short="Prefill, ms",
    ),
    Metric(
        "server.decode_s", "decode time", "s",
        "mean by the engine's own clock",
        short="Decode, ms",
    ),
    Metric(
        "server.iteration_s", "iteration", "s",
        "mean time of a step of the engine",
        short="Iteration, ms",
    ),
    Metric(
        "server.agrees", "counters agree", "",
        "whether the engine counted as many requests and tokens as loadgen",
    ),
    Metric(
        "gpu.energy_j", "energy", "J",
        "used by all GPUs of the engine over the measured window",
    ),
    Metric(
        "gpu.energy_per_output_token_j", "energy per output token", "J",
        "the same over the tokens generated inside the window",
        short="Energy, J/token", family="loadgen_energy_per_output_token_joules",
        help="Energy of all the engine's GPUs for an output token.",
    ),
    Metric(
        "client.slot_gap_s",
        "slot gap",
        "s",
        "from the end of a slot's request to the send of its next one",
        "In a closed loop the client's own delay lowers the load instead of raising a latency.",
        "Schroeder, Wierman and Harchol-Balter 2006",
    ),
]  # fmt: skip

BY_KEY = {metric.key: metric for metric in METRICS}
SHORT = {metric.key: metric.short for metric in METRICS if metric.short}


def value_at(level: LevelSummary, key: str) -> Any:
    """The value of a row of the table; None where the level has none."""
    found: Any = level
    for name in key.split("."):
        if found is None or isinstance(found, msgspec.UnsetType):
            return None
        found = found.get(name, 0) if isinstance(found, dict) else getattr(found, name)
    return None if isinstance(found, msgspec.UnsetType) else found


def interval_of(level: LevelSummary, metric: Metric) -> tuple[float, float] | None:
    """The 95 % interval of a metric that is one number; None if the level has no interval for it."""
    found: tuple[float, float] | None = level.ci95.get(metric.key)
    return value_at(level, metric.interval) if found is None and metric.interval else found


def shown_in(table: str) -> Iterator[tuple[Metric, str]]:
    """The columns of a format's table: each metric with each of its statistics there.

    Args:
        table: ``terminal``, ``markdown`` or ``page``.
    """
    for metric in sorted(METRICS, key=lambda metric: metric.place):
        for statistic in getattr(metric, table):
            yield metric, statistic
