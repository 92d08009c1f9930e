"""Writes new keys and values into the paged KV cache.

For every token t with slot = slot_mapping[t] >= 0:

    key_cache[slot // P, slot % P] <- key[t]     and likewise the values; a negative slot skips the token.

qkv: (T, (Hq + 2 Hkv) D), the rows of the qkv projection, whose last two parts are key and value; float16 or
bfloat16. key_cache, value_cache: (blocks, P, Hkv, D), a slot contiguous, blocks at any stride, of the same dtype,
or float8_e4m3fn, into which a value x goes as x / scale, rounded to nearest and saturated at 448. slot_mapping:
(T,) int64. k_scale, v_scale: (1,) float32, used for float8_e4m3fn only.

Bytes: read key, value and slots, write as much: 2 T Hkv D (s + c) + 8 T, c bytes an element of the cache.
Flops: none, or 2 T Hkv D where it scales.
"""

import torch
import triton
import triton.language as tl

from loadgen.microbench.baselines import compiled
from loadgen.microbench.cases import DTYPE_BYTES, Case

OUTPUTS = ("key_cache", "value_cache")
STREAMED = ("key_cache", "value_cache")
PAGE = 16
FP8_MAX = 448.0
POOL_BYTES = 512 << 20

_SMALL = {"heads": 3, "kv_heads": 1, "head_size": 16, "cache_dtype": "bfloat16", "dtype": "bfloat16"}
CHECKS = [
    {**_SMALL, "tokens": 1, "pool_tokens": 16, "run": 1},
    {**_SMALL, "tokens": 9, "pool_tokens": 48, "run": 16, "padding": 3},
    {**_SMALL, "tokens": 37, "pool_tokens": 64, "run": 16, "kv_heads": 3, "head_size": 20, "heads": 6},
    {**_SMALL, "tokens": 5, "pool_tokens": 32, "run": 1, "padding": 5, "cache_dtype": "float16", "dtype": "float16"},
    {**_SMALL, "tokens": 3, "pool_tokens": 32, "run": 1, "kv_heads": 20, "head_size": 128, "heads": 20},
    {**_SMALL, "tokens": 110, "pool_tokens": 128, "run": 16, "kv_heads": 20, "head_size": 128, "heads": 20},
    {**_SMALL, "tokens": 3, "pool_tokens": 32, "run": 1, "padding": 1, "cache_dtype": "float8_e4m3fn"},
    {**_SMALL, "tokens": 9, "pool_tokens": 32, "run": 16, "kv_heads": 5, "head_size": 128, "heads": 5,
     "cache_dtype": "float8_e4m3fn", "std": 8.0},
]  # fmt: skip


def cases(model, step):
    cached = model.kv_heads * model.head_size
    for cache_dtype in (model.dtype, "float8_e4m3fn"):
        most = POOL_BYTES // (cached * DTYPE_BYTES[cache_dtype])
        pool_tokens = max(min(4 * step.tokens, most), step.tokens)
        params = {
            "tokens": step.tokens,
            "heads": model.heads,
            "kv_heads": model.kv_heads,
            "head_size": model.head_size,
            "dtype": model.dtype,
            "cache_dtype": cache_dtype,
            "pool_tokens": triton.cdiv(pool_tokens, PAGE) * PAGE,
            "run": 1 if step.phase == "decode" else PAGE,
        }
        own = cache_dtype == model.dtype
        yield Case(params, per_step=model.layers if own else 0, label="" if own else "fp8")


