"""What a benchmark of kernels leaves behind, and what is computed from it. Pure; imports no torch.

Folder: ``manifest.json`` (the command, the device, its measured rates), ``samples.jsonl`` (a line per
case and cache state, with every timing of every implementation, as the process with the GPU sends
them) and ``kernels.jsonl`` (a :class:`KernelRecord` per case, state and implementation, made from the
samples by :func:`records_of`).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadgen.environment import Host
from loadgen.errors import RunFolderError
from loadgen.microbench.cases import ModelShape, Phase, State, Step
from loadgen.microbench.rotation import Rotation
from loadgen.records import UNREADABLE, read_lines

FORMAT_VERSION = 1
IMPOSSIBLE = 1.05  # above this share of a measured peak a figure is refused
APART = 0.10  # timers that differ by more are remarked on
# Tensors that stay (activations) count as memory traffic only when they are larger than so many caches.
HOT_CACHES = 2

Status = Literal["ok", "wrong", "impossible", "skipped", "out_of_memory", "failed"]
Word = Literal["faster", "slower", "same"]


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """A step of a model that runs a case, and how often it does."""

    phase: Phase
    sequences: int
    context: int
    per_step: int

    @property
    def step(self) -> Step:
        return Step(phase=self.phase, sequences=self.sequences, context=self.context)


class Peaks(msgspec.Struct, kw_only=True):
    """What this very device (or MIG slice) was measured to do, before the kernels.

    Attributes:
        copy_bytes_per_s: device-to-device copy, bytes read and written.
        read_bytes_per_s: a sum over a large buffer.
        matrix_flops: rate of the best large matrix product, by dtype of its operands, on random data.
        empty_kernel_s: a kernel that does nothing, in a CUDA graph: the time from one to the next.
    """

    copy_bytes_per_s: float
    read_bytes_per_s: float
    matrix_flops: dict[str, float]
    empty_kernel_s: float

    @property
    def bytes_per_s(self) -> float:
        """The faster of the two: reading alone can exceed a copy, since the memory's bus need not turn round."""
        return max(self.copy_bytes_per_s, self.read_bytes_per_s)


class DeviceFacts(msgspec.Struct, kw_only=True):
    """The device as torch describes it, and the versions that ran on it."""

    name: str
    uuid: str | None
    compute_capability: tuple[int, int]
    multiprocessors: int
    l2_bytes: int
    memory_bytes: int
    versions: dict[str, str]


class KernelTimes(msgspec.Struct, kw_only=True):
    """What CUPTI says of one call: the sum of its kernels' durations, gaps left out, and their names."""

    call_s: float
    names: dict[str, int]


class Attempt(msgspec.Struct, kw_only=True):
    """One implementation at one case and state, raw.

    Attributes:
        samples_s: time of one call, by window; windows of all implementations are interleaved, so that the
            i-th of one belongs to the i-th of another.
        timer: ``graph``, or ``events`` around a loop where it cannot be captured in a CUDA graph.
        error_before, error_after: ||got - want|| / ||want|| before and after the timing.
        wall_s: host time of one call in a plain loop, launch included.
    """

    name: str
    own: bool
    status: Literal["ok", "wrong", "skipped", "out_of_memory", "failed"] = "ok"
    message: str | None = None
    timer: Literal["graph", "events"] = "graph"
    samples_s: list[float] = []
    error_before: float | None = None
    error_after: float | None = None
    cupti: KernelTimes | None = None
    wall_s: float | None = None


class CaseSamples(msgspec.Struct, kw_only=True):
    """A line of samples.jsonl: one case in one cache state.

    Attributes:
        bytes, flops: by the kernel file's ``traffic``.
        staying_bytes: the tensors that do not rotate.
        clocks: NVML's readings while it was timed.
    """

    kernel: str
    file: str
    sha256: str
    label: str
    params: dict[str, Any]
    uses: list[Use] = []
    state: State
    seed: int
    bytes: float
    flops: float
    matrix_dtype: str | None = None
    rotation: Rotation | None = None
    staying_bytes: int = 0
    attempts: list[Attempt]
    clocks: list[dict[str, Any]] = []


class Ratio(msgspec.Struct, kw_only=True):
    """Time of the best baseline over this one's: above 1 this one is faster.

    ``ratio`` is the median over pairs of neighbouring windows, ``ci95`` its interval, and ``word`` what
    the interval says: ``same`` where it holds 1.
    """

    baseline: str
    ratio: float
    ci95: tuple[float, float]
    word: Word


