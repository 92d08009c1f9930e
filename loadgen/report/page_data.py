"""What report.html holds beside its text: figures as JSON, and the requests themselves as columns.

The page draws its charts and answers "what if" from this alone, so a latency is kept in such a way
that holding it against an objective gives the same answer as holding the record itself: in whole
microseconds, rounded up. ``value <= limit`` is then the same as before for every limit that is a
whole number of microseconds. TPOT is kept in thirds of them: that of 30 tokens/s is 33,333 1/3.

The bytes are one blob, compressed and in base64: the length of the JSON (4 bytes, little-endian),
the JSON, and the columns that it names by offset. A column of 32-bit numbers is stored as four runs
of bytes, the lowest first: the high bytes of neighbours are alike and compress to almost nothing.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from loadgen.analysis.figures import Window
from loadgen.analysis.gather import token_events
from loadgen.analysis.metrics import METRICS
from loadgen.analysis.outcome import outcome
from loadgen.analysis.summary import Summary
from loadgen.gpus import GpuSample
from loadgen.loads import Open
from loadgen.microbench.records import KernelRecord
from loadgen.records import (
    ClientSample,
    Manifest,
    RequestRecord,
    ServerSample,
    read_client_log,
    read_lines,
    read_records,
    records_path,
)
from loadgen.report.entry import Entry
from loadgen.report.kernels import case_words
from loadgen.report.terminal import withheld
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

UNKNOWN = 2**32 - 1  # of a column: no such value
MOST = UNKNOWN - 1
MEASURED, FAILED, OFFERED = 1, 2, 4  # bits of the column ``flags``
MAX_POINTS = 600  # of a line over time
BATCH = 512  # records whose tokens are counted together
TENTH_NS = NS_PER_S // 10
MAX_ERRORS = 100  # messages that a level shows
MAX_MESSAGE = 300
TPOT_PARTS = 3  # of a microsecond


class RunPage(NamedTuple):
    """One run as the page shows it: its entry, and per level, in the summary's order, what its folder holds."""

    entry: Entry
    requests: list[LevelRequests]
    clients: list[list[ClientSample]]
    servers: list[list[ServerSample]]
    gpus: list[list[GpuSample]]

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def manifest(self) -> Manifest:
        return self.entry.manifest

    @property
    def summary(self) -> Summary:
        return self.entry.summary


