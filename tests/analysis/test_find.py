"""Searches for a server's limit, against made-up servers: no clock, no socket."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import MS, request
from report.test_reports import manifest

from loadgen.analysis.figures import LevelSummary, Reason, Verdict
from loadgen.analysis.find import Find, find_of, follow, found_by
from loadgen.analysis.measure import gather_steady, summarize
from loadgen.analysis.probes import Ask, Probe, probe_of
from loadgen.analysis.search import (
    CONFIRMING,
    MAX_CANDIDATES,
    MAX_LEVELS,
    MAX_SEARCH,
    MAX_UPWARDS,
    MOST_TRIES,
    NEAR,
    ratio,
)
from loadgen.analysis.slo import parse_slos
from loadgen.analysis.summary import Summary
from loadgen.loads import Closed, Load, Open
from loadgen.records import Goal, LevelMark
from loadgen.report import html, terminal
from loadgen.report.entry import Entry
from loadgen.report.find import rows, sentences
from loadgen.report.page_data import read_page

Server = Callable[[Ask], Probe]


def goal(over: str = "rate", start: float = 1.0, **fields: object) -> Goal:
    made = {
        "kind": "capacity", "over": over, "start": start, "highest": 4096.0, "slo": "ttft=100ms", "attainment": 0.99,
        "duration_s": 20.0, "max_duration_s": 600.0, "max_find_s": 3600.0,
    }  # fmt: skip
    return msgspec.convert({**made, **fields}, Goal)


def answer(ask: Ask, word: str, **fields: object) -> Probe:
    closed = ask.over == "concurrency"
    made = {
        "over": ask.over, "load": ask.load, "duration_s": ask.duration_s, "word": word, "rate_rps": ask.load,
        "rate_ci95_rps": (ask.load * 0.98, ask.load * 1.02) if closed else (ask.load, ask.load),
        "share": {"holds": 1.0, "breaks": 0.5, "undecided": 0.99}[word] if word != "not counted" else None,
        "favourable": word == "undecided", "binds": "ttft=100ms" if word == "breaks" else None,
    }  # fmt: skip
    return msgspec.convert({**made, **fields}, Probe)


def limit_at(limit: float, closed_limit: float | None = None) -> Server:
    """Holds up to a limit and breaks above it; in a closed loop each request in flight gives one request/s."""

    def serve(ask: Ask) -> Probe:
        own = limit if ask.over == "rate" else (closed_limit or limit)
        return answer(ask, "holds" if ask.load <= own else "breaks")

    return serve


def run(aim: Goal, server: Server, most: int = 1000) -> Find:
    seen: list[Probe] = []
    while len(seen) < most:
        _, ask, _ = follow(aim, seen)
        if ask is None:
            break
        seen.append(server(ask))
    find = found_by(aim, seen)
    check(aim, find)
    return find


def check(aim: Goal, find: Find) -> None:
    """What holds of every search, whatever the server."""
    assert len(find.probes) <= MAX_LEVELS
    assert sum(probe.purpose == "search" for probe in find.probes) <= MAX_SEARCH + MOST_TRIES * (1 + MAX_UPWARDS)
    assert all(aim.duration_s <= probe.duration_s <= aim.max_duration_s for probe in find.probes)
    assert all(1 <= probe.load <= aim.highest for probe in find.probes if probe.over == "concurrency")
    assert all(probe.load == int(probe.load) for probe in find.probes if probe.over == "concurrency")
    confirming = [probe for probe in find.probes if probe.purpose == "confirm"]
    assert len({probe.load for probe in confirming}) <= MAX_CANDIDATES
    if find.capacity_rps is not None:
        low, high = find.capacity_rps
        assert low is None or high is None or low < high
        if find.confirmed:
            own = [probe for probe in confirming if probe.load == low]
            assert sum(probe.word == "holds" for probe in own) == CONFIRMING
            assert [probe.index for probe in own if probe.word == "holds"] == find.confirming
        elif low is not None and aim.over == "rate":
            assert any(p.load == low and p.word == "holds" for p in find.probes), "never a load that was not held"
    else:
        assert not find.confirmed
    text = "\n".join([*rows(find), *sentences(find)])
    assert all(len(line) <= 80 for line in rows(find)), text


@given(st.floats(0.01, 3000), st.floats(0.05, 3000))
@settings(max_examples=150, deadline=None)
def test_a_noiseless_servers_limit_is_bracketed(limit: float, start: float) -> None:
    find = run(goal("rate", float(f"{start:.4g}")), limit_at(limit))
    if find.capacity_rps is None:  # halved more often than there are probes
        assert limit < start / 2**20
        return
    low, high = find.capacity_rps
    assert find.confirmed and low is not None
    assert low <= limit
    if high is None:
        assert low == 4096
    else:
        assert limit < high and high / low <= NEAR + 1e-9


@given(st.integers(1, 5000), st.integers(1, 4096))
@settings(max_examples=150, deadline=None)
def test_a_closed_loops_limit_is_found_to_a_neighbour_or_ten_per_cent(limit: int, start: int) -> None:
    find = run(goal("concurrency", float(start)), limit_at(limit))
    assert find.capacity_concurrency is not None and find.confirmed
    low, high = find.capacity_concurrency
    assert low is not None and low <= limit
    if high is None:
        assert low == 4096 <= limit
    else:
        assert limit < high and (high == low + 1 or high / low <= NEAR)
    assert find.capacity_rps is not None and find.capacity_rps[0] == pytest.approx(low * 0.98, rel=1e-3)
    assert find.capacity_rps[1] is None or limit < find.capacity_rps[1]


def test_the_loads_of_a_plain_search() -> None:
    find = run(goal("concurrency", 1.0), limit_at(10))
    search = [probe.load for probe in find.probes if probe.purpose == "search"]
    assert search == [1, 2, 4, 8, 16, 11, 9, 10, 19.6], "the last is an open loop's, for the upper end"
    assert [probe.load for probe in find.probes if probe.purpose == "confirm"] == [9.8] * 5
    assert find.capacity_concurrency == (10, 11) and find.capacity_rps == (9.8, 19.6)
    assert find.ended == "done" and find.binds == "ttft=100ms" and find.found
    text = " ".join(sentences(find))
    assert "5 open-loop runs at 9.8 requests/s held" in text and "levels 8 to 12" in text


def test_a_start_that_breaks_is_halved() -> None:
    find = run(goal("rate", 64.0), limit_at(5))
    assert [probe.load for probe in find.probes][:5] == [64, 32, 16, 8, 4]
    low, high = find.capacity_rps or (None, None)
    assert low is not None and high is not None and low <= 5 < high


def test_a_single_request_that_breaks_is_the_end() -> None:
    find = run(goal("concurrency", 4.0), limit_at(0.5))
    assert [probe.load for probe in find.probes] == [4, 2, 1]
    assert not find.found and "only --rate goes lower" in find.ended
    assert find.capacity_rps is None and find.capacity_concurrency == (None, 1)
    assert "below 1 requests in flight" in " ".join(sentences(find))


def test_a_limit_beyond_what_may_be_tried_is_said_to_be_open() -> None:
    find = run(goal("rate", 64.0, highest=200.0), limit_at(1e9))
    assert find.capacity_rps == (200, None) and find.confirmed
    assert "200 or more" in " ".join(sentences(find)) and "No load was shown to break" in " ".join(sentences(find))


def test_an_undecided_load_is_measured_once_more_for_longer_and_then_counts_as_not_held() -> None:
    def serve(ask: Ask) -> Probe:
        if ask.load <= 10:
            return answer(ask, "holds")
        return answer(ask, "undecided", favourable=False) if ask.load < 20 else answer(ask, "breaks")

    find = run(goal("rate", 10.0), serve)
    low, high = find.capacity_rps or (None, None)
    assert low is not None and 9 < low <= 10 and high == 20, "between the two nothing is claimed"
    again = [probe for probe in find.probes if probe.again]
    assert again and all(probe.duration_s == 60 for probe in again)


def test_as_many_requests_as_would_decide_are_measured() -> None:
    """At one request/s 20 s are few: the search passes by, and comes back with time enough."""

    def serve(ask: Ask) -> Probe:
        if ask.load > 5:
            return answer(ask, "breaks")
        return answer(ask, "holds") if ask.load * ask.duration_s >= 400 else answer(ask, "undecided", needed=400)

    find = run(goal("rate", 1.0), serve)
    first = [probe.load for probe in find.probes][:4]
    assert first == [1, 2, 4, 8], "what nothing speaks against does not stop the doubling"
    assert find.confirmed
    held = [probe for probe in find.probes if probe.word == "holds"]
    assert all(probe.load * probe.duration_s >= 400 for probe in held)


def test_a_load_that_was_passed_by_is_no_objection_to_a_higher_one_that_held() -> None:
    def serve(ask: Ask) -> Probe:
        return answer(ask, "breaks" if ask.load > 10 else "undecided" if ask.load < 8 else "holds")

    find = run(goal("rate", 4.0), serve, most=3)
    assert [probe.word for probe in find.probes] == ["undecided", "holds", "breaks"]
    assert find.capacity_rps == (8, 16) and not find.confirmed


def test_nothing_is_reported_where_nothing_can_be_decided() -> None:
    find = run(goal("rate", 4.0), lambda ask: answer(ask, "breaks" if ask.load > 50 else "undecided"))
    assert find.capacity_rps is not None and find.capacity_rps[0] is None
    assert not find.confirmed and "no load was shown to hold" in find.ended


@pytest.mark.parametrize("status", ["CLIENT_BOUND", "LOAD_NOT_ACHIEVED", "OUTPUT_MISMATCH", "INTERRUPTED"])
def test_another_limit_than_the_servers_ends_the_search(status: str) -> None:
    def serve(ask: Ask) -> Probe:
        if ask.load > 100:
            return answer(ask, "not counted", statuses=[status, "DRIFTING"])
        return answer(ask, "holds")

    find = run(goal("rate", 10.0), serve)
    assert [probe.load for probe in find.probes][-2:] == [160, 160] and not find.found
    assert find.capacity_rps == (80, None)
    assert find.ended.startswith(f"{status} at 160 requests/s")
    assert (find.binds == "loadgen itself, not the server") is (status == "CLIENT_BOUND")
    assert "NOT CONFIRMED" in " ".join(sentences(find))


def test_a_hiccup_of_the_client_does_not_end_the_search() -> None:
    good, tried = limit_at(10), list[float]()

    def serve(ask: Ask) -> Probe:
        tried.append(ask.load)
        first = tried.count(ask.load) == 1
        return answer(ask, "not counted", statuses=["CLIENT_BOUND"]) if first else good(ask)

    find = run(goal("rate", 1.0), serve)
    assert find.confirmed and find.capacity_rps is not None and (find.capacity_rps[0] or 0) <= 10


def test_a_candidate_that_does_not_hold_five_times_is_lowered_and_narrowed() -> None:
    """Open arrivals need more room than a closed loop says."""
    find = run(goal("concurrency", 1.0), limit_at(7.2, closed_limit=10))
    rates = list(dict.fromkeys(probe.load for probe in find.probes if probe.purpose == "confirm"))
    assert rates == [9.8, 6.93, 8.241, 7.557]
    assert find.confirmed and find.capacity_rps == (6.93, 7.557)
    assert len([probe for probe in find.probes if probe.load == 9.8]) == 1, "one that does not hold is enough"


def test_what_breaks_a_closed_loop_is_no_upper_end_of_an_open_ones_capacity() -> None:
    """Slots that began together wait for each other: a closed loop can break where arrivals at random do not."""
    find = run(goal("concurrency", 1.0), limit_at(43, closed_limit=10))
    assert find.capacity_rps == (9.8, 78.4) and find.confirmed
    assert "far apart: --find capacity --rate 9.8" in " ".join(sentences(find))


def test_a_candidate_that_never_holds_is_not_confirmed_and_said() -> None:
    find = run(goal("concurrency", 1.0), limit_at(1, closed_limit=10))
    assert not find.confirmed and not find.found
    assert find.capacity_rps is not None and find.capacity_rps[0] is None
    assert find.capacity_concurrency == (10, 11)
    text = " ".join(sentences(find))
    assert "NOT CONFIRMED" in text and "breaks" in text
    assert "In the search, 10 in flight held once, which confirms nothing." in text
    assert len({probe.load for probe in find.probes if probe.purpose == "confirm"}) == MAX_CANDIDATES


@pytest.mark.parametrize("after", range(13))
def test_a_search_that_is_stopped_says_what_is_known(after: int) -> None:
    find = run(goal("rate", 1.0), limit_at(10), most=after)
    assert not find.found and len(find.probes) == after
    low, high = find.capacity_rps or (None, None)
    assert low is None or low <= 10
    assert high is None or high > 10
    assert "stopped before it was done" in " ".join(sentences(find))


@given(
    st.sampled_from(["rate", "concurrency"]),
    st.integers(0, 10_000),
    st.floats(0.5, 500),
    st.floats(0.01, 1.0),
    st.floats(0, 0.9),
)
@settings(max_examples=200, deadline=None)
def test_a_noisy_server_breaks_no_rule(over: str, seed: int, limit: float, width: float, doubt: float) -> None:
    rng = random.Random(seed)

    def serve(ask: Ask) -> Probe:
        if rng.random() < doubt:
            return answer(ask, "undecided", favourable=rng.random() < 0.5)
        return answer(ask, "holds" if ask.load * math.exp(rng.gauss(0, width)) <= limit else "breaks")

    assert run(goal(over, 8.0), serve).probes


@given(st.lists(st.sampled_from(["holds", "breaks", "undecided", "not counted"]), max_size=80))
@settings(max_examples=200, deadline=None)
def test_whatever_is_answered_a_search_ends(words: list[str]) -> None:
    rest = iter(words)

    def serve(ask: Ask) -> Probe:
        word = next(rest, "undecided")
        return answer(ask, word, statuses=["CLIENT_BOUND"] if word == "not counted" else [])

    assert run(goal("concurrency", 3.0), serve).probes


def test_levels_of_another_search_are_refused() -> None:
    aim = goal("rate", 1.0)
    with pytest.raises(ValueError, match="level 0 is not"):
        follow(aim, [answer(Ask("rate", 3.0, 20.0, "search"), "holds")])


# The knee.


def bottleneck(most_rps: float, single_s: float, spread: float = 0.01) -> Server:
    """The asymptotic bounds themselves: X = min(N / R, X max)."""

    def serve(ask: Ask) -> Probe:
        rate = min(ask.load / single_s, most_rps)
        e2e = ask.load / rate
        return answer(
            ask, "undecided", share=None, rate_rps=rate, rate_ci95_rps=(rate * (1 - spread), rate * (1 + spread)),
            throughput_tps=100 * rate, throughput_ci95_tps=(100 * rate * (1 - spread), 100 * rate * (1 + spread)),
            e2e_s=e2e, e2e_ci95_s=(e2e * (1 - spread), e2e * (1 + spread)),
        )  # fmt: skip

    return serve


@given(st.floats(1, 500), st.floats(0.05, 10))
@settings(max_examples=100, deadline=None)
def test_the_knee_is_where_the_bounds_meet(knee: float, single_s: float) -> None:
    find = run(goal("concurrency", 1.0, kind="knee"), bottleneck(knee / single_s, single_s))
    assert find.found and find.knee is not None
    assert find.knee.in_flight == pytest.approx(knee)
    low, high = find.knee.in_flight_ci95 or (0, 0)
    assert low < knee < high and math.log(high / low) == pytest.approx(2 * math.hypot(0.01, 0.01))
    there = find.probes[-1].load
    assert find.probes[-1].purpose == "knee" and there >= 1 and abs(there - knee) <= 0.5 + 1e-9
    assert find.knee.share_of_max == pytest.approx(min(there / knee, 1))
    assert "Knee: N* = " in " ".join(sentences(find))


def test_the_knees_loads() -> None:
    find = run(goal("concurrency", 1.0, kind="knee"), bottleneck(10, 1))
    assert [probe.load for probe in find.probes] == [1, 2, 4, 8, 16, 32, 64, 10]
    later = run(goal("concurrency", 8.0, kind="knee"), bottleneck(10, 1))
    assert [probe.load for probe in later.probes] == [1, 8, 16, 32, 64, 10]


def test_a_throughput_that_goes_on_rising_has_no_knee_yet() -> None:
    find = run(goal("concurrency", 1.0, kind="knee", highest=64.0), bottleneck(1e9, 1))
    assert not find.found and find.ended == "throughput still rose at 64 in flight"
    assert "NOT FOUND" in " ".join(sentences(find))


def test_a_knee_needs_valid_levels() -> None:
    good = bottleneck(10, 1)

    def few(ask: Ask) -> Probe:
        return msgspec.structs.replace(good(ask), statuses=["TOO_FEW"] if ask.load * ask.duration_s < 40 else [])

    assert run(goal("concurrency", 1.0, kind="knee"), few).found, "measured for longer, it is"
    bad = run(
        goal("concurrency", 1.0, kind="knee"),
        lambda ask: msgspec.structs.replace(good(ask), statuses=["DRIFTING"] if ask.load > 4 else []),
    )
    assert not bad.found and bad.ended.startswith("DRIFTING at 8 in flight")


def test_the_interval_of_a_ratio() -> None:
    low, high = ratio(10, (9, 11), 5, (4.8, 5.2))
    assert math.sqrt(low * high) == pytest.approx(2)
    assert math.log(high / low) / 2 == pytest.approx(math.hypot(0.1, 0.04))
    assert ratio(10, None, 5, (4, 6)) == ratio(None, None, 5, None) == (0, math.inf)


# From levels that are summarized, as in a run folder.


def summarized(load: Load, slow: float, requests: int = 2000) -> LevelSummary:
    """A level of a request each 50 ms, some of which miss 50 ms of TTFT by chance."""
    rng = random.Random(1)
    is_open = isinstance(load, Open)
    records = []
    for seq in range(requests):
        at = 50 * seq
        ttft = 90 if rng.random() < slow else rng.randint(15, 25)
        due = at * MS if is_open else None
        records.append(request(at, ttft, 5, 5, 5, 5, seq=seq, scheduled_ns=due))
    mark = LevelMark(level=0, window_start_ns=0, window_end_ns=50 * requests * MS)
    gathered, steady = gather_steady(load, lambda: records, mark)
    return summarize(load, gathered, [], None, [], [], steady, parse_slos("ttft=50ms"))


CLOSED = Closed(concurrency=1)
OPEN = Open(rate_rps=20.0, arrival="poisson", max_in_flight=64)
SLO_GOAL = goal("concurrency", slo="ttft=50ms")


@pytest.mark.parametrize(("slow", "word"), [(0.0, "holds"), (0.3, "breaks"), (0.009, "undecided")])
def test_a_levels_word_is_that_of_plan(slow: float, word: str) -> None:
    for load in (CLOSED, OPEN):
        probe = probe_of(SLO_GOAL, msgspec.structs.replace(summarized(load, slow), verdict=Verdict(status="VALID")))
        assert probe.word == word and probe.share == pytest.approx(1 - slow, abs=0.03)
        assert (probe.binds is not None) is (word == "breaks")
        assert probe.rate_rps == pytest.approx(20, rel=0.01)


@pytest.mark.parametrize(
    ("load", "status", "slow", "word"),
    [
        (OPEN, "DRIFTING", 0.0, "undecided"),
        (OPEN, "DRIFTING", 0.3, "breaks"),
        (OPEN, "CLIENT_BOUND", 0.3, "not counted"),
        (OPEN, "LOAD_NOT_ACHIEVED", 0.3, "breaks"),
        (OPEN, "LOAD_NOT_ACHIEVED", 0.0, "undecided"),
        (CLOSED, "LOAD_NOT_ACHIEVED", 0.0, "not counted"),
        (CLOSED, "OUTPUT_MISMATCH", 0.3, "not counted"),
    ],
)
def test_what_a_verdict_makes_of_it(load: dict[str, Any], status: Any, slow: float, word: str) -> None:
    level = summarized(load, slow)
    level.verdict = Verdict(status=status, reasons=[Reason(status=status, text="", advice="")])
    probe = probe_of(SLO_GOAL, level)
    assert probe.word == word and not probe.favourable
    assert (probe.blocked is not None) is (word == "not counted")


def test_a_run_with_both_kinds_of_load_is_shown_and_found_again(tmp_path: Path) -> None:
    levels = [summarized(CLOSED, 0.3)]
    find = find_of(SLO_GOAL, levels)
    assert find is not None and find.probes[0].word == "breaks" and find.ended.startswith("already a single request")
    assert find_of(SLO_GOAL, [summarized(OPEN, 0.0)]) is None, "not the level that this search asks for"
    summary = Summary(simulated=False, levels=[*levels, summarized(OPEN, 0.0)], find=find)
    text = terminal.render(manifest(), summary)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "Search for the capacity" in text and " 20/s " in text and "20 requests/s" in text
    page = html.render([read_page(Entry(name="run", folder=tmp_path, manifest=manifest(), summary=summary))])
    assert "The search" in page and "Probes of run" in page
    assert not summary.valid
