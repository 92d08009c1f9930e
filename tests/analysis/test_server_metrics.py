"""The engines' own pages under one set of names, and what a level's samples of them amount to."""

from __future__ import annotations

import json
from typing import Any, Literal

import msgspec
import pytest
from made import MS

from loadgen.analysis import server_metrics
from loadgen.analysis.figures import Totals
from loadgen.analysis.server_metrics import METRICS, SeriesNames, reconcile, server_figures
from loadgen.engines.installs import EngineKind
from loadgen.engines.table import ENGINES
from loadgen.engines.trtllm_metrics import IterationPage
from loadgen.records import ServerSample

# Of vLLM 0.32 with two engines of data parallelism; cut down.
VLLM_PAGE = """\
# HELP python_info Python platform information
# TYPE python_info gauge
python_info{implementation="CPython",major="3",minor="12",patchlevel="3",version="3.12.3"} 1.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="shape {a, b}"} 3.0
vllm:num_requests_running{engine="1",model_name="shape {a, b}"} 4.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="shape {a, b}"} 0.0
vllm:num_requests_waiting{engine="1",model_name="shape {a, b}"} 2.0
# HELP vllm:num_requests_waiting_by_reason Number of requests waiting, by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{engine="1",model_name="shape {a, b}",reason="capacity"} 2.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="shape {a, b}"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="shape {a, b}"} 0.75
# HELP vllm:prefix_cache_queries_total Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{engine="0",model_name="shape {a, b}"} 800.0
# HELP vllm:prefix_cache_queries_created Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_created gauge
vllm:prefix_cache_queries_created{engine="0",model_name="shape {a, b}"} 1.7e+09
# HELP vllm:num_preemptions_total Cumulative number of preemption from the engine.
# TYPE vllm:num_preemptions_total counter
vllm:num_preemptions_total{engine="0",model_name="shape {a, b}"} 0.0
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="shape {a, b}"} 1.048576e+06
# HELP vllm:prompt_tokens_created Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="shape {a, b}"} 1.7e+09
# HELP vllm:request_success_total Count of successfully processed requests.
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="shape {a, b}"} 5.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="shape {a, b}"} 7.0
vllm:request_success_total{engine="1",finished_reason="abort",model_name="shape {a, b}"} 1.0
# HELP vllm:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="shape {a, b}"} 0.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf",model_name="shape {a, b}"} 13.0
vllm:time_to_first_token_seconds_count{engine="0",model_name="shape {a, b}"} 13.0
vllm:time_to_first_token_seconds_sum{engine="0",model_name="shape {a, b}"} 1.625
# HELP vllm:time_to_first_token_seconds_created Histogram of time to first token in seconds.
# TYPE vllm:time_to_first_token_seconds_created gauge
vllm:time_to_first_token_seconds_created{engine="0",model_name="shape {a, b}"} 1.7e+09
# HELP http_requests_total Total number of requests by method, status and handler.
# TYPE http_requests_total counter
http_requests_total{handler="/v1/completions",method="POST",status="2xx"} 13.0
"""
VLLM_VALUES = {
    "requests_running": 7,
    "requests_waiting": 2,
    "kv_cache_usage": 0.5,
    "requests": 13,
    "prompt_tokens": 1_048_576,
    "preemptions": 0,
    "prefix_cache_queries": 800,
    "ttft_s_sum": 1.625,
    "ttft_s_count": 13,
}


# --- pages of Prometheus


def parse_prometheus(page: str) -> dict[str, float]:
    """By the names of every engine, as for a server that is not known."""
    return server_metrics.parse_prometheus(page, SeriesNames(*(row.series for row in ENGINES.values())))


def test_vllms_page_is_read_and_its_noise_is_not() -> None:
    assert parse_prometheus(VLLM_PAGE) == VLLM_VALUES


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("vllm:gpu_cache_usage_perc 0.5", {"kv_cache_usage": 0.5}),
        ("vllm:gpu_prefix_cache_queries_total 9", {"prefix_cache_queries": 9}),
        ("vllm:gpu_prefix_cache_hits_total 8", {"prefix_cache_hits": 8}),
        ("vllm:time_per_output_token_seconds_sum 1.5", {"tpot_s_sum": 1.5}),
        ("vllm:request_time_per_output_token_seconds_count 4", {"tpot_s_count": 4}),
        ('request_success_total{finished_reason="stop",model_name="m"} 5', {"requests": 5}),
        ("trtllm_request_success_total 5", {"requests": 5}),
        ("trtllm_kv_cache_utilization 0.125", {"kv_cache_usage": 0.125}),
        ("time_to_first_token_seconds_sum 2.5", {"ttft_s_sum": 2.5}),
        ("trtllm_time_to_first_token_seconds_sum 2.5", {"ttft_s_sum": 2.5}),
        ("request_queue_time_seconds_count 3", {"queue_s_count": 3}),
        ("trtllm_e2e_request_latency_seconds_sum 7", {"e2e_s_sum": 7}),
        ("trtllm_num_requests_waiting 6", {"requests_waiting": 6}),
        ("sglang:inter_token_latency_seconds_sum 3", {"tpot_s_sum": 3}),
        ("sglang:queue_time_s_count 5", {"queue_s_count": 5}),
    ],
)
def test_series_of_other_versions_and_of_tensorrt_llm_have_the_same_names(line: str, values: dict[str, float]) -> None:
    assert parse_prometheus(line + "\n") == values


