"""What is to be launched, and the command that launches it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import msgspec

from loadgen import gpus
from loadgen.engines.installs import EngineKind, Install
from loadgen.engines.models import Model
from loadgen.engines.sim_config import SimConfig
from loadgen.errors import UsageError

GIB = 2**30
DEFAULT_MEMORY_SHARE = 0.9


class EngineSpec(msgspec.Struct, kw_only=True):
    """One engine to launch. What is None is left to the engine.

    Attributes:
        kind: which engine.
        name: what the run calls it; the name of its folder when several are swept.
        model: a folder, ``shape:NAME`` or a name of the hub; not for ``sim``.
        tokenizer: a folder or name, where the model's own does not serve.
        python: the Python of its environment; None looks for one.
        backend: TensorRT-LLM's: ``pytorch`` or ``tensorrt``.
        args: options passed on as they are.
        dtype: of weights and activations, as the engine calls it.
        max_batch_size: sequences in one step.
        max_num_tokens: tokens in one step.
        max_seq_len: prompt and answer together.
        kv_memory_fraction: share of the GPU memory that is left after the weights, for the KV cache.
        tensor_parallel: GPUs that share the model.
        prefix_caching: whether prompts may reuse the KV cache of earlier ones.
        device: what CUDA_VISIBLE_DEVICES is to hold: indices, GPU or MIG UUIDs.
        host, port: where it listens; None takes a free port.
        start_timeout_s, stop_timeout_s: how long it may take to get ready, and to end by itself.
        sim: the embedded engine's behaviour.
    """

    kind: EngineKind
    name: str
    model: str | None = None
    tokenizer: str | None = None
    python: str | None = None
    backend: Literal["pytorch", "tensorrt"] | None = None
    args: list[str] = []
    dtype: str | None = None
    max_batch_size: int | None = None
    max_num_tokens: int | None = None
    max_seq_len: int | None = None
    kv_memory_fraction: float | None = None
    tensor_parallel: int = 1
    prefix_caching: bool | None = None
    device: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    start_timeout_s: float = 1800.0
    stop_timeout_s: float = 30.0
    sim: SimConfig | None = None


class EngineCommand(msgspec.Struct, kw_only=True):
    """How an engine is started; a person can run it alone.

    Attributes:
        argv: the command.
        env: what is set beside the inherited environment; None unsets.
        files: written before the start, by name in the engine's working folder.
        model: the name that requests ask for.
        resets_prefix_cache: whether ``POST /reset_prefix_cache`` is served.
        gpu_uuids: of the GPUs that it runs on.
        facts: for the manifest: versions, Python, parallelism.
    """

    kind: EngineKind
    version: str | None
    argv: list[str]
    env: dict[str, str | None] = {}
    files: dict[str, str] = {}
    model: str
    resets_prefix_cache: bool = False
    gpu_uuids: list[str] = []
    facts: dict[str, object] = {}

    def shell(self) -> str:
        """The command as a line for a shell."""
        import shlex

        env = [f"{name}={shlex.quote(value)}" for name, value in self.env.items() if value is not None]
        unset = [word for name, value in self.env.items() if value is None for word in ("-u", name)]
        return " ".join([*(["env", *unset] if unset else []), *env, shlex.join(self.argv)])


def install_facts(install: Install) -> dict[str, object]:
    """What the manifest keeps of an install."""
    environment = install.environment
    return {
        "package": f"{install.package} {install.version}",
        "python": environment.executable,
        "python_version": environment.python,
        "versions": environment.versions,
        "torch_cuda": environment.torch_cuda,
    }


def facts_of(install: Install, model: Model, mig: gpus.MigSlice | None) -> dict[str, object]:
    """What the manifest keeps of an engine that was launched: its install, the model, and the MIG slice."""
    return {
        **install_facts(install),
        "dummy_weights": model.dummy_weights,
        **model.facts,
        "mig": mig.uuid if mig else None,
    }


def chosen_gpus(spec: EngineSpec, found: list[gpus.Gpu]) -> tuple[list[gpus.Gpu], gpus.MigSlice | None]:
    """The GPUs that ``--device`` names, or as many as tensor parallelism needs; the MIG slice, if it is one.

    Raises:
        UsageError: one that is not there, or too few.
    """
    listing = ", ".join(f"{gpu.index} ({gpu.name})" for gpu in found) or "none"
    device = spec.device
    if device is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            try:
                return chosen_gpus(msgspec.structs.replace(spec, device=visible), found)
            except UsageError:
                return [], None  # the user's own setting, which CUDA may read in ways that are not known here
        if found and len(found) < spec.tensor_parallel:
            raise UsageError(f"--tensor-parallel {spec.tensor_parallel}: this host has {len(found)} GPU(s): {listing}")
        if not found:
            return [], None
        device = ",".join(str(gpu.index) for gpu in found[: spec.tensor_parallel])
    chosen: list[gpus.Gpu] = []
    for piece in (p.strip() for p in device.split(",")):
        slices = [(gpu, part) for gpu in found for part in gpu.mig_slices if part.uuid == piece]
        if slices:
            if "," in device or spec.tensor_parallel > 1:
                raise UsageError(f"--device {device}: a process sees one MIG slice only; name a single one")
            return [slices[0][0]], slices[0][1]
        match = [gpu for gpu in found if piece in (str(gpu.index), gpu.uuid)]
        if not match:
            if piece.startswith("MIG-"):
                known = ", ".join(part.uuid for gpu in found for part in gpu.mig_slices) or "none"
                raise UsageError(f"--device {piece}: no such MIG slice; this host has {known}")
            raise UsageError(f"--device {piece}: no such GPU; this host has {listing}")
        if match[0].mig_enabled:
            raise UsageError(
                f"--device {piece}: MIG is on for GPU {match[0].index}; name one of its slices: "
                + (", ".join(part.uuid for part in match[0].mig_slices) or "none exist; create them first")
            )
        if match[0] in chosen:
            raise UsageError(f"--device {device}: names GPU {match[0].index} twice")
        chosen.append(match[0])
    if len(chosen) < spec.tensor_parallel:
        raise UsageError(f"--tensor-parallel {spec.tensor_parallel} needs as many GPUs; --device names {len(chosen)}")
    return chosen[: spec.tensor_parallel], None


def gpus_for(
    spec: EngineSpec, install: Install, title: str, on_cpu: bool, found: list[gpus.Gpu], way_out: str
) -> tuple[list[gpus.Gpu], gpus.MigSlice | None]:
    """As :func:`chosen_gpus`; for an install that runs on the CPU, none.

    Raises:
        UsageError: an install for GPUs on a host without any, or a device for one that runs on the CPU.
    """
    if on_cpu:
        if spec.device is not None:
            raise UsageError(f"--device {spec.device}: {title} {install.version} is a build for the CPU")
        return [], None
    chosen = chosen_gpus(spec, found)
    if not found:
        raise UsageError(
            f"--engine {spec.kind}: {title} {install.version} in {install.environment.executable} is a build for GPUs, "
            f"and this host shows none (no NVIDIA driver, or no GPU); {way_out}"
        )
    return chosen


def share_with_weights(spec: EngineSpec, model: Model, memory_bytes: int | None) -> float:
    """The share of all memory for weights and KV cache, from a share of what is left after the weights.

    ``--kv-memory-fraction`` F means TensorRT-LLM's ``free_gpu_memory_fraction``; other engines count the
    weights too: (weights + F (memory - weights)) / memory. Where the weights are not known, F is passed on.
    """
    fraction = spec.kv_memory_fraction
    assert fraction is not None
    weights = model.weight_bytes(spec.dtype)
    if weights is None or not memory_bytes:
        return fraction
    held = weights / spec.tensor_parallel
    return (held + fraction * (memory_bytes - held)) / memory_bytes


def check_fit(spec: EngineSpec, model: Model, chosen: list[gpus.Gpu], mig: gpus.MigSlice | None) -> None:
    """Refuses a model that cannot run on those GPUs, before anything is started.

    Raises:
        UsageError: too little memory for the weights, or a number format that the GPU has no units for.
    """
    if not chosen:
        return
    gpu = chosen[0]
    name = mig.name if mig is not None else f"GPU {gpu.index} ({gpu.name})"
    capability = f"sm_{gpu.compute_capability[0]}{gpu.compute_capability[1]}"
    dtype = spec.dtype if spec.dtype not in (None, "auto") else model.dtype
    if (model.quantization == "fp8" or (dtype or "").startswith(("fp8", "float8"))) and (
        gpu.compute_capability < gpus.FP8_SINCE
    ):
        raise UsageError(
            f"{spec.model}: fp8 weights need compute capability 8.9 or above, and {name} is {capability}; use "
            "bfloat16, or an AWQ or GPTQ checkpoint"
        )
    if dtype == "bfloat16" and gpu.compute_capability < gpus.BF16_SINCE:
        raise UsageError(
            f"{spec.model}: bfloat16 needs compute capability 8.0 or above, and {name} is {capability}; "
            "use --dtype float16"
        )
    weights = model.weight_bytes(spec.dtype)
    if weights is None:
        return
    memory = mig.memory_bytes if mig is not None else gpu.memory_bytes
    share = -(-weights // spec.tensor_parallel)
    if share > memory * DEFAULT_MEMORY_SHARE:
        more = -(-weights // int(memory * DEFAULT_MEMORY_SHARE))
        # A process sees one slice only.
        way_out = "a larger slice" if mig is not None else f"--tensor-parallel {more} or more"
        raise UsageError(
            f"{spec.model}: the weights take {weights / GIB:.1f} GiB at {dtype or 'bfloat16'}, {share / GIB:.1f} GiB a "
            f"GPU, and {name} has {memory / GIB:.1f} GiB: use {way_out}, or a smaller dtype"
        )


def device_env(spec: EngineSpec) -> dict[str, str | None]:
    """What makes CUDA see the chosen devices, numbered as NVML numbers them."""
    if spec.device is None:
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": spec.device}


def engine_env(spec: EngineSpec, model: Model) -> dict[str, str | None]:
    """The environment of every engine that is launched: its devices, and no use of the hub for a local model."""
    return device_env(spec) | ({"HF_HUB_OFFLINE": "1"} if model.local else {})


def split_arguments(lines: list[str]) -> list[str]:
    """``--engine-arg`` values as words: each may hold an option and its value.

    Raises:
        UsageError: unbalanced quotes.
    """
    import shlex

    words: list[str] = []
    for line in lines:
        try:
            words += shlex.split(line)
        except ValueError as error:
            raise UsageError(f"--engine-arg {line!r}: {error}") from None
    return words


def write_files(command: EngineCommand, folder: Path) -> None:
    """Writes the command's files into the folder that the engine runs in."""
    for name, text in command.files.items():
        (folder / name).write_text(text)
