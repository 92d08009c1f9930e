"""Matrix product of fp8 activations and an fp8 weight, with a scale for each token and each row of the weight.

    out[m, n] = x_scale[m] * weight_scale[n] * sum over k of x[m, k] * weight[n, k]            (rounded once)

x: (M, K), weight: (N, K), float8_e4m3fn; x_scale: (M, 1), weight_scale: (N, 1), float32, contiguous; out: (M, N)
bfloat16; all row-major. K contiguous; rows of x and weight may be padded. For sm_89 and later.

Sums are float32 where the CUDA cores make them. The fp8 tensor cores of sm_90 keep about 14 bits of a sum: to 64
tokens each block of 128 products is added to a float32 sum; beyond, their own sum is taken, as ``use_fast_accum`` of
``torch._scaled_mm`` has it. One token (M = 1), a few (to 64) and many are three kernels:

* one: a matrix-vector product on the CUDA cores; a program takes a few rows of the weight, 16 bytes a load.
* few: the weight is the left operand of the tensor cores and x, padded to 16, 32 or 64 tokens, the right one:
  the wide side of an instruction is filled with rows of the weight, not with padding. Where N gives too few programs,
  K is split among programs, and the last of a tile to arrive sums the parts in order: one launch, and the same bits
  each time.
* many: tiles of up to 128 x 256 x 128, in groups that share the L2; TMA on sm_90 and later where rows are aligned
  to 16 bytes, else plain loads. With TMA each SM has a program, which takes one tile after another.

workspace: float32, parts of the sums of split K; counters: int32, one a tile, 0 before and after each launch.

Bytes: N K + M K + 2 M N + 4 M + 4 N. Flops: 2 M N K.
"""

import functools

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from loadgen.microbench.cases import Case
from loadgen.microbench.check import Tolerance
from loadgen.microbench.split_k import finish, multiprocessors, prefetch, split_sizes

OUTPUTS = ("out",)
STREAMED = ("weight",)

FEW = 64  # tokens up to which the weight's bytes, not the flops, set the time

CHECKS = [
    {"tokens": 1, "rows": 37, "columns": 520},
    {"tokens": 1, "rows": 16, "columns": 2200},
    {"tokens": 2, "rows": 100, "columns": 2160},
    {"tokens": 9, "rows": 65, "columns": 1043},
    {"tokens": 33, "rows": 64, "columns": 1536},
    {"tokens": 130, "rows": 70, "columns": 144},
    {"tokens": 130, "rows": 264, "columns": 144},
    {"tokens": 65, "rows": 300, "columns": 101},
    {"tokens": 3, "rows": 1, "columns": 2048},
]


def cases(model, step):
    for name, rows, columns, _ in model.projections:
        # The logits of a prompt are wanted after its last token only.
        tokens = step.sequences if name == "lm_head" else step.tokens
        params = {"tokens": tokens, "rows": rows, "columns": columns}
        yield Case(params, label=name)


def needs(tokens, rows, columns):
    return (8, 9), "fp8 tensor cores"


def _fp8(make, *shape):
    # As a quantiser leaves it: the largest of a row's Gaussian values near the largest that fp8 holds.
    return make.normal(*shape, dtype="float32", std=100.0).clamp_(-448.0, 448.0).to(torch.float8_e4m3fn)


def inputs(make, tokens, rows, columns):
    config = default_config(tokens, rows, columns)
    parts, tiles = split_sizes(config, tokens, rows)
    return {
        "x": _fp8(make, tokens, columns),
        "x_scale": make.uniform(tokens, 1) * 0.01 + 0.005,
        "weight": _fp8(make, rows, columns),
        "weight_scale": make.uniform(rows, 1) * 0.0002 + 0.0001,
        "out": make.empty(tokens, rows, dtype="bfloat16"),
        "workspace": make.empty(parts, dtype="float32"),
        "counters": make.empty(tiles, dtype="int32").zero_(),
    }


def reference(x, x_scale, weight, weight_scale, out, workspace, counters):
    return {"out": (x.float() @ weight.float().T) * x_scale * weight_scale.T}


