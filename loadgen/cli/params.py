"""The kinds of values that options take: for each one parser, one placeholder for the help, one error text.

Everything beyond typer is imported when a value is read, so that ``--help`` is quick.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import typer

from loadgen.errors import UsageError
from loadgen.units import parse_duration_s, parse_money, parse_share

MOST_RPS = 100_000


class Kind(NamedTuple):
    """How an option's text is read.

    Attributes:
        metavar: the placeholder in the help: a good example, where there is one.
        parse: the value of a text. It raises UsageError, whose message is shown after the option's name.
        complete: the values that a shell may offer for the beginning of a word.
        choices: every value that there is, where they are few. Asked for only by the help and by ``parse``.
    """

    metavar: str
    parse: Callable[[str], Any]
    complete: Callable[[str], list[str]] | None = None
    choices: Callable[[], Sequence[str]] | None = None


def option(*names: str, help: str, kind: Kind | None = None, **more: Any) -> Any:  # noqa: A002  (typer's name)
    """An option of the command line; ``kind`` reads it, else typer does by the type."""
    if kind is not None:
        more = {"show_default": False, **_reading(kind), **more}
    return typer.Option(*names, help=help, **more)


def argument(*, help: str, kind: Kind | None = None, **more: Any) -> Any:  # noqa: A002
    """A word of the command line that has no option's name before it."""
    if kind is not None:
        more = {**_reading(kind), **more}
    return typer.Argument(help=help, show_default=False, **more)


def _reading(kind: Kind) -> dict[str, Any]:
    def read(text: Any) -> Any:
        if not isinstance(text, str):  # a default, which is a value already
            return text
        try:
            return kind.parse(text)
        except UsageError as error:
            if type(error) is not UsageError:  # a run or a file that is missing: nothing is wrong with the option
                raise
            raise typer.BadParameter(str(error)) from None

    found: dict[str, Any] = {"parser": read, "metavar": kind.metavar}
    if kind.complete is not None:
        found["autocompletion"] = kind.complete
    return found


# --- numbers


def count(metavar: str = "N", least: int = 1, most: int | None = None) -> Kind:
    """A whole number within bounds."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise UsageError(f"{text!r} is not a whole number") from None
        if number < least:
            raise UsageError(f"must be {least} or above, not {number}")
        if most is not None and number > most:
            raise UsageError(f"must be at most {most:,}, not {number:,}")
        return number

    return Kind(metavar, parse)


def number(metavar: str, least: float | None = None, most: float | None = None) -> Kind:
    """A number within bounds; without ``least``, any that is above zero."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise UsageError(f"{text!r} is not a number") from None
        if not 0 < value < math.inf:
            raise UsageError(f"must be above 0, not {text}")
        if least is not None and value < least:
            raise UsageError(f"must be {least:g} or above, not {text}")
        if most is not None and value > most:
            raise UsageError(f"must be at most {most:,g}, not {text}")
        return value

    return Kind(metavar, parse)


def _parse_counts(text: str) -> tuple[int, ...]:
    found = []
    for piece in text.split(","):
        try:
            found.append(int(piece))
        except ValueError:
            raise UsageError(f"takes numbers such as 1,8,64; {piece.strip()!r} is not a whole number") from None
        if found[-1] < 1:
            raise UsageError(f"each number must be 1 or above, not {found[-1]}")
    return tuple(found)


def _parse_rates(text: str) -> tuple[float, ...]:
    found = []
    for piece in text.split(","):
        try:
            found.append(float(piece))
        except ValueError:
            raise UsageError(f"takes requests/s such as 0.5,2,8; {piece.strip()!r} is not a number") from None
        if not 0 < found[-1] <= MOST_RPS:
            raise UsageError(f"a rate must be above 0 and at most {MOST_RPS:,} requests/s, not {piece.strip()}")
    return tuple(found)


def _parse_token_range(text: str) -> Any:
    from loadgen.workloads.prompts import parse_token_range

    return parse_token_range(text, "a token range")


COUNT = count()
POSITIVE = number("X")
LOADS = Kind("1,8,64", _parse_counts)
RATES = Kind("2,4,8", _parse_rates)
TOKEN_RANGE = Kind("N|A:B", _parse_token_range)

