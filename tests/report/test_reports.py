"""The terminal's text, from made-up runs; UPDATE_GOLDEN=1 writes the golden files anew."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from made_reports import GOLDEN, level, manifest, summary

from loadgen.analysis.figures import LevelSummary
from loadgen.analysis.measure import summarize_run
from loadgen.analysis.summary import Summary
from loadgen.report import html, terminal
from loadgen.report.entry import Entry
from loadgen.report.page_data import read_page

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = sorted(path.parent for path in (ROOT / "reports").glob("vllm-*/**/summary.json"))
MS = 1_000_000


def test_the_terminal_text_is_the_golden_one() -> None:
    text = terminal.render(manifest(), summary())
    path = GOLDEN / "terminal.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


def test_the_terminal_text_fits_80_columns() -> None:
    lines = terminal.render(manifest(), summary()).splitlines()
    assert len(lines) > 20
    for line in lines:
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
