"""The CUDA files compile for every architecture that they are meant for, without spills; what cannot is refused."""

from __future__ import annotations

import re
import stat
import subprocess
from pathlib import Path

import pytest

from loadgen.errors import UsageError
from loadgen.microbench.build import build, find_sources, find_toolkit, parse_architectures, render

pytestmark = pytest.mark.kernels

try:
    find_toolkit()
except UsageError as error:
    pytest.skip(str(error), allow_module_level=True)


def cuobjdump() -> str | None:
    """triton brings one along; the toolkit of pip's packages has none."""
    triton = pytest.importorskip("triton")
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return str(path) if path.exists() else None


def test_every_file_compiles_without_spills(tmp_path: Path) -> None:
    sources = find_sources([])
    report = build(sources, parse_architectures("sm_80,sm_90a,sm_100"), tmp_path)
    assert [Path(file.source) for file in report.files] == sources
    for file in report.files:
        assert file.sass == ["sm_80", "sm_90a", "sm_100"]
        assert file.ptx == ["compute_100"]
        assert {kernel.architecture for kernel in file.kernels} == set(file.sass)
        spilled = [k for k in file.kernels if k.spill_stores_bytes or k.spill_loads_bytes or k.stack_bytes]
        assert not spilled, render(report)
        assert all("loadgen" not in kernel.kernel for kernel in file.kernels), "names are to be short"
    programs = [Path(file.program).name for file in report.files if file.program]
    assert programs == ["vector_add_unified"]


def test_an_object_holds_what_the_report_says(tmp_path: Path) -> None:
    tool = cuobjdump()
    if tool is None:
        pytest.skip("this triton has no cuobjdump")
    (tmp_path / "k.cu").write_text("__global__ void k(float* a) { a[threadIdx.x] = 1; }\n")
    (file,) = build([tmp_path / "k.cu"], parse_architectures("sm_80,sm_90a"), tmp_path).files
    # Heads of all parts, and the PTX in full.
    holds = subprocess.run([tool, "-ptx", file.object], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^arch = (.+)$", holds, re.MULTILINE) == ["sm_80", "sm_90a", "sm_90"]
    assert re.findall(r"^\.target (.+)$", holds, re.MULTILINE) == ["sm_90"]


def test_an_error_shows_file_and_line_and_the_log(tmp_path: Path) -> None:
    broken = tmp_path / "broken.cu"
    broken.write_text("__global__ void k(float* a) {\n  a[0] = nowhere;\n}\n")
    with pytest.raises(UsageError) as refused:
        build([broken], parse_architectures("sm_90"), tmp_path / "out")
    log = tmp_path / "out" / "broken.log"
    assert f"{broken}:2: " in str(refused.value) and "nowhere" in str(refused.value)
    assert str(log) in str(refused.value) and "nowhere" in log.read_text()


def test_a_program_that_does_not_link_is_an_error(tmp_path: Path) -> None:
    source = tmp_path / "p.cu"
    source.write_text('extern "C" void lost();\nint main() { lost(); }\n')
    with pytest.raises(UsageError, match="undefined reference to `lost'"):
        build([source], parse_architectures("sm_90"), tmp_path)


def test_an_nvcc_that_is_too_old_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = tmp_path / "old" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text('#!/bin/sh\necho "Cuda compilation tools, release 11.0, V11.0.221"\n')
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "old"))
    with pytest.raises(UsageError, match=r"nvcc 11\.0 is too old for sm_90 \(Hopper\): it needs CUDA 11\.8"):
        build(find_sources(["vector_add"]), parse_architectures("sm_80,sm_90"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_architecture_that_the_toolkit_has_dropped_is_refused(tmp_path: Path) -> None:
    if find_toolkit().version < "13":
        pytest.skip("this toolkit still compiles for Volta")
    with pytest.raises(UsageError, match=r"no longer compiles for sm_70 \(Volta\): CUDA 12\.9"):
        build(find_sources(["vector_add"]), parse_architectures("sm_70"), tmp_path)
