"""Kernels beside the serving numbers: from what the data sheet allows down to what was served, every gap in ms.

    data sheet roof   every kernel of the step at the data sheet's bandwidth and matrix rate
    measured roof     the same at what this device was measured to do
    sum of kernels    the best implementation of each kernel, measured alone, times how often a step runs it
    served            TPOT or TTFT as the sweep measured it

For TPOT the step is a decode step at the batch and context that the level served; for TTFT it is the
prefill of one mean prompt. The sum is a floor in so far as the engine runs each kernel once and one after
another: an engine that fuses two of them, or overlaps the end of one with the start of the next, can be
below it, and the gap is then shown as negative.

    time for other prompts   TPOT x (requests/s x prefill sum) x (n - 1) / n: the share of time that the
                             GPU spends on prompts that come in while the others decode. Where an engine
                             puts them into the decode steps, the weights are read once for both and the
                             true share is smaller.
    prefill above kernels    the engine's own mean time from scheduling a prompt to its first token, less the
                             sum of the kernels
    to the core and back     the engine's own TTFT, less its queue and its prefill: what its front end and the
                             way to its core take
    outside the engine       what was served, less the engine's own mean of the same figure

What a server does not say has no name of its own: it stays in the gap ``the engine``. The engine's means are
over the requests that ended between two reads of its metrics, ours over those of the measured window.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadgen.analysis.figures import LevelSummary
from loadgen.analysis.summary import Summary
from loadgen.loads import Load
from loadgen.microbench.cases import Step
from loadgen.microbench.records import (
    KernelManifest,
    KernelRecord,
    is_kernel_folder,
    read_kernel_manifest,
    read_samples,
    records_of,
)
from loadgen.microbench.steps import decode_step, no_sum, prefill_step
from loadgen.records import Manifest
from loadgen.report.text import WIDTH
from loadgen.units import format_ms

# What a step consists of. Matrix products by their labels.
ATTENTION = {"decode": "paged_decode_attention", "prefill": "prefill_attention"}
STEP_KERNELS = ("add_rms_norm", "rotary_embedding", "kv_cache_write", "silu_and_mul", "sample_top_k_top_p")
PROJECTIONS = ("qkv", "o", "gate_up", "down", "lm_head")


class Part(msgspec.Struct, kw_only=True):
    """One kernel of a step: the implementation that was chosen, and its seconds over the whole step."""

    kernel: str
    label: str
    implementation: str
    per_step: int
    call_s: float
    total_s: float
    roof_s: float
    sheet_roof_s: float

    @property
    def name(self) -> str:
        return f"{self.kernel} {self.label}".strip()


class Gap(msgspec.Struct, kw_only=True):
    """What lies between two lines of the waterfall."""

    name: str
    seconds: float
    why: str


class Waterfall(msgspec.Struct, kw_only=True):
    """One figure of one level. ``gaps`` add up to ``served_s - sheet_roof_s``.

    ``missing`` names kernels without which there is no sum, ``refused`` says why there can be none; everything
    else is then empty.
    """

    metric: Literal["tpot", "ttft"]
    load: Load
    step: Step
    missing: list[str] = []
    refused: str | None = None
    sheet_roof_s: float = 0.0
    roof_s: float = 0.0
    kernels_s: float = 0.0
    own_kernels_s: float | None = None
    served_s: float | None = None
    gaps: list[Gap] = []
    parts: list[Part] = []


class Beside(msgspec.Struct, kw_only=True):
    """A benchmark of kernels, and what it says of a run."""

    manifest: KernelManifest
    records: list[KernelRecord]
    waterfalls: list[Waterfall]


def read_beside(folder: Path, run: Manifest, summary: Summary) -> Beside | None:
    """The kernels in a folder beside a run's summary; None where nothing was measured there."""
    if not is_kernel_folder(folder):
        return None
    manifest = read_kernel_manifest(folder)
    if manifest.peaks is None:
        return None
    records = [record for samples in read_samples(folder) for record in records_of(samples, manifest.peaks)]
    falls = waterfalls(summary, manifest, records, refused=no_sum(run))
    return Beside(manifest=manifest, records=records, waterfalls=falls)


def waterfalls(
    summary: Summary, manifest: KernelManifest, records: list[KernelRecord], refused: str | None = None
) -> list[Waterfall]:
    """TPOT and TTFT of every level, as far as the kernels of its steps were measured.

    Args:
        refused: why these kernels do not add up to what the run served (:func:`loadgen.microbench.steps.no_sum`).
    """
    found = []
    for level in summary.levels:
        decode, prefill = decode_step(level), prefill_step(level)
        if decode is None or prefill is None:
            continue
        if refused is not None:
            found += [
                Waterfall(metric="tpot", load=level.load, step=decode, served_s=level.tpot_s.mean, refused=refused),
                Waterfall(metric="ttft", load=level.load, step=prefill, served_s=level.ttft_s.mean, refused=refused),
            ]
            continue
        first = _start("ttft", level, prefill, level.ttft_s.mean, manifest, records)
        then = _start("tpot", level, decode, level.tpot_s.mean, manifest, records)
        if not then.missing and then.served_s is not None:
            _tpot_gaps(then, level, None if first.missing else first.kernels_s)
        if not first.missing and first.served_s is not None:
            _ttft_gaps(first, level)
        found += [then, first]
    return found


