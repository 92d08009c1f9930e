"""Whether a load keeps the objectives: the word that ``plan`` and ``sweep --find`` say of a level. Pure."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from loadgen.analysis.figures import ServerFigures
from loadgen.analysis.slo import Slo, SloFigures

Word = Literal["holds", "breaks", "undecided", "not counted"]

FULL_CACHE = 0.95
# A level with nothing worse than these shows that a load is too much, but not that it is not.
SHOWS_LIMIT = {"ERRORS", "DRIFTING", "TOO_FEW"}
Z2 = 1.959964**2


class Criterion(msgspec.Struct, kw_only=True):
    """A share that is to reach a target: all requests within what is asked of each, or an objective on a percentile."""

    name: str
    target: float
    requests: int
    share: float | None = None
    ci95: tuple[float, float] | None = None

    @property
    def word(self) -> Word:
        """``holds`` and ``breaks`` are said by the interval alone."""
        if self.ci95 is None:
            return "undecided"
        if self.ci95[0] >= self.target:
            return "holds"
        return "breaks" if self.ci95[1] < self.target else "undecided"

    @property
    def effective(self) -> float | None:
        """The size of the independent sample behind the interval: Wilson's formula solved for it."""
        if self.share is None or self.ci95 is None:
            return None
        end = max(self.ci95, key=lambda end: abs(end - self.share))  # type: ignore[operator]
        return Z2 * end * (1 - end) / (end - self.share) ** 2 if 0 < end < 1 else None

    @property
    def slack(self) -> float:
        """How far the share is above its target, 1 being all of the way; infinite where it is not known."""
        return math.inf if self.share is None else (self.share - self.target) / (1 - self.target)


def criteria_of(figures: SloFigures, slos: list[Slo], attainment: float) -> list[Criterion]:
    """What a level's figures are held against.

    Args:
        figures: of these objectives.
        attainment: the share of requests, in 0..1, that are to meet what is asked of each request.
    """
    criteria = [
        Criterion(
            name=f"p{slo.percentile:g} of {slo.metric}" if slo.percentile else slo.text,
            target=(slo.percentile or 0) / 100,
            requests=found.requests,
            share=found.share,
            ci95=found.ci95,
        )
        for slo, found in zip([slo for slo in slos if slo.percentile is not None], figures.percentiles, strict=True)
    ]
    if any(slo.percentile is None for slo in slos):
        criteria.insert(
            0,
            Criterion(
                name="requests within the SLO",
                target=attainment,
                requests=figures.offered,
                share=figures.attainment,
                ci95=figures.attainment_ci95,
            ),
        )
    return criteria


def word_of(criteria: list[Criterion]) -> Word:
    """All of them, or one that is broken."""
    words = [criterion.word for criterion in criteria]
    return "holds" if all(w == "holds" for w in words) else "breaks" if "breaks" in words else "undecided"


def tightest(criteria: list[Criterion]) -> int:
    """Index of the criterion that is nearest to failing, or fails by most."""
    return min(range(len(criteria)), key=lambda i: criteria[i].slack)


def requests_needed(target: float, slots: int | None) -> int:
    """How many requests, all within the limit, put the lower end of Wilson's interval at the target.

    n / (n + z^2) >= target; and six waves of a closed loop, without which there is no interval.
    """
    return max(math.ceil(Z2 * target / (1 - target)), 6 * (slots or 0))


def needed_if_all_keep(criteria: list[Criterion], slots: int | None) -> int | None:
    """Requests that would decide a load where all keep to it, if they are as much alike as those that were sent.

    None where one did not keep to it: how many it takes then is not known.
    """
    open_ones = [criterion for criterion in criteria if criterion.word == "undecided"]
    if not open_ones or any(criterion.share != 1 for criterion in open_ones):
        return None
    return max(_needed(criterion, slots) for criterion in open_ones)


def _needed(criterion: Criterion, slots: int | None) -> int:
    needed = requests_needed(criterion.target, slots)
    effective = criterion.effective
    return max(needed, math.ceil(needed * criterion.requests / effective)) if effective else needed


def binds(figures: SloFigures, server: ServerFigures | None, load: str) -> str:
    """What a load that breaks the objectives breaks first, in words.

    Args:
        figures: of the level.
        server: what the engine says of it.
        load: in words.
    """
    shares = [(share, name) for name, share in figures.missed.items()]
    if figures.failed:
        shares.insert(0, (figures.failed / figures.offered, "errors"))
    missed, name = max(shares, default=(0.0, ""), key=lambda pair: pair[0])
    words = f"{name}: missed by {missed:.1%} of requests at {load}" if missed else f"the SLO, at {load}"
    if server is None:
        return words
    cache, waiting = server.kv_cache_usage, server.requests_waiting
    if cache is not None and cache.max >= FULL_CACHE:
        words += "; the KV cache was full there"
    elif waiting is not None and waiting.mean >= 1:
        words += f"; {waiting.mean:.0f} requests waited in the engine's queue there"
    return words
