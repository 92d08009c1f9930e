"""The CUDA kernels as PyTorch operators, ``torch.ops.loadgen.*``: built for the GPU at hand, once, and kept.

A library's folder in the cache is named by a hash of everything that it is made of: the sources,
torch, its CUDA, nvcc, the architecture, the Python. It holds the library, ninja's files and, where
the build failed, ``build.log``.

Sources: torch.utils.cpp_extension and torch.library, PyTorch 2.5 to 2.13.
"""

from __future__ import annotations

import fcntl
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from loadgen.engines.installs import version_tuple
from loadgen.environment import cache_folder
from loadgen.errors import UsageError
from loadgen.microbench.build import (
    PIP_COMMAND,
    Architecture,
    Toolkit,
    check_architecture,
    find_toolkit,
    first_errors,
    gencode,
    missing_piece,
)
from loadgen.microbench.kernel_file import kernels_folder

NAME = "loadgen_kernels"
SOURCES = ("add_rms_norm.cu", "silu_and_mul.cu", "kv_cache_write.cu", "vector_add.cu", "torch_binding.cpp")
HEADERS = ("kernels.h", "elements.cuh")
HOST_FLAGS = ["-O2"]
CUDA_FLAGS = ["-O3", "-lineinfo"]
# Rungs of vector_add, in the order of VectorAddRung in kernels.h.
RUNGS = ("one_thread", "one_block", "one_element", "grid_stride", "streaming", "float4")


def operators() -> Any:
    """``torch.ops.loadgen``, with ``add_rms_norm``, ``silu_and_mul``, ``kv_cache_write``, ``vector_add`` and ``add``.

    The first call of a process loads the library, and builds it if there is none yet (about a
    minute); a failure is remembered and not tried again.

    Raises:
        ImportError: it cannot be had here: no GPU, a torch for the CPU, no nvcc, or one that does not fit.
        UsageError: the sources do not compile.
    """
    found, failure = _attempt()
    if failure is not None:
        raise type(failure)(str(failure))
    return found


@cache
def _attempt() -> tuple[Any, ImportError | UsageError | None]:
    try:
        return _load(), None
    except (ImportError, UsageError) as error:
        return None, error


def _load() -> Any:
    import torch

    if torch.version.cuda is None:
        raise ImportError(f"torch {torch.__version__} is built for the CPU; the CUDA kernels need one built for CUDA")
    if not torch.cuda.is_available():
        raise ImportError("torch finds no GPU that it can use; the CUDA kernels need one")
    # The plain architecture: these kernels use nothing that one generation alone has (sm_90a would be for wgmma and
    # the like), and no PTX, for the library is made for the very GPU that it runs on.
    architecture = Architecture(torch.cuda.get_device_capability())
    sources = kernels_folder()
    key = _key(sources, architecture, torch.__version__, torch.version.cuda, sys.version, _cpp_runtime())
    folder = cache_folder() / "extension" / f"{architecture.name}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    library, done = folder / f"{NAME}.so", folder / "done"
    with _locked(folder / "building"):
        if done.exists() and library.exists():
            torch.ops.load_library(str(library))
        else:
            _build(sources, architecture, folder)
            done.touch()
    _register_fakes()
    return torch.ops.loadgen


