"""Building CUDA files with nvcc alone: fat binaries for several architectures, with what each holds.

A real architecture (``sm_90``) gives machine code, SASS, for its GPUs and later ones of the same
major number; a virtual one (``compute_90``) gives PTX, which the driver compiles for that GPU or any
later one when the program starts. A suffix (``sm_90a``, ``sm_100f``) allows instructions of that
generation alone, and its code, PTX too, runs nowhere else.

Sources: CUDA C++ Programming Guide, "Compute Capabilities"; nvcc's documentation, "GPU Compilation".
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import msgspec

from loadgen.engines.doctor import TOOL_TIMEOUT_S, TOOLS
from loadgen.engines.installs import ask, version_tuple
from loadgen.errors import UsageError
from loadgen.gpus import ARCHITECTURES
from loadgen.microbench.kernel_file import kernels_folder

DEFAULT_ARCHITECTURES = "sm_80,sm_90,sm_100"
# CUDA toolkits that were the first to know a suffix, where that is later than the architecture itself.
SUFFIX_SINCE: dict[tuple[int, int], dict[str, str]] = {
    (9, 0): {"a": "12.0"},
    (10, 0): {"a": "12.8", "f": "12.9"},
    (12, 0): {"a": "12.8", "f": "12.9"},
}
SUFFIXES_FROM = {"": (0, 0), "a": (9, 0), "f": (10, 0)}
LAST_BEFORE_13 = "12.9"  # of the toolkits that still compile for what CUDA 13 dropped
# What brings nvcc into a Python environment. All are named with their versions: nvidia-cuda-nvcc asks for the newest
# of the others, which do not fit it, and not for CCCL, whose headers cuda_fp16.h includes.
PIP_COMMAND = (
    "pip install nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 "
    "nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85"
)
# A piece of nvcc that a pip install may lack, as its errors name it, and the package that has it.
PIECES = {
    "nv/target": "nvidia-cuda-cccl",
    "crt/host_config.h": "nvidia-cuda-crt",
    "cuda_runtime.h": "nvidia-cuda-runtime",
    "cicc: not found": "nvidia-nvvm",
}
FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-Xptxas", "-v")
SHOWN_ERRORS = 5

# nvcc writes file(line), the host compiler file:line:column.
_ERROR = re.compile(r"(\S+?)(?:\((\d+)\)|:(\d+)(?::\d+)?): (?:catastrophic |fatal )?error(?: #[\w-]+)?: (.+)")
_OTHER_ERROR = re.compile(r"\bfatal\b|\berror\b(?!s? detected)|undefined reference|cannot find|not found")
_MAIN = re.compile(r"^\s*int\s+main\s*\(", re.MULTILINE)


class Architecture(NamedTuple):
    """A compute capability to compile for: ``sm_90a`` is ``((9, 0), "a", False)``."""

    capability: tuple[int, int]
    suffix: str = ""
    virtual: bool = False

    @property
    def digits(self) -> str:
        return f"{self.capability[0]}{self.capability[1]}{self.suffix}"

    @property
    def name(self) -> str:
        return f"{'compute' if self.virtual else 'sm'}_{self.digits}"


class Toolkit(NamedTuple):
    """An nvcc that runs.

    Attributes:
        nvcc: its path.
        version: such as ``"13.0"``.
        home: the folder with its ``include``.
        listed: the capabilities that it says it compiles for; None for one that is too old to say.
    """

    nvcc: Path
    version: str
    home: Path
    listed: frozenset[tuple[int, int]] | None


class KernelUse(msgspec.Struct, kw_only=True):
    """What ptxas says of one kernel on one architecture; registers a thread, bytes a thread, shared bytes a block."""

    kernel: str
    architecture: str
    registers: int
    spill_stores_bytes: int
    spill_loads_bytes: int
    stack_bytes: int
    shared_bytes: int


class BuiltFile(msgspec.Struct, kw_only=True):
    """One object, and the program that it was linked to if its source has a ``main``."""

    source: str
    object: str
    size_bytes: int
    seconds: float
    sass: list[str]
    ptx: list[str]
    kernels: list[KernelUse]
    program: str | None = None


class BuildReport(msgspec.Struct, kw_only=True):
    """What ``kernels build`` did."""

    nvcc: str
    version: str
    files: list[BuiltFile]


def parse_architectures(text: str) -> list[Architecture]:
    """``"sm_80,sm_90a,compute_90"`` in the given order, each once.

    Raises:
        UsageError: something is no name of an architecture.
    """
    found: list[Architecture] = []
    for word in filter(None, re.split(r"[,\s]+", text.strip())):
        match = re.fullmatch(r"(sm|compute)_(\d{1,2})(\d)([af]?)", word)
        if match is None:
            raise UsageError(
                f"--arch {word}: write sm_90 or sm_90a for machine code, compute_90 for PTX, or several with commas"
            )
        capability = (int(match[2]), int(match[3]))
        if capability < SUFFIXES_FROM[match[4]]:
            raise UsageError(f"--arch {word}: sm_{match[2]}{match[3]} has no variant with the suffix {match[4]}")
        found.append(Architecture(capability, match[4], match[1] == "compute"))
    if not found:
        raise UsageError("--arch: name at least one architecture, such as sm_90")
    return list(dict.fromkeys(found))


def with_ptx(architectures: Sequence[Architecture]) -> list[Architecture]:
    """The same, and, where no PTX is asked for, that of the newest one, so that later GPUs can run it too.

    It is of the plain architecture: PTX of ``compute_90a`` would run on no later GPU.
    """
    if any(architecture.virtual for architecture in architectures):
        return list(architectures)
    newest = max(architecture.capability for architecture in architectures)
    return [*architectures, Architecture(newest, virtual=True)]


def gencode(architectures: Iterable[Architecture]) -> list[str]:
    """nvcc's flags for one fat binary of all of them."""
    return [f"-gencode=arch=compute_{a.digits},code={a.name}" for a in architectures]


