"""What is known of a model before anything is started, and the models that cannot be served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadgen.engines.models import Model, find_model, parameters
from loadgen.engines.shapes import SHAPES, write_model
from loadgen.errors import UsageError

LLAMA_8B = {"model_type": "llama", **SHAPES["llama-3.1-8b"]}
# Of config.json alone: 2 layers of 128 * 128 (Q, O) * 2 + 128 * 64 (K, V) * 2 + 128 * 256 * 3 + 128 * 2, an
# embedding of 512 * 128 that is the LM head too, and the last norm of 128.
TINY = 2 * (32_768 + 16_384 + 98_304 + 256) + 65_536 + 128


def model_folder(folder: Path, config: dict[str, Any] | None = None, **files: int) -> Path:
    """A model's folder with a tokenizer and files of these sizes, which take no room on the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA_8B if config is None else config))
    (folder / "tokenizer.json").write_text("{}")
    for name, size in files.items():
        with (folder / name.replace("__", ".")).open("wb") as file:
            file.truncate(size)
    return folder


def found(folder: Path, **arguments: Any) -> Model:
    return find_model(str(folder), folder.parent / "shapes", **arguments)


# --- parameters and bytes


@pytest.mark.parametrize(
    ("shape", "published"),
    [
        ("qwen1.5-4b", 3_950_369_280),
        ("qwen2.5-7b", 7_615_616_512),
        ("llama-3.1-8b", 8_030_261_248),
        ("tiny", TINY),
    ],
)
def test_parameters_are_as_many_as_published(shape: str, published: int, tmp_path: Path) -> None:
    config = json.loads((write_model(tmp_path, shape) / "config.json").read_text())
    assert parameters(config) == published


