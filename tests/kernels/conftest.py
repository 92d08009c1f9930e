"""Without a GPU, Triton's kernels run in its interpreter: the flag must stand before triton is imported."""

import os

import pytest

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")
