"""How many buffers a kernel is timed over, so that the state of the cache is what it is said to be.

Three states of the L2 cache, an axis of every figure:

    cold     every tensor rotates: nothing that a call reads was in the cache
    serving  weights and KV cache rotate, activations stay: what a decode step of a server sees
    hot      nothing rotates

Between two uses of one rotating buffer at least :data:`PASSES` times the cache has been read or
written, by the other buffers or, where they are too small for that, by a read of other memory between
two windows; and a window goes through all buffers a whole number of times. A benchmark whose rotation
did neither has reported cached figures as cold ones (FlashInfer issue 4468).
"""

from __future__ import annotations

import math

import msgspec

PASSES = 4
WINDOW_S = 1e-3
MOST_CALLS = 512
MOST_SETS = 256


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """The plan of one window.

    Attributes:
        sets: buffer sets.
        calls: kernel calls in one window, a multiple of ``sets``.
        set_bytes: memory of one set, as far as it rotates.
        touched_bytes: what a call reads or writes of it, at least: of a pool of KV pages only some.
        cache_bytes: the L2's size, as the device says.
        flush_bytes: read between two windows; 0 where the sets alone exceed the cache often enough.
    """

    sets: int
    calls: int
    set_bytes: int
    touched_bytes: int
    cache_bytes: int
    flush_bytes: int = 0

    @property
    def passed_bytes(self) -> int:
        """Bytes that pass through the cache between two uses of one buffer."""
        return (self.sets - 1) * self.touched_bytes + self.flush_bytes

    @property
    def proven(self) -> bool:
        """Whether what rotates is out of the cache when its turn comes again."""
        if self.set_bytes == 0:
            return False
        wraps = self.calls % self.sets == 0
        once = self.calls == self.sets or self.flush_bytes == 0
        return wraps and once and self.passed_bytes >= PASSES * self.cache_bytes


def plan(set_bytes: int, touched_bytes: int, call_s: float, cache_bytes: int, memory_bytes: int) -> Rotation | None:
    """The rotation for a kernel; None where the memory does not hold enough buffers.

    Args:
        set_bytes: of one set of the tensors that rotate; 0 for the state ``hot``.
        touched_bytes: what a call reads or writes of a set, at least.
        call_s: a rough time of one call.
        cache_bytes: the L2's size.
        memory_bytes: what the further sets may take.
    """
    wanted = min(max(math.ceil(WINDOW_S / max(call_s, 1e-9)), 1), MOST_CALLS)
    if set_bytes == 0:
        return Rotation(sets=1, calls=wanted, set_bytes=0, touched_bytes=0, cache_bytes=cache_bytes)
    affordable = int(memory_bytes // set_bytes) + 1
    alone = math.ceil(PASSES * cache_bytes / max(touched_bytes, 1)) + 1
    if alone <= min(MOST_SETS, affordable):
        sets, calls, flush_bytes = alone, alone * max(1, math.ceil(wanted / alone)), 0
    else:
        # Each buffer once a window, and the cache emptied before the next.
        sets = calls = min(max(wanted, 2), MOST_SETS, affordable)
        flush_bytes = PASSES * cache_bytes
    if sets < 2:
        return None
    return Rotation(
        sets=sets,
        calls=calls,
        set_bytes=set_bytes,
        touched_bytes=touched_bytes,
        cache_bytes=cache_bytes,
        flush_bytes=flush_bytes,
    )