# Of SGLang 0.5.23; cut down.
SGLANG_PAGE = """\
# HELP sglang:num_running_reqs The number of running requests.
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="tiny",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 8.0
# HELP sglang:num_queue_reqs The number of requests in the waiting queue.
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="tiny",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 4.0
# HELP sglang:token_usage The token usage.
# TYPE sglang:token_usage gauge
sglang:token_usage{engine_type="unified",model_name="tiny",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 0.06
# HELP sglang:time_to_first_token_seconds Histogram of time to first token in seconds.
# TYPE sglang:time_to_first_token_seconds histogram
sglang:time_to_first_token_seconds_bucket{engine_type="unified",is_streaming="true",le="0.1",model_name="tiny"} 1.0
sglang:time_to_first_token_seconds_sum{engine_type="unified",is_streaming="false",model_name="tiny"} 0.25
sglang:time_to_first_token_seconds_count{engine_type="unified",is_streaming="false",model_name="tiny"} 3.0
sglang:time_to_first_token_seconds_sum{engine_type="unified",is_streaming="true",model_name="tiny"} 404.5
sglang:time_to_first_token_seconds_count{engine_type="unified",is_streaming="true",model_name="tiny"} 69.0
# HELP sglang:prompt_tokens_total Number of prefill tokens processed.
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{engine_type="unified",is_streaming="false",model_name="tiny"} 50.0
sglang:prompt_tokens_total{engine_type="unified",is_streaming="true",model_name="tiny"} 13518.0
# HELP sglang:num_requests_total Number of requests processed.
# TYPE sglang:num_requests_total counter
sglang:num_requests_total{engine_type="unified",is_streaming="false",model_name="tiny"} 3.0
sglang:num_requests_total{engine_type="unified",is_streaming="true",model_name="tiny"} 69.0
# HELP sglang:cached_tokens_total Number of cached prompt tokens by source (device/host/storage).
# TYPE sglang:cached_tokens_total counter
sglang:cached_tokens_total{cache_source="device",engine_type="unified",model_name="tiny"} 8844.0
# HELP sglang:http_requests_total Total number of HTTP requests by endpoint and method
# TYPE sglang:http_requests_total counter
sglang:http_requests_total{endpoint="/v1/completions",method="POST"} 68.0
"""


def test_sglangs_page_counts_answers_that_were_streamed_and_those_that_were_not() -> None:
    assert parse_prometheus(SGLANG_PAGE) == {
        "requests_running": 8,
        "requests_waiting": 4,
        "kv_cache_usage": 0.06,
        "requests": 72,
        "prompt_tokens": 13_568,
        "prefix_cache_queries": 13_568,
        "prefix_cache_hits": 8844,
        "ttft_s_sum": 404.75,
        "ttft_s_count": 72,
    }


def test_of_two_names_for_one_metric_the_newer_counts() -> None:
    page = "vllm:gpu_cache_usage_perc 0.9\nvllm:kv_cache_usage_perc 0.1\n"
    assert parse_prometheus(page) == {"kv_cache_usage": 0.1}


@pytest.mark.parametrize("kind", ENGINES)
def test_no_two_metrics_take_the_same_series(kind: EngineKind) -> None:
    names = SeriesNames(ENGINES[kind].series)
    # Who counts no queries of the prefix cache looks up every token of a prompt.
    own = {name: known for name, known in names.of.items() if name != "prefix_cache_queries"}
    series = [name for known in own.values() for name in known]
    assert sorted(series) == sorted(set(series))
    assert names.of.keys() <= METRICS.keys()


