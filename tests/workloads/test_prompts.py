"""Dataset lines, synthetic prompts, and the order in which they come."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from pathlib import Path

import msgspec
import pytest

from loadgen.errors import DatasetError, UsageError
from loadgen.workloads.prompts import (
    FIRST_TOKEN_ID,
    SAMPLING_FIELDS,
    DatasetSource,
    Prompt,
    SourceSpec,
    SyntheticSource,
    TokenRange,
    make_prompt,
    parse_line,
    parse_token_range,
    read_prompts,
)

PATH = Path("prompts.jsonl")


def parsed(line: str | dict[str, object], output_tokens: int | None = None) -> Prompt:
    text = line if isinstance(line, str) else json.dumps(line)
    return parse_line(text.encode(), PATH, 7, output_tokens)


def text_prompts(count: int) -> list[Prompt]:
    return [parsed({"prompt": "x", "id": i}) for i in range(count)]


def synthetic(
    low: int, high: int, outputs: tuple[int, int] = (1, 1), vocab_size: int = 32_000, seed: int = 0
) -> SyntheticSource:
    return SyntheticSource(TokenRange(low, high), TokenRange(*outputs), vocab_size, seed)


# --- one line


@pytest.mark.parametrize(
    ("line", "kind", "content", "input_tokens"),
    [
        ({"prompt": "Hi"}, "text", "Hi", None),
        (
            {"messages": [{"role": "user", "content": "Hi"}]},
            "messages",
            [{"role": "user", "content": "Hi"}],
            None,
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "kept"}]},
            "messages",
            [{"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "kept"}],
            None,
        ),
        ({"input_ids": [5, 0, 7]}, "token_ids", [5, 0, 7], 3),
        ({"prompt": None, "input_ids": [1]}, "token_ids", [1], 1),
    ],
)
def test_kinds_of_prompt(line: dict[str, object], kind: str, content: object, input_tokens: int | None) -> None:
    prompt = parsed(line)
    assert (prompt.kind, prompt.input_tokens) == (kind, input_tokens)
    assert json.loads(prompt.content) == content


def test_content_is_the_lines_own_json() -> None:
    assert parsed('{"prompt":  "caf\u00e9 \\u00e9 \\n" }').content == '"caf\u00e9 \\u00e9 \\n"'.encode()


@pytest.mark.parametrize(
    ("line", "kind", "expected"),
    [
        ({"task_id": 3, "prompt": "Hi", "output_tokens": 9}, "text", ("3", 9, None)),
        ({"task_id": 0, "input_ids": [4, 5], "output_tokens": 2}, "token_ids", ("0", 2, 2)),
        ({"task_id": 1, "logits": [4, 5, 6], "output_tokens": 2}, "token_ids", ("1", 2, 3)),
    ],
)
def test_trtllm_bench_lines(line: dict[str, object], kind: str, expected: tuple[str, int, int | None]) -> None:
    prompt = parsed(line)
    assert prompt.kind == kind
    assert (prompt.id, prompt.output_tokens, prompt.input_tokens) == expected


@pytest.mark.parametrize(
    ("fields", "prompt_id"),
    [
        ({"id": "a-1"}, "a-1"),
        ({"id": 0}, "0"),
        ({"id": ""}, ""),
        ({"task_id": 12}, "12"),
        ({"id": "mine", "task_id": 12}, "mine"),
        ({}, "7"),
    ],
)
def test_id_is_the_lines_own_else_its_number(fields: dict[str, object], prompt_id: str) -> None:
    assert parsed({"prompt": "x", **fields}).id == prompt_id


@pytest.mark.parametrize(
    ("fields", "override", "wanted"),
    [
        ({}, None, 128),
        ({"output_tokens": 1}, None, 1),
        ({"output_tokens": 10_000_000}, None, 10_000_000),
        ({"output_tokens": 5}, None, 5),
        ({"max_tokens": 6}, None, 6),
        ({"output_tokens": 5, "max_tokens": 6}, None, 5),
        ({"output_tokens": 5, "max_tokens": 6}, 9, 9),
        ({}, 9, 9),
    ],
)
def test_output_tokens(fields: dict[str, object], override: int | None, wanted: int) -> None:
    prompt = parsed({"prompt": "x", **fields}, override)
    assert prompt.output_tokens == wanted
    assert prompt.fields == {}


@pytest.mark.parametrize("field", sorted(SAMPLING_FIELDS))
def test_sampling_field_goes_into_the_request_as_it_is(field: str) -> None:
    assert parsed(f'{{"prompt": "x", "{field}": [0.70, "\u00e9"]}}').fields == {field: '[0.70, "\u00e9"]'.encode()}


@pytest.mark.parametrize("field", ["model", "stream", "logprobs", "task", "n", "Temperature", "metadata"])
def test_other_field_is_not_sent(field: str) -> None:
    assert parsed({"prompt": "x", field: 1}).fields == {}


def test_extra_body_is_sent_whatever_its_fields_and_wins() -> None:
    prompt = parsed('{"prompt": "x", "top_k": 1, "top_p": 0.5, "extra_body": {"top_k": 2, "guided": {"a": [1]}}}')
    assert prompt.fields == {"top_k": b"2", "top_p": b"0.5", "guided": b'{"a": [1]}'}


BAD_LINES = [
    (b"{", "not a JSON object"),
    (b'{"prompt": "x"} {}', "not a JSON object"),
    (b'{"prompt": "x", "top_p": nul}', "not a JSON object"),
    (b'{"prompt": "\xff"}', "not a JSON object"),
    (b'{"prompt": "x", "stop": "\xff"}', "not a JSON object"),
    (b'{"prompt": "x", "a": ' + b"[" * 100_000, "not a JSON object"),
    (b"[]", "Expected `object`"),
    (b'"x"', "Expected `object`"),
    (b"null", "Expected `object`"),
    (b"{}", 'needs one of "prompt", "messages" or "input_ids"; found none'),
    (b'{"text": "x"}', "found none"),
    (b'{"prompt": null}', "found none"),
    (b'{"prompt": "x", "messages": [{"role": "user"}]}', "found prompt and messages"),
    (b'{"input_ids": [1], "logits": [1]}', "found input_ids and logits"),
    (b'{"prompt": ""}', '"prompt" is empty'),
    (b'{"messages": []}', '"messages" is empty'),
    (b'{"input_ids": []}', '"input_ids" must hold token ids'),
    (b'{"input_ids": [1, -1]}', '"input_ids" must hold token ids'),
    (b'{"logits": []}', '"logits" must hold token ids'),
    (b'{"prompt": 5}', "$.prompt"),
    (b'{"messages": [{"content": "x"}]}', "$.messages[0]"),
    (b'{"messages": [{"role": "user", "content": 5}]}', "$.messages[0].content"),
    (b'{"input_ids": [1, "2"]}', "$.input_ids[1]"),
    (b'{"input_ids": [1.5]}', "$.input_ids[0]"),
    (b'{"prompt": "x", "output_tokens": "5"}', "$.output_tokens"),
    (b'{"prompt": "x", "output_tokens": 0}', "output_tokens must be 1 to 10,000,000, not 0"),
    (b'{"prompt": "x", "max_tokens": -3}', "output_tokens must be 1 to 10,000,000, not -3"),
    (b'{"prompt": "x", "output_tokens": 10000001}', "output_tokens must be 1 to 10,000,000, not 10000001"),
    (b'{"prompt": "x", "id": 1.5}', "$.id"),
    (b'{"prompt": "x", "extra_body": [1]}', "$.extra_body"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_line_names_path_line_and_reason(line: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "good"}\n\n' + line + b'\n{"prompt": "good"}\n')
    with pytest.raises(DatasetError) as caught:
        read_prompts(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:3: ")
    assert reason in message
    assert "\n" not in message


# --- a file


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt": "a"}\n{"prompt": "b"}\n',
        b'{"prompt": "a"}\n{"prompt": "b"}',
        b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}\r\n',
    ],
    ids=["LF", "no line end at the end", "byte-order mark and CR LF"],
)
def test_file_forms(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(raw)
    assert [(p.id, p.content) for p in read_prompts(tmp_path / "p.jsonl")] == [("1", b'"a"'), ("2", b'"b"')]


def test_empty_lines_are_skipped_but_counted(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'\n  \n{"prompt": "a"}\n\n{"prompt": "b"}\n')
    assert [prompt.id for prompt in read_prompts(tmp_path / "p.jsonl")] == ["3", "5"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing.jsonl", "No such file"),
        ("folder", "no regular file"),
        ("empty.jsonl", "holds no prompt"),
        ("blank.jsonl", "holds no prompt"),
        ("x" * 300, "cannot be read"),
    ],
)
def test_unusable_file_names_path_and_reason(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_bytes(b"\n \n")
    with pytest.raises(DatasetError, match=reason) as caught:
        read_prompts(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")


# --- token ranges


@pytest.mark.parametrize(
    ("text", "ends", "shown"),
    [("256", (256, 256), "256"), ("128:512", (128, 512), "128:512"), (" 1:1 ", (1, 1), "1")],
)
def test_token_range(text: str, ends: tuple[int, int], shown: str) -> None:
    found = parse_token_range(text, "--input-tokens")
    assert (found.low, found.high) == ends
    assert str(found) == shown


@pytest.mark.parametrize("text", ["", "0", "0:5", "5:4", "-1", "1:", ":5", "1:2:3", "1-2", "1.5", "many", "٣"])
def test_bad_token_range_names_the_option(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--input-tokens"):
        parse_token_range(text, "--input-tokens")


@pytest.mark.parametrize(
    ("word", "picked"), [(0, 10), (2**30 - 1, 10), (2**30, 11), (2**31, 12), (3 * 2**30, 13), (2**32 - 1, 13)]
)
def test_each_number_of_a_range_takes_an_equal_part_of_the_words(word: int, picked: int) -> None:
    assert TokenRange(10, 13).pick(word) == picked


# --- synthetic prompts


@pytest.mark.parametrize(
    ("index", "content", "output_tokens"),
    [
        (0, [18675, 23393, 31163], 42),
        (1, [27166, 10924, 26060], 69),
        (2, [16034, 17687, 5822, 1763], 62),
        (10**9, [26900, 19843, 21751, 1467, 19017, 14744], 84),
    ],
)
def test_synthetic_prompt_is_the_same_everywhere(index: int, content: list[int], output_tokens: int) -> None:
    prompt = make_prompt(synthetic(3, 6, (1, 100), seed=7), index)
    assert json.loads(prompt.content) == content
    assert (prompt.id, prompt.kind, prompt.output_tokens) == (str(index), "token_ids", output_tokens)
    assert (prompt.input_tokens, prompt.fields) == (len(content), {})


def test_long_synthetic_prompt_is_the_same_everywhere() -> None:
    content = make_prompt(synthetic(5000, 5000), 3).content
    assert content.startswith(b"[27381,30195,24715,19476,")
    assert hashlib.sha256(content).hexdigest() == "3b4975500d3d860dfd166127c8be79c20a50e64f0a0102f0ef96bff731f02ce9"


@pytest.mark.parametrize("length", [1, 2, 1023, 1024, 1025, 2048, 5000])
def test_synthetic_length_is_exact(length: int) -> None:
    prompt = make_prompt(synthetic(length, length), 5)
    assert len(json.loads(prompt.content)) == length == prompt.input_tokens


def test_steps_of_a_long_prompt_give_what_make_prompt_gives() -> None:
    source = synthetic(5000, 6000, (1, 100))
    made = []

    def collect() -> Generator[None, None, None]:
        made.append((yield from source.steps(4)))

    pauses = len(list(collect()))
    assert pauses >= 4
    assert made == [make_prompt(source, 4)]


def test_steps_of_two_prompts_can_alternate() -> None:
    source = synthetic(2000, 2000)
    steps = {index: source.steps(index) for index in range(3)}
    made = {}
    while steps:
        for index in list(steps):
            try:
                next(steps[index])
            except StopIteration as stop:
                made[index] = stop.value
                del steps[index]
    assert made == {index: make_prompt(source, index) for index in range(3)}


def test_synthetic_lengths_fill_their_ranges() -> None:
    source = synthetic(3, 6, (10, 12))
    prompts = [make_prompt(source, index) for index in range(400)]
    inputs = [prompt.input_tokens for prompt in prompts]
    outputs = [prompt.output_tokens for prompt in prompts]
    assert set(inputs) == {3, 4, 5, 6}
    assert set(outputs) == {10, 11, 12}
    assert min(inputs.count(length) for length in {3, 4, 5, 6}) > 60
    assert min(outputs.count(length) for length in {10, 11, 12}) > 90


@pytest.mark.parametrize("vocab_size", [11, 50, 200])
def test_synthetic_ids_are_in_the_vocabulary_and_no_special_tokens(vocab_size: int) -> None:
    ids = json.loads(make_prompt(synthetic(20_000, 20_000, vocab_size=vocab_size), 0).content)
    assert set(ids) == set(range(FIRST_TOKEN_ID, vocab_size))


def test_synthetic_prompts_share_no_prefix() -> None:
    sources = [synthetic(8, 8, seed=seed) for seed in range(2)]
    contents = [json.loads(make_prompt(source, index).content) for source in sources for index in range(100)]
    assert len({tuple(content[:3]) for content in contents}) == 200


# --- the order of a dataset


def ids_of(source: DatasetSource, indexes: range) -> list[int]:
    return [int(make_prompt(source, index).id) for index in indexes]


@pytest.mark.parametrize(("seed", "order"), [(0, [7, 4, 3, 2, 6, 0, 5, 1]), (1, [7, 4, 6, 5, 2, 3, 0, 1])])
def test_dataset_order_is_the_same_everywhere(seed: int, order: list[int]) -> None:
    assert ids_of(DatasetSource(text_prompts(8), seed), range(8)) == order


@pytest.mark.parametrize("count", [1, 2, 100])
def test_dataset_order_is_a_permutation_and_cycles(count: int) -> None:
    source = DatasetSource(text_prompts(count), seed=5)
    first = ids_of(source, range(count))
    assert sorted(first) == list(range(count))
    assert ids_of(source, range(count, 3 * count)) == first * 2


def test_dataset_prompts_need_no_steps() -> None:
    assert list(DatasetSource(text_prompts(1), 0).steps(0)) == []


# --- where prompts come from


def test_source_spec_opens_a_file(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_bytes(b'{"prompt": "a", "max_tokens": 3}\n')
    spec = SourceSpec(seed=0, path=str(tmp_path / "p.jsonl"))
    override = SourceSpec(seed=0, path=spec.path, output_tokens=TokenRange(9, 9))
    assert make_prompt(spec.open(), 0).output_tokens == 3
    assert make_prompt(override.open(), 0).output_tokens == 9


def test_source_spec_opens_synthetic_prompts_after_a_journey_as_json() -> None:
    spec = SourceSpec(seed=7, input_tokens=TokenRange(3, 6), output_tokens=TokenRange(1, 100))
    travelled = msgspec.json.decode(msgspec.json.encode(spec), type=SourceSpec)
    assert travelled == spec
    assert make_prompt(travelled.open(), 2).content == b"[16034,17687,5822,1763]"
