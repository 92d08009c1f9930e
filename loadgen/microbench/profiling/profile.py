"""``kernels profile``: a kernel at one case under torch.profiler, nsys or ncu.

Imports no torch: :mod:`loadgen.microbench.profiling.target` runs in the Python that has it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from loadgen.engines import doctor
from loadgen.errors import LoadgenError, RunFolderError, UsageError
from loadgen.microbench.kernel_file import describe
from loadgen.microbench.profiling.records import (
    NCU_METRICS,
    NSYS_REPORTS,
    Facts,
    Mode,
    Parsed,
    ProfileRecord,
    Tool,
    ncu_records,
    nsys_records,
    trace_records,
)
from loadgen.microbench.profiling.text import Profile, explain, render
from loadgen.processes import child_environ

__all__ = ["Profile", "ProfileRecord", "ProfileSpec", "explain", "profile", "render"]

RECORDS = "profile.jsonl"
TARGET = "loadgen.microbench.profiling.target"
TIMEOUT_S = 1800.0  # compiling, and ncu's replays
LAST_LINES = 6
# Where CUDA's packages put the programs without putting them on PATH; the newest release sorts last.
TOOL_FOLDERS = ("/opt/nvidia/nsight-systems/*/bin", "/opt/nvidia/nsight-compute/*", "/usr/local/cuda/bin")
NO_TOOL = {
    "nsys": "install Nsight Systems (the CUDA toolkit's, or apt-get install nsight-systems-cli from NVIDIA's "
    "repository) and put nsys on PATH",
    "ncu": "install Nsight Compute (the CUDA toolkit's, or apt-get install nsight-compute from NVIDIA's repository) "
    "and put ncu on PATH",
}
WITHOUT = "--tool torch works without it"
PERMISSION = (
    "ncu may not read the GPU's performance counters (ERR_NVGPUCTRPERM). Run it as root, or give the container "
    "--cap-add=SYS_ADMIN (CAP_PERFMON is enough from driver R565 on), or let every user: options nvidia "
    "NVreg_RestrictProfilingToAdminUsers=0 in /etc/modprobe.d, and a reboot. --tool torch and nsys need no counters"
)
IN_USE = (
    "ncu found the GPU's performance counters in use by another profiler. DCGM is the usual one: `dcgmi profile "
    "--pause` before and `dcgmi profile --resume` after, on the host; or end the other nsys, ncu or CUPTI program. "
    "--tool torch needs no counters"
)
# Set by nsys, ncu and other tools in the processes that they start.
CLIENTS = {
    "NSYS_PROFILING_SESSION_ID": "nsys",
    "NV_NSIGHT_INJECTION_TRANSPORT_TYPE": "Nsight Compute",
    "NV_TPS_LAUNCH_TOKEN": "Nsight Compute",
    "CUDA_INJECTION64_PATH": "a tool that CUDA_INJECTION64_PATH loads",
}


class ProfileSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What to profile, and how.

    Attributes:
        kernel: the kernel file.
        implementation: its or a baseline's name; None takes the first.
        params: of one case; JSON values.
        mode: torch.profiler's; no other tool looks at it.
        calls: of the implementation, within the profile.
        python: one that has torch; None takes this one.
        output: a folder; made where it is missing.
        seed: of the inputs.
    """

    kernel: Path
    params: dict[str, Any]
    output: Path
    implementation: str | None = None
    tool: Tool = "torch"
    mode: Mode = "schedule"
    calls: int = 7
    python: str | None = None
    seed: int = 1


class Done(NamedTuple):
    """A program that ended."""

    code: int
    out: str
    err: str


