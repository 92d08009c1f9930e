"""``loadgen kernels ...``: microbenchmarks of the GPU kernels that engines use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from loadgen.cli.options import Json, RunOutput, Seed, TorchPython
from loadgen.cli.output import as_json_lines, say, show, show_result
from loadgen.cli.panels import command, group
from loadgen.cli.params import LOADS, RUN, argument, count, number, option
from loadgen.errors import UsageError

FILES_HELP = "Kernel files, folders of them, or names of bundled ones.  [default: every bundled one]"
DEFAULT_CONCURRENCY, DEFAULT_CONTEXT = (1, 8, 64), (512, 4096)
CONTEXTS = LOADS._replace(metavar="512,4096")
JsonLines = Annotated[bool, option("--json", help="Print the records as JSON lines instead of the table.")]
Files = Annotated[list[str] | None, argument(metavar="[FILE|FOLDER|NAME]...", help=FILES_HELP)]

kernels = group(
    "kernels",
    "Measure GPU kernels at the sizes that a model's steps have.",
    """
# Which kernels there are
loadgen kernels list
# All of them, at the sizes of a model and of some loads
loadgen kernels bench --model qwen1.5-4b --concurrency 1,64 --context 4096
# At the sizes that the last sweep served
loadgen kernels bench --from @last
# A kernel file of your own: docs/kernels.md
loadgen kernels bench my_kernel.py --model qwen1.5-4b
""",
)


@command(
    kernels,
    """
# Every bundled kernel
loadgen kernels list
# One of them
loadgen kernels list add_rms_norm
# As JSON
loadgen kernels list --json
""",
    name="list",
)
def list_kernels(files: Files = None, json: Json = False) -> int:
    """List kernel files, bundled ones or your own.

    Needs no GPU and no PyTorch.
    """
    from loadgen.microbench.kernel_file import describe, find

    found = [describe(path) for path in find(files or [])]
    rows = [{**kernel._asdict(), "path": str(kernel.path)} for kernel in found]
    lines = [
        f"{kernel.name}: {kernel.title}\n"
        f"  own {', '.join(kernel.implementations)}; against {', '.join(kernel.baselines) or 'nothing'}\n"
        for kernel in found
    ]
    show_result(rows, json, lambda: "".join(lines))
    return 0


class Sizes(NamedTuple):
    """Sizes."""

    model: Annotated[
        str | None,
        option("--model", metavar="MODEL", help="Name of a shape, such as qwen1.5-4b, or a folder with config.json."),
    ] = None
    run: Annotated[
        Path | None,
        option("--from", kind=RUN, help="Run to take the model, the batches and the context lengths from."),
    ] = None
    concurrency: Annotated[
        tuple[int, ...] | None,
        option("--concurrency", kind=LOADS, help="Sequences in a decode step.  [default: 1,8,64]"),
    ] = None
    context: Annotated[
        tuple[int, ...] | None,
        option(
            "--context",
            kind=CONTEXTS,
            help="Tokens that each sequence attends to, and length of the prompts in prefill.  [default: 512,4096]",
        ),
    ] = None
    cases: Annotated[
        list[str] | None,
        option(
            "--case",
            metavar="'NAME=VALUE ...'",
            help="Case of one kernel file, as the table shows it, in place of those of the model; repeatable.",
        ),
    ] = None
    dtype: Annotated[
        str | None,
        option("--dtype", metavar="TYPE", help="Data type: bfloat16, float16 or float32.  [default: the model's]"),
    ] = None


class Measuring(NamedTuple):
    """Measuring."""

    state: Annotated[str, option("--state", metavar="cold,serving,hot", help="State of the GPU's L2 cache.")] = (
        "serving"
    )
    implementations: Annotated[
        list[str] | None, option("--implementation", metavar="NAME", help="Only this implementation; repeatable.")
    ] = None
    baselines: Annotated[
        bool, option("--baselines/--no-baselines", help="Measure PyTorch's and the engines' own kernels too.")
    ] = True
    check: Annotated[
        bool,
        option("--check", help="Compare with the references and time nothing; without a GPU, in Triton's interpreter."),
    ] = False
    python: Annotated[
        str | None,
        option(
            "--python",
            metavar="PATH",
            help="Python that has torch, and vLLM for its kernels.  [default: the one that runs loadgen]",
        ),
    ] = None
    seconds: Annotated[
        float, option("--seconds", kind=number("S", least=0.05, most=60), help="Time for each case.  [default: 0.6]")
    ] = 0.6
    seed: Seed = 0


class BenchOutput(NamedTuple):
    """Output."""

    folder: RunOutput = None
    json: JsonLines = False


@command(
    kernels,
    """
