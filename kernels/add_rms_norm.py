"""Fused residual add and RMSNorm, in place.

    residual <- x + residual                                  (rounded to the dtype)
    x        <- residual / sqrt(mean(residual^2) + eps) * weight

x, residual: (T, H) contiguous, float16, bfloat16 or float32; weight: (H,) of the same dtype. The sum
is rounded before it is squared, as vLLM's ``fused_add_rms_norm`` does. Sums in float32.

Bytes: read x, residual, weight; write x, residual: (4 T H + H) s. Flops: about 6 T H.
"""

import torch
import triton
import triton.language as tl

from loadgen.microbench.baselines import compiled
from loadgen.microbench.cases import DTYPE_BYTES, Case

OUTPUTS = ("x", "residual")
STREAMED = ("weight",)
EPS = 1e-6

CHECKS = [
    {"tokens": 1, "hidden": 64, "dtype": "float32"},
    {"tokens": 3, "hidden": 100, "dtype": "float16"},
    {"tokens": 5, "hidden": 2560, "dtype": "bfloat16"},
    {"tokens": 2, "hidden": 5120, "dtype": "bfloat16"},
]


def cases(model, step):
    # One before attention and one before the MLP in each layer; the first has no residual yet and the final
    # norm has one, which makes two a layer.
    yield Case({"tokens": step.tokens, "hidden": model.hidden, "dtype": model.dtype}, per_step=2 * model.layers)


def inputs(make, tokens, hidden, dtype):
    return {
        "x": make.normal(tokens, hidden, dtype=dtype),
        "residual": make.normal(tokens, hidden, dtype=dtype),
        "weight": make.normal(hidden, dtype=dtype, std=0.1) + 1,
    }


def reference(x, residual, weight):
    total = (x.float() + residual.float()).to(x.dtype)
    exact = total.double()
    scale = (exact.square().mean(-1, keepdim=True) + EPS).rsqrt()
    return {"x": exact * scale * weight.double(), "residual": total}


def traffic(tokens, hidden, dtype):
    return (4 * tokens * hidden + hidden) * DTYPE_BYTES[dtype], 6 * tokens * hidden


@triton.jit
def _add_rms_norm(x_ptr, residual_ptr, weight_ptr, hidden, eps, BLOCK: tl.constexpr):
    """One program, one row, held in registers between the sum and the scaling."""
    row = tl.program_id(0).to(tl.int64) * hidden
    columns = tl.arange(0, BLOCK)
    inside = columns < hidden
    x = tl.load(x_ptr + row + columns, mask=inside, other=0.0)
    residual = tl.load(residual_ptr + row + columns, mask=inside, other=0.0)
    total = (x.to(tl.float32) + residual.to(tl.float32)).to(x.dtype)
    tl.store(residual_ptr + row + columns, total, mask=inside)
    exact = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(exact * exact, axis=0) / hidden + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(x_ptr + row + columns, (exact * scale * weight).to(x.dtype), mask=inside)


def triton_kernel(x, residual, weight):
    tokens, hidden = x.shape
    block = triton.next_power_of_2(hidden)
    # 16 bytes a thread and load. With few rows a multiprocessor has one to itself, and more warps end it sooner.
    warps = min(max(block // (512 if tokens > 256 else 256), 1), 16)
    _add_rms_norm[(tokens,)](x, residual, weight, hidden, EPS, BLOCK=block, num_warps=warps)


def cuda_kernel(x, residual, weight):
    from loadgen.microbench.extension import operators

    operators().add_rms_norm(x, residual, weight, EPS)


def eager(x, residual, weight):
    residual.add_(x)
    x.copy_(torch.nn.functional.rms_norm(residual, (residual.shape[-1],), weight, EPS))


def vllm(x, residual, weight):
    from vllm import _custom_ops

    _custom_ops.fused_add_rms_norm(x, residual, weight, EPS)


IMPLEMENTATIONS = {"triton": triton_kernel, "cuda": cuda_kernel}
BASELINES = {"eager": eager, "compile": compiled(eager), "vllm": vllm}
