"""Every command of the command line, for tests that look at all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer.main
from typer.core import TyperGroup

from loadgen.cli.main import app


def commands() -> Iterator[tuple[str, Any]]:
    """Words and command of every group and command, ``loadgen`` itself first."""
    yield from _below("loadgen", typer.main.get_command(app))


def _below(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield words, command
    if isinstance(command, TyperGroup):
        for name in command.commands:
            yield from _below(f"{words} {name}", command.get_command(None, name))  # type: ignore[arg-type]


COMMANDS = dict(commands())
