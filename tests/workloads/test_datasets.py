"""The shipped datasets, what makes them, and the commands."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shlex
import sys
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner, Result

from loadgen.cli import main as cli
from loadgen.cli.options import Prompts
from loadgen.cli.sweep_options import prompt_source
from loadgen.errors import DatasetError, LoadgenError, UsageError
from loadgen.report.dataset import render
from loadgen.workloads import datasets, phrases
from loadgen.workloads.datasets import KINDS, convert, find_dataset, inspect, make, shipped, spread
from loadgen.workloads.prompts import LINE_FIELDS, SAMPLING_FIELDS, Prompt, SourceSpec, parse_line, read_prompts

FOLDER = Path(__file__).parents[2] / "datasets"
README = (FOLDER / "README.md").read_text()
MAKE_COMMANDS = re.findall(r"^loadgen (dataset make .*) --output datasets/(\S+)$", README, re.MULTILINE)
NAMES = ["chat-256", "completion-256", "tokens-256x128"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, arguments, standalone_mode=False)


def ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    """Exit code and standard error of the whole program."""
    monkeypatch.setattr(sys, "argv", ["loadgen", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err


def text_of(line: dict) -> str:
    return line["prompt"] if "prompt" in line else "\n".join(message["content"] for message in line["messages"])


# --- the shipped files


def test_readme_has_a_command_for_each_file() -> None:
    assert sorted(name for _, name in MAKE_COMMANDS) == sorted(path.name for path in FOLDER.glob("*.jsonl"))


@pytest.mark.parametrize(("command", "name"), MAKE_COMMANDS)
def test_readmes_command_makes_the_file(command: str, name: str) -> None:
    result = run(*shlex.split(command), "--output", "-")
    assert result.exception is None
    assert result.stdout_bytes == (FOLDER / name).read_bytes()


def test_checksums() -> None:
    files = sorted(FOLDER.glob("*.jsonl"))
    expected = "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)
    assert (FOLDER / "SHA256SUMS").read_text() == expected


def test_folder_is_small_and_holds_data_only() -> None:
    files = list(FOLDER.iterdir())
    assert {path.name for path in files} == {*(f"{name}.jsonl" for name in NAMES), "README.md", "SHA256SUMS"}
    assert sum(path.stat().st_size for path in files) < 1_500_000


@pytest.mark.parametrize("name", NAMES)
def test_readmes_lengths_are_those_of_the_file(name: str) -> None:
    rows = re.findall(rf"^\| `{name}\.jsonl` \| (\w+ \w+) \| (.*) \|$", README, re.MULTILINE)
    text = render(inspect(find_dataset(name)))
    shown = {match[1]: match[2].split() for match in re.finditer(r"^(\w+ \w+) +([\d ,.]+)$", text, re.MULTILINE)}
    assert {quantity: figures.split(" | ") for quantity, figures in rows} == shown


@pytest.mark.parametrize("fields", [SAMPLING_FIELDS, LINE_FIELDS], ids=["sampling", "line"])
def test_readme_names_every_field(fields: frozenset[str]) -> None:
    assert {field for field in fields if f"`{field}`" not in README} == set()


def test_readmes_sampling_fields_are_the_ones_sent() -> None:
    listed = re.search(r"request as they are:([^.]*)\.", README)
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) == SAMPLING_FIELDS


# --- making


@pytest.mark.parametrize("kind", KINDS)
def test_lines_are_prompts_and_differ(kind: str) -> None:
    lines = list(make(kind, 300, 5))
    prompts = [parse_line(line, Path("made"), number) for number, line in enumerate(lines, 1)]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 and line.isascii() for line in lines)
    assert len({prompt.content for prompt in prompts}) == len({prompt.id for prompt in prompts}) == 300


@pytest.mark.parametrize("kind", KINDS)
def test_seed_decides_and_a_larger_set_starts_with_the_smaller(kind: str) -> None:
    first = list(make(kind, 20, 1))
    assert list(islice(make(kind, 1000, 1), 20)) == first
    assert all(a != b for a, b in zip(first, make(kind, 20, 2), strict=True))


def test_makes_nothing_before_it_is_asked() -> None:
    assert next(make("completion", 10**9, 0))


@pytest.mark.parametrize(
    ("kind", "columns", "words", "output", "mean_output"),
    [
        ("chat", ["id", "messages", "output_tokens"], (20, 400), (16, 512), (112, 132)),
        ("completion", ["id", "prompt", "output_tokens"], (50, 2000), (16, 256), (80, 92)),
    ],
)
def test_texts_keep_their_bounds(
    kind: str, columns: list[str], words: tuple[int, int], output: tuple[int, int], mean_output: tuple[int, int]
) -> None:
    lines = [json.loads(line) for line in make(kind, 1500, 3)]
    assert {tuple(line) for line in lines} == {tuple(columns)}
    lengths = [len(text_of(line).split()) for line in lines]
    assert words[0] <= min(lengths) < words[0] * 1.5
    assert words[1] * 0.8 < max(lengths) <= words[1]
    outputs = [line["output_tokens"] for line in lines]
    assert output[0] <= min(outputs) < output[0] + 5
    assert output[1] - 40 < max(outputs) <= output[1]
    assert mean_output[0] < sum(outputs) / len(outputs) < mean_output[1]


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_a_context_of_4096_tokens_is_enough(kind: str) -> None:
    """By a generous count: five letters of a word, a digit and a mark are a token each."""
    lines = [json.loads(line) for line in make(kind, 1000, 4)]
    assert len(lines) == 1000
    for line in lines:
        tokens = len(re.findall(r"[A-Za-z]{1,5}|\d|[^\sA-Za-z\d]|\n+", text_of(line)))
        assert tokens + line["output_tokens"] <= 4096


def test_chat_lines_are_a_system_and_a_user_message() -> None:
    lines = [json.loads(line) for line in make("chat", 100, 0)]
    assert len(lines) == 100
    for line in lines:
        assert [list(message) for message in line["messages"]] == [["role", "content"]] * 2
        assert [message["role"] for message in line["messages"]] == ["system", "user"]


def test_texts_are_filled_and_do_not_end_in_white_space() -> None:
    slot = re.compile(r"<[a-z]+\d?>|<\d+\.\.\d+>")
    for kind in ("chat", "completion"):
        lines = [json.loads(line) for line in make(kind, 500, 0)]
        assert len(lines) == 500
        for line in lines:
            text = text_of(line)
            assert text == text.strip()
            assert slot.search(text) is None


def test_tokens_have_exact_lengths_and_allowed_ids() -> None:
    lines = [json.loads(line) for line in make("tokens", 600, 0)]
    assert [line["task_id"] for line in lines] == list(range(600))
    assert {tuple(line) for line in lines} == {("task_id", "input_ids", "output_tokens")}
    assert {(len(line["input_ids"]), line["output_tokens"]) for line in lines} == {(256, 128)}
    ids = [number for line in lines for number in line["input_ids"]]
    assert (min(ids), max(ids)) == (10, 31_999)


def test_prefixed_prompts_share_one_of_8_prefixes_with_every_8th() -> None:
    lines = [json.loads(line) for line in make("prefixed", 40, 0)]
    assert [line["task_id"] for line in lines] == list(range(40))
    assert {(len(line["input_ids"]), line["output_tokens"]) for line in lines} == {(1024 + 64, 64)}
    prefixes = [tuple(line["input_ids"][:1024]) for line in lines]
    assert len(set(prefixes[:8])) == 8
    assert prefixes[8:] == prefixes[:-8]
    assert len({tuple(line["input_ids"][1024:]) for line in lines}) == 40
    ids = [number for line in lines for number in line["input_ids"]]
    assert 10 <= min(ids) < max(ids) <= 31_999


def test_prefixes_differ_from_their_first_token_and_are_alike_for_every_seed() -> None:
    """A prefix cache then holds all 8 of them, whatever the seed, and no more."""
    first, second = ([json.loads(line)["input_ids"] for line in make("prefixed", 8, seed)] for seed in (1, 2))
    assert len({ids[0] for ids in first}) == 8
    assert [ids[:1024] for ids in first] == [ids[:1024] for ids in second]
    assert all(a[1024:] != b[1024:] for a, b in zip(first, second, strict=True))


def test_a_repeated_text_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    field, line_of = datasets._KINDS["tokens"]
    drawn = []

    def poor(pen: datasets._Pen, index: int) -> dict:
        drawn.append(pen.below(3))
        return {**line_of(pen, index), "input_ids": [drawn[-1]]}

    monkeypatch.setitem(datasets._KINDS, "tokens", (field, poor))
    for seed in range(10):
        ids = [json.loads(line)["input_ids"][0] for line in make("tokens", 3, seed)]
        assert sorted(ids) == [0, 1, 2]
    assert len(drawn) > 30


@pytest.mark.parametrize(("kind", "prompts"), [("sharegpt", 1), ("", 1), ("chat", 0), ("tokens", -5)])
def test_make_refuses_at_once(kind: str, prompts: int) -> None:
    with pytest.raises(UsageError):
        make(kind, prompts, 0)


def test_pen_uses_the_bits_as_they_come() -> None:
    """What the generator promises between Python versions is pinned here, apart from the texts."""
    pen = datasets._Pen("key")
    bits = random.Random("key").getrandbits
    bits(32)  # the clock
    assert [pen.below(1000) for _ in range(50)] == [bits(32) * 1000 >> 32 for _ in range(50)]
    assert random.Random("key").getrandbits(32) == 3_718_893_487


def test_quantiles_are_met() -> None:
    pen = datasets._Pen("quantiles")
    values = sorted(pen.quantile((10, 20, 100)) for _ in range(20_000))
    assert (values[0], values[-1]) == (10, 100)
    assert values[5_000] == pytest.approx(15, abs=1)
    assert values[10_000] == pytest.approx(20, abs=1)
    assert values[15_000] == pytest.approx(60, abs=2)


def test_forever_uses_every_option_before_it_repeats_one() -> None:
    drawn = list(islice(datasets._Pen("forever").forever("abcde"), 20))
    assert [sorted(drawn[start : start + 5]) for start in range(0, 20, 5)] == [list("abcde")] * 4
    assert len({tuple(drawn[start : start + 5]) for start in range(0, 20, 5)}) > 1


def test_slots() -> None:
    pen = datasets._Pen("slots")
    town1, again, town2, town3 = pen.fill("<town1>|<town1>|<town2>|<town3>").split("|")
    assert town1 == again
    assert len({town1, town2, town3}) == 3
    assert pen.fill("<row> <row> <row>") == "1 2 3"
    assert {pen.fill("<7..9>") for _ in range(100)} == {"7", "8", "9"}
    assert re.fullmatch("[0-9a-f]{8}", pen.fill("<hex>"))
    times = [pen.fill("<time>") for _ in range(20)]
    assert times == sorted(set(times))
    assert len({pen.fill("<town>") for _ in range(300)}) == len(phrases.WORDS["town"])
    assert pen.fill("a < b, c > d, <P>, {e:<<8..8>}") == "a < b, c > d, <P>, {e:<8}"


def test_every_template_can_be_filled() -> None:
    templates = [*phrases.ROLES.values(), *(word for words in phrases.WORDS.values() for word in words)]
    for request in phrases.REQUESTS.values():
        templates += [*request.questions, *request.wishes]
    for document in phrases.DOCUMENTS.values():
        templates += [*document.openings, *document.pieces]
    assert len(templates) > 500
    for template in templates:
        assert datasets._Pen("any").fill(template)


def test_every_phrase_has_a_use() -> None:
    assert {*datasets.CHAT_SHAPES} == set(phrases.REQUESTS)
    assert {*datasets.COMPLETION_SHAPES} <= set(phrases.DOCUMENTS)
    assert set(phrases.DOCUMENTS) <= {*datasets.COMPLETION_SHAPES, *datasets.CHAT_SHAPES}
    assert {role for request in phrases.REQUESTS.values() for role in request.roles} == set(phrases.ROLES)
    slots = set(re.findall(r"<([a-z]+)\d?>", repr((phrases.WORDS, phrases.ROLES, phrases.REQUESTS, phrases.DOCUMENTS))))
    assert slots - {"hex", "row", "time"} == set(phrases.WORDS)


# --- converting

TEXT = rb"""{"prompt":"one \u00e9","max_tokens":7,"temperature":0.5,"id":"a","x":1}
{"prompt":"two  spaces","output_tokens":9,"extra_body":{"top_k":[4, 5]}}
"""
TOKENS = b"""{"task_id":"t","input_ids":[3, 4],"output_tokens":5}

