"""Architectures, nvcc's flags, and what ptxas says: no nvcc needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadgen.errors import UsageError
from loadgen.gpus import ARCHITECTURES
from loadgen.microbench.build import (
    DEFAULT_ARCHITECTURES,
    Architecture,
    BuildReport,
    BuiltFile,
    KernelUse,
    check_architecture,
    find_sources,
    find_toolkit,
    first_errors,
    gencode,
    missing_piece,
    parse_architectures,
    parse_list,
    parse_ptxas,
    render,
    short_name,
    with_ptx,
)

CUDA_13 = parse_list("\n".join(f"compute_{digits}" for digits in (75, 80, 86, 87, 89, 90, 100, 110)))

PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z3addPKfS0_Pfl' for 'sm_80'
ptxas info    : Function properties for _Z3addPKfS0_Pfl
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers, 376 bytes cmem[0]
ptxas info    : Compile time = 3.198 ms
ptxas info    : Function properties for a_function_that_is_no_kernel
    8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
ptxas info    : Compiling entry function '_Z4normPf' for 'sm_90a'
ptxas info    : Function properties for _Z4normPf
    72 bytes stack frame, 92 bytes spill stores, 196 bytes spill loads
ptxas info    : Used 64 registers, used 1 barriers, 72 bytes cumulative stack size, 128 bytes smem
"""


def use(kernel: str, architecture: str, registers: int, spilled: int = 0) -> KernelUse:
    return KernelUse(
        kernel=kernel,
        architecture=architecture,
        registers=registers,
        spill_stores_bytes=spilled,
        spill_loads_bytes=2 * spilled,
        stack_bytes=spilled,
        shared_bytes=0,
    )


def test_architectures_are_real_or_virtual_with_or_without_a_suffix() -> None:
    assert parse_architectures("sm_80,sm_90a, compute_90 sm_100f,sm_80") == [
        Architecture((8, 0)),
        Architecture((9, 0), "a"),
        Architecture((9, 0), virtual=True),
        Architecture((10, 0), "f"),
    ]
    assert [a.name for a in parse_architectures("sm_121,compute_100a")] == ["sm_121", "compute_100a"]
    assert parse_architectures(DEFAULT_ARCHITECTURES)


@pytest.mark.parametrize("text", ["", " , ", "90", "sm90", "sm_9", "sm_90b", "compute_80a", "sm_90f", "sm_86a"])
def test_what_is_no_architecture_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--arch"):
        parse_architectures(text)


def test_ptx_of_the_newest_is_added_plain() -> None:
    assert [a.name for a in with_ptx(parse_architectures("sm_90a"))] == ["sm_90a", "compute_90"]
    assert [a.name for a in with_ptx(parse_architectures("sm_100,sm_80"))] == ["sm_100", "sm_80", "compute_100"]
    asked = parse_architectures("sm_100,compute_90")
    assert with_ptx(asked) == asked


def test_flags_name_the_virtual_and_the_real_architecture() -> None:
    assert gencode(parse_architectures("sm_80,sm_90a,compute_90")) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90,code=compute_90",
    ]


@pytest.mark.parametrize(
    ("name", "version", "listed", "words"),
    [
        ("sm_80", "13.0", CUDA_13, None),
        ("compute_90", "13.0", CUDA_13, None),
        ("sm_110", "13.0", CUDA_13, None),  # not in the table, but nvcc says that it knows it
        ("sm_70", "12.8", None, None),
        ("sm_70", "13.0", CUDA_13, ["no longer", "Volta", "12.9"]),
        ("sm_90", "11.0", None, ["11.0", "too old", "sm_90 (Hopper)", "11.8", "pip install nvidia-cuda-nvcc"]),
        ("sm_86", "11.0", None, ["11.1 or later"]),
        ("sm_90a", "11.8", None, ["12.0 or later"]),
        ("sm_100f", "12.8", None, ["12.9 or later"]),
        ("sm_103a", "12.8", None, ["12.9 or later"]),
        ("sm_95", "13.0", CUDA_13, ["knows no such architecture", "sm_75, sm_80"]),
        ("sm_95", "11.0", None, ["knows no such architecture", "sm_70"]),
    ],
)
def test_a_toolkit_is_asked_for_what_it_knows(
    name: str, version: str, listed: frozenset[tuple[int, int]] | None, words: list[str] | None
) -> None:
    (architecture,) = parse_architectures(name)
    if words is None:
        check_architecture(architecture, version, listed)
        return
    with pytest.raises(UsageError) as refused:
        check_architecture(architecture, version, listed)
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize("capability", list(ARCHITECTURES))
def test_check_accepts_the_first_toolkit_of_every_known_architecture(capability: tuple[int, int]) -> None:
    check_architecture(Architecture(capability), ARCHITECTURES[capability][1], None)


def test_an_nvcc_without_the_option_lists_nothing() -> None:
    assert parse_list("nvcc fatal   : Unknown option '--list-gpu-arch'") is None
    assert CUDA_13 is not None and {(8, 0), (10, 0), (11, 0)} <= CUDA_13


