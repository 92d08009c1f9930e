"""What commands print: results to standard output, everything else to standard error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import typer

EXIT_CODES = "Exit codes: 0 valid, 1 ran but a verdict failed, 2 usage or bad input, 3 an engine failed."

Render = Callable[[], str]


def show(text: str, end: str = "\n") -> None:
    """A result, to standard output; ``end`` is empty where the text ends its last line itself."""
    typer.echo(text + end, nl=False)


def say(text: str) -> None:
    """A line for people, to standard error."""
    typer.echo(text, err=True)


def complain(text: str) -> None:
    """What went wrong, to standard error."""
    say(f"loadgen: {text}")


def as_json_lines(values: list[Any]) -> str:
    """Each value as JSON on a line of its own."""
    from loadgen.records import encode_line

    return b"".join(map(encode_line, values)).decode()


def rendered(form: str, value: Any, renders: Mapping[str, Render]) -> str:
    """A result in the format that was asked for, ending in a line end: ``json`` is the value itself.

    Args:
        renders: makes the text of each of the other formats; only the one asked for is made.
    """
    if form == "json":
        from loadgen.report.text import json_text

        return json_text(value)
    text = renders[form]()
    return text if text.endswith("\n") else text + "\n"


def show_result(value: Any, json: bool, render: Render) -> None:
    """A command's result, to standard output: as JSON, or as text for people."""
    show(rendered("json" if json else "terminal", value, {"terminal": render}), end="")
