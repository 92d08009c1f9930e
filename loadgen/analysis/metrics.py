"""The table of metrics: what each is, in which unit, and why; docs/metrics.md is made from it (``make docs``)."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """A row of the table of definitions."""

    key: str
    name: str
    unit: str
    definition: str
    why: str
    source: str


METRICS = [
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
    ),
    Metric(
        "tpot_s",
        "TPOT, time per output token",
        "s",
        "`(last_token - first_token) / (output_tokens - tokens_in_first_event)`, per request; undefined, and left "
        "out, when the divisor is 0 or all tokens came in one read",
        "Equals vLLM's `(latency - TTFT) / (n - 1)` when the first event has one token.",
        "vLLM benchmarks/serve.py",
    ),
    Metric(
        "itl_s",
        "ITL, inter-token latency",
        "s",
        "the gap between two consecutive token events of a request that came in different reads, pooled over requests",
        "Events that share a read share a stamp: a gap of 0 there is no latency. Their share is reported "
        "(`tokens.shared_read`).",
        "vLLM benchmarks/serve.py; sgl-project/sglang issue 12064",
    ),
    Metric(
        "itl_per_token_s",
        "ITL per token",
        "s",
        "the same gap divided by the tokens that arrived at its end",
        "Several tokens in an event, or several events in a read, are common under load.",
        "sgl-project/sglang issue 12064",
    ),
    Metric(
        "e2e_s",
        "E2E, end-to-end latency",
        "s",
        "`last_token - sent`; in an open loop `last_token - scheduled`",
        "The closing usage event and `[DONE]` carry no token.",
        "vLLM benchmarks/serve.py",
    ),
    Metric(
        "request_throughput_rps",
        "request throughput",
        "requests/s",
        "successful requests that ended inside the measured window, over the window",
        "",
        "",
    ),
    Metric(
        "output_throughput_tps",
        "output throughput",
        "tokens/s",
        "tokens whose events fall inside the measured window, over the window, whatever request they belong to",
        "Dividing by first send to last end puts ramp and drain into the average.",
        "evalscope issue 675; sgl-project/sglang issue 30918",
    ),
    Metric(
        "total_throughput_tps",
        "total throughput",
        "tokens/s",
        "output throughput plus the input tokens of the requests whose first token came inside the window, over the "
        "window",
        "",
        "",
    ),
    Metric(
        "input_tokens",
        "input tokens",
        "tokens",
        "`usage.prompt_tokens` of each successful measured request",
        "Counting on the client miscounts: chat templates and special tokens are the server's.",
        "triton-inference-server/perf_analyzer issue 433",
    ),
    Metric(
        "output_tokens",
        "output tokens",
        "tokens",
        "`usage.completion_tokens`; where the server sends no usage, its token events, and the summary says so "
        "(`tokens.source`)",
        "An event can hold no token, one, or several; re-tokenising text miscounts.",
        "triton-inference-server/perf_analyzer issue 433",
    ),
    Metric(
        "stalls.longest_gap_s",
        "longest gap",
        "s",
        "the longest gap between two token events of a request, one value per request",
        "TPOT hides a stall: 510 ms in a request of 100 tokens moves it by 5 ms.",
        "arXiv 2407.07000",
    ),
    Metric(
        "stalls.requests",
        "stalled requests",
        "share",
        "the share of requests with a gap of more than 5 times their own median gap (and more than 10 ms)",
        "",
        "arXiv 2407.07000",
    ),
    Metric(
        "open_loop.send_lateness_s",
        "send lateness",
        "s",
        "`sent - scheduled` of each measured request of an open loop; `late` counts those above 1 ms, `dropped` those "
        "that were never sent because too many were in flight",
        "The schedule is absolute: what is sent late was late, and its latency counts from when it was due.",
        "wrk2; MLPerf Inference LoadGen",
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
        "client.lateness_s",
        "client lateness",
        "s",
        "from a probe's write by the parent process to its stamp by the worker's event loop; about 100 probes a "
        "second and worker, at exponential gaps, within the measured window",
        "What a token event of that moment was stamped late by: our own error, measured rather than assumed.",
        "Wolff 1982 (Poisson arrivals see time averages); arXiv 2605.24217",
    ),
    Metric(
        "client.utilization",
        "client utilization",
        "share",
        "CPU time of the busiest worker over the measured window",
        "One event loop is one server of a queue: near 1 its own delay grows without bound.",
        "arXiv 2605.24217",
    ),
    Metric(
        "client.slot_gap_s",
        "slot gap",
        "s",
        "from the end of a slot's request to the send of its next one",
        "In a closed loop the client's own delay lowers the load instead of raising a latency.",
        "Schroeder, Wierman and Harchol-Balter 2006",
    ),
    Metric(
        "client.in_flight",
        "in flight",
        "requests",
        "the time average over the window of requests sent and not ended",
        "Counting requests that touch a one-second bucket doubles it.",
        "vllm-project/vllm issue 56653",
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
]
