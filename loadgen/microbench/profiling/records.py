"""What profilers say of a kernel, as records: torch.profiler's trace, nsys' summaries, ncu's counters.

All pure: text or decoded JSON in, records and notes out. A note names what a profiler left out, so that
a missing figure is never read as a zero.
"""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

Tool = Literal["torch", "nsys", "ncu"]
Mode = Literal["bare", "schedule", "toggle"]
Kind = Literal["call", "kernel", "api", "memory_copy", "overhead", "counter"]
KINDS: tuple[Kind, ...] = ("call", "kernel", "counter", "api", "memory_copy", "overhead")

CALL = "loadgen.call"  # the range around each call of the implementation, in the trace and in NVTX
INPUTS = "loadgen.inputs"
LAUNCHES = ("cuda_runtime", "cuda_driver")
TRACE_KINDS: dict[str, Kind] = {
    "kernel": "kernel",
    "gpu_memcpy": "memory_copy",
    "gpu_memset": "memory_copy",
    "cuda_runtime": "api",
    "cuda_driver": "api",
    "overhead": "overhead",
}


class ProfileRecord(msgspec.Struct, kw_only=True):
    """One name in a profile: a line of profile.jsonl.

    Attributes:
        tool: the profiler.
        mode: torch.profiler's; None with the others.
        kind: ``call``, the host's time for a call of the implementation; ``kernel``, GPU time of a kernel;
            ``api``, host time in a call of the CUDA runtime or driver; ``memory_copy``, GPU time of copies
            and sets; ``overhead``, the profiler's own time, and modules loaded lazily; ``counter``, a kernel
            replayed under ncu, whose times compare with no other kind's.
        name: as the profiler writes it, in full.
        calls: how many were seen; None where the profiler does not say.
        total_s, median_s, min_s, max_s: over all calls, the first included.
        first_s: the one that began first; None where only a summary is known.
        values: numbers beside. ``per_call``: how many belong to one call of the implementation, 0 for what
            is outside the calls (making inputs, waiting). ``bytes``: of copies, the sum. With kind
            ``counter``, medians by ncu's metric names, in bytes, seconds and percent.
    """

    tool: Tool
    mode: Mode | None = None
    kind: Kind
    name: str
    calls: int | None = None
    total_s: float | None = None
    first_s: float | None = None
    median_s: float | None = None
    min_s: float | None = None
    max_s: float | None = None
    values: dict[str, float] = {}


class Facts(msgspec.Struct, kw_only=True):
    """What was profiled, and on what: the target writes it as facts.json.

    Attributes:
        params: of the case.
        calls: of the implementation within the profile.
        l2_bytes: the device's L2, as the driver says.
        tensor_bytes: of the case's tensors, outputs included.
        least_bytes, flops: by the kernel file's ``traffic``, for one call.
        versions: of torch, its CUDA, and triton.
    """

    kernel: str
    implementation: str
    params: dict[str, Any]
    calls: int
    device: str
    compute_capability: tuple[int, int]
    l2_bytes: int
    tensor_bytes: int
    least_bytes: float
    flops: float
    versions: dict[str, str] = {}

    @property
    def touched_bytes(self) -> float:
        """Distinct bytes that a call reads or writes, at most: a cache may hold more tensors than are read."""
        return min(self.tensor_bytes, self.least_bytes)

    @property
    def l2_state(self) -> Literal["warm", "partly", "cold"]:
        """Whether a call finds in L2 what the call before it left there.

        ``cold`` from four times the L2 on: with a least-recently-used cache nothing would survive from one
        times on, but the hardware's policy is not that, and keeps a part.
        """
        if self.touched_bytes <= self.l2_bytes:
            return "warm"
        return "partly" if self.touched_bytes < 4 * self.l2_bytes else "cold"


class Parsed(NamedTuple):
    """Records, and in words what could not be had."""

    records: list[ProfileRecord]
    notes: list[str]


class _Spans(NamedTuple):
    """The calls' ranges on the host, in the trace's microseconds, in order."""

    starts: list[float]
    ends: list[float]

    def holds(self, moment: float) -> bool:
        index = bisect_right(self.starts, moment) - 1
        return index >= 0 and moment <= self.ends[index]


