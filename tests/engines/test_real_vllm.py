"""A real vLLM on the CPU, serving the tiny model: every request accounted for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadgen.engines.shapes import write_model

pytestmark = pytest.mark.engines

ROOT = Path(__file__).resolve().parents[2]
START_S = 600


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a vLLM that serves the tiny model with dummy weights."""
    python = os.environ["LOADGEN_VLLM_PYTHON"]
    folder = tmp_path_factory.mktemp("vllm")
    model = write_model(folder / "tiny")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv = [str(Path(python).absolute()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    argv += ["--served-model-name", "tiny", "--load-format", "dummy", "--host", "127.0.0.1", "--port", str(port)]
    argv += ["--max-model-len", "2048", "--max-num-seqs", "64", "--disable-uvicorn-access-log"]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    env.pop("PYTHONPATH", None)
    log_path = folder / "vllm.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, env=env, cwd=folder, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_S
        while True:
            assert process.poll() is None, "vLLM died:\n" + log_path.read_text()[-3000:]
            assert time.monotonic() < deadline, "vLLM did not get ready:\n" + log_path.read_text()[-3000:]
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
                    if answer.status == 200:
                        break
            except (urllib.error.URLError, OSError):
                time.sleep(1)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def sweep(url: str, out: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    argv = [sys.executable, "-m", "loadgen", "sweep", "--url", url, "--output", str(out), "--json", *words]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=600, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
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
        assert level["server"] == {
            "requests": len(own),
            "prompt_tokens": sum(r["input_tokens"] for r in own),
            "generation_tokens": sum(r["output_tokens"] for r in own),
            "agrees": True,
        }
        assert all(r["output_tokens"] == r["requested_tokens"] == sum(r["event_tokens"]) for r in own)
        assert {r["token_source"] for r in own} == {"usage_continuous"}
        assert level["tokens"]["mismatched"] == 0
        # What is wrong, if anything is, may only be this machine: two cores for client and engine.
        assert {reason["status"] for reason in level["verdict"]["reasons"]} <= {"CLIENT_BOUND", "LOAD_NOT_ACHIEVED"}


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
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert "it serves: tiny" in done.stderr
