"""A profile for people: a table for 80 columns, and what each figure includes and what it does not."""

from __future__ import annotations

import re
import textwrap

import msgspec

from loadgen.microbench.profiling.records import (
    CALL,
    OCCUPANCY_LIMITS,
    Facts,
    Kind,
    Mode,
    ProfileRecord,
    Tool,
)

WIDTH = 80
SLOW_FIRST = 2.0  # a first time from this many medians on is said to pay for something once
SHORT_KERNEL_S = 5e-6

HEADINGS: dict[Kind, str] = {
    "call": "host: a call from Python",
    "kernel": "GPU kernel",
    "api": "host: CUDA runtime and driver",
    "memory_copy": "GPU copies and sets",
    "overhead": "profiler, and modules loaded",
    "counter": "GPU kernel, replayed",
}
COUNTERS = {
    "dram__bytes.sum": "bytes moved by DRAM",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "DRAM throughput",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "SM throughput",
    "lts__t_sector_hit_rate.pct": "L2 hit rate",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps active (occupancy)",
    "launch__registers_per_thread": "registers a thread",
    "launch__grid_size": "blocks",
    "launch__block_size": "threads a block",
    "launch__waves_per_multiprocessor": "waves",
}


class Profile(msgspec.Struct, kw_only=True):
    """What ``kernels profile`` found.

    Attributes:
        tool_version: nsys' or ncu's; torch's is among the facts' versions.
        notes: what could not be had.
        files: written, by what they are for.
    """

    tool: Tool
    mode: Mode | None
    tool_version: str | None
    facts: Facts
    records: list[ProfileRecord]
    notes: list[str]
    files: dict[str, str] = {}


def format_us(seconds: float | None) -> str:
    """Microseconds, as many decimals as nine characters have room for; seconds from 10 s on; ``-`` for None."""
    if seconds is None:
        return "-"
    us = seconds * 1e6
    if us >= 1e7:
        return f"{seconds:,.1f} s"
    return f"{us:,.2f}" if us < 100 else f"{us:,.1f}" if us < 10_000 else f"{us:,.0f}"


