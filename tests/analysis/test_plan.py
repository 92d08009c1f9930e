"""Capacity plans: where the limit lies, what follows from it, and when nothing is said."""

from __future__ import annotations

import json
import math
import random
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from hypothesis import assume, given
from hypothesis import strategies as st
from made import manifest_from
from typer.testing import CliRunner, Result

from loadgen.analysis.bursts import add_bursts, cv_of, share_words
from loadgen.analysis.capacity import Point, bracket, chance_below, chances_broken, isotonic, points_of
from loadgen.analysis.criteria import requests_needed
from loadgen.analysis.measure import Measured, summarize_level
from loadgen.analysis.outcome import outcome
from loadgen.analysis.plan import Demand, Plan, make_plan, replicas_for
from loadgen.analysis.slo import parse_slos
from loadgen.analysis.stats import Distribution
from loadgen.cli.main import app
from loadgen.errors import UsageError
from loadgen.loads import Closed, Open
from loadgen.records import LevelMark, Manifest, RequestError, RequestRecord
from loadgen.report.plan import markdown, render

REPORTS = Path(__file__).parents[2] / "reports"
LEVELS = str(REPORTS / "vllm-0.25.1-h200-qwen1.5-4b-levels")
SLOS = parse_slos("ttft=500ms")
MS = 1_000_000


def measured(
    rate: float, slow: float, requests: int = 2000, failed: float = 0.0, seed: int = 1, **load: Any
) -> Measured:
    """An open loop's level whose requests miss 500 ms of TTFT, or fail, by chance."""
    rng = random.Random(seed)
    gap_ns = round(1e9 / rate)
    records = []
    for seq in range(requests):
        at, draw = seq * gap_ns, rng.random()
        ttft = 900 * MS if draw < slow else rng.randint(80, 120) * MS
        lost = slow <= draw < slow + failed
        records.append(
            RequestRecord(
                level=0, seq=seq, prompt_id="p", worker=0, phase="measure", input_tokens=100, requested_tokens=20,
                output_tokens=None if lost else 20, token_source=None if lost else "usage_continuous",
                scheduled_ns=at, sent_ns=at, first_token_ns=None if lost else at + ttft,
                last_token_ns=None if lost else at + ttft + 190 * MS, end_ns=at + ttft + 190 * MS,
                event_ns=[] if lost else [ttft, 190 * MS], event_tokens=[] if lost else [1, 19],
                error=RequestError(kind="timeout", message="") if lost else None,
            )
        )  # fmt: skip
    mark = LevelMark(level=0, window_start_ns=0, window_end_ns=requests * gap_ns)
    level = summarize_level(Open(**{"arrival": "poisson", "rate_rps": rate, **load}), records, [], mark)
    return Measured(level=level, outcomes=[outcome(record) for record in records])


def manifest(**fields: Any) -> Manifest:
    made: dict[str, Any] = {
        "command": [], "started_utc": "", "simulated": False, "host": {}, "engine": {"kind": "vllm"}, "dataset": {},
        "seed": 0, "load": {}, "levels": [], "client": {},
    }  # fmt: skip
    return manifest_from(**{**made, **fields})


def plan(levels: list[Measured], **demand: Any) -> Plan:
    return make_plan("run", manifest(), levels, Demand(slos=SLOS, **demand))


def test_the_capacity_lies_between_the_last_load_that_holds_and_the_first_that_breaks() -> None:
    found = plan([measured(20, 0.5), measured(5, 0), measured(10, 0.001), measured(12, 0.01)])
    assert [point.word for point in found.points] == ["holds", "holds", "undecided", "breaks"]
    assert found.capacity_rps == (10, 20)
    assert found.binds is not None and found.binds.startswith("ttft=500ms: missed by 5")
    assert found.output_tps == (200, 400) and found.total_tps == (1200, 2400)
    assert found.in_flight == pytest.approx(10 * 0.29, rel=0.02)  # Little: 100 ms to the first token, 190 ms more
    fits = [point.fit for point in found.points]
    assert fits == sorted(fits, key=lambda fit: -(fit or 0))