class KernelRecord(msgspec.Struct, kw_only=True):
    """A line of kernels.jsonl: one implementation at one case in one cache state.

    Times in seconds of one call. ``time_s`` is the median over windows by ``timer``; it and what follows
    from it is null unless ``status`` is ``ok``. ``roof_s`` is the least time by the measured peaks:
    max(bytes / bandwidth, flops / matrix rate), and ``roof_share`` is roof_s / time_s; both null in the
    state ``hot``, where no memory has to move.
    """

    format_version: int = FORMAT_VERSION
    kernel: str
    implementation: str
    own: bool
    label: str
    params: dict[str, Any]
    uses: list[Use]
    state: State
    status: Status
    message: str | None = None
    timer: str
    time_s: float | None = None
    ci95_s: tuple[float, float] | None = None
    p99_s: float | None = None
    windows: int = 0
    calls: int = 0
    cupti_s: float | None = None
    wall_s: float | None = None
    kernel_names: dict[str, int] = {}
    bytes: float
    flops: float
    matrix_dtype: str | None = None
    bytes_per_s: float | None = None
    flops_per_s: float | None = None
    copy_share: float | None = None
    roof_s: float | None = None
    roof_share: float | None = None
    best_baseline: Ratio | None = None
    error_before: float | None = None
    error_after: float | None = None
    rotation: Rotation | None = None
    clocks: dict[str, Any] = {}
    notes: list[str] = []


class KernelManifest(msgspec.Struct, kw_only=True):
    """manifest.json of a benchmark of kernels."""

    format_version: int = FORMAT_VERSION
    kind: Literal["kernels"] = "kernels"
    command: list[str]
    started_utc: str
    host: Host
    gpus: list[dict[str, Any]]
    driver: str | None
    device: DeviceFacts | None = None
    peaks: Peaks | None = None
    model: ModelShape | None = None
    steps: list[Step] = []
    states: list[State] = []
    seed: int = 0
    took_s: float | None = None
    notes: list[str] = []


def median_interval(values: list[float]) -> tuple[float, tuple[float, float] | None, float | None]:
    """Median, its 95 % interval by order statistics, and the 99th percentile (largest of a small sample)."""
    import numpy as np

    from loadgen.analysis.stats import describe

    found = describe(np.asarray(values))
    median = float(np.median(values))
    return median, found.ci95.get("p50"), float(np.quantile(values, 0.99))


def compare_pairs(own: list[float], other: list[float], baseline: str) -> Ratio | None:
    """``other`` over ``own``, window by window."""
    pairs = [b / a for a, b in zip(own, other, strict=False) if a > 0]
    if not pairs:
        return None
    ratio, interval, _ = median_interval(pairs)
    if interval is None:
        return None
    word: Word = "faster" if interval[0] > 1 else "slower" if interval[1] < 1 else "same"
    return Ratio(baseline=baseline, ratio=ratio, ci95=interval, word=word)


def memory_bytes(samples: CaseSamples) -> float:
    """Bytes of a call that must come from or go to memory in this cache state, as far as that is certain."""
    if samples.state == "hot" or samples.rotation is None:
        return 0.0
    if samples.staying_bytes >= HOT_CACHES * samples.rotation.cache_bytes:
        return samples.bytes
    return float(samples.rotation.touched_bytes)


def records_of(samples: CaseSamples, peaks: Peaks) -> list[KernelRecord]:
    """The records of one case and state, every figure and every doubt about it."""
    right = [a for a in samples.attempts if a.status == "ok" and a.samples_s]
    baselines = [a for a in right if not a.own]
    best = min(baselines, key=lambda a: median_interval(a.samples_s)[0], default=None)
    found = []
    for attempt in samples.attempts:
        record = KernelRecord(
            kernel=samples.kernel,
            implementation=attempt.name,
            own=attempt.own,
            label=samples.label,
            params=samples.params,
            uses=samples.uses,
            state=samples.state,
            status=attempt.status,
            message=attempt.message,
            timer=attempt.timer,
            bytes=samples.bytes,
            flops=samples.flops,
            matrix_dtype=samples.matrix_dtype,
            error_before=attempt.error_before,
            error_after=attempt.error_after,
            rotation=samples.rotation,
            clocks=clock_figures(samples.clocks),
        )
        if attempt in right:
            _fill(record, attempt, samples, peaks)
            if best is not None and best is not attempt and record.status == "ok":
                record.best_baseline = compare_pairs(attempt.samples_s, best.samples_s, best.name)
        found.append(record)
    return found


def _fill(record: KernelRecord, attempt: Attempt, samples: CaseSamples, peaks: Peaks) -> None:
    time_s, record.ci95_s, record.p99_s = median_interval(attempt.samples_s)
    record.windows = len(attempt.samples_s)
    record.calls = samples.rotation.calls if samples.rotation else 0
    certain = memory_bytes(samples)
    matrix = peaks.matrix_flops.get(samples.matrix_dtype or "")
    refused = []
    if certain / time_s > IMPOSSIBLE * peaks.bytes_per_s:
        refused.append(
            f"{certain / time_s / 1e9:,.0f} GB/s from memory, where {peaks.bytes_per_s / 1e9:,.0f} were measured at "
            "most"
        )
    if matrix and samples.flops / time_s > IMPOSSIBLE * matrix:
        refused.append(
            f"{samples.flops / time_s / 1e12:,.0f} TFLOP/s, where {matrix / 1e12:,.0f} were measured at most"
        )
    if refused:
        record.status = "impossible"
        record.message = " and ".join(refused) + ": skipped work, or what should be cold is in the cache"
        return
    record.time_s = time_s
    record.bytes_per_s = samples.bytes / time_s
    record.copy_share = record.bytes_per_s / peaks.copy_bytes_per_s
    record.flops_per_s = samples.flops / time_s if samples.flops else None
    record.cupti_s = attempt.cupti.call_s if attempt.cupti else None
    record.kernel_names = attempt.cupti.names if attempt.cupti else {}
    record.wall_s = attempt.wall_s
    if samples.state != "hot":
        record.roof_s = max(samples.bytes / peaks.bytes_per_s, samples.flops / matrix if matrix else 0.0)
        record.roof_share = record.roof_s / time_s
    record.notes = _doubts(record, attempt, samples, certain)