def profile(spec: ProfileSpec, say: Callable[[str], None]) -> Profile:
    """Profiles, writes profile.jsonl beside what the profiler wrote, and gives what it found.

    Args:
        say: is told what is going on, a line at a time.

    Raises:
        UsageError: the tool is not there or not allowed, another profiler is in the way, or the kernel,
            implementation, parameters or Python cannot be used, as on a host without a GPU.
        RunFolderError: the output folder holds a profile already.
        LoadgenError: the kernel or the tool failed.
    """
    if spec.calls < 1:
        raise UsageError(f"--calls {spec.calls}: at least one call is needed")
    described = describe(spec.kernel)
    check_alone(os.environ, spec.tool)
    program = None if spec.tool == "torch" else find_program(spec.tool)
    output = spec.output.absolute()
    if (output / RECORDS).exists():
        raise RunFolderError(f"{spec.output}: holds a profile already; name another folder")
    output.mkdir(parents=True, exist_ok=True)
    for left in ("facts.json", "trace.json", "ncu.csv"):  # by an attempt that failed
        (output / left).unlink(missing_ok=True)
    which = spec.implementation or "its first implementation"
    say(f"profiling {described.name}, {which}, with {spec.tool}: {spec.calls} calls")
    environ = child_environ(spec.python)
    environ["LC_ALL"] = "C"  # ncu writes numbers as the locale does
    if program is None:
        parsed, files = _torch(spec, output, environ)
    elif spec.tool == "nsys":
        parsed, files = _nsys(spec, output, environ, program.path or "nsys")
    else:
        parsed, files = _ncu(spec, output, environ, program.path or "ncu")
    facts = _facts(output)
    if not any(record.kind in ("kernel", "counter") for record in parsed.records):
        raise LoadgenError(
            f"{spec.tool} recorded no GPU kernel of {facts.kernel}, {facts.implementation}; is it one that runs on the "
            f"GPU? What was recorded is in {output}"
        )
    (output / RECORDS).write_bytes(b"".join(msgspec.json.encode(record) + b"\n" for record in parsed.records))
    return Profile(
        tool=spec.tool,
        mode=spec.mode if spec.tool == "torch" else None,
        tool_version=None if program is None else program.version,
        facts=facts,
        records=parsed.records,
        notes=parsed.notes,
        files={**files, "Records": str(output / RECORDS)},
    )


def check_alone(environ: Mapping[str, str], tool: Tool) -> None:
    """Refuses to profile under a profiler: CUPTI serves one at a time, and the second fails oddly.

    Raises:
        UsageError: names the sign and the way out.
    """
    sign = next((name for name in CLIENTS if environ.get(name)), None)
    who = CLIENTS.get(sign or "")
    if sign is None and "TreeLauncher" in environ.get("LD_PRELOAD", ""):
        sign, who = "LD_PRELOAD", "Nsight Compute"
    if sign is not None:
        raise UsageError(
            f"--tool {tool}: this process already runs under {who} ({sign} is set), and one GPU program takes one "
            f"profiler at a time. Run `loadgen kernels profile` outside of it, or unset {sign} if that tool is gone"
        )


def find_program(name: str) -> doctor.Tool:
    """nsys or ncu: on PATH, or where CUDA's packages put it.

    Raises:
        UsageError: it is not there; says what to install.
    """
    found = doctor.find_tool(name)
    if found.path is not None:
        return found
    for folder in TOOL_FOLDERS:
        for path in sorted(Path("/").glob(f"{folder.lstrip('/')}/{name}"), reverse=True):
            if os.access(path, os.X_OK):
                return doctor.Tool(path=str(path))
    raise UsageError(f"--tool {name}: {name} is not installed: {NO_TOOL[name]}. {WITHOUT}")


# --- the tools --------------------------------------------------------------------------------------------------------


def _torch(spec: ProfileSpec, output: Path, environ: dict[str, str]) -> tuple[Parsed, dict[str, str]]:
    _check("the profiled program", _run(target_command(spec, output), environ))
    trace = output / "trace.json"
    try:
        found = msgspec.json.decode(trace.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError) as error:
        raise LoadgenError(f"torch.profiler wrote no trace that can be read, {trace}: {error}") from None
    files = {"Trace, for chrome://tracing or ui.perfetto.dev": str(trace)}
    return trace_records(found.get("traceEvents", []), spec.mode, spec.calls), files


def _nsys(spec: ProfileSpec, output: Path, environ: dict[str, str], program: str) -> tuple[Parsed, dict[str, str]]:
    base = output / "nsys"
    options = [
        "--trace=cuda,nvtx", "--sample=none", "--cpuctxsw=none", "--cuda-graph-trace=node",
        "--capture-range=cudaProfilerApi", "--capture-range-end=stop", "--stats=false", "--force-overwrite=true",
    ]  # fmt: skip
    done = _run([program, "profile", *options, f"--output={base}", *target_command(spec, output)], environ)
    _check("nsys profile", done)
    report = next((path for end in (".nsys-rep", ".qdrep") if (path := Path(f"{base}{end}")).exists()), None)
    if report is None:
        raise LoadgenError(f"nsys profile wrote no report. {_last_lines(done)}")
    return nsys_records(_summaries(program, report, base, environ), spec.calls), {"Report, for nsys-ui": str(report)}


