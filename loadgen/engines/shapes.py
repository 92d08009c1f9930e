"""Models given by their shape alone: config and tokenizer written here, weights left to the engine.

With ``--load-format dummy`` an engine serves such a folder at the speed of the real model, before
any weight is downloaded. What it says is noise.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec

BYTE_TOKENS = 256
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# The fields of config.json by which a shape differs from another.
# Sources: the config.json of Qwen/Qwen1.5-4B, Qwen/Qwen2.5-7B and meta-llama/Llama-3.1-8B.
_QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "max_position_embeddings": 32_768,
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen1.5-4b": {
        **_QWEN2,
        "hidden_size": 2560,
        "intermediate_size": 6912,
        "num_hidden_layers": 40,
        "num_attention_heads": 20,
        "num_key_value_heads": 20,
        "vocab_size": 151_936,
        "rope_theta": 5e6,
    },
    "qwen2.5-7b": {
        **_QWEN2,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "rope_theta": 1e6,
    },
    "llama-3.1-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "max_position_embeddings": 131_072,
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": 2048,
    },
}


def byte_alphabet() -> list[str]:
    """A printable character for each byte, 0 to 255: GPT-2's table.

    Source: Radford et al. 2019, the byte-level BPE of GPT-2: printable Latin-1 bytes stand for
    themselves, the others for the code points from 256 up.
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def tokenizer_json(vocab_size: int) -> dict[str, Any]:
    """A tokenizer of one token per byte, in the format of the ``tokenizers`` library.

    The ids above the bytes are words that no text encodes to, so that an engine can decode every
    id of the model's vocabulary and its events are about as long as a real model's.
    """
    special = [
        {
            "id": BYTE_TOKENS + index,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, text in enumerate(SPECIAL_TOKENS)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    vocab = {text: byte for byte, text in enumerate(byte_alphabet())}
    # The library takes the ids of added tokens from the vocabulary, where they stand in it.
    vocab |= {text: BYTE_TOKENS + index for index, text in enumerate(SPECIAL_TOKENS)}
    # "Ġ" is the table's character for a space.
    vocab |= {f"Ġw{index}": index for index in range(BYTE_TOKENS + len(SPECIAL_TOKENS), vocab_size)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [],
        },
    }


def write_model(folder: Path, shape: str = "tiny") -> Path:
    """Writes config.json and the tokenizer's files; returns the folder.

    Args:
        folder: made if it is missing.
        shape: a key of :data:`SHAPES`.
    """
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "bos_token_id": BYTE_TOKENS,
        "eos_token_id": BYTE_TOKENS,
        "use_cache": True,
        **SHAPES[shape],
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[0],
        "pad_token": SPECIAL_TOKENS[0],
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (
        ("config.json", config),
        ("tokenizer.json", tokenizer_json(config["vocab_size"])),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", {"bos_token_id": BYTE_TOKENS, "eos_token_id": BYTE_TOKENS}),
    ):
        # In one step: an engine that another loadgen launches may be reading it.
        partial = folder / f"{name}.{os.getpid()}.part"
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2))
        partial.replace(folder / name)
    return folder
