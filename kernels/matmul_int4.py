"""Matrix product with a weight of 4 bits, dequantised on the way to the tensor cores (W4A16).

    out[m, n] = sum over groups g of 128 along K of scale[g, n] * sum over k in g of x[m, k] * q[n, k]

q: (N, K) integers -8 to 7; x: (M, K), out: (M, N), row-major bfloat16, K contiguous and a multiple of 128; sums in
float32, the group's scale applied to the group's sum.

packed: (K / 128, N, 64) uint8 and scale: (K / 256, N, 2) bfloat16, made by ``pack`` and ``pack_scale``; where K / 128
is odd the last scales are 0. A group's rows follow each other, so that any number of rows of a group is one contiguous
piece of memory. Of the 64 bytes of a row of a group, low nibbles hold the first 64 values along K and high nibbles the
other 64, each as q + 8; in every four bytes the middle two are swapped, byte p holding k = 4 i + (0, 2, 1, 3)[p]. So a
mask takes two neighbours along K out of a 32-bit word with 16 bits between them, where a pair of bfloat16 wants them:
with 0x4300 above it, a nibble is the bfloat16 128 + nibble, and subtracting 136 gives q, exactly. That is 11
instructions for 8 weights.

To 64 tokens the weight's bytes set the time. To 8 tokens the weight is the left operand of the tensor cores and x,
padded to 8 tokens, the right one: no half of an instruction is padding. More tokens, in tiles of 16 or 32, are the left
operand: all warps of a program then share one piece of x, which is read from the L2 the less often. K is split among
programs where N gives too few; the last of a tile to arrive sums the parts in order: one launch, and the same bits
each time.

workspace: float32, parts of the sums of split K; counters: int32, one a tile, 0 before and after each launch.

Bytes: N K (1/2 + 2/128) + 2 M K + 2 M N. Flops: 2 M N K.
"""

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from loadgen.microbench.cases import Case
from loadgen.microbench.split_k import finish, multiprocessors, split_sizes

OUTPUTS = ("out",)
STREAMED = ("packed", "scale", "weight_bf16", "marlin_packed", "marlin_scale")

GROUP = 128
FEW = 64  # tokens up to which the weight's bytes, not the flops, set the time

CHECKS = [
    {"tokens": 1, "rows": 64, "columns": 256},
    {"tokens": 1, "rows": 100, "columns": 2176},
    {"tokens": 2, "rows": 37, "columns": 128},
    {"tokens": 3, "rows": 1, "columns": 1024},
    {"tokens": 13, "rows": 96, "columns": 640},
    {"tokens": 33, "rows": 70, "columns": 1152},
    {"tokens": 70, "rows": 65, "columns": 384},
]


def cases(model, step):
    for name, rows, columns, _ in model.projections:
        tokens = step.sequences if name == "lm_head" else step.tokens
        if tokens <= FEW and columns % GROUP == 0:
            yield Case({"tokens": tokens, "rows": rows, "columns": columns}, label=name)


