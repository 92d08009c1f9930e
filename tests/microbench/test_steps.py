"""Steps of a load and of a run, and the shape of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from made import engine_with
from made_kernels import QWEN

from loadgen.analysis.measure import summarize_run
from loadgen.analysis.summary import Summary
from loadgen.errors import RunFolderError, UsageError
from loadgen.microbench.cases import ModelShape, Step
from loadgen.microbench.steps import (
    decode_step,
    find_shape,
    prefill_step,
    shape_of_run,
    steps_of_load,
    steps_of_run,
)
from loadgen.records import Manifest, read_manifest

RUN = Path(__file__).parents[2] / "reports" / "vllm-0.25.1-h200-qwen1.5-4b-levels"


@pytest.fixture(scope="module")
def real() -> tuple[Manifest, Summary]:
    return read_manifest(RUN), msgspec.json.decode((RUN / "summary.json").read_bytes(), type=Summary)


def test_a_load_gives_a_decode_step_for_each_pair_and_a_prefill_for_each_context() -> None:
    assert steps_of_load([1, 8], [512, 4096]) == [
        Step(phase="decode", sequences=1, context=512),
        Step(phase="decode", sequences=8, context=512),
        Step(phase="decode", sequences=1, context=4096),
        Step(phase="decode", sequences=8, context=4096),
        Step(phase="prefill", sequences=1, context=512),
        Step(phase="prefill", sequences=1, context=4096),
    ]
    assert len(steps_of_load([8, 8], [512, 512])) == 2


def test_tokens_of_a_step() -> None:
    assert Step(phase="decode", sequences=8, context=512).tokens == 8
    assert Step(phase="prefill", sequences=2, context=512).tokens == 1024


def test_a_run_gives_what_it_served(real: tuple[Manifest, Summary]) -> None:
    manifest, summary = real
    assert [decode_step(level) for level in summary.levels] == [
        Step(phase="decode", sequences=1, context=320),
        Step(phase="decode", sequences=8, context=320),
        Step(phase="decode", sequences=56, context=320),  # of 64 in flight, as the engine says
        Step(phase="decode", sequences=212, context=320),
    ]
    assert prefill_step(summary.levels[0]) == Step(phase="prefill", sequences=1, context=256)
    assert len(steps_of_run(summary)) == 5
    assert shape_of_run(RUN, manifest) == msgspec.structs.replace(QWEN, rope_theta=5e6)


def test_a_run_with_nothing_completed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no completed request"):
        steps_of_run(Summary(simulated=False, levels=[]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"argv": ["vllm", "serve", "--tensor-parallel-size", "2"]}, "several GPUs"),
        ({"quantization": "awq"}, r"quantized \(awq\)"),
        ({"dummy_weights": False}, "give --model"),
    ],
)
def test_runs_whose_kernels_are_not_known(real: tuple[Manifest, Summary], change: dict[str, Any], words: str) -> None:
    manifest = msgspec.structs.replace(real[0], engine=engine_with(real[0].engine, **change))
    with pytest.raises((UsageError, RunFolderError), match=words):
        shape_of_run(RUN, manifest)


def test_simulated_run_is_refused(real: tuple[Manifest, Summary]) -> None:
    with pytest.raises(UsageError, match="SIMULATED"):
        shape_of_run(RUN, msgspec.structs.replace(real[0], simulated=True))


def test_the_dtype_that_was_served_counts(real: tuple[Manifest, Summary]) -> None:
    engine = engine_with(real[0].engine, argv=["vllm", "--dtype", "float16"])
    assert shape_of_run(RUN, msgspec.structs.replace(real[0], engine=engine)).dtype == "float16"


def test_models_by_name_folder_and_file(tmp_path: Path) -> None:
    assert find_shape("qwen1.5-4b") == find_shape("shape:qwen1.5-4b")
    seven = find_shape("qwen2.5-7b", "float16")
    assert (seven.heads, seven.kv_heads, seven.head_size, seven.dtype) == (28, 4, 128, "float16")
    config = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
              "num_attention_heads": 4, "vocab_size": 100}  # fmt: skip
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(config))
    found = find_shape(str(tmp_path))
    assert (found.kv_heads, found.head_size, found.dtype) == (4, 16, "bfloat16")
    assert found.projections[0] == ("qkv", 192, 64, 2)
    assert found.projections[-1] == ("lm_head", 100, 64, 1)


def test_projections_of_grouped_queries() -> None:
    names = {name: (n, k, count) for name, n, k, count in find_shape("qwen2.5-7b").projections}
    assert names["qkv"] == (4608, 3584, 28)
    assert names["gate_up"] == (37888, 3584, 28)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"model_type": "llama", "hidden_size": 64}, "num_attention_heads"),
        ({"model_type": "llama", "hidden_size": "x", "num_attention_heads": 1}, "invalid literal"),
    ],
)
def test_configs_without_a_known_shape(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        ModelShape.from_config("m", config)


def test_unknown_models_and_dtypes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"qwen1\.5-4b"):
        find_shape("nosuch")
    with pytest.raises(UsageError, match="bfloat16"):
        find_shape("qwen1.5-4b", "int3")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json"):
        find_shape(str(tmp_path))


def test_summaries_of_committed_runs_give_the_same_steps_when_made_again(real: tuple[Manifest, Summary]) -> None:
    assert steps_of_run(summarize_run(RUN)[1]) == steps_of_run(real[1])
