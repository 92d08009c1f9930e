"""``loadgen kernels ...``: microbenchmarks of what engines stand on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from loadgen.cli.runs import RUN
from loadgen.errors import UsageError


@click.group("kernels")
def kernels() -> None:
    """GPU kernels: measured at the sizes that a model's steps have.

    \b
    loadgen kernels list                                     what there is
    loadgen kernels bench --model qwen1.5-4b --concurrency 1,8,64 --context 512,4096
    loadgen kernels bench --from RUN                         the sizes that a sweep served
    loadgen kernels bench my_kernel.py --model qwen1.5-4b    your own file: docs/kernels.md
    loadgen kernels all-reduce                               over several GPUs, beside NCCL
    """


def say(text: str) -> None:
    """A line for people, while it runs."""
    click.echo(text, err=True)


def numbers(text: str, option: str) -> list[int]:
    """``1,8,64`` as numbers of 1 and above.

    Raises:
        UsageError: it is something else.
    """
    try:
        found = [int(piece) for piece in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} takes numbers such as 1,8,64, not {text!r}") from None
    if min(found) < 1:
        raise UsageError(f"{option}: {min(found)} is below 1")
    return found


@kernels.command("list")
@click.argument("files", nargs=-1, metavar="[FILE|FOLDER|NAME]...")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def list_kernels(files: tuple[str, ...], as_json: bool) -> int:
    """The kernel files that come with loadgen, or those named. Needs no GPU and no torch."""
    import msgspec

    from loadgen.microbench.kernel_file import describe, find

    found = [describe(path) for path in find(files)]
    if as_json:
        rows = [{**kernel._asdict(), "path": str(kernel.path)} for kernel in found]
        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
        return 0
    for kernel in found:
        click.echo(f"{kernel.name}: {kernel.title}")
        click.echo(f"  own {', '.join(kernel.implementations)}; against {', '.join(kernel.baselines) or 'nothing'}")
    return 0


@kernels.command("bench")
@click.argument("files", nargs=-1, metavar="[FILE|FOLDER|NAME]...")
@click.option("--model", metavar="M", help="A shape's name such as qwen1.5-4b, or a folder with config.json.")
@click.option("--from", "run", type=RUN, metavar="RUN",
              help="A run folder: its model, and the batches and contexts that it really served.")  # fmt: skip
@click.option(
    "--concurrency", default="1,8,64", show_default=True, metavar="1,8,64", help="Sequences in a decode step."
)
@click.option("--context", default="512,4096", show_default=True, metavar="512,4096",
              help="Tokens that each sequence attends to, and length of the prompts in prefill.")  # fmt: skip
@click.option("--case", "cases", multiple=True, metavar="'NAME=VALUE ...'",
              help="Parameters of one file's case, as the table shows them, instead; repeatable.")  # fmt: skip
@click.option("--dtype", metavar="T", help="bfloat16, float16 or float32.  [default: the model's]")
@click.option("--state", default="serving", show_default=True, metavar="cold,serving,hot", help="Of the cache.")
@click.option("--implementation", "implementations", multiple=True, metavar="NAME", help="Only this one; repeatable.")
@click.option("--baselines/--no-baselines", default=True, help="Measure torch's and the engines' own kernels too.")
@click.option("--check", is_flag=True, help="Only compare with the references; without a GPU in Triton's interpreter.")
@click.option("--python", metavar="PATH", help="A Python that has torch (and vLLM, for its kernels).  [default: this]")
@click.option("--seconds", type=click.FloatRange(0.05, 60), default=0.6, show_default=True, help="For one case.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="[default: reports/local/...]")
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON lines instead of the table.")
def bench_kernels(
    files: tuple[str, ...],
    model: str | None,
    run: Path | None,
    concurrency: str,
    context: str,
    cases: tuple[str, ...],
    dtype: str | None,
    state: str,
    implementations: tuple[str, ...],
    baselines: bool,
    check: bool,
    python: str | None,
    seconds: float,
    seed: int,
    output: Path | None,
    as_json: bool,
) -> int:
    """Measure kernels on this machine's GPU: all that come with loadgen, or those named.

    Every kernel is compared with a reference in higher precision before and after it is timed. It is
    timed in a CUDA graph over rotated buffers, in one interleaved run with torch's and the engines'
    own kernels.
    """
    from loadgen.microbench.bench import BenchSpec, run_bench, run_checks
    from loadgen.microbench.kernel_file import find
    from loadgen.processes import Interrupts
    from loadgen.report.kernels import render
    from loadgen.run_folders import default_output

    paths = find(files)
    if cases and len(paths) != 1:
        raise UsageError("--case is for one kernel file: name it")
    shape, steps = _model_and_steps(model, run, concurrency, context, dtype, check)
    states = _states(state)
    with Interrupts().watching() as interrupts:
        spec = BenchSpec(
            command=["loadgen", *sys.argv[1:]],
            files=paths,
            model=shape,
            steps=steps,
            cases=[parse_params((text,)) for text in cases],
            states=states,
            implementations=list(implementations) or None,
            baselines=baselines,
            seconds=seconds,
            seed=seed,
            python=python,
            output=output or default_output("kernels"),
            stopped=lambda: interrupts.count > 0,
        )
        if check:
            compared, wrong = run_checks(spec, say)
            click.echo(f"{compared} compared with their references, {wrong} wrong")
            return 1 if wrong or not compared else 0
        result = run_bench(spec, say)
    if as_json:
        click.echo((spec.output / "kernels.jsonl").read_text(), nl=False)
    else:
        click.echo(render(result.manifest, result.records))
        click.echo(f"Folder: {spec.output}")
    return result.exit_code


def _states(text: str) -> list[Any]:
    states = [piece.strip() for piece in text.split(",")]
    for state in states:
        if state not in ("cold", "serving", "hot"):
            raise UsageError(f"--state takes cold, serving and hot, with commas; not {state!r}")
    return states


def _model_and_steps(
    model: str | None, run: Path | None, concurrency: str, context: str, dtype: str | None, check: bool
) -> tuple[Any, Any]:
    """What the cases come from; (None, []) without a model."""
    from loadgen.analysis.measure import summarize_run
    from loadgen.microbench.steps import find_shape, shape_of_run, steps_of_load, steps_of_run

    if run is not None:
        given = click.get_current_context().get_parameter_source
        for name in ("concurrency", "context"):
            if given(name) is click.core.ParameterSource.COMMANDLINE:
                raise UsageError(f"--{name} and --from exclude each other: the sizes come from the run")
        manifest, summary = summarize_run(run)
        shape = find_shape(model, dtype) if model else shape_of_run(run, manifest)
        return shape, steps_of_run(summary)
    if model is None:
        return None, []
    return find_shape(model, dtype), steps_of_load(numbers(concurrency, "--concurrency"), numbers(context, "--context"))


def measure_beside(runs: list[tuple[Path, Any]], interrupts: Any) -> list[str]:
    """Measures the kernels of each run's model into its folder ``kernels``; gives what went wrong."""
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


