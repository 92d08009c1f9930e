"""Attention of one new token a sequence over a paged KV cache, split over the context (flash-decoding).

    out[b, h] = sum_j softmax_j(q[b, h] . key[j, h // g] / sqrt(D)) value[j, h // g],   j < seq_lens[b],  g = Hq / Hkv

q, out: (B, Hq, D); key_cache, value_cache: (blocks, page, Hkv, D), of equal strides and contiguous in D, the layout
of vLLM and FlashAttention; all float16, bfloat16 or float32. block_table: (B, max_blocks) int32, the block that
holds each page of a sequence; seq_lens: (B,) int32, on the device. Any page, any Hq = g Hkv, any D up to 256 that
is a multiple of 8 (others than powers of two are padded). A sequence of length 0 gives zeros. Scores, softmax and
sums in float32.

A first kernel handles one KV head of one slice of a context, for all g query heads that share it, and writes its
normalised result and its log-sum-exp (base 2) to ``partial`` (B, Hq, splits, D) and ``partial_lse``
(B, Hq, splits), both float32; a second one weighs the slices. One split needs no second kernel.

Bytes: 2 Hkv D s sum(seq_lens) + 2 B Hq D s + 4 sum(pages). Flops: 4 Hq D sum(seq_lens).
"""

import functools
import math

import torch
import triton
import triton.language as tl

from loadgen.microbench.cases import DTYPE_BYTES, Case

OUTPUTS = ("out",)
STREAMED = ("key_cache", "value_cache")
PAGE = 16
SMS = 132  # where there is no GPU to ask

# No bfloat16 here: the dot of Triton's interpreter takes its bits for integers. The cases have it, on a GPU.
CHECKS = [
    {"batch": 1, "heads": 2, "kv_heads": 2, "head_size": 64, "context": 1, "dtype": "float32"},
    {"batch": 3, "heads": 4, "kv_heads": 4, "head_size": 64, "context": 90, "dtype": "float16"},
    {"batch": 2, "heads": 7, "kv_heads": 1, "head_size": 128, "context": 200, "dtype": "float32"},
    {"batch": 2, "heads": 14, "kv_heads": 2, "head_size": 128, "context": 77, "dtype": "float16", "splits": 1},
    {"batch": 1, "heads": 20, "kv_heads": 1, "head_size": 80, "context": 65, "dtype": "float16"},
    {"batch": 1, "heads": 2, "kv_heads": 1, "head_size": 256, "context": 48, "dtype": "float32"},
    # Empty sequences, a slice that ends with its sequence, and one that only just begins.
    {"batch": 5, "heads": 2, "kv_heads": 1, "head_size": 64, "context": 0, "dtype": "float16",
     "lengths": [0, 1, 128, 129, 256], "splits": 2},
    {"batch": 2, "heads": 2, "kv_heads": 2, "head_size": 64, "context": 0, "dtype": "float32",
     "lengths": [0, 17], "splits": 1},
    # More slices than the second kernel takes at once.
    {"batch": 1, "heads": 2, "kv_heads": 1, "head_size": 64, "context": 2330, "dtype": "float16", "splits": 19},
]  # fmt: skip


def cases(model, step):
    if step.phase == "decode":
        yield Case(
            {
                "batch": step.sequences,
                "heads": model.heads,
                "kv_heads": model.kv_heads,
                "head_size": model.head_size,
                "context": step.context,
                "dtype": model.dtype,
            },
            per_step=model.layers,
        )


