"""What a sweep is to do, and everything about it that can be checked before anything is started."""

from __future__ import annotations

import random
import resource
from pathlib import Path
from typing import Protocol

import msgspec

from loadgen.analysis.figures import LevelSummary
from loadgen.analysis.probes import Ask
from loadgen.analysis.search import MAX_LEVELS
from loadgen.analysis.slo import Slo
from loadgen.client.endpoint import Api, check_prompt
from loadgen.client.pacing import Arrivals
from loadgen.client.runner import LevelSpec, default_workers
from loadgen.client.wire import Timeouts
from loadgen.engines.spec import EngineCommand, EngineSpec
from loadgen.engines.table import ENGINES
from loadgen.errors import UsageError
from loadgen.loads import ArrivalKind, arrival_text
from loadgen.records import ClientSample, Dataset, FileDataset, Goal, LoadEntry, Manifest, SyntheticDataset
from loadgen.workloads.datasets import shipped
from loadgen.workloads.prompts import FIRST_TOKEN_ID, DatasetSource, SourceSpec

SPARE_FILES = 100
DEFAULT_IN_FLIGHT = 4096
# What a search is taken to need in workers, since its loads are not known; it says where that was too few.
FIND_IN_FLIGHT = 1024
# An open loop runs so long before it is measured, as a share of what is measured, within bounds.
WARMUP_SHARE, LEAST_WARMUP_S, MOST_WARMUP_S = 0.2, 2.0, 30.0
# Synthetic prompts of one level; the next level's begin behind them.
PROMPTS_PER_LEVEL = 10_000_000


