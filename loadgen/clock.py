"""The one clock of loadgen: CLOCK_MONOTONIC in nanoseconds.

All processes of a Linux host share it, so stamps of different workers, of the embedded engine and
of the parent compare directly. It cannot be set back. A wall clock appears once per run, in the
manifest's ``started_utc``.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], int]

now_ns: Clock = time.perf_counter_ns