def mixed_lengths(batch, context):
    """Lengths spread evenly over half to one and a half times the context; their sum is batch x context exactly."""
    lengths = []
    for pair in range(batch // 2):  # a short one and a long one, as far from the context as each other
        away = context // 2 - 2 * (context // 2) * pair // (batch - 1)
        lengths += [context - away, context + away]
    return lengths + [context] * (batch % 2)


def inputs(make, batch, heads, kv_heads, head_size, context, dtype, lengths=None, splits=None):
    lengths = mixed_lengths(batch, context) if lengths is None else lengths
    pages = max(1, max(math.ceil(n / PAGE) for n in lengths))
    # A pool of which the sequences hold nearly all, in no order, so that no two pages are neighbours but by chance.
    pool = batch * pages + 1
    shuffled = make.permutation(pool)
    if splits is None:
        splits = default_splits(batch, kv_heads, head_size, pages * PAGE, DTYPE_BYTES[dtype], make.device)
    return {
        "q": make.normal(batch, heads, head_size, dtype=dtype),
        "key_cache": make.normal(pool, PAGE, kv_heads, head_size, dtype=dtype),
        "value_cache": make.normal(pool, PAGE, kv_heads, head_size, dtype=dtype),
        "block_table": shuffled[: batch * pages].view(batch, pages),
        "seq_lens": torch.tensor(lengths, dtype=torch.int32, device=make.device),
        "partial": make.empty(batch, heads, splits, head_size, dtype="float32"),
        "partial_lse": make.empty(batch, heads, splits, dtype="float32"),
        "out": make.empty(batch, heads, head_size, dtype=dtype),
    }


def reference(q, key_cache, value_cache, block_table, seq_lens, **_):
    _, heads, head_size = q.shape
    page, kv_heads = key_cache.shape[1:3]
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    for b, length in enumerate(seq_lens.tolist()):
        blocks = block_table[b, : math.ceil(length / page)].long()
        keys = key_cache[blocks].flatten(0, 1)[:length].float()
        values = value_cache[blocks].flatten(0, 1)[:length].float()
        for h in range(heads if length else 0):
            kv = h // (heads // kv_heads)
            weights = (keys[:, kv] * q[b, h].float()).sum(-1).div(math.sqrt(head_size)).softmax(0)
            out[b, h] = (weights[:, None] * values[:, kv]).sum(0)
    return {"out": out}


def traffic(batch, heads, kv_heads, head_size, context, dtype, lengths=None, splits=None):
    lengths = mixed_lengths(batch, context) if lengths is None else lengths
    size, tokens = DTYPE_BYTES[dtype], sum(lengths)
    pages = sum(math.ceil(n / PAGE) for n in lengths)
    moved = 2 * tokens * kv_heads * head_size * size + 2 * batch * heads * head_size * size + 4 * pages
    return moved, 4 * heads * head_size * tokens


def matrix_dtype(dtype, **_):
    return dtype


@triton.jit
def _slices(
    q_ptr,
    key_ptr,
    value_ptr,
    table_ptr,
    lens_ptr,
    out_ptr,  # (B, Hq, splits, D) float32, or the output where there is one split
    lse_ptr,
    scale,  # times log2(e), for exp2
    q_stride_b,
    q_stride_h,
    kv_stride_block,
    kv_stride_token,
    kv_stride_h,
    table_stride,
    splits,
    split_tokens,
    GROUP: tl.constexpr,
    HEAD_SIZE: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SINGLE: tl.constexpr,
    CHAINED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: one KV head, one slice of one context."""
    # Heads run fastest, so that programs side by side read neighbouring bytes of the same tokens.
    kv_head = tl.program_id(0)
    split = tl.program_id(1)
    seq = tl.program_id(2).to(tl.int64)
    length = tl.load(lens_ptr + seq)
    start = split * split_tokens
    if not SINGLE and start >= length:
        return
    end = min(start + split_tokens, length)

    row = tl.arange(0, BLOCK_H)
    column = tl.arange(0, BLOCK_D)
    token = tl.arange(0, BLOCK_N)
    real = (row < GROUP)[:, None] & (column < HEAD_SIZE)[None, :]
    head = kv_head * GROUP + row
    q = tl.load(q_ptr + seq * q_stride_b + head[:, None] * q_stride_h + column[None, :], mask=real, other=0.0)
    key_ptr += kv_head * kv_stride_h
    value_ptr += kv_head * kv_stride_h
    table_ptr += seq * table_stride

    best = tl.full((BLOCK_H,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_H,), tl.float32)
    acc = tl.zeros((BLOCK_H, BLOCK_D), tl.float32)

    # Tokens past the end read the last one instead and are masked in the scores: the loads need no mask, and no
    # tile is special. The block numbers of a tile are read one tile ahead, or each tile would wait for two reads.
    last = max(end - 1, 0)
    block = tl.load(table_ptr + tl.minimum(start + token, last) // PAGE)
    for tile in tl.range(start, end, BLOCK_N):
        slot = tl.minimum(tile + token, last) % PAGE
        where = block.to(tl.int64) * kv_stride_block + slot * kv_stride_token
        offset = where[:, None] + column[None, :]
        if HEAD_SIZE == BLOCK_D:
            key = tl.load(key_ptr + offset)
            value = tl.load(value_ptr + offset)
        else:
            key = tl.load(key_ptr + offset, mask=(column < HEAD_SIZE)[None, :], other=0.0)
            value = tl.load(value_ptr + offset, mask=(column < HEAD_SIZE)[None, :], other=0.0)
        block = tl.load(table_ptr + tl.minimum(tile + BLOCK_N + token, last) // PAGE)

        score = tl.dot(q, tl.trans(key), input_precision=PRECISION) * scale
        score = tl.where((tile + token < end)[None, :], score, float("-inf"))
        new_best = tl.maximum(best, tl.max(score, 1))
        weight = tl.exp2(score - new_best[:, None])
        shrink = tl.exp2(best - new_best)
        total = total * shrink + tl.sum(weight, 1)
        acc = tl.dot(weight.to(value.dtype), value, acc * shrink[:, None], input_precision=PRECISION)
        best = new_best

    if CHAINED:
        tl.extra.cuda.gdc_launch_dependents()
    acc = acc / tl.where(total > 0, total, 1.0)[:, None]
    place = (seq * tl.num_programs(0) * GROUP + head) * splits + split
    tl.store(out_ptr + place[:, None] * HEAD_SIZE + column[None, :], acc.to(out_ptr.dtype.element_ty), mask=real)
    if not SINGLE:
        tl.store(lse_ptr + place, best + tl.log2(total), mask=row < GROUP)


@triton.jit
def _combine(
    partial_ptr,
    lse_ptr,
    lens_ptr,
    out_ptr,
    heads,
    splits,
    split_tokens,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    CHAINED: tl.constexpr,
):
    """One program: one query head; its slices weighted by their share of the softmax's sum."""
    if CHAINED:  # launched while the first kernel ends, and waits here for what it wrote
        tl.extra.cuda.gdc_wait()
    place = tl.program_id(0).to(tl.int64)
    length = tl.load(lens_ptr + place // heads)
    written = tl.cdiv(length, split_tokens)  # the others hold nothing
    column = tl.arange(0, BLOCK_D)
    best = float("-inf")
    total = 0.0
    acc = tl.zeros((BLOCK_D,), tl.float32)
    for first in range(0, written, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)
        lse = tl.load(lse_ptr + place * splits + split, mask=split < written, other=float("-inf"))
        inside = (split < written)[:, None] & (column < HEAD_SIZE)[None, :]
        offset = (place * splits + split)[:, None] * HEAD_SIZE + column[None, :]
        partial = tl.load(partial_ptr + offset, mask=inside, other=0.0)
        new_best = tl.maximum(best, tl.max(lse, 0))
        weight = tl.exp2(lse - new_best)
        shrink = tl.exp2(best - new_best)
        total = total * shrink + tl.sum(weight, 0)
        acc = acc * shrink + tl.sum(partial * weight[:, None], 0)
        best = new_best
    acc = acc / tl.where(total > 0, total, 1.0)
    tl.store(out_ptr + place * HEAD_SIZE + column, acc.to(out_ptr.dtype.element_ty), mask=column < HEAD_SIZE)


def default_config(head_size, itemsize):
    """Tile and pipeline: 16 KiB of keys and as much of values a tile, two tiles in flight, in 64 KiB a program.

    Three programs share an SM then, with some 100 KiB on their way: more than latency times bandwidth asks for.
    """
    row_bytes = triton.next_power_of_2(head_size) * itemsize
    # float32 has no tensor cores here, and needs the registers of twice the threads.
    return {"block_n": min(max(16384 // row_bytes, 16), 128), "warps": 4 if itemsize < 4 else 8, "stages": 3}


@functools.cache
def _can_chain(device):
    """Whether the second kernel can be launched while the first one ends (programmatic dependent launch, sm_90)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


def default_splits(batch, kv_heads, head_size, longest, itemsize, device):
    """Into how many slices each context is cut; by sizes alone, so that a captured graph holds for any lengths.

    Slices are of equal tokens, not of equal number, so that the programs are of equal size whatever the lengths.
    """
    sms = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else SMS
    tile = default_config(head_size, itemsize)["block_n"]
    slots = 3 * sms
    share = batch * kv_heads * longest / slots  # tokens for each program if all run at once
    # All at once while that makes slices short enough to be spread evenly; else many, and the SMs take them as they
    # come: the last round of a few rounds would leave SMs idle.
    tokens = share if share <= 512 else min(max(share / 6, 256), 1024)
    # Two tiles at least: with one, reading the parts again costs more than the shorter slices save.
    tokens = max(math.ceil(tokens / tile), 2) * tile
    return max(math.ceil(longest / tokens), 1)


def run(q, key_cache, value_cache, block_table, seq_lens, partial, partial_lse, out, config=None):
    """Both kernels; the number of splits is that of the workspace."""
    batch, heads, head_size = q.shape
    page, kv_heads = key_cache.shape[1:3]
    if head_size > 256 or head_size % 8:
        raise NotImplementedError(f"head size {head_size}: only multiples of 8 up to 256")
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads over {kv_heads} KV heads")
    assert key_cache.stride() == value_cache.stride() and key_cache.stride(-1) == 1 and q.stride(-1) == 1
    assert out.is_contiguous() and partial.is_contiguous() and partial_lse.is_contiguous()
    config = config or default_config(head_size, q.element_size())
    group, splits = heads // kv_heads, partial.shape[2]
    split_tokens = triton.cdiv(triton.cdiv(block_table.shape[1] * page, splits), config["block_n"]) * config["block_n"]
    chained = config.get("chained", _can_chain(q.device)) and splits > 1
    block_d = max(triton.next_power_of_2(head_size), 16)
    _slices[(kv_heads, splits, batch)](
        q,
        key_cache,
        value_cache,
        block_table,
        seq_lens,
        out if splits == 1 else partial,
        partial_lse,
        head_size**-0.5 * math.log2(math.e),
        q.stride(0),
        q.stride(1),
        key_cache.stride(0),
        key_cache.stride(1),
        key_cache.stride(2),
        block_table.stride(0),
        splits,
        split_tokens,
        GROUP=group,
        HEAD_SIZE=head_size,
        PAGE=page,
        BLOCK_H=max(triton.next_power_of_2(group), 16),  # 16 rows are the least that tensor cores take
        BLOCK_D=block_d,
        BLOCK_N=config["block_n"],
        SINGLE=splits == 1,
        CHAINED=chained,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=config["warps"],
        num_stages=config["stages"],
    )
    if splits > 1:
        _combine[(batch * heads,)](
            partial,
            partial_lse,
            seq_lens,
            out,
            heads,
            splits,
            split_tokens,
            HEAD_SIZE=head_size,
            BLOCK_D=block_d,
            BLOCK_S=min(triton.next_power_of_2(splits), 16),
            CHAINED=chained,
            num_warps=2,
            **({"launch_pdl": True} if chained else {}),
        )


def triton_kernel(**tensors):
    run(**tensors)


def eager(q, key_cache, value_cache, block_table, seq_lens, out, **_):
    batch, heads, head_size = q.shape
    page, kv_heads = key_cache.shape[1:3]
    width = block_table.shape[1] * page
    # Gathered into a rectangle at each call: that is what it costs to have no kernel that reads pages.
    keys = key_cache[block_table].view(batch, width, kv_heads, head_size).transpose(1, 2)
    values = value_cache[block_table].view(batch, width, kv_heads, head_size).transpose(1, 2)
    seen = torch.arange(width, device=q.device) < seq_lens[:, None]
    result = torch.nn.functional.scaled_dot_product_attention(
        q[:, :, None], keys, values, attn_mask=seen[:, None, None], enable_gqa=heads != kv_heads
    )
    out.copy_(result[:, :, 0].masked_fill(seq_lens[:, None, None] == 0, 0))


def flash_attn(q, key_cache, value_cache, block_table, seq_lens, out, **_):
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    if q.dtype == torch.float32:
        raise ImportError("FlashAttention takes float16 and bfloat16")
    flash_attn_varlen_func(
        q,
        key_cache,
        value_cache,
        max_seqlen_q=1,
        cu_seqlens_q=_query_starts(q.shape[0], q.device),
        max_seqlen_k=block_table.shape[1] * key_cache.shape[1],
        seqused_k=seq_lens,
        block_table=block_table,
        softmax_scale=q.shape[-1] ** -0.5,
        causal=True,
        out=out,
        fa_version=3,
    )


_starts = {}


def _query_starts(batch, device):
    # Kept: an engine has it ready too, and it must outlive a captured graph.
    key = (batch, device)
    if key not in _starts:
        _starts[key] = torch.arange(batch + 1, dtype=torch.int32, device=device)
    return _starts[key]


IMPLEMENTATIONS = {"triton": triton_kernel}
BASELINES = {"eager": eager, "flash_attn": flash_attn}
