"""Profiles: traces and summaries as records, what they are said to mean, and tools that fail.

The tools are shell scripts; their tables are in the forms that releases of nsys and ncu write.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.errors import LoadgenError, RunFolderError, UsageError
from loadgen.microbench.kernel_file import kernels_folder
from loadgen.microbench.profiling import profile as module
from loadgen.microbench.profiling.profile import ProfileSpec, check_alone, explain, profile, render
from loadgen.microbench.profiling.records import (
    CALL,
    DURATION,
    NCU_METRICS,
    NSYS_REPORTS,
    Facts,
    ProfileRecord,
    ncu_records,
    nsys_records,
    trace_records,
)
from loadgen.microbench.profiling.target import Refused, in_words
from loadgen.microbench.profiling.text import WIDTH, Profile, format_bytes, format_us, gpu_time_per_call_s, short_name

MIB = 2**20


def made_facts(**fields: Any) -> Facts:
    made: dict[str, Any] = {
        "kernel": "add_rms_norm",
        "implementation": "triton",
        "params": {"tokens": 64, "hidden": 4096, "dtype": "bfloat16"},
        "calls": 3,
        "device": "NVIDIA H200",
        "compute_capability": (9, 0),
        "l2_bytes": 60 * MIB,
        "tensor_bytes": 1_056_768,
        "least_bytes": 2_105_344.0,
        "flops": 1_572_864.0,
        "versions": {"torch": "2.11.0", "cuda": "13.0", "triton": "3.6.0"},
    }
    return Facts(**{**made, **fields})


# --- a trace of torch.profiler ----------------------------------------------------------------------------------------


def event(cat: str, name: str, ts: float, dur: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": 1, "tid": 1, "ts": ts, "dur": dur, "args": args}


def made_trace() -> list[dict[str, Any]]:
    """Inputs made by one kernel, then three calls of one kernel each, the first of them slow."""
    events = [
        {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "python"}},
        event("cuda_runtime", "cudaLaunchKernel", 10, 135.5, correlation=1),
        event("kernel", "void at::native::normal_kernel<float>(int)", 150, 4, correlation=1, grid=[64, 1, 1]),
        event("cuda_runtime", "cudaMemsetAsync", 160, 3, correlation=2),
        event("gpu_memset", "Memset (Device)", 165, 1.5, correlation=2, bytes=4096),
        event("overhead", "Lazy Function Loading", 1020, 700),
    ]
    # The GPU is late: the first kernel runs after the second call has begun.
    for index, (start, host, launch, begin, gpu) in enumerate(
        [(1000, 900, 209.8, 2010, 9.8), (2000, 40, 6.1, 2050, 2.0), (3000, 38, 5.9, 3050, 2.2)]
    ):
        events += [
            event("user_annotation", CALL, start, host),
            event("gpu_user_annotation", CALL, begin, gpu),
            event("cuda_driver", "cuLaunchKernelEx", start + 5, launch, correlation=10 + index),
            event(
                "kernel", "_add_rms_norm", begin, gpu, correlation=10 + index, grid=[64, 1, 1], block=[256, 1, 1],
                **{"registers per thread": 40, "shared memory": 32, "est. achieved occupancy %": 25},
            ),
        ]  # fmt: skip
    events.append(event("cuda_runtime", "cudaDeviceSynchronize", 3100, 12, correlation=20))
    return events[::-1]  # a trace promises no order


def by_name(records: list[ProfileRecord]) -> dict[str, ProfileRecord]:
    return {record.name: record for record in records}


def test_a_trace_becomes_records() -> None:
    records, notes = trace_records(made_trace(), "bare", 3)
    assert notes == []
    assert [(r.kind, r.name) for r in records] == [
        ("call", CALL),
        ("kernel", "_add_rms_norm"),
        ("kernel", "void at::native::normal_kernel<float>(int)"),
        ("api", "cuLaunchKernelEx"),
        ("api", "cudaLaunchKernel"),
        ("api", "cudaDeviceSynchronize"),
        ("api", "cudaMemsetAsync"),
        ("memory_copy", "Memset (Device)"),
        ("overhead", "Lazy Function Loading"),
    ]
    kernel = records[1]
    assert (kernel.tool, kernel.mode, kernel.calls) == ("torch", "bare", 3)
    assert kernel.total_s == pytest.approx(14e-6)
    assert (kernel.first_s, kernel.median_s, kernel.min_s, kernel.max_s) == pytest.approx(
        (9.8e-6, 2.2e-6, 2e-6, 9.8e-6)
    )
    assert kernel.values == {
        "per_call": 1.0,
        "registers_per_thread": 40.0,
        "shared_memory_bytes": 32.0,
        "occupancy_estimate_pct": 25.0,
        "blocks": 64.0,
        "threads_per_block": 256.0,
    }
    launch = by_name(records)["cuLaunchKernelEx"]
    assert (launch.first_s, launch.median_s) == pytest.approx((209.8e-6, 6.1e-6))


def test_what_is_outside_the_calls_is_told_apart() -> None:
    records = by_name(trace_records(made_trace(), "bare", 3).records)
    for name in ("void at::native::normal_kernel<float>(int)", "cudaLaunchKernel", "Memset (Device)"):
        assert records[name].values["per_call"] == 0
    assert records["Memset (Device)"].values["bytes"] == 4096


def test_one_name_within_and_without_gives_two_records() -> None:
    events = [
        event("cuda_runtime", "cudaLaunchKernel", 1, 1, correlation=1),
        event("kernel", "fill", 2, 5, correlation=1),
        event("user_annotation", CALL, 10, 10),
        event("cuda_runtime", "cudaLaunchKernel", 12, 1, correlation=2),
        event("cuda_runtime", "cudaLaunchKernel", 14, 1, correlation=3),
        event("kernel", "fill", 30, 1, correlation=2),
        event("kernel", "fill", 32, 1, correlation=3),
    ]
    kernels = [r for r in trace_records(events, "bare", 1).records if r.kind == "kernel"]
    assert [(r.calls, r.values["per_call"]) for r in kernels] == [(2, 2.0), (1, 0.0)]


def test_a_trace_without_marks_says_so() -> None:
    events = [e for e in made_trace() if e["name"] != CALL]
    records, notes = trace_records(events, "toggle", 3)
    assert notes[0] == "the trace has no marks of the calls: all that it holds is counted as theirs"
    assert notes[1].startswith("1 runs of void at::native::normal_kernel<float>(int) in 3 calls: ")
    assert by_name(records)["_add_rms_norm"].values["per_call"] == 1


def test_lost_calls_and_kernels_are_named() -> None:
    events = [e for e in made_trace() if not (e.get("cat") == "kernel" and e["ts"] == 3050)]
    assert any("2 runs of _add_rms_norm in 3 calls" in note for note in trace_records(events, "bare", 3).notes)
    assert "the trace has 3 of the 7 calls" in trace_records(made_trace(), "bare", 7).notes


def test_a_kernel_whose_launch_is_not_in_the_trace_counts_by_its_own_time() -> None:
    events = [event("user_annotation", CALL, 10, 10), event("kernel", "k", 12, 1)]
    (_, kernel), _ = trace_records(events, "bare", 1)
    assert kernel.values["per_call"] == 1


def test_an_empty_trace_has_no_records() -> None:
    assert trace_records([], "bare", 7).records == []


def test_records_survive_json() -> None:
    records = trace_records(made_trace(), "schedule", 3).records
    assert records
    for record in records:
        assert msgspec.json.decode(msgspec.json.encode(record), type=ProfileRecord) == record


# --- nsys' summaries --------------------------------------------------------------------------------------------------

NSYS_2025 = {
    "cuda_gpu_kern_sum": """\
Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
80.0,19680,3,6560.0,6565.0,6400,6720,131.1,"void add_kernel<float, 4>(const float *, const float *, float *, int)"
20.0,4920,3,1640.0,1632.0,1600,1696,39.6,_add_rms_norm
""",
    "cuda_api_sum": """\