def _start(
    metric: Literal["tpot", "ttft"],
    level: LevelSummary,
    step: Step,
    served_s: float | None,
    manifest: KernelManifest,
    records: list[KernelRecord],
) -> Waterfall:
    """Roofs and sum, and the gaps between them."""
    result = Waterfall(metric=metric, load=level.load, step=step, served_s=served_s)
    rates = _sheet_rates(manifest)
    wanted = [(name, "") for name in (*STEP_KERNELS, ATTENTION[step.phase])]
    wanted += [("matmul_bf16", label) for label in PROJECTIONS]
    own_s: float | None = 0.0
    starts = 0.0
    empty_s = manifest.peaks.empty_kernel_s if manifest.peaks else 0.0
    for kernel, label in wanted:
        usable = [
            (record, use)
            for record in records
            for use in record.uses
            if record.kernel == kernel and record.label == label and record.state == "serving"
            and use.step == step and record.time_s is not None
        ]  # fmt: skip
        if not usable:
            result.missing.append(f"{kernel} {label}".strip())
            continue
        record, use = min(usable, key=lambda pair: pair[0].time_s or 0.0)
        own = [r.time_s for r, _ in usable if r.own and r.time_s is not None]
        own_s = None if own_s is None or not own else own_s + min(own) * use.per_step
        assert record.time_s is not None
        sheet = max(record.bytes / rates[0], record.flops / rates[1] if record.matrix_dtype else 0.0)
        roof = record.roof_s or 0.0
        part = Part(
            kernel=kernel,
            label=label,
            implementation=record.implementation,
            per_step=use.per_step,
            call_s=record.time_s,
            total_s=record.time_s * use.per_step,
            roof_s=roof * use.per_step,
            sheet_roof_s=sheet * use.per_step,
        )
        starts += min(
            max(part.total_s - part.roof_s, 0.0), empty_s * sum(record.kernel_names.values() or [1]) * use.per_step
        )
        result.parts.append(part)
    if result.missing:
        result.parts = []
        return result
    result.parts.sort(key=lambda part: -part.total_s)
    result.sheet_roof_s = sum(part.sheet_roof_s for part in result.parts)
    result.roof_s = sum(part.roof_s for part in result.parts)
    result.kernels_s = sum(part.total_s for part in result.parts)
    result.own_kernels_s = own_s
    worst = sorted(result.parts, key=lambda part: part.roof_s - part.total_s)[:3]
    names = ", ".join(p.name + f" {format_ms(p.total_s - p.roof_s)} ms" for p in worst)
    result.gaps = [
        Gap(
            name="below the data sheet",
            seconds=result.roof_s - result.sheet_roof_s,
            why="memory and matrix units do less than the data sheet says, by any program measured here",
        ),
        Gap(
            name="starting kernels",
            seconds=starts,
            why=f"an empty kernel takes {empty_s * 1e6:.2f} us in a CUDA graph",
        ),
        Gap(
            name="kernels above their roof",
            seconds=result.kernels_s - result.roof_s - starts,
            why=f"most (starts included) in {names}",
        ),
    ]
    return result


def _sheet_rates(manifest: KernelManifest) -> tuple[float, float]:
    """Bytes/s and flops/s of the data sheet; what was measured, where no data sheet is known."""
    device, peaks = manifest.device, manifest.peaks
    assert device is not None and peaks is not None
    gpu: dict[str, Any] = next((g for g in manifest.gpus if g.get("uuid") == device.uuid), {})
    bandwidth, matrix = gpu.get("bandwidth_gbs"), gpu.get("bf16_tflops")
    return (
        bandwidth * 1e9 if bandwidth else peaks.bytes_per_s,
        matrix * 1e12 if matrix else peaks.matrix_flops.get("bfloat16", float("inf")),
    )


def _tpot_gaps(result: Waterfall, level: LevelSummary, prefill_s: float | None) -> None:
    assert result.served_s is not None
    rest = result.served_s - result.kernels_s
    rate = level.request_throughput_rps
    n = result.step.sequences
    inside_s = None if level.server is None else level.server.tpot_s
    if prefill_s is not None and rate and n > 1:
        share = min(rate * prefill_s, 1.0) * (n - 1) / n
        seconds = share * result.served_s
        rest -= seconds
        result.gaps.append(
            Gap(
                name="time for other prompts",
                seconds=seconds,
                why=f"{rate:.1f} prompts/s of {format_ms(prefill_s)} ms each come in while the others decode",
            )
        )
    outside = None if inside_s is None else _outside(result.served_s, inside_s)
    if outside is not None:
        rest -= outside.seconds
    result.gaps.append(
        Gap(
            name="the engine",
            seconds=rest,
            why="scheduling and sampling on the host, gaps between steps, padding, kernels of its own choice"
            + (", HTTP" if outside is None else "")
            if rest >= 0
            else "it fuses or overlaps kernels that were measured one by one, or a share above was overestimated",
        )
    )
    if outside is not None:
        result.gaps.append(outside)


