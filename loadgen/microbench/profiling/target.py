"""The program that is profiled: one implementation of one kernel, at one case, on cuda:0.

Run as ``PYTHON -m loadgen.microbench.profiling.target ...`` in a Python that has torch. With ``--tool torch``
it profiles itself and writes trace.json; with nsys and ncu it marks the range of the calls for the profiler
around it. Writes facts.json before the calls. What goes wrong is one line of JSON on stdout,
``{"error": ..., "usage": ...}``, and exit code 3.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FAILED = 3
DEVICE = "cuda:0"
WAIT, WARMUP = 1, 1


class Refused(Exception):  # noqa: N818 - read aloud where it is raised
    """What the user asked for cannot be done here."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="profile_target")
    parser.add_argument("--kernel", type=Path, required=True)
    parser.add_argument("--implementation")
    parser.add_argument("--params", type=json.loads, required=True)
    parser.add_argument("--tool", choices=["torch", "nsys", "ncu"], required=True)
    parser.add_argument("--mode", choices=["bare", "schedule", "toggle"], default="schedule")
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """0, or :data:`FAILED` with a line that says why."""
    options = parse(arguments)
    try:
        run(options)
    except Exception as error:
        usage = isinstance(error, Refused) or type(error).__name__ == "UsageError"
        text = str(error) if usage else in_words(error, options.kernel)
        print(json.dumps({"error": text, "usage": usage}), flush=True)  # noqa: T201 - the parent reads it
        return FAILED
    return 0


def in_words(error: BaseException, kernel: Path) -> str:
    """An exception in one line, with the kernel file's line that it came through last."""
    frames = traceback.extract_tb(error.__traceback__)
    line = next((frame.lineno for frame in reversed(frames) if Path(frame.filename) == kernel), None)
    words = str(error).strip().splitlines()
    return f"{kernel}{'' if line is None else f':{line}'}: {type(error).__name__}{f': {words[0]}' if words else ''}"


def run(options: argparse.Namespace) -> None:
    """Loads, checks, and runs the calls under the tool.

    Raises:
        Refused: no torch, no GPU, no such implementation, or one that needs another GPU.
    """
    torch = _torch()
    try:
        import msgspec

        from loadgen.microbench.kernel_file import KernelFile
        from loadgen.microbench.tensors import Make, nbytes
    except ModuleNotFoundError as error:
        raise Refused(f"{error.name} is not installed in {sys.executable}: pip install {error.name} there") from None
    from loadgen.microbench.profiling.records import Facts

    kernel = KernelFile(options.kernel)
    name, implementation = _implementation(kernel, options.implementation)
    properties = torch.cuda.get_device_properties(0)
    needs = kernel.needs(options.params)
    if needs is not None and (properties.major, properties.minor) < needs[0]:
        major, minor = needs[0]
        raise Refused(
            f"{kernel.name}, {name} needs sm_{major}{minor} ({needs[1]}); {properties.name} is "
            f"sm_{properties.major}{properties.minor}"
        )
    moved, flops = kernel.traffic(options.params)

    def make() -> dict[str, Any]:
        tensors = kernel.inputs(Make(DEVICE, options.seed), options.params)
        facts = Facts(
            kernel=kernel.name, implementation=name, params=options.params, calls=options.calls,
            device=properties.name, compute_capability=(properties.major, properties.minor),
            l2_bytes=properties.L2_cache_size, tensor_bytes=nbytes(tensors), least_bytes=moved, flops=flops,
            versions=_versions(torch),
        )  # fmt: skip
        (options.output / "facts.json").write_bytes(msgspec.json.encode(facts))
        torch.cuda.synchronize()
        return tensors

    try:
        if options.tool == "torch":
            modes = {"bare": bare, "schedule": schedule, "toggle": toggle}
            modes[options.mode](torch, make, implementation, options.calls, options.output / "trace.json")
        else:
            marked(torch, make, implementation, options.calls)
    except ImportError as error:
        raise Refused(f"{kernel.name}, {name}: {error}, in {sys.executable}") from None


