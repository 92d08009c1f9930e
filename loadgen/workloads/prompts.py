"""Prompts: read from JSONL files, or made from a seed.

A prompt's content depends on the seed and its index alone, so every worker process, and every
machine, makes the same one without talking to the others.
"""

from __future__ import annotations

import hashlib
import re
import sys
from array import array
from collections.abc import Generator
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from loadgen.errors import DatasetError, UsageError

DEFAULT_OUTPUT_TOKENS = 128
MAX_OUTPUT_TOKENS = 10_000_000
# Ids below are special tokens in most vocabularies; every model that is served in earnest has
# more than 32,000 entries.
FIRST_TOKEN_ID = 10
DEFAULT_VOCAB_SIZE = 32_000
TOKENS_PER_STEP = 1024

# Fields of a line that go into the request as they are. Any other unknown field stays data about
# the prompt, and is not sent: TensorRT-LLM rejects a request that has a field it does not know.
SAMPLING_FIELDS = frozenset(
    {
        "frequency_penalty",
        "ignore_eos",
        "min_p",
        "min_tokens",
        "presence_penalty",
        "repetition_penalty",
        "seed",
        "stop",
        "stop_token_ids",
        "temperature",
        "top_k",
        "top_p",
    }
)
# Fields that the prompt itself is made of.
LINE_FIELDS = frozenset(
    {"prompt", "messages", "input_ids", "logits", "output_tokens", "max_tokens", "id", "task_id", "extra_body"}
)