{"logits":[7]}
"""
MESSAGES = b"""{"messages":[{"role":"user","content":"hi"}],"id":3,"seed":1}
"""


def written(path: Path, raw: bytes) -> Path:
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("raw", "to", "lines"),
    [
        (TEXT, "trtllm-bench", [{"task_id": 0, "prompt": "one \u00e9", "output_tokens": 7},
                                {"task_id": 1, "prompt": "two  spaces", "output_tokens": 9}]),
        (TEXT, "vllm", [{"prompt": "one \u00e9", "output_tokens": 7}, {"prompt": "two  spaces", "output_tokens": 9}]),
        (TEXT, "loadgen", [
            {"id": "a", "prompt": "one \u00e9", "output_tokens": 7, "extra_body": {"temperature": 0.5}},
            {"id": "2", "prompt": "two  spaces", "output_tokens": 9, "extra_body": {"top_k": [4, 5]}},
        ]),
        (TOKENS, "trtllm-bench", [{"task_id": 0, "input_ids": [3, 4], "output_tokens": 5},
                                  {"task_id": 1, "input_ids": [7], "output_tokens": 128}]),
        (TOKENS, "loadgen", [{"id": "t", "input_ids": [3, 4], "output_tokens": 5},
                             {"id": "3", "input_ids": [7], "output_tokens": 128}]),
        (MESSAGES, "loadgen", [{"id": "3", "messages": [{"role": "user", "content": "hi"}], "output_tokens": 128,
                                "extra_body": {"seed": 1}}]),
    ],
    ids=["text to TensorRT-LLM", "text to vLLM", "text", "tokens to TensorRT-LLM", "tokens", "messages"],
)  # fmt: skip
def test_convert(raw: bytes, to: str, lines: list[dict], tmp_path: Path) -> None:
    converted = list(convert(written(tmp_path / "data.jsonl", raw), to))
    assert [json.loads(line) for line in converted] == lines
    assert [list(json.loads(line)) for line in converted] == [list(line) for line in lines]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in converted)


@pytest.mark.parametrize("to", ["trtllm-bench", "vllm", "loadgen"])
def test_convert_can_replace_the_output_tokens(to: str, tmp_path: Path) -> None:
    path = written(tmp_path / "data.jsonl", TEXT)
    assert [json.loads(line)["output_tokens"] for line in convert(path, to, 33)] == [33, 33]


@pytest.mark.parametrize(
    ("raw", "to", "words"),
    [
        (TEXT + MESSAGES, "trtllm-bench", ':3: has "messages", which trtllm-bench cannot hold'),
        (b"\n" + MESSAGES, "vllm", ':2: has "messages", which vllm cannot hold; apply the chat template first'),
        (TEXT + b"\n" + TOKENS, "vllm", ":4: has token ids, which the format of vllm cannot hold; use text prompts"),
        (TEXT + b'{"prompt":5}\n', "loadgen", ":3: "),
        (b"", "vllm", ": holds no prompt"),
    ],
    ids=["messages", "messages to vLLM", "token ids", "bad line", "empty"],
)
def test_convert_names_the_line_that_the_format_cannot_hold(raw: bytes, to: str, words: str, tmp_path: Path) -> None:
    path = written(tmp_path / "data.jsonl", raw)
    with pytest.raises(DatasetError) as caught:
        list(convert(path, to))
    assert str(caught.value).startswith(f"{path}{words}")


def asked(prompt: Prompt) -> tuple[str, object, int]:
    """What of a prompt every format keeps."""
    return prompt.kind, msgspec.json.decode(prompt.content), prompt.output_tokens


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("completion-256", "trtllm-bench"),
        ("completion-256", "vllm"),
        ("tokens-256x128", "trtllm-bench"),
        ("chat-256", "loadgen"),
    ],
)
def test_prompts_are_the_same_when_they_are_converted_and_back(name: str, to: str, tmp_path: Path) -> None:
    original = read_prompts(find_dataset(name))
    there = written(tmp_path / "there.jsonl", b"".join(convert(find_dataset(name), to)))
    back = written(tmp_path / "back.jsonl", b"".join(convert(there, "loadgen")))
    for path in (there, back):
        assert [asked(prompt) for prompt in read_prompts(path)] == [asked(prompt) for prompt in original]


@pytest.mark.parametrize("raw", [TEXT, TOKENS, MESSAGES], ids=["text", "tokens", "messages"])
def test_loadgens_own_format_keeps_everything_that_is_sent(raw: bytes, tmp_path: Path) -> None:
    path = written(tmp_path / "data.jsonl", raw)
    once = written(tmp_path / "once.jsonl", b"".join(convert(path, "loadgen")))
    assert read_prompts(once) == read_prompts(path)
    assert b"".join(convert(once, "loadgen")) == once.read_bytes()


# --- inspecting


def test_spread_against_numpy() -> None:
    np = pytest.importorskip("numpy")
    rng = random.Random(1)
    for count in (1, 2, 3, 10, 11, 256):
        values = [rng.randrange(1000) for _ in range(count)]
        found = spread(values)
        assert (found.count, found.min, found.max) == (count, min(values), max(values))
        assert found.mean == pytest.approx(np.mean(values))
        assert (found.p50, found.p90) == pytest.approx(tuple(np.quantile(values, [0.5, 0.9])))


MIXED = rb"""{"prompt":"one two","x":1}

