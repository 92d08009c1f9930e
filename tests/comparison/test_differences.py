"""The gate's rules one by one, differences that are known by hand, and what must hold for any two runs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made import MS, failure, manifest_from, request
from msgspec.structs import replace

from loadgen.analysis.measure import summarize_run
from loadgen.comparison.blocks import FAMILIES, THROUGHPUT, block_count
from loadgen.comparison.decisions import Condition, decide, fail_on, overall_decision
from loadgen.comparison.differences import LAUNCH_SD, Comparison, _interpolate, compare
from loadgen.comparison.effects import Effect, judge
from loadgen.comparison.sides import Side, SideLevel, read_side, sample_of
from loadgen.errors import UsageError
from loadgen.loads import Closed, Open
from loadgen.records import LevelMark, Manifest, RequestRecord, encode_line, write_manifest

REPORTS = Path(__file__).resolve().parents[2] / "reports"
VLLM = "vllm-0.25.1-h200-qwen1.5-4b"
WINDOW = 20_000
GPU = {"uuid": "GPU-1", "name": "H200", "power_limit_w": 700.0}


def manifest(**fields: Any) -> Manifest:
    """A run of a made-up engine; a dict changes only the keys that it has."""
    made: dict[str, Any] = {
        "command": ["loadgen"],
        "started_utc": "2024-05-01T00:00:00+00:00",
        "simulated": False,
        "host": {"name": "client", "processor": "CPU", "cores": 8, "kernel": "6.1"},
        "gpus": [GPU],
        "driver": "580",
        "engine": {"kind": "vllm", "version": "1.0", "model": "m", "endpoint": "completions", "argv": ["serve"]},
        "dataset": {"kind": "file", "path": "data/chat.jsonl", "sha256": "ab" * 32, "prompts": 100},
        "seed": 0,
        "load": {"model": "closed", "duration_s": 20.0, "warmup": True, "timeouts": {"request_s": 60.0}},
        "levels": [],
        "client": {"loadgen_version": "0.1.0", "workers": 1},
    }
    for name, value in fields.items():
        made[name] = {**made[name], **value} if isinstance(value, dict) else value
    return manifest_from(**made)


def slot(factor: float = 1.0, *, step: int = 1, **fields: Any) -> list[RequestRecord]:
    """One slot that is always busy: TTFT 50 to 149 ms, 4 more tokens 10 to 29 ms apart, all times the factor.

    Args:
        step: both are multiples of it, in ms; with 10, every tenth is a factor that rounds nothing.
    """
    rng = random.Random(0)
    records: list[RequestRecord] = []
    now = 0.0
    while now < WINDOW:
        first, gap = rng.randrange(50, 150, step), rng.randrange(10, 30, step)
        gaps = [round(first * factor), *[round(gap * factor)] * 4]
        number = len(records)
        records.append(request(round(now), *gaps, seq=number, prompt_id=f"p{number}", **fields))
        now += sum(gaps)
    return records


def level(
    records: list[RequestRecord], *, concurrency: int = 1, number: int = 0, start_s: float = 0.0, **fields: Any
) -> SideLevel:
    made: dict[str, Any] = {
        "load": Closed(concurrency=concurrency),
        "round": number,
        "verdict": ["VALID"],
        "sample": sample_of(records, 0, WINDOW * MS),
        "start_s": start_s,
    }
    return SideLevel(**{**made, **fields})


def side(*levels: SideLevel, label: str = "A", sweep: str | None = None, **fields: Any) -> Side:
    return Side(label=label, manifest=manifest(**fields), levels=list(levels), sweep=sweep)


def effect(comparison: Comparison, name: str, position: int | None = 0) -> Effect:
    """Of the level at that position, or over all levels."""
    metric, _, statistic = name.partition(" ")
    family = (THROUGHPUT, "mean") if metric == "throughput" else (f"{metric}_s", statistic)
    effects = comparison.overall if position is None else comparison.levels[position].effects
    return effects[FAMILIES.index(family)]


def found(comparison: Comparison, weight: str) -> list[str]:
    return [finding.name for finding in comparison.findings if finding.weight == weight]


# --- samples


def test_latencies_are_those_of_the_summary() -> None:
    records = [request(0, 20, 5, 5, prompt_id="a"), request(40, 30, 10, tokens=[2, 3], prompt_id="b")]
    sample = sample_of(records, 0, 1000 * MS)
    assert sample.latencies["ttft_s"].tolist() == pytest.approx([0.020, 0.030])
    assert sample.latencies["tpot_s"].tolist() == pytest.approx([0.005, 0.010 / 3])
    assert sample.latencies["e2e_s"].tolist() == pytest.approx([0.030, 0.040])
    assert sample.tokens.sum() == 8
    assert sample.tokens_per_event == pytest.approx(8 / 5)


def test_an_open_loop_is_timed_from_the_intended_send() -> None:
    late = request(100, 20, 5, scheduled_ns=90 * MS)
    sample = sample_of([late], 0, 1000 * MS)
    assert (sample.latencies["ttft_s"][0], sample.latencies["e2e_s"][0]) == pytest.approx((0.030, 0.035))
    assert sample.latencies["tpot_s"][0] == pytest.approx(0.005)


def test_only_tokens_of_successes_inside_the_window_count_and_only_measured_requests_are_timed() -> None:
    records = [
        request(0, 90, 20, 20, phase="warmup"),  # its first token came before the window
        request(200, 10, 10),
        failure(300, 10, 10, end=400),
        request(990, 5, 20, phase="drain"),
        failure(500, end=600, kind="cancelled"),
        request(600, end=700, first_token_ns=None, last_token_ns=700 * MS, output_tokens=7),  # not streamed
    ]
    sample = sample_of(records, 100 * MS, 1000 * MS)
    assert sample.tokens.sum() == 2 + 2 + 1 + 7
    assert sample.failed.tolist() == [False, True, False]
    assert sample.completed == 2
    assert np.isnan(sample.latencies["ttft_s"]).tolist() == [False, True, True]


def test_a_request_of_one_token_has_no_tpot_and_one_without_a_connection_only_failed() -> None:
    sample = sample_of([request(0, 20), failure(None, end=50, kind="connect")], 0, 100 * MS)
    assert np.isnan(sample.latencies["tpot_s"]).all()
    assert sample.failed.tolist() == [False, True]


@pytest.mark.parametrize(
    ("window_s", "e2e_ms", "blocks"), [(20, 100, 50), (20, 1000, 5), (20, 1900, 5), (20, 2100, 0), (20, 10, 100)]
)
def test_blocks_are_of_four_times_the_e2e_or_of_half_that_in_short_windows(
    window_s: int, e2e_ms: int, blocks: int
) -> None:
    assert block_count(sample_of([request(0, 10, e2e_ms - 10)], 0, window_s * 1000 * MS)) == blocks


# --- differences known by hand


def test_everything_twice_as_slow() -> None:
    a, b = side(level(slot())), side(level(slot(2.0)), label="B")
    result = compare(a, b, launch_sd={})
    assert result.comparable
    for name in ("ttft paired", "ttft mean", "ttft p50", "tpot p50", "e2e mean"):
        shown = effect(result, name)
        assert shown.ratio == pytest.approx(2, rel=0.1), name
        assert shown.word == "slower", name
    exact = effect(result, "ttft paired")  # every prompt alike: nothing is uncertain
    assert exact.ratio == pytest.approx(2)
    assert exact.ratio_ci95 == pytest.approx((2, 2))
    assert (exact.p, exact.detectable) == pytest.approx((0, 0), abs=1e-9)
    throughput = effect(result, "throughput")
    assert throughput.ratio == pytest.approx(0.5, rel=0.05)
    assert throughput.word == "slower"
    assert throughput.difference is not None and throughput.a is not None and throughput.b is not None
    assert throughput.difference == throughput.b - throughput.a < 0
    assert throughput.difference_ci95 is not None and throughput.difference_ci95[1] < 0


def test_a_run_against_itself() -> None:
    result = compare(side(level(slot())), side(level(slot())), launch_sd={})
    measured = [shown for shown in result.levels[0].effects if shown.ratio is not None]
    assert {shown.metric for shown in measured} == {shown.metric for shown in result.levels[0].effects}
    for shown in measured:
        assert (shown.ratio, shown.p, shown.word) == (1, 1, "no detectable difference")
        assert shown.ratio_ci95 is not None and shown.ratio_ci95[0] <= 1 <= shown.ratio_ci95[1]


def test_faster_is_less_latency_and_more_tokens() -> None:
    result = compare(side(level(slot(2.0))), side(level(slot())), launch_sd={})
    assert {effect(result, name).word for name in ("ttft mean", "tpot p50", "throughput")} == {"faster"}


def rounds(factors: list[float], *, start: int = 0) -> list[SideLevel]:
    return [
        level(slot(factor, step=10), number=number, start_s=100.0 * (2 * number + start))
        for number, factor in enumerate(factors)
    ]


def test_interleaved_rounds_give_students_interval() -> None:
    a = side(*rounds([1, 1, 1]), sweep="s")
    b = side(*rounds([1.1, 1.2, 1.3], start=1), sweep="s")
    result = compare(a, b)
    shown = effect(result, "ttft paired")
    logs = np.log([1.1, 1.2, 1.3])
    half = 4.302652729911275 * logs.std(ddof=1) / math.sqrt(3)  # Student's t with two degrees of freedom
    assert (result.order, result.launch_sd) == ("interleaved", None)
    assert shown.ratio == pytest.approx(math.exp(logs.mean()))
    assert shown.ratio_ci95 == pytest.approx((math.exp(logs.mean() - half), math.exp(logs.mean() + half)))
    assert shown.degrees == 2


def test_what_the_rounds_have_in_common_is_no_difference() -> None:
    """The machine got slower and slower; in each round both sides alike."""
    a, b = side(*rounds([1, 2, 3]), sweep="s"), side(*rounds([1.1, 2.2, 3.3], start=1), sweep="s")
    shown = effect(compare(a, b), "e2e paired")
    assert shown.ratio == pytest.approx(1.1)
    assert shown.ratio_ci95 == pytest.approx((1.1, 1.1))


def test_one_round_is_widened_by_what_launches_differ_by() -> None:
    shown = effect(compare(side(level(slot(1, step=10))), side(level(slot(1.1, step=10)))), "tpot paired")
    half = 1.959963984540054 * math.sqrt(2) * LAUNCH_SD["tpot_s"]
    assert shown.ratio_ci95 == pytest.approx((1.1 * math.exp(-half), 1.1 * math.exp(half)))
    assert shown.detectable == pytest.approx(
        math.exp((1.959963984540054 + 0.8416212335729143) * math.sqrt(2) * 0.015) - 1, rel=1e-4
    )


def test_rounds_of_one_launch_do_not_tell_what_launches_differ_by() -> None:
    a, b = side(*rounds([1, 1, 1])), side(*rounds([1.1, 1.1, 1.1]))
    result = compare(a, b)
    assert result.launch_sd == LAUNCH_SD
    assert effect(result, "tpot paired").standard_error == pytest.approx(math.sqrt(2) * 0.015)
    assert compare(a, b, launch_sd={}).launch_sd is None


def test_overall_is_the_geometric_mean_of_the_levels() -> None:
    a = side(level(slot(1, step=10)), level(slot(1, step=10), concurrency=8))
    b = side(level(slot(2, step=10)), level(slot(0.5, step=10), concurrency=8))
    result = compare(a, b, launch_sd={})
    assert effect(result, "ttft paired", None).ratio == pytest.approx(1)
    b = side(level(slot(2, step=10)), level(slot(2, step=10), concurrency=8))
    assert effect(compare(a, b, launch_sd={}), "ttft paired", None).ratio == pytest.approx(2)
    assert compare(side(level(slot())), side(level(slot()))).overall == []


def test_a_difference_between_launches_is_not_averaged_away_over_levels() -> None:
    a, b = (side(level(slot(1, step=10)), level(slot(1, step=10), concurrency=8)) for _ in range(2))
    assert effect(compare(a, b), "tpot paired", None).standard_error == pytest.approx(math.sqrt(2) * 0.015)


def test_levels_are_ordered_by_load_and_those_of_one_side_are_named() -> None:
    a = side(level(slot(), concurrency=64), level(slot(), concurrency=8), level(slot(), concurrency=1))
    b = side(level(slot(), concurrency=8), level(slot(), concurrency=64), level(slot(), concurrency=64, number=1))
    result = compare(a, b)
    assert [shown.name for shown in result.levels] == ["8 in flight", "64 in flight"]
    assert (result.only_a, result.only_b) == (["1 in flight"], ["64 in flight, round 2"])


def test_a_load_that_a_round_has_twice_is_two_levels() -> None:
    a = side(level(slot(1, step=10)), level(slot(1, step=10)), sweep="s")
    b = side(level(slot(1.1, step=10)), level(slot(1.2, step=10)), sweep="s")
    result = compare(a, b)
    assert [(shown.name, shown.rounds) for shown in result.levels] == [("1 in flight", 1)] * 2
    assert [effect(result, "tpot paired", position).ratio for position in (0, 1)] == pytest.approx([1.1, 1.2])


def test_a_quantile_below_its_floor_says_what_it_needs() -> None:
    shown = effect(compare(side(level(slot())), side(level(slot()))), "ttft p99")
    assert (shown.word, shown.ratio) == ("n/a", None)
    assert shown.why == "needs 662 requests a round"


def test_a_tail_needs_many_blocks_or_several_rounds() -> None:
    many = [request(i, 600, 10, 10, seq=i, prompt_id=f"p{i}") for i in range(0, WINDOW, 25)]
    one = effect(compare(side(level(many)), side(level(many))), "ttft p99")
    assert one.why == "in one round needs 50 blocks, has 8; or more rounds"
    several = side(*(level(many, number=number) for number in range(3)))
    assert effect(compare(several, several), "ttft p99").ratio == 1


def test_failed_requests_are_ranked_behind_all_others() -> None:
    records = [request(200 * i, 101 + i, 1, 1, seq=i, prompt_id=f"p{i}") for i in range(100)]
    for i in range(15):
        records[5 * i] = failure(1000 * i, end=1000 * i + 1, seq=5 * i, prompt_id=f"p{5 * i}")
    result = compare(side(level(records)), side(level(records)), force=True)
    kept = sorted(101 + i for i in range(100) if i % 5 or i >= 75)
    p50 = effect(result, "ttft p50")
    assert p50.a == pytest.approx((kept[49] + kept[50]) / 2 / 1000)
    assert effect(result, "ttft p90").why == "reaches the failed requests"


def test_too_short_a_window_has_no_interval() -> None:
    slow = [request(3000 * i, 1000, 2000, prompt_id=f"p{i}") for i in range(6)]
    effects = compare(side(level(slow)), side(level(slow))).levels[0].effects
    assert len(effects) > 5
    for shown in effects:
        assert shown.word == "n/a" and shown.why


def test_prompts_that_one_side_did_not_answer_are_no_pairs() -> None:
    a, b = slot(1, step=10), slot(1.1, step=10)
    b[3] = failure(b[3].sent_ns // MS, end=b[3].end_ns // MS, prompt_id="p3")  # type: ignore[operator]
    result = compare(side(level(a)), side(level(b)), force=True, launch_sd={})
    assert result.levels[0].pairs == min(len(a), len(b)) - 1
    assert effect(result, "e2e paired").ratio == pytest.approx(1.1)
    result = compare(side(level(a)), side(level(b[:26])), force=True)
    assert effect(result, "e2e paired").why == "25 prompts were answered by both; 30 are needed"


# --- words


def judged(*ps: float) -> list[str]:
    """The words for levels whose p-values are those."""
    from scipy import stats

    effects = [
        Effect(metric="ttft_s", statistic="p50", log_ratio=-float(stats.norm.ppf(p / 2)), standard_error=1, degrees=1e6)
        for p in ps
    ]
    judge(effects)
    return [shown.word for shown in effects]


NONE = "no detectable difference"


@pytest.mark.parametrize(
    ("ps", "words"),
    [
        ((0.04,), ["slower"]),
        ((0.03, 0.04), [NONE, NONE]),  # 0.03 x 2
        ((0.02, 0.04), ["slower", "slower"]),  # 0.02 x 2, 0.04 x 1
        ((0.04, 0.001, 0.03), [NONE, "slower", NONE]),  # 0.001 x 3, 0.03 x 2
        ((0.9, 0.8), [NONE, NONE]),
    ],
)
def test_words_are_corrected_after_holm(ps: tuple[float, ...], words: list[str]) -> None:
    assert judged(*ps) == words


def test_what_could_have_been_seen_is_more_where_there_are_more_levels() -> None:
    def seen(levels: int) -> float:
        effects = [
            Effect(metric="ttft_s", statistic="p50", log_ratio=0.0, standard_error=0.01, degrees=1e6)
            for _ in range(levels)
        ]
        judge(effects)
        assert effects[0].detectable is not None
        return math.log1p(effects[0].detectable) / 0.01

    # Quantiles of the normal distribution at 1 - 0.05 / 2 and 1 - 0.05 / 10, and at 0.8.
    assert (seen(1), seen(5)) == pytest.approx((1.959964 + 0.841621, 2.575829 + 0.841621), rel=1e-4)


def test_levels_without_a_value_do_not_count() -> None:
    known = Effect(metric="ttft_s", statistic="p50", log_ratio=-2.05, standard_error=1.0, degrees=1e6)
    judge([Effect(metric="ttft_s", statistic="p50"), known])
    assert (known.word, known.p) == ("faster", pytest.approx(0.0404, abs=1e-3))


def test_what_was_called_detectable_is_found_four_times_in_five() -> None:
    """With a known standard error and the least detectable effect as the truth."""
    probe = Effect(metric="ttft_s", statistic="p50", log_ratio=0.0, standard_error=0.01, degrees=12.0)
    judge([probe])
    assert probe.detectable is not None
    rng = np.random.default_rng(0)
    n = 4000
    errors = 0.01 * np.sqrt(rng.chisquare(12, n) / 12)
    hits = 0
    for value, error in zip(rng.normal(math.log1p(probe.detectable), 0.01, n).tolist(), errors.tolist(), strict=True):
        drawn = Effect(metric="ttft_s", statistic="p50", log_ratio=value, standard_error=error, degrees=12.0)
        judge([drawn])
        hits += drawn.word == "slower"
    assert hits / n == pytest.approx(0.80, abs=0.03)


# --- the gate


@pytest.mark.parametrize(
    ("fields", "weight", "name"),
    [
        ({"dataset": {"sha256": "cd" * 32}}, "spoils", "prompts"),
        ({"simulated": True}, "spoils", "SIMULATED"),
        ({"seed": 1}, "limits", "seed"),
        ({"host": {"name": "other"}}, "limits", "client machine"),
        ({"host": {"cores": 4}}, "limits", "client machine"),
        ({"host": {"kernel": "6.2"}}, "limits", "kernel"),
        ({"gpus": [{**GPU, "name": "H100"}]}, "limits", "GPU"),
        ({"gpus": [{**GPU, "power_limit_w": 500.0}]}, "limits", "GPU"),
        ({"gpus": [{**GPU, "uuid": "GPU-2"}]}, "limits", "GPU"),
        ({"driver": "570"}, "limits", "driver"),
        ({"engine": {"model": "n"}}, "limits", "model"),
        ({"engine": {"endpoint": "chat"}}, "limits", "endpoint"),
        ({"engine": {"dummy_weights": True}}, "limits", "made-up weights"),
        ({"client": {"loadgen_version": "0.2.0"}}, "limits", "loadgen version"),
        ({"client": {"workers": 2}}, "limits", "client workers"),
        ({"load": {"timeouts": {"request_s": 10.0}}}, "limits", "timeouts"),
        ({"load": {"warmup": False}}, "limits", "warm-up"),
        ({"load": {"duration_s": 40.0}}, "limits", "amount"),
        ({"load": {"requests": 100}}, "limits", "amount"),
        ({"engine": {"version": "1.1"}}, "compared", "engine"),
        ({"engine": {"argv": ["serve", "--eager"]}}, "compared", "engine arguments"),
    ],
)
def test_what_differs_between_the_runs_is_listed(fields: dict[str, Any], weight: str, name: str) -> None:
    a, b = side(level(slot())), side(level(slot()), **fields)
    result = compare(a, b)
    expected = {"spoils": [], "limits": ["order"], "compared": []}
    expected[weight] = [name, *expected[weight]]
    assert {key: found(result, key) for key in expected} == expected
    assert result.comparable == (weight != "spoils")
    finding = next(f for f in result.findings if f.name == name)
    assert finding.a != finding.b


def test_equal_runs_have_no_caveat_but_their_order() -> None:
    result = compare(side(level(slot())), side(level(slot())))
    assert (found(result, "spoils"), found(result, "limits")) == ([], ["order"])


def test_the_port_is_no_argument() -> None:
    a, b = ({"argv": ["serve", "--port", port, "--eager"], "url": f"http://127.0.0.1:{port}"} for port in ("81", "82"))
    assert found(compare(side(level(slot()), engine=a), side(level(slot()), engine=b)), "compared") == []


SYNTHETIC = {
    "kind": "synthetic token ids", "path": None, "sha256": None, "prompts": None, "input_tokens": "256",
    "output_tokens": "64", "vocab_size": 32000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"seed": 1}, "seed"), ({"dataset": {**SYNTHETIC, "input_tokens": "512"}}, "prompts")],
)
def test_synthetic_prompts_are_their_spec_and_their_seed(fields: dict[str, Any], name: str) -> None:
    result = compare(side(level(slot()), dataset=SYNTHETIC), side(level(slot()), **{"dataset": SYNTHETIC, **fields}))
    assert found(result, "spoils") == [name]


def test_a_closed_loop_is_not_compared_with_an_open_one() -> None:
    load = Open(rate_rps=2.0, arrival="poisson", max_in_flight=100)
    result = compare(side(level(slot())), side(level(slot(), load=load)), force=True)
    assert found(result, "spoils") == ["load model"]
    assert result.levels == []
    assert result.only_b == ["2 requests/s, poisson"]


def test_open_levels_are_matched_by_rate_and_arrivals() -> None:
    load = Open(rate_rps=2.0, arrival="poisson")
    a = side(level(slot(), load=replace(load, max_in_flight=100)), level(slot(), load=replace(load, rate_rps=4.0)))
    b = side(
        level(slot(), load=replace(load, max_in_flight=200)), level(slot(), load=replace(load, arrival="constant"))
    )
    result = compare(a, b)
    assert [shown.name for shown in result.levels] == ["2 requests/s, poisson"]
    assert "in flight at most" in found(result, "limits")


def test_no_common_level_is_no_comparison() -> None:
    result = compare(side(level(slot(), concurrency=1)), side(level(slot(), concurrency=8)), force=True)
    assert found(result, "spoils") == ["levels"]


def with_failures(share: float) -> list[RequestRecord]:
    records = slot()
    for i in range(round(share * len(records))):
        records[i] = failure(records[i].sent_ns // MS, end=records[i].end_ns // MS, prompt_id=f"p{i}")  # type: ignore[operator]
    return records


LEVEL_RULES: list[tuple[str, str, Callable[[], SideLevel]]] = [
    ("spoils", "verdict", lambda: level(slot(), verdict=["CLIENT_BOUND"])),
    ("spoils", "errors", lambda: level(with_failures(0.02))),
    ("limits", "errors", lambda: level(with_failures(0.009))),
    ("spoils", "input tokens", lambda: level(slot(input_tokens=11))),
    ("spoils", "output tokens", lambda: level(slot(output_tokens=6))),
    ("limits", "token source", lambda: level([_counted(r, 2) for r in slot()])),
    ("spoils", "tokens per event", lambda: level([_merged(r) for r in slot()])),
    ("spoils", "cached tokens", lambda: level(slot(cached_tokens=5))),
    ("spoils", "cached tokens", lambda: level(slot(), prefix_hits=0.5)),
    ("limits", "prompts sent", lambda: level([_renamed(r) for r in slot()])),
]


def _counted(record: RequestRecord, every: int) -> RequestRecord:
    return msgspec.structs.replace(record, token_source="usage_final" if record.seq % every else "usage_continuous")


def _merged(record: RequestRecord) -> RequestRecord:
    """The last two tokens in one event."""
    events = [*record.event_ns[:-2], sum(record.event_ns[-2:])]
    return msgspec.structs.replace(record, event_ns=events, event_tokens=[1, 1, 1, 2])


def _renamed(record: RequestRecord) -> RequestRecord:
    return msgspec.structs.replace(record, prompt_id="other " + record.prompt_id)


@pytest.mark.parametrize(("weight", "name", "make"), LEVEL_RULES, ids=[f"{w} {n}" for w, n, _ in LEVEL_RULES])
def test_what_differs_at_a_level_is_listed(weight: str, name: str, make: Callable[[], SideLevel]) -> None:
    for sides in ((side(level(slot())), side(make())), (side(make()), side(level(slot())))):
        result = compare(*sides)
        finding = next(f for f in result.findings if f.name == name)
        assert (finding.weight, finding.level) == (weight, "1 in flight")
        assert result.comparable == (weight != "spoils")
        assert bool(result.levels) == result.comparable


def test_cached_shares_that_agree_within_the_tolerance_are_no_finding() -> None:
    a, b = side(level(slot(), prefix_hits=0.93)), side(level(slot(), prefix_hits=0.95))
    assert "cached tokens" not in [f.name for f in compare(a, b).findings]
    a, b = side(level(slot(), prefix_hits=0.01)), side(level(slot()))
    assert "cached tokens" not in [f.name for f in compare(a, b).findings]


def test_the_replies_count_of_cached_tokens_is_believed_before_the_engines() -> None:
    a, b = (side(level(slot(cached_tokens=5), prefix_hits=hits)) for hits in (0.1, 0.9))
    assert compare(a, b).comparable


def test_other_prompts_of_the_same_lengths_are_a_caveat_and_of_other_lengths_spoil() -> None:
    a = side(level(slot()))
    assert compare(a, side(level([_renamed(r) for r in slot()]))).comparable
    longer = [msgspec.structs.replace(_renamed(r), input_tokens=11) for r in slot()]
    assert found(compare(a, side(level(longer))), "spoils") == ["input tokens"]
    # The same mean, another spread.
    wide = [msgspec.structs.replace(_renamed(r), input_tokens=5 + 10 * (r.seq % 2)) for r in slot()]
    even = wide[: len(wide) // 2 * 2]
    assert found(compare(a, side(level(even))), "spoils") == ["input tokens"]


def test_a_side_that_got_further_through_prompts_of_other_lengths_is_a_caveat() -> None:
    def grown(records: list[RequestRecord]) -> list[RequestRecord]:
        return [msgspec.structs.replace(r, input_tokens=100 + r.seq) for r in records]

    result = compare(side(level(grown(slot()))), side(level(grown(slot(1.5)))))
    assert "input tokens" in found(result, "limits")
    assert result.comparable


def test_forced_figures_are_marked() -> None:
    a, b = side(level(slot())), side(level(slot(2.0), verdict=["ERRORS"]))
    assert compare(a, b).levels == []
    assert not compare(a, b).forced
    forced = compare(a, b, force=True)
    assert (forced.comparable, forced.forced, len(forced.levels)) == (False, True, 1)
    assert not compare(a, a, force=True).forced


@pytest.mark.parametrize(
    ("starts", "order"),
    [
        (([0, 200, 400], [100, 300, 500]), "interleaved"),
        (([0, 300, 400], [100, 200, 500]), "interleaved"),  # turned round in the second round
        (([0, 100, 200], [300, 400, 500]), "one after the other"),
        (([0, 100, 200], [10, 110, 210]), "together"),
        (([0], [100]), "one after the other"),
    ],
)
def test_order_is_seen_in_the_windows(starts: tuple[list[float], list[float]], order: str) -> None:
    a, b = (side(*(level(slot(), number=n, start_s=start) for n, start in enumerate(own)), sweep="s") for own in starts)
    result = compare(a, b)
    assert result.order == order
    assert ("order" in found(result, "limits")) == (order != "interleaved")
    b.sweep = "other"
    assert compare(a, b).order == "separate"


# --- what must hold for any two runs


@st.composite
def runs(draw: st.DrawFn) -> list[RequestRecord]:
    """Thirty to sixty requests of drawn latencies over the window, a few of them failed."""
    count = draw(st.integers(30, 60))
    firsts = draw(st.lists(st.integers(1, 400), min_size=count, max_size=count))
    rests = draw(st.lists(st.integers(1, 400), min_size=count, max_size=count))
    failed = draw(st.sets(st.integers(0, count - 1), max_size=3))
    return [
        failure(300 * i, end=300 * i + 50, seq=i, prompt_id=f"p{i}")
        if i in failed
        else request(300 * i, firsts[i], rests[i], rests[i], seq=i, prompt_id=f"p{i}")
        for i in range(count)
    ]


quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def effects_of(a: list[RequestRecord], b: list[RequestRecord]) -> list[Effect]:
    result = compare(side(level(a)), side(level(b)), force=True, resamples=100)
    return result.levels[0].effects


@quick
@given(runs(), runs())
def test_exchanging_the_sides_inverts_ratios_and_their_intervals(
    a: list[RequestRecord], b: list[RequestRecord]
) -> None:
    opposite = {"faster": "slower", "slower": "faster", NONE: NONE, "n/a": "n/a"}
    pairs = list(zip(effects_of(a, b), effects_of(b, a), strict=True))
    assert any(one.ratio_ci95 is not None for one, _ in pairs)
    for one, other in pairs:
        assert other.word == opposite[one.word]
        assert (one.a, one.b) == (other.b, other.a)
        if one.ratio is None or one.ratio_ci95 is None:
            assert other.ratio is None
            continue
        assert other.ratio == pytest.approx(1 / one.ratio)
        assert other.ratio_ci95 == pytest.approx((1 / one.ratio_ci95[1], 1 / one.ratio_ci95[0]))
        assert (other.p, other.detectable) == pytest.approx((one.p, one.detectable))
        if one.difference is not None and one.difference_ci95 is not None:
            assert other.difference == pytest.approx(-one.difference)
            assert other.difference_ci95 == pytest.approx((-one.difference_ci95[1], -one.difference_ci95[0]))


@quick
@given(runs(), runs(), st.randoms(use_true_random=False))
def test_order_of_records_never_matters(a: list[RequestRecord], b: list[RequestRecord], rng: random.Random) -> None:
    first = effects_of(a, b)
    rng.shuffle(a)
    rng.shuffle(b)
    assert effects_of(a, b) == first


def values(records: list[RequestRecord]) -> dict[tuple[str, str], float | None]:
    return {(shown.metric, shown.statistic): shown.b for shown in effects_of(slot(), records)}


@quick
@given(runs(), st.integers(0, WINDOW - 1), st.integers(1, 500), st.booleans())
def test_one_failed_request_more_improves_no_metric(
    records: list[RequestRecord], sent: int, took: int, streamed: bool
) -> None:
    more = failure(sent, *([1] if streamed else []), end=sent + took, seq=999, prompt_id="more")
    before, after = values(records), values([*records, more])
    both = [key for key, value in after.items() if value is not None and before[key] is not None]
    assert {THROUGHPUT, "ttft_s"} <= {metric for metric, _ in both}
    for key in both:
        assert after[key] <= before[key] if key[0] == THROUGHPUT else after[key] >= before[key]


@quick
@given(runs(), st.data())
def test_failing_a_request_improves_neither_quantiles_nor_throughput(
    records: list[RequestRecord], data: st.DataObject
) -> None:
    chosen = data.draw(st.integers(0, len(records) - 1))
    failed = msgspec.structs.replace(records[chosen], error=failure(0, end=1).error)
    before, after = values(records), values([*records[:chosen], failed, *records[chosen + 1 :]])
    for key, value in after.items():
        old = before[key]
        if key[1] != "mean" and value is not None and old is not None:
            assert value >= old
    old, new = before[THROUGHPUT, "mean"], after[THROUGHPUT, "mean"]
    assert old is not None and new is not None and new <= old


# --- the same speed per user


def test_speeds_are_interpolated_between_levels_only() -> None:
    paces, tokens = np.log([[50.0], [100.0]]), np.log([[4000.0], [1000.0]])
    at = [math.exp(_interpolate(math.log(speed), paces, tokens)[0]) for speed in (50, math.sqrt(5000), 100)]
    assert at == pytest.approx([4000, 2000, 1000])
    assert np.isnan(_interpolate(math.log(49), paces, tokens)).all()
    assert np.isnan(_interpolate(math.log(101), paces, tokens)).all()


def test_speeds_outside_either_sides_range_are_left_out() -> None:
    # Tokens 10 to 29 ms apart, and 20 to 58: about 50 and 25 tokens/s per user.
    a = side(level(slot(1.0)), level(slot(2.0), concurrency=8))
    b = side(level(slot(1.0)), level(slot(1.5), concurrency=8))
    shown = compare(a, b, speeds=(10, 30, 40, 100)).speeds
    assert [speed.speed_tps for speed in shown] == [40]
    assert shown[0].ratio_ci95 is not None
    assert shown[0].ratio_ci95[0] < shown[0].ratio < shown[0].ratio_ci95[1]


# --- decisions


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("tpot_p50>+3%", ("tpot_s", "p50", True, 0.03)),
        ("ttft_p99 > 10 %", ("ttft_s", "p99", True, 0.10)),
        ("e2e_paired>+0.5%", ("e2e_s", "paired", True, 0.005)),
        ("output_throughput<-5%", (THROUGHPUT, "mean", False, -0.05)),
    ],
)
def test_conditions(text: str, condition: tuple[str, str, bool, float]) -> None:
    metric, statistic, more, bound = condition
    assert fail_on(text) == Condition(text=text, metric=metric, statistic=statistic, more=more, bound=bound)


@pytest.mark.parametrize(
    "text", ["", "tpot>3%", "tpot_p50>3", "tpot_p95>3%", "tpot_p50=3%", "output_throughput_p50<3%", "e2e_mean<-100%"]
)
def test_other_texts_are_no_conditions(text: str) -> None:
    with pytest.raises(UsageError, match="not a condition"):
        fail_on(text)


@pytest.mark.parametrize(
    ("text", "decision"),
    [
        ("tpot_p50>+3%", "fails"),  # all of 5 % to 15 % is above
        ("tpot_p50>+5.5%", "undecided"),
        ("tpot_p50>+10%", "undecided"),  # the point is above or below: it does not matter
        ("tpot_p50>+20%", "passes"),
        ("tpot_p50<+20%", "fails"),
        ("tpot_p50<+10%", "undecided"),
        ("tpot_p50<+3%", "passes"),
        ("ttft_p50>+3%", "undecided"),  # no interval
    ],
)
def test_conditions_are_decided_on_the_interval(text: str, decision: str) -> None:
    result = compare(side(level(slot())), side(level(slot())))
    half = math.log(1.05) / 1.959963984540054
    for shown in result.levels[0].effects:
        known = (shown.metric, shown.statistic) == ("tpot_s", "p50")
        shown.log_ratio, shown.standard_error, shown.degrees = (math.log(1.1025), half, 1e6) if known else (None,) * 3
    rulings = decide(fail_on(text), result)
    assert [ruling.decision for ruling in rulings] == [decision]
    assert overall_decision(rulings) == decision


def test_intervals_of_conditions_are_wider_for_more_levels() -> None:
    one = decide(fail_on("tpot_p50>+3%"), compare(side(level(slot())), side(level(slot()))))
    both = side(level(slot()), level(slot(), concurrency=8))
    two = decide(fail_on("tpot_p50>+3%"), compare(both, both))
    assert len(two) == 2
    assert one[0].interval is not None and two[0].interval is not None
    assert two[0].interval[0] < one[0].interval[0] < 0 < one[0].interval[1] < two[0].interval[1]


def test_what_is_not_comparable_is_undecided() -> None:
    result = compare(side(level(slot())), side(level(slot(), verdict=["ERRORS"])))
    rulings = decide(fail_on("tpot_p50>+3%"), result)
    assert overall_decision(rulings) == "undecided"
    assert "NOT COMPARABLE" in rulings[0].text
    assert overall_decision([]) == "undecided"


# --- run folders


def written(run: Path, records: list[RequestRecord], rounds: int = 1) -> Path:
    run.mkdir()
    load = Closed(concurrency=1)
    loads = [load] if rounds == 1 else [replace(load, round=number) for number in range(rounds)]
    write_manifest(run, manifest(levels=loads))
    lines = [msgspec.structs.replace(r, level=number) for number in range(rounds) for r in records]
    (run / "records.jsonl").write_bytes(b"".join(map(encode_line, lines)))
    marks = [LevelMark(level=n, window_start_ns=0, window_end_ns=WINDOW * MS) for n in range(rounds)]
    (run / "client.jsonl").write_bytes(b"".join(map(encode_line, marks)))
    return run


def test_a_run_folder_gives_what_its_records_give(tmp_path: Path) -> None:
    a = read_side(written(tmp_path / "a", slot()))
    b = read_side(written(tmp_path / "b", slot(1.5)), label="candidate")
    assert (a.label, b.label, a.sweep) == ("a", "candidate", None)
    made = compare(side(level(slot())), side(level(slot(1.5))))
    assert compare(a, b).levels == made.levels
    assert msgspec.json.decode(msgspec.json.encode(made), type=Comparison) == made


def test_rounds_of_a_run_folder(tmp_path: Path) -> None:
    run = read_side(written(tmp_path / "a", slot(), rounds=3))
    assert [shown.round for shown in run.levels] == [0, 1, 2]
    assert [shown.load.name for shown in run.levels] == ["1 in flight"] * 3
    assert compare(run, run).levels[0].rounds == 3


def test_a_run_without_a_level_is_refused(tmp_path: Path) -> None:
    run = written(tmp_path / "a", [])
    (run / "client.jsonl").unlink()
    with pytest.raises(UsageError, match="nothing was measured"):
        read_side(run)


def test_the_published_runs_give_their_own_figures() -> None:
    folder = REPORTS / f"{VLLM}-levels"
    run, summary = read_side(folder), summarize_run(folder)[1]
    result = compare(run, run)
    for shown, known in zip(result.levels, summary.levels, strict=True):
        for entry in shown.effects:
            if entry.a is not None:
                own = getattr(known, entry.metric)
                expected = own if entry.metric == THROUGHPUT else getattr(own, entry.statistic)
                assert entry.a == pytest.approx(expected), (shown.name, entry.metric, entry.statistic)
    assert all(entry.word in (NONE, "n/a") for shown in result.levels for entry in shown.effects)


def test_two_launches_of_one_engine_are_not_called_different() -> None:
    a, b = (read_side(REPORTS / f"{VLLM}-twice" / name) for name in ("vllm", "vllm-2"))
    result = compare(a, b)
    assert result.comparable
    assert (result.order, result.launch_sd) == ("one after the other", LAUNCH_SD)
    assert found(result, "limits") == ["order"]
    assert found(result, "compared") == []
    assert {entry.word for entry in result.levels[0].effects} <= {NONE, "n/a"}
    assert overall_decision(decide(fail_on("tpot_p50>+3%"), result)) == "undecided"
    # The blocks of one launch alone would call them different: that is why launches are allowed for.
    assert "slower" in {entry.word for entry in compare(a, b, launch_sd={}).levels[0].effects}


def test_prefix_caching_on_one_side_is_not_comparable() -> None:
    a, b = (read_side(REPORTS / f"{VLLM}-prefix-{name}") for name in ("off", "on"))
    result = compare(a, b)
    assert [(f.level, f.a, f.b) for f in result.findings if f.name == "cached tokens"] == [
        ("8 in flight", "not known", "92.7%"),
        ("64 in flight", "not known", "93.7%"),
    ]
    assert found(result, "compared") == ["engine arguments"]
    assert result.levels == []
    forced = compare(a, b, force=True)
    assert [effect(forced, "throughput", position).word for position in (0, 1, None)] == ["faster"] * 3
