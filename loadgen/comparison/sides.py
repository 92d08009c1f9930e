"""One run as a side of a comparison: each level's measured requests as arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from loadgen.analysis.gather import BATCH, token_events
from loadgen.analysis.intervals import bin_amounts
from loadgen.analysis.measure import Measured, measure_run
from loadgen.analysis.outcome import LATENCIES, outcome
from loadgen.errors import UsageError
from loadgen.loads import Load, without_round
from loadgen.records import Manifest, RequestRecord, read_client_log, read_records, records_path
from loadgen.run_folders import RUNS_FILE
from loadgen.units import NS_PER_S

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

BINS = 5040  # of the window, for its tokens


class Sample(msgspec.Struct, kw_only=True):
    """One level's measured requests as arrays, in the order of their sends; NaN where undefined.

    ``latencies`` are by the names of :data:`loadgen.analysis.outcome.LATENCIES`. ``failed`` are those with an error
    that is no cancellation; ``tokens`` are the output tokens of successful requests in each of :data:`BINS` equal
    parts of the window.
    """

    window_s: float
    prompt_ids: list[str]
    sent_s: Array
    failed: NDArray[np.bool_]
    latencies: dict[str, Array]
    input_tokens: Array
    output_tokens: Array
    tokens_per_event: float | None
    token_sources: list[str]
    cached_share: float | None
    tokens: Array

    @property
    def completed(self) -> int:
        return int(len(self.failed) - self.failed.sum())


class SideLevel(msgspec.Struct, kw_only=True):
    """A level of a side.

    Attributes:
        load: the manifest's, without its round.
        round: from 0 on.
        verdict: its status, and those of all reasons; empty where there is none.
        figures: mean, quantiles and throughput by metric and statistic, where these are all that is known.
        prefix_hits: the engine's own share of prompt tokens found in the prefix cache.
        start_s: start of the window on the run's clock.
    """

    load: Load
    round: int
    verdict: list[str]
    sample: Sample
    figures: dict[tuple[str, str], float] | None = None
    prefix_hits: float | None = None
    start_s: float


class Side(msgspec.Struct, kw_only=True):
    """One run.

    Attributes:
        sweep: the folder whose sweep it is one engine of.
        measured: the same levels as a plan takes them; empty where there are no verdicts.
        imported: the command of another tool that made it.
        unknown: of such a side: which of ``requests`` and ``send times`` it does not have.
    """

    label: str
    manifest: Manifest
    levels: list[SideLevel]
    sweep: str | None = None
    measured: list[Measured] = []
    imported: str | None = None
    unknown: list[str] = []


def read_side(run: Path, label: str | None = None) -> Side:
    """A run folder as a side of a comparison; see :func:`loadgen.analysis.summary.run_folders` for a sweep's.

    Raises:
        RunFolderError: it cannot be read.
        UsageError: nothing in it was measured.
    """
    marks = read_client_log(run / "client.jsonl")[1]
    marked = {mark.level: (mark.window_start_ns, mark.window_end_ns) for mark in marks}
    gathered = {index: _Gathered(*window) for index, window in marked.items()}

    def add(record: RequestRecord) -> None:
        if record.level in gathered:
            gathered[record.level].add(record)

    manifest, _, measured = measure_run(run, each=add)
    numbered = {one.number: one.level for one in measured}
    # Another window than the one that was marked: a transient was cut off, or the run was killed.
    again = {
        index: _Gathered(*window, cut=level.steady.cut_transient > 0)
        for index, level in numbered.items()
        if (window := (level.window.start_ns, level.window.end_ns)) != marked.get(index)
    }
    if again:
        for record in read_records(records_path(run))[0]:
            if record.level in again:
                again[record.level].add(record)
    gathered |= again
    levels = [
        SideLevel(
            load=without_round(level.load),
            round=level.load.round or 0,
            verdict=list(dict.fromkeys([level.verdict.status, *(r.status for r in level.verdict.reasons)])),
            sample=gathered[index].sample(),
            prefix_hits=None if level.server is None else level.server.prefix_cache_hit_rate,
            start_s=level.window.start_ns / NS_PER_S,
        )
        for index, level in numbered.items()
    ]
    if not levels:
        raise UsageError(f"{run}: nothing was measured; there is nothing to compare")
    sweep = run.resolve().parent
    return Side(
        label=label or run.name,
        manifest=manifest,
        levels=levels,
        sweep=str(sweep) if (sweep / RUNS_FILE).exists() else None,
        measured=measured,
    )


def sample_of(records: Iterable[RequestRecord], start_ns: int, end_ns: int) -> Sample:
    """The records of one level, of all phases, in whatever order, over the window measured."""
    gathered = _Gathered(start_ns, end_ns)
    for record in records:
        gathered.add(record)
    return gathered.sample()


class _Row(NamedTuple):
    """What is kept of a measured request; sorting rows puts them in the order of their sends."""

    sent_ns: int
    seq: int
    worker: int
    prompt_id: str
    failed: bool
    latencies: tuple[float, ...]  # in the order of LATENCIES
    input_tokens: float
    output_tokens: float


class _Gathered:
    """Takes in a level's records one by one and forgets their events."""

    def __init__(self, start_ns: int, end_ns: int, cut: bool = False) -> None:
        import numpy as np

        self._cut = cut  # what was issued before the window is a start-up transient
        self._start_ns = start_ns
        self._window_ns = max(end_ns - start_ns, 1)
        self._rows: list[_Row] = []
        self._bins = np.zeros(BINS)
        self._streamed: list[RequestRecord] = []  # whose tokens are still to be counted
        self._whole: list[tuple[int, int]] = []  # ns, tokens of replies that were not streamed
        self._events = self._tokens = 0
        self._cached = self._cacheable = 0
        self._sources: set[str] = set()

    def add(self, record: RequestRecord) -> None:
        """One record of whatever phase."""
        if record.error is None:
            self._count(record)
        if record.phase != "measure" or (record.error is not None and record.error.kind == "cancelled"):
            return
        found = outcome(record)
        if self._cut and found.issued_ns < self._start_ns:
            return
        self._rows.append(
            _Row(
                # One that got no connection has no send; its end is where it stands among the others.
                sent_ns=record.end_ns if record.sent_ns is None else record.sent_ns,
                seq=record.seq,
                worker=record.worker,
                prompt_id=record.prompt_id,
                failed=record.error is not None,
                latencies=tuple(math.nan if (value := getattr(found, name)) is None else value for name in LATENCIES),
                input_tokens=_number(record, record.input_tokens),
                output_tokens=_number(record, record.output_tokens),
            )
        )
        if record.error is not None:
            return
        self._sources.add(record.token_source or "none")
        if record.token_source == "usage_continuous":
            self._events += len(record.event_tokens)
            self._tokens += sum(record.event_tokens)
        if record.cached_tokens is not None and record.input_tokens:
            self._cached += record.cached_tokens
            self._cacheable += record.input_tokens

    def _count(self, record: RequestRecord) -> None:
        if record.sent_ns is None or record.last_token_ns is None:
            return
        if not record.event_ns:
            self._whole.append((record.last_token_ns, record.output_tokens or 0))
            return
        self._streamed.append(record)
        if len(self._streamed) >= BATCH:
            self._bin()

    def _bin(self) -> None:
        """Adds the tokens that were counted to the part of the window in which they came."""
        import numpy as np

        if self._streamed:
            events = token_events(self._streamed)
            self._add(events.times_ns, events.tokens)
        if self._whole:
            self._add(*np.array(self._whole, dtype=np.int64).T)
        self._streamed, self._whole = [], []

    def _add(self, times_ns: NDArray[Any], tokens: NDArray[Any]) -> None:
        self._bins += bin_amounts(times_ns, tokens, self._start_ns, self._start_ns + self._window_ns, BINS)

    def sample(self) -> Sample:
        """What there is of the level."""
        import numpy as np

        self._bin()
        self._rows.sort()

        def column(name: str) -> Array:
            return np.array([getattr(row, name) for row in self._rows], dtype=float)

        return Sample(
            window_s=self._window_ns / NS_PER_S,
            prompt_ids=[row.prompt_id for row in self._rows],
            sent_s=(column("sent_ns") - self._start_ns) / NS_PER_S,
            failed=np.array([row.failed for row in self._rows], dtype=bool),
            latencies={
                name: np.array([row.latencies[place] for row in self._rows], dtype=float)
                for place, name in enumerate(LATENCIES)
            },
            input_tokens=column("input_tokens"),
            output_tokens=column("output_tokens"),
            tokens_per_event=self._tokens / self._events if self._events else None,
            token_sources=sorted(self._sources),
            cached_share=self._cached / self._cacheable if self._cacheable else None,
            tokens=self._bins,
        )


def _number(record: RequestRecord, tokens: int | None) -> float:
    return math.nan if record.error is not None or tokens is None else float(tokens)


def by_prompt(prompt_ids: list[str], values: Array) -> dict[str, float]:
    """The mean of each prompt's values that are known."""
    sums: dict[str, list[float]] = {}
    for key, value in zip(prompt_ids, values.tolist(), strict=True):
        if not math.isnan(value):
            sums.setdefault(key, []).append(value)
    return {key: sum(found) / len(found) for key, found in sums.items()}
