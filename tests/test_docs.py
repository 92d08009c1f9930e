"""Documents that must not drift from the code."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from commands import COMMANDS

ROOT = Path(__file__).resolve().parents[1]


def test_the_metrics_page_is_what_the_code_makes() -> None:
    spec = importlib.util.spec_from_file_location("make_metrics", ROOT / "docs" / "make_metrics.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "metrics.md").read_text() == module.text(), "run `make docs`"


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def command_lines(document: Path) -> list[str]:
    """The command lines of loadgen in a document's blocks of code."""
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", document.read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line[line.index("loadgen ") :] for line in lines if re.search(r"(^|[\s;(])loadgen ", line)]


def test_documents_have_command_lines() -> None:
    assert len([line for document in DOCUMENTS for line in command_lines(document)]) > 20


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_option_in_a_document_exists(document: Path) -> None:
    for line in command_lines(document):
        words = line.split("#")[0].split()
        command = next(COMMANDS[name] for end in (4, 3, 2, 1) if (name := " ".join(words[:end])) in COMMANDS)
        known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help", "-h"}
        for option in re.findall(r"(?<!\S)\[?(--[a-z][a-z-]+)", " ".join(words)):
            assert option in known, f"{option} in {line!r}"


@pytest.mark.parametrize("target", ["demo", "test", "test-engines", "bench", "docs"])
def test_every_target_of_the_readme_is_in_the_makefile(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"make {target}" in (ROOT / "README.md").read_text()
