"""Sum of one tensor over the GPUs of a tensor-parallel model, by kernels that read the peers' memory.

    out_r = sum over ranks q of x_q                           (summed in float32 in the order of the ranks, rounded)

x_q: (T, H) bfloat16 in the memory of rank q; out_r: the same on rank r, bit for bit the same on all. The kernels
take addresses, an int64 for each rank; where these come from is no concern of theirs. Here, in one process, they
are those of p buffers that stand for the peers, so that the arithmetic is checked in the interpreter or on one GPU;
:mod:`loadgen.microbench.collective` runs the same functions with one process a GPU and measures them beside NCCL.

- one shot: each rank reads all p inputs and writes its own output. (p - 1) n bytes over the links, one way.
- two shot: each rank sums one p-th and writes it to all p outputs. 2 (p - 1) / p n bytes.

No kernel synchronises. Before it starts, all ranks must have written their inputs; after it, all ranks must have
finished before an input is overwritten and, in two shots, before an output is read.

Bytes, all ranks on one GPU: 2 p n read and written once, n = 2 T H. Flops: (p - 1) T H, p times in one shot.
"""

import torch
import triton
import triton.language as tl

from loadgen.microbench.baselines import compiled

OUTPUTS = ("out",)
STREAMED = ()

CHECKS = [
    {"ranks": 2, "tokens": 1, "hidden": 64},
    {"ranks": 2, "tokens": 3, "hidden": 1001},
    {"ranks": 3, "tokens": 5, "hidden": 777},
    {"ranks": 4, "tokens": 7, "hidden": 1536},
    {"ranks": 8, "tokens": 1, "hidden": 5},
    {"ranks": 8, "tokens": 2, "hidden": 5120},
]


def cases(model, step):
    # The model as it is served here has one GPU, and one GPU alone has nothing to reduce.
    return []


def inputs(make, ranks, tokens, hidden):
    return {
        "x": make.normal(ranks, tokens, hidden, dtype="bfloat16"),
        "out": make.empty(ranks, tokens, hidden, dtype="bfloat16"),
        "sources": make.empty(ranks, dtype="int64"),
        "targets": make.empty(ranks, dtype="int64"),
    }


def reference(x, **_):
    return {"out": x.double().sum(0).expand(x.shape)}


def traffic(ranks, tokens, hidden):
    return 2 * ranks * 2 * tokens * hidden, (ranks - 1) * tokens * hidden


@triton.jit
def _sum_of_peers(
    sources_ptr, targets_ptr, begin, end,
    RANKS: tl.constexpr, TARGETS: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Elements begin to end of all sources, summed into the same place of all targets."""
    # The number of elements is below 2^31, so that 32-bit offsets do.
    offsets = begin + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < end
    total = tl.zeros([BLOCK], tl.float32)
    for rank in tl.static_range(RANKS):
        source = tl.load(sources_ptr + rank).to(tl.pointer_type(tl.bfloat16))
        if ALIGNED:
            # An address out of memory tells the compiler nothing; without this it would load 2 bytes at a time.
            source = tl.multiple_of(source, 16)
        total += tl.load(source + offsets, mask=inside, other=0.0).to(tl.float32)
    value = total.to(tl.bfloat16)
    for rank in tl.static_range(TARGETS):
        target = tl.load(targets_ptr + rank).to(tl.pointer_type(tl.bfloat16))
        if ALIGNED:
            target = tl.multiple_of(target, 16)
        tl.store(target + offsets, value, mask=inside)


def _launch(sources, targets, begin, end, aligned):
    # 16 bytes a thread from each peer: all loads of a thread are in flight at once, 8 of them with 8 ranks.
    block = 1024 if end - begin < 1 << 20 else 2048
    _sum_of_peers[(triton.cdiv(end - begin, block),)](
        sources, targets, begin, end,
        RANKS=len(sources), TARGETS=len(targets), ALIGNED=aligned, BLOCK=block, num_warps=block // 256,
    )  # fmt: skip


def one_shot_rank(sources, target, elements, aligned=True):
    """One rank's part: ``sources`` are p addresses, ``target`` one, each in an int64 tensor on the device.

    aligned: all addresses are multiples of 16.
    """
    _launch(sources, target, 0, elements, aligned)


def two_shot_rank(sources, targets, rank, elements, aligned=True):
    """One rank's part: its p-th of the elements, from p sources to p targets."""
    # Multiples of 16 elements, which is what lets Triton load 16 bytes at a time.
    part = triton.cdiv(triton.cdiv(elements, len(sources)), 16) * 16
    begin, end = min(rank * part, elements), min((rank + 1) * part, elements)
    if begin < end:
        _launch(sources, targets, begin, end, aligned)


def _addresses(x, out, sources, targets):
    # On the device and anew each time: a copy of these tensors has its buffers elsewhere. Returns whether all are
    # multiples of 16.
    size = x[0].numel() * x.element_size()
    torch.arange(x.data_ptr(), x.data_ptr() + len(x) * size, size, out=sources)
    torch.arange(out.data_ptr(), out.data_ptr() + len(out) * size, size, out=targets)
    return (x.data_ptr() | out.data_ptr() | size) % 16 == 0


def one_shot(x, out, sources, targets):
    aligned = _addresses(x, out, sources, targets)
    for rank in range(len(x)):
        one_shot_rank(sources, targets[rank : rank + 1], x[0].numel(), aligned)


def two_shot(x, out, sources, targets):
    aligned = _addresses(x, out, sources, targets)
    for rank in range(len(x)):
        two_shot_rank(sources, targets, rank, x[0].numel(), aligned)


def eager(x, out, **_):
    out.copy_(x.float().sum(0))


IMPLEMENTATIONS = {"one_shot": one_shot, "two_shot": two_shot}
BASELINES = {"eager": eager, "compile": compiled(eager)}