# Every bundled kernel, at the sizes of a model
loadgen kernels bench --model qwen1.5-4b
# At the sizes that a sweep served
loadgen kernels bench --from @last
# One case of one kernel, with a cold cache
loadgen kernels bench add_rms_norm --case 'tokens=64 hidden=2560' --state cold
# Only check the results, without a GPU
loadgen kernels bench --check
""",
    name="bench",
)
def bench_kernels(
    sizes: Sizes,
    measuring: Measuring,
    output: BenchOutput,
    files: Files = None,
) -> int:
    """Measure kernels on this machine's GPU.

    All bundled kernels are measured, or those named. Every kernel is compared with a reference in higher
    precision before and after it is timed. It is timed in a CUDA graph over rotating buffers, interleaved
    with PyTorch's and the engines' own kernels.
    """
    from loadgen.microbench.bench import BenchSpec, run_bench, run_checks
    from loadgen.microbench.kernel_file import find
    from loadgen.processes import Interrupts
    from loadgen.report.kernels import render
    from loadgen.run_folders import default_output

    paths = find(files or [])
    if sizes.cases and len(paths) != 1:
        raise UsageError("--case is for one kernel file: name it")
    shape, steps = _model_and_steps(sizes)
    states = _states(measuring.state)
    with Interrupts().watching() as interrupts:
        spec = BenchSpec(
            command=["loadgen", *sys.argv[1:]],
            files=paths,
            model=shape,
            steps=steps,
            cases=[parse_params((text,)) for text in sizes.cases or []],
            states=states,
            implementations=measuring.implementations or None,
            baselines=measuring.baselines,
            seconds=measuring.seconds,
            seed=measuring.seed,
            python=measuring.python,
            output=output.folder or default_output("kernels"),
            stopped=lambda: interrupts.count > 0,
        )
        if measuring.check:
            compared, wrong = run_checks(spec, say)
            show(f"{compared} compared with their references, {wrong} wrong")
            return 1 if wrong or not compared else 0
        result = run_bench(spec, say)
    if output.json:
        show((spec.output / "kernels.jsonl").read_text(), end="")
    else:
        show(render(result.manifest, result.records))
        show(f"Folder: {spec.output}")
    return result.exit_code


def _states(text: str) -> list[Any]:
    states = [piece.strip() for piece in text.split(",")]
    for state in states:
        if state not in ("cold", "serving", "hot"):
            raise UsageError(f"--state takes cold, serving and hot, with commas; not {state!r}")
    return states


def _model_and_steps(sizes: Sizes) -> tuple[Any, Any]:
    """What the cases are made from; (None, []) without a model."""
    from loadgen.analysis.measure import summarize_run
    from loadgen.microbench.steps import find_shape, shape_of_run, steps_of_load, steps_of_run

    if sizes.run is not None:
        for name, value in {"--concurrency": sizes.concurrency, "--context": sizes.context}.items():
            if value is not None:
                raise UsageError(f"{name} and --from exclude each other: the sizes come from the run")
        manifest, summary = summarize_run(sizes.run)
        shape = find_shape(sizes.model, sizes.dtype) if sizes.model else shape_of_run(sizes.run, manifest)
        return shape, steps_of_run(summary)
    if sizes.model is None:
        return None, []
    concurrency, context = sizes.concurrency or DEFAULT_CONCURRENCY, sizes.context or DEFAULT_CONTEXT
    return find_shape(sizes.model, sizes.dtype), steps_of_load(list(concurrency), list(context))


def measure_kernels_of(runs: list[tuple[Path, Any]], interrupts: Any) -> list[str]:
    """Measures the kernels of each run's model into the run's folder ``kernels``; returns what went wrong."""
    from loadgen.errors import LoadgenError
    from loadgen.microbench.bench import BenchSpec, run_bench
    from loadgen.microbench.kernel_file import find
    from loadgen.microbench.steps import shape_of_run, steps_of_run
    from loadgen.records import read_manifest

    failures = []
    for run, summary in runs:
        if interrupts.count:
            break
        say(f"Measuring kernels at the sizes that {run} served")
        try:
            manifest = read_manifest(run)
            run_bench(
                BenchSpec(
                    command=["loadgen", *sys.argv[1:]],
                    files=find([]),
                    model=shape_of_run(run, manifest),
                    steps=steps_of_run(summary),
                    states=["serving"],
                    python=manifest.engine.facts.get("python"),
                    output=run / "kernels",
                    stopped=lambda: interrupts.count > 0,
                ),
                say,
            )
        except LoadgenError as error:
            failures.append(f"kernels of {run}: {error}")
    return failures


def report_kernels(folder: Path, json: bool) -> int:
    """The table of a kernels' folder again, from its samples."""
    from loadgen.microbench.bench import BenchResult
    from loadgen.microbench.records import read_kernel_manifest, read_samples, records_of
    from loadgen.report.kernels import render

    manifest = read_kernel_manifest(folder)
    if manifest.peaks is None:
        raise UsageError(f"{folder}: ended before anything was measured")
    records = [record for samples in read_samples(folder) for record in records_of(samples, manifest.peaks)]
    if json:
        show(as_json_lines(records), end="")
    else:
        show(render(manifest, records))
    return BenchResult(manifest=manifest, records=records).exit_code