class Prompt(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt, its content already encoded as JSON.

    Attributes:
        id: from the file, else the line number; for synthetic prompts their index.
        kind: what ``content`` is: a string, a list of chat messages, or a list of token ids.
        content: JSON.
        output_tokens: how many tokens to ask for.
        input_tokens: exact for token ids, else None (the server's ``usage`` says).
        fields: further request fields, each value as JSON.
    """

    id: str
    kind: Literal["text", "messages", "token_ids"]
    content: bytes
    output_tokens: int
    input_tokens: int | None = None
    fields: dict[str, bytes] = {}


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None


class _Line(msgspec.Struct):
    """The typed part of a dataset line; msgspec's errors name the field that is wrong."""

    prompt: str | None = None
    messages: list[_Message] | None = None
    input_ids: list[int] | None = None
    logits: list[int] | None = None  # trtllm-bench's older name of input_ids
    output_tokens: int | None = None
    max_tokens: int | None = None
    id: str | int | None = None
    task_id: str | int | None = None
    extra_body: dict[str, msgspec.Raw] | None = None


_line_decoder = msgspec.json.Decoder(_Line)
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def parse_line(raw: bytes, path: Path, number: int, output_tokens: int | None = None) -> Prompt:
    """The prompt of one JSONL line.

    Args:
        raw: the line.
        path, number: for the error message.
        output_tokens: when given, replaces the line's own number.

    Raises:
        DatasetError: not JSON, no prompt or more than one, or a field of the wrong type.
    """
    try:
        raw.decode()  # parts that the decoders skip are sent too
        line = _line_decoder.decode(raw)
        all_fields = _fields_decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise DatasetError(path, str(error), number) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(path, f"not a JSON object: {error}", number) from None
    given = [name for name in ("prompt", "messages", "input_ids", "logits") if getattr(line, name) is not None]
    if len(given) != 1:
        found = "none" if not given else " and ".join(given)
        raise DatasetError(path, f'needs one of "prompt", "messages" or "input_ids"; found {found}', number)
    kind: Literal["text", "messages", "token_ids"]
    input_tokens = None
    if line.prompt is not None:
        if not line.prompt:
            raise DatasetError(path, '"prompt" is empty', number)
        kind = "text"
    elif line.messages is not None:
        if not line.messages:
            raise DatasetError(path, '"messages" is empty', number)
        kind = "messages"
    else:
        ids = line.input_ids if line.input_ids is not None else line.logits
        assert ids is not None
        if not ids or min(ids) < 0:
            raise DatasetError(path, f'"{given[0]}" must hold token ids, 0 or above', number)
        kind, input_tokens = "token_ids", len(ids)
    wanted = next(
        (n for n in (output_tokens, line.output_tokens, line.max_tokens) if n is not None),
        DEFAULT_OUTPUT_TOKENS,
    )
    if not 1 <= wanted <= MAX_OUTPUT_TOKENS:
        raise DatasetError(path, f"output_tokens must be 1 to {MAX_OUTPUT_TOKENS:,}, not {wanted}", number)
    prompt_id = next((i for i in (line.id, line.task_id) if i is not None), number)
    fields = {name: bytes(value) for name, value in all_fields.items() if name in SAMPLING_FIELDS}
    for name, value in (line.extra_body or {}).items():
        fields[name] = bytes(value)
    return Prompt(
        id=str(prompt_id),
        kind=kind,
        content=bytes(all_fields[given[0]]),
        output_tokens=wanted,
        input_tokens=input_tokens,
        fields=fields,
    )


def read_prompts(path: Path, output_tokens: int | None = None) -> list[Prompt]:
    """Every prompt of a JSONL file; empty lines are skipped.

    Raises:
        DatasetError: as :func:`numbered_lines`, or a line is bad.
    """
    return [parse_line(line, path, number, output_tokens) for number, line in numbered_lines(path)]


def numbered_lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines of a JSONL file that are not empty, each with its number, the first being 1.

    Raises:
        DatasetError: the file cannot be read, or has no such line.
    """
    try:
        if path.exists() and not path.is_file():
            # Each worker process reads it again.
            raise DatasetError(path, "is no regular file; write the prompts to one")
        raw = path.read_bytes()
    except OSError as error:
        raise DatasetError(path, f"cannot be read: {error.strerror}") from None
    lines = enumerate(raw.removeprefix(b"\xef\xbb\xbf").splitlines(), 1)
    filled = [(number, line) for number, line in lines if line.strip()]
    if not filled:
        raise DatasetError(path, "holds no prompt; one JSON object a line is expected")
    return filled


class TokenRange(msgspec.Struct, frozen=True):
    """A number of tokens, both ends included."""

    low: int
    high: int

    def pick(self, word: int) -> int:
        """A number in the range, all equally likely, from 32 random bits."""
        return self.low + (word * (self.high - self.low + 1) >> 32)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


def parse_token_range(text: str, option: str) -> TokenRange:
    """``"256"`` or ``"128:512"``.

    Raises:
        UsageError: no number, below 1, or the ends the wrong way round.
    """
    match = re.fullmatch(r"(\d+)(?::(\d+))?", text.strip(), re.ASCII)
    if match is None:
        raise UsageError(f"{option} takes a number of tokens such as 256, or a range such as 128:512; not {text!r}")
    low, high = int(match[1]), int(match[2] or match[1])
    if not 1 <= low <= high:
        raise UsageError(f"{option}: needs 1 <= low <= high, not {text!r}")
    return TokenRange(low, high)


class PromptSource(Protocol):
    """Gives the prompt of an index; any index from 0 up is good."""

    def steps(self, index: int) -> Generator[None, None, Prompt]:
        """Makes the prompt in steps of well under a millisecond, so that making one of 100,000
        tokens holds up no event loop; the generator's return value is the prompt."""
        ...


def make_prompt(source: PromptSource, index: int) -> Prompt:
    """The prompt of an index, made in one go."""
    steps = source.steps(index)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            prompt: Prompt = stop.value
            return prompt


class DatasetSource:
    """The prompts of a file in an order that the seed sets, over again when they run out.

    Args:
        in_order: keep the file's order, as a trace needs.
    """

    def __init__(self, prompts: list[Prompt], seed: int, in_order: bool = False) -> None:
        self.prompts = prompts
        self._order = list(range(len(prompts)))
        if not in_order:
            # Sorting by a hash gives the same order under every Python version and platform.
            self._order.sort(key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())

    def steps(self, index: int) -> Generator[None, None, Prompt]:
        return self.prompts[self._order[index % len(self._order)]]
        yield


class SyntheticSource:
    """Random token ids: exact input lengths without a tokenizer, and no two prompts that share a
    prefix, so that a prefix cache cannot serve them.

    Ids are spread evenly below ``vocab_size``; of a vocabulary above 65,536 as many are used.
    """

    def __init__(self, input_tokens: TokenRange, output_tokens: TokenRange, vocab_size: int, seed: int) -> None:
        self._input = input_tokens
        self._output = output_tokens
        self._seed = seed
        span = vocab_size - FIRST_TOKEN_ID
        # The id that each 16 random bits stand for, as JSON: a prompt is one join, 15 us for 256 ids.
        self._ids = [b"%d" % (FIRST_TOKEN_ID + (word * span >> 16)) for word in range(2**16)]

    def steps(self, index: int) -> Generator[None, None, Prompt]:
        # A hash's output is the same under every Python version and platform.
        stream = hashlib.shake_128(f"{self._seed}:{index}".encode())
        lengths = stream.digest(8)
        length = self._input.pick(int.from_bytes(lengths[:4], "little"))
        output_tokens = self._output.pick(int.from_bytes(lengths[4:], "little"))
        words = array("H", stream.digest(8 + 2 * length)[8:])
        if sys.byteorder == "big":
            words.byteswap()
        pieces = []
        for start in range(0, length, TOKENS_PER_STEP):
            if start:
                yield
            pieces.append(b",".join(map(self._ids.__getitem__, words[start : start + TOKENS_PER_STEP])))
        return Prompt(
            id=str(index),
            kind="token_ids",
            content=b"[%b]" % b",".join(pieces),
            output_tokens=output_tokens,
            input_tokens=length,
        )


class SourceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Where prompts come from, in a form that travels to a worker and into the manifest.

    Either ``path`` is set (with ``output_tokens`` as an override), or ``input_tokens`` and
    ``output_tokens`` are, for synthetic prompts. ``in_order`` keeps the file's order.
    """

    seed: int
    path: str | None = None
    in_order: bool = False
    input_tokens: TokenRange | None = None
    output_tokens: TokenRange | None = None
    vocab_size: int = DEFAULT_VOCAB_SIZE

    def open(self) -> PromptSource:
        """The source itself.

        Raises:
            DatasetError: as :func:`read_prompts`.
        """
        if self.path is not None:
            override = None if self.output_tokens is None else self.output_tokens.low
            return DatasetSource(read_prompts(Path(self.path), override), self.seed, self.in_order)
        assert self.input_tokens is not None and self.output_tokens is not None
        return SyntheticSource(self.input_tokens, self.output_tokens, self.vocab_size, self.seed)
