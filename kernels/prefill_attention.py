"""Causal attention of whole prompts, packed one after another (varlen), in one pass with an online softmax.

    out[i, h] = sum_j softmax_j(q[i, h] . k[j, h // g] / sqrt(D)) v[j, h // g],   j <= i in the same prompt

with g = Hq / Hkv query heads to a KV head.

q, out: (T, Hq, D); k, v: (T, Hkv, D); all float16, bfloat16 or float32; strided over tokens (slices of the QKV
projection's output), contiguous in D. cu_seqlens: (B + 1,) int32, on the device, where each prompt starts and the
last ends; max_seqlen: the length of the longest. Any D up to 256 that is a multiple of 8. Scores, softmax and sums
in float32; the weights are rounded to the dtype before they meet v, as in FlashAttention. v must be finite, for a
masked weight is a product with 0.

One program takes a block of query rows of one head and walks over the keys before it: first the blocks that need no
mask, then those on the diagonal. Where the GPU has it (sm_90 and later), keys and values come by TMA.

Bytes: 2 (Hq + Hkv) T D s. Flops: 4 Hq D S (S + 1) / 2 for each prompt of S tokens.
"""

import functools
import itertools
import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from loadgen.microbench.cases import DTYPE_BYTES, Case

OUTPUTS = ("out",)
STREAMED = ()

# No bfloat16 here: the dot of Triton's interpreter takes its bits for integers. The cases have it, on a GPU.
CHECKS = [
    {"lengths": [1], "heads": 2, "kv_heads": 2, "head_size": 64, "dtype": "float32"},
    {"lengths": [128], "heads": 1, "kv_heads": 1, "head_size": 64, "dtype": "float16"},
    {"lengths": [300], "heads": 1, "kv_heads": 1, "head_size": 128, "dtype": "float16"},
    {"lengths": [129, 0, 1, 140], "heads": 3, "kv_heads": 1, "head_size": 64, "dtype": "float16"},
    {"lengths": [70, 9], "heads": 3, "kv_heads": 1, "head_size": 80, "dtype": "float16"},
    {"lengths": [140], "heads": 2, "kv_heads": 1, "head_size": 64, "dtype": "float32"},
    {"lengths": [33, 40], "heads": 2, "kv_heads": 1, "head_size": 256, "dtype": "float16"},
]


def cases(model, step):
    if step.phase == "prefill":
        yield Case(
            {
                "lengths": [step.context] * step.sequences,
                "heads": model.heads,
                "kv_heads": model.kv_heads,
                "head_size": model.head_size,
                "dtype": model.dtype,
            },
            per_step=model.layers,
        )


def inputs(make, lengths, heads, kv_heads, head_size, dtype):
    tokens = sum(lengths)
    # As the QKV projection leaves them, so that k and v are slices with the stride of a whole row.
    qkv = make.normal(tokens, (heads + 2 * kv_heads) * head_size, dtype=dtype)
    q, k, v = qkv.view(tokens, heads + 2 * kv_heads, head_size).split([heads, kv_heads, kv_heads], dim=1)
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    return {
        "q": q,
        "k": k,
        "v": v,
        "cu_seqlens": torch.tensor(starts, dtype=torch.int32, device=make.device),
        "max_seqlen": max(lengths),
        "out": make.empty(tokens, heads, head_size, dtype=dtype),
    }