{"prompt":"one two","x":1,"\u001b[31mred":{"y":[]},"temperature":0.5,"max_tokens":7,"id":"a","extra_body":{"z":1}}
{"messages":[{"role":"user","content":[{"type":"text","text":"h\u00e9 you"},{"type":"image_url","image_url":{}}]},
""".replace(b",\n", b',{"role":"assistant"},{"role":"user","content":"ok","name":"q"}],"output_tokens":3}\n')


def test_inspect(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + MIXED + b'{"logits":[1,2,3],"task_id":4,"x":null}\n')
    assert inspect(path) == datasets.Inspection(
        path=str(path),
        prompts=4,
        kinds={"messages": 1, "text": 2, "token_ids": 1},
        input_characters=spread([7, 7, 8]),
        input_words=spread([2, 2, 3]),
        input_tokens=spread([3]),
        output_tokens=spread([128, 7, 3, 128]),
        duplicate_prompts=1,
        unsent_fields={"x": 3, "\x1b[31mred": 1},
    )


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"", ""),
        (b"\n \n", ""),
        (b'{"prompt":"a"}\n{"prompt":5}\n', ":2"),
        (b'{"prompt":"a","input_ids":[1]}\n', ":1"),
        (b'\n\n{"x":1}\n', ":3"),
        (b'{"prompt":"\xff"}\n', ":1"),
        (b'{"prompt":"\\ud800"}\n', ":1"),
        (b'{"messages":[{"role":"user","content":"\xff"}]}\n', ":1"),
        (b'{"prompt":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", ":1"),
        (b"[1]\n", ":1"),
    ],
    ids=["empty", "blank", "type", "two", "none", "utf-8", "surrogate", "message", "deep", "list"],
)
def test_inspect_names_the_bad_line(tmp_path: Path, content: bytes, place: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"^{re.escape(str(path) + place)}: "):
        inspect(path)


def test_render_mixed_golden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mixed.jsonl").write_bytes(MIXED)
    assert render(inspect(Path("mixed.jsonl"))) == (
        "mixed.jsonl: 3 prompts (messages 1, text 2)\n"
        "\n"
        "                           min        mean         p50         p90         max\n"
        "input characters             7         7.3         7.0         7.8           8\n"
        "input words                  2         2.3         2.0         2.8           3\n"
        "output tokens                3        46.0         7.0       103.8         128\n"
        "\n"
        "duplicate prompts: 1 of 3 repeat an earlier one; a prefix cache makes those\n"
        "  cheaper than new ones\n"
        'fields not sent: "x" (2), "\\u001b[31mred" (1)'
    )


def test_render_fits_80_columns_whatever_the_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "wide.jsonl"
    fields = {f"a field with a long name {number}": 1 for number in range(14)}
    path.write_text(json.dumps({"prompt": "a" * 10, "output_tokens": 10**7, **fields}) + "\n")
    text = render(inspect(path))
    lines = text.splitlines()
    assert all(len(line) <= 80 for line in lines if str(path) not in line)
    assert lines[-1].endswith("and 4 more")
    assert "duplicate prompts: none" in lines


# --- finding


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_name_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_dataset(name).samefile(FOLDER / f"{name}.jsonl")
    Path(name).mkdir()  # no dataset, so it does not hide the shipped one
    assert find_dataset(name).samefile(FOLDER / f"{name}.jsonl")


def test_an_existing_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("chat-256").write_text('{"prompt":"mine"}\n')
    assert find_dataset("chat-256") == Path("chat-256")
    assert prompt_source(Prompts(dataset="chat-256")) == SourceSpec(seed=0, path="chat-256")


def test_sweeps_take_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    spec = prompt_source(Prompts(dataset="tokens-256x128"))
    assert len(spec.open().prompts) == 256


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("chat", "no such file"),
        ("chat-256.jsonl", "no such file"),
        ("none/chat-256", "no such file"),
        (".", "is a folder"),
    ],
)
def test_an_unknown_name_lists_the_shipped_ones(
    name: str, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError) as error:
        find_dataset(name)
    assert str(error.value) == (
        f"{name}: {problem}, nor a dataset that comes with loadgen; those are: chat-256, completion-256, tokens-256x128"
    )


def test_a_name_that_no_file_can_have_is_no_traceback() -> None:
    with pytest.raises(DatasetError, match="File name too long"):
        inspect(find_dataset("x" * 5000))


def test_the_wheels_folder_comes_before_a_stranger_beside_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site-packages"
    (site / "loadgen").mkdir(parents=True)
    (site / "datasets").mkdir()  # the folder of another package of that name
    (site / "datasets" / "theirs.jsonl").touch()
    monkeypatch.setattr(datasets, "__file__", str(site / "loadgen" / "workloads" / "datasets.py"))
    data = site / "loadgen" / "data" / "datasets"
    data.mkdir(parents=True)
    (data / "chat-256.jsonl").touch()
    assert shipped() == {"chat-256": data / "chat-256.jsonl"}


# --- the commands


def test_make_writes_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    result = run("dataset", "make", "chat", "--prompts", "4", "--seed", "9", "--output", str(path))
    assert (result.exception, result.return_value) == (None, 0)
    assert result.output == f"{path}: 4 prompts\n"
    assert path.read_bytes() == b"".join(make("chat", 4, 9))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["make", "chat", "--output", "old.jsonl"], "old.jsonl: exists already"),
        (["make", "chat", "--output", "."], ".: exists already"),
        (["make", "chat", "--output", "none/new.jsonl"], "none/new.jsonl: cannot be written: No such file"),
        (["make", "poems", "--output", "new.jsonl"], "kinds: chat, completion, tokens"),
        (["make", "chat", "--prompts", "0", "--output", "new.jsonl"], "1 prompt or more, not 0"),
        (["make", "chat"], "--output"),
        (["inspect", "none.jsonl"], "those are: chat-256, completion-256, tokens-256x128"),
        (["inspect", "old.jsonl"], "old.jsonl:1: not a JSON object"),
    ],
)
def test_a_users_mistake_ends_with_2_and_changes_nothing(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.jsonl").write_text("kept")
    code, message = ends(monkeypatch, capsys, "dataset", *arguments)
    assert (code, words in message, "Traceback" in message) == (2, True, False)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old.jsonl": "kept"}


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(28, "No space left on device"), DatasetError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_half_written_file_is_removed(failure: BaseException, raised: type[BaseException], tmp_path: Path) -> None:
    def lines() -> object:
        yield b"{}\n"
        raise failure

    with pytest.raises(raised):
        datasets.write(tmp_path / "new.jsonl", lines())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_convert_writes_a_new_file_or_nothing(tmp_path: Path) -> None:
    source, output = written(tmp_path / "in.jsonl", TEXT), tmp_path / "out.jsonl"
    result = run("dataset", "convert", str(source), str(output), "--to", "vllm", "--output-tokens", "5")
    assert (result.exception, result.return_value) == (None, 0)
    assert output.read_bytes() == b"".join(convert(source, "vllm", 5))
    assert run("dataset", "convert", str(source), "-", "--to", "vllm").stdout_bytes == b"".join(convert(source, "vllm"))
    output.unlink()
    chat = written(tmp_path / "chat.jsonl", TEXT + MESSAGES)
    assert isinstance(run("dataset", "convert", str(chat), str(output), "--to", "vllm").exception, DatasetError)
    assert not output.exists()
    again = run("dataset", "convert", str(source), str(chat), "--to", "vllm").exception
    assert isinstance(again, DatasetError) and "exists already" in str(again)


def test_inspect_as_text_and_json() -> None:
    path = find_dataset("chat-256")
    assert run("dataset", "inspect", "chat-256").output == render(inspect(path)) + "\n"
    result = run("dataset", "inspect", "chat-256", "--json")
    assert msgspec.json.decode(result.output, type=datasets.Inspection) == inspect(path)


def test_help_names_every_kind() -> None:
    text = run("dataset", "make", "--help").output
    assert [kind for kind in KINDS if f"\n    {kind} " not in text] == []


def test_errors_are_loadgens_own(tmp_path: Path) -> None:
    assert isinstance(run("dataset", "inspect", str(tmp_path)).exception, LoadgenError)
