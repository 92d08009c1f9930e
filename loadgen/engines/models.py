"""What can be known of a model before anything is started: its config, its size, its tokenizer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from loadgen.engines.shapes import SHAPES, write_model
from loadgen.errors import UsageError

SHAPE_PREFIX = "shape:"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json", "tekken.json")
# What the sizes of a model's kernels follow from.
SHAPE_FIELDS = (
    "model_type", "vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "rope_theta", "torch_dtype", "dtype",
)  # fmt: skip
BYTES_OF_DTYPE = {
    "float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2, "fp8": 1, "float8_e4m3fn": 1, "int8": 1,
}  # fmt: skip


class Model(msgspec.Struct, kw_only=True):
    """A model to be served.

    Attributes:
        path: its folder, or its name on the Hugging Face hub when there is no such folder.
        name: what the server is to call it.
        local: whether ``path`` is a folder here.
        dummy_weights: given by shape alone; the engine makes its weights up.
        config: config.json, {} for a name of the hub.
        engine_dir: the folder holds a TensorRT engine.
    """

    path: str
    name: str
    local: bool
    dummy_weights: bool = False
    config: dict[str, Any] = {}
    engine_dir: bool = False

    @property
    def dtype(self) -> str | None:
        """The dtype that the config asks for."""
        text = self.config.get("dtype") or self.config.get("torch_dtype")
        return text if isinstance(text, str) else None

    @property
    def quantization(self) -> str | None:
        """The weights' quantization, such as ``"fp8"`` or ``"awq"``."""
        quantization = self.config.get("quantization_config")
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        return str(method) if method else None

    @property
    def facts(self) -> dict[str, object]:
        """What the manifest keeps of the model, as far as its config tells: its size and its shape."""
        inner = self.config.get("pretrained_config") or self.config
        found = {name: inner[name] for name in SHAPE_FIELDS if name in inner}
        quantization = {"quantization": self.quantization} if self.quantization else {}
        return found | quantization | {"weight_bytes": self.weight_bytes(None)}

    def weight_bytes(self, dtype: str | None) -> int | None:
        """What the weights take in memory: from the files where there are any, else from the shape.

        Args:
            dtype: as given on the command line; None or "auto" takes the config's.
        """
        wanted = dtype if dtype not in (None, "auto") else self.dtype
        files = self._weight_files()
        if files and (dtype in (None, "auto") or self.quantization):
            return sum(path.stat().st_size for path in files)
        count = parameters(self.config)
        return None if count is None else count * BYTES_OF_DTYPE.get(wanted or "bfloat16", 2)

    def _weight_files(self) -> list[Path]:
        if not self.local:
            return []
        folder = Path(self.path)
        # Some folders hold the weights twice, whole and in parts: the index names those that are read.
        for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
            try:
                names = set(msgspec.json.decode((folder / index).read_bytes())["weight_map"].values())
                return [path for name in names if (path := folder / name).is_file()]
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
                continue
        patterns = ("model*.safetensors", "*.safetensors", "pytorch_model*.bin")
        return next((found for pattern in patterns if (found := list(folder.glob(pattern)))), [])


def parameters(config: dict[str, Any]) -> int | None:
    """Parameters of a dense decoder of the Llama or Qwen2 family, from its config; None for other kinds.

    Per layer: Q and O projections (hidden x heads x head size each), K and V (hidden x KV heads x
    head size each), three MLP matrices (hidden x intermediate), two norms; then the embedding, the
    final norm, and the LM head where it is not tied. Qwen2's attention has biases on Q, K and V.
    """
    kind = config.get("model_type")
    if kind not in ("llama", "mistral", "qwen2"):
        return None
    try:
        hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
        heads = int(config["num_attention_heads"])
        kv_heads = int(config.get("num_key_value_heads") or heads)
        head = int(config.get("head_dim") or hidden // heads)
        mlp, vocab = int(config["intermediate_size"]), int(config["vocab_size"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    attention = 2 * hidden * heads * head + 2 * hidden * kv_heads * head
    biases = (heads + 2 * kv_heads) * head if kind == "qwen2" else 0
    layer = attention + biases + 3 * hidden * mlp + 2 * hidden
    embedding = vocab * hidden
    return layers * layer + hidden + embedding * (1 if config.get("tie_word_embeddings") else 2)


def find_model(wanted: str, shapes_folder: Path, tokenizer: str | None = None) -> Model:
    """The model that ``--model`` names: a folder, ``shape:NAME``, or a name of the hub.

    Args:
        wanted: as given.
        shapes_folder: where a model given by shape is written; a folder of its own is made in it.
        tokenizer: given by ``--tokenizer``; the model's folder then needs none.

    Raises:
        UsageError: no such folder or shape, no config.json, no tokenizer.
    """
    if wanted.startswith(SHAPE_PREFIX):
        shape = wanted.removeprefix(SHAPE_PREFIX)
        if shape not in SHAPES:
            raise UsageError(f"--model {wanted}: no such shape; there are {', '.join(sorted(SHAPES))}")
        folder = write_model(shapes_folder / shape, shape)
        return Model(
            path=str(folder.resolve()), name=shape, local=True, dummy_weights=True, config=_read_config(folder)
        )
    folder = Path(wanted).expanduser()
    if not folder.exists():
        if HUB_NAME.fullmatch(wanted) and not wanted.startswith("."):
            return Model(path=wanted, name=wanted, local=False)
        raise UsageError(
            f"--model {wanted}: no such folder; give a model's folder, a name of the Hugging Face hub such as "
            f"Qwen/Qwen1.5-4B-Chat, or {SHAPE_PREFIX}NAME with one of {', '.join(sorted(SHAPES))}"
        )
    if not folder.is_dir():
        raise UsageError(f"--model {wanted}: is a file; give the folder that holds config.json")
    config = _read_config(folder)
    engine_dir = "build_config" in config and "pretrained_config" in config
    if not engine_dir and tokenizer is None and not any((folder / name).exists() for name in TOKENIZER_FILES):
        raise UsageError(f"--model {wanted}: has no tokenizer ({', '.join(TOKENIZER_FILES[:3])}); give --tokenizer")
    if engine_dir and tokenizer is None:
        raise UsageError(f"--model {wanted}: is a TensorRT engine, which holds no tokenizer; give --tokenizer")
    resolved = folder.resolve()
    return Model(path=str(resolved), name=resolved.name, local=True, config=config, engine_dir=engine_dir)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--model {folder}: {path.name}: {error.strerror}; is this a model's folder?") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path}: holds no JSON object; is this a model's folder?")
    return config