def test_replicas_and_costs_are_those_of_both_ends() -> None:
    demand = {"peak_rps": 40, "duty": 0.5, "headroom": 0.2, "spares": 1, "growth": [1.0]}
    found = plan([measured(10, 0), measured(20, 0.5)], gpu_hour=3.6, gpus=2, **demand)
    now, grown = found.fleets
    assert (now.replicas, now.replicas_at_best, now.gpus) == (5 + 1, 3 + 1, 12)
    assert (grown.peak_rps, grown.replicas) == (80, 10 + 1)
    assert now.cost_per_hour == pytest.approx((12 * 3.6, 8 * 3.6))
    assert now.cost_per_month == pytest.approx((12 * 3.6 * 730.5, 8 * 3.6 * 730.5))
    # 20 requests/s of 20 tokens on average: 1.44 million tokens an hour.
    assert now.per_million_output == pytest.approx((12 * 3.6 / 1.44, 8 * 3.6 / 1.44))
    assert now.per_million_total == pytest.approx((12 * 3.6 / 1.44 / 6, 8 * 3.6 / 1.44 / 6))
    assert now.per_thousand_requests == pytest.approx((12 * 3.6 / 72, 8 * 3.6 / 72))
    # A replica at its limit: 2 GPUs, 200 tokens/s.
    assert found.per_million_output == pytest.approx((7.2 / 0.72, 7.2 / 1.44))
    assert found.scale_at_rps == pytest.approx(8)


def test_a_run_with_both_kinds_of_load_is_planned_by_the_open_ones_alone() -> None:
    levels = [measured(10, 0), measured(20, 0.5)]
    closed = measured(15, 0)
    closed.level.load = Closed(concurrency=8)
    found = plan([closed, *levels])
    assert found.capacity_rps == (10, 20) and len(found.points) == 2
    assert any(limit.startswith("1 closed-loop levels of this run are left out") for limit in found.limits)
    refused = plan([closed, levels[0]]).refused or ""
    assert "a single load" in refused and "closed-loop levels of this run are left out" in refused


def test_what_is_unknown_of_the_tokens_is_not_said_to_be_none() -> None:
    levels = [measured(10, 0), measured(20, 0.5)]
    for one in levels:
        one.level.output_tokens = Distribution(count=0)
    found = plan(levels, peak_rps=40, gpu_hour=1)
    assert found.capacity_rps == (10, 20)
    assert found.output_tps is found.total_tps is found.per_million_output is found.fleets[0].per_million_total is None
    assert found.per_thousand_requests is not None
    assert "output tokens/s: ?" in render([found])


def test_a_limit_that_was_not_found_is_an_open_interval() -> None:
    found = plan([measured(5, 0), measured(10, 0)], peak_rps=40, gpu_hour=1)
    assert found.capacity_rps == (10, None)
    assert found.fleets[0].replicas == 5 and found.fleets[0].replicas_at_best is None
    assert found.per_million_output is not None and found.per_million_output[1] is None
    assert "the limit was not found" in (found.binds or "")
    assert any("Sweep higher loads" in limit for limit in found.limits)
    text = render([found])
    assert "10 or more" in text and "5 at most" in text


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ([], "nothing was measured"),
        ([measured(10, 0)], "a single load"),
        ([measured(10, 0), measured(10, 0, seed=2)], "a single load"),
        ([measured(10, 0.5), measured(20, 0.5)], "already the lowest load breaks"),
        ([measured(10, 0, 200), measured(20, 0, 200)], "no load is shown to keep the SLO"),
        ([measured(10, 0, 5), measured(20, 0, 5)], "no level counts"),
    ],
)
def test_what_cannot_be_planned_is_refused(levels: list[Measured], words: str) -> None:
    found = plan(levels, peak_rps=10, gpu_hour=1)
    assert found.refused is not None and words in found.refused
    assert found.capacity_rps is None and not found.fleets and not found.speeds
    assert "NO PLAN" in render([found]) and "NO PLAN" in markdown([found])


def test_an_undecided_load_says_how_many_requests_would_do() -> None:
    point = points_of([measured(10, 0, 200)], SLOS, 0.99)[0]
    assert point.word == "undecided"
    said = re.fullmatch(r"200 requests leave it open; about ([\d,]+) would do if all keep to it", point.why)
    assert said is not None
    needed = int(said[1].replace(",", ""))
    assert 381 <= needed <= 800
    assert points_of([measured(10, 0, needed + 200)], SLOS, 0.99)[0].word == "holds"
    failing = points_of([measured(12, 0.01)], SLOS, 0.99)[0]
    assert failing.why == "2,000 requests leave it open; measure for longer, or at loads further apart"