Time (%),Total Time (ns),Num Calls,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Name
90.0,228700,6,38116.7,9450.0,5100,209800,77000.5,cudaLaunchKernel
10.0,25000,1,25000.0,25000.0,25000,25000,0.0,cudaDeviceSynchronize
""",
    "cuda_gpu_mem_time_sum": """\
Time (%),Total Time (ns),Count,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Operation
100.0,2411520,48,50240.0,50176.0,49920,51200,320.1,[CUDA memcpy Host-to-Device]
""",
    "cuda_gpu_mem_size_sum": """\
Total (MB),Count,Avg (MB),Med (MB),Min (MB),Max (MB),StdDev (MB),Operation
12.583,48,0.262,0.262,0.262,0.262,0.000,[CUDA memcpy Host-to-Device]
""",
}
# Of 2021: no median, names in full, other words for the counts, and a line before the table.
NSYS_2021 = {
    "cuda_gpu_kern_sum": """\
Processing [nsys.sqlite] with [/opt/nvidia/nsight-systems/2021.4.1/reports/gpukernsum.py]...
Time(%),Total Time (ns),Instances,Average (ns),Minimum (ns),Maximum (ns),StdDev (ns),Name
100.0,"19,680",3,"6,560.0","6,400","6,720",131.1,"add_kernel(float*, float*, float*, int)"

""",
    "cuda_api_sum": """\
