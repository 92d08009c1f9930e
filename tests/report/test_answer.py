"""The answer of a run: one row a kind of run, and what no answer may do."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made import figures_of, manifest_from, request

from loadgen.analysis.figures import LevelSummary, Reason, Verdict
from loadgen.analysis.find import Find
from loadgen.analysis.slo import PercentileFigures, SloFigures
from loadgen.analysis.stats import Distribution
from loadgen.analysis.summary import Summary
from loadgen.loads import Closed, Load, Open
from loadgen.records import Manifest
from loadgen.report.answer import answer, render

EMPTY = figures_of([])
Interval = tuple[float, float]


def manifest(**load: Any) -> Manifest:
    return manifest_from(
        command=[], started_utc="", simulated=False, host={}, engine={}, dataset={}, seed=0, load=load, levels=[],
        client={},
    )  # fmt: skip


def level(
    load: float,
    tokens: float | None = 100.0,
    ci95: Interval | None = None,
    *,
    ttft: float | None = 0.02,
    tpot: float | None = 0.005,
    status: Any = "VALID",
    slo: SloFigures | None = None,
    rate: bool = False,
    round_index: int | None = None,
    completed: int = 1000,
    errors: dict[str, int] | None = None,
) -> LevelSummary:
    """A level with these figures; ``ci95`` is that of the tokens."""
    of: Load = Closed(concurrency=int(load))
    if rate:
        of = Open(rate_rps=load, arrival="poisson", max_in_flight=64)
    if round_index is not None:
        of = msgspec.structs.replace(of, round=round_index)
    made = {
        **msgspec.structs.asdict(EMPTY),
        "load": of,
        "requests": msgspec.structs.replace(EMPTY.requests, completed=completed),
        "output_throughput_tps": tokens,
        "ci95": {} if ci95 is None else {"output_throughput_tps": ci95},
        "ttft_s": Distribution(count=1000, p50=ttft),
        "tpot_s": Distribution(count=1000, p50=tpot),
        "slo": msgspec.UNSET if slo is None else slo,
        "errors": errors or {},
    }
    reasons = [] if status == "VALID" else [Reason(status=status, text="", advice="")]
    return LevelSummary(**made, verdict=Verdict(status=status, reasons=reasons))


def both(share: float | None, ci95: Interval | None, ttft: float = 1.0, tpot: float = 1.0) -> SloFigures:
    """TTFT within 500 ms and TPOT within 50 ms."""
    slos = ["ttft=500ms", "tpot=50ms"]
    return SloFigures(
        slos=slos, offered=1000, good=0, undefined={}, attainment=share, attainment_ci95=ci95,
        missed=dict(zip(slos, (1 - ttft, 1 - tpot), strict=True)),
    )  # fmt: skip


def tail(share: float | None, ci95: Interval | None, decision: Any) -> SloFigures:
    """p99 of TTFT within 500 ms."""
    found = PercentileFigures(slo="ttft:p99=500ms", requests=1000, share=share, ci95=ci95, decision=decision)
    return SloFigures(slos=["ttft:p99=500ms"], offered=1000, good=0, undefined={}, percentiles=[found])


def said(*levels: LevelSummary, simulated: bool = False, **load: Any) -> str:
    return answer(Summary(simulated=simulated, levels=list(levels)), manifest(**load))


GOOD = both(0.999, (0.9941, 0.9999))
BAD = both(0.6, (0.55, 0.65), ttft=0.617, tpot=0.99)
OPEN = both(0.994, (0.989, 0.997))


@pytest.mark.parametrize(
    ("levels", "text"),
    [
        (
            [level(8, slo=GOOD), level(64, slo=BAD)],
            "8 in flight meets TTFT < 500 ms and TPOT < 50 ms for 99.9% of requests (at least 99.4%); at 64 "
            "TTFT breaks first (61.7% within).",
        ),
        (
            [level(64, slo=BAD), level(1, slo=GOOD), level(8, slo=GOOD)],  # in any order
            "8 in flight meets TTFT < 500 ms and TPOT < 50 ms for 99.9% of requests (at least 99.4%); at 64 "
            "TTFT breaks first (61.7% within).",
        ),
        (
            [level(8, slo=GOOD)],
            "8 in flight meets TTFT < 500 ms and TPOT < 50 ms for 99.9% of requests (at least 99.4%), the only valid "
            "load.",
        ),
        (
            [level(1, slo=GOOD), level(8, slo=GOOD)],
            "8 in flight meets TTFT < 500 ms and TPOT < 50 ms for 99.9% of requests (at least 99.4%), the "
            "highest valid load.",
        ),
        (
            [level(8, slo=GOOD), level(16, slo=OPEN)],
            "8 in flight meets TTFT < 500 ms and TPOT < 50 ms for 99.9% of requests (at least 99.4%); at 16 it is "
            "undecided (99.4% are within it, 98.9% to 99.7%).",
        ),
        (  # the lower bound decides: 99.4 % of them, but 98.9 % at least
            [level(8, slo=OPEN), level(64, slo=BAD)],
            "No load is shown to meet TTFT < 500 ms and TPOT < 50 ms for 99% of requests: at 8 in flight 99.4% "
            "are within it, 98.9% to 99.7%, and at 64 TTFT breaks first (61.7% within).",
        ),
        (
            [level(8, slo=both(1.0, None))],
            "No load is shown to meet TTFT < 500 ms and TPOT < 50 ms for 99% of requests: at 8 in flight 100% "
            "are within it, of too few requests for an interval.",
        ),
        (
            [level(8, slo=BAD), level(64, slo=BAD)],
            "No load is shown to meet TTFT < 500 ms and TPOT < 50 ms: already at 8 in flight TTFT breaks first (61.7% "
            "within).",
        ),
        (  # above a load that breaks, one that holds is not believed
            [level(8, slo=BAD), level(64, slo=GOOD)],
            "No load is shown to meet TTFT < 500 ms and TPOT < 50 ms: already at 8 in flight TTFT breaks first (61.7% "
            "within).",
        ),
        (
            [level(8, slo=both(None, None))],
            "Whether TTFT < 500 ms and TPOT < 50 ms is met is not known: no reply has the latency that is asked for.",
        ),
        (
            [level(8, slo=tail(0.999, (0.995, 1.0), "met")), level(64, slo=tail(0.6, (0.5, 0.7), "not met"))],
            "8 in flight meets TTFT p99 < 500 ms (99.9% within it, at least 99.5%); at 64 TTFT p99 breaks (60% "
            "within).",
        ),
        (
            [level(8, slo=tail(0.99, (0.98, 1.0), "undecided"))],
            "No load is shown to meet TTFT p99 < 500 ms: at 8 in flight 99% are within it, 98% to 100%.",
        ),
        (
            [level(2.5, slo=GOOD, rate=True), level(5, slo=BAD, rate=True)],
            "2.5 requests/s meets TTFT < 500 ms and TPOT < 50 ms for 99.9% of requests (at least 99.4%); at 5 "
            "TTFT breaks first (61.7% within).",
        ),
        (  # of two rounds the worse one speaks
            [level(8, slo=GOOD, round_index=0), level(8, slo=OPEN, round_index=1)],
            "No load is shown to meet TTFT < 500 ms and TPOT < 50 ms for 99% of requests: at 8 in flight 99.4% "
            "are within it, 98.9% to 99.7%.",
        ),
        (
            [level(8, slo=GOOD), level(64, slo=BAD, status="DRIFTING")],
            "8 in flight meets TTFT < 500 ms and TPOT < 50 ms for 99.9% of requests (at least 99.4%), the only valid "
            "load. Not used, since not valid: 64 in flight DRIFTING.",
        ),
    ],
)
def test_with_objectives(levels: list[LevelSummary], text: str) -> None:
    assert said(*levels) == text


@pytest.mark.parametrize(
    ("levels", "text"),
    [
        ([level(8, 1216, (1200, 1230))], "8 in flight gives 1,216 output tokens/s (1,200 to 1,230), TTFT p50 20.0 ms, "
         "TPOT p50 5.00 ms."),
        ([level(1, 100, (99, 101)), level(8, 700, (690, 710))], "Output still rises at the highest valid load: 8 in "
         "flight gives 700 output tokens/s (690 to 710), TTFT p50 20.0 ms, TPOT p50 5.00 ms."),
        ([level(8, 700, (690, 710)), level(64, 705, (695, 715)), level(128, 690, (680, 700))], "Beyond 8 in "
         "flight output "
         "rises by at most 3.7%: 700 output tokens/s (690 to 710), TTFT p50 20.0 ms, TPOT p50 5.00 ms there."),
        ([level(8, 700, (690, 710)), level(64, 900, (600, 1200))], "8 in flight gives 700 output tokens/s (690 "
         "to 710), "
         "TTFT p50 20.0 ms, TPOT p50 5.00 ms; whether output rises beyond is not shown (at 64 600 to 1,200 tokens/s)."),
        ([level(1, 100), level(8, 700, ttft=0.04)], "From 1 to 8 in flight: output 100 to 700 tokens/s, TTFT "
         "p50 20.0 to 40.0 ms, TPOT p50 5.00 to 5.00 ms."),
        ([level(2, 100, rate=True), level(4, 200, rate=True, ttft=0.03)], "2 to 4 requests/s are kept up with: "
         "output 100 to 200 tokens/s, TTFT p50 20.0 to 30.0 ms, TPOT p50 5.00 to 5.00 ms."),
        ([level(8, None, ttft=None, tpot=None)], "8 in flight gives no figure that can be shown."),
        ([level(8, 100, ttft=None, tpot=None)], "8 in flight gives 100 output tokens/s."),
        ([level(8, 100, round_index=0), level(8, 120, ttft=0.03, round_index=1)], "8 in flight gives 110 output "
         "tokens/s, TTFT p50 20.0 to 30.0 ms, TPOT p50 5.00 ms."),
        ([level(8, 100), level(64, 500, status="CLIENT_BOUND")], "8 in flight gives 100 output tokens/s, TTFT "
         "p50 20.0 ms, TPOT p50 5.00 ms. Not used, since not valid: 64 in flight CLIENT_BOUND."),
        ([level(8, status="ERRORS"), level(64, status="TOO_FEW")], "No level is valid (8 in flight ERRORS, 64 "
         "in flight TOO_FEW), so nothing is concluded."),
        ([level(8, completed=0, status="ERRORS", errors={"timeout": 1200, "connect": 3})], "No request "
         "succeeded: 1,203 failed, most often as timeout (1,200)."),
        ([level(8, completed=0, status="INTERRUPTED")], "No request ended in "
         "the measured time, so nothing is concluded."),
        ([], "No level was measured."),
    ],
)  # fmt: skip
def test_without_objectives(levels: list[LevelSummary], text: str) -> None:
    assert said(*levels) == text


def found(**fields: Any) -> str:
    """The answer of a search, one of whose levels is not valid."""
    made = {"kind": "capacity", "over": "rate", "slo": "ttft=500ms,tpot=50ms", "attainment": 0.99, "ended": "done"}
    find = Find(**{**made, "probes": [], **fields})
    return answer(Summary(simulated=False, levels=[level(8), level(64, status="ERRORS")], find=find), manifest())


def test_a_search_answers_with_what_it_found() -> None:
    sure = {"capacity_rps": (12.0, 14.0), "confirmed": True, "confirming": [5, 6, 7, 8, 9]}
    assert found(**sure, binds="ttft=500ms: missed by 40.0% of requests at 14 requests/s") == (
        "12 requests/s keeps TTFT < 500 ms and TPOT < 50 ms for 99% of requests, confirmed by 5 open-loop runs; 14 "
        "requests/s is shown to be too much. What binds: ttft=500ms: missed by 40.0% of requests at 14 requests/s."
    )
    assert found(**{**sure, "capacity_rps": (12.0, None)}).endswith("by 5 open-loop runs.")
    assert found(capacity_rps=(12.0, 14.0)) == (
        "No rate is confirmed to keep TTFT < 500 ms and TPOT < 50 ms for 99% of requests."
    )
    assert found(ended="the highest load was reached").endswith("of requests: the highest load was reached.")
    assert found(kind="knee", ended="it was interrupted") == "NOT FOUND: it was interrupted."


def test_requests_that_fail_are_said_to_break_it() -> None:
    failing = msgspec.structs.replace(BAD, failed=500)
    assert said(level(8, slo=GOOD), level(64, slo=failing)).endswith("at 64 requests fail (50% of them).")


def test_the_share_that_the_sweep_was_told_decides() -> None:
    assert said(level(8, slo=OPEN), attainment=0.95).startswith("8 in flight meets")
    assert said(level(8, slo=GOOD), attainment=0.999).startswith("No load is shown")


def test_simulated_comes_first() -> None:
    assert said(level(8), simulated=True).startswith("SIMULATED: 8 in flight")


def test_a_summary_from_before_the_shares_of_each_objective() -> None:
    old = msgspec.structs.replace(BAD, missed={})
    assert said(level(8, slo=GOOD), level(64, slo=old)).endswith("at 64 it breaks (60% within).")


def test_shares_are_never_rounded_up_to_all_of_them() -> None:
    near = both(0.99996, (0.99994, 0.99999))
    assert "99.9% of requests (at least 99.9%)" in said(level(8, slo=near))


def test_lines_fit_80_columns_and_keep_units_beside_their_numbers() -> None:
    text = render(Summary(simulated=True, levels=[level(8, slo=GOOD), level(64, slo=BAD)]), manifest())
    assert all(len(line) <= 80 for line in text.splitlines())
    assert not re.search(r"\d$", text, re.MULTILINE)


def test_a_real_level_is_answered() -> None:
    figures = figures_of([request(10 * i, 4, 3, 3, seq=i) for i in range(100)])
    made = LevelSummary(**msgspec.structs.asdict(figures), verdict=Verdict(status="VALID"))
    assert "TTFT p50 4 ms, TPOT p50 3 ms" in said(made).replace(".00 ms", " ms")


SHARES = st.floats(0, 1)


@given(
    st.lists(
        st.tuples(
            st.integers(1, 2048),
            st.sampled_from(["VALID", "ERRORS", "CLIENT_BOUND", "DRIFTING"]),
            st.lists(SHARES, min_size=3, max_size=3).map(sorted),
            st.booleans(),
            st.none() | st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)).map(lambda ends: (min(ends), max(ends))),
        ),
        max_size=6,
    )
)
def test_at_most_two_sentences_and_meets_only_by_the_lower_bound(rows: list[Any]) -> None:
    levels = [
        level(load, 100.0, tokens, status=status, slo=both(share[1], (share[0], share[2])) if slo else None)
        for load, status, share, slo, tokens in rows
    ]
    text = said(*levels)
    assert text.endswith(".")
    assert len(re.findall(r"[.](?= |$)", text)) <= 2
    bounds = [s[0] for _, status, s, slo, _ in rows if status == "VALID" and slo]
    if " meets " in text:
        assert max(bounds) >= 0.99