def test_requests_needed_is_where_wilsons_interval_reaches_the_target() -> None:
    assert requests_needed(0.99, None) == 381
    assert requests_needed(0.9, None) == 35
    assert requests_needed(0.9, 64) == 384


def test_a_level_that_is_not_valid_shows_no_capacity_but_may_show_the_limit() -> None:
    failing = measured(20, 0, failed=0.05)
    assert failing.level.verdict.status == "ERRORS"
    word = points_of([failing], SLOS, 0.99)[0].word
    assert word == "breaks"
    assert points_of([failing], SLOS, 0.9)[0].word == "not counted"
    found = plan([measured(10, 0), failing])
    assert found.capacity_rps == (10, 20) and (found.binds or "").startswith("errors: missed by")


def test_a_lower_load_that_breaks_is_believed() -> None:
    found = plan([measured(5, 0), measured(10, 0.5), measured(20, 0)])
    assert found.capacity_rps == (5, 10)
    assert any("Measure again" in limit for limit in found.limits)


def test_rounds_of_a_load_have_to_agree() -> None:
    rounds = [measured(10, 0, round=0), measured(10, 0.5, round=1)]
    assert plan([measured(5, 0), *rounds, measured(20, 0.5)]).capacity_rps == (5, 20)


def test_percentiles_have_their_own_target() -> None:
    levels = [measured(10, 0.05), measured(20, 0.5)]
    slos = parse_slos("ttft:p90=500ms")
    assert [point.word for point in points_of(levels, slos, 0.99)] == ["holds", "breaks"]
    both = parse_slos("ttft:p90=500ms,e2e=500ms")
    found = points_of(levels, both, 0.99)
    assert [point.word for point in found] == ["breaks", "breaks"]
    assert found[0].criteria[found[0].tight].name == "requests within the SLO"


@pytest.mark.parametrize(
    ("peak", "capacity", "headroom", "spares", "replicas"),
    [(40, 10, 0, 0, 4), (40.1, 10, 0, 0, 5), (40, 10, 0.2, 1, 6), (0.1, 10, 0, 0, 1), (0.3, 0.1, 0, 0, 3)],
)
def test_replicas(peak: float, capacity: float, headroom: float, spares: int, replicas: int) -> None:
    assert replicas_for(peak, capacity, headroom, spares) == replicas


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 1000)), max_size=20))
def test_more_load_never_raises_the_fit(shares: list[tuple[float, int]]) -> None:
    fit = isotonic([share for share, _ in shares], [weight for _, weight in shares])
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(fit))
    weights = [weight for _, weight in shares]
    mean = math.fsum(s * w for s, w in shares)
    assert math.fsum(f * w for f, w in zip(fit, weights, strict=True)) == pytest.approx(mean, abs=1e-6)


loads = st.lists(st.tuples(st.floats(0, 1), st.floats(0.5, 1e5)), max_size=12)


@given(loads, st.floats(0.01, 0.999))
def test_more_load_never_lowers_the_chance_of_breaking_the_slo(found: list[tuple[float, float]], target: float) -> None:
    chances = chances_broken([share for share, _ in found], [size for _, size in found], target)
    assert len(chances) == len(found) and all(0 <= chance <= 1 for chance in chances)
    assert all(later >= earlier for earlier, later in pairwise(chances))


def test_the_chance_is_that_of_the_interval() -> None:
    assert chance_below(381, 1.0, 0.99) == pytest.approx(0.025, abs=2e-4)  # as many as requests_needed says
    assert chance_below(100, 0.9, 0.9) == pytest.approx(0.5)
    assert chance_below(100, 0.5, 0.9) > 0.999


def test_a_small_sample_is_judged_by_its_neighbours() -> None:
    # All kept to it at both loads: that the higher holds says so of the lower, and not the other way round.
    few, many = chance_below(50, 1.0, 0.99), chance_below(2000, 1.0, 0.99)
    assert chances_broken([1, 1], [50, 2000], 0.99) == [many, many]
    assert chances_broken([1, 1], [2000, 50], 0.99) == [many, few]
    # That the lower load surely breaks says so of the higher.
    sure, unsure = chance_below(2000, 0.9, 0.99), chance_below(10, 0.9, 0.99)
    assert unsure < 0.999 < sure and chances_broken([0.9, 0.89], [2000, 10], 0.99) == [sure, sure]
    # Shares that rise are pooled.
    assert chances_broken([0.98, 1.0], [500, 500], 0.99) == [chance_below(1000, 0.99, 0.99)] * 2


