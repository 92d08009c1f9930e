"""Open-loop sweeps: the schedule is kept, whatever the server does. Time is compared only where late is no failure."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from servers import TPOT_S, TTFT_S, records_of, run

from loadgen.client.pacing import Arrivals, schedule
from loadgen.engines.launch import RunningSim
from loadgen.units import NS_PER_S

SERVICE_NS = int((TTFT_S + 9 * TPOT_S) * NS_PER_S)  # of 10 tokens


def sweep(sim: RunningSim, out: Path, *words: str) -> tuple[int, dict[str, Any], list[dict[str, Any]]]:
    done = run("sweep", "--url", sim.url, "--output-tokens", "10", "--output", str(out), "--json", *words)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout), records_of(out)


def test_the_schedule_is_that_of_the_seed_over_all_workers(sim: RunningSim, tmp_path: Path) -> None:
    _, summary, records = sweep(
        sim, tmp_path / "run", "--rate", "80,120", "--requests", "60", "--workers", "2", "--arrival", "gamma:2",
        "--seed", "4",
    )  # fmt: skip
    for index, rate in enumerate((80, 120)):
        level = summary["levels"][index]
        assert level["load"] == {"model": "open", "rate_rps": rate, "arrival": "gamma:2", "max_in_flight": 4096}
        own = sorted((r for r in records if r["level"] == index), key=lambda r: r["scheduled_ns"])
        arrivals = Arrivals(kind="gamma", rate_rps=rate, cv=2.0, seed=4 * 1_000_003 + index)
        due = list(islice(schedule(arrivals), len(own)))
        start = own[0]["scheduled_ns"] - due[0]
        # Every arrival, to the nanosecond, but for some of the last: a worker ends when it is told.
        sure = [r["scheduled_ns"] for r in own if r["phase"] != "drain"]
        assert sure == [start + t for t in due[: len(sure)]]
        assert {r["worker"] for r in own} == {0, 1}
        assert all(r["sent_ns"] >= r["scheduled_ns"] for r in own), "nothing is sent before it is due"
        phases = [r["phase"] for r in own]
        assert phases == sorted(phases, key=["warmup", "measure", "drain"].index)
        assert phases.count("measure") == 60
        assert level["requests"]["issued"] == 60 - level["steady"]["cut_transient"]
        # Two seconds of warm-up, decided by when a request was due.
        assert all((r["scheduled_ns"] - start < 2 * NS_PER_S) == (r["phase"] == "warmup") for r in own)
        assert len({r["seq"] for r in own}) == len(own)
        assert level["open_loop"]["dropped"] == 0


def test_nothing_is_sent_once_the_level_has_ended(sim: RunningSim, tmp_path: Path) -> None:
    """At this rate nothing is in flight when the first request beyond the measured ones is due."""
    _, summary, records = sweep(sim, tmp_path / "run", "--rate", "6", "--requests", "12", "--no-warmup", "--seed", "0")
    due = list(islice(schedule(Arrivals(kind="poisson", rate_rps=6, seed=0)), 13))
    assert due[12] - due[11] > 5 * SERVICE_NS, "else take another seed"
    busy = any(r["end_ns"] - r["scheduled_ns"] > due[12] - due[11] for r in records)  # the machine
    assert busy or (len(records) == 12 and summary["levels"][0]["requests"]["drain"] == 0)
    assert json.loads(run("report", str(tmp_path / "run"), "--json").stdout) == summary


def test_both_clocks_are_reported(sim: RunningSim, tmp_path: Path) -> None:
    _, summary, records = sweep(sim, tmp_path / "run", "--rate", "40", "--requests", "30", "--no-warmup")
    level = summary["levels"][0]
    start_ns = level["window"]["start_ns"]  # later than the first request, where a transient was cut off
    measured = [r for r in records if r["phase"] == "measure" and r["scheduled_ns"] >= start_ns]
    response = [(r["first_token_ns"] - r["scheduled_ns"]) / NS_PER_S for r in measured]
    service = [(r["first_token_ns"] - r["sent_ns"]) / NS_PER_S for r in measured]
    assert level["ttft_s"]["mean"] == pytest.approx(sum(response) / len(response))
    assert level["open_loop"]["service"]["ttft_s"]["mean"] == pytest.approx(sum(service) / len(service))
    assert level["ttft_s"]["mean"] > level["open_loop"]["service"]["ttft_s"]["mean"] >= TTFT_S
    lateness = [(r["sent_ns"] - r["scheduled_ns"]) / NS_PER_S for r in measured]
    assert level["open_loop"]["send_lateness_s"]["mean"] == pytest.approx(sum(lateness) / len(lateness))


def test_a_cap_delays_nothing_silently(sim: RunningSim, tmp_path: Path) -> None:
    """Three slots of 38 ms serve 79 requests/s; 60 come. Whoever waits for a slot, waits on the response clock."""
    _, summary, records = sweep(
        sim, tmp_path / "run", "--rate", "60", "--requests", "150", "--max-in-flight", "3", "--no-warmup",
    )  # fmt: skip
    own = sorted((r for r in records if r["error"] is None), key=lambda r: r["scheduled_ns"])
    for one in own:
        assert sum(o["sent_ns"] <= one["sent_ns"] < o["end_ns"] for o in own) <= 3
    # Kiefer and Wolfowitz 1955: when each is served at the earliest by three servers of this service time.
    free = [0] * 3
    for one in own:
        start = max(one["scheduled_ns"], free[0])
        free = sorted([*free[1:], start + SERVICE_NS])
        assert one["sent_ns"] >= start
        assert one["last_token_ns"] >= start + SERVICE_NS
    assert summary["levels"][0]["open_loop"]["late"] > 0


def test_more_than_the_cap_lets_through_is_not_the_load_that_was_asked_for(sim: RunningSim, tmp_path: Path) -> None:
    code, summary, records = sweep(
        sim, tmp_path / "run", "--rate", "200", "--duration", "500ms", "--max-in-flight", "2", "--no-warmup",
    )  # fmt: skip
    level = summary["levels"][0]
    assert code == 1
    assert "LOAD_NOT_ACHIEVED" in [reason["status"] for reason in level["verdict"]["reasons"]]
    assert level["open_loop"]["intended_rate_rps"] > 2 * level["open_loop"]["achieved_rate_rps"]
    # The measured ones were all sent in the end; what was due after them and never sent says so.
    dropped = [r for r in records if r["error"] and r["error"]["kind"] == "dropped"]
    assert dropped and all(r["phase"] == "drain" and r["sent_ns"] is None for r in dropped)
    assert level["requests"]["failed"] == 0
    assert level["e2e_s"]["max"] > 3 * level["open_loop"]["service"]["e2e_s"]["p50"]


def test_a_trace_is_replayed_in_its_order_and_pace(sim: RunningSim, tmp_path: Path) -> None:
    times = [100.0, 100.2, 100.2, 100.9, 101.0, *[101.0 + i / 50 for i in range(20)]]
    trace = tmp_path / "trace.jsonl"
    lines = [{"id": f"p{i}", "prompt": f"word {i}", "output_tokens": 10, "timestamp": t} for i, t in enumerate(times)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run(
        "sweep", "--url", sim.url, "--arrival", "replay", "--speedup", "2", "--dataset", str(trace), "--output",
        str(tmp_path / "run"), "--json",
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr
    own = sorted(records_of(tmp_path / "run"), key=lambda r: r["seq"])
    assert [r["prompt_id"] for r in own] == [f"p{i}" for i in range(25)]
    start = own[0]["scheduled_ns"]
    assert [r["scheduled_ns"] - start for r in own] == [round((t - 100.0) / 2 * NS_PER_S) for t in times]
    assert {r["phase"] for r in own} == {"measure"}
    assert json.loads(done.stdout)["levels"][0]["load"]["arrival"] == "replay"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "give --concurrency"),
        (["--rate", "0"], "above 0"),
        (["--rate", "x"], "requests/s such as"),
        (["--rate", "nan"], "above 0"),
        (["--rate", "2", "--concurrency", "2"], "belongs to an open loop"),
        (["--concurrency", "2", "--arrival", "poisson"], "belongs to an open loop"),
        (["--rate", "2", "--arrival", "gamma"], "gamma:2"),
        (["--rate", "2", "--speedup", "2"], "--speedup needs"),
        (["--arrival", "replay"], "takes its times from --dataset"),
        (["--arrival", "replay", "--dataset", "chat-256"], 'chat-256.jsonl:1: has no "timestamp"'),
        (["--rate", "2", "--max-in-flight", "99999999"], "can open"),
    ],
)
def test_bad_command_lines(words: list[str], error: str, tmp_path: Path) -> None:
    done = run("sweep", *words, "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert error in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        (['{"prompt": "a", "timestamp": 2}', '{"prompt": "b", "timestamp": 1}'], ":2: its timestamp 1 is before"),
        (['{"prompt": "a", "timestamp": "x"}'], ":1: "),
        (['{"prompt": "a", "timestamp": 1}'], "two requests or more"),
    ],
)
def test_traces_that_cannot_be_replayed(lines: list[str], error: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("\n".join(lines) + "\n")
    done = run("sweep", "--arrival", "replay", "--dataset", str(trace), "--output", str(tmp_path / "run"))
    assert done.returncode == 2 and error in done.stderr
