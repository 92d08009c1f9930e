"""A real vLLM on the CPU, serving the tiny model: every request accounted for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.engines

ROOT = Path(__file__).resolve().parents[2]
START_S = 900
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def python() -> str:
    """Python of the environment that vLLM is installed in."""
    return str(Path(os.environ["LOADGEN_VLLM_PYTHON"]).absolute())


def engine_words() -> list[str]:
    return ["--engine-python", python(), "--model", "shape:tiny", "--max-seq-len", "2048", "--max-batch-size", "64"]


def processes_with(word: str) -> list[int]:
    """Processes that have a word in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def children_of(pid: int) -> list[int]:
    """Every process that descends from one."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]


def wait_until_gone(pids: list[int], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.2)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a vLLM that `loadgen engines serve` runs; nothing of it may be left afterwards."""
    folder = tmp_path_factory.mktemp("vllm")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = [sys.executable, "-m", "loadgen", "engines", "serve", "vllm", "--port", str(port), *engine_words()]
    output = folder / "output.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=file, cwd=folder, env=ENV)
    try:
        deadline = time.monotonic() + START_S
        while "serves tiny at" not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.5)
        family = children_of(process.pid)
        assert len(family) >= 3, "the guard, vLLM's server and its engine"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
    assert code == 0, output.read_text()
    wait_until_gone(family)