Time(%),Total Time (ns),Num Calls,Average (ns),Minimum (ns),Maximum (ns),StdDev (ns),Name
100.0,228700,6,38116.7,5100,209800,77000.5,cudaLaunchKernel
""",
    "cuda_gpu_mem_time_sum": """\
Time(%),Total Time (ns),Operations,Average (ns),Minimum (ns),Maximum (ns),StdDev (ns),Operation
100.0,2411520,48,50240.0,49920,51200,320.1,[CUDA memcpy HtoD]
""",
    "cuda_gpu_mem_size_sum": """\
Total,Operations,Average,Minimum,Maximum,StdDev,Operation
12288.000,48,256.000,256.000,256.000,0.000,[CUDA memcpy HtoD]
""",
}


def test_nsys_summaries_of_today() -> None:
    records, notes = nsys_records(NSYS_2025, calls=3)
    assert notes == []
    assert [(r.kind, r.calls) for r in records] == [
        ("kernel", 3), ("kernel", 3), ("api", 6), ("api", 1), ("memory_copy", 48),
    ]  # fmt: skip
    kernel = records[0]
    assert kernel.name == "void add_kernel<float, 4>(const float *, const float *, float *, int)"
    assert kernel.first_s is None
    assert (kernel.total_s, kernel.median_s, kernel.min_s, kernel.max_s) == pytest.approx(
        (19.68e-6, 6.565e-6, 6.4e-6, 6.72e-6)
    )
    assert kernel.values == {"per_call": 1.0}
    assert records[2].values == {"per_call": 2.0}
    assert records[4].values["bytes"] == pytest.approx(12.583e6)


def test_nsys_summaries_of_an_old_release() -> None:
    records, notes = nsys_records(NSYS_2021, calls=3)
    kernel = records[0]
    assert kernel.total_s == pytest.approx(19.68e-6) and kernel.min_s == pytest.approx(6.4e-6)
    assert kernel.median_s is None and kernel.calls == 3
    assert "cuda_gpu_kern_sum of this nsys has no column for median: left out" in notes
    assert "cuda_gpu_mem_size_sum of this nsys has no column for total, median, min, max: left out" in notes
    copy = records[-1]
    assert copy.calls == 48 and "bytes" not in copy.values


def test_nsys_units_are_read() -> None:
    text = "Total Time (us),Instances,Med (ms),Kernel Name\n19.68,3,0.006565,add\n"
    (record,), _ = nsys_records({"cuda_gpu_kern_sum": text}, calls=3)
    assert (record.total_s, record.median_s) == pytest.approx((19.68e-6, 6.565e-6))
    size = "Total (KiB),Count,Operation\n2,1,[CUDA memset]\n"
    (record,), _ = nsys_records({"cuda_gpu_mem_size_sum": size}, calls=3)
    assert record.values == {"bytes": 2048.0} and record.calls is None


def test_what_nsys_wrote_no_summary_for_is_named() -> None:
    records, notes = nsys_records({"cuda_gpu_kern_sum": NSYS_2025["cuda_gpu_kern_sum"], "cuda_api_sum": "SKIPPED"}, 3)
    assert len(records) == 2
    assert notes == [
        "nsys has no cuda_api_sum: it saw none",
        "nsys has no cuda_gpu_mem_time_sum: no copy and no set was captured",
        "nsys has no cuda_gpu_mem_size_sum: no copy and no set was captured",
    ]


# --- ncu's counters ---------------------------------------------------------------------------------------------------

IDENTITY = '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream"'
COLUMNS = [
    ("dram__bytes.sum", "byte", ["1,048,576", "1,050,624"]),
    ("dram__throughput.avg.pct_of_peak_sustained_elapsed", "%", ["41.5", "42.5"]),
    (DURATION, "ns", ["3,200", "3,104"]),
    ("launch__occupancy_limit_blocks", "block", ["32", "32"]),
    ("launch__occupancy_limit_registers", "block", ["6", "6"]),
    ("launch__occupancy_limit_shared_mem", "block", ["16", "16"]),
    ("launch__occupancy_limit_warps", "block", ["8", "8"]),
    ("launch__registers_per_thread", "register/thread", ["40", "40"]),
    ("lts__t_sector_hit_rate.pct", "%", ["50.1", "n/a"]),
    ("sm__throughput.avg.pct_of_peak_sustained_elapsed", "%", ["10", "12"]),
    ("sm__warps_active.avg.pct_of_peak_sustained_active", "%", ["23.4", "23.6"]),
    # Not asked for: ncu 2025.3 gives these, and many more, all the same.
    ("device__attribute_warp_size", "", ["32", "32"]),
    ("dram__bytes.avg", "byte", ["21,845", "21,888"]),
]


def ncu_wide() -> str:
    """--page raw: a column a metric, units in a row of their own; as since 2020."""
    lines = [
        "==PROF== Connected to process 4711 (/usr/bin/python3.12)",
        '==PROF== Profiling "_add_rms_norm" - 0: 0%....50%....100% - 5 passes',
        IDENTITY + ',"Block Size","Grid Size","Device","CC",' + ",".join(f'"{name}"' for name, _, _ in COLUMNS),
        ",".join(['""'] * 11 + [f'"{unit}"' for _, unit, _ in COLUMNS]),
    ]
    for index in range(2):
        cells = [
            str(index), "4711", "python3.12", "127.0.0.1", "_add_rms_norm", "1", "7", "(256, 1, 1)", "(64, 1, 1)", "0",
            "9.0", *[values[index] for _, _, values in COLUMNS],
        ]  # fmt: skip
        lines.append(",".join(f'"{cell}"' for cell in cells))
    return "\n".join([*lines, "==PROF== Disconnected from process 4711"]) + "\n"


def ncu_long() -> str:
    """A row a metric; the units of releases up to 2023, which were not the base ones."""
    units = {"ns": ("usecond", 1e-3), "byte": ("Kbyte", 1e-3)}
    lines = [f'{IDENTITY},"Section Name","Metric Name","Metric Unit","Metric Value"']
    for index in range(2):
        for name, base, values in COLUMNS:
            unit, scale = units.get(base, (base, 1))
            value = values[index] if scale == 1 else f"{float(values[index].replace(',', '')) * scale:,.3f}"
            cells = [
                str(index), "4711", "python3", "127.0.0.1", "_add_rms_norm", "1", "7", "Command line profiler metrics",
                name, unit, value,
            ]  # fmt: skip
            lines.append(",".join(f'"{cell}"' for cell in cells))
    return "\n".join(lines)


@pytest.mark.parametrize("text", [ncu_wide(), ncu_long()], ids=["wide", "long"])
def test_ncu_counters(text: str) -> None:
    (record,), notes = ncu_records(text)
    assert (record.kind, record.name, record.calls) == ("counter", "_add_rms_norm", 2)
    assert (record.first_s, record.median_s, record.max_s) == pytest.approx((3.2e-6, 3.152e-6, 3.2e-6))
    assert record.values["dram__bytes.sum"] == pytest.approx(1_049_600)
    assert record.values["lts__t_sector_hit_rate.pct"] == pytest.approx(50.1)
    assert record.values["launch__registers_per_thread"] == 40
    assert set(record.values) < set(NCU_METRICS) - {DURATION}
    missing = set(NCU_METRICS) - {name for name, _, _ in COLUMNS}
    assert len(notes) == 1 and all(name in notes[0] for name in missing)


def test_ncu_without_a_duration_still_has_counters() -> None:
    text = '"ID","Kernel Name","dram__bytes.sum"\n"","","Mbyte"\n"0","k","2.5"\n'
    (record,), _ = ncu_records(text)
    assert record.calls == 1 and record.median_s is None and record.values == {"dram__bytes.sum": 2.5e6}


def test_ncu_without_a_table() -> None:
    assert ncu_records("==ERROR== something\n") == ([], ["ncu wrote no table"])


# --- what it means ----------------------------------------------------------------------------------------------------


def text_of(tool: Any, mode: Any, records: list[ProfileRecord], **facts: Any) -> str:
    return "\n".join(explain(tool, mode, records, made_facts(**facts)))


def test_bare_tells_the_first_from_the_steady() -> None:
    text = text_of("torch", "bare", trace_records(made_trace(), "bare", 3).records)
    assert "The first took 900.0 us, 22 times the median (40.00 us): it compiles the kernel" in text
    assert "cuLaunchKernelEx is the host's time to hand a kernel to the GPU" in text
    assert "The first in the calls took 209.8 us, 34 times the median (6.10 us)" in text
    assert "First 9.80 us, median of 3: 2.20 us: the first met cold caches" in text
    assert "At so few microseconds" in text
    assert "Lazy Function Loading, 1 time, 700.0 us" in text


def test_schedule_says_that_the_first_calls_are_left_out() -> None:
    events = [e for e in made_trace() if e.get("ts", 0) >= 2000 and e.get("args", {}).get("correlation") != 10]
    text = text_of("torch", "schedule", trace_records(events, "schedule", 2).records, calls=2)
    assert "of 4 calls the first was run without recording, the second with the profiler warming up" in text
    assert "cost about as much as the median" in text
    assert "no module was loaded in it" in text
    assert "cold caches" not in text
    assert "recorded no overhead of its own here" in text


def test_toggle_says_how_it_is_switched() -> None:
    text = text_of("torch", "toggle", trace_records(made_trace(), "toggle", 3).records)
    assert "off, for CPU and CUDA together, while the inputs were made" in text


@pytest.mark.parametrize(
    ("least", "tensors", "state", "words"),
    [
        (12.3e6, 12.3e6, "warm", "is an L2-warm figure"),
        (60 * MIB, 1e9, "warm", "is an L2-warm figure"),
        (100e6, 100e6, "partly", "is partly warm"),
        (400e6, 400e6, "cold", "close to what memory gives"),
        (400e6, 1e6, "warm", "is an L2-warm figure"),  # what is read and written in place is one line of a cache
    ],
)
def test_a_case_that_fits_the_l2_is_called_warm(least: float, tensors: float, state: str, words: str) -> None:
    facts = {"least_bytes": float(least), "tensor_bytes": int(tensors)}
    assert made_facts(**facts).l2_state == state
    assert words in text_of("torch", "schedule", trace_records(made_trace(), "schedule", 3).records, **facts)


def test_the_rate_is_of_all_kernels_of_a_call() -> None:
    records = [
        ProfileRecord(tool="torch", kind="kernel", name=name, calls=3, median_s=seconds, values={"per_call": per_call})
        for name, seconds, per_call in (("a", 2e-6, 2.0), ("b", 1e-6, 1.0), ("outside", 9.0, 0.0))
    ]
    assert gpu_time_per_call_s(records) == pytest.approx(5e-6)
    assert "2,400 GB/s" in text_of("torch", "bare", records, least_bytes=12e6, tensor_bytes=12_000_000)
    assert "2 different kernels; the medians of all that it runs sum up to 5.00 us" in text_of("torch", "bare", records)
    assert gpu_time_per_call_s([]) is None


def test_nsys_says_what_its_summary_does_not_hold() -> None:
    text = text_of("nsys", None, nsys_records(NSYS_2025, 3).records)
    assert "nsys sums up without telling the first launch apart" in text
    assert "This summary does not tell the first one apart." in text
    assert "L2:" in text


def test_ncu_says_that_its_figures_are_cold() -> None:
    records = ncu_records(ncu_wide()).records
    text = text_of("ncu", None, records, calls=2)
    assert "--cache-control all): these are cold figures" in text
    assert "--clock-control none" in text
    assert "0.50 times the least that the kernel file computes (2.11 MB). Less than the least" in text
    assert "registers limit _add_rms_norm to 6 blocks an SM" in text
    assert "data is fetched twice" in text_of("ncu", None, records, calls=2, least_bytes=0.5e6)
    assert "That is about the least" in text_of("ncu", None, records, calls=2, least_bytes=1_049_600.0)


# --- how it looks -----------------------------------------------------------------------------------------------------


def made_profile(tool: Any, mode: Any, parsed: Any, **fields: Any) -> Profile:
    return Profile(
        tool=tool,
        mode=mode,
        tool_version=None,
        facts=made_facts(),
        records=parsed.records,
        notes=parsed.notes,
        **fields,
    )


PROFILES = {
    "torch": made_profile(
        "torch", "bare", trace_records(made_trace(), "bare", 7), files={"Records": "/somewhere/profile.jsonl"}
    ),
    "nsys": made_profile("nsys", None, nsys_records(NSYS_2025, 3)),
    "nsys-2021": made_profile("nsys", None, nsys_records(NSYS_2021, 3)),
    "ncu": made_profile("ncu", None, ncu_records(ncu_wide())),
}


@pytest.mark.parametrize("name", PROFILES)
def test_text_fits_80_columns(name: str) -> None:
    text = render(PROFILES[name])
    assert max(map(len, text.splitlines())) <= WIDTH
    assert text.endswith("\n") and not any(line != line.rstrip() for line in text.splitlines())


def test_the_tables_of_a_trace() -> None:
    lines = render(PROFILES["torch"]).splitlines()
    assert lines[:2] == [
        "add_rms_norm, triton: tokens 64, hidden 4096, dtype bfloat16",
        "NVIDIA H200 (sm_90), torch.profiler 2.11.0, mode bare, 3 calls; times in us",
    ]
    assert "the call                               3     900.0     40.00     38.00     900.0" in lines
    assert "_add_rms_norm                          3      9.80      2.20      2.00      9.80" in lines
    assert "Memset (Device)                        1      1.50      1.50      1.50    4.1 KB" in lines
    assert lines.count("  outside the calls (making inputs, waiting):") == 3
    assert "Note: the trace has 3 of the 7 calls" in lines


def test_the_table_of_a_summary_has_gaps_where_nothing_is_known() -> None:
    lines = render(PROFILES["nsys-2021"]).splitlines()
    assert "add_kernel                             3         -         -      6.40      6.72" in lines


def test_the_counters() -> None:
    text = render(PROFILES["ncu"])
    for line in (
        "  replayed launches                                2",
        "  duration, min to max, us              3.10 to 3.20",
        "  bytes moved by DRAM                        1.05 MB",
        "  L2 hit rate                                 50.1 %",
        "  blocks an SM can hold, at most                   6",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (1.234e-6, "1.23"),
        (209.8e-6, "209.8"),
        (0.0123456, "12,346"),
        (1.234567, "1,234,567"),
        (12.34, "12.3 s"),
    ],
)
def test_microseconds(seconds: float | None, text: str) -> None:
    assert format_us(seconds) == text
    assert len(text) <= 9


@pytest.mark.parametrize(("count", "text"), [(12, "12 B"), (4096, "4.1 KB"), (12.29e6, "12.3 MB"), (5e12, "5,000 GB")])
def test_bytes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void add_kernel<float, 4>(float const*, int)", "add_kernel<float, 4>"),
        ("void at::native::(anonymous namespace)::fill<int>(int)", "fill<int>"),
        ("Memset (Device)", "Memset (Device)"),
        ("[CUDA memcpy Host-to-Device]", "[CUDA memcpy Host-to-Device]"),
        ("k" * 50, "k" * 27 + "..."),
    ],
)
def test_names_are_cut_to_what_tells_them_apart(name: str, short: str) -> None:
    assert short_name(name, 30) == short


# --- the tools, which are scripts -------------------------------------------------------------------------------------


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is all of PATH; no tool is found elsewhere, and no profiler is around."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(module, "TOOL_FOLDERS", ())
    for name in (*module.CLIENTS, "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    return folder


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def target(tmp_path: Path, bin_folder: Path) -> Path:
    """A stand-in for a Python with torch: it writes what the target would, into the folder after --output."""
    (tmp_path / "facts.json").write_bytes(msgspec.json.encode(made_facts()))
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": made_trace()}))
    return script(
        bin_folder / "python-with-torch",
        'while [ "$1" != --output ]; do shift; done\n'
        f'/bin/cp {tmp_path}/facts.json {tmp_path}/trace.json "$2"\n'
        "echo compiling >&2",
    )


def spec(tmp_path: Path, python: Path | str, **fields: Any) -> ProfileSpec:
    made: dict[str, Any] = {
        "kernel": kernels_folder() / "add_rms_norm.py",
        "params": {"tokens": 64},
        "output": tmp_path / "profile",
        "python": str(python),
        "calls": 3,
    }
    return ProfileSpec(**{**made, **fields})


def silent(text: str) -> None:
    pass


def test_torch_writes_records_beside_the_trace(tmp_path: Path, target: Path) -> None:
    said: list[str] = []
    found = profile(spec(tmp_path, target, mode="bare"), said.append)
    lines = (tmp_path / "profile" / "profile.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=ProfileRecord) for line in lines] == found.records
    assert found.mode == "bare" and found.facts == made_facts()
    assert (tmp_path / "profile" / "trace.json").exists()
    assert said == ["profiling add_rms_norm, its first implementation, with torch: 3 calls"]
    with pytest.raises(RunFolderError, match="holds a profile already"):
        profile(spec(tmp_path, target), silent)


def test_the_targets_complaint_is_one_line(tmp_path: Path, bin_folder: Path) -> None:
    body = """echo Traceback >&2\necho '{"error": "torch finds no GPU here", "usage": true}'\nexit 3"""
    python = script(bin_folder / "python", body)
    with pytest.raises(UsageError) as caught:
        profile(spec(tmp_path, python), silent)
    assert str(caught.value) == "torch finds no GPU here"
    script(python, """echo '{"error": "k.py:7: RuntimeError: out of memory"}'\nexit 3""")
    with pytest.raises(LoadgenError, match=r"^k\.py:7: RuntimeError: out of memory$") as failed:
        profile(spec(tmp_path, python), silent)
    assert not isinstance(failed.value, UsageError)


def test_a_target_that_dies_shows_its_last_lines(tmp_path: Path, bin_folder: Path) -> None:
    python = script(bin_folder / "python", "echo one >&2\necho two >&2\nkill -SEGV $$")
    with pytest.raises(LoadgenError, match=r"was ended by SIGSEGV\. Its last lines:\n  one\n  two"):
        profile(spec(tmp_path, python), silent)


def test_a_target_that_writes_nothing(tmp_path: Path, bin_folder: Path) -> None:
    python = script(bin_folder / "python", "exit 0")
    with pytest.raises(LoadgenError, match="wrote no trace"):
        profile(spec(tmp_path, python), silent)
    with pytest.raises(UsageError, match="no such program"):
        profile(spec(tmp_path, "no-such-python"), silent)


def test_a_trace_without_kernels_is_an_error(tmp_path: Path, target: Path) -> None:
    events = [e for e in made_trace() if e.get("cat") != "kernel"]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    with pytest.raises(LoadgenError, match="torch recorded no GPU kernel of add_rms_norm, triton"):
        profile(spec(tmp_path, target), silent)


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="this Python has torch; see tests/kernels")
def test_the_target_itself_without_torch(tmp_path: Path, bin_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"^torch is not installed in .*; name a Python that has it$"):
        profile(spec(tmp_path, sys.executable), silent)


@pytest.mark.parametrize("tool", ["nsys", "ncu"])
def test_a_tool_that_is_not_there(tmp_path: Path, target: Path, tool: Any) -> None:
    with pytest.raises(UsageError, match=f"{tool} is not installed: install .*--tool torch works without it"):
        profile(spec(tmp_path, target, tool=tool), silent)
    assert not (tmp_path / "profile").exists()


def test_a_tool_is_found_off_path(tmp_path: Path, bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for release in ("2024.1", "2025.3"):
        (tmp_path / release / "bin").mkdir(parents=True)
        script(tmp_path / release / "bin" / "nsys", "")
    monkeypatch.setattr(module, "TOOL_FOLDERS", (f"{tmp_path}/*/bin",))
    assert module.find_program("nsys").path == str(tmp_path / "2025.3" / "bin" / "nsys")


NSYS = """\
case "$1" in
--version) echo 'NVIDIA Nsight Systems version 2025.3.1.90-253135822126v0'; exit 0;;
profile)
    echo "$@" > {folder}/asked
    {profile}
    while :; do case "$1" in --output=*) break;; esac; shift; done
    base="${{1#--output=}}"; shift
    "$@" || exit $?
    : > "$base{end}";;
