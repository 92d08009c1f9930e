"""Levels that go on until they are precise: when they are looked at, and what is found."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import MS, request

from loadgen.analysis.figures import Reached
from loadgen.analysis.measure import gather_steady, look, precision_of, summarize, summarize_level
from loadgen.analysis.precision import LOOKS_MET, Looks, half_width, in_words, is_met
from loadgen.loads import Closed
from loadgen.records import LevelMark, RequestRecord

GOOD: Reached = {"ttft_mean_s": 0.04, "tpot_mean_s": 0.001, "output_throughput_tps": 0.05}
BAD: Reached = {**GOOD, "ttft_mean_s": 0.06}
CLOSED = Closed(concurrency=2)


def test_a_level_ends_at_the_second_good_look_in_a_row() -> None:
    looks = Looks(0.05, 10, 600)
    assert looks.next_s == 10
    said = [looks.enough(looks.next_s, found) for found in (GOOD, BAD, GOOD, GOOD)]
    assert said == [False, False, False, True]
    assert looks.count == 4 and looks.next_s == pytest.approx(10 * 1.5**4)


def test_what_is_not_believed_starts_anew() -> None:
    looks = Looks(0.05, 10, 600)
    assert [looks.enough(looks.next_s, found) for found in (GOOD, {}, GOOD, GOOD)] == [False, False, False, True]


@given(st.floats(0.1, 100), st.floats(1, 50), st.lists(st.booleans(), max_size=60))
def test_looks_grow_and_never_pass_the_budget(least: float, factor: float, found: list[bool]) -> None:
    looks = Looks(0.05, least, least * factor)
    times = []
    for good in found:
        times.append(looks.next_s)
        before = looks.next_s
        if looks.enough(looks.next_s, GOOD if good else BAD) or looks.next_s >= least * factor:
            break
        assert looks.next_s == pytest.approx(before * 1.5)
    assert all(time <= least * factor for time in times)
    assert len(times) <= 12, "so many looks at most: 1.5^10 is above 50"


def test_a_late_look_puts_the_next_one_off() -> None:
    looks = Looks(0.05, 10, 600)
    looks.enough(40, BAD)
    assert looks.next_s == 60


def test_what_is_not_known_is_not_precise() -> None:
    assert is_met(0.05, GOOD) and not is_met(0.05, BAD)
    assert not is_met(0.05, {}) and not is_met(0.05, {"ttft_mean_s": None})
    assert half_width(2.0, (1.9, 2.1)) == pytest.approx(0.05)
    assert half_width(0.0, (0.0, 0.1)) is half_width(None, None) is half_width(2.0, None) is None
    assert in_words({"ttft_mean_s": 0.041, "tpot_mean_s": None}) == "mean TTFT 4.1%, mean TPOT not known"


def level(requests: int, slots: int = 2, spread: int = 3) -> list[RequestRecord]:
    """A closed loop of requests of about 20 ms to the first token, and 20 ms more."""
    rng = random.Random(1)
    clock = [0] * slots
    records = []
    for seq in range(requests):
        slot = seq % slots
        ttft = rng.randint(20 - spread, 20 + spread)
        records.append(request(clock[slot], ttft, *[2] * 10, seq=seq))
        clock[slot] += ttft + 20
    return records


def test_a_look_finds_what_the_summary_of_that_window_has() -> None:
    end = 500 * 40 * MS // 2
    records = [record for record in level(600) if record.end_ns <= end]
    longest = max(record.end_ns - (record.sent_ns or 0) for record in records)
    found, believed = look(0, CLOSED, lambda: records, 0, end)
    assert believed
    inside = [record for record in records if (record.sent_ns or 0) <= end - longest]
    assert 400 < len(inside) < len(records) < 600
    mark = LevelMark(level=0, window_start_ns=0, window_end_ns=end - longest)
    summary = summarize_level(CLOSED, inside, [], mark)
    for name, distribution in (("ttft_mean_s", summary.ttft_s), ("tpot_mean_s", summary.tpot_s)):
        width = distribution.half_width("mean")
        assert width is not None and distribution.mean is not None
        assert found[name] == pytest.approx(width / distribution.mean)
    low, high = summary.ci95["output_throughput_tps"]
    assert found["output_throughput_tps"] == pytest.approx((high - low) / 2 / (summary.output_throughput_tps or 0))


@pytest.mark.parametrize(("requests", "slots", "believed"), [(150, 2, False), (230, 2, True), (230, 32, False)])
def test_few_requests_or_turns_are_not_believed(requests: int, slots: int, believed: bool) -> None:
    records = level(requests, slots)
    load = Closed(concurrency=slots)
    assert look(0, load, lambda: records, 0, max(r.end_ns for r in records))[1] is believed


def test_a_drift_is_not_believed() -> None:
    at, records = 0, []
    for seq in range(400):
        ttft = 20 + seq // 10
        records.append(request(at, ttft, *[2] * 10, seq=seq))
        at += ttft + 20
    assert not look(0, Closed(concurrency=1), lambda: records, 0, at * MS)[1]


def test_nothing_yet_is_nothing_known() -> None:
    assert look(0, CLOSED, list, 0, 5 * MS) == ({}, False)


@pytest.mark.parametrize(("asked", "met"), [(0.2, True), (0.0001, False)])
def test_the_summary_says_what_was_reached(asked: float, met: bool) -> None:
    records = level(600)
    end = max(record.end_ns for record in records)
    mark = LevelMark(level=0, window_start_ns=0, window_end_ns=end, ended="budget", looks=5)
    gathered, steady = gather_steady(CLOSED, lambda: records, mark)
    precision = precision_of(asked, CLOSED, gathered, mark)
    summary = summarize(CLOSED, gathered, [], None, [], [], steady, precision=precision)
    assert summary.precision == precision
    assert precision.met is met and precision.ended == "budget" and precision.looks == 5
    assert set(precision.reached) == {"ttft_mean_s", "tpot_mean_s", "output_throughput_tps"}
    killed = precision_of(asked, CLOSED, gathered, None)
    assert killed.ended == "interrupted"
    assert LOOKS_MET == 2
