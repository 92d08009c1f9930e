"""SGLang as an engine: a double of it, launched, measured, and dying in its own way."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import gone, records_of, wait_for

from loadgen.client.endpoint import DIALECTS
from loadgen.engines.doctor import examine, found_engines
from loadgen.engines.launch import Launched, launch, prepare
from loadgen.engines.server import identify
from loadgen.engines.sglang import CPU_KV_CACHE_TOKENS, has_amx
from loadgen.engines.spec import EngineSpec
from loadgen.errors import EndpointError, EngineError, UsageError
from loadgen.gpus import Gpu
from loadgen.processes import Interrupts
from loadgen.sweeps.run import find_model
from loadgen.sweeps.selftest import run_selftest
from loadgen.sweeps.spec import SweepSpec
from loadgen.sweeps.sweep import SweepResult, run_sweep
from loadgen.workloads.prompts import SourceSpec, TokenRange

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 30
PROCESSES = 3


def _double() -> Any:
    spec = importlib.util.spec_from_file_location("fake_sglang", ROOT / "tests" / "fakes" / "sglang.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


DOUBLE = _double()


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment that has the double."""
    return str(DOUBLE.install(tmp_path_factory.mktemp("sglang")))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in. Afterwards nothing of the double is left, or the test fails."""
    for name in [name for name in os.environ if name.startswith(("FAKE_", "CUDA_", "SGLANG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_SGLANG_PIDS", str(tmp_path / "pids"))
    monkeypatch.setenv("FAKE_SGLANG_CALLS", str(tmp_path / "calls"))
    yield tmp_path
    wait_for(lambda: all(gone(pid) for pid in pids(tmp_path)))


def pids(place: Path) -> list[int]:
    path = place / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def calls(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "calls").read_text().splitlines()]


def spec(python: str, **fields: Any) -> EngineSpec:
    return EngineSpec(**{"kind": "sglang", "name": "sglang", "model": "shape:tiny", "python": python, **fields})


class Quiet:
    """Listens to nothing."""

    def said(self, text: str) -> None: ...
    def started(self, *_: object) -> None: ...
    def level_started(self, *_: object) -> None: ...
    def sampled(self, *_: object) -> None: ...
    def level_ended(self, *_: object) -> None: ...


def sweep(engine: EngineSpec, output: Path, **fields: Any) -> SweepResult:
    """A small sweep."""
    amounts = {"levels": [1, 3], "requests": 20, **fields}
    tokens = amounts.pop("tokens", (40, 6))
    wanted = SweepSpec(
        command=["loadgen", "sweep"],
        engines=[engine],
        source=SourceSpec(seed=0, input_tokens=TokenRange(tokens[0], tokens[0]),
                          output_tokens=TokenRange(tokens[1], tokens[1])),
        output=output,
        **amounts,
    )  # fmt: skip
    with Interrupts().watching() as interrupts:
        return run_sweep(wanted, Quiet(), interrupts)


def test_a_sweep_measures_what_it_launched(python: str, place: Path) -> None:
    out = place / "run"
    engine = spec(python, max_seq_len=128, max_batch_size=8, args=["--random-seed", "7"])
    result = sweep(engine, out)
    assert all(gone(pid) for pid in pids(place)), "when the sweep ends, not later"
    assert len(pids(place)) == PROCESSES
    start, *later = calls(place)
    manifest = json.loads((out / "manifest.json").read_text())["engine"]
    assert manifest["argv"][:3] == [python, "-m", "sglang.launch_server"]
    assert manifest["argv"][3:] == start["start"], "what the manifest says is what was run"
    assert manifest["argv"][-2:] == ["--random-seed", "7"], "the user's own words come last"
    assert [manifest[name] for name in ("kind", "version", "model", "dialect")] == [
        "sglang",
        "0.5.23",
        "tiny",
        "sglang",
    ]
    assert manifest["package"] == "sglang 0.5.23"
    assert manifest["kv_cache_tokens"] == CPU_KV_CACHE_TOKENS
    startup = manifest["startup_s"]
    assert [startup[name] for name in ("weights_s", "kv_cache_s", "graph_capture_s", "init_engine_s")] == [
        0.25, 0.5, 0.75, 3.25,
    ]  # fmt: skip
    assert startup["healthy"] >= DOUBLE.WARM_UP_S, "it was not ready when it began to listen"

    records = records_of(out)
    of_level = [sum(record["level"] == level for record in records) for level in (0, 1)]
    assert {record["token_source"] for record in records} == {"usage_continuous"}
    assert {record["output_tokens"] for record in records} == {6}
    # It was asked once while it started; its cache was emptied before each level.
    assert later == [{"reset": 1}, {"reset": 1 + of_level[0]}, {"end": 1 + sum(of_level)}]
    _, summary = result.runs[0]
    for level, requests in zip(summary.levels, of_level, strict=True):
        assert level.errors == {}
        assert level.server is not None
        own = level.server
        assert own.agrees is True
        assert (own.requests, own.prompt_tokens, own.generation_tokens) == (requests, requests * 40, requests * 6)
        assert own.prefix_cache_hit_rate == 0
        assert own.ttft_s >= 0.005, "the double's own"
    assert not summary.simulated


def test_without_prefix_caching_there_is_nothing_to_empty(python: str, place: Path) -> None:
    result = sweep(spec(python, prefix_caching=False), place / "run", levels=[2])
    assert "--disable-radix-cache" in calls(place)[0]["start"]
    assert not any("reset" in call for call in calls(place))
    assert not any("could not be emptied" in note for note in result.runs[0][1].notes)


def test_a_prefix_cache_that_could_not_be_emptied_is_noted(
    python: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SGLANG_FLUSH", "refuse")
    result = sweep(spec(python), place / "run", levels=[2])
    assert any("could not be emptied" in note for note in result.runs[0][1].notes)


CAUSES = {
    "memory": "out of memory: use a smaller --kv-memory-fraction",
    "cache": "too little GPU memory for the KV cache",
    "weights": "too little GPU memory for the KV cache",
    "vocabulary": "a token id of a prompt is outside the model's vocabulary",
    "unknown": "one of its processes failed; the lines of its log before that say why",
}


@pytest.mark.parametrize("death", CAUSES)
def test_what_it_died_of_is_told_though_it_kills_itself(
    death: str, python: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL means no lack of memory on the host here, and an optional package that is missing means nothing."""
    monkeypatch.setenv("FAKE_SGLANG_DIE", "start")
    monkeypatch.setenv("FAKE_SGLANG_LAST_WORDS", DOUBLE.DEATHS[death])
    with pytest.raises(EngineError) as caught:
        sweep(spec(python), place / "run")
    assert f"sglang ended while it was starting, signal 9: {CAUSES[death]}" in str(caught.value)


