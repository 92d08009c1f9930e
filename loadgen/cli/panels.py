"""Commands whose options stand in panels: how a function takes them, and how the help page shows them.

A panel is a NamedTuple whose fields are options; its docstring is the heading. A command's function takes whole
panels, so each option is written down once::

    class Stopping(NamedTuple):
        \"\"\"Stopping.\"\"\"

        requests: Annotated[int | None, option("--requests", help="Requests to measure at each level.")] = None

    sweep_app = alone()

    @command(sweep_app, EXAMPLES)
    def sweep(stopping: Stopping) -> int: ...

Pages are plain text: they read the same in a terminal and in a pipe, and rich, which takes longer to import than all
of loadgen's help takes to show, stays out of them.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from copy import copy
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from loadgen.cli.params import show_choices

FOLDED = ("Engine", "Simulator")  # shown by --help-all alone, in a command that has that option
WIDEST_NAME = 26
_SHOW_ALL = "loadgen.help_all"


def alone() -> typer.Typer:
    """What :func:`command` adds a single command to."""
    return typer.Typer(add_completion=False, rich_markup_mode=None)


def group(name: str, about: str, examples: str) -> typer.Typer:
    """A group of commands."""
    return typer.Typer(
        name=name,
        help=about,
        epilog=examples,
        cls=Group,
        add_completion=False,
        rich_markup_mode=None,
        no_args_is_help=True,
    )


def command(
    app: typer.Typer, examples: str, name: str | None = None, about: str | None = None
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Makes a function a command of ``app``. Every field of its panels becomes an option.

    Args:
        examples: see :class:`Command`.
        name: None takes the function's.
        about: None takes the function's docstring.
    """

    def add(function: Callable[..., int]) -> Callable[..., int]:
        app.command(name, cls=Command, epilog=examples, help=about)(_spread(function))
        return function

    return add


def _spread(function: Callable[..., int]) -> Callable[..., int]:
    """The function with the fields of its panels as parameters of its own."""
    panels: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints[name]
        if hasattr(hint, "_fields"):
            panels[name] = hint
            heading = inspect.cleandoc(hint.__doc__).partition("\n")[0].rstrip(".")
            fields = get_type_hints(hint, include_extras=True)
            defaults = {field: hint._field_defaults.get(field, inspect.Parameter.empty) for field in fields}
            parameters += [_parameter(field, fields[field], defaults[field], heading) for field in fields]
        else:
            parameters.append(_parameter(name, hint, parameter.default))

    def call(**given: Any) -> int:
        made = {name: panel(**{field: given.pop(field) for field in panel._fields}) for name, panel in panels.items()}
        return function(**made, **given)

    call.__name__, call.__doc__ = function.__name__, function.__doc__
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def _parameter(name: str, hint: Any, default: Any, heading: str | None = None) -> inspect.Parameter:
    """As typer takes it. A list can be repeated; of every other type with a parser, typer needs to know nothing."""
    info = copy(hint.__metadata__[0])
    if heading is not None:
        info.rich_help_panel = heading
    repeated = any(get_origin(part) is list for part in (hint.__origin__, *get_args(hint.__origin__)))
    if info.metavar is None and (choices := _choices(hint.__origin__)):
        info.metavar = f"[{'|'.join(choices)}]"
    value_type = Any if info.parser is not None and not repeated else hint.__origin__
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, keyword, default=default, annotation=Annotated[value_type, info])


def _choices(value_type: Any) -> tuple[str, ...]:
    """The values of a Literal, or of an optional one."""
    for part in (value_type, *get_args(value_type)):
        if get_origin(part) is Literal:
            return get_args(part)
    return ()


def show_all(ctx: typer.Context, value: bool) -> None:
    """The callback of ``--help-all``."""
    if value and not ctx.resilient_parsing:
        ctx.meta[_SHOW_ALL] = True
        typer.echo(ctx.get_help())
        raise typer.Exit()


HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all", is_eager=True, callback=show_all, help="Show this page with every option, and exit.",
    ),
]  # fmt: skip


class Command(TyperCommand):
    """A command whose help shows examples first, then its options in panels.

    Its ``epilog`` holds the examples and, behind an empty line, what the page ends with.
    """

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _write_page(self, ctx, formatter)


class Group(TyperGroup):
    """A group of commands, with a help as that of :class:`Command`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        _write_page(self, ctx, formatter)


class Row(NamedTuple):
    """A command of :class:`LazyGroup`: where it is, and its line in the list of commands."""

    module: str
    app: str
    about: str


class LazyGroup(Group):
    """A group that makes a command when it is asked for: making all of them takes longer than importing typer."""

    rows: ClassVar[dict[str, Row]] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(self.rows)  # type: ignore[assignment]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        row = self.rows.get(cmd_name)
        if row is None:
            return None
        return typer.main.get_command(getattr(importlib.import_module(row.module), row.app))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, row.about) for name, row in self.rows.items()])


def _write_page(command: Any, ctx: Any, formatter: Any) -> None:
    command.format_usage(ctx, formatter)
    command.format_help_text(ctx, formatter)
    examples, _, end = inspect.cleandoc(command.epilog or "").partition("\n\n")
    if examples:
        formatter.write_paragraph()
        formatter.write("Examples:\n" + "".join(f"  {line}\n" for line in examples.splitlines()))
    if isinstance(command, TyperGroup):
        command.format_commands(ctx, formatter)
    _write_options(command, ctx, formatter)
    if end:
        formatter.write_paragraph()
        formatter.write_text(end)


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:
    panels: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    about: list[tuple[str, str]] = []
    folding = any(param.name == "help_all" for param in command.params) and not ctx.meta.get(_SHOW_ALL)
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is None:
            continue
        name, text = map(show_choices, record)
        if param.param_type_name == "argument":
            panels["Arguments"].append((name, text))
        elif param.is_eager or not param.expose_value:  # --help and the like
            about.append((name, text))
        else:
            panel = param.rich_help_panel or "Options"
            if not (folding and panel in FOLDED):
                panels.setdefault(panel, []).append((name, text))
    panels.setdefault("Options" if len(panels) == 2 else "Other", []).extend(about)
    width = min(max((len(name) for rows in panels.values() for name, _ in rows), default=0), WIDEST_NAME)
    for heading, rows in panels.items():
        if not rows:
            continue
        with formatter.section(heading):
            formatter.write_dl([(name.ljust(width), text) for name, text in rows], col_max=width)
    if folding:
        formatter.write_paragraph()
        formatter.write_text(f"{' and '.join(FOLDED).capitalize()} options: {ctx.command_path} --help-all")
