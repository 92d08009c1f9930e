"""Whole sweeps: the command in a process of its own, against real servers."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from servers import ENV, TTFT_S, command, gone, read_request, records_of, run, scripted, wait_for

from loadgen.engines.launch import RunningSim, launch_sim
from loadgen.engines.sim_config import SimConfig


def children_of(pid: int) -> set[int]:
    found = set()
    for path in Path(f"/proc/{pid}/task/{pid}").glob("children"):
        found |= set(map(int, path.read_text().split()))
    return found


def test_a_sweep_leaves_a_whole_run_folder(sim: RunningSim, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(
        *("sweep", "--url", sim.url, "--concurrency", "2,5", "--requests", "40", "--workers", "2"),
        *("--input-tokens", "10:20", "--output-tokens", "10", "--output", str(out), "--json"),
    )
    assert done.returncode in (0, 1), done.stderr
    summary = json.loads(done.stdout)
    assert summary == json.loads((out / "summary.json").read_text())
    assert summary["simulated"] is True
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["format_version"] == summary["format_version"] == 1
    assert manifest["engine"]["kind"] == "sim"
    records = records_of(out)
    for index, concurrency in enumerate((2, 5)):
        level = summary["levels"][index]
        own = [record for record in records if record["level"] == index]
        assert level["load"] == {"model": "closed", "concurrency": concurrency}
        assert sum(record["phase"] == "measure" for record in own) == 40
        # A busy machine can make a start-up transient, which is cut off.
        kept = 40 - level["steady"]["cut_transient"]
        assert level["requests"]["issued"] == level["requests"]["completed"] == kept
        assert sum(record["phase"] == "warmup" for record in own) >= concurrency
        assert level["errors"] == {}
        assert level["ttft_s"]["min"] >= TTFT_S
        assert level["ttft_s"]["p99"] is None, "40 requests are too few for a p99"
        assert level["server"]["agrees"] is True
        assert len({record["seq"] for record in own}) == len(own)
        assert {record["worker"] for record in own} == {0, 1}
        # Never more in flight than asked: at each send count what was sent and not ended.
        for one in own:
            others = sum(o["sent_ns"] <= one["sent_ns"] < o["end_ns"] for o in own)
            assert others <= concurrency
    page = (out / "report.html").read_text()
    assert "SIMULATED" in page
    again = run("report", str(out), "--json")
    assert json.loads(again.stdout) == summary


def test_rounds_run_in_an_order_drawn_from_the_seed_and_are_taken_together(sim: RunningSim, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(
        *("sweep", "--url", sim.url, "--concurrency", "1,2,3", "--requests", "20", "--rounds", "3", "--seed", "5"),
        *("--input-tokens", "10", "--output-tokens", "5", "--output", str(out)),
    )
    assert done.returncode in (0, 1), done.stderr
    assert "Over 3 rounds" in done.stdout and all(len(line) <= 80 for line in done.stdout.splitlines()[:-1])
    manifest = json.loads((out / "manifest.json").read_text())
    orders = [[load["concurrency"] for load in manifest["levels"] if load["round"] == r] for r in range(3)]
    assert all(sorted(order) == [1, 2, 3] for order in orders) and orders != [[1, 2, 3]] * 3
    summary = json.loads((out / "summary.json").read_text())
    assert [level["load"] for level in summary["levels"]] == manifest["levels"]
    assert [one["load"]["concurrency"] for one in summary["rounds"]] == [1, 2, 3]
    for one in summary["rounds"]:
        assert one["rounds"] + len(one["left_out"]) == 3
        if one["rounds"] > 1:
            assert one["metrics"]["ttft_mean_s"]["mean"] >= TTFT_S
    assert json.loads(run("report", str(out), "--json").stdout) == summary


@pytest.mark.slow
@pytest.mark.parametrize("load", [["--concurrency", "4"], ["--rate", "150"]])
def test_a_level_goes_on_until_it_is_precise(sim: RunningSim, tmp_path: Path, load: list[str]) -> None:
    out = tmp_path / "run"
    done = run(
        *("sweep", "--url", sim.url, *load, "--precision", "30%", "--duration", "500ms", "--max-duration", "40s"),
        *("--input-tokens", "10", "--output-tokens", "5", "--workers", "2", "--output", str(out)),
    )
    assert done.returncode in (0, 1), done.stderr
    summary = json.loads((out / "summary.json").read_text())
    level = summary["levels"][0]
    precision = level["precision"]
    assert precision["ended"] == "precision" and precision["looks"] >= 3
    assert precision["met"] and max(precision["reached"].values()) <= 0.3
    assert "precision of 30 % reached" in done.stdout and "after 1 s" in done.stderr
    measured = [r for r in records_of(out) if r["phase"] == "measure"]
    assert len(measured) >= 200, "fewer are not believed"
    span_s = (level["window"]["end_ns"] - min(r["scheduled_ns"] or r["sent_ns"] for r in measured)) / 1e9
    assert 0.5 < span_s < 40
    # What was issued after the end is not measured, and the load was held behind it.
    assert all((r["scheduled_ns"] or r["sent_ns"]) <= level["window"]["end_ns"] + 60_000_000 for r in measured)
    assert any(r["phase"] == "drain" for r in records_of(out))
    assert json.loads(run("report", str(out), "--json").stdout) == summary


def test_a_precision_that_is_not_reached_is_said_and_is_no_failure(sim: RunningSim, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(
        *("sweep", "--url", sim.url, "--concurrency", "4", "--precision", "0.001%", "--duration", "500ms"),
        *("--max-duration", "2s", "--input-tokens", "10", "--output-tokens", "5", "--output", str(out)),
    )
    summary = json.loads((out / "summary.json").read_text())
    level = summary["levels"][0]
    assert level["precision"]["ended"] == "budget" and not level["precision"]["met"]
    assert any("a precision of 0.001 % was not reached within 2 s" in note for note in summary["notes"])
    assert done.returncode == (0 if level["verdict"]["status"] == "VALID" else 1)
    assert level["duration_s"] == pytest.approx(2, abs=0.01) or level["steady"]["cut_transient"]
    assert json.loads(run("report", str(out), "--json").stdout) == summary


def test_a_level_by_duration_measures_that_long(sim: RunningSim, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(
        *("sweep", "--url", sim.url, "--concurrency", "3", "--duration", "1500ms", "--output-tokens", "5"),
        *("--output", str(out), "--json"),
    )
    level = json.loads(done.stdout)["levels"][0]
    assert done.returncode in (0, 1), done.stdout
    window = level["window"]
    measured = [r for r in records_of(out) if r["phase"] == "measure"]
    start_ns = window["end_ns"] - 1_500_000_000
    assert window["start_ns"] == pytest.approx(start_ns, abs=1000) or level["steady"]["cut_transient"]
    assert level["duration_s"] == pytest.approx((window["end_ns"] - window["start_ns"]) / 1e9)
    assert all(start_ns - 1000 <= r["sent_ns"] <= window["end_ns"] + 50_000_000 for r in measured)


def test_without_url_or_engine_the_embedded_one_is_measured_and_says_so(tmp_path: Path) -> None:
    done = run(
        "sweep", "--concurrency", "1", "--requests", "12", "--output-tokens", "3", "--output", str(tmp_path / "r")
    )
    assert "every figure is SIMULATED" in done.stderr
    assert "SIMULATED" in done.stdout
    assert f"Report: {tmp_path / 'r' / 'report.html'}" in done.stdout


def test_chat_prompts_of_a_dataset_are_sent_to_the_chat_api(sim: RunningSim, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    lines = [{"messages": [{"role": "user", "content": f"Héllo {i}"}], "output_tokens": 3 + i} for i in range(4)]
    data.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    out = tmp_path / "run"
    run(
        "sweep",
        "--url",
        sim.url,
        "--concurrency",
        "2",
        "--requests",
        "12",
        "--dataset",
        str(data),
        "--output",
        str(out),
    )
    records = records_of(out)
    assert json.loads((out / "manifest.json").read_text())["engine"]["endpoint"] == "chat"
    assert all(r["output_tokens"] == r["requested_tokens"] == 2 + int(r["prompt_id"]) for r in records)


BAD_INPUT: dict[str, tuple[list[str], str]] = {
    "level zero": (["--concurrency", "0"], "must be 1 or above"),
    "level negative": (["--concurrency", "4,-1"], "must be 1 or above"),
    "level beyond the open-file limit": (["--concurrency", "100000000"], "use more --workers"),
    "level no number": (["--concurrency", "1,eight"], "'eight' is not a whole number"),
    "no level": (["--concurrency", ""], "'--concurrency': takes numbers"),
    "precision without a share": (["--concurrency", "1", "--precision", "five"], "write it as 20%"),
    "precision with requests": (["--concurrency", "1", "--precision", "5%", "--requests", "9"], "give no --requests"),
    "precision of nothing": (["--concurrency", "1", "--precision", "0%"], "must be above 0%"),
    "precision of all": (["--concurrency", "1", "--precision", "100"], "must be below 100%"),
    "longest below least": (["--concurrency", "1", "--precision", "5%", "--max-duration", "5s"], "is the minimum"),
    "longest of nothing": (["--concurrency", "1", "--max-duration", "5s"], "goes with --precision"),
    "requests zero": (["--concurrency", "1", "--requests", "0"], "'--requests': must be 1 or above"),
    "duration of nothing": (["--concurrency", "1", "--duration", "0"], "must be above zero"),
    "duration in no unit": (["--concurrency", "1", "--duration", "60x"], "or as a number of seconds"),
    "both amounts": (["--concurrency", "1", "--duration", "1s", "--requests", "1"], "exclude each other"),
    "url without a host": (["--concurrency", "1", "--url", "localhost:8000"], "--url takes a base URL"),
    "unreachable": (["--concurrency", "1", "--url", "http://127.0.0.1:9"], "is the server up"),
    "unknown host": (["--concurrency", "1", "--url", "http://nowhere.invalid"], "is the server up"),
    "missing dataset": (["--concurrency", "1", "--dataset", "missing.jsonl"], "missing.jsonl"),
    "bad tokens": (["--concurrency", "1", "--input-tokens", "9:3"], "--input-tokens"),
    "bad header": (["--concurrency", "1", "--header", "nonsense"], "Name: value"),
    "bad extra body": (["--concurrency", "1", "--extra-body", "[1]"], "--extra-body takes a JSON object"),
    "bad time-out": (["--concurrency", "1", "--timeout", "soon=1s"], "--timeout takes"),
    "unknown option": (["--concurrency", "1", "--speed", "9"], "No such option"),
}


@pytest.mark.parametrize(("words", "text"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input_is_told_in_words_with_exit_code_2(tmp_path: Path, words: list[str], text: str) -> None:
    done = run("sweep", "--output", str(tmp_path / "run"), *words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert text in done.stderr
    assert not (tmp_path / "run").exists(), "nothing was measured, so nothing is left"


def test_a_bad_line_is_named_with_its_place(tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "fine"}\n{"prompt": 7}\n')
    done = run("sweep", "--concurrency", "1", "--dataset", str(data))
    assert done.returncode == 2
    assert f"{data}:2: Expected `str | null`, got `int` - at `$.prompt`" in done.stderr


def test_a_wrong_model_is_refused_with_those_that_are_served(sim: RunningSim, tmp_path: Path) -> None:
    done = run("sweep", "--concurrency", "1", "--url", sim.url, "--model", "gpt-9", "--output", str(tmp_path / "r"))
    assert done.returncode == 2
    assert "does not serve 'gpt-9'; it serves: sim-fixed" in done.stderr


def test_a_server_of_another_kind_is_refused(tmp_path: Path) -> None:
    def answer(sock: Any, number: int) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 21\r\nContent-Type: text/html\r\n\r\n<html>welcome!</html>")

    with scripted(answer) as url:
        done = run("sweep", "--concurrency", "1", "--url", url, "--output", str(tmp_path / "r"))
    assert done.returncode == 2
    assert "no OpenAI-compatible server" in done.stderr


def test_a_folder_that_holds_something_is_left_alone(sim: RunningSim, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    done = run("sweep", "--concurrency", "1", "--url", sim.url, "--output", str(tmp_path))
    assert done.returncode == 2
    assert "exists and is not empty" in done.stderr
    assert (tmp_path / "mine.txt").read_text() == "precious"
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.txt"]


def test_failures_are_recorded_and_fail_the_verdict(sim: RunningSim, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fault = json.dumps({"sim": {"error_after": 2}})
    done = run(
        *("sweep", "--url", sim.url, "--concurrency", "2", "--requests", "8", "--extra-body", fault),
        *("--output-tokens", "4", "--output", str(out)),
    )
    assert done.returncode == 1
    assert "ERRORS" in done.stdout
    assert "simulated engine failure" in done.stdout
    assert {r["error"]["kind"] for r in records_of(out)} == {"stream_error"}


def test_a_server_that_refuses_everything_ends_the_level_soon(sim: RunningSim, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fault = json.dumps({"sim": {"status": 500}})
    done = run(
        *("sweep", "--url", sim.url, "--concurrency", "4", "--duration", "60s", "--extra-body", fault),
        *("--output", str(out)),
        timeout=30,
    )
    assert done.returncode == 1
    assert "stopped after 10 failures in a row" in done.stdout
    assert 10 <= len(records_of(out)) < 40


def test_a_wrong_output_length_is_told(sim: RunningSim, tmp_path: Path) -> None:
    fault = json.dumps({"sim": {"output_tokens": 3}})
    done = run(
        *("sweep", "--url", sim.url, "--concurrency", "2", "--requests", "12", "--extra-body", fault),
        *("--output-tokens", "6", "--output", str(tmp_path / "r")),
    )
    assert done.returncode == 1
    assert "OUTPUT_MISMATCH" in done.stdout
    assert "12 of 12 requests returned another number of tokens" in " ".join(done.stdout.split())


def test_a_server_that_dies_ends_the_run_with_what_was_measured(tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = SimConfig(mode="fixed", ttft_s=0.01, tpot_s=0.001)
    with launch_sim(config) as doomed:
        words = ("sweep", "--url", doomed.url, "--concurrency", "4", "--duration", "60s", "--output-tokens", "20")
        process = subprocess.Popen(
            command(*words, "--output", str(out)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV
        )
        wait_for(lambda: (out / "records.jsonl").exists() and len(records_of_so_far(out)) > 50)
        os.kill(doomed.pid, signal.SIGKILL)
        text, _ = process.communicate(timeout=30)
    assert process.returncode == 1, text
    assert "Traceback" not in text
    assert "INTERRUPTED" in text
    kinds = [r["error"]["kind"] for r in records_of(out) if r["error"]]
    assert "connect" in kinds
    assert sum(r["error"] is None for r in records_of(out)) > 50


def records_of_so_far(folder: Path) -> list[bytes]:
    return (folder / "records.jsonl").read_bytes().splitlines()


def start_long_run(url: str, out: Path) -> subprocess.Popen[str]:
    words = ("sweep", "--url", url, "--concurrency", "4,8", "--duration", "60s", "--output-tokens", "20")
    process = subprocess.Popen(
        command(*words, "--workers", "2", "--output", str(out)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENV,
    )
    wait_for(lambda: (out / "records.jsonl").exists() and b'"measure"' in (out / "records.jsonl").read_bytes())
    return process


def test_ctrl_c_once_ends_cleanly_with_everything_so_far(sim: RunningSim, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_long_run(sim.url, out)
    workers = children_of(process.pid)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=15)
    assert process.returncode == 1, text
    assert "Traceback" not in text
    assert "INTERRUPTED: interrupted" in text
    assert "1 of 2 levels were not run" in text
    summary = json.loads((out / "summary.json").read_text())
    assert summary["levels"][0]["requests"]["completed"] > 0
    cancelled = [r for r in records_of(out) if r["error"] and r["error"]["kind"] == "cancelled"]
    assert len(cancelled) == 4, "what was in flight is recorded as cancelled"
    assert (out / "report.html").exists()
    assert workers
    assert all(gone(pid) for pid in workers)


def test_ctrl_c_twice_ends_now(tmp_path: Path) -> None:
    stalled = SimConfig(mode="fixed", ttft_s=0.01, tpot_s=0.001)
    out = tmp_path / "run"
    with launch_sim(stalled) as engine:
        process = start_long_run(engine.url, out)
        workers = children_of(process.pid)
        os.kill(engine.pid, signal.SIGSTOP)
        try:
            for worker in workers:
                os.kill(worker, signal.SIGSTOP)  # so that a clean end cannot come first
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=5)
        finally:
            os.kill(engine.pid, signal.SIGCONT)
    assert process.returncode == 130
    wait_for(lambda: all(gone(pid) for pid in workers), 5)


def test_kill_9_loses_only_what_was_in_flight(sim: RunningSim, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_long_run(sim.url, out)
    wait_for(lambda: len(records_of_so_far(out)) > 100)
    workers = children_of(process.pid)
    process.kill()
    process.communicate(timeout=5)
    wait_for(lambda: all(gone(pid) for pid in workers), 5)
    lines = records_of_so_far(out)
    # Each worker numbers its own requests by its index plus multiples of two; none is missing.
    for worker in (0, 1):
        seqs = sorted(r["seq"] for r in map(json.loads, lines) if r["worker"] == worker)
        assert set(range(worker, seqs[-1] - 2 * 2, 2)) <= set(seqs)
    done = run("report", str(out))
    assert done.returncode == 1
    assert "INTERRUPTED: the run was ended from outside" in done.stdout
    assert "1 of 2 levels were not run" in done.stdout


def test_a_disk_that_takes_no_more_loses_no_figure(sim: RunningSim, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run(
        *("sweep", "--url", sim.url, "--concurrency", "4", "--duration", "20s", "--output-tokens", "40"),
        *("--output", str(out)),
        preexec_fn=limit,
        timeout=30,
    )
    assert done.returncode == 1
    assert "records cannot be written" in done.stdout
    assert "not in the folder" in " ".join(done.stdout.split())
    on_disk = [json.loads(line) for line in records_of_so_far(out) if line.endswith(b"}")]
    row = next(line for line in done.stdout.splitlines() if line.split()[:1] == ["4"])
    shown = int(row.split()[1])
    assert shown > sum(r["phase"] == "measure" for r in on_disk) > 0, "figures hold what the disk did not take"


def test_a_dead_worker_ends_the_level_and_keeps_the_rest(sim: RunningSim, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start_long_run(sim.url, out)
    os.kill(min(children_of(process.pid)), signal.SIGKILL)
    text, _ = process.communicate(timeout=15)
    assert process.returncode == 1, text
    assert "Traceback" not in text
    assert "died (exit code -9)" in text


def test_one_request_to_a_slow_starter_is_not_lost(tmp_path: Path) -> None:
    """The smallest run: one request, one slot, no warm-up."""

    def answer(sock: Any, number: int) -> None:
        while request := read_request(sock):
            if b"POST" in request:
                body = b'data: {"choices":[{"text":"a","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
                kind = b"text/event-stream"
            else:
                body, kind = b'{"data":[{"id":"m","owned_by":"someone"}]}', b"application/json"
            sock.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (kind, len(body), body)
            )

    with scripted(answer) as url:
        done = run(
            *("sweep", "--url", url, "--concurrency", "1", "--requests", "1", "--no-warmup", "--output-tokens", "1"),
            *("--output", str(tmp_path / "r")),
        )
    assert done.returncode == 1
    assert "TOO_FEW" in done.stdout
    assert "the server sends no usage" in done.stdout
    (record,) = records_of(tmp_path / "r")
    assert record["output_tokens"] == 1
    assert record["token_source"] == "events"


@pytest.mark.slow
def test_a_capacity_is_searched_for_and_confirmed(sim: RunningSim, tmp_path: Path) -> None:
    """Three in flight of 38 ms each serve 79 requests/s; what comes beyond waits, and is late."""
    out = tmp_path / "run"
    done = run(
        *("sweep", "--find", "capacity", "--slo", "e2e=300ms", "--attainment", "80%", "--rate", "20"),
        *("--url", sim.url, "--duration", "1s", "--input-tokens", "10", "--output-tokens", "10", "--no-warmup"),
        *("--max-duration", "3s", "--max-in-flight", "3", "--max-find", "2m", "--seed", "3", "--output", str(out)),
        timeout=240,
    )
    assert done.returncode in (0, 1), done.stderr
    summary = json.loads((out / "summary.json").read_text())
    manifest = json.loads((out / "manifest.json").read_text())
    assert [level["load"] for level in summary["levels"]] == manifest["levels"], "listed as they came"
    find = summary["find"]
    assert [probe["index"] for probe in find["probes"]] == list(range(len(manifest["levels"])))
    loads = [probe["load"] for probe in find["probes"]]
    assert loads[0] == 20
    if find["capacity_rps"] is not None and find["capacity_rps"][1] is not None:
        assert find["capacity_rps"][1] > 40 and find["binds"]
    if find["confirmed"]:  # a busy machine may be what binds, and then that is said
        assert done.returncode == 0 and len(find["confirming"]) == 5
        assert "5 open-loop runs" in done.stdout
        starts = []
        for index in find["confirming"]:
            due = sorted(r["scheduled_ns"] for r in records_of(out) if r["level"] == index)
            starts.append(due[1] - due[0])
        assert len(set(starts)) == 5, "each has arrivals of its own"
    else:
        assert "NOT CONFIRMED" in done.stdout or "NOT FOUND" in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines()[:-1])
    again = run("report", str(out), "--json")
    assert json.loads(again.stdout) == summary and again.returncode == done.returncode
    assert run("plan", str(out), "--attainment", "80%").returncode in (0, 1)


def test_a_search_that_holds_nowhere_ends_and_says_so(sim: RunningSim, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = run(
        *("sweep", "--url", sim.url, "--find", "capacity", "--slo", "ttft=1ms", "--concurrency", "2"),
        *("--duration", "1500ms", "--input-tokens", "10", "--output-tokens", "2", "--output", str(out)),
    )
    assert done.returncode == 1
    find = json.loads((out / "summary.json").read_text())["find"]
    assert [probe["load"] for probe in find["probes"]] == [2, 1] and not find["confirmed"]
    assert "only --rate goes lower" in done.stdout.replace("\n  ", " ")
    assert find["binds"].startswith("ttft=1ms: missed by 100.0%")


def test_a_knee_is_searched_for(sim: RunningSim, tmp_path: Path) -> None:
    """The engine's timing does not depend on the load: up to what may be tried, throughput rises."""
    out = tmp_path / "run"
    done = run(
        *("sweep", "--url", sim.url, "--find", "knee", "--duration", "1500ms", "--max-in-flight", "4"),
        *("--input-tokens", "10", "--output-tokens", "5", "--output", str(out)),
    )
    find = json.loads((out / "summary.json").read_text())["find"]
    assert done.returncode == 1 and find["knee"] is None
    assert [probe["load"] for probe in find["probes"] if not probe["again"]][:2] == [1, 2]
    assert "NOT FOUND" in done.stdout