class SweepSpec(msgspec.Struct, kw_only=True):
    """Everything that a sweep needs to know.

    Attributes:
        command: the command line, for the manifest.
        levels: concurrency of each closed-loop level, in order; empty where ``rates`` are given.
        rates: requests/s of each open-loop level.
        arrival: kind and coefficient of variation of an open loop's gaps.
        times_ns: of a trace that is replayed.
        max_in_flight: of an open loop.
        requests, duration_s: how much is measured at each level; exactly one is set.
        precision: each level goes on until its figures are known so well (relative half width of their
            95 % intervals), or for ``max_duration_s``; ``duration_s`` is then the least.
        find: what is looked for, in place of ``levels`` and ``rates``.
        rounds: how often all levels are gone through, if more than once in an order drawn from the seed.
        slos: objectives that requests are held against.
        attainment: the share of requests that must meet them, which the answer goes by; None takes the usual one.
        engines: launched one after another; else ``url`` is attached to.
        interleave: one round of each engine in turn, the order turned round each time.
        together: all engines at once, each on a device of its own.
        offline_ceiling: run trtllm-bench on the prompts of the highest level too.
        model: served name at ``url``; None takes the only one that the server lists.
        dialect: a key of DIALECTS; None goes by what the server says it is.
        api: None takes chat for prompts that are messages, else completions.
        headers: sent with every request; none of their values is kept.
        workers: None chooses from load and cores.
        watch: whether the engine's metrics and the GPUs are sampled while a level runs.
        output: the run folder; must not hold anything yet.
    """

    command: list[str]
    levels: list[int] = []
    rates: list[float] = []
    arrival: tuple[ArrivalKind, float] = ("poisson", 1.0)
    times_ns: tuple[int, ...] = ()
    max_in_flight: int = DEFAULT_IN_FLIGHT
    requests: int | None = None
    duration_s: float | None = None
    precision: float | None = None
    max_duration_s: float | None = None
    find: Goal | None = None
    rounds: int = 1
    slos: list[Slo] = []
    attainment: float | None = None
    warmup: bool = True
    engines: list[EngineSpec] = []
    interleave: bool = False
    together: bool = False
    offline_ceiling: bool = False
    url: str | None = None
    model: str | None = None
    dialect: str | None = None
    api: Api | None = None
    headers: dict[str, str] = {}
    verify_tls: bool = True
    extra_body: dict[str, bytes] = {}
    source: SourceSpec
    timeouts: Timeouts = Timeouts()
    workers: int | None = None
    watch: bool = True
    output: Path

    @property
    def loads(self) -> int:
        """Levels of one round; of a search, the most that there can be."""
        if self.find is not None:
            return MAX_LEVELS
        return len(self.rates or self.levels)

    @property
    def most_in_flight(self) -> int:
        """The most requests that can be in flight at once."""
        if self.find is not None:
            return self.max_in_flight
        return self.max_in_flight if self.rates else max(self.levels)

    def load_entry(self) -> LoadEntry:
        """The manifest's ``load``."""
        model = "search" if self.find is not None else "open" if self.rates else "closed"
        return LoadEntry(
            model=model,
            arrival=arrival_text(*self.arrival) if model == "open" else None,
            find=self.find,
            requests=self.requests,
            duration_s=self.duration_s,
            precision=self.precision,
            max_duration_s=None if self.precision is None else self.max_duration_s,
            rounds=self.rounds,
            slo=",".join(slo.text for slo in self.slos) or None,
            attainment=self.attainment,
            warmup=self.warmup,
            timeouts=msgspec.to_builtins(self.timeouts),
        )

    def default_workers(self) -> int:
        """Worker processes for the largest level."""
        if self.find is not None:
            return default_workers(FIND_IN_FLIGHT)
        # An open loop's requests in flight are not known: about two seconds' worth, for this purpose.
        return default_workers(
            min(self.max_in_flight, int(2 * max(self.rates)) + 1) if self.rates else max(self.levels)
        )

    def level_specs(self) -> list[LevelSpec]:
        """The levels of all rounds, in the order in which they are run: of several rounds each has its own, drawn
        from the seed, so that what grows with time (heat, a cache that fills) falls on no load more than on another.

        Of a search none: they follow from each other (:meth:`asked`).
        """
        if self.find is not None:
            return []
        return [
            self._level(round_index * self.loads + place, position, round_index if self.rounds > 1 else None)
            for round_index in range(self.rounds)
            for place, position in enumerate(self._order(round_index))
        ]

    def _order(self, round_index: int) -> list[int]:
        order = list(range(self.loads))
        if self.rounds > 1:
            random.Random(self.source.seed * 1_000_003 + round_index).shuffle(order)
        return order

    def asked(self, index: int, ask: Ask) -> LevelSpec:
        """The level that a search asks for."""
        closed = ask.over == "concurrency"
        return self._spec(
            index, int(ask.load) if closed else None, None if closed else ask.load, duration_s=ask.duration_s
        )

    def _level(self, index: int, position: int, round_index: int | None) -> LevelSpec:
        if not self.rates:
            return self._spec(index, self.levels[position], None, duration_s=self.duration_s, round_index=round_index)
        return self._spec(index, None, self.rates[position], duration_s=self.duration_s, round_index=round_index)

    def _spec(
        self,
        index: int,
        concurrency: int | None,
        rate: float | None,
        *,
        duration_s: float | None,
        round_index: int | None = None,
    ) -> LevelSpec:
        """A closed loop's level, or an open one's."""
        if rate is None:
            assert concurrency is not None
            return LevelSpec(
                index=index,
                concurrency=concurrency,
                requests=self.requests,
                duration_s=duration_s,
                warmup=self.warmup,
                precision=self.precision,
                max_duration_s=self.max_duration_s,
                round=round_index,
            )
        kind, cv = self.arrival
        arrivals = Arrivals(
            # Every level and round has a schedule of its own, and every engine the same ones.
            kind=kind, rate_rps=rate, cv=cv, seed=self.source.seed * 1_000_003 + index, times_ns=self.times_ns
        )  # fmt: skip
        expected_s = duration_s if duration_s is not None else (self.requests or 0) / rate
        return LevelSpec(
            index=index,
            concurrency=self.max_in_flight,
            arrivals=arrivals,
            requests=self.requests,
            duration_s=duration_s,
            warmup=self.warmup and kind != "replay",  # a trace is measured from its first request on
            warmup_s=min(max(WARMUP_SHARE * expected_s, LEAST_WARMUP_S), MOST_WARMUP_S),
            precision=self.precision,
            max_duration_s=self.max_duration_s,
            round=round_index,
        )