@pytest.mark.parametrize(
    "page",
    [
        "",
        "<html>404</html>",
        '[{"iter": 1}]',
        "vllm:num_requests_running",
        "vllm:num_requests_running three",
        'vllm:num_requests_running{engine="0} 3',
        "vllm:num_requests_running{engine=0} 3",
        'vllm:num_requests_running{engine="0",engine="1"} 3',
        "vllm:num_requests_running_total 3",
        "xvllm:num_requests_running 3",
    ],
)
def test_what_is_no_page_of_an_engine_says_nothing(page: str) -> None:
    assert parse_prometheus(page) == {}


def test_one_line_that_is_broken_spoils_the_page() -> None:
    """Half of the counters would look like an engine that lost requests."""
    assert parse_prometheus(VLLM_PAGE + 'vllm:generation_tokens_total{engine="0') == {}


def test_a_page_cut_anywhere_is_no_exception_and_invents_nothing() -> None:
    names = {name for cut in range(0, len(VLLM_PAGE), 7) for name in parse_prometheus(VLLM_PAGE[:cut])}
    assert names <= set(VLLM_VALUES)


def test_exemplars_and_times_behind_a_value_are_not_part_of_it() -> None:
    page = 'vllm:prompt_tokens_total 8 # {trace_id="a"} 0.5 1.7e9\nvllm:num_requests_running 3 1700000000000\n'
    assert parse_prometheus(page) == {"prompt_tokens": 8, "requests_running": 3}


# --- TensorRT-LLM's page of iterations


def iteration(number: int | None, ms: float, active: int, queued: int, **cache: int) -> dict[str, Any]:
    """An iteration as TensorRT-LLM 1.0 to 1.3 gives it, with fields that nobody here reads."""
    stats = {"freeNumBlocks": 1, "tokensPerBlock": 32, "cacheHitRate": 0.0, **cache}
    return {
        "iter": number,
        "iterLatencyMS": ms,
        "numActiveRequests": active,
        "numQueuedRequests": queued,
        "maxNumActiveRequests": 2048,
        "timestamp": "11-23-2026 20:49:00.000000",
        "inflightBatchingStats": {"numContextRequests": 1},
        **({"kvCacheStats": stats} if cache else {}),
    }


def page(*iterations: dict[str, Any]) -> bytes:
    return json.dumps(list(iterations)).encode()


def test_counters_go_on_over_reads_and_states_are_means_since_the_last() -> None:
    reader = IterationPage()
    first = [
        iteration(1, 20, 1, 5, maxNumBlocks=100, usedNumBlocks=20, reusedBlocks=4, missedBlocks=8),
        iteration(2, 30, 3, 0, maxNumBlocks=100, usedNumBlocks=40, reusedBlocks=6, missedBlocks=9),
    ]
    assert reader.take(page(*first)) == {
        "iterations": 2,
        "iteration_s_sum": pytest.approx(0.050),
        "blocks_reused": 6,
        "blocks_missed": 9,
        "requests_running": 2,
        "requests_waiting": 2.5,
        "kv_cache_usage": pytest.approx(0.3),
    }
    second = iteration(3, 50, 8, 1, maxNumBlocks=100, usedNumBlocks=90, reusedBlocks=7, missedBlocks=9)
    assert reader.take(page(second)) == {
        "iterations": 3,
        "iteration_s_sum": pytest.approx(0.100),
        "blocks_reused": 7,
        "blocks_missed": 9,
        "requests_running": 8,
        "requests_waiting": 1,
        "kv_cache_usage": pytest.approx(0.9),
    }


def test_a_read_that_brings_nothing_new_has_the_counters_and_no_states() -> None:
    reader = IterationPage()
    reader.take(page(iteration(1, 20, 1, 0)))
    assert reader.take(b"[]") == {"iterations": 1, "iteration_s_sum": 0.02}


def test_iterations_given_twice_count_once() -> None:
    reader = IterationPage()
    reader.take(page(iteration(1, 20, 1, 0), iteration(2, 20, 1, 0)))
    values = reader.take(page(iteration(2, 20, 1, 0), iteration(3, 60, 9, 0), iteration(3, 60, 9, 0)))
    assert values["iterations"] == 3
    assert values["iteration_s_sum"] == pytest.approx(0.100)
    assert values["requests_running"] == 9


def test_iterations_without_a_number_all_count() -> None:
    reader = IterationPage()
    assert reader.take(page(iteration(None, 20, 1, 0), iteration(None, 20, 3, 0)))["iterations"] == 2
    assert reader.take(page(iteration(None, 20, 1, 0)))["iterations"] == 3


def test_iterations_without_a_cache_say_nothing_of_it() -> None:
    values = IterationPage().take(page(iteration(1, 20, 4, 0), iteration(2, 20, 6, 0, maxNumBlocks=0, usedNumBlocks=0)))
    assert values == {"iterations": 2, "iteration_s_sum": 0.04, "requests_running": 5, "requests_waiting": 0}


