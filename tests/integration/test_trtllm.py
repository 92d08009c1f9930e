"""The TensorRT-LLM adapter against executables that are as strict as the releases they imitate.

It has not met the real one: `loadgen engines doctor --selftest trtllm` is how its owner checks it.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from servers import TRTLLM_VERSIONS as VERSIONS

from loadgen.engines import trtllm_build
from loadgen.engines.launch import launch, prepare
from loadgen.engines.lookup import find_install, look_at
from loadgen.engines.offline import read_offline_report
from loadgen.engines.server import MetricsPage
from loadgen.engines.shapes import write_model
from loadgen.engines.spec import EngineSpec
from loadgen.errors import EngineError, UsageError

ROOT = Path(__file__).resolve().parents[2]
# The oldest and the newest of what differs; the self-test goes through all.
SWEPT = ("0.21.0", "1.3.0rc5")
BUILDING = ("0.21.0", "1.2.1")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's folder: the tiny shape, and something that stands for its weights."""
    folder = write_model(tmp_path_factory.mktemp("model") / "tiny-llama")
    (folder / "model.safetensors").write_bytes(b"\0" * 1024)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("FAKE_TRTLLM_METRICS_WAIT_S", "0.2")


def loadgen(*words: str, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "loadgen", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
    )
    assert "Traceback" not in done.stderr.replace("  | Traceback", ""), done.stderr
    return done


def spec(python: Path, model: Path | str, **fields: Any) -> EngineSpec:
    return EngineSpec(kind="trtllm", name="trtllm", model=str(model), python=str(python), **fields)


def examples(python: Path) -> Path:
    return python.parent.parent / "examples"


