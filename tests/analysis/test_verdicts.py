"""Each verdict just on both sides of its limit."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from made import changed, figures_of

from loadgen.analysis.figures import ErrorExample, LevelFigures, OpenLoopFigures, Requests, ServiceLatencies, Status
from loadgen.analysis.stats import Distribution
from loadgen.analysis.steady import SteadyWindow
from loadgen.analysis.verdicts import VERDICTS, judge
from loadgen.loads import Open


def level(**fields: Any) -> LevelFigures:
    """A level of 100 requests at 100 in flight that is valid, with other fields."""
    healthy = changed(
        figures_of([], concurrency=100),
        requests=Requests(issued=100, completed=100, failed=0),
        ttft_s=Distribution(count=100, mean=0.100),
        itl_s=Distribution(count=5000, mean=0.010, p50=0.010),
        client={
            "in_flight": 99.5,
            "lateness_s": Distribution(count=1000, mean=0.0001, p99=0.0003),
            "utilization": 0.3,
            "slot_gap_s": Distribution(count=99, mean=0.0002),
        },
        tokens={"asked": 100, "mismatched": 0},
    )
    return changed(healthy, **fields)


def requests(completed: int, failed: int = 0, cancelled: int = 0) -> dict[str, Any]:
    issued = completed + failed + cancelled
    return {"requests": Requests(issued=issued, completed=completed, failed=failed, cancelled=cancelled)}


def lateness(**fields: float) -> dict[str, Any]:
    return {"client": {"lateness_s": Distribution(count=1000, **fields)}}


def steady(found: bool | None) -> SteadyWindow:
    return SteadyWindow(start_ns=0, end_ns=1, requests=100, steady=found, reason="TTFT rose by 15% over the window")


CASES: list[tuple[str, dict[str, Any], str]] = [
    ("healthy", {}, "VALID"),
    ("stopped by hand", {"interrupted": "Ctrl-C"}, "INTERRUPTED"),
    ("1 of 100 failed", requests(99, 1), "VALID"),
    ("2 of 100 failed", requests(98, 2), "ERRORS"),
    ("cancelled only", requests(20, 0, 80), "VALID"),
    ("cancelled ones are no base of the share", requests(98, 2, 900), "ERRORS"),
    ("11 successes", requests(11), "VALID"),
    ("10 successes", requests(10), "TOO_FEW"),
    ("nothing ended", requests(0), "TOO_FEW"),
    ("95 of 100 in flight", {"client": {"in_flight": 95.0}}, "VALID"),
    ("94.9 of 100 in flight", {"client": {"in_flight": 94.9}}, "LOAD_NOT_ACHIEVED"),
    ("in flight unknown", {"client": {"in_flight": None}}, "VALID"),
    ("late by 4.9 % of TTFT", lateness(mean=0.0049), "VALID"),
    ("late by 5.1 % of TTFT", lateness(mean=0.0051), "CLIENT_BOUND"),
    ("late, but no TTFT", {**lateness(mean=0.0051), "ttft_s": Distribution(count=0)}, "VALID"),
    ("1 % late by a median gap", lateness(mean=0.001, p99=0.0100), "VALID"),
    ("1 % late by more", lateness(mean=0.001, p99=0.0101), "CLIENT_BOUND"),
    ("1 % late, but no gap", {**lateness(mean=0.001, p99=0.5), "itl_s": Distribution(count=0)}, "VALID"),
    ("97 % of a core", {"client": {"utilization": 0.97}}, "VALID"),
    ("97.1 % of a core", {"client": {"utilization": 0.971}}, "CLIENT_BOUND"),
    ("1 of 100 outputs differ", {"tokens": {"mismatched": 1}}, "VALID"),
    ("2 of 100 outputs differ", {"tokens": {"mismatched": 2}}, "OUTPUT_MISMATCH"),
    ("no trend", {"steady": steady(True)}, "VALID"),
    ("too few for a trend", {"steady": steady(None)}, "VALID"),
    ("a trend", {"steady": steady(False)}, "DRIFTING"),
    ("no output was asked for", {"tokens": {"asked": 0, "mismatched": 0}}, "VALID"),
]


@pytest.mark.parametrize(("fields", "status"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_status(fields: dict[str, Any], status: str) -> None:
    verdict = judge(level(**fields))
    assert verdict.status == status
    assert [reason.status for reason in verdict.reasons] == ([] if status == "VALID" else [status])
    assert all(reason.text and reason.advice for reason in verdict.reasons)


def test_every_status_has_a_case_and_a_rule() -> None:
    assert {case[2] for case in CASES} == set(get_args(Status))
    assert ["VALID", *VERDICTS] == list(get_args(Status))


def test_all_reasons_are_listed_the_gravest_first() -> None:
    everything = level(
        interrupted="Ctrl-C",
        **requests(5, 5),
        client={"in_flight": 1.0, "utilization": 0.99},
        tokens={"asked": 5, "mismatched": 5},
        steady=steady(False),
    )
    verdict = judge(everything)
    assert verdict.status == "INTERRUPTED"
    assert [reason.status for reason in verdict.reasons] == list(VERDICTS)


@pytest.mark.parametrize(
    ("fields", "texts"),
    [
        ({"interrupted": "the server was gone"}, ["the server was gone"]),
        (requests(6), ["6 successful requests", "11"]),
        (requests(98, 2), ["2 of 100 requests failed", "1%"]),
        ({"client": {"in_flight": 12.34}}, ["12.3 requests", "100 asked for", "0.200 ms"]),
        (lateness(mean=0.02, p99=0.05), ["20.0 ms late on average", "100 ms", "50.0 ms late or more", "10.0 ms"]),
        ({"client": {"utilization": 0.98}}, ["98% of a core"]),
        ({"tokens": {"mismatched": 40}, "output_tokens": Distribution(count=100, mean=61.27)}, ["40 of 100", "61.3"]),
    ],
)
def test_reason_has_the_figures(fields: dict[str, Any], texts: list[str]) -> None:
    (reason,) = judge(level(**fields)).reasons
    assert [text for text in texts if text not in reason.text] == []


def test_findings_about_the_client_are_one_reason() -> None:
    verdict = judge(level(client={"lateness_s": Distribution(count=1000, mean=0.05, p99=0.2), "utilization": 1.0}))
    assert [reason.status for reason in verdict.reasons] == ["CLIENT_BOUND"]
    assert verdict.reasons[0].text.count("; ") == 2


def test_the_error_shown_is_the_most_frequent_that_is_no_cancellation() -> None:
    examples = [
        ErrorExample(kind="cancelled", status=None, message="stopped", count=50),
        ErrorExample(kind="http_status", status=503, message="overloaded", count=9),
        ErrorExample(kind="timeout", status=None, message="slow", count=1),
    ]
    (reason,) = judge(level(**requests(40, 10, 50), error_examples=examples)).reasons
    assert reason.text.endswith("most often: overloaded")


@pytest.mark.parametrize(
    ("sent", "status"), [(100.0, "VALID"), (99.1, "VALID"), (98.9, "LOAD_NOT_ACHIEVED"), (101.1, "LOAD_NOT_ACHIEVED")]
)
def test_an_open_loop_must_send_what_is_due(sent: float, status: str) -> None:
    kept = OpenLoopFigures(
        intended_rate_rps=100.0,
        achieved_rate_rps=sent,
        late=7,
        dropped=2,
        send_lateness_s=Distribution(count=100, mean=0.003),
        service=ServiceLatencies(ttft_s=Distribution(count=0), e2e_s=Distribution(count=0)),
    )
    load = Open(rate_rps=100.0, arrival="poisson", max_in_flight=64)
    # How many are in flight is the server's affair.
    verdict = judge(level(load=load, open_loop=kept, client={"in_flight": 3.0}))
    assert verdict.status == status
    if status != "VALID":
        assert "7 were sent late (mean 3.00 ms), 2 never" in verdict.reasons[0].text
        assert "64 requests in flight at most" in verdict.reasons[0].advice
