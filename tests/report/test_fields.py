"""Every field of a level of summary.json is in every format, or on a short list of reasons.

A field counts as shown when the text changes with it. So a new figure that a format forgets is found here, and so is a
column that reads a name which nothing writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from made_reports import level, manifest

from loadgen.analysis.figures import (
    Gauge,
    GpuDevice,
    GpuFigures,
    GpuGauge,
    LevelSummary,
    OpenLoopFigures,
    Precision,
    Reason,
    ServerFigures,
    ServiceLatencies,
    Status,
    Verdict,
)
from loadgen.analysis.metrics import METRICS, shown_in, value_at
from loadgen.analysis.slo import PercentileFigures, SloFigures
from loadgen.analysis.stats import Distribution
from loadgen.analysis.summary import Summary
from loadgen.loads import Open
from loadgen.report import csv, html, markdown, openmetrics, terminal
from loadgen.report.entry import Entry
from loadgen.report.page_data import LevelRequests, RunPage


def full() -> LevelSummary:
    """A level of an open loop in which every field has a value."""
    made = level(0, 8, 1000, failed=2)
    some = Distribution(count=10, mean=0.02, stdev=0.001, min=0.01, p50=0.02, p90=0.03, p95=0.04, p99=0.05, max=0.06)
    gauge = GpuGauge(mean=400.0, min=300.0, max=500.0)
    device = GpuDevice(
        uuid="GPU-1", samples=9, power_w=gauge, sm_clock_mhz=gauge, memory_clock_mhz=gauge, temperature_c=gauge,
        utilization=gauge, memory_utilization=gauge, memory_used_bytes=gauge, throttle={"power cap": 0.5},
        energy_j=70.0,
    )  # fmt: skip
    return msgspec.structs.replace(
        made,
        load=Open(rate_rps=4.0, arrival="poisson", max_in_flight=64, round=1),
        interrupted="stopped",
        slo=SloFigures(
            slos=["ttft=500ms"], offered=1000, good=980, undefined={"ttft": 0}, goodput_rps=4.0,
            goodput_ci95_rps=(3.9, 4.1), attainment=0.98, attainment_ci95=(0.97, 0.99), failed=2,
            missed={"ttft=500ms": 0.018},
            percentiles=[PercentileFigures(slo="ttft:p99=1s", requests=1000, share=0.99, ci95=(0.98, 0.995))],
        ),
        open_loop=OpenLoopFigures(
            intended_rate_rps=4.0, achieved_rate_rps=3.99, send_lateness_s=some, late=3, dropped=1,
            service=ServiceLatencies(ttft_s=some, e2e_s=some),
        ),
        precision=Precision(asked=0.05, reached={"ttft_mean_s": 0.04}, met=True, ended="precision", looks=2),
        standard_errors={"ttft_mean_s": 0.001},
        steady=msgspec.structs.replace(made.steady, drifting=["ttft_s"]),
        verdict=Verdict(status="DRIFTING", reasons=[Reason(status="DRIFTING", text="it rose", advice="wait")]),
        stalls=msgspec.structs.replace(made.stalls, requests=0.01),
        tokens=msgspec.structs.replace(made.tokens, shared_read=0.2, unstreamed=3),
        server=ServerFigures(
            requests=1000, prompt_tokens=9000, generation_tokens=8000, agrees=False, span="window",
            requests_running=Gauge(mean=5.0, max=8.0), requests_waiting=Gauge(mean=1.0, max=2.0),
            kv_cache_usage=Gauge(mean=0.3, max=0.5), preemptions=2, prefix_cache_hit_rate=0.3, ttft_s=0.02,
            queue_s=0.001, prefill_s=0.01, decode_s=0.03, e2e_s=0.06, tpot_s=0.004, iteration_s=0.004, scrapes=9,
            scrape_s=0.001,
        ),
        gpu=GpuFigures(devices=[device], energy_per_output_token_j=0.3),
    )  # fmt: skip


def fields_of(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Paths of the fields below; a distribution or a gauge is one field."""
    for name in value.__struct_fields__:
        found = getattr(value, name)
        at = f"{path}{name}"
        if isinstance(found, msgspec.Struct) and not isinstance(found, Distribution | Gauge | Open | Precision):
            yield from fields_of(found, f"{at}.")
        else:
            yield at, found


