"""The process with the GPU: memory that runs out costs its own case, wherever it does, and says how much was wanted."""

import pytest
import torch

from loadgen.microbench import timing
from loadgen.microbench.kernel_file import find
from loadgen.microbench.timing import Timed
from loadgen.microbench.worker import Bench, Job, _device_facts, out_of_memory

pytestmark = pytest.mark.kernels
DEVICE = "cuda:0" if torch.cuda.is_available() else "cpu"
TEXT = (
    "CUDA out of memory. Tried to allocate 48.43 GiB. GPU 0 has a total capacity of 139.80 GiB of which 42.11 GiB is "
    "free. Including non-PyTorch memory, this process has 97.68 GiB memory in use."
)
SHORT = "48.43 GiB more wanted, 42.11 GiB free"
KERNEL = '''"""Copies."""
import torch
from loadgen.microbench.cases import Case

OUTPUTS = ("out",)
CASES = [Case({"where": where}) for where in ("inputs", "reference", "own", "baseline", "nowhere")]
CHECKS = [case.params for case in CASES]

def short(where, here):
    if where == here:
        raise torch.OutOfMemoryError(TEXT)

def inputs(make, where):
    short(where, "inputs")
    return {"x": make.normal(4, dtype="float32"), "out": make.empty(4, dtype="float32"), "where": where}

def reference(x, out, where):
    short(where, "reference")
    return {"out": x.double()}

def traffic(where):
    return 32, 0

def own(x, out, where):
    short(where, "own")
    out.copy_(x)

def baseline(x, out, where):
    short(where, "baseline")
    out.copy_(x)

IMPLEMENTATIONS = {"own": own}
BASELINES = {"baseline": baseline}
'''


@pytest.fixture
def job(tmp_path):
    path = tmp_path / "copies.py"
    path.write_text(KERNEL.replace("TEXT", repr(TEXT)))
    return Job(file=str(path), check=True, states=["serving"])


def test_each_case_on_its_own(job):
    answers = []
    Bench(answers.append, DEVICE, None).run(job)
    found = {
        answer.params["where"]: [(attempt.status, attempt.message) for attempt in answer.checked]
        for answer in answers
        if answer.kind == "checked"
    }
    everything = ("out_of_memory", f"{SHORT}, for inputs or reference")
    assert found == {
        "inputs": [everything, everything],
        "reference": [everything, everything],
        "own": [("out_of_memory", SHORT), ("ok", None)],
        "baseline": [("ok", None), ("out_of_memory", SHORT)],
        "nowhere": [("ok", None), ("ok", None)],
    }


def test_memory_that_runs_out_while_timing_leaves_no_time(job, monkeypatch):
    """Not even of what was timed, and not yet compared with its reference again."""
    bench = Bench([].append, DEVICE, None)

    def time(kernel, chosen, samples, *rest):
        samples.attempts[0].samples_s = [1e-6] * 40
        raise torch.OutOfMemoryError(TEXT)

    monkeypatch.setattr(bench, "_time", time)
    answers = []
    bench._answer = answers.append
    job.check = False
    bench.run(job)
    last = [answer.samples for answer in answers if answer.kind == "samples"][-1]
    assert last.params == {"where": "nowhere"}
    assert [(one.status, one.message) for one in last.attempts] == [("out_of_memory", f"{SHORT}, while timing")] * 2


def test_what_hides_a_shortage():
    def hidden():
        try:
            raise torch.OutOfMemoryError(TEXT)
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    with pytest.raises(RuntimeError) as caught:
        hidden()
    assert out_of_memory(caught.value) == SHORT
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")) is not None
    assert out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered")) is None


def test_a_capture_without_memory_is_no_kernel_that_cannot_be_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def capture(self):
        try:
            raise torch.OutOfMemoryError(TEXT)
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(timing.Timed, "_capture", capture)
    with pytest.raises(torch.OutOfMemoryError, match=r"48\.43 GiB"):
        Timed("own", lambda: None, [{}], 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_more_than_the_card_has():
    _, total = torch.cuda.mem_get_info()
    answers = []
    (path,) = find(["vector_add"])
    cases = [{"elements": total // 4 + (1 << 20)}, {"elements": 1 << 20}]
    job = Job(file=str(path), cases=cases, states=["hot"], implementations=["triton"], baselines=False, seconds=0.1)
    Bench(answers.append, DEVICE, _device_facts(torch)).run(job)
    too_large, fits = (answer.samples.attempts[0] for answer in answers if answer.kind == "samples")
    assert too_large.status == "out_of_memory" and "more wanted" in too_large.message
    assert fits.status == "ok" and fits.samples_s and fits.error_after is not None