def test_each_load_has_a_chance_that_agrees_with_its_word() -> None:
    found = plan([measured(20, 0.5), measured(5, 0), measured(10, 0.001), measured(12, 0.01), measured(11, 0, 5)])
    chances = {point.rate_rps: point.chance_broken for point in found.points}
    words = {point.rate_rps: point.word for point in found.points}
    assert words == {5: "holds", 10: "holds", 12: "undecided", 20: "breaks", 11: "not counted"}
    assert chances[11] is None
    assert (chances[5] or 0) <= (chances[10] or 0) <= 0.025 < (chances[12] or 0) < 0.975 < (chances[20] or 0)
    # Only between loads that were measured, and between their chances.
    assert [band.rates_rps for band in found.headroom] == [(5, 10), (10, 12), (12, 20)]
    assert [band.chance_broken for band in found.headroom] == [
        (chances[5], chances[10]),
        (chances[10], chances[12]),
        (chances[12], chances[20]),
    ]
    assert ">99.9%" in render([found]) and "<0.1%" in render([found])


def test_the_chance_of_several_criteria_is_the_likeliest() -> None:
    slos = parse_slos("ttft:p90=500ms,ttft:p99=500ms")
    (point,) = points_of([measured(10, 0.03)], slos, 0.99)
    one, other = (points_of([measured(10, 0.03)], [slo], 0.99)[0].chance_broken for slo in slos)
    assert one is not None and other is not None and point.chance_broken == max(one, other) == other > 0.9


def test_rounds_of_a_load_share_a_chance() -> None:
    found = points_of([measured(10, 0, round=0), measured(10, 0.5, round=1)], SLOS, 0.99)
    assert found[0].chance_broken == found[1].chance_broken and (found[0].chance_broken or 0) > 0.99


# Arrivals


def arriving(kind: str, held: float, broken: float, **fields: Any) -> Plan:
    levels = [measured(held, 0, arrival=kind), measured(broken, 0.5, arrival=kind)]
    return make_plan(f"run-{kind}", manifest(**fields), levels, Demand(slos=SLOS))


def test_bursts_are_compared_with_poisson_where_nothing_else_differs() -> None:
    poisson, two, four = arriving("poisson", 10, 20), arriving("gamma:2", 5, 8), arriving("gamma:4", 2, 4)
    add_bursts([four, poisson, two])
    assert [(burst.cv, burst.capacity_rps, burst.ratio) for burst in poisson.bursts] == [
        (2, (5, 8), (0.25, 0.8)),
        (4, (2, 4), (0.1, 0.4)),
    ]
    assert not two.bursts and not four.bursts
    assert "Bursts of CV 2 take the capacity to 25 to 80 % of Poisson's (run-gamma:2)." in poisson.limits
    assert not any("gamma:2 and gamma:4 too" in limit for limit in poisson.limits)
    text = render([poisson, two, four])
    assert "They differ only in their arrivals" in text and "25 to 80 %" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "| gamma:4 | 4 | 2 .. 4 | 10 to 40 % |" in markdown([poisson, two, four])


def test_runs_that_differ_in_more_are_not_taken_for_bursts() -> None:
    poisson = arriving("poisson", 10, 20)
    for other in (
        arriving("gamma:2", 5, 8, engine={"kind": "trtllm"}),
        arriving("gamma:2", 5, 8, dataset={"kind": "file", "path": "x", "sha256": "ab", "prompts": 1}),
        make_plan("r", manifest(), [measured(5, 0, arrival="gamma:2")], Demand(slos=parse_slos("tpot=1s"))),
        arriving("poisson", 5, 8),
        arriving("replay", 5, 8),
    ):
        add_bursts([poisson, other])
        assert not poisson.bursts and any("gamma:2 and gamma:4 too" in limit for limit in poisson.limits)