def inputs(make, tokens, heads, kv_heads, head_size, dtype, cache_dtype, pool_tokens, run, padding=0, std=1.0):
    """Slots in random order in runs of ``run``: 1 for the sequences of a decode step, a page for prompts.

    The last ``padding`` tokens have slot -1, as in a batch that an engine has padded to the size of a CUDA graph.
    """
    starts = make.permutation(pool_tokens // run, dtype="int64")[: triton.cdiv(tokens, run)] * run
    slots = (starts[:, None] + torch.arange(run, device=make.device)).flatten()[:tokens]
    slots[tokens - padding :] = -1
    blocks = pool_tokens // PAGE
    return {
        "qkv": make.normal(tokens, (heads + 2 * kv_heads) * head_size, dtype=dtype, std=std),
        "key_cache": make.normal(blocks, PAGE, kv_heads, head_size, dtype=cache_dtype),
        "value_cache": make.normal(blocks, PAGE, kv_heads, head_size, dtype=cache_dtype),
        "slot_mapping": slots,
        "k_scale": torch.full((1,), 0.03, device=make.device),
        "v_scale": torch.full((1,), 0.02, device=make.device),
    }


def _key_and_value(qkv, cache):
    """(T, Hkv, D) each, views of the last two parts of the rows."""
    kv_heads, head_size = cache.shape[2:]
    width = kv_heads * head_size
    key, value = qkv[:, -2 * width :].split(width, dim=-1)
    return key.unflatten(-1, (kv_heads, head_size)), value.unflatten(-1, (kv_heads, head_size))


def reference(qkv, key_cache, value_cache, slot_mapping, k_scale, v_scale):
    used = slot_mapping >= 0
    slots = slot_mapping[used]
    written = {}
    for name, new, cache, scale in zip(
        OUTPUTS, _key_and_value(qkv, key_cache), (key_cache, value_cache), (k_scale, v_scale), strict=True
    ):
        new = new[used]
        if cache.dtype == torch.float8_e4m3fn:
            new = (new.float() / scale).clamp(-FP8_MAX, FP8_MAX).to(cache.dtype)
        whole = cache.clone()
        # As bytes, since indexing of fp8 is not there on every device.
        whole.view(torch.uint8)[slots // PAGE, slots % PAGE] = new.view(torch.uint8)
        written[name] = whole
    return written


def traffic(tokens, heads, kv_heads, head_size, dtype, cache_dtype, pool_tokens, run, padding=0, std=1.0):
    elements = 2 * (tokens - padding) * kv_heads * head_size
    moved = elements * (DTYPE_BYTES[dtype] + DTYPE_BYTES[cache_dtype]) + 8 * tokens
    return moved, elements if cache_dtype == "float8_e4m3fn" else 0


def needs(cache_dtype, **_params):
    return ((8, 9), "float8_e4m3fn conversion") if cache_dtype == "float8_e4m3fn" else None


@triton.jit
def _to_cache(x, scale_ptr, dtype: tl.constexpr, EXACT_CONVERSION: tl.constexpr):
    """x as the cache holds it."""
    if dtype != tl.float8e4nv:
        return x
    scaled = x.to(tl.float32) * (1 / tl.load(scale_ptr))
    scaled = tl.minimum(tl.maximum(scaled, -448.0), 448.0)
    if not EXACT_CONVERSION:
        # The interpreter's own conversion rounds wrongly. Adding a number whose last bit is worth e4m3's last bit
        # at x's exponent (-6 and less: that of the subnormals) rounds to nearest even; what is left fits exactly.
        exponent = tl.maximum((scaled.to(tl.int32, bitcast=True) >> 23) & 0xFF, 127 - 6)
        rounder = 1.5 * ((exponent + 20) << 23).to(tl.float32, bitcast=True)
        scaled = (scaled + rounder) - rounder
    return scaled.to(dtype)


@triton.jit
def _kv_cache_write(
    key_ptr, value_ptr, key_cache_ptr, value_cache_ptr, slots_ptr, k_scale_ptr, v_scale_ptr,
    key_stride, value_stride, key_block_stride, value_block_stride, width,
    PAGE: tl.constexpr, COLUMN_BLOCKS: tl.constexpr, BLOCK: tl.constexpr, EXACT_CONVERSION: tl.constexpr,
):  # fmt: skip
    """One program, BLOCK columns of one token's key and value."""
    program = tl.program_id(0)
    token = (program // COLUMN_BLOCKS).to(tl.int64)
    columns = program % COLUMN_BLOCKS * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    # The loads of key and value do not wait for the slot: a token that is skipped is rare, and only its stores are.
    slot = tl.load(slots_ptr + token)
    key = tl.load(key_ptr + token * key_stride + columns, mask=inside)
    value = tl.load(value_ptr + token * value_stride + columns, mask=inside)
    key = _to_cache(key, k_scale_ptr, key_cache_ptr.dtype.element_ty, EXACT_CONVERSION)
    value = _to_cache(value, v_scale_ptr, value_cache_ptr.dtype.element_ty, EXACT_CONVERSION)
    block, inner = slot // PAGE, slot % PAGE * width + columns
    written = inside & (slot >= 0)
    tl.store(key_cache_ptr + block * key_block_stride + inner, key, mask=written)
    tl.store(value_cache_ptr + block * value_block_stride + inner, value, mask=written)


def triton_kernel(qkv, key_cache, value_cache, slot_mapping, k_scale, v_scale):
    _, page, kv_heads, head_size = key_cache.shape
    width, tokens = kv_heads * head_size, len(slot_mapping)
    inner = (width, head_size, 1)
    assert key_cache.stride()[1:] == inner and value_cache.stride()[1:] == inner, "a slot must be contiguous"
    key, value = _key_and_value(qkv, key_cache)
    # Two loads of 16 bytes of key and two of value a thread where there are tokens enough to fill the GPU with such.
    block = min(512 if tokens * width >= 1 << 18 else 256, triton.next_power_of_2(width))
    column_blocks = triton.cdiv(width, block)
    _kv_cache_write[(tokens * column_blocks,)](
        key, value, key_cache, value_cache, slot_mapping, k_scale, v_scale,
        key.stride(0), value.stride(0), key_cache.stride(0), value_cache.stride(0), width,
        PAGE=page, COLUMN_BLOCKS=column_blocks, BLOCK=block, EXACT_CONVERSION=qkv.is_cuda, num_warps=1,
    )  # fmt: skip


def cuda_kernel(qkv, key_cache, value_cache, slot_mapping, k_scale, v_scale):
    from loadgen.microbench.extension import operators

    if key_cache.dtype == torch.float8_e4m3fn:
        raise NotImplementedError("the CUDA kernel writes caches of the model's own dtype only")
    key, value = _key_and_value(qkv, key_cache)
    operators().kv_cache_write(key, value, key_cache, value_cache, slot_mapping)


def eager(qkv, key_cache, value_cache, slot_mapping, k_scale, v_scale):
    """Knows no negative slots: leaving them out would need a host synchronisation. The cases have none."""
    key, value = _key_and_value(qkv, key_cache)
    if key_cache.dtype == torch.float8_e4m3fn:
        key = (key.float() / k_scale).clamp(-FP8_MAX, FP8_MAX).to(key_cache.dtype).view(torch.uint8)
        value = (value.float() / v_scale).clamp(-FP8_MAX, FP8_MAX).to(value_cache.dtype).view(torch.uint8)
        key_cache, value_cache = key_cache.view(torch.uint8), value_cache.view(torch.uint8)
    key_cache.view(-1, *key_cache.shape[2:]).index_put_((slot_mapping,), key)
    value_cache.view(-1, *value_cache.shape[2:]).index_put_((slot_mapping,), value)


def vllm(qkv, key_cache, value_cache, slot_mapping, k_scale, v_scale):
    from vllm import _custom_ops

    key, value = _key_and_value(qkv, key_cache)
    kind = "auto"
    if key_cache.dtype == torch.float8_e4m3fn:
        kind, key_cache, value_cache = "fp8", key_cache.view(torch.uint8), value_cache.view(torch.uint8)
    _custom_ops.reshape_and_cache_flash(key, value, key_cache, value_cache, slot_mapping, kind, k_scale, v_scale)


IMPLEMENTATIONS = {"triton": triton_kernel, "cuda": cuda_kernel}
BASELINES = {"eager": eager, "compile": compiled(eager), "vllm": vllm}
