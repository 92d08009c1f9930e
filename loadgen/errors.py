"""The error tree. Every error that a user can cause is one of these; anything else is a bug.

    LoadgenError                exit code 1
    ├── UsageError              exit code 2   the command line, or a value on it
    │   ├── DatasetError        exit code 2   a data file; names path and line
    │   ├── EndpointError       exit code 2   the URL, or what answers there, cannot be measured
    │   └── RunFolderError      exit code 2   a run folder that cannot be used
    └── EngineError             exit code 3   an engine that loadgen launched failed

A failed *request* is no exception: it is data, see :class:`loadgen.records.RequestError`.
"""

from __future__ import annotations

__all__ = [
    "DatasetError",
    "EndpointError",
    "EngineError",
    "LoadgenError",
    "RunFolderError",
    "UsageError",
]


class LoadgenError(Exception):
    """A message that says what to do, and the exit code to end with."""

    exit_code = 1


class UsageError(LoadgenError):
    """Bad command line or bad input."""

    exit_code = 2


class DatasetError(UsageError):
    """A data file that cannot be used; the message starts with ``path`` or ``path:line``."""

    def __init__(self, path: object, message: str, line: int | None = None) -> None:
        place = str(path) if line is None else f"{path}:{line}"
        super().__init__(f"{place}: {message}")


class EndpointError(UsageError):
    """No server at the URL, a server of another kind, or one without the model."""


class RunFolderError(UsageError):
    """A run folder that is missing, already exists, or holds nothing to read."""


class EngineError(LoadgenError):
    """An engine that loadgen launched died, or never got ready."""

    exit_code = 3