@pytest.mark.parametrize(
    ("config", "count"),
    [
        # Qwen/Qwen2.5-0.5B, whose LM head is the embedding.
        ({"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
          "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151_936, "tie_word_embeddings": True},
         494_032_768),
        # mistralai/Mistral-Nemo-Base-2407, whose heads are smaller than hidden size over heads.
        ({"model_type": "mistral", "hidden_size": 5120, "intermediate_size": 14_336, "num_hidden_layers": 40,
          "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131_072},
         12_247_782_400),
        # meta-llama/Llama-2-7b, whose KV heads are as many as its heads.
        ({"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
          "num_attention_heads": 32, "vocab_size": 32_000},
         6_738_415_616),
    ],
    ids=["tied", "head size", "no KV heads"],
)  # fmt: skip
def test_parameters_of_other_published_models(config: dict[str, Any], count: int) -> None:
    assert parameters(config) == count


@pytest.mark.parametrize(
    "config",
    [
        {},
        {**LLAMA_8B, "model_type": "mixtral"},
        {name: value for name, value in LLAMA_8B.items() if name != "vocab_size"},
        {**LLAMA_8B, "hidden_size": None},
        {**LLAMA_8B, "hidden_size": "wide"},
        {**LLAMA_8B, "num_attention_heads": 0},
    ],
    ids=["nothing", "experts", "no vocabulary", "null", "text", "no heads"],
)
def test_parameters_of_another_kind_are_unknown(config: dict[str, Any]) -> None:
    assert parameters(config) is None
    assert Model(path="x", name="x", local=False, config=config).weight_bytes(None) is None


@pytest.mark.parametrize(
    ("asked", "of_config", "bytes_each"),
    [
        (None, "bfloat16", 2),
        (None, "float32", 4),
        (None, None, 2),
        ("auto", "float32", 4),
        ("float16", "float32", 2),
        ("half", "float32", 2),
        ("float32", "bfloat16", 4),
        ("fp8", "bfloat16", 1),
    ],
)
def test_weights_of_a_shape_are_its_parameters_in_the_dtype(
    asked: str | None, of_config: str | None, bytes_each: int
) -> None:
    model = Model(path="x", name="x", local=False, config={**LLAMA_8B, "torch_dtype": of_config})
    assert model.dtype == of_config
    assert model.weight_bytes(asked) == 8_030_261_248 * bytes_each


def test_the_newer_name_of_the_dtype_counts() -> None:
    config = {**LLAMA_8B, "torch_dtype": "float32", "dtype": "float16"}
    assert Model(path="x", name="x", local=False, config=config).dtype == "float16"


@pytest.mark.parametrize(
    ("files", "config", "dtype", "size"),
    [
        ({"model-1__safetensors": 3000, "model-2__safetensors": 500, "other__bin": 9}, LLAMA_8B, None, 3500),
        ({"model__safetensors": 3000, "pytorch_model__bin": 3001}, LLAMA_8B, "auto", 3000),
        ({"pytorch_model-1__bin": 70, "pytorch_model-2__bin": 7, "training_args__bin": 5}, LLAMA_8B, None, 77),
        ({"model__safetensors": 3000}, LLAMA_8B, "float32", 8_030_261_248 * 4),
        ({"model__safetensors": 3000}, {**LLAMA_8B, "quantization_config": {"quant_method": "awq"}}, "float16", 3000),
        ({"model__safetensors": 3000}, {"model_type": "mixtral"}, None, 3000),
        ({"model__safetensors": 3000}, {"model_type": "mixtral"}, "float16", None),
    ],
    ids=["shards", "one format", "older format", "other dtype", "quantized", "unknown kind", "unknown in other dtype"],
)
def test_weights_with_files_are_as_large_as_those_unless_they_are_converted(
    files: dict[str, int], config: dict[str, Any], dtype: str | None, size: int | None, tmp_path: Path
) -> None:
    model = found(model_folder(tmp_path / "m", config, **files))
    assert model.weight_bytes(dtype) == size


def test_weights_that_are_there_twice_count_once(tmp_path: Path) -> None:
    """As in mistralai/Mistral-7B-Instruct-v0.3: for transformers in shards, and whole for mistral-inference."""
    files = {"model-1__safetensors": 3000, "model-2__safetensors": 500, "consolidated__safetensors": 3500}
    folder = model_folder(tmp_path / "m", **files)
    weights = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
    assert found(folder).weight_bytes(None) == 3500


@pytest.mark.parametrize(
    ("config", "quantization"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        ({"quantization_config": {}}, None),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
    ],
)
def test_quantization(config: dict[str, Any], quantization: str | None) -> None:
    assert Model(path="x", name="x", local=False, config=config).quantization == quantization


def test_facts_are_what_the_config_tells() -> None:
    model = Model(path="x", name="x", local=False, config={**LLAMA_8B, "torch_dtype": "bfloat16"})
    assert model.facts == {
        "model_type": "llama",
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
        "weight_bytes": 16_060_522_496,
        # and what the sizes of its kernels follow from
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_theta": 500_000.0,
        "torch_dtype": "bfloat16",
    }
    quantized = Model(path="x", name="x", local=False, config={"quantization_config": {"quant_method": "awq"}})
    assert quantized.facts == {"quantization": "awq", "weight_bytes": None}
    engine = Model(path="x", name="x", local=True, config={"pretrained_config": {"vocab_size": 5}, "build_config": {}})
    assert engine.facts == {"vocab_size": 5, "weight_bytes": None}
    assert Model(path="a/b", name="a/b", local=False).facts == {"weight_bytes": None}


# --- finding


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_a_shape_is_written_and_has_dummy_weights(shape: str, tmp_path: Path) -> None:
    model = find_model(f"shape:{shape}", tmp_path / "shapes")
    assert model.path == str(tmp_path / "shapes" / shape)
    assert (model.name, model.local, model.dummy_weights, model.engine_dir) == (shape, True, True, False)
    assert model.config["vocab_size"] == SHAPES[shape]["vocab_size"]
    assert {path.name for path in Path(model.path).iterdir()} >= {"config.json", "tokenizer.json"}


def test_a_folder_is_served_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folder(tmp_path / "Llama-3.1-8B")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for wanted in ("Llama-3.1-8B", "./Llama-3.1-8B/", str(tmp_path / "Llama-3.1-8B"), "~/Llama-3.1-8B"):
        model = find_model(wanted, tmp_path / "shapes")
        assert (model.path, model.name, model.local) == (str(tmp_path / "Llama-3.1-8B"), "Llama-3.1-8B", True)
        assert not model.dummy_weights
        assert model.config == LLAMA_8B
    monkeypatch.chdir(tmp_path / "Llama-3.1-8B")
    assert find_model(".", tmp_path / "shapes").name == "Llama-3.1-8B"


def test_what_is_no_folder_may_be_a_name_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = find_model("Qwen/Qwen1.5-4B-Chat", tmp_path / "shapes")
    assert model == Model(path="Qwen/Qwen1.5-4B-Chat", name="Qwen/Qwen1.5-4B-Chat", local=False)
    model_folder(tmp_path / "Qwen" / "Qwen1.5-4B-Chat")
    assert find_model("Qwen/Qwen1.5-4B-Chat", tmp_path / "shapes").local


@pytest.mark.parametrize("tokenizer", ["tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json"])
def test_any_kind_of_tokenizer_will_do(tokenizer: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "tokenizer.json").rename(folder / tokenizer)
    assert found(folder).local


def test_an_engines_folder_is_told_by_its_config_and_needs_a_tokenizer(tmp_path: Path) -> None:
    config = {"version": "1.0.0", "pretrained_config": {"dtype": "float16"}, "build_config": {"max_batch_size": 8}}
    folder = model_folder(tmp_path / "engine", config)
    with pytest.raises(UsageError, match="is a TensorRT engine, which holds no tokenizer; give --tokenizer"):
        found(folder)
    model = found(folder, tokenizer="Qwen/Qwen1.5-4B")
    assert (model.engine_dir, model.name, model.config) == (True, "engine", config)
    assert not found(model_folder(tmp_path / "checkpoint", {"pretrained_config": {}})).engine_dir


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("shape:qwen", "no such shape; there are llama-3.1-8b, qwen1.5-4b, qwen2.5-7b, tiny"),
        ("shape:", "no such shape"),
        ("none", "no such folder; give a model's folder, a name of the Hugging Face hub such as"),
        ("./none/model", "no such folder"),
        ("/none/model", "no such folder"),
        ("a/b/c", "no such folder"),
        ("file", "is a file; give the folder that holds config.json"),
        ("empty", "config.json: No such file or directory; is this a model's folder?"),
        ("bare", "has no tokenizer (tokenizer.json, tokenizer.model, vocab.json); give --tokenizer"),
        ("broken", "truncated"),
        ("list", "holds no JSON object; is this a model's folder?"),
        ("bytes", "config.json: "),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(
    wanted: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("empty").mkdir()
    for name, raw in (
        ("bare", json.dumps(LLAMA_8B).encode()),
        ("broken", b'{"model_type": "lla'),
        ("list", b"[1]"),
        ("bytes", b'{"model_type": "\xff"}'),
    ):
        Path(name).mkdir()
        (Path(name) / "config.json").write_bytes(raw)
    with pytest.raises(UsageError) as caught:
        find_model(wanted, tmp_path / "shapes")
    assert words in str(caught.value)
    assert wanted in str(caught.value)
    assert not (tmp_path / "shapes").exists()


def test_a_tokenizer_of_ones_own_stands_in_for_the_models(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "bare")
    (folder / "tokenizer.json").unlink()
    assert found(folder, tokenizer="gpt2").local
