"""Rounds: their order, and what they say together."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest
from made import MS, request
from report.test_reports import manifest

from loadgen.analysis.figures import LevelSummary
from loadgen.analysis.intervals import mean_error, mean_interval, quantile_error, rate_error, rate_interval
from loadgen.analysis.measure import complete, summarize_level
from loadgen.analysis.rounds import over_rounds, spread
from loadgen.analysis.summary import Summary
from loadgen.loads import Closed, without_round
from loadgen.records import ClientSample, LevelMark
from loadgen.report.terminal import render
from loadgen.sweeps.spec import SweepSpec
from loadgen.workloads.prompts import SourceSpec, TokenRange

WITHIN, BETWEEN = 0.2, 0.5


def spec(seed: int, rounds: int, levels: list[int]) -> SweepSpec:
    tokens = TokenRange(8, 8)
    return SweepSpec(
        command=[], levels=levels, requests=10, rounds=rounds, output=Path("x"),
        source=SourceSpec(seed=seed, input_tokens=tokens, output_tokens=tokens, vocab_size=1000),
    )  # fmt: skip


def test_every_round_has_all_levels_in_an_order_of_its_own() -> None:
    levels = [1, 2, 4, 8, 16, 32]
    specs = spec(3, 5, levels).level_specs()
    assert [one.index for one in specs] == list(range(30)), "the index is the order of running"
    orders = [[one.concurrency for one in specs[i : i + 6]] for i in range(0, 30, 6)]
    assert all(sorted(order) == levels for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert [one.round for one in specs] == [i // 6 for i in range(30)]
    assert specs == spec(3, 5, levels).level_specs(), "the same for every engine"
    assert specs != spec(4, 5, levels).level_specs()


def test_a_single_round_goes_in_the_order_that_was_given() -> None:
    assert [one.concurrency for one in spec(3, 1, [8, 1, 4]).level_specs()] == [8, 1, 4]


def test_spread_by_hand() -> None:
    found = spread([10.0, 12.0, 14.0], [1.0, 1.0, 2.0])
    assert found.mean == 12
    assert found.within == pytest.approx(math.sqrt(2))
    assert found.between == pytest.approx(math.sqrt(4 - 2))
    half = 4.302653 * 2 / math.sqrt(3)  # Student's t of two degrees of freedom
    assert found.ci95 == pytest.approx((12 - half, 12 + half))
    assert spread([10.0, 10.1], [5.0, 5.0]).between == 0, "no more than the rounds' own errors explain"
    unknown = spread([10.0, 12.0], [1.0, None])
    assert unknown.within is unknown.between is None


def test_the_parts_are_those_that_were_planted() -> None:
    rng = np.random.default_rng(1)
    found = []
    held = 0
    for _ in range(400):
        values = 5 + BETWEEN * rng.standard_normal((6, 1)) + WITHIN * math.sqrt(50) * rng.standard_normal((6, 50))
        errors = [error[0] if (error := mean_error(row)) else None for row in values]
        found.append(spread(values.mean(axis=1).tolist(), errors))
        held += found[-1].ci95[0] <= 5 <= found[-1].ci95[1]
    assert np.mean([one.within for one in found]) == pytest.approx(WITHIN, rel=0.1)
    assert math.sqrt(np.mean([(one.between or 0) ** 2 for one in found])) == pytest.approx(BETWEEN, rel=0.1)
    assert 0.92 <= held / 400 <= 0.98


def test_errors_are_those_that_the_intervals_rest_on() -> None:
    values = np.random.default_rng(2).standard_normal(400)
    error, freedom = mean_error(values) or (0.0, 0)
    low, high = mean_interval(values) or (0.0, 0.0)
    assert freedom > 10 and (high - low) / error == pytest.approx(4, rel=0.1)
    bins = np.random.default_rng(3).poisson(40, 256).astype(float)
    low, high = rate_interval(bins, 10.0) or (0.0, 0.0)
    assert (high - low) / (rate_error(bins, 10.0) or 0) == pytest.approx(4, rel=0.1)
    assert rate_error(np.zeros(256), 10.0) is None
    assert quantile_error((1.0, 1.0 + 2 * 1.959964)) == pytest.approx(1)


def measured(round_index: int, factor: float, *, concurrency: int = 1, requests: int = 60) -> LevelSummary:
    """A level of one slot whose TTFT is about 20 ms times a factor."""
    rng = random.Random(round_index)
    at, records = 0, []
    for seq in range(requests):
        ttft = round(factor * rng.randint(18, 22))
        records.append(request(at, ttft, *[2] * 10, seq=seq))
        at += ttft + 20
    samples = [
        ClientSample(
            t_ns=i * at * MS // 10 + 1, level=0, worker=0, phase="measure", in_flight=1, issued=0, completed=0,
            failed=0, output_tokens=0, ttft_sum_ns=0, ttft_count=0, cpu_ns=i * MS, max_rss_bytes=0, lateness_ns=[1000],
        )
        for i in range(11)
    ]  # fmt: skip
    load = Closed(concurrency=concurrency, round=round_index)
    return summarize_level(load, records, samples, LevelMark(level=0, window_start_ns=0, window_end_ns=at * MS))


def test_rounds_of_a_load_are_taken_together_whatever_their_order() -> None:
    levels = [measured(0, 1.0), measured(2, 1.2), measured(1, 1.1)]
    (one,) = over_rounds(levels)
    assert one.load == Closed(concurrency=1) and one.rounds == 3 and not one.left_out
    means = [level.ttft_s.mean or 0 for level in levels]
    assert one.metrics["ttft_mean_s"].mean == pytest.approx(sum(means) / 3)
    assert one.metrics["ttft_p50_s"].within is not None
    assert "ttft_p99_s" not in one.metrics, "60 requests give no p99"
    assert (one.metrics["ttft_mean_s"].between or 0) > (one.metrics["ttft_mean_s"].within or 0)
    (again,) = over_rounds(levels[::-1])
    assert again.metrics["ttft_mean_s"].mean == pytest.approx(one.metrics["ttft_mean_s"].mean)


def test_a_round_that_is_not_valid_is_left_out_and_said() -> None:
    levels = [measured(0, 1.0), measured(1, 1.1), measured(2, 1.2, requests=5)]
    assert levels[2].verdict.status == "TOO_FEW"
    (one,) = over_rounds(levels)
    assert one.rounds == 2 and one.left_out == ["round 3: TOO_FEW"]
    means = [level.ttft_s.mean or 0 for level in levels[:2]]
    assert one.metrics["ttft_mean_s"].mean == pytest.approx(sum(means) / 2)
    (few,) = over_rounds(levels[1:])
    assert few.rounds == 1 and not few.metrics


def test_a_sweep_of_one_round_has_none() -> None:
    level = measured(0, 1.0)
    level.load = without_round(level.load)
    assert over_rounds([level]) == []


def test_the_table_fits_80_columns_and_says_what_was_left_out() -> None:
    summary = Summary(simulated=True, levels=[measured(0, 1.0), measured(1, 1.1), measured(2, 1.2, requests=5)])
    complete(summary)
    text = render(manifest(), summary)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "Over 3 rounds" in text and "TTFT mean, ms" in text
    assert "left out, since not valid: round 3: TOO_FEW" in text.replace("\n  ", " ")
