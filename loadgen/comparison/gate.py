"""May two runs be compared? What differs between them, with both values, and what it does.

What spoils a comparison makes it NOT COMPARABLE: other prompts or token counts, other tokens per event,
another share of cached tokens, failed requests, a level that is not VALID, a closed loop against an open
one, a model of a GPU against a GPU, another tool's result against loadgen's. What only limits it is a
caveat: another machine, GPU or version. The engine and its arguments are what is compared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from loadgen.analysis.verdicts import MAX_ERROR_SHARE
from loadgen.comparison.sides import Side, SideLevel, by_prompt
from loadgen.loads import Load, kind_of
from loadgen.records import FileDataset, Manifest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

# Token counts: of the prompts that both were sent, mean absolute difference over the mean; where fewer than
# MIN_SHARED_PROMPTS of them are the same, the means, and the distance of Kolmogorov and Smirnov (with p < 0.01).
MAX_TOKEN_DIFFERENCE = 0.01
MAX_KS_DISTANCE = 0.10
MIN_SHARED_PROMPTS = 0.50
MAX_EVENT_DIFFERENCE = 0.10  # of the mean tokens per event
MAX_CACHED_DIFFERENCE = 0.05  # of the prompt tokens

Weight = Literal["spoils", "limits", "compared"]
Order = Literal["interleaved", "one after the other", "together", "separate"]


class Finding(msgspec.Struct, kw_only=True):
    """Something that differs, or that is known on one side only, and what it does to the comparison."""

    weight: Weight
    name: str
    a: str
    b: str
    text: str
    level: str | None = None


# --- levels and their order


def level_name(level: SideLevel) -> str:
    """The load as people say it, with its round from the second on."""
    return level.load.name + (f", round {level.round + 1}" if level.round else "")


def match_levels(a: Side, b: Side) -> list[tuple[SideLevel, SideLevel]]:
    """Levels of the same load and round. A load that one round has twice is matched in order."""

    def numbered(side: Side) -> dict[tuple[Load, int, int], SideLevel]:
        found: dict[tuple[Load, int, int], SideLevel] = {}
        for level in side.levels:
            copy = sum(key[:2] == (level.load.key, level.round) for key in found)
            found[level.load.key, level.round, copy] = level
        return found

    ours, theirs = numbered(a), numbered(b)
    return [(level, theirs[key]) for key, level in ours.items() if key in theirs]


def order_of(a: Side, b: Side) -> Order:
    """In which order the two were measured. Only runs of one sweep are known to share a clock."""
    if a.sweep is None or a.sweep != b.sweep:
        return "separate"
    spans = [
        {
            number: (
                min(level.start_s for level in side.levels if level.round == number),
                max(level.start_s + level.sample.window_s for level in side.levels if level.round == number),
            )
            for number in sorted({level.round for level in side.levels})
        }
        for side in (a, b)
    ]
    ours, theirs = (list(side.values()) for side in spans)
    if any(x[0] < y[1] and y[0] < x[1] for x in ours for y in theirs):
        return "together"
    turns = [(max(x[1], y[1]), min(x[0], y[0])) for x, y in zip(ours, theirs, strict=False)]
    if len(turns) > 1 and all(before[0] <= after[1] for before, after in itertools.pairwise(turns)):
        return "interleaved"
    return "one after the other"


# --- the gate


_ORDERS: dict[Order, str] = {
    "one after the other": "what changed on the machine in between is in the difference",
    "together": "both at the same time: they may have held each other up, and rounds are no launches of their own",
    "separate": "not of one sweep: what changed between the runs is in the difference",
}


def gate(a: Side, b: Side, matched: list[tuple[SideLevel, SideLevel]], order: Order) -> list[Finding]:
    """What differs, the gravest first; the sides are comparable when nothing spoils it.

    Args:
        matched: pairs of levels, as :func:`match_levels` gives them.
        order: as :func:`order_of` gives it.
    """
    findings = [*_imported(a, b), *_prompts(a.manifest, b.manifest), *_runs(a.manifest, b.manifest)]
    models = [sorted({kind_of(level.load) for level in side.levels}) for side in (a, b)]
    # A search for a capacity has both kinds: what is compared are the loads that both sides have.
    if not set(models[0]) & set(models[1]):
        findings.append(
            _finding(
                "spoils", "load model", [*map(_listed, models)], "a closed loop's latencies are not an open load's"
            )
        )
    elif not matched:
        names = [_listed(dict.fromkeys(level.load.name for level in side.levels)) for side in (a, b)]
        findings.append(_finding("spoils", "levels", names, "no level was measured on both sides"))
    for one, other in matched:
        findings += _levels(one, other)
    if order != "interleaved":
        findings.append(_finding("limits", "order", (order, order), _ORDERS[order]))
    weights = ["spoils", "limits", "compared"]
    return sorted(findings, key=lambda finding: weights.index(finding.weight))


def _finding(weight: Weight, name: str, sides: Sequence[object], text: str, level: str | None = None) -> Finding:
    a, b = sides
    return Finding(weight=weight, name=name, a=_shown(a), b=_shown(b), text=text, level=level)


def _shown(value: object) -> str:
    return "not known" if value is None else str(value)


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)


def _imported(a: Side, b: Side) -> list[Finding]:
    """Results of another tool. On both sides its faults are on both; on one side they would pass for a difference."""
    if a.imported is None and b.imported is None:
        return []
    tools = [side.imported or "loadgen" for side in (a, b)]
    faults = "no verdict, start burst and client delay are in these figures"
    if tools[0] != tools[1]:
        text = f"{faults}; clocks and windows differ: what the tools differ by is in the difference"
        return [_finding("spoils", "IMPORTED", tools, text)]
    findings = [_finding("limits", "IMPORTED", tools, f"{faults}, on both sides but not alike")]
    findings.append(
        _finding("limits", "prompts", ("not in the file",) * 2, "the same where place and input tokens are the same")
    )
    for what, text in (
        ("requests", "no interval can be had from a file without --save-detailed"),
        ("send times", "made up from slots or rate, and with them what goes into each block"),
    ):
        values = ["not in the file" if what in side.unknown else "in the file" for side in (a, b)]
        if "not in the file" in values:
            findings.append(_finding("limits", what, values, text))
    return findings


def _prompts(a: Manifest, b: Manifest) -> list[Finding]:
    kinds = [manifest.dataset.source for manifest in (a, b)]
    if kinds[0] != kinds[1]:
        return [_finding("spoils", "prompts", kinds, "the sides were sent different prompts")]
    if a.seed != b.seed:
        if isinstance(a.dataset, FileDataset):
            return [_finding("limits", "seed", (a.seed, b.seed), "the same prompts in another order")]
        return [_finding("spoils", "seed", (a.seed, b.seed), "another seed makes different prompts")]
    return []


def _gpu_names(manifest: Manifest) -> str:
    used = manifest.engine.gpu_uuids
    gpus = [gpu for gpu in manifest.gpus if not used or gpu.uuid in used] or manifest.gpus
    return _listed(gpu.name + (f" at {gpu.power_limit_w:g} W" if gpu.power_limit_w else "") for gpu in gpus)


def _gpu_uuids(manifest: Manifest) -> str:
    return _listed(manifest.engine.gpu_uuids or [gpu.uuid for gpu in manifest.gpus])


# What is looked up in both manifests: weight, name, what it means where it differs, and the value.
_RUN_RULES: list[tuple[Weight, str, str, Callable[[Manifest], object]]] = [
    ("spoils", "SIMULATED", "one side is the embedded engine's model, not a GPU", lambda m: m.simulated),
    (
        "limits",
        "client machine",
        "latencies include the client's own",
        lambda m: _listed(str(one) for one in (m.host.name, m.host.processor, m.host.cores) if one is not None),
    ),
    ("limits", "kernel", "another operating system", lambda m: m.host.kernel),
    ("limits", "GPU", "the difference is of the GPUs too", _gpu_names),
    ("limits", "driver", "the difference is of the drivers too", lambda m: m.driver),
    ("limits", "model", "the difference is of the models too", lambda m: m.engine.model),
    ("limits", "made-up weights", "what is generated differs", lambda m: m.engine.dummy_weights),
    ("limits", "endpoint", "templates and parsing differ", lambda m: m.engine.endpoint),
    ("limits", "loadgen version", "definitions may have changed", lambda m: m.client.loadgen_version),
    ("limits", "client workers", "the client's own delay differs", lambda m: m.client.workers),
    (
        "limits",
        "timeouts",
        "what counts as failed differs",
        lambda m: _listed(f"{key} {value}" for key, value in (m.load.timeouts or {}).items()),
    ),
    ("limits", "warm-up", "the state at the start of the window differs", lambda m: m.load.warmup),
    (
        "limits",
        "amount",
        "the samples differ in size",
        lambda m: m.load.amount,
    ),
    ("compared", "engine", "what is compared", lambda m: m.engine.name),
]


def _runs(a: Manifest, b: Manifest) -> list[Finding]:
    findings = []
    for weight, name, text, value in _RUN_RULES:
        ours, theirs = value(a), value(b)
        if ours != theirs:
            findings.append(_finding(weight, name, (ours, theirs), text))
    if _gpu_uuids(a) != _gpu_uuids(b) and _gpu_names(a) == _gpu_names(b):
        text = "two cards of one kind differ by a few percent"
        findings.append(_finding("limits", "GPU", (_gpu_uuids(a), _gpu_uuids(b)), text))
    ours, theirs = a.engine.arguments, b.engine.arguments
    if ours != theirs:
        alone = [_listed(x for x in mine if x not in other) or "-" for mine, other in ((ours, theirs), (theirs, ours))]
        if alone != ["-", "-"]:
            findings.append(_finding("compared", "engine arguments", alone, "what is compared"))
    return findings


def _levels(one: SideLevel, other: SideLevel) -> list[Finding]:
    name, a, b = level_name(one), one.sample, other.sample
    findings = []

    def found(weight: Weight, what: str, sides: Sequence[object], text: str) -> None:
        findings.append(_finding(weight, what, sides, text, name))

    # An imported level has no verdict: that is said of the side.
    if any(level.verdict not in ([], ["VALID"]) for level in (one, other)):
        found("spoils", "verdict", (_listed(one.verdict), _listed(other.verdict)), "a level that is not VALID")
    shares = [float(s.failed.mean()) if len(s.failed) else 0.0 for s in (a, b)]
    if max(shares) > MAX_ERROR_SHARE:
        text = f"more than {MAX_ERROR_SHARE:.0%} failed"
        found("spoils", "errors", [f"{share:.2%}" for share in shares], text)
    elif shares[0] != shares[1]:
        found("limits", "errors", [f"{share:.2%}" for share in shares], "what failed is missing in the means")
    shared = sorted(set(a.prompt_ids) & set(b.prompt_ids))
    least = min(len(set(a.prompt_ids)), len(set(b.prompt_ids)))
    enough = bool(least) and len(shared) / least >= MIN_SHARED_PROMPTS
    if least and not enough:
        text = f"only {len(shared)} prompts were sent by both: other prompts of the same source"
        found("limits", "prompts sent", (len(set(a.prompt_ids)), len(set(b.prompt_ids))), text)
    caps = [getattr(level.load, "max_in_flight", None) for level in (one, other)]
    if caps[0] != caps[1]:
        found("limits", "in flight at most", caps, "requests beyond it are dropped and count as failed")
    for what, ours, theirs in (
        ("input tokens", a.input_tokens, b.input_tokens),
        ("output tokens", a.output_tokens, b.output_tokens),
    ):
        findings += _tokens(what, name, (a.prompt_ids, ours), (b.prompt_ids, theirs), shared if enough else [])
    if a.token_sources != b.token_sources:
        text = "tokens were not counted in the same way"
        found("limits", "token source", (_listed(a.token_sources), _listed(b.token_sources)), text)
    per_event = [a.tokens_per_event, b.tokens_per_event]
    if None in per_event and per_event[0] != per_event[1]:
        found("limits", "tokens per event", per_event, "not known on both sides")
    elif per_event[0] and per_event[1] and abs(math.log(per_event[1] / per_event[0])) > MAX_EVENT_DIFFERENCE:
        text = f"more than {MAX_EVENT_DIFFERENCE:.0%} apart: a first event of several tokens comes later than a token"
        found("spoils", "tokens per event", [f"{value:.3f}" for value in per_event if value], text)
    findings += _cached(one, other, name)
    return findings


def _tokens(
    what: str,
    level: str,
    a: tuple[list[str], Array],
    b: tuple[list[str], Array],
    shared: list[str],
) -> list[Finding]:
    """Token counts of the prompts that both sent, where there are enough; and of all requests."""
    import numpy as np
    from scipy import stats

    ours, theirs = a[1][~np.isnan(a[1])], b[1][~np.isnan(b[1])]
    if not len(ours) or not len(theirs):
        if len(ours) == len(theirs):
            return []
        values = [f"{x.mean():,.1f}" if len(x) else None for x in (ours, theirs)]
        return [_finding("limits", what, values, "not known on both sides", level)]
    means = [f"{ours.mean():,.1f} on average", f"{theirs.mean():,.1f} on average"]
    if shared:
        left, right = by_prompt(*a), by_prompt(*b)
        both = [(left[key], right[key]) for key in shared if key in left and key in right]
        total = sum(x + y for x, y in both) / 2
        apart = sum(abs(x - y) for x, y in both) / total if total else 0.0
        if apart > MAX_TOKEN_DIFFERENCE:
            text = f"{apart:.1%} apart on the same prompts (limit {MAX_TOKEN_DIFFERENCE:.0%})"
            return [_finding("spoils", what, means, text, level)]
    off = abs(math.log(theirs.mean() / ours.mean())) if ours.mean() > 0 < theirs.mean() else 0.0
    distance, chance = 0.0, 1.0
    if min(len(ours), len(theirs)) > 1:  # an imported mean is one value
        test = stats.ks_2samp(ours, theirs, method="asymp")
        distance, chance = float(test.statistic), float(test.pvalue)
    differs = off > MAX_TOKEN_DIFFERENCE or (distance > MAX_KS_DISTANCE and chance < 0.01)
    if not differs:
        return []
    if shared:
        text = "the same on the same prompts, but one side got further through them"
        return [_finding("limits", what, means, text, level)]
    text = f"distributions differ: means {off:.1%} apart (limit {MAX_TOKEN_DIFFERENCE:.0%}), KS distance {distance:.2f}"
    return [_finding("spoils", what, means, text, level)]


def _cached(one: SideLevel, other: SideLevel, level: str) -> list[Finding]:
    """The replies' own count where both have it, else what the engines say of their prefix caches."""
    replies = [one.sample.cached_share, other.sample.cached_share]
    engines = [one.prefix_hits, other.prefix_hits]
    shares = replies if None not in replies else engines
    known = [share for share in shares if share is not None]
    if len(known) == 2:
        if abs(known[0] - known[1]) <= MAX_CACHED_DIFFERENCE:
            return []
        text = f"more than {MAX_CACHED_DIFFERENCE:.0%} of the prompt tokens: one side has less to compute"
        return [_finding("spoils", "cached tokens", [f"{share:.1%}" for share in known], text, level)]
    values = [reply if reply is not None else engine for reply, engine in zip(replies, engines, strict=True)]
    seen = [value for value in values if value is not None]
    if not seen or max(seen) <= MAX_CACHED_DIFFERENCE:
        return []  # known to be nearly none, or not known at all
    text = "the share served from the prefix cache is known on one side only"
    if len(seen) == 1:
        text += "; an engine that keeps no such cache says nothing"
    shown = [None if value is None else f"{value:.1%}" for value in values]
    return [_finding("spoils", "cached tokens", shown, text, level)]
