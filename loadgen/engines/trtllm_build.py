"""TensorRT engines: convert_checkpoint.py, then trtllm-build, kept under everything that shapes them.

Up to TensorRT-LLM 1.2; later releases have the PyTorch backend alone, which needs no build.

A built engine's folder in the cache:

    <key>/build.json        what it was made of, and which steps are done
    <key>/checkpoint/       from convert_checkpoint.py
    <key>/<model>-engine/   from trtllm-build: what is served; loadgen-build.json in it names the GPU
    <key>/convert.log, build.log

A step that failed leaves nothing behind but its log, and the next call goes on from it.

Sources: TensorRT-LLM 0.21 to 1.2, examples/models/core/*/convert_checkpoint.py, commands/build.py.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from loadgen import gpus
from loadgen.engines.guarded import last_words, run_to_end
from loadgen.engines.installs import Install, check_arguments, help_text, options_in
from loadgen.engines.launch import launch, prepare
from loadgen.engines.lookup import find_install
from loadgen.engines.models import Model, find_model
from loadgen.engines.spec import EngineSpec
from loadgen.engines.trtllm_bench import ENDINGS
from loadgen.environment import cache_folder
from loadgen.errors import EngineError, UsageError
from loadgen.processes import clean_environ
from loadgen.records import write_json

# Where the container has the examples; a source checkout is named with --examples.
CONTAINER_EXAMPLES = Path("/app/tensorrt_llm/examples")
EXAMPLE_FOLDERS = {"llama": "llama", "mistral": "llama", "qwen2": "qwen", "qwen": "qwen", "gpt2": "gpt"}

Say = Callable[[str], None]


class BuildSpec(msgspec.Struct, kw_only=True, frozen=True):
    """What to build. What is None is left to TensorRT-LLM.

    Attributes:
        model: folder of a Hugging Face checkpoint.
        python: of TensorRT-LLM's environment; None looks for one.
        examples: TensorRT-LLM's examples folder; None looks for it.
        dtype: of weights and activations.
        gemm_plugin: its dtype, ``auto`` or ``disable``.
        tensor_parallel: GPUs that share the model.
        weight_only: quantizes the weights to ``int8`` or ``int4``.
        max_batch_size, max_num_tokens, max_seq_len: limits that the engine is built for.
        convert_args, build_args: passed on as they are.
    """

    model: str
    python: str | None = None
    examples: Path | None = None
    dtype: str = "float16"
    gemm_plugin: str | None = None
    tensor_parallel: int = 1
    weight_only: str | None = None
    max_batch_size: int | None = None
    max_num_tokens: int | None = None
    max_seq_len: int | None = None
    convert_args: list[str] = []
    build_args: list[str] = []


class Built(msgspec.Struct, kw_only=True):
    """A built engine: its folder, the model's folder, which has the tokenizer, and whether it was there already."""

    engine: Path
    model: str
    reused: bool


class _Record(msgspec.Struct, kw_only=True):
    """build.json."""

    inputs: dict[str, Any]
    done: dict[str, float] = {}


