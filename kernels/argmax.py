"""Greedy sampling: the index of the largest logit of each row, the first of those that tie.

    tokens = min {i : x_i = max x}

logits: (B, V) contiguous float32, -inf allowed, no NaN; tokens: (B,) int64. A row is split over several programs,
each of which finds the first maximum of a chunk; a second launch takes the best chunk.

Bytes: read the logits, write the tokens: 4 B V + 8 B. Flops: B V comparisons.
"""

import torch
import triton
import triton.language as tl

from loadgen.microbench.baselines import compiled
from loadgen.microbench.cases import Case

OUTPUTS = ("tokens",)
STREAMED = ()

CHECKS = [
    {"sequences": 1, "vocab": 1},
    {"sequences": 3, "vocab": 1000},
    {"sequences": 2, "vocab": 9001},
    {"sequences": 5, "vocab": 5000, "shape": "ties"},
    {"sequences": 2, "vocab": 3000, "shape": "masked"},
]


def cases(model, step):
    # Instead of sampling, where every request is greedy.
    yield Case({"sequences": step.sequences, "vocab": model.vocab}, per_step=0)


def inputs(make, sequences, vocab, shape="model"):
    logits = make.normal(sequences, vocab, dtype="float32", std=2.0)
    if shape == "ties":
        logits.clamp_(max=0.5)  # the maximum is met in every chunk
    elif shape == "masked":
        logits[:, : vocab // 2] = -torch.inf
        logits[-1] = -torch.inf
    chunks = triton.cdiv(vocab, _chunk(sequences, vocab))
    return {
        "logits": logits,
        "tokens": make.empty(sequences, dtype="int64"),
        "chunk_max": make.empty(sequences, chunks, dtype="float32"),
        "chunk_argmax": make.empty(sequences, chunks, dtype="int32"),
    }


def reference(logits, **_):
    index = torch.arange(logits.shape[1], device=logits.device)
    is_max = logits == logits.amax(-1, keepdim=True)
    return {"tokens": torch.where(is_max, index, logits.shape[1]).amin(-1)}


def traffic(sequences, vocab, shape="model"):
    return 4 * sequences * vocab + 8 * sequences, sequences * vocab


def _chunk(sequences, vocab):
    # Enough programs for every SM of a large GPU even at one sequence, and fewer, larger ones where there are many.
    return 8192 if sequences * triton.cdiv(vocab, 8192) >= 1024 else 1024


@triton.jit
def _first_max(x, index, inside):
    """The maximum, and the smallest index where it stands. -inf is a value like any other."""
    top = tl.max(x, axis=0)
    return top, tl.min(tl.where(inside & (x == top), index, 2147483647), axis=0)


@triton.jit
def _of_chunk(logits_ptr, chunk_max_ptr, chunk_argmax_ptr, vocab, chunks, CHUNK: tl.constexpr):
    pid = tl.program_id(0)
    row, chunk = pid // chunks, pid % chunks
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = columns < vocab
    x = tl.load(logits_ptr + row.to(tl.int64) * vocab + columns, mask=inside, other=-float("inf"))
    top, index = _first_max(x, columns, inside)
    tl.store(chunk_max_ptr + pid, top)
    tl.store(chunk_argmax_ptr + pid, index)


@triton.jit
def _of_row(chunk_max_ptr, chunk_argmax_ptr, tokens_ptr, chunks, CHUNKS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, CHUNKS)
    inside = lane < chunks
    x = tl.load(chunk_max_ptr + row * chunks + lane, mask=inside, other=-float("inf"))
    index = tl.load(chunk_argmax_ptr + row * chunks + lane, mask=inside, other=0)
    _top, first = _first_max(x, index, inside)
    tl.store(tokens_ptr + row, first.to(tl.int64))


def triton_kernel(logits, tokens, chunk_max, chunk_argmax):
    rows, vocab = logits.shape
    assert logits.is_contiguous()
    chunk = _chunk(rows, vocab)
    chunks = chunk_max.shape[1]
    # 32 floats a thread, all of them in flight; 8 where programs are too few to fill the memory's pipes anyway.
    warps = 8 if chunk == 8192 else 4
    _of_chunk[(rows * chunks,)](logits, chunk_max, chunk_argmax, vocab, chunks, CHUNK=chunk, num_warps=warps)
    _of_row[(rows,)](chunk_max, chunk_argmax, tokens, chunks, CHUNKS=triton.next_power_of_2(chunks), num_warps=1)


def eager(logits, tokens, **_):
    torch.argmax(logits, dim=-1, out=tokens)


def _argmax(logits, tokens, **_):
    tokens.copy_(logits.argmax(-1))


IMPLEMENTATIONS = {"triton": triton_kernel}
BASELINES = {"eager": eager, "compile": compiled(_argmax)}
