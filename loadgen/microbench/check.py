"""Is a kernel right? Every output against a reference in higher precision, poison found, inputs fresh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from loadgen.microbench.kernel_file import KernelFile
from loadgen.microbench.tensors import Tensors


class Tolerance(NamedTuple):
    """|got - want| <= rtol |want| + scaled * rms of the row, for every element; ||got - want|| <= norm ||want||.

    A row is what the last dimension holds: rows of one output can differ in size by orders, as the first and
    the last tokens' do in causal attention.
    """

    rtol: float
    scaled: float
    norm: float


# rtol after vLLM's table (vllm/ir/tolerances: fp16 1e-3, bf16 1.6e-2, fp8 0.1). The part scaled by the row's own
# size is for sums that cancel; the norm catches a bias that every single element's bound would let pass.
TOLERANCES: dict[torch.dtype, Tolerance] = {
    torch.float64: Tolerance(1e-6, 1e-6, 1e-7),
    torch.float32: Tolerance(1e-4, 1e-4, 1e-4),
    torch.float16: Tolerance(2e-3, 4e-3, 2e-3),
    torch.bfloat16: Tolerance(1.6e-2, 2e-2, 6e-3),
    torch.float8_e4m3fn: Tolerance(0.13, 1e-2, 4e-2),
    torch.int8: Tolerance(0.0, 0.0, 2e-2),
}
INT_OFF_BY = 1  # int8 values from a rounding at half may differ by one


class Outcome(NamedTuple):
    """``error``: the largest ||got - want|| / ||want|| of the outputs; ``complaint``: what is wrong, or None."""

    error: float
    complaint: str | None


def run_once(kernel: KernelFile, implementation: Callable[..., Any], tensors: Tensors) -> Tensors:
    """Runs it, and gives the outputs by name, written in place or returned."""
    returned = implementation(**tensors)
    if returned is None:
        return {name: tensors[name] for name in kernel.outputs}
    values = returned if isinstance(returned, tuple | list) else (returned,)
    return dict(zip(kernel.outputs, values, strict=True))


def compare(got: Tensors, want: Tensors, tolerances: dict[str, Any]) -> Outcome:
    """Every output that the reference gives.

    Args:
        tolerances: by output name, instead of the defaults by dtype.
    """
    worst, complaints = 0.0, []
    for name, expected in want.items():
        value = got[name]
        if value.shape != expected.shape:
            complaints.append(f"{name}: shape {tuple(value.shape)} instead of {tuple(expected.shape)}")
            continue
        if not value.dtype.is_floating_point and value.dtype != torch.int8:
            wrong = int((value != expected).sum())
            if wrong:
                complaints.append(f"{name}: {wrong:,} of {value.numel():,} elements are wrong")
                worst = max(worst, 1.0)
            continue
        tolerance = tolerances.get(name) or TOLERANCES[value.dtype]
        exact = expected.double()
        difference = (value.double() - exact).abs_()
        bad = int(torch.isnan(difference).sum())
        if bad:
            complaints.append(f"{name}: {bad:,} of {value.numel():,} elements are NaN or were never written")
            worst = max(worst, 1.0)
            continue
        norm = float(exact.norm())
        error = float(difference.norm()) / norm if norm > 0 else float(difference.norm())
        worst = max(worst, error)
        row_size = exact.square().mean(-1, keepdim=True).sqrt() if exact.dim() else exact.abs()
        room = exact.abs() * tolerance.rtol + row_size * tolerance.scaled
        if value.dtype == torch.int8:
            room = room + INT_OFF_BY
        over = int((difference > room).sum())
        if over:
            complaints.append(
                f"{name}: {over:,} of {value.numel():,} elements are off, by {float(difference.max()):.3g} at most"
            )
        elif error > tolerance.norm:
            complaints.append(f"{name}: off by {error:.2g} of its norm, which may be {tolerance.norm:.2g}")
    return Outcome(worst, "; ".join(complaints) or None)


def judge(kernel: KernelFile, got: Tensors, want: Tensors) -> Outcome:
    """By the file's own ``compare`` where it has one."""
    own = kernel.compare
    if own is None:
        return compare(got, want, kernel.tolerances)
    complaints = own(got, want)
    return Outcome(float(bool(complaints)), "; ".join(complaints) or None)
