"""``loadgen engines ...``: find engines, build for them, serve with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from loadgen.cli.engine_options import engine_specs, sim_config
from loadgen.cli.options import (
    Engine,
    EnginePythons,
    Json,
    MaxBatchSize,
    MaxNumTokens,
    MaxSeqLen,
    ServeHost,
    Simulator,
    TensorParallel,
)
from loadgen.cli.output import say, show, show_result
from loadgen.cli.panels import command, group
from loadgen.cli.params import EMBEDDED, INSTALLED_ENGINE, count, installed_engines, option
from loadgen.errors import EngineError, UsageError

engines = group(
    "engines",
    "Find, build and serve the engines that loadgen can launch.",
    """
# Which engines this machine has, and what is missing
loadgen engines doctor
# Launch vLLM with a tiny model, send to it, and stop it
loadgen engines doctor --selftest vllm
# Serve a model as a sweep would, until Ctrl-C
loadgen engines serve vllm --model ./M
""",
)
serve = group(
    "serve",
    "Run an engine in the foreground, as a sweep would launch it.",
    """
# The embedded simulator
loadgen engines serve sim --port 8000
# vLLM, with an option of its own
loadgen engines serve vllm --model ./M --engine-arg '--max-num-seqs 256'
# Only print the command that would start TensorRT-LLM
loadgen engines serve trtllm --model ./M --show
""",
)
build = group(
    "build",
    "Build what an engine needs before it can serve.",
    """
# A TensorRT engine from a Hugging Face checkpoint
loadgen engines build trtllm --model ./M --dtype bfloat16
# Weights of 8 bits
loadgen engines build trtllm --model ./M --weight-only int8 --dtype float16
# Without serving the result once at the end
loadgen engines build trtllm --model ./M --no-smoke
""",
)
MODEL_HELP = "Model: a folder, shape:NAME, or a name on the Hugging Face hub."


@command(
    engines,
    """
# Everything, in words
loadgen engines doctor
# Another Python environment too
loadgen engines doctor --engine-python ~/vllm/bin/python
# Try vLLM with a tiny model
loadgen engines doctor --selftest vllm
""",
)
def doctor(
    pythons: EnginePythons = None,
    tensor_test: Annotated[
        bool,
        option("--tensor-test/--no-tensor-test", help="Add two tensors on the GPU with each PyTorch that is found."),
    ] = True,
    selftest: Annotated[
        str | None,
        option(
            "--selftest", kind=INSTALLED_ENGINE,
            help="Engine to launch with a tiny model, send to and stop; prints each assumption that fails.",
        ),
    ] = None,
    json: Json = False,
) -> int:  # fmt: skip
    """Show this machine, its GPUs and engines, and what is missing.

    For everything that is missing it says how to fix it.
    """
    from loadgen.engines import doctor as examine

    if selftest is not None:
        from loadgen.sweeps.selftest import run_selftest

        return 0 if run_selftest(selftest, pythons[0] if pythons else None, show) else EngineError.exit_code
    found = examine.examine(pythons or [], tensor_test)
    show_result(found, json, lambda: examine.render(found))
    return 0


@command(
    engines,
    """
# Engines in this environment and on PATH
loadgen engines list
# Another Python environment too
loadgen engines list --engine-python ~/vllm/bin/python
# As JSON
loadgen engines list --json
""",
    name="list",
)
def list_engines(pythons: EnginePythons = None, json: Json = False) -> int:
    """List the engines that are installed, and whether they work here."""
    from loadgen.engines import doctor as examine

    found = examine.found_engines(pythons or [])
    show_result(found, json, lambda: examine.render_list(found))
    return 0


@command(
    serve,
    """
# A model of an A100 that serves a 4B model
loadgen engines serve sim
# Exact timing: 20 ms to the first token, then 5 ms for each
loadgen engines serve sim --sim-mode fixed --sim-ttft 20ms --sim-tpot 5ms
# Every reply breaks off after three tokens
loadgen engines serve sim --fault '{"error_after": 3}'
""",
    name=EMBEDDED,
)
def serve_sim(
    simulator: Simulator,
    host: ServeHost = "127.0.0.1",
    port: Annotated[int, option("--port", kind=count(least=0, most=65535), help="Port.  [default: 8000]")] = 8000,
    fault: Annotated[
        str | None,
        option("--fault", metavar="JSON", help="Fault to put into every reply, such as '{\"error_after\": 3}'."),
    ] = None,
) -> int:
    """Serve the embedded simulator.

    It computes nothing, and every figure from it is SIMULATED. The field "sim" of a request sets faults
    and timing for that request alone; loadgen/engines/sim_config.py lists them.
    """
    import msgspec

    from loadgen.engines.sim import SimServer
    from loadgen.engines.sim_config import Fault

    config = sim_config(simulator, host, port)
    try:
        if fault is not None:
            msgspec.json.decode(fault, type=Fault)
            config = msgspec.structs.replace(config, fault=msgspec.json.decode(fault))
    except msgspec.MsgspecError as error:
        raise UsageError(f"--fault: {error}; loadgen/engines/sim_config.py lists the faults") from None
    try:
        server = SimServer(config)
    except OSError as error:
        raise EngineError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    show(f"SIMULATED engine {config.served_name!r} at http://{host}:{server.port}; Ctrl-C ends it")
    try:
        server.run()
    except KeyboardInterrupt:
        show("ended")
    return 0


def _serve(kind: str, model: str, host: str, show_only: bool, options: Engine) -> int:
    """Launches an engine, says where it is, and waits for Ctrl-C or its end."""
    import asyncio

    import msgspec

    from loadgen.engines.launch import fill_in, launch, prepare
    from loadgen.engines.spec import write_files
    from loadgen.gpus import find_gpus
    from loadgen.processes import Interrupts
    from loadgen.run_folders import default_output

    spec = msgspec.structs.replace(engine_specs((kind,), model, False, options, Simulator())[0], host=host)
    if spec.port is None:
        spec.port = 8000
    command = prepare(spec, find_gpus()[0])
    folder = default_output(f"serve-{kind}")
    folder.mkdir(parents=True, exist_ok=True)
    if show_only:
        write_files(command, folder)
        show(fill_in(command, spec.port, folder).shell())
        return 0

    async def run(interrupts: Interrupts) -> None:
        async with launch(spec, command, folder, cancelled=lambda: interrupts.count > 0, say=say) as engine:
            show(f"{kind} {engine.server.version} serves {command.model} at {engine.url}; Ctrl-C ends it")
            while not interrupts.count:
                if (death := engine.death()) is not None:
                    raise EngineError(f"{kind} ended, {death}")
                await asyncio.sleep(0.2)

    with Interrupts().watching() as interrupts:
        asyncio.run(run(interrupts))
    show("ended")
    return 0


def _add_serve(kind: str) -> None:
    @command(
        serve,
        f"""