def moved(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 3 + 1
    if value in get_args(Status):
        return "TOO_FEW"
    if isinstance(value, str):
        return value.replace("5", "6") if "=" in value else f"other {value}"  # an objective stays one
    if isinstance(value, dict):
        return {name: moved(one) for name, one in value.items()} or {"connect": 5}
    if isinstance(value, list | tuple):
        return type(value)(moved(one) for one in value)
    if isinstance(value, msgspec.Struct):
        changed = {
            name: moved(getattr(value, name)) for name in value.__struct_fields__ if name not in ("ended", "status")
        }
        return msgspec.structs.replace(value, **changed)
    return 3.0 if value is None else value


def with_field(found: LevelSummary, path: str, value: Any) -> LevelSummary:
    first, _, rest = path.partition(".")
    return msgspec.structs.replace(found, **{first: with_field(getattr(found, first), rest, value) if rest else value})


FULL = full()
FIELDS = dict(fields_of(FULL))


def entry(one: LevelSummary) -> Entry:
    return Entry(name="run", folder=Path("run"), manifest=manifest(), summary=Summary(simulated=False, levels=[one]))


def page(one: LevelSummary) -> str:
    rows = LevelRequests()
    return html.render([RunPage(entry=entry(one), requests=[rows], clients=[[]], servers=[[]], gpus=[[]])])


FORMATS: dict[str, Callable[[LevelSummary], str]] = {
    "csv": lambda one: csv.render([entry(one)]),
    "openmetrics": lambda one: openmetrics.render([entry(one)]),
    "page": page,
}
PEOPLE: dict[str, Callable[[LevelSummary], str]] = {
    "terminal": lambda one: terminal.render(manifest(), Summary(simulated=False, levels=[one])),
    "markdown": lambda one: markdown.render([entry(one)]),
    "page": page,
}
# What a format leaves out, and why.
REASONS: dict[str, tuple[set[str], str]] = {
    "the clock of one machine, which means something beside records.jsonl only": (
        {"csv", "openmetrics"}, "window.start_ns window.end_ns steady.start_ns steady.end_ns",
    ),
    "the verdict says it in words": (
        {"csv", "openmetrics"},
        "steady.trends steady.cut_by steady.drifting steady.reason interrupted error_examples",
    ),
    "words, which are no sample": ({"openmetrics"}, "verdict.reasons server.span load"),
    "the reason's advice; its text is there": ({"csv"}, "verdict.reasons"),
    "of the rounds together, which have a table of their own": ({"csv", "openmetrics"}, "standard_errors"),
    "compared with each other: server.agrees is the result": (
        {"csv", "openmetrics"},
        "totals.requests totals.prompt_tokens totals.generation_tokens "
        "server.requests server.prompt_tokens server.generation_tokens",
    ),
    "how the engine was asked": ({"csv", "openmetrics"}, "server.span server.scrapes server.scrape_s"),
    "counted by source: which sources there were is said": ({"csv", "openmetrics"}, "tokens.source"),
    "follows from the records and the objectives; the page has it": (
        {"csv", "openmetrics"}, "slo.failed slo.missed slo.undefined slo.percentiles precision",
    ),
    "one line a level has no room for each GPU; gpu.jsonl and the page have them": (
        {"csv", "openmetrics"}, "gpu.devices",
    ),
    "a diagnosis of the client; summary.json has it": (
        {"csv", "openmetrics"}, "client.slot_gap_s client.max_rss_bytes",
    ),
    "of the engine's own view the page and summary.json have all": (
        {"csv", "openmetrics"}, "server.e2e_s server.tpot_s server.iteration_s",
    ),
}  # fmt: skip


def excused(form: str) -> set[str]:
    return {field for forms, fields in REASONS.values() if form in forms for field in fields.split()}


@pytest.mark.parametrize("form", FORMATS)
def test_every_field_is_shown_or_has_a_reason(form: str) -> None:
    render = FORMATS[form]
    before = render(FULL)
    missing = {path for path, value in FIELDS.items() if render(with_field(FULL, path, moved(value))) == before}
    assert len(FIELDS) > 90
    assert missing - excused(form) == set()


@pytest.mark.parametrize("form", FORMATS)
def test_reasons_are_of_fields_that_there_are(form: str) -> None:
    assert excused(form) <= FIELDS.keys()


@pytest.mark.parametrize(("form", "render"), PEOPLE.items())
def test_columns_of_the_tables_for_people_are_filled_from_the_table_of_metrics(
    form: str, render: Callable[[LevelSummary], str]
) -> None:
    before = render(FULL)
    columns = list(shown_in(form))
    assert len(columns) >= 6
    for metric, statistic in columns:
        value = value_at(FULL, metric.key)
        changed = moved(value) if statistic == "value" else msgspec.structs.replace(value, **{statistic: 9.0})
        assert render(with_field(FULL, metric.key, changed)) != before, metric.key


def test_every_row_of_the_table_is_a_field() -> None:
    for metric in METRICS:
        found = value_at(FULL, metric.key)
        assert isinstance(found, Distribution | float | int), metric.key


def test_names_in_csv_and_in_openmetrics_are_each_of_one_row() -> None:
    for names in ([metric.column for metric in METRICS], [metric.exported for metric in METRICS]):
        assert len(names) == len(set(names))
