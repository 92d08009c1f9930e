"""``loadgen compare`` on the committed runs: an A/A pair, one that cannot be compared, and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from loadgen.cli.main import app
from loadgen.errors import RunFolderError, UsageError

REPORTS = Path(__file__).parents[2] / "reports"
TWICE = REPORTS / "vllm-0.25.1-h200-qwen1.5-4b-twice"
PREFIX = [str(REPORTS / f"vllm-0.25.1-h200-qwen1.5-4b-prefix-{word}") for word in ("off", "on")]


def compare(*words: str) -> Result:
    return CliRunner().invoke(app, ["compare", *words], standalone_mode=False)


def test_two_launches_of_one_engine_show_no_difference() -> None:
    done = compare(str(TWICE))
    assert done.return_value == 0
    assert "COMPARABLE, with 1 caveat" in done.stdout and "faster" not in done.stdout
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    apart = compare(str(TWICE / "vllm"), str(TWICE / "vllm-2"))
    assert apart.return_value == 0


def test_a_condition_is_decided_on_the_interval() -> None:
    undecided = compare(str(TWICE), "--fail-on", "tpot_p50>+3%")
    assert undecided.return_value == 0 and "UNDECIDED" in undecided.stdout
    passed = compare(str(TWICE), "--fail-on", "tpot_p50>+20%")
    assert passed.return_value == 0 and "PASSES" in passed.stdout
    failed = compare(str(TWICE), "--fail-on", "output_throughput<+20%")
    assert failed.return_value == 1 and "FAILS" in failed.stdout


def test_what_cannot_be_compared_is_not() -> None:
    done = compare(*PREFIX)
    assert done.return_value == 1
    assert "NOT COMPARABLE" in done.stdout and "cached tokens" in done.stdout
    assert "TPOT" not in done.stdout
    forced = compare(*PREFIX, "--force")
    assert forced.return_value == 1
    assert "NOT COMPARABLE" in forced.stdout and "TPOT p50" in forced.stdout


def test_other_formats() -> None:
    value = json.loads(compare(str(TWICE), "--format", "json", "--fail-on", "tpot_p50>+3%").stdout)
    assert value["comparison"]["comparable"] is True
    assert value["rulings"][0]["decision"] == "undecided"
    assert "| TPOT p50, ms | 6.71 | 6.88 |" in compare(str(TWICE), "--format", "markdown").stdout


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        ([str(TWICE / "vllm")], UsageError, "takes two runs; these are 1"),
        ([str(TWICE), PREFIX[0]], UsageError, "these are 3"),
        ([str(TWICE), "--fail-on", "tpot>3"], UsageError, "tpot_p50>\\+3%"),
        (["/no/such/run", str(TWICE / "vllm")], RunFolderError, "no such run folder"),
    ],
)
def test_bad_command_lines(words: list[str], kind: type[Exception], text: str) -> None:
    done = compare(*words)
    assert isinstance(done.exception, kind)
    with pytest.raises(kind, match=text):
        raise done.exception
