"""What differs between engines: the columns of :data:`loadgen.engines.table.ENGINES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from loadgen import gpus
from loadgen.engines.guarded import Endings
from loadgen.engines.installs import Install
from loadgen.engines.offline import OfflineReport
from loadgen.engines.spec import EngineCommand, EngineSpec
from loadgen.workloads.prompts import SourceSpec

Prepare = Callable[[EngineSpec, Install | None, list[gpus.Gpu]], EngineCommand]
# Spec and install, prompts, the first one and their number, the run folder, and what is told how it gets on.
RunOffline = Callable[[EngineSpec, Install, SourceSpec, int, int, Path, Callable[[str], None]], OfflineReport]
# A reader's state lies in the function: it is made anew for each server, and given each page.
ReadJson = Callable[[bytes], dict[str, float]]


class Finding(msgspec.Struct, kw_only=True):
    """Something that a user should know: what it is, and what mends it.

    ``level``: a ``problem`` keeps something from working, a ``note`` does not.
    """

    level: Literal["problem", "note"]
    what: str
    mend: str | None = None


class Libraries(NamedTuple):
    """What an engine may need of the host: the driver's CUDA version, and the MPI library; None where missing."""

    cuda: str | None
    mpi: str | None


class CacheReset(NamedTuple):
    """How the prefix cache is emptied.

    Attributes:
        path: a POST to it empties the cache.
        done: whether it was emptied, by the answer's status and body.
    """

    path: str
    done: Callable[[int, bytes], bool]


def answered_200(status: int, body: bytes) -> bool:
    """Whether the status alone says that it was done."""
    return status == 200


class Engine(NamedTuple):
    """An engine: a row of the table.

    Attributes:
        title: its name in sentences.
        owned_by: what its ``/v1/models`` says; by that a server is known.
        prepare: the command for a spec, with everything checked that can be without starting it.
        simulated: whether it only imitates; what is measured on it is marked so.
        packages: of PyPI, any of which brings it; the first is named to users.
        stack: further packages whose versions the manifest keeps.
        scripts: on PATH, beside whose Python it may be installed.
        cpu_only: whether an install has no use for GPUs.
        backends: what an install can run a model with, for the doctor.
        backend_options: values of ``--backend`` that it takes.
        lacks: why an install cannot serve on this host; None when nothing is missing.
        findings: what the doctor says of an install.
        takes_any_model: whether requests may ask for a model that it does not list.
        spare_tokens: of its maximum length, those that prompt and answer together cannot use.
        health_page: answers 200 when it is well.
        version_pages: whose JSON has a ``version``; the first that does counts.
        series: the names of its Prometheus series for each metric of ours, the newest first. A histogram's is
            given without its ``_sum`` and ``_count``. See :data:`loadgen.analysis.server_metrics.METRICS`.
        zero_until_seen: metrics whose series appear on the page with their first event.
        metrics_page: the path of that page.
        json_page: the path of a further page of metrics, and what makes a reader of it. A read may empty the
            page, and the page may wait before it answers.
        watched: metrics that its pages must give, for the self-test.
        cache_reset: None where the prefix cache cannot be emptied.
        phases: patterns of seconds in the log of its start, by the name that the manifest gives them.
        sizes: patterns of whole numbers in that log, likewise.
        endings: what its log says of its death.
        spread_options: options that put one model onto several GPUs when their value is not 1.
        run_offline: measures it without HTTP; None where there is no such program.
    """

    title: str
    owned_by: str
    prepare: Prepare
    simulated: bool = False
    packages: tuple[str, ...] = ()
    stack: tuple[str, ...] = ()
    scripts: tuple[str, ...] = ()
    cpu_only: Callable[[Install], bool] = lambda install: install.cpu_build
    backends: Callable[[Install], list[str]] = lambda install: ["cpu"] if install.cpu_build else ["cuda"]
    backend_options: tuple[str, ...] = ()
    lacks: Callable[[Install, Libraries], str | None] = lambda install, libraries: None
    findings: Callable[[Install, Libraries], list[Finding]] = lambda install, libraries: []
    takes_any_model: bool = False
    spare_tokens: int = 0
    health_page: str = "/health"
    version_pages: tuple[str, ...] = ("/version",)
    series: Mapping[str, tuple[str, ...]] = {}
    zero_until_seen: tuple[str, ...] = ()
    metrics_page: str = "/metrics"
    json_page: tuple[str, Callable[[], ReadJson]] | None = None
    watched: frozenset[str] = frozenset()
    cache_reset: CacheReset | None = None
    phases: dict[str, str] = {}
    sizes: dict[str, str] = {}
    endings: Endings = Endings()
    spread_options: tuple[str, ...] = ()
    run_offline: RunOffline | None = None