def _torch() -> Any:
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise Refused("TRITON_INTERPRET=1 runs kernels in Python on the CPU: there is nothing to profile; unset it")
    try:
        import torch
    except ModuleNotFoundError:
        raise Refused(f"torch is not installed in {sys.executable}; name a Python that has it") from None
    if torch.version.cuda is None:
        raise Refused(f"torch {torch.__version__} in {sys.executable} is built without CUDA, and profiling needs a GPU")
    if not torch.cuda.is_available():
        raise Refused(f"torch {torch.__version__} finds no GPU here; `loadgen engines doctor` says what is missing")
    return torch


def _implementation(kernel: Any, wanted: str | None) -> tuple[str, Callable[..., Any]]:
    both = {**kernel.implementations, **kernel.baselines}
    name = next(iter(both)) if wanted is None else wanted
    if name not in both:
        raise Refused(f"{kernel.path}: no implementation {name}; there are {', '.join(both)}")
    return name, both[name]


def _versions(torch: Any) -> dict[str, str]:
    versions = {"torch": str(torch.__version__), "cuda": str(torch.version.cuda)}
    triton = sys.modules.get("triton")
    if triton is not None:
        versions["triton"] = str(triton.__version__)
    return versions


Maker = Callable[[], dict[str, Any]]
Implementation = Callable[..., Any]


@contextmanager
def _collecting(torch: Any, **settings: Any) -> Iterator[Any]:
    """torch.profiler for CPU and CUDA: the CPU's side gives the marks of the calls."""
    with torch.profiler.profile(activities=_activities(torch), **settings) as profiler:
        yield profiler


def _activities(torch: Any) -> list[Any]:
    return [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]


def _call(torch: Any, implementation: Implementation, tensors: dict[str, Any]) -> None:
    from loadgen.microbench.profiling.records import CALL

    with torch.profiler.record_function(CALL):
        implementation(**tensors)


def bare(torch: Any, make: Maker, implementation: Implementation, calls: int, trace: Path) -> None:
    """Everything from the first call, and making the inputs."""
    from loadgen.microbench.profiling.records import INPUTS

    with _collecting(torch) as profiler:
        with torch.profiler.record_function(INPUTS):
            tensors = make()
        for _ in range(calls):
            _call(torch, implementation, tensors)
        torch.cuda.synchronize()
    profiler.export_chrome_trace(str(trace))


def schedule(torch: Any, make: Maker, implementation: Implementation, calls: int, trace: Path) -> None:
    """Wait 1, warm-up 1, then ``calls`` recorded; read when the profiler says that the trace is ready."""
    tensors = make()
    plan = torch.profiler.schedule(wait=WAIT, warmup=WARMUP, active=calls, repeat=1)
    total = WAIT + WARMUP + calls
    # Read here and not after the loop: outside, the profiler may hold the cycle after this one, an empty one.
    with _collecting(torch, schedule=plan, on_trace_ready=lambda p: p.export_chrome_trace(str(trace))) as profiler:
        for step in range(total):
            _call(torch, implementation, tensors)
            # The recorded window starts with an idle GPU and ends with one, and has no wait within.
            if step in (WAIT + WARMUP - 1, total - 1):
                torch.cuda.synchronize()
            profiler.step()


def toggle(torch: Any, make: Maker, implementation: Implementation, calls: int, trace: Path) -> None:
    """Collection on from the first call to the last alone.

    CPU and CUDA are switched together: with CUDA alone switched off, kernels are attributed to launches that
    they did not come from (pytorch/pytorch#140285). Does nothing before the profiler has started, hence within.
    """
    activities = _activities(torch)
    with _collecting(torch) as profiler:
        profiler.toggle_collection_dynamic(False, activities)
        tensors = make()
        profiler.toggle_collection_dynamic(True, activities)
        for _ in range(calls):
            _call(torch, implementation, tensors)
        torch.cuda.synchronize()
        # Not switched off again before the end: on an H200 (torch 2.11) the kernels recorded so far were gone then.
    profiler.export_chrome_trace(str(trace))


def marked(torch: Any, make: Maker, implementation: Implementation, calls: int) -> None:
    """For nsys and ncu: one call before the range, then the range, each call marked by NVTX."""
    from loadgen.microbench.profiling.records import CALL

    tensors = make()
    implementation(**tensors)
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    for _ in range(calls):
        with torch.cuda.nvtx.range(CALL):
            implementation(**tensors)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