class Listener(Protocol):
    """Is told how a sweep gets on; the terminal shows it. ``run`` is the folder of the run that it is about."""

    def said(self, text: str) -> None: ...
    def started(self, manifest: Manifest, run: Path) -> None: ...
    def level_started(self, spec: LevelSpec, run: Path) -> None: ...
    def sampled(self, sample: ClientSample, run: Path) -> None: ...
    def level_ended(self, summary: LevelSummary, run: Path) -> None: ...


class Workload(msgspec.Struct, kw_only=True):
    """The prompts as every run sends them.

    Attributes:
        api: the API that carries them.
        dataset: the manifest's ``dataset``.
        stride: level k begins at prompt k * stride, in every run alike, so that engines get the same
            prompts at a level, and levels share none where there are enough.
        longest: tokens of the longest synthetic prompt and answer; None for a dataset.
    """

    api: Api
    dataset: Dataset
    stride: int
    longest: int | None = None


def choose_workload(spec: SweepSpec) -> Workload:
    """Looks through the prompts; a whole dataset is checked on the way.

    Raises:
        DatasetError: it cannot be used.
        UsageError: a prompt does not fit the API.
    """
    source = spec.source.open()
    if not isinstance(source, DatasetSource):
        if spec.api == "chat":
            raise UsageError("synthetic prompts are token ids, which --endpoint chat cannot carry; use a --dataset")
        assert spec.source.input_tokens is not None and spec.source.output_tokens is not None
        return Workload(
            api="completions",
            dataset=SyntheticDataset(
                input_tokens=str(spec.source.input_tokens),
                output_tokens=str(spec.source.output_tokens),
                vocab_size=spec.source.vocab_size,
            ),
            stride=PROMPTS_PER_LEVEL,
            longest=spec.source.input_tokens.high + spec.source.output_tokens.high,
        )
    api: Api = spec.api or ("chat" if any(p.kind == "messages" for p in source.prompts) else "completions")
    for prompt in source.prompts:
        check_prompt(api, prompt)
    assert spec.source.path is not None
    path = Path(spec.source.path)
    return Workload(
        api=api,
        dataset=FileDataset(
            path=f"datasets/{path.name}" if path in shipped().values() else str(path),
            sha256=_sha256(path),
            prompts=len(source.prompts),
        ),
        stride=max(1, len(source.prompts) // (spec.loads * spec.rounds)),
    )


def _sha256(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_open_files(concurrency: int, workers: int) -> None:
    """Refuses a level that needs more connections than this system lets a process open.

    Raises:
        UsageError: says how many can be had.
    """
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    usable = limit - SPARE_FILES
    if -(-concurrency // workers) > usable:
        raise UsageError(
            f"{concurrency} requests in flight: {workers} worker process(es) can open {usable * workers:,} connections "
            f"here (ulimit -Hn {limit}); use more --workers, fewer in flight, or raise the limit"
        )


def check_lengths(spec: EngineSpec, command: EngineCommand, longest: int | None) -> None:
    """Refuses synthetic prompts that are longer than the model, or the engine as it is told, can take.

    Raises:
        UsageError: says how long they may be.
    """
    limits = [n for n in (spec.max_seq_len, command.facts.get("max_position_embeddings")) if isinstance(n, int)]
    limit = min(limits, default=0) - ENGINES[spec.kind].spare_tokens
    if longest is not None and limits and longest > limit:
        raise UsageError(
            f"prompt and answer take up to {longest:,} tokens, and {spec.name} serves {spec.model} with at most "
            f"{limit:,}; use a smaller --input-tokens or --output-tokens"
        )


def fit_vocabulary(source: SourceSpec, commands: list[EngineCommand]) -> SourceSpec:
    """Synthetic prompts that every launched model has the words for."""
    sizes = [size for command in commands if isinstance(size := command.facts.get("vocab_size"), int)]
    if source.path is not None or not sizes or min(sizes) >= source.vocab_size:
        return source
    return msgspec.structs.replace(source, vocab_size=max(min(sizes), FIRST_TOKEN_ID + 1))