def parse_params(words: tuple[str, ...]) -> dict[str, Any]:
    """``tokens=64 dtype=bfloat16`` as kernels bench shows a case, commas allowed, as parameters.

    Raises:
        UsageError: a word is no name=value.
    """
    import msgspec

    found: dict[str, Any] = {}
    for word in (piece for text in words for piece in text.replace(",", " ").split()):
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"a case is given as name=value, such as tokens=64; not {word!r}")
        try:
            found[name] = msgspec.json.decode(value.encode())
        except msgspec.MsgspecError:
            found[name] = value
    return found


@command(
    kernels,
    """
# With torch.profiler
loadgen kernels profile add_rms_norm tokens=64 hidden=2560
# With Nsight Compute
loadgen kernels profile add_rms_norm tokens=64 hidden=2560 --tool ncu
# From the first call on
loadgen kernels profile add_rms_norm tokens=64 --mode bare
""",
    name="profile",
)
def profile_kernel(
    kernel: Annotated[str, argument(metavar="FILE|NAME", help="Kernel file, or the name of a bundled one.")],
    case: Annotated[
        list[str] | None,
        argument(metavar="[NAME=VALUE]...", help="Parameters of one case, as kernels bench shows them."),
    ] = None,
    tool: Annotated[Literal["torch", "nsys", "ncu"], option("--tool", help="Profiler to use.")] = "torch",
    mode: Annotated[
        Literal["bare", "schedule", "toggle"],
        option(
            "--mode",
            help="What torch.profiler records. bare: everything from the first call; schedule: calls after a warm-up; "
            "toggle: nothing but the calls.",
        ),
    ] = "schedule",
    implementation: Annotated[
        str | None,
        option("--implementation", metavar="NAME", help="Implementation or baseline.  [default: the file's first]"),
    ] = None,
    calls: Annotated[int, option("--calls", kind=count(most=1000), help="Calls to profile.  [default: 7]")] = 7,
    python: TorchPython = None,
    output: RunOutput = None,
    json: JsonLines = False,
) -> int:
    """Profile one kernel at one case.

    The result says what each figure includes.
    """
    from loadgen.microbench.kernel_file import find
    from loadgen.microbench.profiling.profile import ProfileSpec, profile, render
    from loadgen.run_folders import default_output

    paths = find([kernel])
    if len(paths) != 1:
        raise UsageError(f"{kernel}: name one kernel file")
    folder = output or default_output(f"profile-{paths[0].stem}-{tool}")
    spec = ProfileSpec(
        kernel=paths[0],
        params=parse_params(tuple(case or ())),
        output=folder,
        implementation=implementation,
        tool=tool,
        mode=mode,
        calls=calls,
        python=python,
    )
    found = profile(spec, say)
    if json:
        show(as_json_lines(found.records), end="")
    else:
        show(render(found))
        show(f"Folder: {folder}")
    return 0