stats)
    case "$*" in *{knows}*) ;; *) echo 'ERROR: Report could not be found.' >&2; exit 1;; esac
    while [ "$1" != --output ]; do shift; done
    for file in {folder}/summaries/*.csv; do [ -e "$file" ] && /bin/cp "$file" "$2_${{file##*/}}"; done
    exit 0;;
esac"""


def fake_nsys(
    tmp_path: Path, summaries: dict[str, str], instead: str = "", end: str = ".nsys-rep", old: bool = False
) -> None:
    folder = tmp_path / "summaries"
    folder.mkdir()
    for name, text in summaries.items():
        (folder / f"{NSYS_REPORTS[name] if old else name}.csv").write_text(text)
    knows = "gpukernsum" if old else "cuda_gpu_kern_sum"
    script(tmp_path / "bin" / "nsys", NSYS.format(folder=tmp_path, profile=instead, end=end, knows=knows))


@pytest.mark.parametrize(
    ("summaries", "end", "old"), [(NSYS_2025, ".nsys-rep", False), (NSYS_2021, ".qdrep", True)], ids=["2025", "2021"]
)
def test_nsys(tmp_path: Path, target: Path, summaries: dict[str, str], end: str, old: bool) -> None:
    fake_nsys(tmp_path, summaries, end=end, old=old)
    found = profile(spec(tmp_path, target, tool="nsys"), silent)
    assert found.records == nsys_records(summaries, 3).records
    assert found.mode is None and found.tool_version == "2025.3.1.90"
    asked = (tmp_path / "asked").read_text()
    for option in ("--trace=cuda,nvtx", "--cuda-graph-trace=node", "--capture-range=cudaProfilerApi"):
        assert option in asked


def test_nsys_that_fails(tmp_path: Path, target: Path) -> None:
    fake_nsys(tmp_path, NSYS_2025, instead="echo 'Agent launcher failed.' >&2; exit 1")
    with pytest.raises(LoadgenError, match=r"nsys profile ended with exit code 1\. Its last lines:\n  Agent launcher"):
        profile(spec(tmp_path, target, tool="nsys"), silent)


def test_nsys_that_writes_no_report(tmp_path: Path, target: Path) -> None:
    fake_nsys(tmp_path, NSYS_2025, instead="echo 'No reports were generated'; exit 0")
    with pytest.raises(LoadgenError, match=r"wrote no report\. Its last lines:\n  No reports were generated"):
        profile(spec(tmp_path, target, tool="nsys"), silent)


def test_nsys_that_gives_no_summary(tmp_path: Path, target: Path) -> None:
    fake_nsys(tmp_path, {})
    with pytest.raises(LoadgenError, match="nsys stats gave no summary"):
        profile(spec(tmp_path, target, tool="nsys"), silent)


def test_the_targets_complaint_comes_through_nsys(tmp_path: Path, target: Path) -> None:
    script(target, """echo '{"error": "torch finds no GPU here", "usage": true}'\nexit 3""")
    fake_nsys(tmp_path, NSYS_2025)
    with pytest.raises(UsageError, match=r"^torch finds no GPU here$"):
        profile(spec(tmp_path, target, tool="nsys"), silent)


NCU = """\
[ "$1" = --version ] && {{ echo 'Version 2025.3.1.0 (build 36398880) (public-release)'; exit 0; }}
echo "$@" > {folder}/asked
while [ "$1" != --log-file ]; do shift; done
log="$2"
while [ "$1" != application-only ]; do shift; done; shift
"$@" || exit $?
{after}"""


def fake_ncu(tmp_path: Path, after: str) -> None:
    (tmp_path / "sample.csv").write_text(ncu_wide())
    script(tmp_path / "bin" / "ncu", NCU.format(folder=tmp_path, after=after))


def test_ncu(tmp_path: Path, target: Path) -> None:
    fake_ncu(tmp_path, f'/bin/cp {tmp_path}/sample.csv "$log"')
    found = profile(spec(tmp_path, target, tool="ncu"), silent)
    assert found.records == ncu_records(ncu_wide()).records
    assert found.tool_version == "2025.3.1.0"
    asked = (tmp_path / "asked").read_text()
    for option in ("--clock-control none", "--page raw", "--replay-mode kernel", "--profile-from-start off"):
        assert option in asked


@pytest.mark.parametrize("code", [0, 1])
def test_ncu_without_permission(tmp_path: Path, target: Path, code: int) -> None:
    words = "==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters"
    fake_ncu(tmp_path, f"echo '{words}' > \"$log\"\nexit {code}")
    with pytest.raises(UsageError, match=r"NVreg_RestrictProfilingToAdminUsers=0.*--tool torch"):
        profile(spec(tmp_path, target, tool="ncu"), silent)


def test_ncu_beside_another_profiler(tmp_path: Path, target: Path) -> None:
    words = (
        "==ERROR== Profiling failed because a driver resource was unavailable. Ensure that no other tool (like DCGM) "
        "is concurrently collecting profiling data."
    )
    fake_ncu(tmp_path, f"echo '{words}' >&2\nexit 9")
    with pytest.raises(UsageError, match=r"in use by another profiler\. DCGM"):
        profile(spec(tmp_path, target, tool="ncu"), silent)


def test_ncu_that_fails_or_profiles_nothing(tmp_path: Path, target: Path) -> None:
    fake_ncu(tmp_path, "echo '==ERROR== Failed to find metric' > \"$log\"\nexit 1")
    with pytest.raises(LoadgenError, match=r"ncu ended with exit code 1\. Its last lines:\n  ==ERROR== Failed to find"):
        profile(spec(tmp_path, target, tool="ncu"), silent)
    fake_ncu(tmp_path, "echo '==WARNING== No kernels were profiled.' > \"$log\"")
    with pytest.raises(LoadgenError, match=r"ncu profiled no kernel\. Its last lines:\n  ==WARNING== No kernels"):
        profile(spec(tmp_path, target, tool="ncu"), silent)


def test_the_targets_complaint_comes_through_ncu(tmp_path: Path, target: Path) -> None:
    script(target, """echo '{"error": "torch finds no GPU here", "usage": true}'\nexit 3""")
    fake_ncu(tmp_path, "")
    with pytest.raises(UsageError, match=r"^torch finds no GPU here$"):
        profile(spec(tmp_path, target, tool="ncu"), silent)


# --- under another profiler, and other refusals -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "who"),
    [
        ({"NSYS_PROFILING_SESSION_ID": "1"}, "runs under nsys"),
        ({"CUDA_INJECTION64_PATH": "/opt/libinject.so"}, "CUDA_INJECTION64_PATH is set"),
        ({"LD_PRELOAD": "/opt/ncu/libTreeLauncherTargetInjection.so"}, "runs under Nsight Compute"),
    ],
)
@pytest.mark.parametrize("tool", ["torch", "nsys", "ncu"])
def test_under_another_profiler(environ: dict[str, str], who: str, tool: Any) -> None:
    with pytest.raises(UsageError, match=who):
        check_alone(environ, tool)


def test_check_accepts_a_process_under_no_profiler() -> None:
    check_alone({"LD_PRELOAD": "/usr/lib/libjemalloc.so", "CUDA_INJECTION64_PATH": ""}, "torch")


def test_no_kernel_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        profile(spec(tmp_path, sys.executable, kernel=tmp_path / "nowhere.py"), silent)
    assert not (tmp_path / "profile").exists()


def test_no_calls(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one call"):
        profile(spec(tmp_path, sys.executable, calls=0), silent)


def test_the_target_says_where_in_the_kernel_file_it_failed(tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text("def inputs():\n    raise ValueError('first line\\nsecond')\n")
    scope: dict[str, Any] = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    with pytest.raises(ValueError) as caught:
        scope["inputs"]()
    assert in_words(caught.value, path) == f"{path}:2: ValueError: first line"
    assert in_words(Refused(), path) == f"{path}: Refused"
