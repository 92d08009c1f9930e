"""What is to be measured of a kernel: cases, and the models and engine steps that they come from.

Imports no torch, so that cases can be listed, and floors computed, without one.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from loadgen.errors import UsageError

Phase = Literal["decode", "prefill"]
State = Literal["cold", "serving", "hot"]

DTYPE_BYTES = {
    "float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int8": 1, "int32": 4, "int64": 8,
}  # fmt: skip


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a dense decoder (Llama, Mistral, Qwen2) that its kernels' shapes follow from.

    Attributes:
        name: for people.
        hidden: width of the residual stream.
        intermediate: width of the MLP.
        layers: decoder layers.
        heads, kv_heads: query heads, and heads in the KV cache.
        head_size: of one head.
        vocab: rows of the LM head.
        rope_theta: base of the rotary embedding.
        dtype: of weights, activations and KV cache.
    """

    name: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    rope_theta: float = 10_000.0
    dtype: str = "bfloat16"

    @classmethod
    def from_config(cls, name: str, config: dict[str, Any], dtype: str | None = None) -> ModelShape:
        """From a config.json.

        Args:
            dtype: as given by the user; None or ``auto`` takes the config's.

        Raises:
            UsageError: the config is of another kind of model, or lacks a number.
        """
        kind = config.get("model_type")
        if kind not in ("llama", "mistral", "qwen2", None):
            raise UsageError(
                f"{name}: the kernels of a {kind} model are not known; llama, mistral and qwen2 models are"
            )
        try:
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            shape = cls(
                name=name,
                hidden=hidden,
                intermediate=int(config["intermediate_size"]),
                layers=int(config["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_size=int(config.get("head_dim") or hidden // heads),
                vocab=int(config["vocab_size"]),
                rope_theta=float(config.get("rope_theta") or 10_000.0),
                dtype=_dtype(dtype, config),
            )
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise UsageError(
                f"{name}: its config.json has no usable {error}; its kernels' shapes are not known"
            ) from None
        return shape

    @property
    def itemsize(self) -> int:
        """Bytes of one weight or activation."""
        return DTYPE_BYTES[self.dtype]

    @property
    def projections(self) -> list[tuple[str, int, int, int]]:
        """The matrix products of one step: name, rows of the weight (N), its columns (K), how many a step."""
        attention = self.heads * self.head_size
        qkv = (self.heads + 2 * self.kv_heads) * self.head_size
        return [
            ("qkv", qkv, self.hidden, self.layers),
            ("o", self.hidden, attention, self.layers),
            ("gate_up", 2 * self.intermediate, self.hidden, self.layers),
            ("down", self.hidden, self.intermediate, self.layers),
            ("lm_head", self.vocab, self.hidden, 1),
        ]


def _dtype(given: str | None, config: dict[str, Any]) -> str:
    text = given if given not in (None, "auto") else config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    dtype = {"half": "float16", "float": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(str(text), str(text))
    if dtype not in ("bfloat16", "float16", "float32"):
        raise UsageError(f"--dtype takes bfloat16, float16 or float32, not {text}")
    return dtype


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One forward pass of an engine.

    Attributes:
        phase: ``decode``, one new token for each sequence, or ``prefill``, whole prompts.
        sequences: how many, B.
        context: tokens of each sequence that attention sees at the end of the step, S.
    """

    phase: Phase
    sequences: int
    context: int

    @property
    def tokens(self) -> int:
        """Tokens that pass through the layers, T."""
        return self.sequences if self.phase == "decode" else self.sequences * self.context

    @property
    def name(self) -> str:
        return f"{self.phase} {self.sequences} x {self.context}"


class Case(msgspec.Struct, frozen=True):
    """One set of sizes that a kernel is measured at.

    Attributes:
        params: keyword arguments of the kernel file's ``inputs`` and ``traffic``; JSON values.
        per_step: how often a step of the model runs this; 0 where it is no part of the step as it is
            served (another weight format, say), and then no part of a floor.
        label: tells cases of one kernel apart, such as ``gate_up``.
    """

    params: dict[str, Any]
    per_step: int = 0
    label: str = ""
