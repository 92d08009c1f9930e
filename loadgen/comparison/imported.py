"""Results of ``vllm bench serve --save-result`` as a side of a comparison.

One JSON object is one level; a file can hold several (``--append-result``), and a folder several files. Levels of
the same load are rounds of it, in the order of their dates. What is read are the fields that every release since
benchmark_serving.py of 2024 writes, and those of later ones where they are there: ``failed``, ``start_times``,
``latencies``. The lists of requests are there with ``--save-detailed`` only.

Of a request the file has TTFT, the gaps between its events and its tokens. From these:

    E2E   TTFT + sum of the gaps: to the last event with a choice, which is what loadgen's E2E means
    TPOT  sum of the gaps / (output tokens - 1), taking the first event for one token

What it does not have: a verdict, how late the client was, how many tokens came with an event (they are
spread evenly over a request's events, for the throughput over time), and, in older files, when a request was sent:
that is then made up from the slots of the closed loop, or from the rate.
"""

from __future__ import annotations

import heapq
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.analysis.outcome import LATENCIES
from loadgen.comparison.blocks import THROUGHPUT
from loadgen.comparison.sides import BINS, Sample, Side, SideLevel
from loadgen.environment import Host
from loadgen.errors import UsageError
from loadgen.loads import AllAtOnce, Closed, Load, Open
from loadgen.records import ClientEntry, EngineEntry, LoadEntry, Manifest, UnknownDataset

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

TOOL = "vllm bench serve"
EXPECTED = f"expected the JSON that {TOOL} --save-result --save-detailed writes"
DETAIL = ("ttfts", "itls", "input_lens", "output_lens", "errors")
LATENCY_NAMES = {"ttft_s": "ttft", "tpot_s": "tpot", "e2e_s": "e2el"}
STATISTIC_NAMES = {"mean": "mean", "p50": "median", "p90": "p90", "p99": "p99"}


class Result(msgspec.Struct, kw_only=True):
    """What is read of one result; seconds unless named. Lists have an entry for each request, in order of issue."""

    duration: float
    completed: int
    total_input_tokens: int
    total_output_tokens: int
    output_throughput: float
    failed: int | None = None
    num_prompts: int | None = None
    date: str = ""
    backend: str | None = None
    endpoint_type: str | None = None
    model_id: str | None = None
    request_rate: float | str | None = None
    burstiness: float | None = None
    max_concurrency: int | None = None
    ramp_up_strategy: str | None = None
    ttfts: list[float] | None = None
    itls: list[list[float]] | None = None
    input_lens: list[int] | None = None
    output_lens: list[int] | None = None
    errors: list[str | None] | None = None
    start_times: list[float] | None = None
    latencies: list[float] | None = None
    figures: dict[tuple[str, str], float] = {}

    @property
    def detailed(self) -> bool:
        """Whether the requests are there."""
        return all(getattr(self, name) is not None for name in DETAIL)

    @property
    def requests(self) -> int:
        """How many were sent."""
        if self.ttfts is not None:
            return len(self.ttfts)
        return self.num_prompts or self.completed + (self.failed or 0)

    @property
    def rate_rps(self) -> float:
        """Infinite where nothing held the requests back but the slots."""
        if self.request_rate in (None, "inf"):
            return math.inf
        return float(self.request_rate) if isinstance(self.request_rate, int | float) else math.nan


def is_imported(path: Path) -> bool:
    """Whether a path is results of another tool: a file, or a folder of JSON files that is no run folder."""
    if path.is_file():
        return True
    ours = ("manifest.json", "runs.json", "records.jsonl", "records.jsonl.gz")
    return path.is_dir() and not any((path / name).exists() for name in ours) and bool(_files(path))