FIND = ["--find", "capacity", "--slo", "ttft=1s"]
BAD_FIND: dict[str, tuple[list[str], str]] = {
    "no objectives": (["--find", "capacity"], "--find capacity needs objectives: --slo ttft"),
    "rounds": ([*FIND, "--rounds", "2"], "--rounds and --find exclude each other"),
    "precision": ([*FIND, "--precision", "5%"], "--precision and --find exclude each other"),
    "requests": ([*FIND, "--requests", "5"], "--requests and --find exclude each other"),
    "replay": ([*FIND, "--arrival", "replay"], "--arrival replay and --find exclude each other"),
    "mig": ([*FIND, "--mig", "all"], "--mig and --find exclude each other"),
    "interleave": ([*FIND, "--interleave"], "--interleave and --find exclude each other"),
    "both": ([*FIND, "--rate", "1", "--concurrency", "1"], "raises either load, not both"),
    "several": ([*FIND, "--rate", "1,2"], "starts from a single load"),
    "knee over rate": (["--find", "knee", "--rate", "1"], "--rate does not go with --find knee"),
    "attainment alone": (["--concurrency", "1", "--attainment", "9%"], "--attainment needs --slo"),
    "attainment of all": ([*FIND, "--attainment", "100%"], "no sample can prove 100%"),
}


@pytest.mark.parametrize(("words", "text"), BAD_FIND.values(), ids=BAD_FIND)
def test_what_does_not_go_with_a_search_is_refused(words: list[str], text: str, tmp_path: Path) -> None:
    done = run("sweep", *words, "--output", str(tmp_path / "run"))
    assert done.returncode == 2 and text in done.stderr
    assert not (tmp_path / "run").exists()
