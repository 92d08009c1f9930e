"""Vector add, as a ladder from one thread to the memory's speed.

    out = a + b

a, b, out: (n) float32, contiguous. The CUDA rungs (vector_add.cu) do the same work and differ in one idea each:

    cuda_one_thread    <<<1, 1>>>: each load waits for the one before
    cuda_one_block     256 threads on one multiprocessor
    cuda_one_element   blocks for all, a thread for each element
    cuda_grid_stride   as many blocks as run at once, each thread loops
    cuda_streaming     four 16-byte loads of each input in flight a thread, data marked as used once; still a loop
    cuda               16 bytes a load and a thread for each: on an H200 the plainest of the wide ones is the fastest

Bytes: read a and b, write out: 12 n. Flops: n.
"""

import torch
import triton
import triton.language as tl

from loadgen.microbench.baselines import compiled
from loadgen.microbench.cases import Case

OUTPUTS = ("out",)
STREAMED = ()

# Far beyond any L2; the size of many tutorials (12.3 MB, inside the L2 of an A100 or later); what one thread can do.
CASES = [
    Case({"elements": 64 * 1024 * 1024}, label="memory"),
    Case({"elements": 1_024_000}, label="tutorial"),
    Case({"elements": 16_384}, label="small"),
]
CHECKS = [
    {"elements": 1},
    {"elements": 3},
    {"elements": 255},
    {"elements": 4_099},
    {"elements": 10_002},
    {"elements": 16_384},
]
# A millisecond or so: beyond it a rung says nothing new and would take the time of all others.
MOST_FOR_ONE_THREAD = 1 << 14
MOST_FOR_ONE_BLOCK = 1 << 20


def inputs(make, elements):
    return {
        "a": make.normal(elements, dtype="float32"),
        "b": make.normal(elements, dtype="float32"),
        "out": make.empty(elements, dtype="float32"),
    }


def reference(a, b, out):
    return {"out": a.double() + b.double()}


def traffic(elements):
    return 12 * elements, elements


@triton.jit
def _vector_add(a_ptr, b_ptr, out_ptr, elements, BLOCK: tl.constexpr):
    # 64-bit offsets: more than 2^31 elements fit on a GPU.
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    a = tl.load(a_ptr + at, mask=inside, eviction_policy="evict_first")
    b = tl.load(b_ptr + at, mask=inside, eviction_policy="evict_first")
    tl.store(out_ptr + at, a + b, mask=inside, eviction_policy="evict_first")


def triton_kernel(a, b, out):
    elements = a.numel()
    # Four 16-byte loads of each input a thread, as in the last CUDA rung; a few elements are spread over more SMs.
    block = 2048 if elements >= 1 << 20 else 512
    _vector_add[(triton.cdiv(elements, block),)](a, b, out, elements, BLOCK=block, num_warps=4)


def cuda_rung(name, most=None):
    """One rung; ``most``: elements that it takes a sensible time for."""

    def run(a, b, out):
        if most is not None and a.numel() > most:
            raise NotImplementedError(f"{name} would take too long for more than {most:,} elements")
        from loadgen.microbench.extension import RUNGS, operators

        operators().vector_add(a, b, out, RUNGS.index(name))

    return run


def eager(a, b, out):
    torch.add(a, b, out=out)


IMPLEMENTATIONS = {
    "triton": triton_kernel,
    "cuda": cuda_rung("float4"),
    "cuda_streaming": cuda_rung("streaming"),
    "cuda_grid_stride": cuda_rung("grid_stride"),
    "cuda_one_element": cuda_rung("one_element"),
    "cuda_one_block": cuda_rung("one_block", MOST_FOR_ONE_BLOCK),
    "cuda_one_thread": cuda_rung("one_thread", MOST_FOR_ONE_THREAD),
}
BASELINES = {"eager": eager, "compile": compiled(eager)}