def trace_records(events: Iterable[Mapping[str, Any]], mode: Mode, calls: int) -> Parsed:
    """Records of a Chrome trace of torch.profiler.

    A kernel belongs to the calls when its launch (the same correlation) lies within one.

    Args:
        events: the trace's ``traceEvents``; ``ts`` and ``dur`` in microseconds.
        calls: how many calls of the implementation the trace is to hold.
    """
    complete = [e for e in events if e.get("ph") == "X" and "ts" in e and "dur" in e]
    complete.sort(key=lambda event: float(event["ts"]))
    marked = [e for e in complete if e.get("cat") == "user_annotation" and e.get("name") == CALL]
    spans = _Spans([e["ts"] for e in marked], [e["ts"] + e["dur"] for e in marked])
    launched = {
        e["args"]["correlation"]: float(e["ts"])
        for e in complete
        if e.get("cat") in LAUNCHES and "correlation" in e.get("args", {})
    }
    notes = []
    if not marked:
        notes.append("the trace has no marks of the calls: all that it holds is counted as theirs")
    elif len(marked) != calls:
        notes.append(f"the trace has {len(marked)} of the {calls} calls")

    groups: dict[tuple[Kind, str, bool], list[Mapping[str, Any]]] = {}
    for event in complete:
        kind = TRACE_KINDS.get(str(event.get("cat")))
        if kind is None:
            continue
        moment = float(event["ts"])
        if kind in ("kernel", "memory_copy"):
            moment = launched.get(event.get("args", {}).get("correlation"), moment)
        inside = not marked or spans.holds(moment)
        groups.setdefault((kind, str(event["name"]), inside), []).append(event)
    if marked:
        groups["call", CALL, True] = marked

    counted = len(marked) or calls
    records = [_trace_record(mode, *key, found, counted) for key, found in groups.items()]
    for record in records:
        share = record.values["per_call"]
        if record.kind == "kernel" and share and share != round(share):
            notes.append(
                f"{record.calls} runs of {record.name} in {counted} calls: not the same number in each, or the "
                "profiler lost some"
            )
    records.sort(key=_rank)
    return Parsed(records, notes)


def _trace_record(
    mode: Mode, kind: Kind, name: str, inside: bool, events: list[Mapping[str, Any]], calls: int
) -> ProfileRecord:
    values = {"per_call": len(events) / calls if inside and calls else 0.0}
    arguments: Mapping[str, Any] = events[0].get("args", {})
    if kind == "kernel":
        values.update(_launch_values(arguments))
    if kind == "memory_copy":
        values["bytes"] = float(sum(e.get("args", {}).get("bytes", 0) for e in events))
    return _timed("torch", mode, kind, name, [float(event["dur"]) * 1e-6 for event in events], values)


def _launch_values(arguments: Mapping[str, Any]) -> dict[str, float]:
    """Of a kernel's first launch; others of the same name may differ."""
    names = {
        "registers per thread": "registers_per_thread",
        "shared memory": "shared_memory_bytes",
        "est. achieved occupancy %": "occupancy_estimate_pct",
    }
    values = {ours: float(arguments[theirs]) for theirs, ours in names.items() if theirs in arguments}
    for theirs, ours in (("grid", "blocks"), ("block", "threads_per_block")):
        if arguments.get(theirs):
            values[ours] = float(math.prod(arguments[theirs]))
    return values


def _timed(
    tool: Tool, mode: Mode | None, kind: Kind, name: str, seconds: list[float], values: dict[str, float]
) -> ProfileRecord:
    """A record of times in the order in which they were taken."""
    return ProfileRecord(
        tool=tool, mode=mode, kind=kind, name=name, calls=len(seconds), total_s=math.fsum(seconds), first_s=seconds[0],
        median_s=statistics.median(seconds), min_s=min(seconds), max_s=max(seconds), values=values,
    )  # fmt: skip


def _rank(record: ProfileRecord) -> tuple[int, bool, float]:
    """By kind, the calls' own first, and the longest first."""
    return KINDS.index(record.kind), not record.values.get("per_call", 1.0), -(record.total_s or 0.0)


# --- nsys stats -------------------------------------------------------------------------------------------------------

