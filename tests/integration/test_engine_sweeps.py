"""Sweeps over several engines, on a host whose GPUs and whose TensorRT-LLM are stand-ins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from servers import FAKES, wait_for

from loadgen.engines.sim_config import SimConfig
from loadgen.engines.spec import EngineSpec
from loadgen.errors import EngineError
from loadgen.processes import Interrupts
from loadgen.sweeps import sweep as sweeping
from loadgen.sweeps.spec import PROMPTS_PER_LEVEL, SweepSpec, choose_workload
from loadgen.workloads.prompts import SourceSpec, TokenRange

ROOT = Path(__file__).resolve().parents[2]
GIB = 2**30
H200 = {
    "name": "NVIDIA H200", "uuid": "GPU-1", "memory": 141 * GIB, "used": GIB, "capability": [9, 0],
    "power_mw": 350_000, "power_limit_mw": 700_000, "energy_mj": 5_000, "utilization": [90, 40], "throttle": 4,
    "clocks": {"sm": 1980, "memory": 3201}, "max_clocks": {"sm": 1980, "memory": 3201}, "mig": False, "processes": [],
}  # fmt: skip
SLICES = [{"uuid": f"MIG-{i}", "name": "MIG 3g.71gb", "memory": 70 * GIB, "used": 0} for i in range(2)]


@pytest.fixture(autouse=True)
def own_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FAKE_TRTLLM_METRICS_WAIT_S", "0.2")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def gpus(tmp_path: Path, *cards: dict[str, Any]) -> Path:
    path = tmp_path / "gpus.json"
    path.write_text(json.dumps(list(cards)))
    return path


def loadgen(*words: str, cards: Path | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": f"{FAKES / 'nvml'}{os.pathsep}{ROOT}"}
    if cards is not None:
        env["FAKE_NVML"] = str(cards)
    argv = [sys.executable, "-m", "loadgen", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, env=env)
    assert "Traceback (" not in done.stderr.replace("| Traceback (", ""), done.stderr
    return done


def load(out: Path, python: Path, *more: str) -> list[str]:
    words = ["sweep", "--engine-python", f"trtllm={python}", "--model", "shape:tiny", "--concurrency", "2,4"]
    words += ["--requests", "20", "--input-tokens", "30", "--output-tokens", "8", "--max-seq-len", "512"]
    return [*words, "--output", str(out), *more]


def records_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def prompts_of(folder: Path, level: int) -> list[str]:
    """The prompts of a level, in the order in which they were sent."""
    own = [r for r in records_of(folder) if r["level"] == level]
    return [r["prompt_id"] for r in sorted(own, key=lambda r: r["seq"])]


def test_two_engines_get_the_same_prompts_and_stand_side_by_side(
    trtllm_installs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    done = loadgen(*load(out, trtllm_installs["1.2.1"]), "--engine", "trtllm", "--engine", "sim")
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: a level drifted, on a busy machine
    assert json.loads((out / "runs.json").read_text())["runs"] == ["trtllm", "sim"]
    for level in (0, 1):
        ours, theirs = prompts_of(out / "trtllm", level), prompts_of(out / "sim", level)
        count = min(len(ours), len(theirs))
        assert count >= 20
        assert ours[:count] == theirs[:count]
    assert not set(prompts_of(out / "sim", 0)) & set(prompts_of(out / "sim", 1)), "levels share no prompt"
    table = done.stdout[done.stdout.index("Side by side") :]
    assert table.count("\n     2  ") == table.count("\n     4  ") == 2
    assert "SIMULATED: sim" in table
    assert "all together" not in table
    again = loadgen("report", str(out))
    assert again.stdout == done.stdout
    both = json.loads(loadgen("report", str(out), "--json").stdout)
    assert set(both) == {"trtllm", "sim"}


def test_rounds_of_two_engines_alternate(trtllm_installs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = load(
        out, trtllm_installs["1.0.0"], "--engine", "trtllm", "--engine", "sim", "--rounds", "2", "--interleave"
    )
    done = loadgen(*words)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # 1: a level drifted, on a busy machine
    loads = {
        name: [level["load"] for level in json.loads((out / name / "summary.json").read_text())["levels"]]
        for name in ("trtllm", "sim")
    }
    assert loads["trtllm"] == loads["sim"], "the order of a round is the same for every engine"
    assert [load["round"] for load in loads["sim"]] == [0, 0, 1, 1]
    assert [sorted(load["concurrency"] for load in loads["sim"][k : k + 2]) for k in (0, 2)] == [[2, 4]] * 2
    assert done.stderr.count("starting trtllm") == 2, "each round launches its engine anew"
    first_sent = {
        (name, level): min(r["sent_ns"] for r in records_of(out / name) if r["level"] == level)
        for name in ("trtllm", "sim")
        for level in (0, 2)
    }
    order = sorted(first_sent, key=lambda key: first_sent[key])
    assert order == [("trtllm", 0), ("sim", 0), ("sim", 2), ("trtllm", 2)], "the second round is turned round"


def test_an_engine_that_does_not_start_leaves_the_other_its_measurement(
    trtllm_installs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRTLLM_FAIL_STEP", "serve")
    out = tmp_path / "run"
    done = loadgen(*load(out, trtllm_installs["1.2.1"]), "--engine", "trtllm", "--engine", "sim")
    assert done.returncode == 3
    assert "trtllm ended while it was starting, exit code 1" in done.stderr
    assert "4 in flight: " in done.stdout
    assert (out / "sim" / "summary.json").exists()
    assert loadgen("report", str(out)).returncode in (0, 1)


def test_ctrl_c_while_the_second_engine_starts_still_shows_the_first(
    trtllm_installs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRTLLM_LOAD_S", "60")
    out = tmp_path / "run"
    words = load(out, trtllm_installs["1.2.1"], "--engine", "sim", "--engine", "trtllm")
    process = subprocess.Popen(
        [sys.executable, "-m", "loadgen", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    wait_for((out / "trtllm" / "engine.log").exists)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert "4 in flight: " in stdout
    assert (out / "sim" / "report.html").exists()
    assert "interrupted while trtllm was starting" in stderr
    assert process.returncode == 1


def test_every_mig_slice_is_loaded_at_once_and_summed(trtllm_installs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    cards = gpus(tmp_path, {**H200, "mig": SLICES})
    done = loadgen(*load(out, trtllm_installs["1.2.1"]), "--engine", "trtllm", "--mig", "all", cards=cards)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    spans = []
    for index in range(2):
        folder = out / f"slice-{index}"
        manifest = json.loads((folder / "manifest.json").read_text())
        assert manifest["engine"]["env"]["CUDA_VISIBLE_DEVICES"] == f"MIG-{index}"
        assert manifest["engine"]["mig"] == f"MIG-{index}"
        own = [r for r in records_of(folder) if r["level"] == 1]
        spans.append((min(r["sent_ns"] for r in own), max(r["end_ns"] for r in own)))
    assert max(start for start, _ in spans) < min(end for _, end in spans), "both slices were loaded at once"
    assert json.loads((out / "runs.json").read_text())["together"] is True
    rates = [
        json.loads((out / f"slice-{i}" / "summary.json").read_text())["levels"][1]["output_throughput_tps"]
        for i in range(2)
    ]
    total = next(line for line in done.stdout.splitlines() if line.startswith("     4  all together"))
    assert float(total.split()[-1].replace(",", "")) == pytest.approx(sum(rates), rel=0.01)


def test_gpus_are_watched_while_an_engine_runs(trtllm_installs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = load(out, trtllm_installs["1.2.1"], "--engine", "trtllm", "--duration", "1s")
    words[words.index("--requests") : words.index("--requests") + 2] = []
    done = loadgen(*words, cards=gpus(tmp_path, H200))
    assert done.returncode in (0, 1), done.stdout + done.stderr
    level = json.loads((out / "summary.json").read_text())["levels"][0]
    (device,) = level["gpu"]["devices"]
    assert device["power_w"] == {"mean": 350.0, "min": 350.0, "max": 350.0}
    assert device["throttle"] == {"power cap": 1.0}
    assert device["energy_j"] == 0.0, "the stand-in's energy counter stands still"
    assert "350 W, 1,980 MHz" in done.stdout
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["gpus"][0]["name"] == "NVIDIA H200"
    assert manifest["engine"]["gpu_uuids"] == ["GPU-1"]
    samples = [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]
    assert {sample["level"] for sample in samples} == {0, 1}


def test_memory_that_the_last_engine_did_not_free_stops_the_sweep(
    tmp_path: Path, trtllm_installs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FAKES / "nvml"))
    monkeypatch.delitem(sys.modules, "pynvml", raising=False)
    monkeypatch.setattr(sweeping, "FREE_WAIT_S", 1.0)
    cards = gpus(tmp_path, H200)
    monkeypatch.setenv("FAKE_NVML", str(cards))
    engines = [
        EngineSpec(kind="trtllm", name=name, model="shape:tiny", python=str(trtllm_installs["1.2.1"]), max_seq_len=512)
        for name in ("first", "second")
    ]

    class Listener:
        def said(self, text: str) -> None: ...
        def started(self, *_: object) -> None: ...
        def level_started(self, *_: object) -> None: ...
        def sampled(self, *_: object) -> None: ...
        def level_ended(self, *_: object) -> None:
            gpus(tmp_path, {**H200, "used": 60 * GIB, "processes": [{"pid": 4711, "memory": 59 * GIB}]})

    spec = SweepSpec(
        command=["loadgen"],
        levels=[1],
        requests=12,
        engines=engines,
        source=SourceSpec(seed=0, input_tokens=TokenRange(8, 8), output_tokens=TokenRange(4, 4)),
        output=tmp_path / "run",
    )
    with Interrupts().watching() as interrupts:
        result = sweeping.run_sweep(spec, Listener(), interrupts)
    assert [folder.name for folder, _ in result.runs] == ["first"]
    (failure,) = result.failures
    assert "GPU 0 still holds 60.0 GiB (processes: 4711)" in failure
    assert not result.valid


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "3"], "--device 3: no such GPU; this host has 0 (NVIDIA H200)"),
        (["--device", "MIG-9"], "--device MIG-9: no such MIG slice"),
        (["--tensor-parallel", "2"], "--tensor-parallel 2: this host has 1 GPU(s)"),
        (["--mig", "all"], "this host has no MIG slice"),
        (["--engine-arg", "vllm=--x"], "vllm is not among the engines"),
        (["--engine-arg", "--api-key=secret"], "takes no key"),
        (["--interleave"], "--interleave needs several engines"),
        (["--input-tokens", "600"], "prompt and answer take up to 608 tokens"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_started(
    words: list[str], message: str, trtllm_installs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    cards = gpus(tmp_path, H200)
    done = loadgen(*load(out, trtllm_installs["1.2.1"], "--engine", "trtllm"), *words, cards=cards)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert not out.exists()


def test_a_model_too_large_for_the_gpu_is_refused(trtllm_installs: dict[str, Path], tmp_path: Path) -> None:
    words = load(tmp_path / "run", trtllm_installs["1.2.1"], "--engine", "trtllm")
    words[words.index("shape:tiny")] = "shape:llama-3.1-8b"
    done = loadgen(*words, cards=gpus(tmp_path, {**H200, "memory": 10 * GIB}))
    assert done.returncode == 2
    assert "the weights take 15.0 GiB at bfloat16" in done.stderr
    assert "--tensor-parallel 2 or more" in done.stderr


def test_a_launched_embedded_engine_needs_no_model() -> None:
    done = loadgen("sweep", "--engine", "sim", "--model", "x", "--concurrency", "1")
    assert done.returncode == 2
    assert "for the embedded engine use --sim-model" in done.stderr


def test_without_any_measurement_the_first_failure_is_raised(
    trtllm_installs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TRTLLM_FAIL_STEP", "serve")
    engine = EngineSpec(kind="trtllm", name="trtllm", model="shape:tiny", python=str(trtllm_installs["1.0.0"]))
    spec = SweepSpec(
        command=["loadgen"],
        levels=[1],
        requests=12,
        engines=[engine],
        source=SourceSpec(seed=0, input_tokens=TokenRange(8, 8), output_tokens=TokenRange(4, 4)),
        output=tmp_path / "run",
    )
    with Interrupts().watching() as interrupts, pytest.raises(EngineError, match="ended while it was starting"):
        sweeping.run_sweep(spec, Quiet(), interrupts)


class Quiet:
    """Listens to nothing."""

    def said(self, text: str) -> None: ...
    def started(self, *_: object) -> None: ...
    def level_started(self, *_: object) -> None: ...
    def sampled(self, *_: object) -> None: ...
    def level_ended(self, *_: object) -> None: ...


def test_the_seed_alone_decides_the_prompts_of_a_level() -> None:
    spec = SweepSpec(
        command=[],
        levels=[1, 2],
        rounds=3,
        requests=1,
        engines=[EngineSpec(kind="sim", name="sim", sim=SimConfig())],
        source=SourceSpec(seed=0, input_tokens=TokenRange(8, 8), output_tokens=TokenRange(4, 4)),
        output=Path("unused"),
    )
    levels = spec.level_specs()
    assert [(level.index, level.round) for level in levels] == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)]
    assert [sorted(level.concurrency for level in levels[k : k + 2]) for k in (0, 2, 4)] == [[1, 2]] * 3
    assert spec.level_specs() == levels, "the same order each time"
    assert choose_workload(spec).stride == PROMPTS_PER_LEVEL