def pack(q):
    """(N, K) integers -8 to 7 -> (K / 128, N, 64) uint8, as the kernel reads them."""
    rows, columns = q.shape
    nibbles = (q + 8).to(torch.uint8).view(rows, columns // GROUP, 2, 16, 4).permute(1, 0, 2, 3, 4)
    swapped = nibbles[..., [0, 2, 1, 3]]
    low, high = swapped[:, :, 0], swapped[:, :, 1]
    return (low | (high << 4)).reshape(columns // GROUP, rows, GROUP // 2).contiguous()


def pack_scale(scale):
    """(N, K / 128) -> (K / 256, N, 2), as the kernel reads them."""
    rows, groups = scale.shape
    even = torch.nn.functional.pad(scale, (0, groups % 2))
    return even.view(rows, -1, 2).transpose(0, 1).contiguous()


def unpack(packed):
    """The integers of ``pack``."""
    groups, rows, _ = packed.shape
    halves = torch.stack([packed & 15, packed >> 4], dim=2).view(groups, rows, 2, 16, 4)[..., [0, 2, 1, 3]]
    return halves.permute(1, 0, 2, 3, 4).reshape(rows, groups * GROUP).to(torch.int8) - 8


def dequantized(packed, scale):
    """(N, K) bfloat16: each product q * scale rounded."""
    q = unpack(packed)
    rows, columns = q.shape
    each = scale.transpose(0, 1).reshape(rows, -1)[:, : columns // GROUP]
    return (q.view(rows, -1, GROUP).to(scale.dtype) * each[:, :, None]).view(rows, columns)


def _for_marlin(q, scale):
    """Weight and scales in the order of vLLM's Marlin kernel; empty ones where vLLM or its kernel cannot take them."""
    rows, columns = q.shape
    none = scale.new_empty(0, dtype=torch.int32), scale.new_empty(0)
    if not q.is_cuda or rows % 64:
        return none
    try:
        from vllm import _custom_ops
        from vllm.model_executor.layers.quantization.utils.marlin_utils import marlin_permute_scales
    except ImportError:
        return none
    # Its repacking wants GPTQ's order: (K / 8, N), eight neighbours along K in a word.
    eights = (q + 8).to(torch.int32).view(rows, columns // 8, 8)
    words = torch.zeros(rows, columns // 8, dtype=torch.int32, device=q.device)
    for i in range(8):
        words |= eights[:, :, i] << (4 * i)
    no_order = torch.empty(0, dtype=torch.int32, device=q.device)
    repacked = _custom_ops.gptq_marlin_repack(words.T.contiguous(), no_order, columns, rows, 4)
    return repacked, marlin_permute_scales(scale.T.contiguous(), columns, rows, GROUP)


def inputs(make, tokens, rows, columns):
    config = default_config(tokens, rows, columns)
    parts, tiles = split_sizes(config, tokens, rows)
    q = make.integers(-8, 8, rows, columns, dtype="int8")
    packed = pack(q)
    # Weights of about 0.02: q is about 4.6.
    scale = (make.uniform(rows, columns // GROUP) * 0.004 + 0.0023).to(torch.bfloat16)
    marlin_packed, marlin_scale = _for_marlin(q, scale)
    scale = pack_scale(scale)
    return {
        "x": make.normal(tokens, columns, dtype="bfloat16"),
        "packed": packed,
        "scale": scale,
        "weight_bf16": dequantized(packed, scale),
        "marlin_packed": marlin_packed,
        "marlin_scale": marlin_scale,
        "out": make.empty(tokens, rows, dtype="bfloat16"),
        "workspace": make.empty(parts, dtype="float32"),
        "counters": make.empty(tiles, dtype="int32").zero_(),
    }


def reference(x, packed, scale, **_):
    groups, rows, _ = packed.shape
    total = torch.zeros(x.shape[0], rows, dtype=torch.float32, device=x.device)
    for g in range(groups):
        low, high = (packed[g] & 15).float() - 8, (packed[g] >> 4).float() - 8
        # Byte p of four holds k = (0, 2, 1, 3)[p] of them.
        order = torch.arange(GROUP // 2, device=x.device).view(-1, 4)[:, [0, 2, 1, 3]].flatten()
        q = torch.empty(rows, GROUP, device=x.device)
        q[:, order], q[:, GROUP // 2 + order] = low, high
        total += x[:, g * GROUP : (g + 1) * GROUP].float() @ (q * scale[g // 2, :, g % 2].float()[:, None]).T
    return {"out": total}


def traffic(tokens, rows, columns):
    weight = rows * columns // 2 + 2 * rows * (columns // GROUP)
    return weight + 2 * tokens * (columns + rows), 2 * tokens * rows * columns


def matrix_dtype(**_):
    return "bfloat16"


@triton.jit
def _dequantise(words):
    """Four bytes at a time, to q of their low nibbles and q of their high nibbles, in the order of K."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 t, top, one, minus, a, b, c, d;
        mov.b32 top, 0x43004300;
        mov.b32 one, 0x3F803F80;
        mov.b32 minus, 0xC308C308;
        lop3.b32 a, $4, 0x000F000F, top, 0xEA;
        shr.u32 t, $4, 8;
        lop3.b32 b, t, 0x000F000F, top, 0xEA;
        shr.u32 t, $4, 4;
        lop3.b32 c, t, 0x000F000F, top, 0xEA;
        shr.u32 t, $4, 12;
        lop3.b32 d, t, 0x000F000F, top, 0xEA;
        fma.rn.bf16x2 $0, a, one, minus;
        fma.rn.bf16x2 $1, b, one, minus;
        fma.rn.bf16x2 $2, c, one, minus;
        fma.rn.bf16x2 $3, d, one, minus;
        }
        """,
        "=r,=r,=r,=r,r",
        [words],
        dtype=(tl.bfloat16, tl.bfloat16),
        is_pure=True,
        pack=4,
    )


@triton.jit
def _group(pieces, xs, x_inside, inside, WEIGHT_LEFT: tl.constexpr, INTERPRETED: tl.constexpr):
    """The product over one group, without its scale."""
    words = tl.load(pieces, mask=inside, other=0)
    x_low = tl.load(xs, mask=x_inside, other=0.0)
    x_high = tl.load(xs + 64, mask=x_inside, other=0.0)
    if INTERPRETED:  # which has neither PTX nor a product of bfloat16
        low, high = (words & 15).to(tl.float32) - 8.0, (words >> 4).to(tl.float32) - 8.0
        x_low, x_high = x_low.to(tl.float32), x_high.to(tl.float32)
    else:
        low, high = _dequantise(words)
    if WEIGHT_LEFT:
        product = tl.dot(high, x_high, tl.dot(low, x_low))
    else:
        product = tl.dot(x_high, high, tl.dot(x_low, low))
    return product


# Else Triton would compile M = 1, M = 16 and so on apart, for nothing.
@triton.jit(do_not_specialize=["M"])
def _matmul(x_ptr, packed_ptr, scale_ptr, out_ptr, workspace_ptr, counters_ptr, M, N, K, x_stride, out_stride,
            BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, SPLITS: tl.constexpr, WEIGHT_LEFT: tl.constexpr,
            STAGES: tl.constexpr, PDL: tl.constexpr, INTERPRETED: tl.constexpr):  # fmt: skip
    """One program: BLOCK_N outputs of BLOCK_M tokens, over one part of the groups.

    WEIGHT_LEFT: the weight is the left operand of the tensor cores, and x, transposed, the right one; else x is the
    left one. The names of axes below are those of a tile of the weight: where it is the right operand, k comes first.
    """
    # The programs that read the same rows of the weight, for other tokens, follow each other: one reads the L2's copy.
    tiles_m = tl.cdiv(M, BLOCK_M)
    n = tl.program_id(0) // tiles_m * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(0) % tiles_m * BLOCK_M + tl.arange(0, BLOCK_M)
    groups = K // 128
    pairs = tl.cdiv(groups, 2)
    first, end = pairs * tl.program_id(1) // SPLITS, pairs * (tl.program_id(1) + 1) // SPLITS
    half = tl.arange(0, 64)
    row = tl.minimum(n, N - 1)  # rows beyond the end are read as the last one, and not stored
    byte = half
    if INTERPRETED:
        byte = half // 4 * 4 + half % 2 * 2 + half % 4 // 2
    group_size = tl.cast(N, tl.int64) * 64
    token = m.to(tl.int64) * x_stride
    if WEIGHT_LEFT:
        pieces = packed_ptr + first * 2 * group_size + row[:, None] * 64 + byte[None, :]
        xs = x_ptr + first * 256 + token[None, :] + half[:, None]
        x_inside = (m < M)[None, :]
        total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    else:
        pieces = packed_ptr + first * 2 * group_size + row[None, :] * 64 + byte[:, None]
        xs = x_ptr + first * 256 + token[:, None] + half[None, :]
        x_inside = (m < M)[:, None]
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    scales = scale_ptr + (first.to(tl.int64) * N + row)[:, None] * 2 + tl.arange(0, 2)[None, :]
    if PDL:
        # The first weights, which no kernel before this one writes, are on their way to the L2 while that one ends.
        gdc_launch_dependents()
        lines = packed_ptr + row.to(tl.int64) * 64
        for i in tl.static_range(2 * STAGES):
            line = lines + tl.minimum(first * 2 + i, groups - 1) * group_size
            tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [line.to(tl.int64)],
                                      dtype=tl.int32, is_pure=False, pack=1)  # fmt: skip
        gdc_wait()
    for pair in tl.range(first, end, num_stages=STAGES):
        # Two groups' scales are the 4 bytes that an asynchronous copy takes at least.
        scale_even, scale_odd = tl.split(tl.load(scales).to(tl.float32))
        even = _group(pieces, xs, x_inside, True, WEIGHT_LEFT, INTERPRETED)
        # K may end with an even group; the odd one's scale is 0 then, and its x not read.
        inside = pair * 2 + 1 < groups
        odd = _group(pieces + group_size, xs + 128, x_inside & inside, inside, WEIGHT_LEFT, INTERPRETED)
        if WEIGHT_LEFT:
            total += even * scale_even[:, None] + odd * scale_odd[:, None]
        else:
            total += even * scale_even[None, :] + odd * scale_odd[None, :]
        pieces += 2 * group_size
        scales += 2 * N
        xs += 256
    if not WEIGHT_LEFT:
        total = total.T
    counter = counters_ptr + tl.program_id(0)
    finish(total, m, n, M, N, out_ptr, out_stride, workspace_ptr, counter, SPLITS)


@functools.cache
def default_config(tokens, rows, columns):
    """The launch for these sizes, by rule: the same sizes are always the same kernel."""
    if tokens <= 8:
        config = {"BLOCK_M": 8, "BLOCK_N": 64, "WEIGHT_LEFT": True, "num_warps": 2, "num_stages": 4}
        wanted, least = 6 * multiprocessors(), 1
    else:
        # The more tokens, the more bytes of x, read from the L2 once for every tile of rows: taller tiles.
        block_m = 16 if tokens <= 16 else 32
        config = {"BLOCK_M": block_m, "BLOCK_N": 128, "WEIGHT_LEFT": False, "num_warps": 4, "num_stages": 3}
        if block_m == 16:
            config["maxnreg"] = 128  # four programs on an SM, not three; 32 tokens' sums would spill
        wanted, least = 2 * multiprocessors(), 2 if block_m == 16 else 1
    tiles = triton.cdiv(rows, config["BLOCK_N"]) * triton.cdiv(tokens, config["BLOCK_M"])
    pairs = triton.cdiv(columns, 2 * GROUP)
    # At least two pairs of groups a part, and no more parts than the last program can soon sum.
    splits = 1 if tiles >= multiprocessors() and tokens <= 8 else max(round(wanted / tiles), least)
    config["SPLITS"] = max(1, min(splits, pairs // 2, 16))
    return {**config, "PDL": False}


def launch(config, x, packed, scale, out, workspace, counters):
    """Launches with a config such as ``default_config`` gives; workspace and counters as ``split_sizes`` says.

    ``PDL`` (programmatic dependent launch, sm_90): starts before the kernel before it has ended, and asks for the
    packed weight, and nothing else, at once: only where that kernel does not write the weight. All else, the
    workspace of a launch before this one included, is touched after that kernel's end.
    """
    tokens, columns = x.shape
    rows = packed.shape[1]
    assert columns % GROUP == 0 and packed.shape == (columns // GROUP, rows, GROUP // 2)
    assert scale.shape == (triton.cdiv(columns, 2 * GROUP), rows, 2)
    assert x.stride(1) == out.stride(1) == 1 and packed.is_contiguous() and scale.is_contiguous()
    # Only mma.sync takes an operand from registers as ``_dequantise`` leaves it, four neighbours along K in a thread.
    # Triton prefers wgmma where four warps or more have 64 rows or more of the left operand.
    assert config["num_warps"] < 4 if config["WEIGHT_LEFT"] else config["BLOCK_M"] <= 32
    parts, tiles = split_sizes(config, tokens, rows)
    assert workspace.numel() >= parts and counters.numel() >= tiles
    grid = (triton.cdiv(rows, config["BLOCK_N"]) * triton.cdiv(tokens, config["BLOCK_M"]), config["SPLITS"])
    extra = {"launch_pdl": True} if config["PDL"] else {}
    if config.get("maxnreg"):
        extra["maxnreg"] = config["maxnreg"]
    _matmul[grid](
        x, packed, scale, out, workspace, counters, tokens, rows, columns, x.stride(0), out.stride(0),
        BLOCK_M=config["BLOCK_M"], BLOCK_N=config["BLOCK_N"], SPLITS=config["SPLITS"],
        WEIGHT_LEFT=config["WEIGHT_LEFT"], STAGES=config["num_stages"], PDL=config["PDL"],
        INTERPRETED=not x.is_cuda, num_warps=config["num_warps"], **extra,
    )  # fmt: skip


def triton_kernel(x, packed, scale, out, workspace, counters, **_):
    launch(default_config(x.shape[0], packed.shape[1], x.shape[1]), x, packed, scale, out, workspace, counters)


def dequantize(x, packed, scale, out, **_):
    torch.mm(x, dequantized(packed, scale).T, out=out)


def bf16(x, weight_bf16, out, **_):
    torch.mm(x, weight_bf16.T, out=out)


@functools.cache
def _marlin_locks(device):
    from vllm.model_executor.layers.quantization.utils.marlin_utils import marlin_make_workspace_new

    return marlin_make_workspace_new(device)


def vllm_marlin(x, packed, marlin_packed, marlin_scale, **_):
    from vllm import _custom_ops
    from vllm.scalar_type import scalar_types

    if not marlin_packed.numel():
        raise ImportError("these sizes are none that Marlin takes")
    rows, columns = packed.shape[1], x.shape[1]
    return _custom_ops.marlin_gemm(
        x, None, marlin_packed, None, marlin_scale, None, None, None, None, None, _marlin_locks(x.device),
        scalar_types.uint4b8, size_m=x.shape[0], size_n=rows, size_k=columns, use_fp32_reduce=True,
    )  # fmt: skip


IMPLEMENTATIONS = {"triton": triton_kernel}
BASELINES = {"dequantize": dequantize, "bf16": bf16, "vllm_marlin": vllm_marlin}
