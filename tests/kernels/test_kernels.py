"""Every kernel that comes with loadgen is right, at sizes that are odd: in Triton's interpreter, or on a GPU."""

import pytest
import torch

from loadgen.microbench.check import judge, run_once
from loadgen.microbench.kernel_file import KernelFile, find
from loadgen.microbench.tensors import Make

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FILES = {path.stem: KernelFile(path) for path in find([])}
# Triton's interpreter (3.6) turns arrays of one element into numbers, which numpy is about to refuse.
pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning")]


def checks():
    for name, kernel in FILES.items():
        for which in kernel.implementations:
            for index, params in enumerate(kernel.checks):
                yield pytest.param(name, which, params, id=f"{name}-{which}-{index}")


@pytest.mark.parametrize(("name", "which", "params"), list(checks()))
def test_right(name, which, params):
    kernel = FILES[name]
    tensors = kernel.inputs(Make(DEVICE, seed=1), params)
    want = kernel.reference(tensors)
    assert set(want) <= set(kernel.outputs)
    try:
        got = run_once(kernel, kernel.implementations[which], tensors)
    except NotImplementedError as error:
        pytest.skip(str(error))
    except ImportError as error:
        if DEVICE == "cuda":
            raise
        pytest.skip(str(error))
    outcome = judge(kernel, got, want)
    assert outcome.complaint is None
