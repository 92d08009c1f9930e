"""Made-up requests, samples and figures for the tests; times in milliseconds unless named."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from loadgen.analysis.figures import LevelFigures
from loadgen.analysis.gather import LevelAccumulator
from loadgen.analysis.level import level_figures
from loadgen.loads import Closed
from loadgen.records import ClientSample, EngineEntry, Manifest, RequestError, RequestRecord, manifest_of

MS = 1_000_000


def request(
    sent: int | None, *gaps: int, tokens: list[int] | None = None, end: int | None = None, **fields: Any
) -> RequestRecord:
    """A request of the measured phase that ended with its last token event.

    Args:
        sent: when it was sent; None when no connection was had, and then ``end`` is needed.
        gaps: before each token event, the first counted from ``sent``.
        tokens: of each event; else one.
        fields: others of the record, and those that the above made.
    """
    tokens = tokens or [1] * len(gaps)
    made: dict[str, Any] = {
        "level": 0,
        "seq": 0,
        "prompt_id": "p",
        "worker": 0,
        "phase": "measure",
        "input_tokens": 10,
        "output_tokens": sum(tokens),
        "requested_tokens": sum(tokens),
        "token_source": "usage_continuous",
        "event_ns": [gap * MS for gap in gaps],
        "event_tokens": tokens,
    }
    if sent is not None:
        made["sent_ns"] = sent * MS
        if gaps:
            made["first_token_ns"] = (sent + gaps[0]) * MS
            made["last_token_ns"] = (sent + sum(gaps)) * MS
        end = sent + sum(gaps) if end is None else end
    assert end is not None
    return RequestRecord(**{**made, "end_ns": end * MS, **fields})


def failure(
    sent: int | None, *gaps: int, end: int, kind: Any = "timeout", message: str = "", **fields: Any
) -> RequestRecord:
    """A request that failed at ``end``."""
    return request(sent, *gaps, end=end, error=RequestError(kind=kind, message=message), **fields)


def sample(t: int, *, cpu: int = 0, worker: int = 0, lateness_ns: Iterable[int] = (), **fields: Any) -> ClientSample:
    """What a worker said of itself at ``t``, having used ``cpu`` of CPU time."""
    made: dict[str, Any] = dict.fromkeys(ClientSample.__struct_fields__, 0)
    made |= {"phase": "measure", "t_ns": t * MS, "cpu_ns": cpu * MS, "worker": worker, "lateness_ns": list(lateness_ns)}
    return ClientSample(**{**made, **fields})


def figures_of(
    records: Iterable[RequestRecord],
    samples: Iterable[ClientSample] = (),
    *,
    start: int = 0,
    end: int = 1000,
    concurrency: int = 1,
) -> LevelFigures:
    """The figures of a level whose measured window is from ``start`` to ``end``."""
    gathered = LevelAccumulator(start * MS, end * MS)
    for record in records:
        gathered.add(record)
    return level_figures(Closed(concurrency=concurrency), gathered, list(samples))


def changed(figures: LevelFigures, **fields: Any) -> LevelFigures:
    """The same figures with other fields; a dict replaces only the keys that it has."""
    merged = {
        name: msgspec.structs.replace(old, **value)
        if isinstance(value, dict) and isinstance(old, msgspec.Struct)
        else value
        for name, value in fields.items()
        for old in [getattr(figures, name)]
    }
    return msgspec.structs.replace(figures, **merged)


def manifest_from(**fields: Any) -> Manifest:
    """A manifest from what manifest.json would hold; what is not given of load, dataset and GPUs is made up."""
    load = {"model": None, "requests": None, "duration_s": None, "rounds": None, "warmup": None, "timeouts": None}
    gpu = {
        "index": 0, "uuid": "GPU-0", "name": "a GPU", "memory_bytes": 0, "memory_used_bytes": 0,
        "compute_capability": [9, 0], "architecture": "Hopper",
    }  # fmt: skip
    fields["load"] = load | fields["load"]
    fields["dataset"] = fields["dataset"] or {"kind": "unknown"}
    fields["gpus"] = [gpu | one for one in fields.get("gpus", [])]
    levels = [one if isinstance(one, dict) else msgspec.to_builtins(one) for one in fields["levels"]]
    return manifest_of({**fields, "levels": levels})


def engine_with(engine: EngineEntry, **fields: Any) -> EngineEntry:
    """The same engine with other fields or facts."""
    known = {name: value for name, value in fields.items() if name in EngineEntry.__struct_fields__}
    facts = {name: value for name, value in fields.items() if name not in known}
    return msgspec.structs.replace(engine, **known, facts={**engine.facts, **facts})
