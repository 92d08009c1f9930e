"""``loadgen engines ...``, and the options by which ``sweep`` launches an engine too."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from loadgen.errors import EngineError, UsageError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _all(*options: Decorator) -> Decorator:
    """One decorator that adds several options, in the order in which --help is to show them."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def sim_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What the embedded engine can be told."""
    from loadgen.engines.sim_model import GPUS, MODELS

    return _all(
        click.option("--sim-mode", type=click.Choice(["batch", "fixed"]), default="batch", show_default=True,
                     help="batch: a model of a GPU. fixed: the timing below, exactly."),
        click.option("--sim-gpu", type=click.Choice(sorted(GPUS)), default="a100-80gb", show_default=True),
        click.option("--sim-model", type=click.Choice(sorted(MODELS)), default="qwen1.5-4b", show_default=True),
        click.option("--sim-ttft", default="50ms", show_default=True, help="Mode fixed: time to first token."),
        click.option("--sim-tpot", default="10ms", show_default=True, help="Mode fixed: time between tokens."),
    )(command)  # fmt: skip


def sim_config(options: dict[str, Any], host: str = "127.0.0.1", port: int = 0) -> Any:
    """The embedded engine's configuration from its options."""
    from loadgen.engines.sim import SimConfig
    from loadgen.units import parse_duration_s

    return SimConfig(
        mode=options["sim_mode"],
        gpu=options["sim_gpu"],
        model=options["sim_model"],
        ttft_s=parse_duration_s(options["sim_ttft"]),
        tpot_s=parse_duration_s(options["sim_tpot"]),
        host=host,
        port=port,
    )


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What vLLM and TensorRT-LLM can be told, under one name for both."""
    return _all(
        click.option("--engine-python", "engine_pythons", multiple=True, metavar="[KIND=]PATH",
                     help="Python of the environment that the engine is installed in."),
        click.option("--engine-arg", "engine_args", multiple=True, metavar="[KIND=]'--opt value'",
                     help="Passed on to the engine as it is; repeatable."),
        click.option("--tokenizer", metavar="PATH", help="Where the model's folder has none."),
        click.option("--backend", type=click.Choice(["pytorch", "tensorrt"]),
                     help="TensorRT-LLM's.  [default: by what --model is]"),
        click.option("--dtype", metavar="T", help="Such as bfloat16 or float16.  [default: the model's]"),
        click.option("--max-batch-size", type=click.IntRange(1), metavar="N", help="Sequences in one step."),
        click.option("--max-num-tokens", type=click.IntRange(1), metavar="N", help="Tokens in one step."),
        click.option("--max-seq-len", type=click.IntRange(2), metavar="N", help="Prompt and answer together."),
        click.option("--kv-memory-fraction", type=click.FloatRange(0, 1, min_open=True), metavar="F",
                     help="Share of the memory left after the weights, for the KV cache."),
        click.option("--tensor-parallel", type=click.IntRange(1), default=1, metavar="N", help="GPUs for one model."),
        click.option("--prefix-caching", type=click.Choice(["on", "off"]), help="[default: the engine's]"),
        click.option("--device", metavar="D", help="GPU index or UUID, several with commas, or a MIG slice's UUID."),
        click.option("--port", "engine_port", type=click.IntRange(1, 65535), help="[default: a free one]"),
        click.option("--start-timeout", default="30m", show_default=True, help="How long an engine may take to start."),
    )(command)  # fmt: skip


KINDS = ("vllm", "trtllm", "sim")


def _for_kind(values: tuple[str, ...], kind: str, kinds: set[str], option: str) -> list[str]:
    """The values meant for one kind: those that name it, and those that name none."""
    found = []
    for value in values:
        name, equals, rest = value.partition("=")
        if equals and name in KINDS:
            if name not in kinds:
                raise UsageError(f"{option} {value}: {name} is not among the engines that are launched")
            if name == kind:
                found.append(rest)
        elif len(kinds - {"sim"}) > 1:
            raise UsageError(f"{option} {value}: say which engine it is for, such as {option} vllm={value}")
        else:
            found.append(value)
    return found


def engine_specs(kinds: tuple[str, ...], model: str | None, mig: bool, options: dict[str, Any]) -> list[Any]:
    """An EngineSpec for each engine asked for; with ``mig`` one for each MIG slice of this host.

    Raises:
        UsageError: options that do not go together, or a value that is none.
    """
    from loadgen.engines.spec import EngineSpec, split_arguments
    from loadgen.units import parse_duration_s

    asked = set(kinds)
    if asked == {"sim"}:
        if model is not None:
            raise UsageError(
                "--model is for --engine vllm or trtllm, or for --url; the embedded engine's is --sim-model"
            )
        given = [name for name in ("engine_pythons", "engine_args", "tokenizer", "backend", "dtype", "max_batch_size",
                                   "max_num_tokens", "max_seq_len", "kv_memory_fraction", "prefix_caching", "device")
                 if options[name]]  # fmt: skip
        if given:
            name = given[0].removesuffix("s") if given[0].startswith("engine_") else given[0]
            raise UsageError(f"--{name.replace('_', '-')} is for --engine vllm or trtllm")
    if any("--api-key" in value for value in options["engine_args"]):
        raise UsageError("--engine-arg --api-key: an engine that loadgen launches listens on loopback and takes no key")
    devices: list[str | None] = [options["device"]]
    if mig:
        if len(kinds) != 1 or options["device"] is not None:
            raise UsageError("--mig all takes one --engine and no --device: it runs it on every slice")
        devices = list(_mig_slices())
    specs: list[Any] = []
    for kind in kinds:
        pythons = _for_kind(options["engine_pythons"], kind, asked, "--engine-python")
        if len(pythons) > 1:
            raise UsageError(f"--engine-python: {kind} is given twice")
        for index, device in enumerate(devices):
            same = sum(spec.kind == kind for spec in specs)
            specs.append(
                EngineSpec(
                    kind=kind,  # type: ignore[arg-type]
                    name=f"slice-{index}" if mig else kind if not same else f"{kind}-{same + 1}",
                    model=model,
                    tokenizer=options["tokenizer"],
                    python=pythons[0] if pythons else None,
                    backend=options["backend"] if kind == "trtllm" else None,
                    args=split_arguments(_for_kind(options["engine_args"], kind, asked, "--engine-arg")),
                    dtype=options["dtype"],
                    max_batch_size=options["max_batch_size"],
                    max_num_tokens=options["max_num_tokens"],
                    max_seq_len=options["max_seq_len"],
                    kv_memory_fraction=options["kv_memory_fraction"],
                    tensor_parallel=options["tensor_parallel"],
                    prefix_caching=None if options["prefix_caching"] is None else options["prefix_caching"] == "on",
                    device=device,
                    port=options["engine_port"],
                    start_timeout_s=parse_duration_s(options["start_timeout"]),
                    sim=sim_config(options) if kind == "sim" else None,
                )
            )
    if options["backend"] is not None and "trtllm" not in asked:
        raise UsageError("--backend is TensorRT-LLM's: it goes with --engine trtllm")
    if options["engine_port"] is not None and mig:
        raise UsageError("--port and --mig all exclude each other: each slice needs a port of its own")
    return specs


def _mig_slices() -> list[str]:
    from loadgen.gpus import find_gpus

    found, _ = find_gpus()
    slices = [part.uuid for gpu in found for part in gpu.mig_slices]
    if not slices:
        raise UsageError("--mig all: this host has no MIG slice; loadgen never makes one (nvidia-smi mig -cgi does)")
    return slices


@click.group()
def engines() -> None:
    """Engines that loadgen can run: find them, build for them, start them."""


@engines.command()
@click.option("--engine-python", "pythons", multiple=True, metavar="PATH",
              help="Look into this Python's environment too; repeatable.")  # fmt: skip
@click.option("--tensor-test/--no-tensor-test", default=True, help="Add two tensors on the GPU with each torch found.")
@click.option("--selftest", type=click.Choice(["vllm", "trtllm"]),
              help="Launch this engine with a tiny model, send to it, stop it, and say what does not fit.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def doctor(pythons: tuple[str, ...], tensor_test: bool, selftest: str | None, as_json: bool) -> int:
    """Show this machine, its GPUs and tools, and the engines found; say what is missing and what mends it."""
    import msgspec

    from loadgen.engines import doctor as examine

    if selftest is not None:
        from loadgen.sweeps.selftest import run_selftest

        python = pythons[0] if pythons else None
        return 0 if run_selftest(selftest, python, click.echo) else EngineError.exit_code
    found = examine.examine(list(pythons), tensor_test)
    click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2) if as_json else examine.render(found))
    return 0


@engines.command("list")
@click.option("--engine-python", "pythons", multiple=True, metavar="PATH", help="Look there too; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def list_engines(pythons: tuple[str, ...], as_json: bool) -> int:
    """List the engines that are installed, and whether they can be used here."""
    import msgspec

    from loadgen.engines import doctor as examine

    found = examine.found_engines(list(pythons))
    click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2) if as_json else examine.render_list(found))
    return 0


@engines.group()
def serve() -> None:
    """Run an engine in the foreground, as a sweep would launch it."""


@serve.command("sim")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--fault", metavar="JSON", help="Misbehave in every reply, e.g. '{\"error_after\": 3}'.")
@sim_options
def serve_sim(host: str, port: int, fault: str | None, **options: Any) -> int:
    """The embedded engine. It computes nothing: figures from it are SIMULATED.

    A request's own field "sim" commands faults and timing for it alone; loadgen/engines/sim_config.py
    lists them.
    """
    import msgspec

    from loadgen.engines.sim import Fault, SimServer

    config = sim_config(options, host, port)
    try:
        if fault is not None:
            msgspec.json.decode(fault, type=Fault)
            config = msgspec.structs.replace(config, fault=msgspec.json.decode(fault))
    except msgspec.MsgspecError as error:
        raise UsageError(f"--fault: {error}; loadgen/engines/sim_config.py lists what can be commanded") from None
    try:
        server = SimServer(config)
    except OSError as error:
        raise EngineError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    click.echo(f"SIMULATED engine {config.served_name!r} at http://{host}:{server.port}; Ctrl-C ends it")
    try:
        server.run()
    except KeyboardInterrupt:
        click.echo("ended")
    return 0


def _serve(kind: str, model: str, host: str, show: bool, options: dict[str, Any]) -> int:
    """Launches an engine, says where it is, and waits for Ctrl-C or its end."""
    import asyncio

    import msgspec

    from loadgen.engines.launch import fill_in, launch, prepare
    from loadgen.engines.spec import write_files
    from loadgen.gpus import find_gpus
    from loadgen.processes import Interrupts
    from loadgen.run_folders import default_output

    spec = msgspec.structs.replace(engine_specs((kind,), model, False, options)[0], host=host)
    if spec.port is None:
        spec.port = 8000
    command = prepare(spec, find_gpus()[0])
    folder = default_output(f"serve-{kind}")
    folder.mkdir(parents=True, exist_ok=True)
    if show:
        write_files(command, folder)
        click.echo(fill_in(command, spec.port, folder).shell())
        return 0

    async def run(interrupts: Interrupts) -> None:
        async with launch(
            spec, command, folder, cancelled=lambda: interrupts.count > 0, say=lambda text: click.echo(text, err=True)
        ) as engine:
            click.echo(f"{kind} {engine.server.version} serves {command.model} at {engine.url}; Ctrl-C ends it")
            while not interrupts.count:
                if (death := engine.death()) is not None:
                    raise EngineError(f"{kind} ended, {death}")
                await asyncio.sleep(0.2)

    with Interrupts().watching() as interrupts:
        asyncio.run(run(interrupts))
    click.echo("ended")
    return 0


def _serve_command(kind: str, text: str) -> None:
    @serve.command(kind, help=text)
    @click.option("--model", required=True, metavar="M", help="A folder, shape:NAME, or a name of the hub.")
    @click.option("--host", default="127.0.0.1", show_default=True)
    @click.option("--show", is_flag=True, help="Print the command; start nothing. Files that it needs are written.")
    @engine_options
    def command(model: str, host: str, show: bool, **options: Any) -> int:
        options["sim_mode"] = None
        return _serve(kind, model, host, show, options)


_serve_command("vllm", "vLLM, with the command that a sweep would use.")
_serve_command("trtllm", "TensorRT-LLM's trtllm-serve, with the command that a sweep would use.")


@engines.group()
def build() -> None:
    """Build what an engine needs before it can serve."""


@build.command("trtllm")
@click.option("--model", required=True, metavar="DIR", help="Folder of the Hugging Face checkpoint.")
@click.option("--engine-python", "python", metavar="PATH", help="Of TensorRT-LLM's environment.")
@click.option("--examples", type=click.Path(path_type=Path), metavar="DIR",
              help="TensorRT-LLM's examples folder, with convert_checkpoint.py.  [default: looked for]")  # fmt: skip
@click.option("--dtype", default="float16", show_default=True, help="Of weights and activations.")
@click.option("--gemm-plugin", metavar="T", help="Its dtype, auto or disable.  [default: trtllm-build's]")
@click.option("--tensor-parallel", type=click.IntRange(1), default=1, metavar="N", show_default=True)
@click.option("--weight-only", type=click.Choice(["int8", "int4"]), help="Quantize the weights alone.")
@click.option("--max-batch-size", type=click.IntRange(1), metavar="N")
@click.option("--max-num-tokens", type=click.IntRange(1), metavar="N")
@click.option("--max-seq-len", type=click.IntRange(2), metavar="N")
@click.option("--convert-arg", "convert_args", multiple=True, metavar="'--opt value'",
              help="Passed on to convert_checkpoint.py; repeatable.")  # fmt: skip
@click.option("--build-arg", "build_args", multiple=True, metavar="'--opt value'",
              help="Passed on to trtllm-build; repeatable.")  # fmt: skip
@click.option("--cache", type=click.Path(path_type=Path), metavar="DIR", help="Where built engines are kept.")
@click.option("--smoke/--no-smoke", default=True, help="Serve the engine and stream one token at the end.")
def build_trtllm(
    model: str, python: str | None, examples: Path | None, convert_args: tuple[str, ...], build_args: tuple[str, ...],
    cache: Path | None, smoke: bool, **shape: Any,
) -> int:  # fmt: skip
    """Convert a checkpoint and build a TensorRT engine from it (TensorRT-LLM up to 1.2).

    The result is kept under everything that shapes it and found again; a build that failed goes on
    from the step that failed. Prints the engine's folder, which `sweep --engine trtllm --model` takes.
    """
    from loadgen.engines.spec import split_arguments
    from loadgen.engines.trtllm_build import BuildSpec, build_engine, smoke_run

    spec = BuildSpec(
        model=model,
        python=python,
        examples=examples,
        convert_args=split_arguments(list(convert_args)),
        build_args=split_arguments(list(build_args)),
        **shape,
    )
    say = _say_to_stderr
    built = build_engine(spec, cache, say)
    if built is None:
        return 0
    if smoke:
        smoke_run(spec, built, say)
    click.echo(str(built.engine))
    return 0


def _say_to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