def test_fields_that_an_iteration_lacks_are_unknown() -> None:
    assert IterationPage().take(b'[{"iter": 7, "numQueuedRequests": null}]') == {"iterations": 1, "iteration_s_sum": 0}


@pytest.mark.parametrize("body", [b"", b"not json", b"{}", b"[1]", b'[{"iter": "1"}]', b'[{"iter": 1}', b"[\xff]"])
def test_what_is_no_list_of_iterations_says_nothing_and_loses_nothing(body: bytes) -> None:
    reader = IterationPage()
    reader.take(page(iteration(1, 20, 1, 0)))
    assert reader.take(body) == {}
    assert reader.take(page(iteration(2, 20, 1, 0)))["iterations"] == 2


# --- a level of samples

TOTALS = Totals(requests=20, prompt_tokens=2000, generation_tokens=640)
WINDOW = (1000 * MS, 2000 * MS)


def sample(
    t: int, values: dict[str, float], at: Literal["start", "during", "end"] = "during", took_ms: int = 1
) -> ServerSample:
    return ServerSample(t_ns=t * MS, took_ns=took_ms * MS, level=0, at=at, values=values)


def between(first: dict[str, float], last: dict[str, float]) -> list[ServerSample]:
    """Samples before the window and after it."""
    return [sample(500, first, "start"), sample(2500, last, "end")]


def figures(samples: list[ServerSample]) -> dict[str, Any]:
    found = server_figures(samples, *WINDOW, TOTALS)
    assert found is not None
    figures: dict[str, Any] = msgspec.to_builtins(found)
    return figures


@pytest.mark.parametrize(("requests", "agrees"), [(120, True), (119, False), (121, False)])
def test_growth_from_start_to_end_is_compared_with_our_totals(requests: float, agrees: bool) -> None:
    samples = between({"requests": 100, "prompt_tokens": 9000}, {"requests": requests, "prompt_tokens": 11_000})
    expected = {"requests": requests - 100, "prompt_tokens": 2000}
    assert reconcile(samples, TOTALS) == (expected, agrees)
    assert figures(samples).items() >= {**expected, "agrees": agrees}.items()


def test_the_last_end_is_compared() -> None:
    """An engine counts a request a little after it has answered it, so it is asked again."""
    samples = [*between({"requests": 100}, {"requests": 118}), sample(2700, {"requests": 120}, "end")]
    assert reconcile(samples, TOTALS) == ({"requests": 20}, True)


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [sample(500, {"requests": 100}, "start")],
        [sample(2500, {"requests": 120}, "end")],
        [sample(500, {"requests": 100}), sample(2500, {"requests": 120})],
        between({}, {"requests": 120}),
        between({"requests": 100}, {"prompt_tokens": 120}),
        between({"requests_running": 1}, {"requests_running": 21}),
        between({"requests": 100}, {"requests": 20}),
    ],
    ids=["none", "no end", "no start", "during", "not at the start", "not at the end", "a state", "restarted"],
)
def test_counters_that_are_not_on_both_sides_are_not_compared(samples: list[ServerSample]) -> None:
    assert reconcile(samples, TOTALS) is None


def test_an_engine_that_says_nothing_has_no_figures() -> None:
    assert server_figures([], *WINDOW, TOTALS) is None


def test_states_are_means_and_maxima_over_the_window() -> None:
    samples = [
        sample(999, {"requests_running": 90}, "start"),
        sample(1000, {"requests_running": 1, "kv_cache_usage": 0.2}),
        sample(1500, {"requests_running": 2}),
        sample(2000, {"requests_running": 6, "kv_cache_usage": 0.6}),
        sample(2001, {"requests_running": 80}, "end"),
    ]
    found = figures(samples)
    assert found["requests_running"] == {"mean": 3, "max": 6}
    assert found["kv_cache_usage"] == {"mean": pytest.approx(0.4), "max": 0.6}
    assert "requests_waiting" not in found


TTFT = [
    sample(500, {"ttft_s_sum": 0, "ttft_s_count": 0}, "start"),
    sample(1100, {"ttft_s_sum": 10, "ttft_s_count": 10}),
    sample(1900, {"ttft_s_sum": 14, "ttft_s_count": 30}),
    sample(2500, {"ttft_s_sum": 70, "ttft_s_count": 40}, "end"),
]