def _key(sources: Path, *others: object) -> str:
    """A hash of the sources and of what else a library depends on."""
    digest = hashlib.sha256(repr((others, SOURCES, HOST_FLAGS, CUDA_FLAGS)).encode())
    for name in (*SOURCES, *HEADERS):
        digest.update((sources / name).read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time; a lock of a process that died is free."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fitting_toolkit(architecture: Architecture, torch_cuda: str) -> Toolkit:
    """An nvcc that compiles for the GPU and goes with torch.

    Raises:
        ImportError: there is none.
    """
    try:
        toolkit = find_toolkit()
        check_architecture(architecture, toolkit.version, toolkit.listed)
    except UsageError as error:
        raise ImportError(str(error)) from None
    if version_tuple(toolkit.version)[0] != version_tuple(torch_cuda)[0]:
        raise ImportError(
            f"nvcc {toolkit.version} ({toolkit.nvcc}) and torch, built for CUDA {torch_cuda}, differ in the major "
            f"version; name a toolkit {version_tuple(torch_cuda)[0]}.x with CUDA_HOME"
            + (f", or: {PIP_COMMAND}" if version_tuple(torch_cuda)[0] == 13 else "")
        )
    return toolkit


def _build(sources: Path, architecture: Architecture, folder: Path) -> None:
    """Compiles and loads the library.

    Raises:
        ImportError: a tool is missing.
        UsageError: the compilation failed.
    """
    import torch
    from torch.utils import cpp_extension

    toolkit = _fitting_toolkit(architecture, torch.version.cuda)
    if not cpp_extension.is_ninja_available():
        raise ImportError("building the CUDA kernels needs ninja: pip install ninja")
    # torch's own lock is a file that outlives a build that was killed, and the next one would wait for ever. Ours is
    # held here, so that nobody is building.
    (folder / "lock").unlink(missing_ok=True)
    log = folder / "build.log"
    log.unlink(missing_ok=True)
    home, cpp_extension.CUDA_HOME = cpp_extension.CUDA_HOME, str(toolkit.home)
    try:
        # The architecture as a flag rather than in TORCH_CUDA_ARCH_LIST: it wins over that variable, which may be
        # set for something else, and leaves the process's environment alone.
        cpp_extension.load(
            NAME,
            [str(sources / name) for name in SOURCES],
            extra_cflags=HOST_FLAGS,
            extra_cuda_cflags=[*CUDA_FLAGS, *gencode([architecture])],
            extra_ldflags=[*_cuda_runtime(toolkit, folder), *_cpp_runtime()],
            extra_include_paths=[str(sources)],
            build_directory=str(folder),
            with_cuda=True,
            is_python_module=False,
        )
    except (RuntimeError, OSError) as error:
        said = str(error)
        log.write_text(said)
        errors = first_errors(said) or said.strip().splitlines()[-1:]
        piece = missing_piece(said)
        mend = [f"pip install {piece}, of the same version as nvcc"] if piece else []
        raise UsageError(
            "\n  ".join([f"the CUDA kernels do not compile; all of it is in {log}", *errors, *mend])
        ) from error
    finally:
        cpp_extension.CUDA_HOME = home


def _cpp_runtime() -> list[str]:
    """Linker flags for the C++ runtime that this process, and torch in it, has loaded: its path, or nothing.

    A compiler that finds no shared one, or is told to take none, puts its static one into the library. A text
    stream is then made by one copy and written to by the other, which numbers the parts of a locale differently:
    an error message with a number in it is cut off there, or ends the process (pytorch/pytorch#109923).
    """
    mapped = (line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines())
    return [path for path in mapped if "/libstdc++.so" in path][:1]


def _cuda_runtime(toolkit: Toolkit, folder: Path) -> list[str]:
    """Linker flags for a toolkit whose runtime library has its version in its name alone, as pip's packages have."""
    folders = [toolkit.home / name for name in ("lib64", "lib")]
    if any((place / "libcudart.so").exists() for place in folders):
        return []
    named = next((path for place in folders for path in sorted(place.glob("libcudart.so.*"))), None)
    if named is None:
        return []
    link = folder / "libcudart.so"
    link.unlink(missing_ok=True)
    link.symlink_to(named)
    return [f"-L{folder}"]


def _register_fakes() -> None:
    """What torch.compile runs instead, on tensors without data: the shapes of results; in-place operators have none."""
    import torch

    def nothing(*_: Any) -> None:
        return None

    for name in ("add_rms_norm", "silu_and_mul", "kv_cache_write", "vector_add"):
        torch.library.register_fake(f"loadgen::{name}", nothing)

    def add(a: Any, b: Any) -> Any:
        return torch.empty_like(a)

    torch.library.register_fake("loadgen::add", add)
