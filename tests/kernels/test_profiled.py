"""The profiled program: its three modes with CPU activities alone, and whole on a GPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

from loadgen.errors import LoadgenError, UsageError
from loadgen.microbench.kernel_file import kernels_folder
from loadgen.microbench.profiling import target as profile_target
from loadgen.microbench.profiling.profile import ProfileSpec, profile, render
from loadgen.microbench.profiling.records import CALL, INPUTS, trace_records

# torch 2.11 warns of this once in a process, whoever is the first to profile.
pytestmark = [pytest.mark.kernels, pytest.mark.filterwarnings("ignore:.*Profiler clears events:UserWarning")]
GPU = torch.cuda.is_available()
KERNEL = kernels_folder() / "add_rms_norm.py"
PARAMS = {"tokens": 64, "hidden": 4096, "dtype": "bfloat16"}
CALLS = 7


def spec(output, **fields):
    made = {"kernel": KERNEL, "params": PARAMS, "output": output, "implementation": "triton", "calls": CALLS}
    return ProfileSpec(**{**made, **fields})


@pytest.mark.parametrize(("mode", "inputs", "ran"), [("bare", 1, 7), ("schedule", 0, 9), ("toggle", 0, 7)])
def test_what_each_mode_records(tmp_path, monkeypatch, mode, inputs, ran):
    monkeypatch.setattr(profile_target, "_activities", lambda torch: [torch.profiler.ProfilerActivity.CPU])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    count = 0

    def implementation(x):
        nonlocal count
        count += 1
        x.add_(1)

    trace = tmp_path / "trace.json"
    getattr(profile_target, mode)(torch, lambda: {"x": torch.zeros(8)}, implementation, CALLS, trace)
    events = json.loads(trace.read_text())["traceEvents"]
    names = [event.get("name") for event in events if event.get("cat") == "user_annotation"]
    assert (names.count(CALL), names.count(INPUTS), count) == (CALLS, inputs, ran)
    records, notes = trace_records(events, mode, CALLS)
    assert notes == [] and [record.calls for record in records if record.kind == "call"] == [CALLS]


def test_toggle_switches_both_sides_together_and_never_off_at_the_end(tmp_path, monkeypatch):
    """With CUDA alone switched, kernels are attributed wrongly; switched off before the end, they are lost."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(profile_target, "_activities", lambda torch: [torch.profiler.ProfilerActivity.CPU])
    done = []
    switch = torch.profiler.profile.toggle_collection_dynamic

    def noted(self, enable, activities):
        done.append((enable, list(activities)))
        switch(self, enable, activities)

    monkeypatch.setattr(torch.profiler.profile, "toggle_collection_dynamic", noted)

    def made():
        done.append("inputs")
        return {"x": torch.zeros(8)}

    profile_target.toggle(torch, made, lambda x: done.append("call"), 2, tmp_path / "trace.json")
    both = profile_target._activities(torch)
    assert done == [(False, both), "inputs", (True, both), "call", "call"]


@pytest.mark.skipif(GPU, reason="this host has a GPU")
def test_without_a_gpu_it_says_so_in_a_line(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(UsageError, match=r"built without CUDA|finds no GPU") as caught:
        profile(spec(tmp_path / "profile", python=sys.executable), lambda text: None)
    assert "\n" not in str(caught.value)


def test_the_interpreter_is_not_profiled(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UsageError, match="TRITON_INTERPRET=1"):
        profile(spec(tmp_path / "profile"), lambda text: None)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize("mode", ["bare", "schedule", "toggle"])
def test_on_a_gpu(tmp_path, mode):
    found = profile(spec(tmp_path / "profile", mode=mode), lambda text: None)
    own = [record for record in found.records if record.values.get("per_call")]
    (kernel,) = [record for record in own if record.kind == "kernel"]
    assert "add_rms_norm" in kernel.name
    assert kernel.calls == CALLS and kernel.values["per_call"] == 1
    assert 0.5e-6 < kernel.min_s <= kernel.median_s <= kernel.max_s < 1e-3
    assert any("Launch" in record.name and record.calls == CALLS for record in own if record.kind == "api")
    made = [record for record in found.records if record.kind == "kernel" and not record.values["per_call"]]
    assert bool(made) == (mode == "bare"), "only in mode bare is making the inputs in the trace"
    call = next(record for record in own if record.kind == "call")
    if mode == "schedule":
        assert call.first_s < 50 * call.median_s
    else:
        assert call.first_s > 3 * call.median_s, "the first call loads the kernel"
    assert found.facts.l2_state == "warm" and "L2-warm" in render(found)
    assert found.notes == []


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"implementation": "none"}, UsageError, "no implementation none; there are triton"),
        ({"params": {"tokens": 64}}, LoadgenError, "TypeError"),
        ({"kernel": Path("no_such_file.py")}, UsageError, "no_such_file.py"),
    ],
)
def test_what_cannot_be_profiled(tmp_path, fields, error, words):
    with pytest.raises(error, match=words) as caught:
        profile(spec(tmp_path / "profile", **fields), lambda text: None)
    assert "\n" not in str(caught.value)