def _doubts(record: KernelRecord, attempt: Attempt, samples: CaseSamples, certain: float) -> list[str]:
    """What a reader must know beside the figure."""
    import numpy as np

    notes = []
    # The other timers run after the windows, when the clocks may be others: they differ only where they differ
    # from the fast windows and from the slow ones.
    low_s, high_s = (float(value) for value in np.quantile(attempt.samples_s, [0.1, 0.9]))
    if high_s > low_s * (1 + APART):
        notes.append(f"its time moved between {low_s * 1e6:.1f} and {high_s * 1e6:.1f} us while it was timed")
    if record.timer == "events":
        notes.append("cannot be captured in a CUDA graph: timed by events, launches may be in it")
    if record.cupti_s is not None and low_s > record.cupti_s * (1 + APART):
        gap = low_s - record.cupti_s
        kernels = sum(record.kernel_names.values())
        notes.append(
            f"launch-bound: {gap * 1e6:.1f} us of a call lie between its {kernels or 1} kernel(s), not in them"
        )
    elif record.cupti_s is not None and record.cupti_s > high_s * (1 + APART):
        notes.append("kernels overlap, or run slower below the profiler: their sum exceeds the graph's time")
    if record.wall_s is not None and record.wall_s > high_s * (1 + APART):
        notes.append(f"outside a CUDA graph a call takes {record.wall_s * 1e6:.1f} us of host time")
    rotation = samples.rotation
    if samples.state != "hot" and rotation is not None:
        if rotation.set_bytes and not rotation.proven:
            notes.append("warm cache: too little memory for a rotation that exceeds the cache")
        if certain < samples.bytes * 0.5:
            notes.append("its tensors are mostly in the cache: its share of the memory's bandwidth can exceed 100 %")
    reasons = [reason for reason in record.clocks.get("throttle", {}) if reason != "power cap"]
    if reasons:
        notes.append(f"throttled: {', '.join(reasons)}")
    low, high = record.clocks.get("sm_clock_mhz_min"), record.clocks.get("sm_clock_mhz_max")
    if low and high and low < 0.9 * high:
        notes.append(f"the SM clock moved between {low:,.0f} and {high:,.0f} MHz")
    return notes


def clock_figures(readings: list[dict[str, Any]]) -> dict[str, Any]:
    """Clocks, power, temperature over the readings, and the share of them with each throttle reason."""
    found: dict[str, Any] = {}
    for name in ("sm_clock_mhz", "memory_clock_mhz", "power_w", "temperature_c"):
        values = [r[name] for r in readings if r.get(name) is not None]
        if values:
            found |= {f"{name}_mean": math.fsum(values) / len(values), f"{name}_min": min(values)}
            found[f"{name}_max"] = max(values)
    reasons = [reason for r in readings for reason in r.get("throttle", [])]
    if reasons:
        found["throttle"] = {reason: reasons.count(reason) / len(readings) for reason in dict.fromkeys(reasons)}
    return found


def read_kernel_manifest(folder: Path) -> KernelManifest:
    """The manifest of a kernels' folder.

    Raises:
        RunFolderError: there is none, or it is of something else.
    """
    path = folder / "manifest.json"
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=KernelManifest)
    except OSError as error:
        raise RunFolderError(f"{path}: {error.strerror}; is {folder} a folder of loadgen kernels bench?") from None
    except UNREADABLE as error:
        raise RunFolderError(f"{path}: {error}; is {folder} a folder of loadgen kernels bench?") from None
    if manifest.format_version > FORMAT_VERSION:
        raise RunFolderError(
            f"{path}: format_version {manifest.format_version}, but this loadgen reads {FORMAT_VERSION}; upgrade it"
        )
    return manifest


def is_kernel_folder(folder: Path) -> bool:
    """Whether ``loadgen kernels bench`` made this folder."""
    try:
        return bool(msgspec.json.decode((folder / "manifest.json").read_bytes()).get("kind") == "kernels")
    except (OSError, AttributeError, *UNREADABLE):
        return False


def read_samples(folder: Path) -> list[CaseSamples]:
    """Every line of samples.jsonl that can be read."""
    return read_lines(folder / "samples.jsonl", CaseSamples)