def build_inputs(spec: BuildSpec, install: Install, model: Model, gpu: str | None) -> dict[str, Any]:
    """Everything that shapes an engine; two builds with the same inputs give the same one."""
    folder = Path(model.path)
    files = {
        path.name: [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(folder.iterdir())
        if path.suffix in (".safetensors", ".bin", ".json", ".model")
    }
    shape = {k: v for k, v in msgspec.structs.asdict(spec).items() if k not in ("python", "examples")}
    return {
        **shape,
        "model": str(folder),
        "files": files,
        "config": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
        "trtllm": install.version,
        "tensorrt": install.environment.versions.get("tensorrt"),
        "gpu": gpu,
    }


def cache_key(inputs: dict[str, Any]) -> str:
    """A folder's name: the model's, and a hash of all inputs."""
    digest = hashlib.sha256(msgspec.json.encode(inputs, order="sorted")).hexdigest()[:16]
    return f"{Path(inputs['model']).name}-{digest}"


def find_converter(spec: BuildSpec, model: Model) -> Path:
    """The convert_checkpoint.py for the model's family.

    Raises:
        UsageError: the family has none, or the examples are not found.
    """
    kind = str(model.config.get("model_type"))
    family = EXAMPLE_FOLDERS.get(kind, kind)
    roots = [spec.examples] if spec.examples else []
    if not roots and (named := os.environ.get("TRTLLM_EXAMPLES")):
        roots.append(Path(named))
    roots = roots or [CONTAINER_EXAMPLES]
    # Up to 0.17 the families lay in the examples folder itself.
    for root in roots:
        for folder in (root / "models" / "core" / family, root / family):
            if (folder / "convert_checkpoint.py").is_file():
                return folder / "convert_checkpoint.py"
    raise UsageError(
        f"no convert_checkpoint.py for model_type {kind!r} under {roots[0]}; name the examples folder of the "
        "TensorRT-LLM release that is installed with --examples (the container has them in "
        "/app/tensorrt_llm/examples, and so has the source; the pip package has none)"
    )


def build_engine(spec: BuildSpec, cache: Path | None, say: Say) -> Built | None:
    """The engine for a spec, built or found.

    Args:
        spec: what to build.
        cache: where engines are kept; None takes loadgen's own cache folder.
        say: told how it gets on.

    Returns:
        None where the installed release builds no engines, which is said.

    Raises:
        UsageError: nothing was started: no TensorRT-LLM, no such model, an unknown option.
        EngineError: a step failed; its log is named, and the next call goes on from there.
    """
    install = find_install("trtllm", spec.python)
    builder = install.environment.script("trtllm-build")
    if builder is None:
        say(
            f"TensorRT-LLM {install.version} has no trtllm-build: its PyTorch backend serves the model's folder as it "
            f"is (loadgen sweep --engine trtllm --model {spec.model}). Nothing to build."
        )
        return None
    model = find_model(spec.model, cache_folder() / "shapes")
    if not model.local or model.dummy_weights:
        raise UsageError(
            f"--model {spec.model}: an engine is built from a checkpoint in a folder here; download it first"
        )
    if model.engine_dir:
        raise UsageError(f"--model {spec.model}: is an engine already; sweep --engine trtllm --model takes it as it is")
    converter = find_converter(spec, model)
    known = options_in(help_text([builder, "--help"]))
    check_arguments(spec.build_args, known, f"trtllm-build {install.version}", "--build-arg")
    cards, _ = gpus.find_gpus()
    inputs = build_inputs(spec, install, model, cards[0].name if cards else None)
    folder = (cache or cache_folder() / "trtllm") / cache_key(inputs)
    folder.mkdir(parents=True, exist_ok=True)
    record = _read_record(folder, inputs)
    output = folder / f"{model.name}-engine"  # the name by which trtllm-serve will list it
    if {"convert", "build"} <= record.done.keys() and (output / "config.json").exists():
        say(f"found: {output}")
        return Built(engine=output, model=model.path, reused=True)
    steps: list[tuple[str, Path, list[str]]] = [
        ("convert", folder / "checkpoint", convert_words(spec, install, converter, model, folder / "checkpoint")),
        ("build", output, build_words(spec, builder, folder / "checkpoint", output, known)),
    ]
    for name, result, words in steps:
        if name in record.done and result.exists():
            say(f"{name}: done before")
            continue
        shutil.rmtree(result, ignore_errors=True)
        started = time.monotonic()
        _run_step(name, words, folder, result, say)
        record.done[name] = round(time.monotonic() - started, 1)
        if name == "build":
            write_json(result / "loadgen-build.json", {"gpu": inputs["gpu"], "inputs": inputs})
        write_json(folder / "build.json", record)
        say(f"{name}: done in {record.done[name]:g} s")
    return Built(engine=output, model=model.path, reused=False)


def _read_record(folder: Path, inputs: dict[str, Any]) -> _Record:
    try:
        return msgspec.json.decode((folder / "build.json").read_bytes(), type=_Record)
    except (OSError, msgspec.MsgspecError):
        return _Record(inputs=inputs)


def convert_words(spec: BuildSpec, install: Install, converter: Path, model: Model, output: Path) -> list[str]:
    """The command that converts a checkpoint."""
    words = [install.environment.executable, str(converter), "--model_dir", model.path, "--output_dir", str(output)]
    words += ["--dtype", spec.dtype]
    if spec.tensor_parallel > 1:
        words += ["--tp_size", str(spec.tensor_parallel)]
    if spec.weight_only:
        words += ["--use_weight_only", "--weight_only_precision", spec.weight_only]
    return words + spec.convert_args


def build_words(spec: BuildSpec, builder: str, checkpoint: Path, output: Path, known: set[str]) -> list[str]:
    """The command that builds an engine.

    Raises:
        UsageError: this version of trtllm-build lacks an option that was asked for.
    """
    words = [builder, "--checkpoint_dir", str(checkpoint), "--output_dir", str(output)]
    for option, value in (
        ("--gemm_plugin", spec.gemm_plugin),
        ("--max_batch_size", spec.max_batch_size),
        ("--max_num_tokens", spec.max_num_tokens),
        ("--max_seq_len", spec.max_seq_len),
    ):
        if value is not None:
            check_arguments([option], known, "trtllm-build", option)
            words += [option, str(value)]
    return words + spec.build_args


def _run_step(name: str, words: list[str], folder: Path, output: Path, say: Say) -> None:
    """Runs one step with its output in a log.

    Raises:
        EngineError: it failed. What it had written is removed, so that nobody takes it for whole.
    """
    log = folder / f"{name}.log"
    say(f"{name}: {shlex.join(words)}\n  log: {log}")
    try:
        code = run_to_end(name, words, clean_environ(), folder, log, say)
        if code != 0 or not (output / "config.json").exists():
            what = last_words(log, code, endings=ENDINGS) if code else f"it wrote no config.json; its log is {log}"
            raise EngineError(f"{name} failed: {what}\nRun the same command again to go on from here.")
    except BaseException:
        shutil.rmtree(output, ignore_errors=True)
        raise


def smoke_run(spec: BuildSpec, built: Built, say: Say) -> None:
    """Serves a built engine and streams one token from it.

    Raises:
        EngineError: it cannot be served.
    """
    import asyncio

    engine = EngineSpec(
        kind="trtllm", name="smoke", model=str(built.engine), tokenizer=built.model, python=spec.python,
        tensor_parallel=spec.tensor_parallel,
    )  # fmt: skip
    cards, _ = gpus.find_gpus()
    command = prepare(engine, cards)
    folder = built.engine.parent / "smoke"
    folder.mkdir(exist_ok=True)

    async def run() -> float:
        async with launch(engine, command, folder, say=say) as launched:
            return launched.startup_s["total"]

    say(f"smoke run: served, and a token streamed, {asyncio.run(run()):.0f} s after the start")
