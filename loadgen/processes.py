"""Ctrl-C, and the processes that loadgen starts."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Counts Ctrl-C. The first asks for a clean end; the second ends now, after everything in ``kills`` was called."""

    def __init__(self) -> None:
        self.count = 0
        self.kills: list[Callable[[], None]] = []

    def _take(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1
        if self.count >= 2:
            for kill in self.kills:
                kill()
            os._exit(130)

    @contextmanager
    def watching(self) -> Iterator[Interrupts]:
        """Handles SIGINT and SIGTERM while the context lasts."""
        before = {s: signal.signal(s, self._take) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
