"""Which steps of which model are to be measured: from a model and a load, or from a run. Pure; no torch."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from loadgen.analysis.figures import LevelSummary
from loadgen.analysis.summary import Summary
from loadgen.engines.shapes import SHAPES
from loadgen.engines.table import ENGINES
from loadgen.errors import RunFolderError, UsageError
from loadgen.microbench.cases import ModelShape, Step
from loadgen.records import Manifest


def steps_of_load(levels: list[int], contexts: list[int]) -> list[Step]:
    """A decode step at every level and context, and the prefill of one prompt of each context."""
    decode = [Step(phase="decode", sequences=n, context=s) for s in contexts for n in levels]
    prefill = [Step(phase="prefill", sequences=1, context=s) for s in contexts]
    return list(dict.fromkeys([*decode, *prefill]))


def decode_step(level: LevelSummary) -> Step | None:
    """The decode step that a level spent its time in: as many sequences as the engine says it ran on average
    (a closed loop's concurrency where it does not say), and prompt plus half of the answer as context."""
    prompt, answer = level.input_tokens.mean, level.output_tokens.mean
    if prompt is None or answer is None:
        return None
    server = level.server
    running = None if server is None or server.requests_running is None else server.requests_running.mean
    most = level.load.slots  # an open loop has none
    counts = [max(1, round(n)) for n in (running, most) if n is not None]
    if not counts:
        return None
    sequences = min(counts)
    return Step(phase="decode", sequences=sequences, context=max(1, round(prompt + answer / 2)))


def prefill_step(level: LevelSummary) -> Step | None:
    """The prefill of one mean prompt of a level."""
    prompt = level.input_tokens.mean
    return None if prompt is None else Step(phase="prefill", sequences=1, context=max(1, round(prompt)))


def steps_of_run(summary: Summary) -> list[Step]:
    """The steps of every level of a run.

    Raises:
        UsageError: no level completed a request.
    """
    steps = [step for level in summary.levels for step in (decode_step(level), prefill_step(level)) if step]
    if not steps:
        raise UsageError("the run has no completed request: the sizes that it served are not known")
    return list(dict.fromkeys(steps))


def find_shape(wanted: str, dtype: str | None = None) -> ModelShape:
    """The model that ``--model`` names: a shape's name (with or without ``shape:``), or a folder with config.json.

    Raises:
        UsageError: there is no such model, or its kernels are not known.
    """
    name = wanted.removeprefix("shape:")
    if name in SHAPES:
        return ModelShape.from_config(name, SHAPES[name], dtype)
    path = Path(wanted).expanduser()
    config = path / "config.json" if path.is_dir() else path
    try:
        values = msgspec.json.decode(config.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise UsageError(
            f"--model {wanted}: {error.strerror}; give one of {', '.join(sorted(SHAPES))}, or a folder with config.json"
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{config}: {error}") from None
    return ModelShape.from_config(path.resolve().name, values, dtype)


# One model over several GPUs, in the words of every engine.
_SPREAD = {option for row in ENGINES.values() for option in row.spread_options}


def no_sum(manifest: Manifest) -> str | None:
    """Why the kernels of one GPU's whole 16-bit model add up to nothing that a run served; None where they do."""
    if manifest.simulated:
        return "it is SIMULATED: no kernel ran there"
    engine = manifest.engine
    argv = [piece for word in engine.argv or [] for piece in word.split("=", 1)]
    if any(word in _SPREAD and value != "1" for word, value in pairwise(argv)):
        return "the model was spread over several GPUs; kernels are measured for one GPU's whole model"
    if quantization := engine.facts.get("quantization"):
        return f"the model is quantized ({quantization}); the floors are of 16-bit weights"
    return None


def shape_of_run(run: Path, manifest: Manifest) -> ModelShape:
    """The shape of the model that a run served.

    Raises:
        UsageError: the run was SIMULATED, the model was spread over GPUs or quantized, or its shape is not known.
    """
    engine = manifest.engine
    refusal = no_sum(manifest)
    if refusal is not None:
        raise UsageError(f"{run}: {refusal}")
    argv = engine.argv or []
    name = str(engine.model)
    dtype = next((argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--dtype"), None)
    if "hidden_size" in engine.facts:
        return ModelShape.from_config(name, engine.facts, dtype)
    if engine.dummy_weights and name in SHAPES:
        return ModelShape.from_config(name, SHAPES[name], dtype)
    raise RunFolderError(f"{run}: does not say the shape of {name}; give --model")
