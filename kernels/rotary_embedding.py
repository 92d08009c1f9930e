"""Rotary position embedding of queries and keys, in place, in the layout of GPT-NeoX.

For every query and key head h of a token at position p, and i < R / 2:

    h[i]         <- h[i] cos[p, i]         - h[i + R / 2] sin[p, i]
    h[i + R / 2] <- h[i + R / 2] cos[p, i] + h[i] sin[p, i]

qkv: (T, (Hq + 2 Hkv) D), the rows of the qkv projection, columns contiguous, rows at any stride; its values, and
what lies beyond the rotary dimension R <= D of a head, stay as they are. positions: (T,) int64. cos_sin_cache:
(max_position, R), R / 2 cosines and then R / 2 sines, as in vLLM. float16, bfloat16 or float32, cache and qkv
alike; computed in float32.

Bytes: read and write the rotated part, read a row of the cache for each position that occurs, and the positions:
2 T (Hq + Hkv) R s + min(T, max_position) R s + 8 T. Flops: 3 T (Hq + Hkv) R.
"""

import torch
import triton
import triton.language as tl

from loadgen.microbench.baselines import compiled
from loadgen.microbench.cases import DTYPE_BYTES, Case

OUTPUTS = ("qkv",)
STREAMED = ()

_SMALL = {"heads": 3, "kv_heads": 1, "head_size": 16, "rotary_dim": 16, "max_position": 7}
CHECKS = [
    {**_SMALL, "tokens": 1, "dtype": "float32"},
    {**_SMALL, "tokens": 9, "dtype": "float16", "padding": 5},
    {**_SMALL, "tokens": 3, "dtype": "bfloat16", "rotary_dim": 8},
    {**_SMALL, "tokens": 3, "dtype": "float32", "head_size": 80, "rotary_dim": 20},
    {**_SMALL, "tokens": 2, "dtype": "bfloat16", "heads": 20, "kv_heads": 20, "head_size": 128, "rotary_dim": 128},
    {**_SMALL, "tokens": 2, "dtype": "bfloat16", "heads": 9, "kv_heads": 2, "head_size": 192, "rotary_dim": 192},
    {**_SMALL, "tokens": 65, "dtype": "bfloat16", "heads": 56, "kv_heads": 8},
]


def cases(model, step):
    yield Case(
        {
            "tokens": step.tokens,
            "heads": model.heads,
            "kv_heads": model.kv_heads,
            "head_size": model.head_size,
            "rotary_dim": model.head_size,
            "max_position": step.context,
            "dtype": model.dtype,
            "theta": model.rope_theta,
        },
        per_step=model.layers,
    )


def inputs(make, tokens, heads, kv_heads, head_size, rotary_dim, max_position, dtype, theta=10_000.0, padding=0):
    width = (heads + 2 * kv_heads) * head_size
    exponents = torch.arange(0, rotary_dim, 2, device=make.device, dtype=torch.float64) / rotary_dim
    angles = torch.outer(torch.arange(max_position, device=make.device, dtype=torch.float64), theta**-exponents)
    qkv = make.normal(tokens, width + padding, dtype=dtype)[:, :width]
    return {
        "qkv": qkv,
        # Whole prompts one after the other; in a decode step, sequences of different lengths.
        "positions": torch.arange(tokens, device=make.device) % max_position,
        "cos_sin_cache": torch.cat((angles.cos(), angles.sin()), dim=-1).to(qkv.dtype),
        "heads": heads,
        "kv_heads": kv_heads,
    }


def reference(qkv, positions, cos_sin_cache, heads, kv_heads):
    tokens, rotary_dim = len(qkv), cos_sin_cache.shape[-1]
    rotated = qkv.double().view(tokens, heads + 2 * kv_heads, -1)
    cosines, sines = (part.unsqueeze(1) for part in cos_sin_cache[positions].double().chunk(2, dim=-1))
    both = rotated[:, : heads + kv_heads, :rotary_dim]
    first, second = both.chunk(2, dim=-1)
    both.copy_(torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1))
    return {"qkv": rotated.view(tokens, -1)}