# Report -> what it was called before nsys 2022.5. Old names are asked for when a release does not know the new ones.
NSYS_REPORTS = {
    "cuda_gpu_kern_sum": "gpukernsum",
    "cuda_api_sum": "cudaapisum",
    "cuda_gpu_mem_time_sum": "gpumemtimesum",
    "cuda_gpu_mem_size_sum": "gpumemsizesum",
}
_NSYS_KINDS: dict[str, Kind] = {
    "cuda_gpu_kern_sum": "kernel", "cuda_api_sum": "api", "cuda_gpu_mem_time_sum": "memory_copy",
}  # fmt: skip
# Column -> its names in the releases, without the unit, in lower case.
_NSYS_COLUMNS = {
    "name": ("name", "operation", "kernel name"),
    "total": ("total time", "total"),
    "calls": ("instances", "num calls", "calls", "count", "operations"),
    "median": ("med", "median"),
    "min": ("min", "minimum"),
    "max": ("max", "maximum"),
}
_UNITS = {
    "ns": 1e-9, "nsec": 1e-9, "nsecond": 1e-9, "us": 1e-6, "usec": 1e-6, "usecond": 1e-6, "ms": 1e-3, "msec": 1e-3,
    "msecond": 1e-3, "s": 1.0, "sec": 1.0, "second": 1.0,
    "b": 1.0, "byte": 1.0, "kb": 1e3, "kbyte": 1e3, "mb": 1e6, "mbyte": 1e6, "gb": 1e9, "gbyte": 1e9, "tbyte": 1e12,
    "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30,
}  # fmt: skip


class _Table(NamedTuple):
    """A summary's rows, each by our column names, in seconds or bytes; and the columns that it lacks."""

    rows: list[dict[str, Any]]
    missing: list[str]