def import_side(path: Path, label: str | None = None) -> Side:
    """The results of a file, or of the JSON files in a folder, as a side.

    Raises:
        UsageError: a file is cut, or is something else; with its name and what was expected.
    """
    results = [(file, result) for file in (_files(path) if path.is_dir() else [path]) for result in _read(file)]
    results.sort(key=lambda pair: pair[1].date)
    levels: list[SideLevel] = []
    for file, result in results:
        load = _load(file, result)
        levels.append(
            SideLevel(
                load=load,
                round=sum(level.load == load for level in levels),
                verdict=[],
                sample=_sample(result) if result.detailed else _totals(result),
                figures=None if result.detailed else result.figures,
                start_s=min(result.start_times or [0.0]),
            )
        )
    first = results[0][1]
    unknown = {"requests"} if not all(result.detailed for _, result in results) else set()
    if any(result.detailed and result.start_times is None for _, result in results):
        unknown.add("send times")
    return Side(
        label=label or path.name,
        manifest=Manifest(
            command=TOOL.split(),
            started_utc=first.date,
            simulated=False,
            host=Host(),
            engine=EngineEntry(kind=first.backend or first.endpoint_type or "an engine", model=first.model_id),
            dataset=UnknownDataset(),
            seed=0,
            load=LoadEntry(
                model=None, requests=first.requests, duration_s=None, rounds=None, warmup=None, timeouts=None
            ),
            levels=[level.load for level in levels],
            client=ClientEntry(),
        ),
        levels=levels,
        imported=TOOL,
        unknown=sorted(unknown),
    )


def _files(folder: Path) -> list[Path]:
    """vllm writes a second file for PyTorch's dashboards, which holds nothing more."""
    return sorted(file for file in folder.glob("*.json") if not file.name.endswith(".pytorch.json"))


def _read(file: Path) -> list[Result]:
    try:
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read ({error}); {EXPECTED}") from None
    found: list[Result] = []
    place = 0
    while place < len(text) or not found:
        try:
            value, place = json.JSONDecoder().raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError) as error:
            line = text.count("\n", 0, getattr(error, "pos", 0)) + 1
            raise UsageError(f"{file}:{line}: is cut, or no JSON ({error}); {EXPECTED}") from None
        found.append(_result(file, value))
        while place < len(text) and text[place].isspace():
            place += 1
    return found


def _result(file: Path, value: object) -> Result:
    if not isinstance(value, dict):
        raise UsageError(f"{file}: holds no JSON object; {EXPECTED}")
    try:
        result = msgspec.convert({key: found for key, found in value.items() if key != "figures"}, Result)
    except msgspec.ValidationError as error:
        raise UsageError(f"{file}: {error}; {EXPECTED}") from None
    lists: dict[str, int] = {
        name: len(found)
        for name in (*DETAIL, "start_times", "latencies")
        if (found := getattr(result, name)) is not None
    }
    if len(set(lists.values())) > 1:
        shown = ", ".join(f"{name} {count}" for name, count in lists.items())
        raise UsageError(f"{file}: its lists are of different lengths ({shown}); {EXPECTED}")
    if not result.duration > 0 or not result.requests:
        raise UsageError(f"{file}: nothing was measured (duration {result.duration:g} s); there is nothing to compare")
    result.figures = _figures(result, value)
    return result


def _figures(result: Result, value: dict[str, Any]) -> dict[tuple[str, str], float]:
    """The aggregates, in seconds and tokens/s, by metric and statistic; 0 is what is written where nothing is known."""
    found = {(THROUGHPUT, "mean"): result.output_throughput}
    for metric, name in LATENCY_NAMES.items():
        for statistic, prefix in STATISTIC_NAMES.items():
            known = value.get(f"{prefix}_{name}_ms")
            if isinstance(known, int | float) and known > 0:
                found[metric, statistic] = known / 1e3
    return found


def _load(file: Path, result: Result) -> Load:
    """As a manifest has it. Burstiness is the gamma distribution's shape: 1 / CV^2."""
    if result.ramp_up_strategy is not None:
        raise UsageError(
            f"{file}: its rate was ramped up ({result.ramp_up_strategy}): that is no one load to compare at"
        )
    if not result.rate_rps > 0:
        raise UsageError(f"{file}: request_rate {result.request_rate!r} is no rate; {EXPECTED}")
    if math.isfinite(result.rate_rps):
        shape = 1.0 if result.burstiness is None else result.burstiness
        arrival = "poisson" if shape == 1 else "constant" if math.isinf(shape) else f"gamma:{shape**-0.5:g}"
        return Open(rate_rps=result.rate_rps, arrival=arrival, max_in_flight=result.max_concurrency)
    if result.max_concurrency is not None:
        return Closed(concurrency=result.max_concurrency)
    return AllAtOnce(requests=result.requests)


