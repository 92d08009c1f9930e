"""Stands in for SGLang's kernels: every name is a function that refuses to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn


def __getattr__(name: str) -> Callable[..., NoReturn]:
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args: Any, **options: Any) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name}: PyPI has no build of it for the CPU")

    return missing