def sweep(url: str, out: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    argv = [sys.executable, "-m", "loadgen", "sweep", "--url", url, "--output", str(out), "--json", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=600, env=ENV)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def records_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def check_accounts(summary: dict[str, Any], out: Path, levels: list[int]) -> None:
    """Requests, prompt tokens and generated tokens of each level are the server's own counts."""
    assert [level["load"]["concurrency"] for level in summary["levels"]] == levels
    records = records_of(out)
    for index, level in enumerate(summary["levels"]):
        own = [r for r in records if r["level"] == index]
        assert [r["error"] for r in own] == [None] * len(own)
        server = level["server"]
        assert server["agrees"] is True
        assert server["requests"] == len(own)
        assert server["prompt_tokens"] == sum(r["input_tokens"] for r in own)
        assert server["generation_tokens"] == sum(r["output_tokens"] for r in own)
        assert all(r["output_tokens"] == r["requested_tokens"] == sum(r["event_tokens"]) for r in own)
        assert {r["token_source"] for r in own} == {"usage_continuous"}
        assert level["tokens"]["mismatched"] == 0
        # What is wrong, if anything is, may only be this machine: two shared cores for client and engine.
        reasons = {reason["status"] for reason in level["verdict"]["reasons"]}
        assert reasons <= {"CLIENT_BOUND", "LOAD_NOT_ACHIEVED", "DRIFTING"}


def test_token_id_prompts_at_1_8_and_64(vllm: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    _, summary, _ = sweep(
        vllm, out, "--concurrency", "1,8,64", "--requests", "200", "--input-tokens", "64", "--output-tokens", "32",
        "--vocab-size", "256",
    )  # fmt: skip
    check_accounts(summary, out, [1, 8, 64])
    assert summary["simulated"] is False
    assert json.loads((out / "manifest.json").read_text())["engine"]["version"].startswith("0.32")
    assert all(r["input_tokens"] == 64 for r in records_of(out))
    assert all(level["input_tokens"]["min"] == level["input_tokens"]["max"] == 64 for level in summary["levels"])


def test_text_prompts_of_different_lengths(vllm: str, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    lines = [{"id": f"t{i}", "prompt": "word " * (i + 1), "max_tokens": 1 + i % 20} for i in range(40)]
    data.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "run"
    _, summary, _ = sweep(vllm, out, "--concurrency", "4", "--requests", "60", "--dataset", str(data))
    check_accounts(summary, out, [4])
    # One token a byte: the tiny tokenizer is loadgen's own.
    assert all(r["input_tokens"] == 5 * (1 + int(r["prompt_id"][1:])) for r in records_of(out))


def test_chat_prompts(vllm: str, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    lines = [{"messages": [{"role": "user", "content": f"number {i}"}], "output_tokens": 12} for i in range(20)]
    data.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "run"
    _, summary, _ = sweep(vllm, out, "--concurrency", "16", "--requests", "60", "--dataset", str(data))
    check_accounts(summary, out, [16])
    for record in records_of(out):
        assert record["headers_ns"] <= record["first_token_ns"]
        assert len(record["event_ns"]) <= 12, "the role event is no token"


def test_a_request_that_the_server_refuses_is_kept_with_its_words(vllm: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, summary, _ = sweep(
        vllm, out, "--concurrency", "2", "--requests", "20", "--input-tokens", "2100", "--output-tokens", "10",
        "--vocab-size", "256",
    )  # fmt: skip
    assert code == 1
    assert summary["levels"][0]["verdict"]["status"] in ("ERRORS", "INTERRUPTED")
    errors = [r["error"] for r in records_of(out)]
    assert {(e["kind"], e["status"]) for e in errors} == {("http_status", 400)}
    assert all("2048" in e["body"] and e["body"].startswith("{") for e in errors), errors[0]


def test_a_wrong_model_is_told_before_anything_is_sent(vllm: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "loadgen", "sweep", "--url", vllm, "--concurrency", "1", "--model", "other"]
    done = subprocess.run(argv, capture_output=True, text=True, env=ENV)
    assert done.returncode == 2
    assert "it serves: tiny" in done.stderr


def test_a_port_that_answers_is_refused_before_anything_is_started(vllm: str, tmp_path: Path) -> None:
    words = ["sweep", "--engine", "vllm", *engine_words(), "--port", vllm.rpartition(":")[2], "--concurrency", "1"]
    argv = [sys.executable, "-m", "loadgen", *words, "--output", str(tmp_path / "run")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=ENV)
    assert done.returncode == 2
    assert "something answers at" in done.stderr
    assert not (tmp_path / "run" / "engine.log").exists()


def test_an_unknown_argument_is_refused_before_anything_is_started(vllm: str, tmp_path: Path) -> None:
    words = ["sweep", "--engine", "vllm", *engine_words(), "--engine-arg=--max-num-seq=3", "--concurrency", "1"]
    argv = [sys.executable, "-m", "loadgen", *words, "--output", str(tmp_path / "run")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=180, env=ENV)
    assert done.returncode == 2
    assert "has no such option; did you mean --max-num-seqs?" in done.stderr
    assert not (tmp_path / "run").exists()


# What follows launches an engine of its own; the one above must be gone first, so it stands last.


def test_a_sweep_launches_watches_and_stops_it_and_a_killed_one_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["sweep", "--engine", "vllm", *engine_words(), "--concurrency", "1,8", "--duration", "8s"]
    words += ["--input-tokens", "64", "--output-tokens", "32", "--prefix-caching", "on", "--output", str(out), "--json"]
    argv = [sys.executable, "-m", "loadgen", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=START_S + 120, env=ENV)
    assert "Traceback" not in done.stderr, done.stderr
    summary = json.loads(done.stdout)
    check_accounts(summary, out, [1, 8])
    for level in summary["levels"]:
        server = level["server"]
        assert server["requests_running"]["max"] <= level["load"]["concurrency"]
        assert 0 < server["ttft_s"] < level["ttft_s"]["max"]
        assert server["decode_s"] > 0
        assert server["scrapes"] >= 3
        assert server["prefix_cache_hit_rate"] == 0, "prompts of random ids share no block"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["engine"]["startup_s"]["total"] > 0
    assert manifest["engine"]["kv_cache_tokens"] > 0
    assert "could not be emptied" not in done.stdout + done.stderr
    assert not processes_with(str(out)), "nothing that knows the run folder is left"
    port = manifest["engine"]["url"].rpartition(":")[2]
    assert not processes_with(f"--port\0{port}")

    again = tmp_path / "killed"
    argv[argv.index(str(out))] = str(again)
    argv[argv.index("8s")] = "600s"
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENV)
    try:
        deadline = time.monotonic() + START_S
        records = again / "records.jsonl"
        while not records.exists() or records.read_bytes().count(b"\n") < 20:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        family = children_of(process.pid)
        assert len(family) >= 4, "a worker, the guard, vLLM's server and its engine"
    finally:
        process.kill()
        process.wait()
    wait_until_gone(family)
    report = subprocess.run(
        [sys.executable, "-m", "loadgen", "report", str(again), "--json"], capture_output=True, text=True, env=ENV
    )
    assert json.loads(report.stdout)["levels"][0]["requests"]["completed"] > 0
