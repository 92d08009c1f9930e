"""Stands in for Triton where nothing runs on a GPU: its decorators leave functions as they are.

Any attribute and any submodule exists. Names that begin with a capital are classes, since they are inherited
from and given to isinstance; other names are modules that can also be called. A kernel cannot be started:
a plain function takes no grid in square brackets.
"""

from __future__ import annotations

import sys
import types
from importlib.machinery import ModuleSpec
from typing import Any


class StandIn(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {"__init__": accept_all}) if name[0].isupper() else StandIn(f"{self.__name__}.{name}")
        setattr(self, name, value)
        return value

    def __call__(self, *args: Any, **options: Any) -> Any:
        """As a decorator: the function, or, called with options first, what returns the function."""
        return args[0] if len(args) == 1 and callable(args[0]) else lambda function: function


def accept_all(self: object, *args: object, **options: object) -> None:
    """Takes any arguments."""


class Finder:
    """Finds every submodule of triton."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.startswith("triton.") else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to run."""


sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]
sys.modules[__name__].__class__ = StandIn
__version__ = "3.0.0"


def cdiv(value: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-value // divisor)


def next_power_of_2(value: int) -> int:
    """The smallest power of two that is not below the value."""
    return 1 << (value - 1).bit_length()