# A model in a folder, at port 8000
loadgen engines serve {kind} --model ./M
# On the second GPU, at another port
loadgen engines serve {kind} --model ./M --device 1 --port 8001
# Only print the command
loadgen engines serve {kind} --model ./M --show
""",
        name=kind,
        about=f"Serve {kind} with the command that a sweep would use.",
    )
    def serve_engine(
        model: Annotated[str, option("--model", metavar="MODEL", help=MODEL_HELP)],
        engine: Engine,
        host: ServeHost = "127.0.0.1",
        show_only: Annotated[
            bool, option("--show", help="Print the command and write the files that it needs, but start nothing.")
        ] = False,
    ) -> int:
        return _serve(kind, model, host, show_only, engine)


class Build(NamedTuple):
    """Build."""

    model: Annotated[str, option("--model", metavar="DIR", help="Folder of the Hugging Face checkpoint.")]
    python: Annotated[
        str | None,
        option("--engine-python", metavar="PATH", help="Python of the environment that has TensorRT-LLM."),
    ] = None
    examples: Annotated[
        Path | None,
        option(
            "--examples",
            metavar="DIR",
            help="TensorRT-LLM's examples folder, with convert_checkpoint.py.  [default: searched for]",
        ),
    ] = None
    dtype: Annotated[str, option("--dtype", metavar="TYPE", help="Data type of weights and activations.")] = "float16"
    gemm_plugin: Annotated[
        str | None,
        option(
            "--gemm-plugin",
            metavar="TYPE",
            help="Data type of the GEMM plugin, auto or disable.  [default: trtllm-build's]",
        ),
    ] = None
    tensor_parallel: TensorParallel = 1
    weight_only: Annotated[
        Literal["int8", "int4"] | None, option("--weight-only", help="Precision to quantize the weights to.")
    ] = None
    max_batch_size: MaxBatchSize = None
    max_num_tokens: MaxNumTokens = None
    max_seq_len: MaxSeqLen = None
    convert_args: Annotated[
        list[str] | None,
        option("--convert-arg", metavar="'--opt value'", help="Option for convert_checkpoint.py; repeatable."),
    ] = None
    build_args: Annotated[
        list[str] | None,
        option("--build-arg", metavar="'--opt value'", help="Option for trtllm-build; repeatable."),
    ] = None
    cache: Annotated[
        Path | None, option("--cache", metavar="DIR", help="Folder for built engines.  [default: the user's cache]")
    ] = None
    smoke: Annotated[
        bool, option("--smoke/--no-smoke", help="Serve the engine once and stream a token from it at the end.")
    ] = True


@command(
    build,
    """
# From a Hugging Face checkpoint
loadgen engines build trtllm --model ./M --dtype bfloat16
# With an option for trtllm-build
loadgen engines build trtllm --model ./M --build-arg '--log_level info'
# With TensorRT-LLM in another environment
loadgen engines build trtllm --model ./M --engine-python ~/trtllm/bin/python
""",
    name="trtllm",
)
def build_trtllm(build: Build) -> int:
    """Build a TensorRT engine from a checkpoint.

    This is for TensorRT-LLM up to 1.2, whose engines are built before they are served. A built engine is
    kept and found again when the same one is asked for; a build that failed resumes at the step that
    failed. Prints the engine's folder, for `loadgen sweep --engine trtllm --model FOLDER`.
    """
    from loadgen.engines.spec import split_arguments
    from loadgen.engines.trtllm_build import BuildSpec, build_engine, smoke_run

    fields = build._asdict()
    cache, smoke = fields.pop("cache"), fields.pop("smoke")
    for name in ("convert_args", "build_args"):
        fields[name] = split_arguments(fields[name] or [])
    spec = BuildSpec(**fields)
    built = build_engine(spec, cache, say)
    if built is None:
        return 0
    if smoke:
        smoke_run(spec, built, say)
    show(str(built.engine))
    return 0


for _kind in installed_engines():
    _add_serve(_kind)
for _group in (serve, build):
    engines.add_typer(_group)
