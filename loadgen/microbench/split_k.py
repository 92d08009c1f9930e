"""What the matrix products share: K split among programs, in one launch and with the same bits each time.

Each program stores its part of a tile's sums; the last one to arrive, which a counter tells, adds the
parts in their order. The counters are 0 before and after each launch. Imports triton, as kernel files do.
"""

import functools
from typing import Any

import torch
import triton
import triton.language as tl


@triton.jit
def prefetch(pointers):
    """Asks the L2 for the lines that the pointers lie in."""
    tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [pointers.to(tl.int64)],
                              dtype=tl.int32, is_pure=False, pack=1)  # fmt: skip


@triton.jit
def finish(total, m, n, M, N, out_ptr, out_stride, workspace_ptr, counter, SPLITS: tl.constexpr):
    """Stores a tile (n by m) of sums, or of one part of them, and has the last part's program sum the parts."""
    inside = (n < N)[:, None] & (m < M)[None, :]
    outs = out_ptr + m.to(tl.int64)[None, :] * out_stride + n[:, None]
    if SPLITS == 1:
        tl.store(outs, total.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        part = tl.program_id(1)
        size = tl.cast(M, tl.int64) * N
        places = workspace_ptr + m.to(tl.int64)[None, :] * N + n[:, None]
        tl.store(places + part * size, total, mask=inside)
        # The counter is raised by one thread, for all of them: after all have stored.
        tl.debug_barrier()
        if tl.atomic_add(counter, 1, sem="acq_rel") == SPLITS - 1:
            result = tl.zeros_like(total)
            # Several parts at a time where they are small; never more registers than the products need.
            SMALL: tl.constexpr = total.shape[0] * total.shape[1] <= 1024
            for i in tl.range(SPLITS, loop_unroll_factor=4 if SMALL else 1, num_stages=1):
                # Past the L1, which other SMs' stores do not reach.
                result += tl.load(places + i * size, mask=inside, other=0.0, cache_modifier=".cg")
            tl.store(outs, result.to(out_ptr.dtype.element_ty), mask=inside)
            tl.store(counter, 0)


@functools.cache
def multiprocessors() -> int:
    """Of the current device; where there is none, for the interpreter, those of an H100."""
    if not torch.cuda.is_available():
        return 132
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count)


def split_sizes(config: dict[str, Any], tokens: int, rows: int) -> tuple[int, int]:
    """Floats of workspace and counters that a config (SPLITS, BLOCK_M, BLOCK_N) needs; at least one of each."""
    if config.get("SPLITS", 1) == 1:
        return 1, 1
    tiles = triton.cdiv(rows, config["BLOCK_N"]) * triton.cdiv(tokens, config["BLOCK_M"])
    return config["SPLITS"] * tokens * rows, tiles