def report_kernels(folder: Path, as_json: bool) -> int:
    """The table of a kernels' folder again, from its samples."""
    from loadgen.microbench.bench import BenchResult
    from loadgen.microbench.records import read_kernel_manifest, read_samples, records_of
    from loadgen.records import encode_line
    from loadgen.report.kernels import render

    manifest = read_kernel_manifest(folder)
    if manifest.peaks is None:
        raise UsageError(f"{folder}: was ended before anything was measured")
    records = [record for samples in read_samples(folder) for record in records_of(samples, manifest.peaks)]
    if as_json:
        click.echo(b"".join(encode_line(record) for record in records).decode(), nl=False)
    else:
        click.echo(render(manifest, records))
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


@kernels.command("profile")
@click.argument("kernel", metavar="FILE|NAME")
@click.argument("case", nargs=-1, metavar="NAME=VALUE...")
@click.option("--tool", type=click.Choice(["torch", "nsys", "ncu"]), default="torch", show_default=True)
@click.option("--mode", type=click.Choice(["bare", "schedule", "toggle"]), default="schedule", show_default=True,
              help="Of torch.profiler: all from the first call on; warmed up; only the calls.")  # fmt: skip
@click.option("--implementation", metavar="NAME", help="Or a baseline's.  [default: the file's first]")
@click.option("--calls", type=click.IntRange(1, 1000), default=7, show_default=True)
@click.option("--python", metavar="PATH", help="A Python that has torch.  [default: this]")
@click.option("--output", type=click.Path(path_type=Path), metavar="DIR", help="[default: reports/local/...]")
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON lines.")
def profile_kernel(
    kernel: str,
    case: tuple[str, ...],
    tool: Any,
    mode: Any,
    implementation: str | None,
    calls: int,
    python: str | None,
    output: Path | None,
    as_json: bool,
) -> int:
    """Look into one kernel at one case, and say what each figure includes.

    The case is given as kernels bench shows it: tokens=64 hidden=2560 dtype=bfloat16.
    """
    from loadgen.microbench.kernel_file import find
    from loadgen.microbench.profiling.profile import ProfileSpec, profile, render
    from loadgen.records import encode_line
    from loadgen.run_folders import default_output

    paths = find([kernel])
    if len(paths) != 1:
        raise UsageError(f"{kernel}: name one kernel file")
    folder = output or default_output(f"profile-{paths[0].stem}-{tool}")
    spec = ProfileSpec(
        kernel=paths[0],
        params=parse_params(case),
        output=folder,
        implementation=implementation,
        tool=tool,
        mode=mode,
        calls=calls,
        python=python,
    )
    found = profile(spec, say)
    if as_json:
        click.echo(b"".join(encode_line(record) for record in found.records).decode(), nl=False)
    else:
        click.echo(render(found))
        click.echo(f"Folder: {folder}")
    return 0


