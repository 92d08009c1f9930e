"""Inputs for kernels: random as a model's are, and outputs that hold poison until they are written."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

Tensors = dict[str, Any]  # tensors, and numbers that are passed on as they are


def dtype_of(name: str | torch.dtype) -> torch.dtype:
    """``"bfloat16"`` as torch's dtype."""
    found = name if isinstance(name, torch.dtype) else getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise TypeError(f"no dtype of torch: {name!r}")
    return found


def poison(tensor: torch.Tensor) -> None:
    """Fills a tensor with what no right result is: NaN, or the largest integer."""
    if tensor.dtype.is_floating_point:
        if tensor.element_size() == 1:  # fp8 has no fill of NaN on every device
            tensor.view(torch.uint8).fill_(0x7F)
        else:
            tensor.fill_(math.nan)
    elif tensor.dtype != torch.bool:
        tensor.fill_(torch.iinfo(tensor.dtype).max)


class Make:
    """Makes the tensors of a case on one device, from a seed.

    Args:
        device: such as ``"cuda:0"``.
        seed: the same seed gives the same tensors on the same device.
    """

    def __init__(self, device: str | torch.device, seed: int) -> None:
        self.device = torch.device(device)
        self._generator = torch.Generator(self.device).manual_seed(seed)

    def normal(self, *shape: int, dtype: str | torch.dtype, std: float = 1.0) -> torch.Tensor:
        """Gaussian values. fp8 is drawn in float32 and rounded."""
        wanted = dtype_of(dtype)
        drawn_as = wanted if wanted.itemsize > 1 else torch.float32
        values = torch.empty(*shape, dtype=drawn_as, device=self.device).normal_(0.0, std, generator=self._generator)
        return values.to(wanted)

    def uniform(self, *shape: int, dtype: str | torch.dtype = "float32") -> torch.Tensor:
        """Values in [0, 1)."""
        return torch.rand(*shape, dtype=dtype_of(dtype), device=self.device, generator=self._generator)

    def integers(self, low: int, high: int, *shape: int, dtype: str | torch.dtype = "int32") -> torch.Tensor:
        """Integers from ``low`` up to and without ``high``."""
        return torch.randint(low, high, shape, dtype=dtype_of(dtype), device=self.device, generator=self._generator)

    def permutation(self, n: int, dtype: str | torch.dtype = "int32") -> torch.Tensor:
        """0 to n - 1 in random order: block tables, slots."""
        order = torch.randperm(n, device=self.device, generator=self._generator)
        return order.to(dtype_of(dtype))

    def empty(self, *shape: int, dtype: str | torch.dtype) -> torch.Tensor:
        """Room for an output, poisoned: an element that is never written is found by the check."""
        room = torch.empty(*shape, dtype=dtype_of(dtype), device=self.device)
        poison(room)
        return room


def clone(tensors: Mapping[str, Any]) -> Tensors:
    """Copies of the tensors at addresses of their own; numbers as they are."""
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in tensors.items()}


def restore(tensors: Mapping[str, Any], pristine: Mapping[str, Any]) -> None:
    """Writes the pristine values back, poison of the outputs included."""
    for name, value in pristine.items():
        if isinstance(value, torch.Tensor):
            tensors[name].copy_(value)


def nbytes(tensors: Mapping[str, Any], names: set[str] | None = None) -> int:
    """Bytes of the tensors, or of those named."""
    return sum(
        value.numel() * value.element_size()
        for name, value in tensors.items()
        if isinstance(value, torch.Tensor) and (names is None or name in names)
    )