def _summaries(program: str, report: Path, base: Path, environ: dict[str, str]) -> dict[str, str | None]:
    """nsys' CSV summaries by name; None for one that it found nothing for.

    A release before 2022.5 has other names for them, and is asked by those.

    Raises:
        LoadgenError: nsys fails under either name.
    """
    found: dict[str, str | None] = {}
    for names in (list(NSYS_REPORTS), list(NSYS_REPORTS.values())):
        options = ["--report", ",".join(names), "--format", "csv", "--force-export=true", "--output", str(base)]
        done = _run([program, "stats", *options, str(report)], environ)
        for ours, name in zip(NSYS_REPORTS, names, strict=True):
            path = Path(f"{base}_{name}.csv")
            found[ours] = path.read_text(errors="replace") if path.exists() else None
        if any(text is not None for text in found.values()):
            return found
    raise LoadgenError(f"nsys stats gave no summary of {report}. {_last_lines(done)}")


def _ncu(spec: ProfileSpec, output: Path, environ: dict[str, str], program: str) -> tuple[Parsed, dict[str, str]]:
    log = output / "ncu.csv"
    options = [
        "--csv", "--page", "raw", "--print-units", "base", "--log-file", str(log), "--force-overwrite",
        "--metrics", ",".join(NCU_METRICS), "--replay-mode", "kernel", "--cache-control", "all",
        "--clock-control", "none", "--profile-from-start", "off", "--target-processes", "application-only",
    ]  # fmt: skip
    done = _run([program, *options, *target_command(spec, output)], environ)
    written = log.read_text(errors="replace") if log.exists() else ""
    # ncu may go on without counters and end with 0, so that its words are looked at first.
    said = "\n".join([written, done.out, done.err])
    if "ERR_NVGPUCTRPERM" in said:
        raise UsageError(f"--tool ncu: {PERMISSION}")
    if re.search(r"driver resource was unavailable|another (?:profiler|tool)", said):
        raise UsageError(f"--tool ncu: {IN_USE}")
    told = Done(done.code, done.out + written, done.err)
    _check("ncu", told)
    parsed = ncu_records(written)
    if not parsed.records:
        raise LoadgenError(f"ncu profiled no kernel. {_last_lines(told)}")
    return parsed, {"Counters": str(log)}


# --- running ----------------------------------------------------------------------------------------------------------


def target_command(spec: ProfileSpec, output: Path) -> list[str]:
    """The command of the profiled program."""
    implementation = [] if spec.implementation is None else ["--implementation", spec.implementation]
    return [
        spec.python or sys.executable, "-m", TARGET, "--kernel", str(spec.kernel.absolute()), *implementation,
        "--params", json.dumps(spec.params), "--tool", spec.tool, "--mode", spec.mode, "--calls", str(spec.calls),
        "--seed", str(spec.seed), "--output", str(output),
    ]  # fmt: skip


def _run(command: list[str], environ: dict[str, str]) -> Done:
    """Runs a program to its end; it and all that it started are ended with us.

    Raises:
        UsageError: it cannot be run.
        LoadgenError: it takes longer than :data:`TIMEOUT_S`.
    """
    if shutil.which(command[0]) is None:
        raise UsageError(f"{command[0]}: no such program")
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            errors="replace", env=environ, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise UsageError(f"{command[0]}: cannot be run: {error.strerror}") from None
    with process:
        try:
            out, err = process.communicate(timeout=TIMEOUT_S)
        except BaseException as error:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            if isinstance(error, subprocess.TimeoutExpired):
                raise LoadgenError(f"{Path(command[0]).name}: no end within {TIMEOUT_S:.0f} s; it was killed") from None
            raise
    return Done(process.returncode, out, err)


class _Complaint(msgspec.Struct):
    """The target's last line when it failed."""

    error: str
    usage: bool = False


def _check(what: str, done: Done) -> None:
    """Raises what the target complains of, or what a program that failed said last."""
    for line in reversed(done.out.splitlines()):
        if line.startswith('{"error"'):
            try:
                complaint = msgspec.json.decode(line, type=_Complaint)
            except msgspec.MsgspecError:
                continue
            raise (UsageError if complaint.usage else LoadgenError)(complaint.error)
    if done.code:
        raise LoadgenError(f"{what} {_ending(done.code)}. {_last_lines(done)}")


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def _last_lines(done: Done) -> str:
    lines = [line.rstrip() for text in (done.out, done.err) for line in text.splitlines() if line.strip()]
    return "\n  ".join(["Its last lines:", *lines[-LAST_LINES:]]) if lines else "It said nothing."


def _facts(output: Path) -> Facts:
    path = output / "facts.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Facts)
    except (OSError, msgspec.MsgspecError) as error:
        raise LoadgenError(f"the profiled program wrote no facts, {path}: {error}") from None