def traffic(tokens, heads, kv_heads, head_size, rotary_dim, max_position, dtype, theta=10_000.0, padding=0):
    rotated = tokens * (heads + kv_heads) * rotary_dim
    elements = 2 * rotated + min(tokens, max_position) * rotary_dim
    return elements * DTYPE_BYTES[dtype] + 8 * tokens, 3 * rotated


@triton.jit
def _rotary_embedding(
    qkv_ptr, positions_ptr, cache_ptr, qkv_stride,
    HEADS: tl.constexpr, HEAD_SIZE: tl.constexpr, HALF: tl.constexpr,
    HEAD_BLOCKS: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """One program, BLOCK_HEADS heads of one token; queries and keys are alike and lie side by side."""
    program = tl.program_id(0)
    token = (program // HEAD_BLOCKS).to(tl.int64)
    heads = program % HEAD_BLOCKS * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    columns = tl.arange(0, BLOCK_HALF)[None, :]
    inside = (heads < HEADS) & (columns < HALF)
    position = tl.load(positions_ptr + token)
    first_ptr = qkv_ptr + token * qkv_stride + heads * HEAD_SIZE + columns
    first = tl.load(first_ptr, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(first_ptr + HALF, mask=inside, other=0.0).to(tl.float32)
    # Each thread loads the angles of its own elements, from L1 after the first head: no exchange through shared
    # memory, as a load of one row for all heads would need.
    cosine_ptr = cache_ptr + position * (2 * HALF) + columns + tl.zeros_like(heads)
    cosine = tl.load(cosine_ptr, mask=inside, other=0.0).to(tl.float32)
    sine = tl.load(cosine_ptr + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(first_ptr, (first * cosine - second * sine).to(qkv_ptr.dtype.element_ty), mask=inside)
    tl.store(first_ptr + HALF, (second * cosine + first * sine).to(qkv_ptr.dtype.element_ty), mask=inside)


def triton_kernel(qkv, positions, cos_sin_cache, heads, kv_heads):
    tokens, width = qkv.shape
    rotated, half = heads + kv_heads, cos_sin_cache.shape[-1] // 2
    block_half = triton.next_power_of_2(half)
    # Enough bytes in flight for each multiprocessor, by few large programs where there are tokens enough to fill the
    # GPU with such; else many small ones, for the shortest way through (both measured on an H200).
    block_elements, warps = (1024, 4) if tokens * rotated >= 4096 else (256, 1)
    block_heads = min(max(block_elements // block_half, 1), triton.next_power_of_2(rotated))
    warps = min(warps, max(block_heads * block_half // 256, 1))
    head_blocks = triton.cdiv(rotated, block_heads)
    _rotary_embedding[(tokens * head_blocks,)](
        qkv, positions, cos_sin_cache, qkv.stride(0),
        HEADS=rotated, HEAD_SIZE=width // (rotated + kv_heads), HALF=half,
        HEAD_BLOCKS=head_blocks, BLOCK_HEADS=block_heads, BLOCK_HALF=block_half, num_warps=warps,
    )  # fmt: skip


def eager(qkv, positions, cos_sin_cache, heads, kv_heads):
    tokens, rotary_dim = len(qkv), cos_sin_cache.shape[-1]
    both = qkv.unflatten(-1, (heads + 2 * kv_heads, -1))[:, : heads + kv_heads, :rotary_dim]
    cosines, sines = cos_sin_cache[positions].view(tokens, 1, rotary_dim).chunk(2, dim=-1)
    first, second = both.chunk(2, dim=-1)
    both.copy_(torch.cat((first * cosines - second * sines, second * cosines + first * sines), dim=-1))


def vllm(qkv, positions, cos_sin_cache, heads, kv_heads):
    from vllm import _custom_ops

    head_size = qkv.shape[-1] // (heads + 2 * kv_heads)
    query, key, _ = qkv.split((heads * head_size, kv_heads * head_size, kv_heads * head_size), dim=-1)
    _custom_ops.rotary_embedding(positions, query, key, head_size, cos_sin_cache, True)


IMPLEMENTATIONS = {"triton": triton_kernel}
BASELINES = {"eager": eager, "compile": compiled(eager), "vllm": vllm}