def check_architecture(
    architecture: Architecture, version: str, listed: frozenset[tuple[int, int]] | None, where: str = "nvcc"
) -> None:
    """Whether a toolkit compiles for an architecture.

    Args:
        version: the toolkit's.
        listed: the capabilities that its ``--list-gpu-arch`` names; None where it has no such option.
        where: what the message calls the nvcc.

    Raises:
        UsageError: it does not; the message names both versions and what to install.
    """
    capability, suffix = architecture.capability, architecture.suffix
    generation, first = ARCHITECTURES.get(capability, ("", ""))
    if suffix and capability in SUFFIX_SINCE:
        first = SUFFIX_SINCE[capability].get(suffix, first)
    elif suffix == "f":
        first = "12.9"
    name = f"{architecture.name}{f' ({generation})' if generation else ''}"
    if not first and (listed is None or capability not in listed):
        known = ", ".join(f"sm_{major}{minor}" for major, minor in sorted(listed or ARCHITECTURES))
        raise UsageError(f"--arch {architecture.name}: {where} {version} knows no such architecture; it knows {known}")
    if first and version_tuple(version) < version_tuple(first):
        raise UsageError(
            f"{where} {version} is too old for {name}: it needs CUDA {first} or later. Install a newer toolkit and "
            f"name it with CUDA_HOME, or: {PIP_COMMAND}"
        )
    if listed is not None and capability not in listed:
        raise UsageError(
            f"{where} {version} no longer compiles for {name}: CUDA {LAST_BEFORE_13} is the last toolkit that does. "
            "Install that one beside it and name it with CUDA_HOME"
        )


def parse_list(text: str) -> frozenset[tuple[int, int]] | None:
    """The capabilities of ``nvcc --list-gpu-arch``; None if there are none."""
    found = re.findall(r"^compute_(\d{1,2})(\d)\b", text, re.MULTILINE)
    return frozenset((int(major), int(minor)) for major, minor in found) or None


_PTXAS_KERNEL = re.compile(r"Compiling entry function '([^']+)' for '([^']+)'")
_PTXAS_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_PTXAS_USED = re.compile(r"Used (\d+) registers")
_PTXAS_SHARED = re.compile(r"(\d+)(?:\+\d+)? bytes smem")


def parse_ptxas(text: str) -> list[KernelUse]:
    """Every kernel of ``-Xptxas -v``, names as the linker sees them."""
    found: list[KernelUse] = []
    stack = (0, 0, 0)
    name: tuple[str, str] | None = None
    for line in text.splitlines():
        if match := _PTXAS_KERNEL.search(line):
            name, stack = (match[1], match[2]), (0, 0, 0)
        elif match := _PTXAS_STACK.search(line):
            stack = (int(match[1]), int(match[2]), int(match[3]))
        elif name is not None and (match := _PTXAS_USED.search(line)):
            shared = _PTXAS_SHARED.search(line)
            found.append(
                KernelUse(
                    kernel=name[0],
                    architecture=name[1],
                    registers=int(match[1]),
                    stack_bytes=stack[0],
                    spill_stores_bytes=stack[1],
                    spill_loads_bytes=stack[2],
                    shared_bytes=int(shared[1]) if shared else 0,
                )
            )
            name = None  # lines about functions that are no kernels may follow
    return found