# --- durations, shares, money

DURATION = Kind("TIME", partial(parse_duration_s, bare_seconds=True))
MONEY = Kind("PRICE", parse_money)


def share(metavar: str, *, zero: bool = False, whole: bool = True, above_whole: bool = False) -> Kind:
    """A share such as 95%, 95 or 0.95.

    Args:
        zero, whole: whether 0% and 100% are allowed.
        above_whole: whether more than 100% is allowed.
    """

    def parse(text: str) -> float:
        value = parse_share(text)
        if value < 0 or (value == 0 and not zero):
            raise UsageError(f"must be above 0%, not {text}")
        if value > 1 and not above_whole:
            raise UsageError(f"must be at most 100%, not {text}")
        if value == 1 and not whole:
            raise UsageError(f"must be below 100%, not {text}")
        return value

    return Kind(metavar, parse)


def _parse_attainment(text: str) -> float:
    value = share("99%").parse(text)
    if value == 1:
        raise UsageError(
            "no sample can prove 100%; to prove 99% takes at least 381 requests, to prove 99.9% at least 3,838"
        )
    return float(value)


def _parse_shares(text: str) -> tuple[float, ...]:
    each = share("25%", zero=True, above_whole=True)
    return tuple(each.parse(piece) for piece in text.split(",") if piece.strip())


ATTAINMENT = Kind("99%", _parse_attainment)
SHARES = Kind("25%,50%", _parse_shares)

# --- names


def one_of(metavar: str, choices: Callable[[], Sequence[str]]) -> Kind:
    """One of a few names; they are asked for only when one is read, completed or shown."""

    def parse(text: str) -> str:
        names = choices()
        if text not in names:
            raise UsageError(f"{text!r} is not one of {', '.join(names)}")
        return text

    return Kind(metavar, parse, lambda incomplete: [name for name in choices() if name.startswith(incomplete)], choices)


def _engine_kinds() -> Sequence[str]:
    from typing import get_args

    from loadgen.engines.installs import EngineKind

    return get_args(EngineKind)


def installed_engines() -> Sequence[str]:
    """The engines that loadgen launches from environments of their own."""
    return [kind for kind in _engine_kinds() if kind != EMBEDDED]


def _sim_gpus() -> Sequence[str]:
    from loadgen.engines.sim_model import GPUS

    return sorted(GPUS)


def _sim_models() -> Sequence[str]:
    from loadgen.engines.sim_model import MODELS

    return sorted(MODELS)


def _dialects() -> Sequence[str]:
    from loadgen.client.endpoint import DIALECTS

    return sorted(DIALECTS)


EMBEDDED = "sim"  # the engine that is part of loadgen; all others are launched from environments of their own
ENGINE = one_of("{engine}", _engine_kinds)
INSTALLED_ENGINE = one_of("{installed-engine}", installed_engines)
SIM_GPU = one_of("{sim-gpu}", _sim_gpus)
SIM_MODEL = one_of("{sim-model}", _sim_models)
DIALECT = one_of("{dialect}", _dialects)
CHOICES = (ENGINE, INSTALLED_ENGINE, SIM_GPU, SIM_MODEL, DIALECT)


def show_choices(text: str) -> str:
    """The text of a help page with the names in place of ``{engine}`` and the like."""
    for kind in CHOICES:
        if kind.metavar in text and kind.choices is not None:
            text = text.replace(kind.metavar, f"[{'|'.join(kind.choices())}]")
    return text


# --- runs and datasets


def _parse_run(text: str) -> Path:
    from loadgen.run_folders import find_run

    return find_run(text)


def _complete_run(incomplete: str) -> list[str]:
    from loadgen.cli.completion import run_names

    return run_names(incomplete)


def _complete_dataset(incomplete: str) -> list[str]:
    from loadgen.cli.completion import dataset_names

    return dataset_names(incomplete)


RUN = Kind("RUN", _parse_run, _complete_run)
# Read by loadgen.workloads.datasets.find_dataset, once it is known that a dataset is wanted.
DATASET = Kind("FILE|NAME", str, _complete_dataset)