class LevelRequests:
    """Every request of a level, of whatever phase, as far as the page shows it; events are looked at and let go."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, ...]] = []
        self._waiting: list[RequestRecord] = []  # whose tokens are still to be counted
        self._tokens: Counter[int] = Counter()  # that came in each tenth of a second of the clock
        self.errors: list[tuple[int, str, str]] = []  # seq, kind, message

    def add(self, record: RequestRecord) -> None:
        found = outcome(record)
        failed = record.error is not None
        if record.error is not None and len(self.errors) < MAX_ERRORS:
            self.errors.append((record.seq, record.error.kind, record.error.message[:MAX_MESSAGE]))
        cancelled = record.error is not None and record.error.kind == "cancelled"
        sent = found.issued_ns if record.sent_ns is None else record.sent_ns
        if record.event_ns and record.sent_ns is not None:
            self._waiting.append(record)
            if len(self._waiting) == BATCH:
                self._count()
        self._rows.append(
            (
                found.issued_ns,
                record.seq,
                (MEASURED if record.phase == "measure" and not cancelled else 0) | (FAILED if failed else 0),
                max(sent - found.issued_ns, 0),
                -1 if found.ttft_s is None else _since(record.first_token_ns, found.issued_ns),
                -1 if found.tpot_s is None else math.ceil(found.tpot_s * 1e6 * TPOT_PARTS - 1e-6),
                -1 if found.e2e_s is None else _since(record.last_token_ns, found.issued_ns),
                max(record.event_ns[1:], default=-1),
                -1 if record.input_tokens is None else record.input_tokens,
                -1 if record.output_tokens is None else record.output_tokens,
                record.end_ns,
            )
        )

    def _count(self) -> None:
        """Counts the tokens of the records that wait, and lets go of their events."""
        import numpy as np

        if not self._waiting:
            return
        events = token_events(self._waiting)
        places = events.times_ns // TENTH_NS
        first = int(places.min())
        counts = np.bincount(places - first, weights=events.tokens)
        self._tokens.update({first + int(place): int(counts[place]) for place in np.flatnonzero(counts)})
        self._waiting = []

    def tokens_per_s(self, start_ns: int) -> list[list[float | None]]:
        """``[seconds since start, tokens/s]``, a tenth of a second each, or means of several."""
        import numpy as np

        self._count()
        if not self._tokens:
            return []
        first, last = min(self._tokens), max(self._tokens)
        places = np.arange(first, last + 1)
        rates = np.array([self._tokens[int(place)] for place in places]) * (NS_PER_S / TENTH_NS)
        return _grid(places * TENTH_NS + TENTH_NS // 2, rates, start_ns)

    def columns(self, window: Window, hidden: bool) -> tuple[int, dict[str, NDArray[Any]]]:
        """When the level's first request was issued, in ns, and a column for each thing that is known of its requests.

        Args:
            window: the measured one; a request issued in it counts as offered.
            hidden: the latencies are withheld.
        """
        import numpy as np

        self._rows.sort()
        table = np.array(self._rows, dtype=np.int64).reshape(-1, 11)
        issued = table[:, 0]
        start = int(issued[0]) if len(issued) else 0
        measured = (table[:, 2] & MEASURED) > 0
        offered = measured & (issued >= window.start_ns) & (issued <= window.end_ns)
        columns = {
            "issued_us": (issued - start) // 1000,
            "seq": table[:, 1],
            "flags": table[:, 2] | np.where(offered, OFFERED, 0),
            "wait_us": table[:, 3] // 1000,
            "ttft_us": _up(table[:, 4]),
            "tpot_us": table[:, 5],
            "e2e_us": _up(table[:, 6]),
            "gap_us": _up(table[:, 7]),
            "input_tokens": table[:, 8],
            "output_tokens": table[:, 9],
            "took_us": (table[:, 10] - issued) // 1000,
        }
        for name in ("ttft_us", "tpot_us", "e2e_us", "gap_us") if hidden else ():
            columns[name] = np.full(len(issued), -1)
        return start, columns


class RunRequests:
    """The requests of a run, level by level, taken in while its records are read for something else."""

    def __init__(self) -> None:
        self.levels: dict[int, LevelRequests] = {}

    def add(self, record: RequestRecord) -> None:
        if record.level not in self.levels:
            self.levels[record.level] = LevelRequests()
        self.levels[record.level].add(record)


def read_page(entry: Entry, gathered: RunRequests | None = None) -> RunPage:
    """A run with what its page needs from its folder.

    The entry's summary may know levels that the folder does not, where the disk was full.

    Args:
        gathered: the run's requests, where its records have been read already.
    """
    run, summary = entry.folder, entry.summary
    requests = [LevelRequests() for _ in summary.levels]
    samples, marks, _ = read_client_log(run / "client.jsonl")
    if gathered is None:
        gathered = RunRequests()
        for record in read_records(records_path(run))[0] if records_path(run).exists() else ():
            gathered.add(record)
    numbers: set[int] = {mark.level for mark in marks}
    by_level = gathered.levels
    found = sorted(numbers | by_level.keys())
    for place, number in enumerate(found[: len(requests)]):
        requests[place] = by_level.get(number, requests[place])
    place_of = {number: place for place, number in enumerate(found)}

    def spread(lines: Iterable[Any]) -> list[list[Any]]:
        parts: list[list[Any]] = [[] for _ in summary.levels]
        for line in lines:
            place = place_of.get(line.level, len(parts))
            if place < len(parts):
                parts[place].append(line)
        return parts

    return RunPage(
        entry=entry,
        requests=requests,
        clients=spread(samples),
        servers=spread(read_lines(run / "server_metrics.jsonl", ServerSample)),
        gpus=spread(read_lines(run / "gpu.jsonl", GpuSample)),
    )


def encode(pages: Sequence[RunPage], extra: dict[str, Any]) -> str:
    """The blob, in base64.

    Args:
        extra: further members of the JSON.
    """
    columns: list[bytes] = []
    offset = 0

    def keep(name: str, values: NDArray[Any]) -> dict[str, int]:
        nonlocal offset
        raw = _planes(values)
        place = {"at": offset, "count": len(values), "parts": TPOT_PARTS if name == "tpot_us" else 1}
        columns.append(raw)
        offset += len(raw)
        return place

    labels = [{"key": metric.key, "short": metric.short, "chart": metric.chart} for metric in METRICS if metric.short]
    content = {**extra, "metrics": labels, "runs": [_run(page, keep) for page in pages]}
    text = msgspec.json.encode(content)
    blob = struct.pack("<I", len(text)) + text + b"".join(columns)
    return base64.b64encode(zlib.compress(blob, 6)).decode()


def _run(page: RunPage, keep: Any) -> dict[str, Any]:
    beside = page.entry.beside
    levels = []
    for level, requests, clients, servers, gpus in zip(
        page.summary.levels, page.requests, page.clients, page.servers, page.gpus, strict=True
    ):
        start, columns = requests.columns(level.window, withheld(level))
        levels.append(
            {
                "summary": level,
                "name": level.load.short,
                "words": level.load.text,
                "value": level.load.value,
                "open": isinstance(level.load, Open),
                "withheld": withheld(level),
                "window_us": [(level.window.start_ns - start) // 1000, (level.window.end_ns - start) // 1000],
                "requests": {name: keep(name, values) for name, values in columns.items()},
                "errors": requests.errors,
                "tokens_per_s": requests.tokens_per_s(start),
                "client": _client_lines(clients, start),
                "server": _server_lines(servers, start),
                "gpu": _gpu_lines(gpus, start),
            }
        )
    return {
        "name": page.name,
        "simulated": page.summary.simulated,
        "gpus": len(page.manifest.engine.gpu_uuids),
        "levels": levels,
        "waterfalls": beside.waterfalls if beside else [],
        "kernels": [_kernel(record) for record in beside.records] if beside else [],
    }


_KERNEL_FIELDS = (
    "kernel", "label", "state", "implementation", "own", "status", "message", "time_s", "ci95_s", "bytes_per_s",
    "flops_per_s", "roof_share", "best_baseline",
)  # fmt: skip


def _kernel(record: KernelRecord) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(record)
    return {"case": case_words(record), **{name: fields[name] for name in _KERNEL_FIELDS}}


def _since(at_ns: int | None, start_ns: int) -> int:
    return -1 if at_ns is None else at_ns - start_ns


def _up(ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Nanoseconds as microseconds, rounded up; below 0 is unknown, and stays so."""
    import numpy as np

    rounded: NDArray[np.int64] = np.where(ns < 0, -1, -(-ns // 1000))
    return rounded


def _planes(values: NDArray[Any]) -> bytes:
    """Numbers as unsigned 32-bit ones, byte by byte; what is below 0 is :data:`UNKNOWN`."""
    import numpy as np

    whole = np.where(values < 0, UNKNOWN, np.minimum(values, MOST)).astype("<u4")
    return whole.view(np.uint8).reshape(-1, 4).T.tobytes()


def _grid(times_ns: NDArray[Any], values: NDArray[Any], start_ns: int) -> list[list[float | None]]:
    """``[seconds, value]`` of a line over time; means of neighbours where there are more than :data:`MAX_POINTS`."""
    import numpy as np

    if not len(times_ns):
        return []
    order = np.argsort(times_ns, kind="stable")
    seconds = (np.asarray(times_ns, dtype=np.int64)[order] - start_ns) / NS_PER_S
    ordered = np.asarray(values, dtype=float)[order]
    parts = -(-len(seconds) // MAX_POINTS)
    places = np.arange(0, len(seconds), parts)
    counts = np.diff(places, append=len(seconds))
    at = np.add.reduceat(seconds, places) / counts
    mean = np.add.reduceat(ordered, places) / counts
    return [
        [round(float(t), 3), float(f"{v:.6g}") if math.isfinite(v) else None] for t, v in zip(at, mean, strict=True)
    ]


def _client_lines(samples: list[ClientSample], start_ns: int) -> dict[str, Any]:
    """In flight over all workers, and the lateness of probes."""
    import numpy as np

    if not samples:
        return {}
    workers = sorted({sample.worker for sample in samples})
    own = {worker: [s for s in samples if s.worker == worker] for worker in workers}
    times = {w: np.array([s.t_ns for s in own[w]], dtype=np.int64) for w in workers}
    longest = max(workers, key=lambda w: len(times[w]))
    grid = times[longest]
    # Each worker samples at moments of its own; between two of them its counts are taken to run straight.
    flying = sum(np.interp(grid, times[w], [s.in_flight for s in own[w]]) for w in workers)
    late = [(s.t_ns, max(s.lateness_ns) / 1e6) for s in samples if s.lateness_ns]
    return {
        "in_flight": _grid(grid, np.asarray(flying), start_ns),
        "lateness_ms": _grid(np.array([t for t, _ in late]), np.array([v for _, v in late]), start_ns),
    }


def _server_lines(samples: list[ServerSample], start_ns: int) -> dict[str, Any]:
    import numpy as np

    lines = {}
    for name in ("requests_running", "requests_waiting", "kv_cache_usage"):
        found = [(s.t_ns, s.values[name]) for s in samples if name in s.values]
        if found:
            lines[name] = _grid(np.array([t for t, _ in found]), np.array([v for _, v in found]), start_ns)
    return lines


def _gpu_lines(samples: list[GpuSample], start_ns: int) -> dict[str, Any]:
    """Power of all the engine's GPUs together, and the lowest of their clocks."""
    import numpy as np

    lines = {}
    for name, over in (("power_w", sum), ("sm_clock_mhz", min), ("temperature_c", max)):
        found = [
            (s.t_ns, over(values))
            for s in samples
            if (values := [v for gpu in s.gpus if (v := getattr(gpu, name)) is not None])
        ]
        if found:
            lines[name] = _grid(np.array([t for t, _ in found]), np.array([v for _, v in found]), start_ns)
    return lines