def test_what_was_measured_is_kept_when_it_dies(python: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_SGLANG_DIE", "60")
    monkeypatch.setenv("FAKE_SGLANG_LAST_WORDS", DOUBLE.DEATHS["memory"])
    result = sweep(spec(python), place / "run", levels=[2, 4], requests=None, duration_s=60.0)
    assert result.exit_code == 3
    note = f"sglang failed while it was measured: signal 9: {CAUSES['memory']}"
    assert any(note in failure for failure in result.failures)
    assert sum(record["error"] is None for record in records_of(place / "run")) >= 59


def test_the_selftest_holds(python: str) -> None:
    said: list[str] = []
    assert run_selftest("sglang", python, said.append), "\n".join(said)
    assert "ok   its own counters agree with the records" in said


# --- its command


def words(python: str, found: list[Gpu] | None = None, **fields: Any) -> list[str]:
    return prepare(spec(python, **fields), found or []).argv


def value(argv: list[str], option: str) -> str | None:
    return argv[argv.index(option) + 1] if option in argv else None


def test_the_shared_options_become_its_own(python: str) -> None:
    argv = words(
        python, dtype="float32", max_batch_size=16, max_num_tokens=2048, max_seq_len=1024, tensor_parallel=2,
        tokenizer="/tokenizer",
    )  # fmt: skip
    expected = {
        "--dtype": "float32", "--max-running-requests": "16", "--chunked-prefill-size": "2048",
        "--max-prefill-tokens": "2048", "--context-length": "1024", "--tp-size": "2", "--load-format": "dummy",
        "--tokenizer-path": "/tokenizer", "--served-model-name": "tiny", "--device": "cpu",
    }  # fmt: skip
    assert {option: value(argv, option) for option in expected} == expected
    assert "--enable-metrics" in argv
    assert value(argv, "--attention-backend") == (None if has_amx() else "torch_native")


def test_a_share_of_what_is_left_becomes_one_with_the_weights(python: str) -> None:
    """The tiny model weighs next to nothing, so that both shares are alike."""
    argv = words(python, kv_memory_fraction=0.5)
    assert value(argv, "--mem-fraction-static") == "0.500" or value(argv, "--mem-fraction-static") == "0.501"
    assert "--max-total-tokens" not in argv


def test_what_the_user_gives_is_not_given_twice(python: str) -> None:
    argv = words(python, args=["--max-total-tokens=4096", "--attention-backend", "triton"])
    assert "--max-total-tokens" not in argv
    assert argv.count("--attention-backend") == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"args": ["--max-num-seqs", "8"]}, r"SGLang 0\.5\.23 has no such option"),
        ({"args": ["--max-running-request", "8"]}, "did you mean --max-running-requests"),
        ({"device": "0"}, r"--device 0: SGLang 0\.5\.23 is a build for the CPU"),
        ({"backend": "pytorch"}, "--backend pytorch is for --engine trtllm; SGLang has no such backend"),
        ({"model": None}, "--engine sglang needs --model"),
    ],
    ids=["of another engine", "misspelt", "device", "backend", "no model"],
)
def test_what_it_cannot_do_is_refused_before_anything_is_started(
    fields: dict[str, Any], message: str, python: str
) -> None:
    with pytest.raises(UsageError, match=message):
        words(python, **fields)


