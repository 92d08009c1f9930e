"""Tables: for a terminal by a template or by the widest cell, and for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def laid(template: str, rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows of a table for a terminal, heads and figures alike.

    Args:
        template: for :meth:`str.format`, with a place for each cell, such as ``{:<16}{:>8}  {}``.
        rows: as many cells each as the template has places.
    """
    return [template.format(*row).rstrip() for row in rows]


def fitted(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table for a terminal with a rule below its first row, each column as wide as its widest cell.

    The first column is aligned to the left, the others to the right, with two spaces between them.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    template = "  ".join(f"{{:{'<' if i == 0 else '>'}{width}}}" for i, width in enumerate(widths))
    head, *body = laid(template, rows)
    return [head, "-" * max(map(len, (head, *body))), *body]


def markdown(rows: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A table for Markdown, its heads first; columns are numbers but for ``words``. Cells are escaped already."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    sides = "|".join("---" if i in words else "--:" for i in range(len(rows[0])))
    return "\n".join([head, f"|{sides}|", *body])
