"""Datasets: the ones that loadgen makes and ships, and what any JSONL file of prompts holds."""

from __future__ import annotations

import datetime
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from loadgen.errors import DatasetError, UsageError
from loadgen.units import NS_PER_S
from loadgen.workloads.documents import DOCUMENTS
from loadgen.workloads.phrases import REQUESTS, ROLES, WORDS
from loadgen.workloads.prompts import (
    DEFAULT_VOCAB_SIZE,
    FIRST_TOKEN_ID,
    LINE_FIELDS,
    SAMPLING_FIELDS,
    numbered_lines,
    parse_line,
)

T = TypeVar("T")

# Distributions, each given by its quantiles at equal steps of probability from 0 to 1, with
# straight lines between. Whole numbers throughout: a logarithm's last digit differs between
# machines. The output lengths are those of log-normal distributions of medians 95 and 75 and
# shapes 0.75 and 0.6, cut off at both ends; the longer texts' are about even in the logarithm.
CHAT_OUTPUT_TOKENS = (16, 31, 41, 49, 58, 66, 75, 84, 95, 106, 120, 135, 155, 181, 217, 282, 512)
CHAT_DOCUMENT_WORDS = (50, 80, 115, 150, 185, 220, 255, 290, 330)
COMPLETION_OUTPUT_TOKENS = (16, 30, 38, 44, 50, 56, 62, 68, 74, 81, 89, 98, 110, 123, 143, 173, 256)
COMPLETION_WORDS = (50, 62, 80, 100, 124, 150, 180, 215, 255, 305, 365, 440, 540, 680, 900, 1300, 2000)
# Each shape as often as its share of the prompts asks for.
CHAT_SHAPES = (
    *(["explain"] * 4 + ["write"] * 3 + ["plan", "meal", "calculate"] + ["program"] * 2),
    *("email", "incident", "review", "article", "minutes", "table", "code", "log"),
)
COMPLETION_SHAPES = (*["article"] * 5, "minutes", "manual", "log", "table", "code")
TOKENS_INPUT = 256
TOKENS_OUTPUT = 128
PREFIXES = 8
PREFIX_TOKENS = 1024
SUFFIX_TOKENS = 64
PREFIXED_OUTPUT = 64

_SLOT = re.compile(r"<(?:(\d+)\.\.(\d+)|([a-z]+)(\d?))>")
_WORD = re.compile(r"\S+")