def test_bursts_without_a_plan_are_said_to_be_unknown() -> None:
    poisson = arriving("poisson", 10, 20)
    add_bursts([poisson, make_plan("one", manifest(), [measured(5, 0, arrival="gamma:2")], Demand(slos=SLOS))])
    assert poisson.bursts[0].ratio is None and "cannot be told (one has no plan" in poisson.limits[-1]


@pytest.mark.parametrize(
    ("ratio", "words"),
    [((0.38, 0.45), "38 to 45 %"), ((0.38, None), "38 % or more"), ((None, 0.45), "45 % at most"), ((None, None), "?")],
)
def test_shares_in_words(ratio: tuple[float | None, float | None], words: str) -> None:
    assert share_words(ratio) == words


def test_cv_of_arrivals() -> None:
    known = {text: cv_of(text) for text in ("poisson", "gamma:2.5", "constant", "replay", None, "unknown")}
    assert known == {"poisson": 1, "gamma:2.5": 2.5, "constant": 0, "replay": None, None: None, "unknown": None}


@st.composite
def points(draw: st.DrawFn) -> list[Point]:
    rates = draw(st.lists(st.integers(1, 50), min_size=1, max_size=8))
    words = st.sampled_from(["holds", "breaks", "undecided", "not counted"])
    return [
        Point(index=i, load=f"{rate}", rate_rps=rate, rate_ci95_rps=(rate, rate), criteria=[], word=draw(words))
        for i, rate in enumerate(rates)
    ]


@given(points(), st.randoms())
def test_the_order_of_levels_never_matters(found: list[Point], rng: random.Random) -> None:
    shuffled = list(found)
    rng.shuffle(shuffled)
    assert bracket(found).capacity_rps == bracket(shuffled).capacity_rps


def ends(found: list[Point]) -> tuple[float, float]:
    """Both ends of the capacity; zeros where there is none, which is the least."""
    low, high = bracket(found).capacity_rps or (0.0, 0.0)
    return low, math.inf if high is None else high


@given(points(), st.data())
def test_a_level_that_breaks_never_raises_the_capacity(found: list[Point], data: st.DataObject) -> None:
    counted = [i for i, point in enumerate(found) if point.word != "not counted"]
    assume(counted)
    worse = list(found)
    which = data.draw(st.sampled_from(counted))
    worse[which] = msgspec.structs.replace(worse[which], word="breaks")
    (low, high), (low_before, high_before) = ends(worse), ends(found)
    assert low <= low_before and high <= high_before


# The command, on committed runs.


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["plan", *words], standalone_mode=False)


def test_a_real_sweep_is_planned() -> None:
    words = [LEVELS, "--slo", "ttft=500ms,tpot=10ms", "--peak-rate", "200", "--gpu-hour", "2.50"]
    done = run(*words)
    assert done.return_value == 0, done.output
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "add a replica at" in done.stdout and "closed loop" in done.stdout and "kWh" in done.stdout
    (found,) = json.loads(run(*words, "--format", "json").stdout)
    low, high = found["capacity_rps"]
    by_load = {point["load"]: point for point in found["points"]}
    assert low == by_load["64 in flight"]["rate_ci95_rps"][0] and low < high
    assert found["gpus_per_replica"] == 1 and found["gpu"] == "NVIDIA H200"
    assert "| 64 in flight | 59.3 |" in run(*words, "--format", "markdown").stdout


def test_runs_are_planned_side_by_side() -> None:
    done = run(LEVELS, str(REPORTS / "vllm-0.25.1-h200-qwen1.5-4b-twice"), "--slo", "tpot=10ms")
    assert done.return_value == 1  # the second has one load only
    assert "Side by side" in done.stdout and done.stdout.count("NO PLAN") == 2


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "the sweep had no objectives"),
        (["--slo", "tpot=50"], "no unit"),
        (["--slo", "tpot=50ms", "--attainment", "100%"], "no sample can prove 100%"),
        (["--slo", "tpot=50ms", "--attainment", "0%"], "above 0%"),
        (["--slo", "tpot=50ms", "--headroom", "100%"], "below 100%"),
        (["--slo", "tpot=50ms", "--headroom", "a fifth"], "write it as 20%"),
        (["--slo", "tpot=50ms", "--growth", "lots"], "write it as 20%"),
    ],
)
def test_bad_input(words: list[str], text: str) -> None:
    done = run(LEVELS, *words)
    assert isinstance(done.exception, UsageError | typer.BadParameter) and text in str(done.exception)