def traffic(tokens, rows, columns):
    moved = rows * columns + tokens * columns + 2 * tokens * rows + 4 * (tokens + rows)
    return moved, 2 * tokens * rows * columns


# Hopper's tensor cores sum products of fp8 in fewer bits than float32 has: over 18,944 columns a few elements in a
# million are off by a twentieth of their row's size, in cuBLAS and CUTLASS by the very same amounts.
TOLERANCES = {"out": Tolerance(rtol=1.6e-2, scaled=6e-2, norm=6e-3)}


def matrix_dtype(**_):
    return "float8_e4m3fn"


@triton.jit
def _dot(a, b, total, IMPRECISE: tl.constexpr, INTERPRETED: tl.constexpr):
    """total + a b on the tensor cores. Triton's interpreter (3.6) has no product of fp8: float32 is the same.

    IMPRECISE: after so many products along K, the tensor cores' sum is added to one in float32; None: never.
    """
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total)
    return tl.dot(a, b, total, max_num_imprecise_acc=IMPRECISE)


@triton.jit
def _wait_for_kernel_before(rows, first, end, LINES: tl.constexpr):
    """With programmatic launch: has the weight, which no kernel before this one writes, on its way to the L2 first.

    rows: pointers to the rows of it; first, end: columns that this program reads. The first LINES lines (128 values
    each) of every row are asked for, about as many as the loop has in flight.
    """
    gdc_launch_dependents()
    columns = tl.minimum(first + tl.arange(0, LINES) * 128, end - 1)
    prefetch(rows + columns[None, :])
    gdc_wait()