def _totals(result: Result) -> Sample:
    """Of a file without requests: how many there were, and their mean tokens."""
    import numpy as np

    lost = result.requests - result.completed
    sample = _empty(result.duration, np.arange(result.requests) < lost)
    if result.completed:
        sample.input_tokens = np.array([result.total_input_tokens / result.completed])
        sample.output_tokens = np.array([result.total_output_tokens / result.completed])
    return sample


def _empty(window_s: float, failed: NDArray[np.bool_]) -> Sample:
    import numpy as np

    none = np.zeros(0)
    return Sample(
        window_s=window_s, prompt_ids=[], sent_s=none, failed=failed, latencies=dict.fromkeys(LATENCIES, none),
        input_tokens=none, output_tokens=none, tokens_per_event=None, token_sources=[TOOL], cached_share=None,
        tokens=np.zeros(BINS),
    )  # fmt: skip


def _sample(result: Result) -> Sample:
    """The requests, in order of their sends. Prompts are the same where place and input tokens are."""
    import numpy as np

    ttfts, itls = result.ttfts or [], result.itls or []
    input_lens, output_lens, errors = result.input_lens or [], result.output_lens or [], result.errors or []
    n = result.requests
    # A reply that was not streamed has 0 for its TTFT, and so has a request that was refused.
    failed = np.array([bool(errors[i]) or (ttfts[i] <= 0 and output_lens[i] <= 0) for i in range(n)], dtype=bool)
    ttft = np.array([t if t > 0 else math.nan for t in ttfts])
    gaps = np.array([math.fsum(own) for own in itls])
    e2e = ttft + gaps
    if result.latencies is not None:
        e2e = np.where(np.isnan(e2e), np.array(result.latencies), e2e)
    tokens = np.array(output_lens, dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where((tokens > 1) & (gaps > 0), gaps / (tokens - 1), math.nan)
    sent = _sent(result, np.where(np.isnan(e2e) | failed, 0.0, e2e))
    bins = np.zeros(BINS)
    for i in np.flatnonzero(~failed):
        at = sent[i] + np.cumsum([0.0 if math.isnan(ttft[i]) else ttft[i], *itls[i]])
        places = np.clip((at / result.duration * BINS).astype(int), 0, BINS - 1)
        np.add.at(bins, places, tokens[i] / len(at))
    order = np.argsort(sent, kind="stable")
    nothing = np.where(failed, math.nan, 0.0)
    sample = _empty(result.duration, failed[order])
    sample.prompt_ids = [f"{i}: {input_lens[i]} tokens" for i in order]
    sample.sent_s = sent[order]
    known = {"ttft_s": ttft, "tpot_s": tpot, "e2e_s": e2e}
    unknown = np.full(n, math.nan)
    sample.latencies = {name: (known.get(name, unknown) + nothing)[order] for name in LATENCIES}
    sample.input_tokens = (np.array(input_lens, dtype=float) + nothing)[order]
    sample.output_tokens = (tokens + nothing)[order]
    sample.tokens = bins
    return sample


def _sent(result: Result, took_s: Array) -> Array:
    """When each request was sent, in seconds from the first: as the file says, else as its load would have it."""
    import numpy as np

    n = result.requests
    if result.start_times is not None:
        starts = np.array(result.start_times)
        known = starts[starts > 0]  # a request that failed early has 0
        first = float(known.min()) if len(known) else 0.0
        return np.maximum(starts - first, 0.0)
    if math.isfinite(result.rate_rps):
        return np.minimum(np.arange(n) / result.rate_rps, result.duration)
    sent = np.zeros(n)
    if result.max_concurrency is not None:
        free_at = [0.0] * result.max_concurrency
        for i in range(n):
            sent[i] = heapq.heappop(free_at)
            heapq.heappush(free_at, sent[i] + took_s[i])
    return np.minimum(sent, result.duration)