@kernels.command("build")
@click.argument("files", nargs=-1, metavar="[FILE.cu|FOLDER|NAME]...")
@click.option("--arch", "architectures", metavar="sm_80,sm_90a,compute_90",
              help="Real (sm_) and virtual (compute_) architectures.  [default: sm_80,sm_90,sm_100]")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), default=Path("build/kernels"), show_default=True,
              metavar="DIR", help="Where objects and programs go.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print what was built as JSON.")
def build_kernels(files: tuple[str, ...], architectures: str | None, output: Path, as_json: bool) -> int:
    """Compile CUDA files with nvcc: fat binaries for the architectures named, and PTX for later ones.

    All that come with loadgen, or those named. Needs no GPU and no torch. The torch operators that
    kernels bench measures are built by themselves, for the GPU at hand, when they are first run.
    """
    import msgspec

    from loadgen.microbench.build import DEFAULT_ARCHITECTURES, build, find_sources, parse_architectures, render

    report = build(find_sources(files), parse_architectures(architectures or DEFAULT_ARCHITECTURES), output)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        click.echo(render(report))
    return 0


@kernels.command("all-reduce")
@click.option("--ranks", type=int, metavar="N", help="Processes, one a GPU.  [default: all GPUs]")
@click.option("--shape", "shapes", multiple=True, metavar="TxH",
              help="Of a message, bfloat16, such as 256x5120; repeatable.  [default: 1x5120 to 8192x5120]")  # fmt: skip
@click.option("--one-gpu", is_flag=True, help="All processes on one GPU: checks the kernels, times nothing.")
@click.option("--python", metavar="PATH", help="A Python that has torch.  [default: this]")
def all_reduce(ranks: int | None, shapes: tuple[str, ...], one_gpu: bool, python: str | None) -> int:
    """Measure all-reduce over several GPUs of this machine, beside NCCL: a JSON line for each result.

    One process a GPU; results are compared with the sum before and after they are timed.
    """
    from loadgen.microbench.collective import measure_apart
    from loadgen.records import encode_line

    found, code = measure_apart(python, ranks, shapes, one_gpu)
    click.echo(b"".join(encode_line(row) for row in found).decode(), nl=False)
    return code