@triton.jit
def _one(x_ptr, x_scale_ptr, weight_ptr, weight_scale_ptr, out_ptr, N, K, weight_stride,
         BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, EVEN: tl.constexpr,
         STAGES: tl.constexpr, UNROLL: tl.constexpr, PDL: tl.constexpr):  # fmt: skip
    """One program: BLOCK_N outputs of one token. EVEN: BLOCK_K divides K, so that no load needs a mask."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    rows = weight_ptr + tl.minimum(n, N - 1).to(tl.int64)[:, None] * weight_stride
    if PDL:
        _wait_for_kernel_before(rows, 0, K, BLOCK_K // 128 * 4)
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES, loop_unroll_factor=UNROLL):
        if EVEN:
            weight = tl.load(rows + start + k[None, :], eviction_policy="evict_first")
            x = tl.load(x_ptr + start + k)
        else:
            inside = k < K - start
            weight = tl.load(rows + start + k[None, :], mask=inside[None, :], other=0.0, eviction_policy="evict_first")
            x = tl.load(x_ptr + start + k, mask=inside, other=0.0)
        total += weight.to(tl.float32) * x.to(tl.float32)[None, :]
    scale = tl.load(weight_scale_ptr + n, mask=n < N, other=0.0) * tl.load(x_scale_ptr)
    tl.store(out_ptr + n, (tl.sum(total, axis=1) * scale).to(out_ptr.dtype.element_ty), mask=n < N)


# Else Triton would compile M = 1, M = 16 and so on apart, for nothing.
@triton.jit(do_not_specialize=["M"])
def _few(x_ptr, x_scale_ptr, weight_ptr, weight_scale_ptr, out_ptr, workspace_ptr, counters_ptr, M, N, K,
         x_stride, weight_stride, out_stride, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
         BLOCK_K: tl.constexpr, SPLITS: tl.constexpr, EVEN: tl.constexpr,
         STAGES: tl.constexpr, PDL: tl.constexpr, INTERPRETED: tl.constexpr):  # fmt: skip
    """One program: BLOCK_N outputs of BLOCK_M tokens, over one part of K. EVEN: BLOCK_K divides K."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    blocks = tl.cdiv(K, BLOCK_K)
    first, end = blocks * tl.program_id(1) // SPLITS, blocks * (tl.program_id(1) + 1) // SPLITS
    k = tl.arange(0, BLOCK_K)
    rows = weight_ptr + tl.minimum(n, N - 1).to(tl.int64)[:, None] * weight_stride
    if PDL:
        _wait_for_kernel_before(rows, first * BLOCK_K, K, BLOCK_K // 128 * 4)
    weights = rows + first * BLOCK_K + k[None, :]
    xs = x_ptr + m.to(tl.int64)[None, :] * x_stride + first * BLOCK_K + k[:, None]
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for block in tl.range(first, end, num_stages=STAGES):
        if EVEN:
            weight = tl.load(weights)
            x = tl.load(xs, mask=(m < M)[None, :], other=0.0)
        else:
            left = K - block * BLOCK_K
            weight = tl.load(weights, mask=(k < left)[None, :], other=0.0)
            x = tl.load(xs, mask=(m < M)[None, :] & (k < left)[:, None], other=0.0)
        total = _dot(weight, x, total, 128, INTERPRETED)
        weights += BLOCK_K
        xs += BLOCK_K
    # The scales of a part are those of the whole.
    total *= tl.load(weight_scale_ptr + n, mask=n < N, other=0.0)[:, None]
    total *= tl.load(x_scale_ptr + m, mask=m < M, other=0.0)[None, :]
    counter = counters_ptr + tl.program_id(2) * tl.num_programs(0) + tl.program_id(0)
    finish(total, m, n, M, N, out_ptr, out_stride, workspace_ptr, counter, SPLITS)


@triton.jit
def _place(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Row and column of a tile: GROUP_M rows of tiles are walked column by column, so that they share the L2."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    per_group = GROUP_M * tl.cdiv(N, BLOCK_N)
    top = tile // per_group * GROUP_M
    height = tl.minimum(tiles_m - top, GROUP_M)
    return top + tile % per_group % height, tile % per_group // height


@triton.jit
def _many_plain(x_ptr, x_scale_ptr, weight_ptr, weight_scale_ptr, out_ptr, M, N, K, x_stride, weight_stride, out_stride,
                BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
                STAGES: tl.constexpr, IMPRECISE: tl.constexpr, INTERPRETED: tl.constexpr):  # fmt: skip
    """One program, one tile, by plain loads: any strides, any sizes."""
    row, column = _place(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP_M)
    m = row * BLOCK_M + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # Rows beyond the end are read as row 0, and not stored: the loads need a mask along K only.
    xs = x_ptr + tl.where(m < M, m, 0).to(tl.int64)[:, None] * x_stride + k[None, :]
    weights = weight_ptr + tl.where(n < N, n, 0).to(tl.int64)[None, :] * weight_stride + k[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        x = tl.load(xs, mask=(k < K - start)[None, :], other=0.0)
        weight = tl.load(weights, mask=(k < K - start)[:, None], other=0.0)
        total = _dot(x, weight, total, IMPRECISE, INTERPRETED)
        xs += BLOCK_K
        weights += BLOCK_K
    total *= tl.load(x_scale_ptr + m, mask=m < M, other=0.0)[:, None]
    total *= tl.load(weight_scale_ptr + n, mask=n < N, other=0.0)[None, :]
    outs = out_ptr + m.to(tl.int64)[:, None] * out_stride + n[None, :]
    tl.store(outs, total.to(out_ptr.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


@triton.jit
def _one_tile(tile, x_desc, x_scale_ptr, weight_desc, weight_scale_ptr, out_desc, M, N, K,
              BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
              HALVES: tl.constexpr, STAGES: tl.constexpr,
              IMPRECISE: tl.constexpr, INTERPRETED: tl.constexpr):  # fmt: skip
    row, column = _place(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
    m, n = row * BLOCK_M, column * BLOCK_N
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        # Zeros beyond the ends.
        total = _dot(x_desc.load([m, k]), weight_desc.load([n, k]).T, total, IMPRECISE, INTERPRETED)
    rows, columns = m + tl.arange(0, BLOCK_M), n + tl.arange(0, BLOCK_N)
    total *= tl.load(x_scale_ptr + rows, mask=rows < M, other=0.0)[:, None]
    total *= tl.load(weight_scale_ptr + columns, mask=columns < N, other=0.0)[None, :]
    if HALVES:  # half the shared memory to store from, which leaves room for another stage
        left, right = total.reshape(BLOCK_M, 2, BLOCK_N // 2).permute(0, 2, 1).split()
        out_desc.store([m, n], left.to(out_desc.dtype))
        out_desc.store([m, n + BLOCK_N // 2], right.to(out_desc.dtype))
    else:
        out_desc.store([m, n], total.to(out_desc.dtype))


@triton.jit
def _many(x_desc, x_scale_ptr, weight_desc, weight_scale_ptr, out_desc, M, N, K,
          BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
          HALVES: tl.constexpr, PERSISTENT: tl.constexpr,
          STAGES: tl.constexpr, IMPRECISE: tl.constexpr, INTERPRETED: tl.constexpr):  # fmt: skip
    """By TMA: one program, one tile; or, where PERSISTENT, as many programs as there are SMs, each several tiles."""
    if PERSISTENT:
        tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
        # Flattened, the loads of the next tile start during the last products of the one before.
        for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
            _one_tile(tile, x_desc, x_scale_ptr, weight_desc, weight_scale_ptr, out_desc, M, N, K,
                      BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, HALVES, STAGES, IMPRECISE, INTERPRETED)  # fmt: skip
    else:
        _one_tile(tl.program_id(0), x_desc, x_scale_ptr, weight_desc, weight_scale_ptr, out_desc, M, N, K,
                  BLOCK_M, BLOCK_N, BLOCK_K, GROUP_M, HALVES, STAGES, IMPRECISE, INTERPRETED)  # fmt: skip


@functools.cache
def default_config(tokens, rows, columns):
    """The launch for these sizes, by rule: the same sizes are always the same kernel."""
    if tokens == 1:
        # A small weight is soon read: more programs then, of fewer rows.
        block_n = 4 if rows * columns < 2**25 else 8
        return {"kind": "one", "BLOCK_N": block_n, "num_warps": 2, "num_stages": 4, "PDL": False}
    if tokens <= FEW:
        block_m = max(triton.next_power_of_2(tokens), 16)
        block_n, block_k = 64, 256
        tiles, blocks = triton.cdiv(rows, block_n), triton.cdiv(columns, block_k)
        # Two programs for each SM, at least four blocks of K a part, no more parts than the last program can soon sum.
        splits = max(1, min(round(2 * multiprocessors() / tiles), blocks // 4, 16))
        return {"kind": "few", "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "SPLITS": splits,
                "num_warps": 4, "num_stages": 3, "PDL": False}  # fmt: skip
    # The tile that keeps the SMs busiest: the larger ones do more with each byte, the smaller ones leave fewer idle.
    shapes = [(128, 256, 8, 4, 1.0), (128, 128, 8, 5, 0.8), (64, 128, 4, 4, 0.6)]

    def cost(shape):
        block_m, block_n, _, _, speed = shape
        tiles = triton.cdiv(tokens, block_m) * triton.cdiv(rows, block_n)
        return triton.cdiv(tiles, multiprocessors()) * block_m * block_n / speed

    block_m, block_n, warps, stages, _ = min(shapes, key=cost)
    return {"kind": "many", "BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": 128, "GROUP_M": 8, "num_warps": warps,
            "num_stages": stages, "HALVES": block_n == 256, "PERSISTENT": True, "IMPRECISE": None}  # fmt: skip


def launch(config, x, x_scale, weight, weight_scale, out, workspace, counters):
    """Launches with a config such as ``default_config`` gives; workspace and counters as ``split_sizes`` says.

    ``PDL`` (programmatic dependent launch, sm_90): starts before the kernel before it has ended, and reads the
    weight, and nothing else, at once: only where that kernel does not write the weight. All else, the workspace of a
    launch before this one included, is touched after that kernel's end.
    """
    tokens, columns = x.shape
    rows = weight.shape[0]
    assert x.stride(1) == weight.stride(1) == out.stride(1) == 1
    assert x_scale.is_contiguous() and weight_scale.is_contiguous()
    pdl = config.get("PDL", False)
    extra = {"launch_pdl": True} if pdl else {}
    if config["kind"] == "one":
        assert tokens == 1
        # 16 bytes a thread and row, so that x and the weight's rows lie in the same threads.
        block_n, block_k = config["BLOCK_N"], 32 * config["num_warps"] * (16 // x.element_size())
        _one[(triton.cdiv(rows, block_n),)](
            x, x_scale, weight, weight_scale, out, rows, columns, weight.stride(0), BLOCK_N=block_n, BLOCK_K=block_k,
            EVEN=columns % block_k == 0, STAGES=config["num_stages"], UNROLL=config.get("UNROLL", 1), PDL=pdl,
            num_warps=config["num_warps"], **extra,
        )  # fmt: skip
    elif config["kind"] == "few":
        block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
        parts, tiles = split_sizes(config, tokens, rows)
        assert workspace.numel() >= parts and counters.numel() >= tiles
        grid = (triton.cdiv(rows, block_n), config["SPLITS"], triton.cdiv(tokens, block_m))
        _few[grid](
            x, x_scale, weight, weight_scale, out, workspace, counters, tokens, rows, columns,
            x.stride(0), weight.stride(0), out.stride(0), BLOCK_M=block_m, BLOCK_N=block_n,
            BLOCK_K=block_k, SPLITS=config["SPLITS"], EVEN=columns % block_k == 0, STAGES=config["num_stages"], PDL=pdl,
            INTERPRETED=not x.is_cuda, num_warps=config["num_warps"], **extra,
        )  # fmt: skip
    else:
        _launch_many(config, x, x_scale, weight, weight_scale, out)


def _tma(x, weight, out):
    """Whether TMA can be used: on sm_90 and later, with rows and bases that are aligned to 16 bytes."""
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0):
        return False
    return all(t.stride(0) * t.element_size() % 16 == 0 and t.data_ptr() % 16 == 0 for t in (x, weight, out))


def _launch_many(config, x, x_scale, weight, weight_scale, out):
    tokens, columns = x.shape
    rows = weight.shape[0]
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    tiles = triton.cdiv(tokens, block_m) * triton.cdiv(rows, block_n)
    shape = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": config["GROUP_M"]}
    if config.get("TMA", True) and _tma(x, weight, out):
        persistent = config["PERSISTENT"] and x.is_cuda
        store_n = block_n // 2 if config["HALVES"] else block_n
        _many[(min(tiles, multiprocessors()) if persistent else tiles,)](
            TensorDescriptor.from_tensor(x, [block_m, block_k]),
            x_scale,
            TensorDescriptor.from_tensor(weight, [block_n, block_k]),
            weight_scale,
            TensorDescriptor.from_tensor(out, [block_m, store_n]),
            tokens, rows, columns, **shape, HALVES=config["HALVES"], PERSISTENT=persistent,
            STAGES=config["num_stages"], IMPRECISE=config["IMPRECISE"], INTERPRETED=not x.is_cuda,
            num_warps=config["num_warps"],
        )  # fmt: skip
    else:
        # 128 x 256 fills an SM's shared memory of sm_80 (163 KB) with three stages.
        stages = min(config["num_stages"], 3)
        _many_plain[(tiles,)](
            x, x_scale, weight, weight_scale, out, tokens, rows, columns, x.stride(0),
            weight.stride(0), out.stride(0), **shape, STAGES=stages,
            IMPRECISE=config["IMPRECISE"], INTERPRETED=not x.is_cuda, num_warps=config["num_warps"],
        )  # fmt: skip


def triton_kernel(x, x_scale, weight, weight_scale, out, workspace, counters):
    config = default_config(x.shape[0], *weight.shape)
    launch(config, x, x_scale, weight, weight_scale, out, workspace, counters)


def eager(x, x_scale, weight, weight_scale, out, workspace, counters):
    return torch._scaled_mm(
        x, weight.T, scale_a=x_scale, scale_b=weight_scale.T, out_dtype=out.dtype, use_fast_accum=True
    )


def vllm(x, x_scale, weight, weight_scale, out, workspace, counters):
    from vllm import _custom_ops

    return _custom_ops.cutlass_scaled_mm(x, weight.T, x_scale, weight_scale, out.dtype)


IMPLEMENTATIONS = {"triton": triton_kernel}
BASELINES = {"eager": eager, "vllm": vllm}
