"""Models given by shape alone: their folder is whole, and its tokenizer gives back every text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loadgen.engines.shapes import SHAPES, SPECIAL_TOKENS, byte_alphabet, tokenizer_json, write_model


def tokens_by_id(tokenizer: dict[str, Any]) -> list[tuple[int, str]]:
    """Every token of a tokenizer.json, in the order of the ids that the ``tokenizers`` library gives them.

    An added token has the id of its text in the model's vocabulary; where it is not in it, the next
    one behind the vocabulary. The id that stands beside it is not looked at (seen with 0.23.3).
    """
    vocab = tokenizer["model"]["vocab"]
    added: dict[str, int] = {}
    for token in tokenizer["added_tokens"]:
        text = token["content"]
        added[text] = vocab.get(text, max([len(vocab) - 1, *added.values()]) + 1)
    return sorted((number, text) for text, number in {**vocab, **added}.items())


# --- the alphabet


def test_every_byte_has_a_printable_character_of_its_own() -> None:
    alphabet = byte_alphabet()
    assert len(alphabet) == len(set(alphabet)) == 256
    assert all(len(character) == 1 and character.isprintable() and not character.isspace() for character in alphabet)


@pytest.mark.parametrize(
    ("byte", "character"),
    [(0, "Ā"), (ord("\n"), "Ċ"), (ord(" "), "Ġ"), (ord("!"), "!"), (ord("~"), "~"), (0x7F, "ġ"), (0xA0, "ł"),
     (0xA1, "¡"), (0xAD, "Ń"), (0xAE, "®"), (0xFF, "ÿ")],
)  # fmt: skip
def test_the_alphabet_is_that_of_gpt_2(byte: int, character: str) -> None:
    assert byte_alphabet()[byte] == character


@pytest.mark.parametrize("text", ["plain", "two words\n\tand a tab", "café 😀 \0\x7f\xa0", "<a | b>", ""])
def test_a_text_is_its_bytes_there_and_back(text: str) -> None:
    """As the library encodes it: bytes to characters, each the id of its own token; and back by the ids' texts."""
    vocab = tokenizer_json(512)["model"]["vocab"]
    alphabet = byte_alphabet()
    ids = [vocab[alphabet[byte]] for byte in text.encode()]
    assert ids == list(text.encode())
    of_id = {number: token for token, number in vocab.items()}
    assert bytes(alphabet.index(character) for number in ids for character in of_id[number]).decode() == text


# --- the tokenizer


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_every_id_below_the_vocabularys_size_has_a_token_of_its_own(shape: str) -> None:
    size = SHAPES[shape]["vocab_size"]
    tokens = tokens_by_id(tokenizer_json(size))
    assert [number for number, _ in tokens] == list(range(size))
    assert len({text for _, text in tokens}) == size


def test_no_text_encodes_to_an_id_above_the_bytes() -> None:
    assert tokenizer_json(512)["model"]["merges"] == []


def test_special_tokens_come_after_the_bytes() -> None:
    tokens = dict(tokens_by_id(tokenizer_json(512)))
    assert [tokens[number] for number in (256, 257, 258)] == SPECIAL_TOKENS
    assert tokens[259] == "Ġw259"


# --- the folder


@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_config_has_the_shape_and_what_every_engine_asks_for(shape: str, tmp_path: Path) -> None:
    config = json.loads((write_model(tmp_path, shape) / "config.json").read_text())
    assert config.items() >= SHAPES[shape].items()
    assert config["architectures"] == ["Qwen2ForCausalLM" if config["model_type"] == "qwen2" else "LlamaForCausalLM"]
    assert config["hidden_size"] % config["num_attention_heads"] == 0
    assert config["num_attention_heads"] % config["num_key_value_heads"] == 0


def test_the_end_of_text_is_the_same_token_in_every_file(tmp_path: Path) -> None:
    folder = write_model(tmp_path)
    files = {path.name: json.loads(path.read_text()) for path in folder.iterdir()}
    assert sorted(files) == ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert files["config.json"]["eos_token_id"] == files["generation_config.json"]["eos_token_id"] == 256
    tokens = dict(tokens_by_id(files["tokenizer.json"]))
    assert files["tokenizer_config.json"]["eos_token"] == tokens[256]
    assert files["tokenizer_config.json"]["model_max_length"] == files["config.json"]["max_position_embeddings"]


def test_special_tokens_are_marked_as_such() -> None:
    added = tokenizer_json(512)["added_tokens"]
    assert [(token["id"], token["content"]) for token in added] == list(
        zip((256, 257, 258), SPECIAL_TOKENS, strict=True)
    )
    assert all(token["special"] for token in added)


def test_chat_template_uses_tokens_that_there_are(tmp_path: Path) -> None:
    template = json.loads((write_model(tmp_path) / "tokenizer_config.json").read_text())["chat_template"]
    assert [token for token in ("<|im_start|>", "<|im_end|>") if token not in template] == []
    assert {"<|im_start|>", "<|im_end|>"} <= set(SPECIAL_TOKENS)


def test_a_folder_is_written_alike_every_time(tmp_path: Path) -> None:
    first, second = write_model(tmp_path / "a" / "b"), write_model(tmp_path / "c")
    write_model(second)  # over itself
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (first, second)]
    assert contents[0] == contents[1]