@pytest.mark.parametrize(
    ("samples", "span", "ttft_s"),
    [(TTFT, "window", 0.2), ([TTFT[0], TTFT[1], TTFT[3]], "level", 1.75), ([TTFT[0], TTFT[3]], "level", 1.75)],
    ids=["two inside", "one inside", "none inside"],
)
def test_times_are_of_the_window_where_it_has_two_samples(
    samples: list[ServerSample], span: str, ttft_s: float
) -> None:
    found = figures(samples)
    assert found["span"] == span
    assert found["ttft_s"] == pytest.approx(ttft_s)


@pytest.mark.parametrize("name", ["ttft", "queue", "prefill", "decode", "e2e", "tpot"])
def test_every_time_is_a_mean_over_what_was_finished(name: str) -> None:
    found = figures(between({f"{name}_s_sum": 1, f"{name}_s_count": 2}, {f"{name}_s_sum": 4, f"{name}_s_count": 14}))
    assert found[f"{name}_s"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    "last",
    [{"ttft_s_sum": 1, "ttft_s_count": 2}, {"ttft_s_sum": 0.5, "ttft_s_count": 1}, {"ttft_s_sum": 2}, {}],
    ids=["nothing finished", "restarted", "no count", "gone"],
)
def test_a_time_over_nothing_is_left_out(last: dict[str, float]) -> None:
    assert "ttft_s" not in figures(between({"ttft_s_sum": 1, "ttft_s_count": 2}, last))


def test_an_iteration_is_as_long_as_their_sum_says() -> None:
    samples = between({"iterations": 100, "iteration_s_sum": 2}, {"iterations": 150, "iteration_s_sum": 3})
    assert figures(samples)["iteration_s"] == pytest.approx(0.02)
    assert "iteration_s" not in figures(between(samples[0].values, samples[0].values))


def hits(hit: float, queried: float) -> dict[str, float]:
    return {"prefix_cache_hits": hit, "prefix_cache_queries": queried}


def blocks(reused: float, missed: float) -> dict[str, float]:
    return {"blocks_reused": reused, "blocks_missed": missed}


@pytest.mark.parametrize(
    ("first", "last", "rate"),
    [
        (hits(10, 100), hits(40, 220), 0.25),
        (hits(0, 0), hits(0, 9), 0),
        (hits(1, 1), hits(1, 1), None),
        (hits(9, 90), hits(1, 2), None),
        (blocks(5, 10), blocks(14, 11), 0.9),
        (blocks(5, 10), blocks(5, 10), None),
        ({"blocks_reused": 5}, {"blocks_reused": 9}, None),
        ({**hits(0, 0), **blocks(0, 0)}, {**hits(1, 4), **blocks(1, 1)}, 0.25),
        ({}, {}, None),
    ],
    ids=["tokens", "no hit", "no query", "restarted", "blocks", "no block", "half", "both", "unknown"],
)
def test_prefix_cache_hit_rate(first: dict[str, float], last: dict[str, float], rate: float | None) -> None:
    found = figures(between(first, last))["prefix_cache_hit_rate"]
    assert found == (None if rate is None else pytest.approx(rate))


@pytest.mark.parametrize(
    ("first", "last", "preemptions"),
    [({"preemptions": 2}, {"preemptions": 5}, 3), ({"preemptions": 2}, {"preemptions": 2}, 0), ({}, {}, None)],
)
def test_preemptions_are_of_the_whole_level(
    first: dict[str, float], last: dict[str, float], preemptions: int | None
) -> None:
    inside = [sample(1200, first), sample(1800, first)]
    start, end = between(first, last)
    assert figures([start, *inside, end]).get("preemptions") == preemptions


def test_after_a_restart_nothing_is_compared_and_states_stay() -> None:
    before = {"requests": 100, "preemptions": 3, "ttft_s_sum": 9, "ttft_s_count": 90, "iterations": 7}
    samples = between(before, dict.fromkeys(before, 0))
    found = figures([samples[0], sample(1500, {"requests_running": 4}), samples[1]])
    assert found == {
        "span": "level",
        "requests_running": {"mean": 4, "max": 4},
        "prefix_cache_hit_rate": None,
        "scrapes": 3,
        "scrape_s": 0.001,
    }


@pytest.mark.parametrize(("took_ms", "scrape_s"), [([30, 1, 2], 0.002), ([5], 0.005), ([4, 1, 900, 3, 2], 0.003)])
def test_a_scrape_took_as_long_as_the_middle_one(took_ms: list[int], scrape_s: float) -> None:
    found = figures([sample(1000 + number, {}, took_ms=ms) for number, ms in enumerate(took_ms)])
    assert (found["scrapes"], found["scrape_s"]) == (len(took_ms), pytest.approx(scrape_s))
