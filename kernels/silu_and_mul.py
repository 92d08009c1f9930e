"""SiLU of the gate times the up projection, the activation of a SwiGLU MLP.

    out = silu(x[:, :I]) * x[:, I:]        with silu(g) = g / (1 + exp(-g))

x: (T, 2 I), gate and up side by side as the merged projection leaves them, columns contiguous, rows at any
stride; out: (T, I) likewise; float16, bfloat16 or float32. Computed in float32 and rounded once.

Bytes: read x, write out: 3 T I s. Flops: about 5 T I.
"""

import torch
import triton
import triton.language as tl

from loadgen.microbench.baselines import compiled
from loadgen.microbench.cases import DTYPE_BYTES, Case

OUTPUTS = ("out",)
STREAMED = ()

CHECKS = [
    {"tokens": 1, "intermediate": 64, "dtype": "float32"},
    {"tokens": 3, "intermediate": 100, "dtype": "float16", "std": 30.0},
    {"tokens": 5, "intermediate": 2050, "dtype": "bfloat16"},
    {"tokens": 2, "intermediate": 300, "dtype": "float32", "std": 60.0},
    {"tokens": 2, "intermediate": 6912, "dtype": "bfloat16"},
    {"tokens": 80, "intermediate": 6912, "dtype": "bfloat16"},
]


def cases(model, step):
    yield Case({"tokens": step.tokens, "intermediate": model.intermediate, "dtype": model.dtype}, per_step=model.layers)


def inputs(make, tokens, intermediate, dtype, std=1.0):
    return {
        "out": make.empty(tokens, intermediate, dtype=dtype),
        "x": make.normal(tokens, 2 * intermediate, dtype=dtype, std=std),
    }


def reference(out, x):
    gate, up = x.double().chunk(2, dim=-1)
    return {"out": gate / (1 + (-gate).exp()) * up}


def traffic(tokens, intermediate, dtype, std=1.0):
    return 3 * tokens * intermediate * DTYPE_BYTES[dtype], 5 * tokens * intermediate


@triton.jit
def _silu_and_mul(out_ptr, x_ptr, out_stride, x_stride, intermediate, COLUMN_BLOCKS: tl.constexpr, BLOCK: tl.constexpr):
    """One program, BLOCK columns of one row. Programs of one row follow each other, so that DRAM pages stay open."""
    program = tl.program_id(0)
    row = (program // COLUMN_BLOCKS).to(tl.int64)
    columns = program % COLUMN_BLOCKS * BLOCK + tl.arange(0, BLOCK)
    inside = columns < intermediate
    x = x_ptr + row * x_stride
    gate = tl.load(x + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + intermediate + columns, mask=inside, other=0.0).to(tl.float32)
    # The sigmoid by exp(-|gate|), which never overflows.
    decay = tl.exp(-tl.abs(gate))
    result = gate * (tl.where(gate >= 0, 1.0, decay) / (1 + decay)) * up
    tl.store(out_ptr + row * out_stride + columns, result.to(out_ptr.dtype.element_ty), mask=inside)


def triton_kernel(out, x):
    tokens, intermediate = out.shape
    # 16 bytes of gate and of up a thread. Large blocks save threads' overhead; a few tokens leave SMs idle unless
    # their columns are spread over many programs.
    block, warps = (1024, 4) if tokens * intermediate >= 1 << 19 else (256, 1)
    column_blocks = triton.cdiv(intermediate, block)
    _silu_and_mul[(tokens * column_blocks,)](
        out, x, out.stride(0), x.stride(0), intermediate, COLUMN_BLOCKS=column_blocks, BLOCK=block, num_warps=warps
    )


def cuda_kernel(out, x):
    from loadgen.microbench.extension import operators

    operators().silu_and_mul(out, x)


def eager(out, x):
    intermediate = out.shape[-1]
    torch.mul(torch.nn.functional.silu(x[:, :intermediate]), x[:, intermediate:], out=out)


def vllm(out, x):
    from vllm import _custom_ops  # noqa: F401  it registers torch.ops._C

    torch.ops._C.silu_and_mul(out, x)


IMPLEMENTATIONS = {"triton": triton_kernel, "cuda": cuda_kernel}
BASELINES = {"eager": eager, "compile": compiled(eager), "vllm": vllm}
