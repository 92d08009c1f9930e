"""What an engine is launched with, from the options of ``sweep`` and ``engines serve``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loadgen.cli.options import Engine, Simulator
from loadgen.cli.params import EMBEDDED, ENGINE
from loadgen.errors import UsageError

if TYPE_CHECKING:
    from loadgen.engines.sim_config import SimConfig
    from loadgen.engines.spec import EngineSpec

# Options that mean nothing to the embedded engine, by their fields. Those left out have a default that fits it too.
LAUNCHED_ONLY = {
    "engine_pythons": "--engine-python",
    "engine_args": "--engine-arg",
    "tokenizer": "--tokenizer",
    "backend": "--backend",
    "dtype": "--dtype",
    "max_batch_size": "--max-batch-size",
    "max_num_tokens": "--max-num-tokens",
    "max_seq_len": "--max-seq-len",
    "kv_memory_fraction": "--kv-memory-fraction",
    "prefix_caching": "--prefix-caching",
    "device": "--device",
}


def sim_config(options: Simulator, host: str = "127.0.0.1", port: int = 0) -> SimConfig:
    """The embedded engine's configuration."""
    from loadgen.engines.sim_config import SimConfig

    return SimConfig(
        mode=options.sim_mode,
        gpu=options.sim_gpu,
        model=options.sim_model,
        ttft_s=options.sim_ttft_s,
        tpot_s=options.sim_tpot_s,
        host=host,
        port=port,
    )


def engine_specs(
    kinds: Sequence[str], model: str | None, mig: bool, options: Engine, simulator: Simulator
) -> list[EngineSpec]:
    """An EngineSpec for each engine asked for; with ``mig`` one for each MIG slice of this host.

    Raises:
        UsageError: options that do not go together, or a value that cannot be used.
    """
    _check(kinds, model, mig, options)
    devices = _mig_slices() if mig else [options.device]
    specs: list[EngineSpec] = []
    for kind in kinds:
        for index, device in enumerate(devices):
            same = sum(spec.kind == kind for spec in specs)
            name = f"slice-{index}" if mig else kind if not same else f"{kind}-{same + 1}"
            specs.append(_spec(kind, name, device, model, set(kinds), options, simulator))
    return specs


def _check(kinds: Sequence[str], model: str | None, mig: bool, options: Engine) -> None:
    asked = set(kinds)
    if asked == {EMBEDDED}:
        if model is not None:
            raise UsageError("--model needs --url or an --engine to launch; for the embedded engine use --sim-model")
        for field, name in LAUNCHED_ONLY.items():
            if getattr(options, field):
                raise UsageError(f"{name} needs an --engine to launch; the embedded engine has no such setting")
    if any("--api-key" in value for value in options.engine_args or []):
        raise UsageError("--engine-arg --api-key: an engine that loadgen launches listens on loopback and takes no key")
    if mig and (len(kinds) != 1 or options.device is not None):
        raise UsageError("--mig all takes one --engine and no --device: it runs the engine on every slice")
    if options.backend is not None and not asked & _with_backend(options.backend):
        able = " or ".join(sorted(_with_backend(options.backend)))
        raise UsageError(f"--backend {options.backend} needs --engine {able}")
    if options.engine_port is not None and mig:
        raise UsageError("--port and --mig all exclude each other: each slice needs a port of its own")


def _with_backend(backend: str) -> set[str]:
    """The engines that have this backend."""
    from loadgen.engines.table import ENGINES

    return {kind for kind, row in ENGINES.items() if backend in row.backend_options}


def _spec(
    kind: str, name: str, device: str | None, model: str | None, kinds: set[str], options: Engine, simulator: Simulator
) -> EngineSpec:
    from loadgen.engines.spec import EngineSpec, split_arguments

    pythons = _for_kind(options.engine_pythons, kind, kinds, "--engine-python")
    if len(pythons) > 1:
        raise UsageError(f"--engine-python: {kind} is given twice")
    return EngineSpec(
        kind=kind,  # type: ignore[arg-type]
        name=name,
        model=model,
        tokenizer=options.tokenizer,
        python=pythons[0] if pythons else None,
        backend=options.backend if options.backend and kind in _with_backend(options.backend) else None,
        args=split_arguments(_for_kind(options.engine_args, kind, kinds, "--engine-arg")),
        dtype=options.dtype,
        max_batch_size=options.max_batch_size,
        max_num_tokens=options.max_num_tokens,
        max_seq_len=options.max_seq_len,
        kv_memory_fraction=options.kv_memory_fraction,
        tensor_parallel=options.tensor_parallel,
        prefix_caching=None if options.prefix_caching is None else options.prefix_caching == "on",
        device=device,
        port=options.engine_port,
        start_timeout_s=options.start_timeout_s,
        sim=sim_config(simulator) if kind == EMBEDDED else None,
    )


def _for_kind(values: list[str] | None, kind: str, kinds: set[str], option: str) -> list[str]:
    """The values meant for one kind: those that name it, and those that name none."""
    assert ENGINE.choices is not None
    found = []
    for value in values or []:
        name, equals, rest = value.partition("=")
        if equals and name in ENGINE.choices():
            if name not in kinds:
                raise UsageError(f"{option} {value}: {name} is not among the engines that are launched")
            if name == kind:
                found.append(rest)
        elif len(kinds - {EMBEDDED}) > 1:
            raise UsageError(f"{option} {value}: name the engine that it is for, such as {option} vllm={value}")
        else:
            found.append(value)
    return found


def _mig_slices() -> list[Any]:
    from loadgen.gpus import find_gpus

    found, _ = find_gpus()
    slices = [part.uuid for gpu in found for part in gpu.mig_slices]
    if not slices:
        raise UsageError("--mig all: this host has no MIG slice; loadgen never makes one (nvidia-smi mig -cgi does)")
    return slices