def short_name(demangled: str) -> str:
    """``void loadgen::(anonymous namespace)::add<float, (int)4>(float*)`` as ``add<float, 4>``."""
    name = re.sub(r"\((?:anonymous namespace|[a-z ]+)\)(?:::)?", "", demangled)  # also casts of template arguments
    depth = 0
    for at, letter in enumerate(name):  # the parameters start at the first bracket outside <>
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            name = name[:at]
            break
    head, bracket, arguments = name.partition("<")
    return head.split("::")[-1].split(" ")[-1] + bracket + re.sub(r"\b\w+::", "", arguments)


def _demangle(kernels: list[KernelUse]) -> None:
    """Readable names, where the host compiler's c++filt is there."""
    filt = shutil.which("c++filt")
    if filt is None or not kernels:
        return
    done = subprocess.run([filt], input="\n".join(k.kernel for k in kernels), capture_output=True, text=True)
    names = done.stdout.splitlines()
    if done.returncode == 0 and len(names) == len(kernels):
        for kernel, name in zip(kernels, names, strict=True):
            kernel.kernel = short_name(name)


def first_errors(text: str, limit: int = SHOWN_ERRORS) -> list[str]:
    """The first errors of nvcc, of the host compiler or of the linker, as ``file:line: what``."""
    found = []
    for line in text.splitlines():
        if match := _ERROR.match(line):
            found.append(f"{match[1]}:{match[2] or match[3]}: {match[4]}")
        elif _OTHER_ERROR.search(line):
            found.append(line.strip())
    return list(dict.fromkeys(found))[:limit]


def missing_piece(text: str) -> str | None:
    """The pip package that a failed compilation lacks, or None."""
    return next((package for piece, package in PIECES.items() if piece in text), None)


