"""What kernel files compare with: torch.compile of their eager form, made when it is first run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile(function)``; compiling starts with the first call, so that importing a file is quick."""

    @cache
    def made() -> Callable[..., Any]:
        import torch

        torch._dynamo.config.recompile_limit = 64  # one a case; beyond the limit it would quietly run eagerly
        result: Callable[..., Any] = torch.compile(function)
        return result

    def run(**tensors: Any) -> Any:
        return made()(**tensors)

    return run
