"""Which GPUs an engine gets, whether its model fits there, and its command as a person would type it."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.engines.installs import Environment, Install
from loadgen.engines.models import Model
from loadgen.engines.shapes import SHAPES
from loadgen.engines.spec import (
    GIB,
    EngineCommand,
    EngineSpec,
    check_fit,
    chosen_gpus,
    device_env,
    install_facts,
    split_arguments,
    write_files,
)
from loadgen.errors import UsageError
from loadgen.gpus import Gpu, MigSlice

SLICES = [
    MigSlice(uuid="MIG-1", name="NVIDIA A100-SXM4-40GB MIG 1g.5gb", memory_bytes=5 * GIB),
    MigSlice(uuid="MIG-3", name="NVIDIA A100-SXM4-40GB MIG 3g.20gb", memory_bytes=20 * GIB),
]


def gpu(index: int, gib: float = 80, capability: tuple[int, int] = (9, 0), **fields: Any) -> Gpu:
    made: dict[str, Any] = {
        "index": index,
        "uuid": f"GPU-{index}",
        "name": "NVIDIA H100",
        "memory_bytes": int(gib * GIB),
        "memory_used_bytes": 0,
        "compute_capability": capability,
        "architecture": "",
    }
    return Gpu(**{**made, **fields})


def sliced(index: int, slices: list[MigSlice] = SLICES) -> Gpu:  # (never changed)
    return gpu(index, 40, (8, 0), name="NVIDIA A100-SXM4-40GB", mig_enabled=True, mig_slices=slices)


def spec(**fields: Any) -> EngineSpec:
    return EngineSpec(**{"kind": "vllm", "name": "vllm", "model": "m", **fields})


@pytest.fixture(autouse=True)
def nothing_set_by_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


FOUR = [gpu(0), gpu(1), gpu(2), gpu(3)]


# --- which GPUs


@pytest.mark.parametrize(
    ("device", "tensor_parallel", "indices"),
    [
        (None, 1, [0]),
        (None, 2, [0, 1]),
        (None, 4, [0, 1, 2, 3]),
        ("0", 1, [0]),
        ("3", 1, [3]),
        ("GPU-2", 1, [2]),
        ("1,3", 2, [1, 3]),
        ("3,1", 2, [3, 1]),
        (" 0 , GPU-3 ", 2, [0, 3]),
    ],
)
def test_gpus_are_chosen_by_index_and_uuid_and_by_their_number(
    device: str | None, tensor_parallel: int, indices: list[int]
) -> None:
    chosen, mig = chosen_gpus(spec(device=device, tensor_parallel=tensor_parallel), FOUR)
    assert ([found.index for found in chosen], mig) == (indices, None)


def test_a_slice_is_chosen_by_its_uuid() -> None:
    host = [gpu(0), sliced(1)]
    assert chosen_gpus(spec(device="MIG-3"), host) == ([host[1]], SLICES[1])


@pytest.mark.parametrize(
    ("device", "tensor_parallel", "words"),
    [
        ("4", 1, "--device 4: no such GPU; this host has 0 (NVIDIA H100), 1 (NVIDIA A100-SXM4-40GB)"),
        ("GPU-9", 1, "--device GPU-9: no such GPU"),
        ("0,7", 1, "--device 7: no such GPU"),
        ("", 1, "--device : no such GPU"),
        ("0,", 1, "--device : no such GPU"),
        ("MIG-9", 1, "--device MIG-9: no such MIG slice; this host has MIG-1, MIG-3"),
        ("MIG-1,MIG-3", 1, "--device MIG-1,MIG-3: a process sees one MIG slice only; name a single one"),
        ("0,MIG-3", 1, "a process sees one MIG slice only"),
        ("MIG-1", 2, "a process sees one MIG slice only"),
        ("1", 1, "--device 1: MIG is on for GPU 1; name one of its slices: MIG-1, MIG-3"),
        ("GPU-1", 1, "--device GPU-1: MIG is on for GPU 1"),
        ("0", 2, "--tensor-parallel 2 needs as many GPUs; --device names 1"),
        (None, 3, "--tensor-parallel 3: this host has 2 GPU(s): 0 (NVIDIA H100), 1 (NVIDIA A100-SXM4-40GB)"),
    ],
)
def test_a_device_that_cannot_be_had_is_refused_by_name(device: str | None, tensor_parallel: int, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        chosen_gpus(spec(device=device, tensor_parallel=tensor_parallel), [gpu(0), sliced(1)])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("device", "host", "words"),
    [
        ("0", [], "this host has none"),
        ("MIG-1", [gpu(0)], "no such MIG slice; this host has none"),
        ("0", [sliced(0, [])], "none exist; create them first"),
    ],
)
def test_a_host_that_has_none_says_so(device: str, host: list[Gpu], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        chosen_gpus(spec(device=device), host)


def test_a_host_without_gpus_gets_none_unless_one_is_named() -> None:
    assert chosen_gpus(spec(tensor_parallel=2), []) == ([], None)


def test_a_gpu_with_mig_on_is_not_taken_whole() -> None:
    """Its memory would be that of all slices, and so would the share that vLLM is given."""
    try:
        _, mig = chosen_gpus(spec(), [sliced(0)])
    except UsageError:
        return  # as with --device 0
    assert mig in SLICES


# --- the user's own CUDA_VISIBLE_DEVICES


@pytest.mark.parametrize(
    ("visible", "indices"),
    [("2", [2]), ("GPU-3", [3]), ("-1", []), ("GPU-8932", []), ("9", [])],
    ids=["index", "UUID", "none", "part of a UUID", "not there"],
)
def test_the_users_own_setting_is_read_and_never_refused(
    visible: str, indices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    chosen, mig = chosen_gpus(spec(), FOUR)
    assert ([found.index for found in chosen], mig) == (indices, None)


def test_a_slice_in_the_users_own_setting_is_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    host = [gpu(0), sliced(1)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    assert chosen_gpus(spec(), host) == ([host[1]], SLICES[0])


def test_device_goes_before_the_users_own_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    assert chosen_gpus(spec(device="1"), FOUR) == ([FOUR[1]], None)


@pytest.mark.parametrize(
    ("visible", "tensor_parallel", "indices"),
    [
        pytest.param("2,3", 2, [2, 3]),
        pytest.param("", 1, []),
    ],
)
def test_the_gpus_are_those_that_the_users_own_setting_leaves(
    visible: str, tensor_parallel: int, indices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    chosen, _ = chosen_gpus(spec(tensor_parallel=tensor_parallel), FOUR)
    assert [found.index for found in chosen] == indices


def test_cuda_is_told_the_devices_in_nvmls_numbering() -> None:
    assert device_env(spec(device="1,3")) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1,3"}
    assert device_env(spec()) == {}


# --- what fits there

# 8,030,261,248 parameters: 14.96 GiB in 16 bits.
LLAMA = Model(path="x", name="x", local=False, config={"model_type": "llama", **SHAPES["llama-3.1-8b"]})


def quantized(method: str) -> Model:
    return msgspec.structs.replace(LLAMA, config={**LLAMA.config, "quantization_config": {"quant_method": method}})


@pytest.mark.parametrize(
    ("fields", "model", "device"),
    [
        ({}, LLAMA, gpu(0, 16.7)),
        ({"tensor_parallel": 2}, LLAMA, gpu(0, 8.4)),
        ({"dtype": "fp8"}, LLAMA, gpu(0, 8.4, (8, 9))),
        ({}, quantized("fp8"), gpu(0, capability=(8, 9))),
        ({}, quantized("awq"), gpu(0, capability=(8, 0))),
        ({}, LLAMA, gpu(0, capability=(8, 0))),
        ({"dtype": "float16"}, LLAMA, gpu(0, capability=(7, 0))),
        ({"dtype": "auto"}, LLAMA, gpu(0, 16.7)),
        ({}, Model(path="a/b", name="a/b", local=False), gpu(0, 0.001, (7, 0))),
    ],
    ids=["just so", "shared", "halved", "fp8", "awq", "bf16", "fp16", "auto", "unknown"],
)
def test_check_fit_accepts_what_fits(fields: dict[str, Any], model: Model, device: Gpu) -> None:
    check_fit(spec(**fields), model, [device], None)


def test_check_fit_accepts_anything_without_a_gpu() -> None:
    check_fit(spec(dtype="fp8"), LLAMA, [], None)


@pytest.mark.parametrize(
    ("fields", "device", "more"),
    [
        # 90 % of 16.6 GiB is 14.94.
        ({}, gpu(0, 16.6), 2),
        ({}, gpu(0, 8.4), 2),
        ({}, gpu(0, 8.3), 3),
        ({"tensor_parallel": 2}, gpu(0, 8.3), 3),
        ({"dtype": "float32"}, gpu(0, 24), 2),
        ({"dtype": "float32"}, gpu(0, 8.3), 5),
    ],
)
def test_weights_that_are_too_large_say_how_many_gpus_would_do(fields: dict[str, Any], device: Gpu, more: int) -> None:
    with pytest.raises(UsageError, match=f"use --tensor-parallel {more} or more, or a smaller dtype$"):
        check_fit(spec(**fields), LLAMA, [device], None)
    check_fit(spec(**{**fields, "tensor_parallel": more}), LLAMA, [device], None)


def test_the_sizes_are_in_the_message() -> None:
    with pytest.raises(UsageError) as caught:
        check_fit(spec(model="shape:llama-3.1-8b", tensor_parallel=2), LLAMA, [gpu(3, 8)], None)
    sizes = "the weights take 15.0 GiB at bfloat16, 7.5 GiB a GPU, and GPU 3 (NVIDIA H100) has 8.0 GiB: "
    assert str(caught.value).startswith(f"shape:llama-3.1-8b: {sizes}")


def test_a_slice_has_its_own_memory() -> None:
    check_fit(spec(), LLAMA, [sliced(0)], SLICES[1])
    with pytest.raises(UsageError, match=r"and NVIDIA A100-SXM4-40GB MIG 1g\.5gb has 5\.0 GiB"):
        check_fit(spec(), LLAMA, [sliced(0)], SLICES[0])


def test_no_more_slices_are_advised_than_a_process_can_see() -> None:
    with pytest.raises(UsageError) as caught:
        check_fit(spec(), LLAMA, [sliced(0)], SLICES[0])
    assert "--tensor-parallel" not in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "model", "capability", "words"),
    [
        ("fp8", LLAMA, (8, 0), "fp8 weights need compute capability 8.9 or above, and GPU 0 (NVIDIA H100) is sm_80"),
        ("float8_e4m3fn", LLAMA, (8, 6), "is sm_86; use bfloat16, or an AWQ or GPTQ checkpoint"),
        (None, quantized("fp8"), (8, 0), "fp8 weights need compute capability 8.9"),
        ("bfloat16", LLAMA, (7, 0), "bfloat16 needs compute capability 8.0 or above, and GPU 0 (NVIDIA H100) is sm_70"),
        (None, LLAMA, (7, 5), "is sm_75; use --dtype float16"),
    ],
)
def test_a_number_format_without_units_is_refused(
    dtype: str | None, model: Model, capability: tuple[int, int], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_fit(spec(dtype=dtype), model, [gpu(0, capability=capability)], None)
    assert words in str(caught.value)


# --- the command


def command(**fields: Any) -> EngineCommand:
    return EngineCommand(**{"kind": "vllm", "version": "0.32.0", "argv": ["vllm"], "model": "m", **fields})


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"argv": ["vllm", "serve", "m"]}, "vllm serve m"),
        ({"argv": ["vllm", "--x", '{"a": "b c"}']}, """vllm --x '{"a": "b c"}'"""),
        ({"env": {"A": "1", "B": "two words"}}, "A=1 B='two words' vllm"),
        ({"env": {"A": None}}, "env -u A vllm"),
        ({"env": {"A": None, "B": "1", "C": None}}, "env -u A -u C B=1 vllm"),
        ({"argv": ["trtllm-serve", "/a folder/options.yaml"]}, "trtllm-serve '/a folder/options.yaml'"),
    ],
)
def test_the_command_as_a_line(fields: dict[str, Any], line: str) -> None:
    assert command(**fields).shell() == line


def test_the_line_starts_in_a_shell_what_the_command_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GONE", "still here")
    words = ["sh", "-c", 'printf "%s|" "$@" "$KEPT" "${GONE-unset}"', "sh", "a b", "$HOME", "it's", '{"k": "*"}']
    line = command(argv=words, env={"KEPT": "x; y", "GONE": None}).shell()
    done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == 'a b|$HOME|it\'s|{"k": "*"}|x; y|unset|'


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], []),
        (["--enforce-eager"], ["--enforce-eager"]),
        (["--max-num-seqs 8", "--x=1"], ["--max-num-seqs", "8", "--x=1"]),
        (["""--compilation-config '{"level": 3}'"""], ["--compilation-config", '{"level": 3}']),
        (['--a "b c"  d'], ["--a", "b c", "d"]),
    ],
)
def test_engine_arguments_are_split_as_a_shell_would(lines: list[str], words: list[str]) -> None:
    assert split_arguments(lines) == words
    assert shlex.split(" ".join(lines)) == words


def test_a_quote_that_is_not_closed_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^--engine-arg '--a \"b': No closing quotation$"):
        split_arguments(["--fine", '--a "b'])


def test_files_are_written_beside_the_engine(tmp_path: Path) -> None:
    write_files(command(files={"options.yaml": "{}\n", "more.json": "caf\u00e9"}), tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "options.yaml": "{}\n",
        "more.json": "caf\u00e9",
    }


def test_the_manifest_keeps_the_versions() -> None:
    environment = Environment(
        executable="/env/bin/python",
        python="3.12.3",
        prefix="/env",
        versions={"vllm": "0.32.0", "torch": "2.9.0+cu128"},
        torch_cuda="12.8",
    )
    install = Install(kind="vllm", package="vllm", version="0.32.0", environment=environment)
    assert install_facts(install) == {
        "package": "vllm 0.32.0",
        "python": "/env/bin/python",
        "python_version": "3.12.3",
        "versions": {"vllm": "0.32.0", "torch": "2.9.0+cu128"},
        "torch_cuda": "12.8",
    }
