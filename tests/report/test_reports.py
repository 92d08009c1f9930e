"""The terminal's text, from made-up runs; UPDATE_GOLDEN=1 writes the golden files anew."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from loadgen.records import ClientSample, LevelMark, Manifest, RequestError, RequestRecord
from loadgen.report import html, terminal
from loadgen.report.entry import Entry
from loadgen.report.page_data import read_page
from loadgen.summary import LevelSummary, Summary, summarize_level, summarize_run

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = sorted(path.parent for path in (ROOT / "reports").glob("vllm-*/**/summary.json"))
MS = 1_000_000


def level(
    index: int,
    concurrency: int,
    requests: int,
    *,
    failed: int = 0,
    lateness_ms: float = 0.05,
    message: str = "simulated failure",
    interrupted: str | None = None,
) -> LevelSummary:
    """A level whose requests run one after another in each slot; TTFT 20 to 29 ms, TPOT 4 to 4.9 ms."""
    records = []
    clock = [0] * concurrency
    for number in range(requests + failed):
        slot = number % concurrency
        sent = clock[slot]
        error = None if number >= failed else RequestError(kind="http_status", status=500, message=message, body="")
        gaps = [(20 + number % 10) * MS, *[4 * MS + number % 10 * 100_000] * 10]
        end = sent + sum(gaps)
        records.append(
            RequestRecord(
                level=index,
                seq=number,
                prompt_id=str(number),
                worker=0,
                phase="measure",
                sent_ns=sent,
                first_token_ns=None if error else sent + gaps[0],
                last_token_ns=None if error else end,
                end_ns=end,
                event_ns=[] if error else gaps,
                event_tokens=[] if error else [1] * 11,
                input_tokens=None if error else 100,
                output_tokens=None if error else 11,
                requested_tokens=11,
                token_source=None if error else "usage_continuous",
                finish_reason=None if error else "length",
                error=error,
            )
        )
        clock[slot] = end
    window = min(clock)
    samples = [
        ClientSample(
            t_ns=window * tenth // 10 + 1,
            level=index,
            worker=0,
            phase="measure",
            in_flight=concurrency,
            issued=0,
            completed=0,
            failed=0,
            output_tokens=0,
            ttft_sum_ns=0,
            ttft_count=0,
            cpu_ns=window * tenth // 100,
            max_rss_bytes=40 * 2**20,
            lateness_ns=[int(lateness_ms * MS)] * 5,
        )
        for tenth in range(11)
    ]
    mark = LevelMark(level=index, window_start_ns=0, window_end_ns=window, interrupted=interrupted)
    return summarize_level({"model": "closed", "concurrency": concurrency}, records, samples, mark)


def manifest(*, simulated: bool = True, model: str = "sim-qwen1.5-4b") -> Manifest:
    return Manifest(
        command=["loadgen", "sweep", "--concurrency", "1,8,64"],
        started_utc="2026-01-02T03:04:05+00:00",
        simulated=simulated,
        host={"name": "box", "processor": "CPU", "cores": 2, "kernel": "6.1"},
        engine={
            "kind": "sim",
            "version": "0.1.0",
            "argv": None,
            "env": {},
            "url": "http://127.0.0.1:8000",
            "model": model,
            "dialect": "sim",
            "endpoint": "completions",
        },
        dataset={"kind": "file", "path": "datasets/chat-256.jsonl", "sha256": "0" * 64, "prompts": 256},
        seed=0,
        load={"model": "closed", "requests": None, "duration_s": 20.0},
        levels=[],
        client={"loadgen_version": "0.1.0", "workers": 1},
    )


def summary() -> Summary:
    """One of each: too few, valid, with failures, spoilt by the client."""
    levels = [
        level(0, 1, 10),
        level(1, 8, 800),
        level(2, 64, 640, failed=64, interrupted="interrupted"),
        level(3, 128, 1280, lateness_ms=6),
    ]
    return Summary(simulated=True, levels=levels, notes=["1 of 5 levels were not run"])


def test_the_terminal_text_is_the_golden_one() -> None:
    text = terminal.render(manifest(), summary())
    path = GOLDEN / "terminal.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_the_terminal_text_fits_80_columns() -> None:
    for line in terminal.render(manifest(), summary()).splitlines():
        assert len(line) <= 80, line


def test_figures_of_the_table_are_those_of_the_summary() -> None:
    made = summary()
    row = next(line for line in terminal.render(manifest(), made).splitlines() if line.split()[:1] == ["8"])
    cells = row.split()
    assert cells[1:3] == ["800", "0"]
    for cell, field, name in zip(cells[3:8], ["ttft_s"] * 3 + ["tpot_s"] * 2, ["p50", "p90", "p99"] * 2, strict=False):
        shown = float(cell)
        true = getattr(getattr(made.levels[1], field), {"p50": "p50", "p90": "p90", "p99": "p99"}[name]) * 1e3
        if field == "tpot_s" and name == "p90":
            true = made.levels[1].tpot_s.p99 * 1e3  # type: ignore[operator]
        assert shown == pytest.approx(true, rel=0.03)


def test_a_level_that_the_client_spoilt_shows_no_latency() -> None:
    made = summary()
    text = terminal.render(manifest(), made)
    row = next(line for line in text.splitlines() if line.split()[:1] == ["128"])
    assert row.split()[3:8] == ["-"] * 5
    assert "withheld" in text


@pytest.mark.parametrize(
    "levels",
    [[], [level(0, 1, 0)], [level(0, 1, 1)], [level(0, 4, 0, failed=8)]],
    ids=["no level", "no request", "one request", "no success"],
)
def test_a_run_with_next_to_nothing_in_it_still_gives_a_text(levels: list[LevelSummary]) -> None:
    assert terminal.render(manifest(), Summary(simulated=False, levels=levels))


@pytest.mark.parametrize("folder", PUBLISHED, ids=lambda folder: str(folder.relative_to(ROOT / "reports")))
def test_a_published_run_still_gives_the_summary_that_was_published(folder: Path) -> None:
    manifest, summary = summarize_run(folder)
    assert msgspec.json.decode(msgspec.json.encode(summary)) == msgspec.json.decode(
        (folder / "summary.json").read_bytes()
    )
    entry = Entry(name=folder.name, folder=folder, manifest=manifest, summary=summary)
    page = html.render([read_page(entry)])
    assert "What the engine and the GPU say" in page
    assert all(line in (folder / "report.html").read_text() for line in page.splitlines() if line.startswith("<tr"))
