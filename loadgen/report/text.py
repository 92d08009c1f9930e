"""Text for people: lines of at most 80 columns, and strings of others that stay text, whatever they hold."""

from __future__ import annotations

import re
import textwrap

import msgspec

WIDTH = 80

# What Markdown or HTML could read as more than itself in the middle of a line; _ only where a word begins or ends.
SPECIAL = re.compile(r"[\\`*\[\]<>|~&$^]|(?<!\w)_|_(?!\w)")
# GitHub makes a mention, a reference, an emoji or a link of these, however they are written.
MAGIC = re.compile(r"[@#](?=\w)|:(?=[\w+-]+:)|\b(?:https?|ftp)(?=:)|\bwww(?=\.)", re.IGNORECASE)
NO_WIDTH = "\N{ZERO WIDTH SPACE}"


def fill(text: str, indent: str = "") -> str:
    """A paragraph in lines of at most 80 columns, the later ones indented by two more."""
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent + "  ", break_on_hyphens=False)


def printable(text: str) -> str:
    """The text without what moves a terminal's cursor or changes its colours; line feeds stay."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def one_line(text: str) -> str:
    """The same on one line."""
    return printable(" ".join(text.split()))


def json_text(value: object) -> str:
    """A value as JSON that people can read too, with a last line end."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n"


def escaped(text: str) -> str:
    """One line for Markdown that shows as it is: what could be markup is written as a character reference.

    No table, no markup and no mention can come of a model's name or of an error's body.
    """
    return _references(MAGIC.sub(lambda found: found[0] + NO_WIDTH, one_line(text)))


def code(text: str) -> str:
    """The same in a fixed-width face, for names and commands, which can be copied from there."""
    return f"<code>{_references(one_line(text))}</code>"


def _references(text: str) -> str:
    return SPECIAL.sub(lambda found: f"&#{ord(found[0])};", text)
