"""Completion: what is offered for a word, and what bash and zsh get to hear."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loadgen.cli.completion import dataset_names, rejoin_words, run_names

ROOT = Path(__file__).parents[2]
RUN = ROOT / "reports" / "vllm-0.25.1-h200-qwen1.5-4b-levels"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three runs, one of them published, and one folder that is none."""
    place = tmp_path_factory.mktemp("place")
    for name in ("local/chat-a", "local/chat-b", "published"):
        (place / "reports" / name).mkdir(parents=True)
        for file in ("manifest.json", "summary.json"):
            shutil.copy(RUN / file, place / "reports" / name)
    (place / "reports" / "local" / "broken").mkdir()
    (place / "reports" / "local" / "broken" / "manifest.json").write_text("{")
    return place


@pytest.mark.parametrize(
    ("incomplete", "offered"),
    [
        ("", ["@last", "@last~1", "@last~2", "chat-a", "chat-b", "published"]),
        ("@", ["@last", "@last~1", "@last~2"]),
        ("@last~", ["@last~1", "@last~2"]),
        ("ch", ["chat-a", "chat-b"]),
        ("pub", ["published"]),
        ("broken", []),
        ("x", []),
    ],
)
def test_names_of_runs(place: Path, incomplete: str, offered: list[str]) -> None:
    homes = [place / "reports" / "local", place / "reports"]
    assert sorted(run_names(incomplete, homes)) == offered


def test_no_runs_are_offered_where_there_are_none(tmp_path: Path) -> None:
    assert run_names("", [tmp_path / "nowhere"]) == []


def test_names_of_datasets() -> None:
    assert dataset_names("") == ["chat-256", "completion-256", "tokens-256x128"]
    assert dataset_names("ch") == ["chat-256"] and dataset_names("x") == []


@pytest.mark.parametrize(
    ("words", "place", "joined", "new_place"),
    [
        (["loadgen", "report", "@", "l"], 3, ["loadgen", "report", "@l"], 2),
        (["loadgen", "report", "@"], 2, ["loadgen", "report", "@"], 2),
        (["loadgen", "report", "@", "last", "@", "l"], 5, ["loadgen", "report", "@last", "@l"], 3),
        (["loadgen", "report", "@", "last", "x"], 4, ["loadgen", "report", "@last", "x"], 3),
        (["loadgen", "sweep", "--engine", "=", "v"], 4, ["loadgen", "sweep", "--engine=v"], 2),
        (["loadgen", "sweep", "--engine", "="], 3, ["loadgen", "sweep", "--engine="], 2),
        (["loadgen", "sweep", "--engine", "sim"], 4, ["loadgen", "sweep", "--engine", "sim"], 4),
        (["loadgen", "kernels", "profile", "k", "tokens", "=", "6"], 6,
         ["loadgen", "kernels", "profile", "k", "tokens", "=", "6"], 6),
    ],
)  # fmt: skip
def test_words_that_bash_has_cut_are_joined(words: list[str], place: int, joined: list[str], new_place: int) -> None:
    environ = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(place)}
    rejoin_words(environ)
    assert environ == {"COMP_WORDS": "\n".join(joined), "COMP_CWORD": str(new_place)}


def test_another_shell_is_left_alone() -> None:
    environ = {"_TYPER_COMPLETE_ARGS": "loadgen report @l"}
    rejoin_words(environ)
    assert environ == {"_TYPER_COMPLETE_ARGS": "loadgen report @l"}


def environment(place: Path, **variables: str) -> dict[str, str]:
    """One in which ``loadgen`` is this one."""
    folder = place / "bin"
    folder.mkdir(exist_ok=True)
    program = folder / "loadgen"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m loadgen "$@"\n')
    program.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **variables}


COMPLETED = {
    "report @l": ["@last", "@last~1", "@last~2"],
    "report chat": ["chat-a", "chat-b"],
    "compare chat-a @last~": ["@last~1", "@last~2"],
    "kernels bench --from pub": ["published"],
    "sweep --dataset ch": ["chat-256"],
    "sweep --dataset=ch": ["chat-256"],
    "dataset inspect tok": ["tokens-256x128"],
    "sweep --engine v": ["vllm"],
    "sweep --find c": ["capacity"],
    "sweep --sim-mo": ["--sim-mode", "--sim-model"],
    "cal": ["calibrate"],
}


@pytest.mark.integration
@pytest.mark.parametrize("line", COMPLETED)
def test_bash_completes(place: Path, line: str) -> None:
    """With the script that loadgen gives it, and words cut at ``@`` and ``=`` as an interactive bash cuts them."""
    words = ["loadgen", *line.replace("@", " @ ").replace("=", " = ").split()]
    script = (
        'eval "$(_LOADGEN_COMPLETE=source_bash loadgen)"\n'
        f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}\n"
        '_loadgen_completion loadgen; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, env=environment(place), cwd=place, timeout=60
    )
    assert (sorted(done.stdout.split()), done.stderr) == (sorted(COMPLETED[line]), "")


@pytest.mark.integration
@pytest.mark.parametrize("line", ["report @l", "sweep --dataset ch"])
def test_zsh_is_told_the_same(place: Path, line: str) -> None:
    variables = {"_LOADGEN_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": f"loadgen {line}"}
    done = subprocess.run(
        ["loadgen"], capture_output=True, text=True, env=environment(place, **variables), cwd=place, timeout=60
    )
    offered = "\n".join(f'"{name}"' for name in COMPLETED[line])
    assert (done.stdout, done.stderr) == (f"_arguments '*: :(({offered}))'\n", "")


@pytest.mark.integration
@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_script_of_a_shell_is_shown(tmp_path: Path, shell: str) -> None:
    shown = subprocess.run(
        ["loadgen"],
        capture_output=True, text=True, env=environment(tmp_path, _LOADGEN_COMPLETE=f"source_{shell}"), timeout=60,
    )  # fmt: skip
    assert f"_LOADGEN_COMPLETE=complete_{shell}" in shown.stdout and shown.returncode == 0