def build(python: Path, model: Path, cache: Path, said: list[str], **fields: Any) -> trtllm_build.Built | None:
    wanted = trtllm_build.BuildSpec(model=str(model), python=str(python), examples=examples(python), **fields)
    return trtllm_build.build_engine(wanted, cache, said.append)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_selftest_holds_for_every_version(version: str, trtllm_installs: dict[str, Path]) -> None:
    done = loadgen("engines", "doctor", "--engine-python", str(trtllm_installs[version]), "--selftest", "trtllm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAIL" not in done.stdout
    assert "ok   every event carries a cumulative token count" in done.stdout


def test_the_selftest_says_what_does_not_hold(trtllm_installs: dict[str, Path]) -> None:
    python = str(trtllm_installs["1.0.0"])
    done = loadgen("engines", "doctor", "--engine-python", python, "--selftest", "trtllm", FAKE_TRTLLM_BREAK_AFTER="3")
    assert done.returncode == 3
    assert "FAIL every request of a small sweep succeeds" in done.stdout or "FAIL the engine starts" in done.stdout


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_asked_for_takes_effect(
    version: str, trtllm_installs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fake writes down its settings as the real one would have merged them."""
    record = tmp_path / "settings.json"
    monkeypatch.setenv("FAKE_TRTLLM_RECORD", str(record))
    wanted = spec(
        trtllm_installs[version],
        "shape:tiny",
        max_batch_size=32,
        max_num_tokens=4096,
        max_seq_len=1024,
        kv_memory_fraction=0.5,
        prefix_caching=False,
        dtype="bfloat16",
    )

    async def run() -> dict[str, float]:
        async with launch(wanted, prepare(wanted, []), tmp_path) as engine:
            page = MetricsPage(engine.url, {}, True, "trtllm")
            values = await page.read()
            await page.close()
            return values

    values = asyncio.run(run())
    assert values["iterations"] >= 1, "iteration statistics are on"
    settings = json.loads(record.read_text())
    text = json.dumps(settings)
    assert settings["max_batch_size"] == 32, text
    assert settings["max_num_tokens"] == 4096, text
    assert settings["max_seq_len"] == 1024, text
    assert settings["fraction"] == 0.5, text
    assert settings["block_reuse"] is False, text
    assert settings["stream_interval"] == 1, text
    assert settings["extra"]["load_format"] == "dummy", text
    assert settings["extra"]["dtype"] == "bfloat16", text


@pytest.mark.parametrize("version", SWEPT)
def test_a_sweep_counts_and_watches(version: str, trtllm_installs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = loadgen(
        *("sweep", "--engine", "trtllm", "--engine-python", str(trtllm_installs[version]), "--model", "shape:tiny"),
        *("--concurrency", "2,8", "--duration", "1200ms", "--input-tokens", "40", "--output-tokens", "12"),
        *("--max-seq-len", "1024", "--output", str(out), "--json"),
        FAKE_TRTLLM_TPOT_S="0.01",
    )
    summary = json.loads(done.stdout)
    for level in summary["levels"]:
        assert level["errors"] == {}, level["error_examples"]
        assert level["tokens"]["mismatched"] == 0
        assert level["input_tokens"]["min"] == level["input_tokens"]["max"] == 40
        assert level["server"]["iteration_s"] == pytest.approx(0.01, rel=0.5)
        assert level["server"]["requests_running"]["max"] <= level["load"]["concurrency"]
        if "agrees" in level["server"]:
            assert level["server"]["agrees"] is True
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["engine"]["version"] == version
    assert manifest["engine"]["backend"] == "pytorch"
    samples = [json.loads(line) for line in (out / "server_metrics.jsonl").read_text().splitlines()]
    iterations = [s["values"]["iterations"] for s in samples]
    assert iterations == sorted(iterations), "counters go on from read to read, though a read empties the page"


@pytest.mark.parametrize("version", BUILDING)
def test_an_engine_is_built_once_and_served(
    version: str, trtllm_installs: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    built = build(trtllm_installs[version], model, tmp_path / "engines", said, gemm_plugin="float16", max_batch_size=16)
    assert built is not None
    assert not built.reused
    assert built.engine.name == "tiny-llama-engine"
    assert any("--gemm_plugin float16" in line for line in said)
    again = build(trtllm_installs[version], model, tmp_path / "engines", said, gemm_plugin="float16", max_batch_size=16)
    assert again is not None
    assert again.reused
    assert again.engine == built.engine
    other = build(
        trtllm_installs[version], model, tmp_path / "engines", said, gemm_plugin="bfloat16", max_batch_size=16
    )
    assert other is not None
    assert other.engine != built.engine, "what shapes an engine is in its key"
    out = tmp_path / "run"
    done = loadgen(
        *(
            "sweep",
            "--engine",
            "trtllm",
            "--engine-python",
            str(trtllm_installs[version]),
            "--model",
            str(built.engine),
        ),
        *("--tokenizer", str(model), "--concurrency", "4", "--requests", "20", "--input-tokens", "30"),
        *("--output-tokens", "8", "--offline-ceiling", "--output", str(out)),
    )
    # 1: the machine was too busy to measure an engine that answers in milliseconds.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert "Offline ceiling by trtllm-bench" in done.stdout
    argv = json.loads((out / "manifest.json").read_text())["engine"]["argv"]
    assert argv[argv.index("--max_batch_size") + 1] == "16", "trtllm-serve's own default would end it"
    report = read_offline_report(out / "trtllm_bench.json")
    assert report.requests == 20
    assert report.mean_input_tokens == 30
    assert report.mean_ttft_s is not None
    assert f"Offline ceiling by trtllm-bench {version}" in loadgen("report", str(out)).stdout


def test_a_build_goes_on_from_the_step_that_failed(
    trtllm_installs: dict[str, Path], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setenv("FAKE_TRTLLM_FAIL_STEP", "build")
    monkeypatch.setenv("FAKE_TRTLLM_FAIL_ONCE", str(tmp_path / "failed"))
    with pytest.raises(EngineError, match=r"(?s)build failed: exit code 1.*go on from here"):
        build(trtllm_installs["1.2.1"], model, tmp_path / "engines", said)
    assert not list((tmp_path / "engines").glob("*/*-engine")), "half an engine is not left"
    built = build(trtllm_installs["1.2.1"], model, tmp_path / "engines", said)
    assert built is not None
    assert "convert: done before" in said
    assert sum(line.startswith("convert: /") for line in said) == 1
    assert (built.engine / "rank0.engine").exists()


def test_a_release_without_the_tensorrt_backend_says_that_there_is_nothing_to_build(
    trtllm_installs: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    assert build(trtllm_installs["1.3.0rc5"], model, tmp_path, said) is None
    assert "no trtllm-build" in said[0]
    assert "PyTorch backend serves" in said[0]


def test_an_engine_of_another_version_is_refused_before_anything_is_started(
    trtllm_installs: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    built = build(trtllm_installs["1.0.0"], model, tmp_path / "engines", [])
    assert built is not None
    with pytest.raises(UsageError, match=r"was built by TensorRT-LLM 1\.0\.0, and 1\.2\.1 is installed"):
        prepare(spec(trtllm_installs["1.2.1"], built.engine, tokenizer=str(model)), [])
    with pytest.raises(UsageError, match="holds no tokenizer; give --tokenizer"):
        prepare(spec(trtllm_installs["1.0.0"], built.engine), [])
    with pytest.raises(UsageError, match="is a TensorRT engine; the PyTorch backend"):
        prepare(spec(trtllm_installs["1.0.0"], built.engine, tokenizer=str(model), backend="pytorch"), [])
    with pytest.raises(UsageError, match="--dtype: an engine's dtype was set"):
        prepare(spec(trtllm_installs["1.0.0"], built.engine, tokenizer=str(model), dtype="float16"), [])
    (built.engine / "rank0.engine").unlink()
    with pytest.raises(UsageError, match=r"there is no rank0\.engine"):
        prepare(spec(trtllm_installs["1.0.0"], built.engine, tokenizer=str(model)), [])


def test_a_model_that_is_no_engine_is_refused_by_the_tensorrt_backend(
    trtllm_installs: dict[str, Path], model: Path
) -> None:
    with pytest.raises(UsageError, match=r"is no engine directory.*engines build trtllm"):
        prepare(spec(trtllm_installs["1.2.1"], model, backend="tensorrt"), [])
    with pytest.raises(UsageError, match="has the backend pytorch, and not the tensorrt one"):
        prepare(spec(trtllm_installs["1.3.0rc5"], model, backend="tensorrt"), [])


def test_an_unknown_argument_is_refused_with_a_hint(trtllm_installs: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"trtllm-serve 1\.2\.1 has no such option; did you mean --tp-size"):
        prepare(spec(trtllm_installs["1.2.1"], "shape:tiny", args=["--tp_sizes", "2"]), [])


def test_an_environment_without_trtllm_serve_is_told(trtllm_installs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(trtllm_installs["1.0.0"].parent.parent, folder, symlinks=True)
    (folder / "bin" / "trtllm-serve").unlink()
    python = folder / "bin" / "python"
    python.write_text(python.read_text().replace(str(trtllm_installs["1.0.0"].parent.parent), str(folder)))
    with pytest.raises(UsageError, match="there is no trtllm-serve beside it"):
        prepare(spec(python, "shape:tiny"), [])


def test_no_tensorrt_llm_anywhere_is_told_with_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"tensorrt_llm is not installed in .*--engine-python trtllm=PATH"):
        find_install("trtllm", sys.executable)


@pytest.mark.parametrize(("version", "backends"), [("1.2.1", ["pytorch", "tensorrt"]), ("1.3.0rc5", ["pytorch"])])
def test_the_doctor_says_which_backends_there_are(
    version: str, backends: list[str], trtllm_installs: dict[str, Path]
) -> None:
    done = loadgen("engines", "list", "--engine-python", str(trtllm_installs[version]), "--json")
    found = next(e for e in json.loads(done.stdout) if e["kind"] == "trtllm")
    assert found["backends"] == backends
    assert found["usable"] is False, "there is no GPU here"


def test_the_converter_is_looked_for_by_the_models_family(
    trtllm_installs: dict[str, Path], model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"no convert_checkpoint\.py for model_type 'llama'.*--examples"):
        trtllm_build.build_engine(
            trtllm_build.BuildSpec(model=str(model), python=str(trtllm_installs["1.2.1"]), examples=tmp_path),
            tmp_path,
            print,
        )


def test_a_shape_has_no_weights_to_build_from(trtllm_installs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="an engine is built from a checkpoint in a folder here"):
        trtllm_build.build_engine(
            trtllm_build.BuildSpec(model="shape:tiny", python=str(trtllm_installs["1.2.1"])), tmp_path, print
        )


def test_a_foreign_bench_report_is_kept_and_one_that_is_none_is_refused(
    trtllm_installs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    loadgen("sweep", "--concurrency", "1", "--requests", "12", "--output-tokens", "3", "--output", str(out))
    report = tmp_path / "report.json"
    report.write_text(
        json.dumps(
            {
                "engine": {"version": "1.1.0", "backend": "Pytorch"},
                "request_info": {"num_requests": 7, "avg_input_length": 10.0, "avg_output_length": 3.0},
                "performance": {"request_throughput_req_s": 2.0, "system_output_throughput_tok_s": 123.0},
            }
        )
    )
    done = loadgen("report", str(out), "--offline", str(report))
    assert "Offline ceiling by trtllm-bench 1.1.0: 123 output tokens/s" in done.stdout
    bad = tmp_path / "bad.json"
    bad.write_text('{"performance": []}')
    done = loadgen("report", str(out), "--offline", str(bad))
    assert done.returncode == 2
    assert "is no report of trtllm-bench throughput" in done.stderr


def test_the_environment_is_asked_through_its_own_python(trtllm_installs: dict[str, Path]) -> None:
    environment = look_at(str(trtllm_installs["1.2.1"]))
    assert environment.versions["tensorrt_llm"] == "1.2.1"
    assert environment.script("trtllm-serve") == str(trtllm_installs["1.2.1"].parent / "trtllm-serve")