class _Pen:
    """Draws numbers and writes texts, the same ones for the same key on every machine.

    Python promises that a generator seeded with a string gives the same bits in every version,
    but not that ``choice`` and ``shuffle`` make the same of them; so only the bits are used.
    """

    def __init__(self, key: str) -> None:
        self.bits = random.Random(key).getrandbits
        self._kept: dict[str, str] = {}
        self._row = 0
        self._time = datetime.datetime(2024, 1, 1) + datetime.timedelta(seconds=self.below(30_000_000))

    def below(self, count: int) -> int:
        """A number from 0 to ``count - 1``, all equally likely."""
        return self.bits(32) * count >> 32

    def one(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def forever(self, options: Sequence[T]) -> Iterator[T]:
        """All options in a drawn order, then in another, and so on."""
        while True:
            left = list(options)
            while left:
                yield left.pop(self.below(len(left)))

    def quantile(self, knots: Sequence[int]) -> int:
        """A number from the distribution that has these quantiles at equal steps."""
        place = self.bits(32) * (len(knots) - 1)
        segment, within = place >> 32, place & 0xFFFFFFFF
        low, high = knots[segment], knots[segment + 1]
        return low + ((high - low + 1) * within >> 32)

    def fill(self, template: str) -> str:
        """The template with its slots filled, see :mod:`loadgen.workloads.phrases`."""
        return _SLOT.sub(self._slot, template)

    def _slot(self, match: re.Match[str]) -> str:
        low, high, name, number = match.groups()
        if low:
            return str(int(low) + self.below(int(high) - int(low) + 1))
        if name == "hex":
            return f"{self.bits(32):08x}"
        if name == "row":
            self._row += 1
            return str(self._row)
        if name == "time":
            self._time += datetime.timedelta(milliseconds=1 + self.below(2500))
            return self._time.isoformat(timespec="milliseconds") + "Z"
        if not number:
            return self.fill(self.one(WORDS[name]))
        if name + number not in self._kept:
            taken = {word for kept, word in self._kept.items() if kept[:-1] == name}
            words = (self.fill(self.one(WORDS[name])) for _ in itertools.count())
            self._kept[name + number] = next(word for word in words if word not in taken)
        return self._kept[name + number]

    def document(self, shape: str, words: int, *, cut: bool) -> str:
        """A text of a shape that is about as long as ``words`` words of prose.

        Args:
            cut: end it after exactly the right number of words, in mid-sentence most often;
                else after the piece that reaches it.
        """
        document = DOCUMENTS[shape]
        words = max(words // document.density, COMPLETION_WORDS[0])
        text = self.fill(self.one(document.openings))
        count = len(text.split())
        for template in self.forever(document.pieces):
            piece = self.fill(template)
            text += piece
            count += len(piece.split())
            if count >= words:
                break
            paragraph = document.separator == " " and self.below(5) == 0
            text += "\n\n" if paragraph else document.separator
        if not cut:
            return text
        last = next(itertools.islice(_WORD.finditer(text), words - 1, None))
        return text[: last.end()]


def _chat(pen: _Pen, index: int) -> dict[str, Any]:
    shape = pen.one(CHAT_SHAPES)
    request = REQUESTS[shape]
    templates = [pen.one(request.questions)]
    if request.wishes:
        templates += itertools.islice(pen.forever(request.wishes), pen.below(4))
    user = " ".join(map(pen.fill, templates))
    if shape in DOCUMENTS:
        user += "\n\n" + pen.document(shape, pen.quantile(CHAT_DOCUMENT_WORDS), cut=False)
    return {
        "id": f"chat-{index}",
        "messages": [
            {"role": "system", "content": pen.fill(ROLES[pen.one(request.roles)])},
            {"role": "user", "content": user},
        ],
        "output_tokens": pen.quantile(CHAT_OUTPUT_TOKENS),
    }


def _completion(pen: _Pen, index: int) -> dict[str, Any]:
    return {
        "id": f"completion-{index}",
        "prompt": pen.document(pen.one(COMPLETION_SHAPES), pen.quantile(COMPLETION_WORDS), cut=True),
        "output_tokens": pen.quantile(COMPLETION_OUTPUT_TOKENS),
    }


def _token_ids(pen: _Pen, count: int) -> list[int]:
    return [FIRST_TOKEN_ID + pen.below(DEFAULT_VOCAB_SIZE - FIRST_TOKEN_ID) for _ in range(count)]


def _tokens(pen: _Pen, index: int) -> dict[str, Any]:
    return {"task_id": index, "input_ids": _token_ids(pen, TOKENS_INPUT), "output_tokens": TOKENS_OUTPUT}


def _prefixed(pen: _Pen, index: int) -> dict[str, Any]:
    prefix = _token_ids(_Pen(f"prefix:{index % PREFIXES}"), PREFIX_TOKENS)
    return {"task_id": index, "input_ids": prefix + _token_ids(pen, SUFFIX_TOKENS), "output_tokens": PREFIXED_OUTPUT}


# The field that holds the input, and what makes a line.
_KINDS: dict[str, tuple[str, Callable[[_Pen, int], dict[str, Any]]]] = {
    "chat": ("messages", _chat),
    "completion": ("prompt", _completion),
    "tokens": ("input_ids", _tokens),
    "prefixed": ("input_ids", _prefixed),
}
KINDS = tuple(_KINDS)


def make(kind: str, prompts: int, seed: int) -> Iterator[bytes]:
    """The JSON lines of a dataset, each with its newline; no two have the same input.

    The same on every machine and under every Python version. More prompts of the same kind and
    seed start with the same lines.

    Args:
        kind: ``chat`` (a system and a user message), ``completion`` (a text to continue),
            ``tokens`` (256 token ids, the form of trtllm-bench) or ``prefixed`` (64 token ids after
            one of 8 prefixes of 1,024, which every seed has alike).
        prompts: how many.
        seed: any whole number.

    Raises:
        UsageError: no such kind, or no prompts.
    """
    if kind not in _KINDS:
        raise UsageError(f"no dataset of kind {kind!r} can be made; kinds: {', '.join(KINDS)}")
    if prompts < 1:
        raise UsageError(f"a dataset needs 1 prompt or more, not {prompts}")
    return _lines(kind, prompts, seed)


def _lines(kind: str, prompts: int, seed: int) -> Iterator[bytes]:
    field, line_of = _KINDS[kind]
    seen: set[bytes] = set()
    for index in range(prompts):
        for attempt in itertools.count():
            line = line_of(_Pen(f"{kind}:{seed}:{index}:{attempt}"), index)
            content = msgspec.json.encode(line[field])
            if content not in seen:
                break
        seen.add(content)
        yield msgspec.json.encode(line) + b"\n"


def write(path: Path, lines: Iterable[bytes]) -> None:
    """Writes a new file; what could not be written whole is removed again.

    Raises:
        DatasetError: there is such a file already, or it cannot be written.
    """
    try:
        with path.open("xb") as file:
            try:
                file.writelines(lines)
                file.flush()
            except BaseException:
                path.unlink()
                raise
    except FileExistsError:
        raise DatasetError(path, "exists already; name another file, or remove this one first") from None
    except OSError as error:
        raise DatasetError(path, f"cannot be written: {error.strerror}") from None


def convert(path: Path, to: str, output_tokens: int | None = None) -> Iterator[bytes]:
    """A dataset's lines in the format of another tool.

    Args:
        path: any dataset that loadgen reads.
        to: ``loadgen``; ``trtllm-bench`` (``task_id``, ``prompt`` or ``input_ids``,
            ``output_tokens``); ``vllm`` (bench serve's ``custom``: ``prompt``, ``output_tokens``).
        output_tokens: replaces each line's own number.

    Raises:
        DatasetError: a line that the format cannot hold, with its number.
    """
    for index, (number, raw) in enumerate(numbered_lines(path)):
        prompt = parse_line(raw, path, number, output_tokens)
        content = msgspec.Raw(prompt.content)
        line: dict[str, Any]
        if prompt.kind == "messages" and to != "loadgen":
            raise DatasetError(
                path,
                f'has "messages", which {to} cannot hold; apply the chat template first, or keep it as it is',
                number,
            )
        if prompt.kind == "token_ids" and to == "vllm":
            raise DatasetError(path, "has token ids, which the format of vllm cannot hold; use text prompts", number)
        field = {"text": "prompt", "messages": "messages", "token_ids": "input_ids"}[prompt.kind]
        if to == "trtllm-bench":
            line = {"task_id": index, field: content, "output_tokens": prompt.output_tokens}
        elif to == "vllm":
            line = {field: content, "output_tokens": prompt.output_tokens}
        else:
            fields = {name: msgspec.Raw(value) for name, value in prompt.fields.items()}
            line = {"id": prompt.id, field: content, "output_tokens": prompt.output_tokens}
            line |= {"extra_body": fields} if fields else {}
        yield msgspec.json.encode(line) + b"\n"


class _Timestamp(msgspec.Struct):
    timestamp: float | None = None


def read_timestamps_ns(path: Path, speedup: float) -> tuple[int, ...]:
    """When each line's request came, in nanoseconds after the first: its ``timestamp``, in seconds.

    Args:
        speedup: divides the times.

    Raises:
        DatasetError: a line without a time stamp, or one that is earlier than the line before; fewer than two
            lines, or all at once.
    """
    times: list[float] = []
    for number, raw in numbered_lines(path):
        try:
            at = msgspec.json.decode(raw, type=_Timestamp).timestamp
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise DatasetError(path, str(error), number) from None
        if at is None:
            raise DatasetError(path, 'has no "timestamp", in seconds, which --arrival replay needs', number)
        if times and at < times[-1]:
            raise DatasetError(
                path, f"its timestamp {at:g} is before the last line's, {times[-1]:g}; sort them", number
            )
        times.append(at)
    if len(times) < 2 or times[-1] == times[0]:
        raise DatasetError(path, "a trace needs two requests or more, not all at once")
    return tuple(round((at - times[0]) / speedup * NS_PER_S) for at in times)


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """The distribution of all values of a dataset: no sample, so it has no interval and no floor.

    Quantiles interpolate linearly between order statistics, as in :mod:`loadgen.analysis.stats`.
    """

    count: int
    min: int
    mean: float
    p50: float
    p90: float
    max: int


def spread(values: Sequence[int]) -> Spread:
    """The distribution of one value or more."""
    ordered = sorted(values)

    def quantile(tenths: int) -> float:
        below, part = divmod((len(ordered) - 1) * tenths, 10)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (ordered[above] - ordered[below]) * part / 10

    return Spread(
        count=len(ordered),
        min=ordered[0],
        mean=sum(ordered) / len(ordered),
        p50=quantile(5),
        p90=quantile(9),
        max=ordered[-1],
    )


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """What a dataset holds.

    Attributes:
        path: of the file.
        prompts: lines that are not empty; each is one prompt.
        kinds: prompts of each kind, see :class:`loadgen.workloads.prompts.Prompt`.
        input_characters: of the texts; of messages, the characters of all their texts together.
        input_words: the same in words, divided by white space.
        input_tokens: of the prompts that are token ids. How many tokens a text has only its
            model's tokenizer can say.
        output_tokens: to ask for; with the default where the line names no number.
        duplicate_prompts: prompts whose input is, byte for byte, that of an earlier line. A
            server's prefix cache makes them cheaper.
        unsent_fields: fields that loadgen has no use for and does not send, and how many lines
            have them.
    """

    path: str
    prompts: int
    kinds: dict[str, int]
    input_characters: Spread | None
    input_words: Spread | None
    input_tokens: Spread | None
    output_tokens: Spread
    duplicate_prompts: int
    unsent_fields: dict[str, int]


class _Texts(msgspec.Struct):
    """The part of a message that is text."""

    content: str | list[dict[str, Any]] | None = None


_messages_decoder = msgspec.json.Decoder(list[_Texts])
_fields_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def inspect(path: Path) -> Inspection:
    """Reads a whole dataset as a sweep would, and describes it.

    Raises:
        DatasetError: as :func:`loadgen.workloads.prompts.read_prompts`.
    """
    prompts = []
    unsent: Counter[str] = Counter()
    for number, line in numbered_lines(path):
        prompts.append(parse_line(line, path, number))
        unsent.update(_fields_decoder.decode(line).keys() - LINE_FIELDS - SAMPLING_FIELDS)
    texts = [list(_texts(prompt.content)) for prompt in prompts if prompt.kind != "token_ids"]
    input_tokens = [prompt.input_tokens for prompt in prompts if prompt.input_tokens is not None]
    return Inspection(
        path=str(path),
        prompts=len(prompts),
        kinds=dict(sorted(Counter(prompt.kind for prompt in prompts).items())),
        input_characters=spread([sum(map(len, parts)) for parts in texts]) if texts else None,
        input_words=spread([sum(len(part.split()) for part in parts) for parts in texts]) if texts else None,
        input_tokens=spread(input_tokens) if input_tokens else None,
        output_tokens=spread([prompt.output_tokens for prompt in prompts]),
        duplicate_prompts=len(prompts) - len({prompt.content for prompt in prompts}),
        unsent_fields=dict(sorted(unsent.items(), key=lambda item: (-item[1], item[0]))),
    )


def _texts(content: bytes) -> Iterator[str]:
    """The texts of a prompt: a string, or what messages and their parts say."""
    if content.startswith(b'"'):
        yield msgspec.json.decode(content, type=str)
        return
    for message in _messages_decoder.decode(content):
        if isinstance(message.content, str):
            yield message.content
            continue
        for part in message.content or []:
            text = part.get("text")
            if isinstance(text, str):
                yield text


def shipped() -> dict[str, Path]:
    """The datasets that come with loadgen, by name: those of the wheel, else of the repository."""
    package = Path(__file__).resolve().parents[1]
    # The wheel's folder comes first: beside an installed package, "datasets" is somebody else's.
    for folder in (package / "data" / "datasets", package.parent / "datasets"):
        found = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
        if found:
            return found
    return {}


def find_dataset(name: str) -> Path:
    """The file of a path or of a shipped dataset's name, such as ``chat-256``; a path wins.

    Raises:
        DatasetError: neither, or the path cannot be looked at.
    """
    path = Path(name)
    try:
        if path.exists() and not path.is_dir():
            return path
    except OSError as error:
        raise DatasetError(path, f"cannot be read: {error.strerror}") from None
    datasets = shipped()
    if name in datasets:
        return datasets[name]
    problem = "is a folder" if path.is_dir() else "no such file"
    names = ", ".join(datasets) or "none"
    raise DatasetError(path, f"{problem}, nor a dataset that comes with loadgen; those are: {names}")