def reference(q, k, v, cu_seqlens, max_seqlen, out):
    heads, head_size = q.shape[1:]
    want = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    bounds = cu_seqlens.tolist()
    for first, last in itertools.pairwise(bounds):
        for h in range(heads):
            keys = k[first:last, h // (heads // k.shape[1])].double()
            values = v[first:last, h // (heads // k.shape[1])].double()
            for start in range(first, last, 1024):  # rows at a time, for memory
                stop = min(start + 1024, last)
                scores = q[start:stop, h].double() @ keys.T / math.sqrt(head_size)
                row = torch.arange(start - first, stop - first, device=q.device)
                column = torch.arange(last - first, device=q.device)
                scores.masked_fill_(column[None, :] > row[:, None], -math.inf)
                want[start:stop, h] = (scores.softmax(-1) @ values).float()
    return {"out": want}


def traffic(lengths, heads, kv_heads, head_size, dtype):
    moved = 2 * (heads + kv_heads) * sum(lengths) * head_size * DTYPE_BYTES[dtype]
    return moved, sum(4 * heads * head_size * (n * (n + 1) // 2) for n in lengths)


def matrix_dtype(dtype, **_):
    return dtype


@triton.jit
def _load(source, first, start, length, stride, head, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr,
          BLOCK_N: tl.constexpr, TMA: tl.constexpr, CHECKED: tl.constexpr):  # fmt: skip
    """Tokens ``start`` and on of a prompt that begins at ``first``: (BLOCK_N, BLOCK_D) of one KV head."""
    if TMA:
        tile = source.load([first + start, head * HEAD_SIZE])
    else:
        token = start + tl.arange(0, BLOCK_N)
        column = tl.arange(0, BLOCK_D)
        offset = (first + token).to(tl.int64)[:, None] * stride + (head * HEAD_SIZE + column)[None, :]
        if CHECKED:
            tile = tl.load(source + offset, mask=(token < length)[:, None] & (column < HEAD_SIZE)[None, :], other=0.0)
        elif HEAD_SIZE == BLOCK_D:
            tile = tl.load(source + offset)
        else:
            tile = tl.load(source + offset, mask=(column < HEAD_SIZE)[None, :], other=0.0)
    return tile


@triton.jit
def _walk(acc, total, best, q, k, v, begin, end, row, first, length, k_stride, v_stride, kv_head, scale,
          HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr,
          MASKED: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Over the keys from ``begin`` to ``end`` of the prompt."""
    for start in tl.range(begin, end, BLOCK_N):
        # No more than a use of acc before the scores, and no instruction. Without it Triton lets the product with the
        # values run on into the next turn, where the scores' accumulator is zeroed; ptxas then puts a wait behind
        # every single wgmma (its C7515). With it there is one wait, at the end of the turn.
        acc = acc.to(tl.int32, bitcast=True).to(tl.float32, bitcast=True)
        key = _load(k, first, start, length, k_stride, kv_head, HEAD_SIZE, BLOCK_D, BLOCK_N, TMA, MASKED)
        score = tl.dot(q, tl.trans(key), input_precision=PRECISION)
        if MASKED:
            score = tl.where(row[:, None] >= (start + tl.arange(0, BLOCK_N))[None, :], score, float("-inf"))
        # The scale goes into the exponent's multiply-add; every row has a key in its first tile, so best is finite.
        new_best = tl.maximum(best, tl.max(score, 1) * scale)
        weight = tl.exp2(score * scale - new_best[:, None])
        shrink = tl.exp2(best - new_best)
        total = total * shrink + tl.sum(weight, 1)
        acc = acc * shrink[:, None]
        value = _load(v, first, start, length, v_stride, kv_head, HEAD_SIZE, BLOCK_D, BLOCK_N, TMA, MASKED)
        acc = tl.dot(weight.to(value.dtype), value, acc, input_precision=PRECISION)
        best = new_best
    return acc, total, best


@triton.jit
def _attention(
    q_ptr,
    k,  # a TMA descriptor of (T, Hkv D), or a pointer
    v,
    cu_seqlens_ptr,
    out_ptr,
    scale,  # times log2(e), for exp2
    q_stride,
    k_stride,
    v_stride,
    out_stride,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: BLOCK_M query rows of one head of one prompt."""
    # Heads run fastest: those that share keys run at once, and share them in L2. Row blocks run slowest and from the
    # end, where the walk is longest: short ones are left to even out the finish.
    head = tl.program_id(0)
    seq = tl.program_id(1)
    first_row = (tl.num_programs(2) - 1 - tl.program_id(2)) * BLOCK_M
    first = tl.load(cu_seqlens_ptr + seq)
    length = tl.load(cu_seqlens_ptr + seq + 1) - first
    if first_row >= length:
        return
    kv_head = head // GROUP

    row = first_row + tl.arange(0, BLOCK_M)
    column = tl.arange(0, BLOCK_D)
    real = (row < length)[:, None] & (column < HEAD_SIZE)[None, :]
    token = (first + row).to(tl.int64)[:, None]
    at = (head * HEAD_SIZE + column)[None, :]
    q = tl.load(q_ptr + token * q_stride + at, mask=real, other=0.0)

    best = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    diagonal = first_row // BLOCK_N * BLOCK_N
    end = tl.minimum(first_row + BLOCK_M, length)
    acc, total, best = _walk(
        acc, total, best, q, k, v, 0, diagonal, row, first, length, k_stride, v_stride, kv_head, scale,
        HEAD_SIZE, BLOCK_D, BLOCK_N, TMA, False, PRECISION,
    )  # fmt: skip
    acc, total, best = _walk(
        acc, total, best, q, k, v, diagonal, end, row, first, length, k_stride, v_stride, kv_head, scale,
        HEAD_SIZE, BLOCK_D, BLOCK_N, TMA, True, PRECISION,
    )  # fmt: skip

    acc = acc / total[:, None]
    tl.store(out_ptr + token * out_stride + at, acc.to(out_ptr.dtype.element_ty), mask=real)


@functools.cache
def _has_tma(device):
    # The interpreter has it too, so that the checks without a GPU cover both ways to load.
    return device.type == "cpu" or torch.cuda.get_device_capability(device) >= (9, 0)


def default_config(head_size, itemsize, tma):
    """Tiles, pipeline and registers of a program, from the sizes.

    TMA takes heads of a power-of-two size only: others are padded, and a tile must not reach into the next head.
    """
    tma = tma and itemsize == 2 and head_size in (64, 128, 256)
    if itemsize == 4:  # no tensor cores: float32 is multiplied as it is
        return {"block_m": 64, "block_n": 32, "warps": 8, "stages": 2, "tma": False}
    if head_size > 128:
        return {"block_m": 128 if tma else 64, "block_n": 64 if tma else 32, "warps": 8, "stages": 2, "tma": tma}
    if tma:
        # The two warpgroups of a program pass the same barriers and so do their softmax at the same time. Two programs
        # an SM do not: one's softmax hides behind the other's products. Half the registers each is what that takes.
        return {"block_m": 128, "block_n": 64, "warps": 8, "stages": 2, "tma": True, "maxnreg": 128}
    return {"block_m": 128, "block_n": 64, "warps": 8, "stages": 3, "tma": False}


def run(q, k, v, cu_seqlens, max_seqlen, out, config=None):
    tokens, heads, head_size = q.shape
    kv_heads = k.shape[1]
    if head_size > 256 or head_size % 8:
        raise NotImplementedError(f"head size {head_size}: only multiples of 8 up to 256")
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads over {kv_heads} KV heads")
    for tensor in (q, k, v, out):
        assert tensor.stride(2) == 1 and tensor.stride(1) == head_size
    if config is None:
        aligned = all(t.stride(0) * t.element_size() % 16 == 0 and t.data_ptr() % 16 == 0 for t in (k, v))
        config = default_config(head_size, q.element_size(), _has_tma(q.device) and aligned)
    keys, values = k, v
    if config["tma"]:
        block = [config["block_n"], head_size]
        keys, values = (TensorDescriptor(t, [tokens, kv_heads * head_size], [t.stride(0), 1], block) for t in (k, v))
    grid = (heads, cu_seqlens.shape[0] - 1, triton.cdiv(max_seqlen, config["block_m"]))
    _attention[grid](
        q,
        keys,
        values,
        cu_seqlens,
        out,
        head_size**-0.5 * math.log2(math.e),
        q.stride(0),
        k.stride(0),
        v.stride(0),
        out.stride(0),
        GROUP=heads // kv_heads,
        HEAD_SIZE=head_size,
        BLOCK_D=max(triton.next_power_of_2(head_size), 16),
        BLOCK_M=config["block_m"],
        BLOCK_N=config["block_n"],
        TMA=config["tma"],
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=config["warps"],
        num_stages=config["stages"],
        maxnreg=config.get("maxnreg"),
    )


def triton_kernel(**tensors):
    run(**tensors)


def _sdpa(q, k, v, cu_seqlens, max_seqlen, out):
    batch = cu_seqlens.shape[0] - 1
    if batch * max_seqlen != q.shape[0]:
        raise ImportError("no varlen: only prompts of one length")
    queries, keys, values = (t.unflatten(0, (batch, max_seqlen)).transpose(1, 2) for t in (q, k, v))
    result = torch.nn.functional.scaled_dot_product_attention(
        queries, keys, values, is_causal=True, enable_gqa=q.shape[1] != k.shape[1]
    )
    return result.transpose(1, 2).flatten(0, 1)


def eager(**tensors):
    return _sdpa(**tensors)


def sdpa_cudnn(**tensors):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return _sdpa(**tensors)


def sdpa_flash(**tensors):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return _sdpa(**tensors)


def flash_attn(q, k, v, cu_seqlens, max_seqlen, out):
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    if q.dtype == torch.float32:
        raise ImportError("FlashAttention takes float16 and bfloat16")
    flash_attn_varlen_func(
        q,
        k,
        v,
        max_seqlen_q=max_seqlen,
        cu_seqlens_q=cu_seqlens,
        max_seqlen_k=max_seqlen,
        cu_seqlens_k=cu_seqlens,
        softmax_scale=q.shape[-1] ** -0.5,
        causal=True,
        out=out,
        fa_version=3,
    )


IMPLEMENTATIONS = {"triton": triton_kernel}
BASELINES = {"eager": eager, "sdpa_cudnn": sdpa_cudnn, "sdpa_flash": sdpa_flash, "flash_attn": flash_attn}