def _ttft_gaps(result: Waterfall, level: LevelSummary) -> None:
    """From the kernels outwards, each as far as the engine's own times name it; what they do not name is one gap."""
    assert result.served_s is not None
    server = level.server
    inside_s, queue_s, prefill_s = (None, None, None) if server is None else (
        server.ttft_s, server.queue_s, server.prefill_s
    )  # fmt: skip
    rest = result.served_s - result.kernels_s
    gaps: list[Gap] = []
    if prefill_s is not None:
        above = prefill_s - result.kernels_s
        gaps.append(
            Gap(
                name="prefill above kernels",
                seconds=above,
                why=f"by the engine's clock a prefill takes {format_ms(prefill_s)} ms: launches and other work of the "
                "host, steps that it shares with other prompts and with decoding, kernels of its own choice"
                if above >= 0
                else "it fuses or overlaps kernels that were measured one by one",
            )
        )
    if queue_s is not None:
        gaps.append(Gap(name="queue", seconds=queue_s, why="the engine says so: not yet scheduled"))
    outside = None if inside_s is None else _outside(result.served_s, inside_s)
    rest -= sum(gap.seconds for gap in gaps) + (outside.seconds if outside is not None else 0.0)
    if prefill_s is None:
        why = "steps that it shares with other prompts and with decoding, scheduling, launches"
        gaps.append(
            Gap(
                name="the engine",
                seconds=rest,
                why=why if rest >= 0 else "it fuses or overlaps kernels that were measured one by one",
            )
        )
    elif queue_s is None or outside is None:
        unsaid = " and ".join(name for name, value in (("queue", queue_s), ("TTFT", inside_s)) if value is None)
        gaps.append(Gap(name="the engine", seconds=rest, why=f"around its prefill; it does not tell its {unsaid}"))
    else:
        gaps.append(
            Gap(
                name="to the core and back",
                seconds=rest,
                why="of the engine's own TTFT what is neither queue nor prefill: from its front end to its core, and "
                "the first token's way back",
            )
        )
    result.gaps += gaps if outside is None else [*gaps, outside]


def _outside(served_s: float, inside_s: float) -> Gap:
    """What was served beyond what the engine itself says of the same figure."""
    seconds = served_s - inside_s
    return Gap(
        name="outside the engine",
        seconds=seconds,
        why=f"by the engine's clock it is {format_ms(inside_s)} ms; the rest is HTTP server, tokenising and network"
        if seconds >= 0
        else f"none: by the engine's clock it is {format_ms(inside_s)} ms, of requests that are not quite the same",
    )


def why_no_sum(fall: Waterfall) -> str:
    """Of one that is refused, or misses kernels."""
    if fall.refused:
        return f"no sum: {fall.refused}"
    return (
        f"no sum, since these were not measured at that size: {', '.join(fall.missing)}; loadgen kernels bench --from "
        "RUN measures all"
    )


def render(falls: list[Waterfall]) -> str:
    """The waterfalls as text, and the largest parts of each sum."""
    return "\n\n".join(_render_one(fall) for fall in falls) + "\n" if falls else ""


def _render_one(fall: Waterfall) -> str:
    name = fall.metric.upper()
    title = f"{name} at {fall.load.text}: {fall.step.phase} of {fall.step.sequences} x {fall.step.context} tokens"
    if fall.refused or fall.missing:
        return textwrap.fill(f"{title}: {why_no_sum(fall)}", WIDTH, subsequent_indent="  ")
    if fall.served_s is None:
        return f"{title}: no {name} was served"
    lines = [title]
    above = fall.served_s or fall.kernels_s

    def line(label: str, seconds: float, is_gap: bool) -> str:
        width = round(24 * min(max(seconds, 0.0) / above, 1.0))
        sign = "+" if is_gap and seconds >= 0 else ""
        return f"  {label:<26}{sign + format_ms(seconds):>10} ms  {'#' * width if not is_gap else '.' * width}".rstrip()

    lines.append(line("data sheet roof", fall.sheet_roof_s, False))
    lines.append(line(f"  {fall.gaps[0].name}", fall.gaps[0].seconds, True))
    lines.append(line("measured roof", fall.roof_s, False))
    lines += [line(f"  {gap.name}", gap.seconds, True) for gap in fall.gaps[1:3]]
    lines.append(line("sum of kernels", fall.kernels_s, False))
    lines += [line(f"  {gap.name}", gap.seconds, True) for gap in fall.gaps[3:]]
    lines.append(line(f"served {name}", fall.served_s, False))
    parts = [p.name + f" {p.total_s / fall.kernels_s:.0%}" for p in fall.parts[:6]]
    words = [f"the sum: {', '.join(parts)}"]
    if fall.own_kernels_s is not None:
        words.append(f"by loadgen's own kernels alone it is {format_ms(fall.own_kernels_s)} ms")
    words += [f"{gap.name}: {gap.why}" for gap in fall.gaps]
    lines += [textwrap.fill(w, WIDTH, initial_indent="  ", subsequent_indent="    ") for w in words]
    return "\n".join(lines)
