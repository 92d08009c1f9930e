"""An alarm clock for an event loop, to some tens of microseconds.

A timer of the loop itself is good to the millisecond: libuv counts in those.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import time
from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)
_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_TFD_TIMER_ABSTIME = 1


class Alarm:
    """Calls a function of an event loop at a time of :data:`loadgen.clock.now_ns`.

    It is a file descriptor that Linux makes readable at the time (timerfd_create(2)); Python has it from 3.13 on.

    Args:
        loop: running; ``call`` is called by it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._loop = loop
        self._call = call
        self._fd = _libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        loop.add_reader(self._fd, self._ring)

    def set(self, at_ns: int) -> None:
        """The one time to call at; a time that has passed is now."""
        # interval, then value: seconds and nanoseconds each; a value of 0 would disarm it.
        seconds, rest = divmod(max(at_ns, 1), 1_000_000_000)
        if _libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, struct.pack("qqqq", 0, 0, seconds, rest), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return
        self._call()

    def close(self) -> None:
        """Never calls again."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
