"""The table of a benchmark of kernels, for a terminal of 80 columns or a log file."""

from __future__ import annotations

import textwrap
from typing import Any

from loadgen.microbench.records import KernelManifest, KernelRecord
from loadgen.report.text import WIDTH

HEAD = (
    "                              us    +-%   GB/s TFLOP/s  roof  against the best",
    "-" * 78,
)
# Parameters that every case of a model has alike, or that its label says already.
UNSAID = {"dtype", "hidden", "head_size", "vocab"}


def render(manifest: KernelManifest, records: list[KernelRecord], notes: bool = True) -> str:
    """The whole text.

    Args:
        notes: whether to list each record's remarks too.
    """
    wrapped = [textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False) for line in heading(manifest)]
    parts = ["\n".join(wrapped)]
    if not records:
        return "\n\n".join([*parts, "Nothing was measured."]) + "\n"
    parts.append("\n".join([*HEAD, *_rows(records)]))
    parts.append(
        "\n".join(
            textwrap.fill(line, WIDTH, subsequent_indent="  ")
            for line in (
                "us: median time of one call in a CUDA graph; +-%: half its 95 % interval. roof: the least time by the "
                "measured peaks, over this. against: the best baseline's time over this one's, paired windows; = no "
                "difference seen. Names in (brackets) are baselines.",
                "serving: weights and KV cache from memory, activations in cache; cold: nothing in cache; hot: all.",
            )
        )
    )
    if notes:
        parts += _remarks(records)
    parts += [textwrap.fill(f"Note: {note}", WIDTH, subsequent_indent="  ") for note in manifest.notes]
    return "\n\n".join(part for part in parts if part) + "\n"


def heading(manifest: KernelManifest) -> list[str]:
    """The device, what it was measured to do, and where the cases come from: a line each."""
    device, peaks = manifest.device, manifest.peaks
    if device is None or peaks is None:
        return ["No device was measured."]
    gpu: dict[str, Any] = next((g for g in manifest.gpus if g["uuid"] == device.uuid), {})
    sheet = f" (data sheet {gpu['bandwidth_gbs']:,.0f})" if gpu.get("bandwidth_gbs") else ""
    matrix = f" (data sheet {gpu['bf16_tflops']:,.0f})" if gpu.get("bf16_tflops") else ""
    versions = ", ".join(f"{name} {value}" for name, value in device.versions.items() if name != "python")
    lines = [
        f"{device.name}, sm_{device.compute_capability[0]}{device.compute_capability[1]}, {device.multiprocessors} "
        f"multiprocessors, {device.l2_bytes / 2**20:.0f} MiB L2; {versions}",
        f"measured: copy {peaks.copy_bytes_per_s / 1e9:,.0f} GB/s, read {peaks.read_bytes_per_s / 1e9:,.0f} "
        f"GB/s{sheet}, bf16 {peaks.matrix_flops.get('bfloat16', 0) / 1e12:,.0f} TFLOP/s{matrix}, "
        f"{peaks.empty_kernel_s * 1e6:.2f} us from one empty kernel to the next",
    ]
    if manifest.model is not None:
        steps = ", ".join(step.name for step in manifest.steps)
        lines.append(f"{manifest.model.name}, {manifest.model.dtype}; steps (sequences x context): {steps}")
    return lines


def case_words(record: KernelRecord) -> str:
    """A case: its label and its sizes."""
    names = [f"{key}={value}" for key, value in record.params.items() if key not in UNSAID]
    return " ".join([record.label, *names] if record.label else names)


def _rows(records: list[KernelRecord]) -> list[str]:
    rows: list[str] = []
    kernel, case = "", ""
    for record in records:
        if record.status == "skipped" and not record.own:
            continue  # a baseline that is not installed
        if record.kernel != kernel:
            kernel, case = record.kernel, ""
            rows.append(kernel)
        name = f"{case_words(record)} [{record.state}]"
        if name != case:
            case = name
            rows += [f"  {line}" for line in textwrap.wrap(case, WIDTH - 2, subsequent_indent="  ")]
        rows.append(_row(record))
    return rows


def _row(record: KernelRecord) -> str:
    name = record.implementation if record.own else f"({record.implementation})"
    head = f"    {name[:20]:<20}"
    if record.time_s is None:
        text = textwrap.shorten(f"{record.status.replace('_', ' ')}: {record.message or ''}", 160, placeholder="...")
        return textwrap.fill(text, WIDTH, initial_indent=f"{head} ", subsequent_indent=" " * len(f"{head} "))
    half = ""
    if record.ci95_s is not None:
        half = f"{(record.ci95_s[1] - record.ci95_s[0]) / 2 / record.time_s * 100:.1f}"
    us = record.time_s * 1e6
    gbs = f"{record.bytes_per_s / 1e9:,.0f}" if record.bytes_per_s else ""
    tflops = f"{record.flops_per_s / 1e12:,.1f}" if record.flops_per_s and record.flops_per_s > 1e12 else ""
    roof = "" if record.roof_share is None else f"{record.roof_share:.0%}"
    ratio = ""
    if record.best_baseline is not None:
        found = record.best_baseline
        mark = {"faster": "x", "slower": "x", "same": "x ="}[found.word]
        ratio = f"{found.ratio:.2f}{mark} {found.baseline}"
    row = f"{head}{us:>9,.{1 if us < 1000 else 0}f}{half:>7}{gbs:>7}{tflops:>8}{roof:>6}  {ratio}"
    return row.rstrip() + (" *" if record.notes else "")


def _remarks(records: list[KernelRecord]) -> list[str]:
    """Each remark once, with what it is about; a remark that many share is told with a count."""
    by_text: dict[str, list[str]] = {}
    for record in records:
        if not record.own:
            continue
        for note in record.notes:
            kind = note.partition(":")[0] if ":" in note else note
            if note.startswith("the SM clock moved"):
                kind = "the SM clock moved by more than a tenth while it was timed"
            if note.startswith("its time moved"):
                kind = "the time moved by more than a tenth while it was timed (clocks, the power limit)"
            if note.startswith("outside a CUDA graph"):
                kind = "launched from the host, a call takes longer than its graph (wall_s)"
            by_text.setdefault(kind, []).append(f"{record.kernel} {record.implementation}")
    lines = []
    for text, places in by_text.items():
        names = list(dict.fromkeys(places))
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(textwrap.fill(f"* {text}: {shown}; kernels.jsonl has the figures", WIDTH, subsequent_indent="  "))
    return ["\n".join(lines)] if lines else []
