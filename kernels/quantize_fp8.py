"""Dynamic quantisation of activations to float8_e4m3fn, one scale a token.

    scale[t] = max(max_i |x[t, i]| / 448, 2^-126)       q[t, i] = round(x[t, i] / scale[t])

x: (T, H), columns contiguous, rows at any stride, float16, bfloat16 or float32; q: (T, H) contiguous,
float8_e4m3fn; scale: (T, 1) float32. Rounds to nearest even. The least scale, float32's smallest normal number,
keeps a row of zeros at q = 0 and its reciprocal finite.

Bytes: read x, write q and scale: T H s + T H + 4 T. Flops: about 3 T H.
"""

import torch
import triton
import triton.language as tl

from loadgen.microbench.baselines import compiled
from loadgen.microbench.cases import DTYPE_BYTES, Case

OUTPUTS = ("q", "scale")
STREAMED = ()
MOST = 448.0
LEAST_SCALE = torch.finfo(torch.float32).tiny

CHECKS = [
    {"tokens": 1, "columns": 64, "dtype": "float32"},
    {"tokens": 3, "columns": 100, "dtype": "float16", "std": 1000.0},
    {"tokens": 5, "columns": 2560, "dtype": "bfloat16", "zero_rows": 2},
    {"tokens": 2, "columns": 6912, "dtype": "bfloat16"},
    {"tokens": 3, "columns": 77, "dtype": "float32", "std": 1e-36},
    {"tokens": 2, "columns": 20000, "dtype": "float16"},
]


def cases(model, step):
    for label, columns in (("hidden", model.hidden), ("intermediate", model.intermediate)):
        yield Case({"tokens": step.tokens, "columns": columns, "dtype": model.dtype}, label=label)


def inputs(make, tokens, columns, dtype, std=1.0, zero_rows=0):
    x = make.normal(tokens, columns, dtype=dtype, std=std)
    x[:zero_rows] = 0
    return {
        "q": make.empty(tokens, columns, dtype="float8_e4m3fn"),
        "scale": make.empty(tokens, 1, dtype="float32"),
        "x": x,
    }


def reference(q, scale, x):
    exact = x.double()
    exact_scale = (exact.abs().amax(-1, keepdim=True) / MOST).clamp_min(LEAST_SCALE)
    return {"q": (exact / exact_scale).float().to(q.dtype), "scale": exact_scale}


def traffic(tokens, columns, dtype, std=1.0, zero_rows=0):
    return tokens * columns * (DTYPE_BYTES[dtype] + 1) + 4 * tokens, 3 * tokens * columns


def needs(**_params):
    return (8, 9), "float8_e4m3fn conversion"


@triton.jit
def _quantize_fp8(
    q_ptr, scale_ptr, x_ptr, x_stride, columns, least_scale, BLOCK: tl.constexpr, EXACT_CONVERSION: tl.constexpr
):
    """One program, one row, held in registers between the maximum and the scaling."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), axis=0) / 448.0, least_scale)
    tl.store(scale_ptr + row, scale)
    # The reciprocal may carry the largest past 448 by an ulp or two of float32, which rounds to 448 all the same.
    scaled = x * (1 / scale)
    if not EXACT_CONVERSION:
        # The interpreter's own conversion rounds wrongly. Adding a number whose last bit is worth e4m3's last bit
        # at x's exponent (-6 and less: that of the subnormals) rounds to nearest even; what is left fits exactly.
        exponent = tl.maximum((scaled.to(tl.int32, bitcast=True) >> 23) & 0xFF, 127 - 6)
        rounder = 1.5 * ((exponent + 20) << 23).to(tl.float32, bitcast=True)
        scaled = (scaled + rounder) - rounder
    tl.store(q_ptr + row * columns + column, scaled.to(tl.float8e4nv), mask=inside)


def triton_kernel(q, scale, x):
    tokens, columns = x.shape
    block = triton.next_power_of_2(columns)
    # Two loads of 16 bytes a thread up to rows of 8,192; the longest rows need the registers of most threads.
    # 32 elements a thread: fewer would leave too few bytes in flight for each warp that waits (measured on an H200).
    warps = min(max(block // 1024, 1), 16) if block <= 16384 else 32
    _quantize_fp8[(tokens,)](
        q, scale, x, x.stride(0), columns, LEAST_SCALE, BLOCK=block, EXACT_CONVERSION=x.is_cuda, num_warps=warps
    )


def eager(q, scale, x):
    scale.copy_((x.abs().amax(-1, keepdim=True).float() / MOST).clamp_min(LEAST_SCALE))
    q.copy_((x.float() / scale).to(q.dtype))


def vllm(q, scale, x):
    from vllm import _custom_ops  # noqa: F401  it registers torch.ops._C

    # What scaled_fp8_quant calls, less its allocation of the outputs. Its least scale is 1 / (448 * 512).
    torch.ops._C.dynamic_per_token_scaled_fp8_quant(q, x, scale, None)


IMPLEMENTATIONS = {"triton": triton_kernel}
BASELINES = {"eager": eager, "compile": compiled(eager), "vllm": vllm}