def test_a_python_without_it_is_told() -> None:
    with pytest.raises(UsageError, match=r"sglang is not installed in .*--engine-python sglang=PATH"):
        words(sys.executable)


def test_two_tokens_of_its_length_cannot_be_used(python: str, place: Path) -> None:
    """A longer answer would be cut off without a word."""
    with pytest.raises(UsageError, match="take up to 63 tokens, and sglang serves shape:tiny with at most 62"):
        sweep(spec(python, max_seq_len=64), place / "run", tokens=(40, 23))
    assert not (place / "run").exists()
    result = sweep(spec(python, max_seq_len=64), place / "run", levels=[2], tokens=(40, 22))
    assert result.runs[0][1].levels[0].tokens.mismatched == 0


def test_an_option_that_it_refuses_is_told(python: str, place: Path) -> None:
    with pytest.raises(EngineError, match="it does not take this value of --dtype: invalid choice: 'fp8'"):
        sweep(spec(python, dtype="fp8"), place / "run")
    with pytest.raises(EngineError, match="the model takes 2048 tokens, fewer than the 4096 of --max-seq-len"):
        sweep(spec(python, max_seq_len=4096), place / "again")


# --- who it is


def launched(python: str, folder: Path, work: Any) -> None:
    async def run() -> None:
        engine = spec(python, start_timeout_s=PATIENCE_S)
        async with launch(engine, prepare(engine, []), folder) as running:
            await work(running)

    folder.mkdir()
    asyncio.run(asyncio.wait_for(run(), PATIENCE_S))


def test_a_server_that_runs_already_is_known_by_what_it_says(python: str, place: Path) -> None:
    async def work(engine: Launched) -> None:
        server = await identify(engine.url, {})
        assert (server.kind, server.version, server.models) == ("sglang", "0.5.23", ["tiny"])
        assert server.kind in DIALECTS
        assert find_model(server, engine.url, None) == "tiny"
        # It would serve this all the same, and nobody would notice the slip.
        with pytest.raises(EndpointError, match="does not serve 'tyni'; it serves: tiny"):
            find_model(server, engine.url, "tyni")

    launched(python, place / "run", work)


def test_what_says_that_it_is_something_else_is_not_measured(
    python: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(engine: Launched) -> None: ...

    monkeypatch.setenv("FAKE_SGLANG_OWNER", "vllm")
    with pytest.raises(EngineError, match="answers as vllm, not as sglang: something else took the port"):
        launched(python, place / "run", nothing)


def test_the_doctor_finds_it(python: str) -> None:
    (engine,) = [engine for engine in found_engines([python]) if engine.kind == "sglang"]
    assert (engine.version, engine.package, engine.backends, engine.usable) == ("0.5.23", "sglang", ["cpu"], True)
    notes = [finding.what for finding in examine([python], with_tensor_test=False).findings]
    assert any("SGLang 0.5.23 with a torch for the CPU needs kernels" in note for note in notes)