def _number(text: str) -> float | None:
    """``"1,234.5"`` as a number; None for ``n/a`` and for nothing."""
    try:
        value = float(text.replace(",", "").strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _nsys_table(text: str, default_unit: str | None) -> _Table | None:
    """A summary of ``nsys stats -f csv``, whatever nsys says before it; None where there is no table.

    Args:
        default_unit: of columns that name none; None leaves those out.
    """
    lines = list(csv.reader(io.StringIO(text)))
    start = next(
        (i for i, line in enumerate(lines) if len(line) >= 3 and "name" in (_column(c)[0] for c in line)), None
    )
    if start is None:
        return None
    head = lines[start]
    columns = [_column(cell) for cell in head]
    rows: list[dict[str, Any]] = []
    for line in lines[start + 1 :]:
        if len(line) != len(head):
            if line:
                break  # the text after the table
            continue
        row: dict[str, Any] = {}
        for (column, unit), cell in zip(columns, line, strict=True):
            if column == "name":
                row[column] = cell
            elif column == "calls":
                row[column] = _number(cell)
            elif column is not None and (scale := _UNITS.get(unit or default_unit or "")) is not None:
                value = _number(cell)
                row[column] = None if value is None else value * scale
        rows.append(row)
    usable = {column for column, unit in columns if column in ("name", "calls") or unit or default_unit}
    return _Table(rows, [column for column in _NSYS_COLUMNS if column not in usable])


def _column(cell: str) -> tuple[str | None, str | None]:
    """Our name of a column, None for one that is not read, and its unit in lower case."""
    match = re.fullmatch(r"\s*(.*?)\s*(?:\(([^)]*)\))?\s*", cell)
    assert match is not None
    name, unit = match[1].lower(), (match[2] or "").lower() or None
    if unit == "%":
        return None, unit
    return next((ours for ours, theirs in _NSYS_COLUMNS.items() if name in theirs), None), unit


def nsys_records(summaries: Mapping[str, str | None], calls: int) -> Parsed:
    """Records of nsys' summaries.

    Args:
        summaries: CSV text by the report's name of today (see :data:`NSYS_REPORTS`); None for one that nsys
            wrote no file for, which it does where there is nothing to sum up.
        calls: calls of the implementation within the captured range, which holds nothing else.
    """
    records: list[ProfileRecord] = []
    notes: list[str] = []
    for report, kind in _NSYS_KINDS.items():
        table = _read_nsys(report, summaries.get(report), "ns", notes)
        for row in table.rows if table is not None else []:
            count = row.get("calls")
            records.append(
                ProfileRecord(
                    tool="nsys", kind=kind, name=row["name"], calls=None if count is None else int(count),
                    total_s=row.get("total"), median_s=row.get("median"), min_s=row.get("min"), max_s=row.get("max"),
                    values={} if count is None or not calls else {"per_call": count / calls},
                )
            )  # fmt: skip
    sizes = _read_nsys("cuda_gpu_mem_size_sum", summaries.get("cuda_gpu_mem_size_sum"), None, notes)
    copies = {record.name: record for record in records if record.kind == "memory_copy"}
    for row in sizes.rows if sizes is not None else []:
        if row.get("total") is None:
            continue
        record = copies.get(row["name"])
        if record is None:
            record = ProfileRecord(tool="nsys", kind="memory_copy", name=row["name"], values={})
            records.append(record)
        record.values["bytes"] = row["total"]
    records.sort(key=_rank)
    return Parsed(records, notes)


def _read_nsys(report: str, text: str | None, unit: str | None, notes: list[str]) -> _Table | None:
    table = None if text is None else _nsys_table(text, unit)
    if table is None or not table.rows:
        notes.append(
            f"nsys has no {report}: {'no copy and no set was captured' if '_mem_' in report else 'it saw none'}"
        )
        return None
    if table.missing:
        notes.append(f"{report} of this nsys has no column for {', '.join(table.missing)}: left out")
    return table


# --- ncu --------------------------------------------------------------------------------------------------------------

DURATION = "gpu__time_duration.sum"
OCCUPANCY_LIMITS = {
    "launch__occupancy_limit_registers": "registers",
    "launch__occupancy_limit_shared_mem": "shared memory",
    "launch__occupancy_limit_warps": "warps",
    "launch__occupancy_limit_blocks": "blocks",
}
NCU_METRICS = (
    DURATION,
    "dram__bytes.sum",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed",
    "lts__t_sector_hit_rate.pct",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "launch__registers_per_thread",
    "launch__grid_size",
    "launch__block_size",
    "launch__waves_per_multiprocessor",
    *OCCUPANCY_LIMITS,
)


def ncu_records(text: str) -> Parsed:
    """One record a kernel of ``ncu --csv``: a column for each metric (--page raw), or a row for each.

    ncu's own lines, which start with ``==``, may stand before, between and after. Of the metrics only those of
    :data:`NCU_METRICS` are kept: a release of 2025 adds some 250 facts about the device.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("==")]
    table = list(csv.reader(lines))
    start = next((index for index, row in enumerate(table) if "Kernel Name" in row), None)
    if start is None:
        return Parsed([], ["ncu wrote no table"])
    head = table[start]
    rows = [dict(zip(head, row, strict=True)) for row in table[start + 1 :] if len(row) == len(head)]
    launches = _long_launches(rows) if "Metric Name" in head else _wide_launches(rows)
    by_name: dict[str, list[dict[str, float]]] = {}
    for name, metrics in launches:
        by_name.setdefault(name, []).append(metrics)
    records = []
    for name, found in by_name.items():
        times = [metrics[DURATION] for metrics in found if DURATION in metrics]
        values = {
            metric: statistics.median(m[metric] for m in found if metric in m)
            for metric in dict.fromkeys(key for metrics in found for key in metrics)
            if metric in NCU_METRICS and metric != DURATION
        }
        if times:
            record = _timed("ncu", None, "counter", name, times, values)
            record.calls = len(found)
        else:
            record = ProfileRecord(tool="ncu", kind="counter", name=name, calls=len(found), values=values)
        records.append(record)
    seen = {metric for _, metrics in launches for metric in metrics}
    missing = [metric for metric in NCU_METRICS if metric not in seen]
    notes = [f"ncu gives no {', '.join(missing)} on this GPU: left out"] if records and missing else []
    records.sort(key=_rank)
    return Parsed(records, notes)


def _wide_launches(rows: list[dict[str, str]]) -> list[tuple[str, dict[str, float]]]:
    """The first row gives the units: it has no ID."""
    units: dict[str, str] = {}
    launches = []
    for row in rows:
        if not row.get("ID"):
            units = row
            continue
        metrics = {}
        for metric, cell in row.items():
            value = _number(cell)
            if "__" in metric and value is not None:
                metrics[metric] = value * _ncu_scale(units.get(metric, ""))
        launches.append((row["Kernel Name"], metrics))
    return launches


def _long_launches(rows: list[dict[str, str]]) -> list[tuple[str, dict[str, float]]]:
    launches: dict[str, tuple[str, dict[str, float]]] = {}
    for row in rows:
        value = _number(row.get("Metric Value", ""))
        _, metrics = launches.setdefault(row.get("ID", ""), (row["Kernel Name"], {}))
        if value is not None and "__" in row["Metric Name"]:
            metrics[row["Metric Name"]] = value * _ncu_scale(row.get("Metric Unit", ""))
    return list(launches.values())


def _ncu_scale(unit: str) -> float:
    """``Kbyte/block`` is 1,000; what is neither a time nor bytes stays as it is."""
    return _UNITS.get(unit.partition("/")[0].strip().lower(), 1.0)