def format_bytes(count: float) -> str:
    """Decimal units, three digits."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count:,.0f} B"


def short_name(name: str, width: int) -> str:
    """A kernel's name without return type, torch's namespaces and parameters, cut to a width."""
    text = re.sub(r"^void ", "", name)
    text = re.sub(r"\((?:anonymous namespace|unnamed)\)::|at::native::", "", text)
    if not text.startswith("["):  # nsys' copies: [CUDA memset]
        text = re.sub(r"(?<=[\w>])\(.*", "", text)
    text = text or name
    return text if len(text) <= width else text[: width - 3] + "..."


def render(profile: Profile) -> str:
    """Heading, tables, what they mean, notes, files."""
    facts = profile.facts
    program = {"torch": "torch.profiler", "nsys": "nsys", "ncu": "ncu"}[profile.tool]
    mode = f", mode {profile.mode}" if profile.mode else ""
    version = profile.tool_version or (facts.versions.get("torch") if profile.tool == "torch" else None)
    params = ", ".join(f"{name} {value}" for name, value in facts.params.items())
    major, minor = facts.compute_capability
    parts = [
        "\n".join(
            _fill(line)
            for line in (
                f"{facts.kernel}, {facts.implementation}: {params}",
                f"{facts.device} (sm_{major}{minor}), {program}{f' {version}' if version else ''}{mode}, "
                f"{facts.calls} calls; times in us",
            )
        )
    ]
    for kind in HEADINGS:
        found = [record for record in profile.records if record.kind == kind]
        if kind == "counter":
            parts += [_counters(record) for record in found]
        elif found:
            parts.append(_table(kind, found))
    parts += [_fill(text) for text in explain(profile.tool, profile.mode, profile.records, facts)]
    parts += [_fill(f"Note: {note}") for note in profile.notes]
    if profile.files:  # not wrapped, so that a path can be copied
        parts.append("\n".join(f"{what}: {path}" for what, path in profile.files.items()))
    return "\n\n".join(parts) + "\n"


def _fill(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _table(kind: Kind, records: list[ProfileRecord]) -> str:
    last = "bytes" if kind == "memory_copy" else "max"
    lines = [f"{HEADINGS[kind]:<34}{'calls':>6}{'first':>10}{'median':>10}{'min':>10}{last:>10}", "-" * WIDTH]
    outside = False
    for record in records:
        if not outside and not record.values.get("per_call", 1.0) and kind != "overhead":
            outside = True
            lines.append("  outside the calls (making inputs, waiting):")
        name = "the call" if record.name == CALL else short_name(record.name, 33)
        cells = [format_us(value) for value in (record.first_s, record.median_s, record.min_s)]
        moved = record.values.get("bytes")
        end = format_us(record.max_s) if kind != "memory_copy" else "-" if moved is None else format_bytes(moved)
        count = "-" if record.calls is None else f"{record.calls:,}"
        lines.append(f"{name:<34}{count:>6}" + "".join(f"{cell:>10}" for cell in [*cells, end]))
    return "\n".join(lines)


def _counters(record: ProfileRecord) -> str:
    lines = [short_name(record.name, WIDTH), "-" * WIDTH]

    def row(label: str, value: str) -> None:
        lines.append(f"  {label:<34}{value:>16}")

    row("replayed launches", "-" if record.calls is None else f"{record.calls:,}")
    row("duration, median, us", format_us(record.median_s))
    row("duration, min to max, us", f"{format_us(record.min_s)} to {format_us(record.max_s)}")
    for metric, value in record.values.items():
        if metric in OCCUPANCY_LIMITS:
            continue
        text = format_bytes(value) if "bytes" in metric else f"{value:.1f} %" if "pct" in metric else f"{value:,.4g}"
        row(COUNTERS.get(metric, metric), text)
    limits = _limits(record)
    if limits:
        row("blocks an SM can hold, at most", f"{min(limits.values()):,.0f}")
    return "\n".join(lines)


def _limits(record: ProfileRecord) -> dict[str, float]:
    return {name: record.values[metric] for metric, name in OCCUPANCY_LIMITS.items() if metric in record.values}


# --- what the figures mean --------------------------------------------------------------------------------------------


def gpu_time_per_call_s(records: list[ProfileRecord]) -> float | None:
    """GPU time of one call: the medians of its kernels and copies, without the gaps between; None where unknown."""
    parts = [
        record.median_s * record.values.get("per_call", 0.0)
        for record in records
        if record.kind in ("kernel", "memory_copy") and record.median_s is not None
    ]
    return sum(parts) or None


def explain(tool: Tool, mode: Mode | None, records: list[ProfileRecord], facts: Facts) -> list[str]:
    """What each figure includes and what it does not: paragraphs, made from the figures."""
    if tool == "ncu":
        return _explain_ncu(records, facts)
    own = [record for record in records if record.values.get("per_call")]
    kernels = [record for record in own if record.kind == "kernel"]
    texts = [_scope(tool, mode, facts)]
    texts += [_explain_call(record) for record in own if record.kind == "call"]
    launch = max((r for r in own if r.kind == "api" and "Launch" in r.name), key=lambda r: r.calls or 0, default=None)
    if launch is not None:
        texts.append(_explain_launch(launch))
    if kernels:
        texts.append(_explain_kernel(kernels[0]))
        if len(kernels) > 1 and (seconds := gpu_time_per_call_s(records)) is not None:
            texts.append(
                f"GPU time: a call runs {len(kernels)} different kernels; the medians of all that it runs sum up to "
                f"{format_us(seconds)} us, without the gaps between them."
            )
        texts.append(_explain_l2(records, facts))
    texts.append(_explain_cost(tool, records, kernels))
    return texts


def _scope(tool: Tool, mode: Mode | None, facts: Facts) -> str:
    if tool == "nsys":
        return (
            "Scope: nsys recorded the calls alone. One call went before, unrecorded, so that compiling and loading the "
            "kernel are in no figure, and nsys sums up without telling the first launch apart; --tool torch --mode "
            "bare shows it. Kernels inside CUDA graphs are listed one by one, which costs the graph some time."
        )
    if mode == "bare":
        return (
            "Scope: everything from the start is recorded, making the inputs included, and the first call is the "
            "process' first: compiling, loading and a cold cache are in the first column."
        )
    if mode == "schedule":
        return (
            f"Scope: of {facts.calls + 2} calls the first was run without recording, the second with the profiler "
            f"warming up, and the last {facts.calls} were recorded. Compiling and loading the kernel are in no "
            "figure: all are steady ones. What a first call costs, --mode bare shows."
        )
    return (
        "Scope: collection was off, for CPU and CUDA together, while the inputs were made, and on from the first call "
        "to the last: the trace holds the calls alone, and what the first one pays for once. Switching collection "
        "waits for the GPU and costs time itself, so it stands around all calls, never around each."
    )


def _paid(first: float, median: float) -> str:
    return f"{first / median:,.0f} times the median" if median > 0 else "more than the median"


def _explain_call(record: ProfileRecord) -> str:
    assert record.first_s is not None and record.median_s is not None
    text = "Call: the host's time from entering the implementation to its return. The GPU works on after that. "
    if record.first_s >= SLOW_FIRST * record.median_s:
        return text + (
            f"The first took {format_us(record.first_s)} us, {_paid(record.first_s, record.median_s)} "
            f"({format_us(record.median_s)} us): it compiles the kernel just in time, or finds it in the compiler's "
            "cache on disk, and loads its module, which CUDA does with a kernel's first use. No GPU time is in it but "
            "what it waited for."
        )
    return text + (
        f"The first, {format_us(record.first_s)} us, cost about as much as the median, {format_us(record.median_s)} "
        "us: the kernel was compiled and loaded before."
    )


def _explain_launch(record: ProfileRecord) -> str:
    text = f"Launch: {record.name} is the host's time to hand a kernel to the GPU, not the kernel's. "
    if record.first_s is None or record.median_s is None:
        return text + "This summary does not tell the first one apart."
    if record.first_s >= SLOW_FIRST * record.median_s:
        return text + (
            f"The first in the calls took {format_us(record.first_s)} us, {_paid(record.first_s, record.median_s)} "
            f"({format_us(record.median_s)} us): what CUDA loads lazily is loaded in it. A launch that a compiler "
            "loaded the module for beforehand (Triton does) shows that cost in the call instead."
        )
    return text + (
        f"The first in the calls took {format_us(record.first_s)} us, the median {format_us(record.median_s)} us: no "
        "module was loaded in it."
    )


def _explain_kernel(record: ProfileRecord) -> str:
    text = (
        f"Kernel: GPU time from the start of {short_name(record.name, 60)} to its end, by the GPU's own stamps: no "
        "launch, no wait in the queue, no gap to the next. "
    )
    if record.first_s is not None and record.median_s is not None:
        many = "" if record.calls is None else f" of {record.calls:,}"
        text += f"First {format_us(record.first_s)} us, median{many}: {format_us(record.median_s)} us"
        text += (
            ": the first met cold caches, cold address translation, or clocks still low. "
            if record.first_s >= SLOW_FIRST * record.median_s
            else ". "
        )
    if record.median_s is not None and record.median_s < SHORT_KERNEL_S:
        text += "At so few microseconds much of it is the fixed cost of starting and draining a grid."
    return text.rstrip()


def _explain_l2(records: list[ProfileRecord], facts: Facts) -> str:
    touched, l2 = format_bytes(facts.touched_bytes), format_bytes(facts.l2_bytes)
    seconds = gpu_time_per_call_s(records)
    rate = "" if seconds is None else f" ({facts.least_bytes / seconds / 1e9:,.0f} GB/s of the least traffic)"
    text = f"L2: every call uses the same inputs, {touched} of distinct bytes at most, and this GPU's L2 is {l2}. "
    if facts.l2_state == "warm":
        return text + (
            f"They fit: a steady figure{rate} is an L2-warm figure, not a rate of the GPU's memory, and may well lie "
            "above it. In a server other layers' weights pass through the L2 in between; `kernels bench` measures that."
        )
    if facts.l2_state == "partly":
        return text + f"They do not fit, but a part survives from call to call: a steady figure{rate} is partly warm."
    return text + (
        f"They are more than four times that, so hardly any survives from call to call: a steady figure{rate} is close "
        "to what memory gives."
    )


def _times(calls: int | None) -> str:
    return "1 time" if calls == 1 else f"{calls} times"


def _explain_cost(tool: Tool, records: list[ProfileRecord], kernels: list[ProfileRecord]) -> str:
    text = (
        "Profiler: a callback at each CUDA call lengthens the host's times (call, launch), so that gaps on the GPU "
        "grow; the GPU's times are hardly touched."
    )
    overhead = [record for record in records if record.kind == "overhead" and record.total_s]
    if overhead:
        seen = "; ".join(f"{r.name}, {_times(r.calls)}, {format_us(r.total_s)} us" for r in overhead)
        text += f" It says of itself: {seen}."
        if "Loading" in seen:
            text += " The loading among these is no profiling: CUDA does it with the first use, profiled or not."
    elif tool == "torch":
        text += " It recorded no overhead of its own here, which does not mean that there was none."
    if not kernels:
        text += " No kernel was recorded within the calls."
    return text


def _explain_ncu(records: list[ProfileRecord], facts: Facts) -> list[str]:
    texts = [
        "Scope: ncu runs each launch several times, once for each group of counters that fits the hardware, with "
        "memory restored in between, and one launch at a time. Before each run it flushes the caches "
        "(--cache-control all): these are cold figures, whatever the calls before left in L2, and the hit rate is of "
        "what a launch reuses within itself. Clocks are left as they are (--clock-control none), so durations vary "
        "with them. The duration is the GPU's, without the launch. Compare it with a steady figure of --tool torch to "
        "see what a warm L2 gives.",
    ]
    found = [record for record in records if record.kind == "counter"]
    moved = [r.values["dram__bytes.sum"] * (r.calls or 0) for r in found if "dram__bytes.sum" in r.values]
    if moved and facts.calls and facts.least_bytes > 0:
        per_call = sum(moved) / facts.calls
        ratio = per_call / facts.least_bytes
        text = (
            f"Bytes: DRAM moved {format_bytes(per_call)} for a call, {ratio:.2f} times the least that the kernel file "
            f"computes ({format_bytes(facts.least_bytes)}). "
        )
        text += (
            "Less than the least: what was written last still lay in L2 when the launch ended."
            if ratio < 0.98
            else "More: data is fetched twice, or sectors are fetched of which a part is used."
            if ratio > 1.1
            else "That is about the least."
        )
        texts.append(text)
    for record in found:
        limits = _limits(record)
        if limits:
            least = min(limits.values())
            names = " and ".join(name for name, value in limits.items() if value == least)
            texts.append(
                f"Occupancy: {names} limit{'s' if names == 'shared memory' else ''} {short_name(record.name, 40)} to "
                f"{least:,.0f} blocks an SM."
            )
    return texts