@command(
    kernels,
    """
# All CUDA files that come with loadgen
loadgen kernels build
# For one GPU only
loadgen kernels build --arch sm_90a
# A file of your own
loadgen kernels build my_kernel.cu --output build/mine
""",
    name="build",
)
def build_kernels(
    files: Annotated[
        list[str] | None,
        argument(
            metavar="[FILE.cu|FOLDER|NAME]...",
            help="CUDA files, folders of them, or names of bundled ones.  [default: every bundled one]",
        ),
    ] = None,
    architectures: Annotated[
        str | None,
        option(
            "--arch", metavar="sm_80,sm_90a,compute_90",
            help="Real (sm_) and virtual (compute_) architectures.  [default: sm_80,sm_90,sm_100]",
        ),
    ] = None,
    output: Annotated[
        Path, option("--output", metavar="DIR", help="Folder for objects and programs.")
    ] = Path("build/kernels"),
    json: Json = False,
) -> int:  # fmt: skip
    """Compile CUDA files with nvcc.

    The result is a fat binary for some GPUs, with PTX for later ones. Needs no GPU and no PyTorch. The
    torch operators that kernels bench measures are built on their first run, for the GPU at hand.
    """
    from loadgen.microbench.build import DEFAULT_ARCHITECTURES, build, find_sources, parse_architectures, render

    wanted = parse_architectures(architectures or DEFAULT_ARCHITECTURES)
    report = build(find_sources(tuple(files or ())), wanted, output)
    show_result(report, json, lambda: render(report))
    return 0


@command(
    kernels,
    """
# Every GPU of this machine
loadgen kernels all-reduce
# Two GPUs, one size: 256 tokens of a model with hidden size 5120
loadgen kernels all-reduce --ranks 2 --shape 256x5120
# Only check the kernels, on a single GPU
loadgen kernels all-reduce --one-gpu
""",
    name="all-reduce",
)
def all_reduce(
    ranks: Annotated[
        int | None, option("--ranks", metavar="N", help="Processes, one for each GPU.  [default: all GPUs]")
    ] = None,
    shapes: Annotated[
        list[str] | None,
        option(
            "--shape",
            metavar="TxH",
            help="Message size, tokens x hidden in bfloat16, such as 256x5120; repeatable.  [default: 1x5120 to "
            "8192x5120]",
        ),
    ] = None,
    one_gpu: Annotated[
        bool, option("--one-gpu", help="Run all processes on one GPU: checks the kernels, times nothing.")
    ] = False,
    python: TorchPython = None,
) -> int:
    """Measure all-reduce over several GPUs beside NCCL.

    Prints a JSON line for each result. There is one process for each GPU. Results are compared with the
    sum before and after they are timed.
    """
    from loadgen.microbench.collective import measure_apart

    found, code = measure_apart(python, ranks, tuple(shapes or ()), one_gpu)
    show(as_json_lines(found), end="")
    return code