def _candidates() -> list[Path]:
    """Where nvcc may be: CUDA_HOME, PATH, the usual folder, pip's packages in this environment."""
    found = [Path(os.environ[name]) / "bin" / "nvcc" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if on_path := shutil.which("nvcc"):
        found.append(Path(on_path))
    found.append(Path("/usr/local/cuda/bin/nvcc"))
    for entry in dict.fromkeys(sys.path):
        nvidia = Path(entry or ".") / "nvidia"
        found += sorted(nvidia.glob("cu[0-9]*/bin/nvcc"), reverse=True)
        found.append(nvidia / "cuda_nvcc" / "bin" / "nvcc")
    return found


def find_toolkit() -> Toolkit:
    """The first nvcc that there is.

    Raises:
        UsageError: there is none, or it does not run.
    """
    nvcc = next((path for path in _candidates() if path.is_file() and os.access(path, os.X_OK)), None)
    if nvcc is None:
        raise UsageError(
            "no nvcc: not in CUDA_HOME, on PATH, in /usr/local/cuda, nor among this environment's packages. Install "
            f"the CUDA toolkit, or (with a C++ compiler on the machine): {PIP_COMMAND}"
        )
    try:
        said = ask([str(nvcc), "--version"], TOOL_TIMEOUT_S)
        version = re.search(TOOLS["nvcc"], said.stdout + said.stderr)
        if said.returncode != 0 or version is None:
            words = (said.stdout + said.stderr).strip().splitlines() or [f"exit code {said.returncode}"]
            raise UsageError(f"{nvcc} does not say its version: {words[-1]}")
        listed = parse_list(ask([str(nvcc), "--list-gpu-arch"], TOOL_TIMEOUT_S).stdout)
        # Asked rather than guessed from the path, which may be a link or a script.
        steps = ask([str(nvcc), "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull], TOOL_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(f"{nvcc}: cannot be run: {error}") from None
    here = re.search(r"^#\$ _HERE_=(.+)$", steps.stderr, re.MULTILINE)
    folder = Path(here[1]) if here else nvcc.resolve().parent
    return Toolkit(nvcc, version[1], folder.resolve().parent, listed)


def find_sources(wanted: Iterable[str]) -> list[Path]:
    """CUDA files by path, by folder, or by the name of one that comes with loadgen; all of those for none.

    Raises:
        UsageError: there is no such file.
    """
    shipped = {path.stem: path for path in sorted(kernels_folder().glob("*.cu"))}
    names = list(wanted)
    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = sorted(path.glob("*.cu"))
            if not inside:
                raise UsageError(f"{name}: no CUDA file (*.cu) in this folder")
            found += inside
        elif path.is_file():
            if path.suffix != ".cu":
                raise UsageError(f"{name}: a CUDA file ends in .cu; Triton kernels need no building")
            found.append(path)
        elif name in shipped:
            found.append(shipped[name])
        else:
            raise UsageError(f"{name}: no such file, and no CUDA kernel of that name; there are {', '.join(shipped)}")
    sources = list(dict.fromkeys(found)) if names else list(shipped.values())
    stems = [path.stem for path in sources]
    if twice := next((stem for stem in stems if stems.count(stem) > 1), None):
        raise UsageError(f"two files are named {twice}.cu: build them into folders of their own")
    return sources


def build(sources: Sequence[Path], architectures: Sequence[Architecture], output: Path) -> BuildReport:
    """One object a file, and a program of each file that has a ``main``.

    Args:
        sources: from :func:`find_sources`.
        architectures: from :func:`parse_architectures`; PTX of the newest is added if none is among them.
        output: folder for the objects, the programs, and ``<name>.log`` of each compilation.

    Raises:
        UsageError: no nvcc, one that does not know an architecture, or a file that does not compile.
    """
    toolkit = find_toolkit()
    wanted = with_ptx(architectures)
    for architecture in wanted:
        check_architecture(architecture, toolkit.version, toolkit.listed)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output}: {error.strerror}") from None
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        files = list(pool.map(lambda source: _build_file(toolkit, source, wanted, output), sources))
    return BuildReport(nvcc=str(toolkit.nvcc), version=toolkit.version, files=files)


def _build_file(toolkit: Toolkit, source: Path, architectures: Sequence[Architecture], output: Path) -> BuiltFile:
    target, log = output / f"{source.stem}.o", output / f"{source.stem}.log"
    log.unlink(missing_ok=True)
    start = time.monotonic()
    said = _nvcc(toolkit, [*FLAGS, *gencode(architectures), "-c", str(source), "-o", str(target)], source, log)
    program = output / source.stem if _MAIN.search(source.read_text(errors="replace")) else None
    if program is not None:
        # nvcc of pip's packages looks for the runtime in lib64, and has it in lib.
        libraries = [f"-L{folder}" for name in ("lib64", "lib") if (folder := toolkit.home / name).is_dir()]
        _nvcc(toolkit, [*gencode(architectures), str(target), "-o", str(program), *libraries], source, log)
    seconds = time.monotonic() - start
    kernels = parse_ptxas(said)
    _demangle(kernels)
    return BuiltFile(
        source=str(source),
        object=str(target),
        size_bytes=target.stat().st_size,
        seconds=seconds,
        sass=[a.name for a in architectures if not a.virtual],
        ptx=[a.name for a in architectures if a.virtual],
        kernels=kernels,
        program=None if program is None else str(program),
    )


def _nvcc(toolkit: Toolkit, arguments: list[str], source: Path, log: Path) -> str:
    """Runs nvcc; what it says goes to the log, and is given back."""
    done = subprocess.run(
        [str(toolkit.nvcc), *arguments], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL
    )
    said = done.stdout + done.stderr
    with log.open("a") as file:
        file.write(said)
    if done.returncode != 0:
        errors = first_errors(said) or [*said.strip().splitlines()[-1:], f"exit code {done.returncode}"]
        piece = missing_piece(said)
        mend = [f"pip install {piece}, of the same version as nvcc"] if piece else []
        raise UsageError("\n  ".join([f"{source} does not compile; all of it is in {log}", *errors, *mend]))
    return said


def render(report: BuildReport) -> str:
    """For people: a line or two a file, then its kernels with their registers and spills, an architecture a column."""
    lines = [f"nvcc {report.version} ({report.nvcc})"]
    for file in report.files:
        holds = ", ".join([*(f"{name}" for name in file.sass), *(f"PTX {name}" for name in file.ptx)])
        lines += ["", f"{file.object}  {file.size_bytes / 1024:,.0f} KiB, {file.seconds:.1f} s: {holds}"]
        if file.program:
            lines.append(f"{file.program}  program")
        lines += _kernel_table(file.kernels)
    return "\n".join(lines)


def _kernel_table(kernels: list[KernelUse]) -> list[str]:
    if not kernels:
        return []
    architectures = list(dict.fromkeys(k.architecture for k in kernels))
    names = list(dict.fromkeys(k.kernel for k in kernels))
    cells = {(k.kernel, k.architecture): k for k in kernels}
    width = max(len("registers a thread"), *(len(name) for name in names))
    lines = [f"  {'registers a thread':<{width}}" + "".join(f"{name:>10}" for name in architectures)]
    for name in sorted(names):
        row = [cells.get((name, architecture)) for architecture in architectures]
        lines.append(f"  {name:<{width}}" + "".join(f"{k.registers if k else '-':>10}" for k in row))
        for use in row:
            if use is not None and use.spill_stores_bytes + use.spill_loads_bytes:
                lines.append(
                    f"    spills on {use.architecture}: {use.spill_stores_bytes} bytes of stores, "
                    f"{use.spill_loads_bytes} of loads a thread"
                )
    return lines