def test_registers_and_spills_are_read() -> None:
    add, norm = parse_ptxas(PTXAS)
    assert (add.kernel, add.architecture, add.registers, add.shared_bytes) == ("_Z3addPKfS0_Pfl", "sm_80", 12, 0)
    assert (add.stack_bytes, add.spill_stores_bytes, add.spill_loads_bytes) == (0, 0, 0)
    assert (norm.architecture, norm.registers, norm.shared_bytes) == ("sm_90a", 64, 128)
    assert (norm.stack_bytes, norm.spill_stores_bytes, norm.spill_loads_bytes) == (72, 92, 196)
    assert parse_ptxas("") == []


@pytest.mark.parametrize(
    ("demangled", "short"),
    [
        ("add(float const*, float*)", "add"),
        ("void loadgen::(anonymous namespace)::norm<__half, 4>(x::Vector<__half>*)", "norm<__half, 4>"),
        ("void a::f<(int)4, b::C<float>>(int)", "f<4, C<float>>"),
        ("void write<unsigned short>(unsigned short const*)", "write<unsigned short>"),
        ("_ZN3not9demangled", "_ZN3not9demangled"),
    ],
)
def test_kernels_have_short_names(demangled: str, short: str) -> None:
    assert short_name(demangled) == short


def test_errors_are_shown_with_file_and_line() -> None:
    said = """\
k.cu(12): warning #177-D: variable "i" was declared but never referenced
k.cu(3): error: identifier "foo" is undefined
    a[0] = foo;
           ^
dir/k.cu(4): error #20: expected a ";"
k.cu:1:10: fatal error: nv/target: No such file or directory
3 errors detected in the compilation of "k.cu".
sh: 1: cicc: not found
nvcc fatal   : Unsupported gpu architecture 'compute_999'
"""
    assert first_errors(said, 9) == [
        'k.cu:3: identifier "foo" is undefined',
        'dir/k.cu:4: expected a ";"',
        "k.cu:1: nv/target: No such file or directory",
        "sh: 1: cicc: not found",
        "nvcc fatal   : Unsupported gpu architecture 'compute_999'",
    ]
    assert len(first_errors(said, 2)) == 2


def test_a_missing_package_is_named() -> None:
    assert missing_piece("fatal error: nv/target: No such file or directory") == "nvidia-cuda-cccl"
    assert missing_piece("sh: 1: cicc: not found") == "nvidia-nvvm"
    assert missing_piece('k.cu(3): error: identifier "foo" is undefined') is None


def test_sources_are_found_by_name_file_and_folder(tmp_path: Path) -> None:
    assert {"vector_add", "vector_add_unified", "add_rms_norm"} <= {path.stem for path in find_sources([])}
    (tmp_path / "mine.cu").write_text("__global__ void k() {}")
    (tmp_path / "notes.txt").touch()
    assert find_sources([str(tmp_path)]) == find_sources([str(tmp_path / "mine.cu")]) == [tmp_path / "mine.cu"]
    assert [path.name for path in find_sources(["vector_add"])] == ["vector_add.cu"]
    for wrong in ("no_such_kernel", str(tmp_path / "notes.txt"), str(tmp_path / "empty")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=Path(wrong).name):
            find_sources([wrong])
    (tmp_path / "empty" / "mine.cu").touch()
    with pytest.raises(UsageError, match=r"two files are named mine\.cu"):
        find_sources([str(tmp_path), str(tmp_path / "empty")])


def test_without_nvcc_the_message_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loadgen.microbench.build._candidates", list)
    with pytest.raises(UsageError, match=r"pip install nvidia-cuda-nvcc==13\.0"):
        find_toolkit()


def test_the_report_shows_what_an_object_holds() -> None:
    kernels = [
        use("norm<float, 4>", "sm_80", 55),
        use("norm<float, 4>", "sm_90a", 64, spilled=92),
        use("add", "sm_80", 12),
    ]
    built = BuiltFile(
        source="k.cu",
        object="out/k.o",
        size_bytes=17_920,
        seconds=3.21,
        sass=["sm_80", "sm_90a"],
        ptx=["compute_90"],
        kernels=kernels,
        program="out/k",
    )
    empty = BuiltFile(
        source="e.cu", object="out/e.o", size_bytes=900, seconds=0.4, sass=[], ptx=["compute_90"], kernels=[]
    )
    report = BuildReport(nvcc="/cuda/bin/nvcc", version="13.0", files=[built, empty])
    assert (
        render(report)
        == """\
nvcc 13.0 (/cuda/bin/nvcc)

out/k.o  18 KiB, 3.2 s: sm_80, sm_90a, PTX compute_90
out/k  program
  registers a thread     sm_80    sm_90a
  add                       12         -
  norm<float, 4>            55        64
    spills on sm_90a: 92 bytes of stores, 184 of loads a thread

out/e.o  1 KiB, 0.4 s: PTX compute_90"""
    )
