"""Markdown, CSV, OpenMetrics and the terminal of whole runs; UPDATE_GOLDEN=1 writes the golden files anew."""

from __future__ import annotations

import csv as csv_module
import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import engine_with, manifest_from
from made_reports import GOLDEN, level, manifest, summary
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.parser import text_string_to_metric_families as plain_families

from loadgen.analysis.figures import GpuDevice, GpuFigures, Verdict
from loadgen.analysis.slo import PercentileFigures, SloFigures
from loadgen.analysis.summary import Summary
from loadgen.records import FileDataset
from loadgen.report import csv, markdown, openmetrics
from loadgen.report.entry import Entry, names_of
from loadgen.report.formats import TEXTS, Shown

EVIL = "a|b`c`<script>alert(1)</script>\n| x | y |\n\n# @someone #12 [l](http://x.y) \\ *b* _i_ \x1b[31m\r &amp; ~~~"


FEW, SPOILT = summary(), level(0, 1, 20, failed=5, message="?")


def entry(name: str = "run", model: str = "sim-qwen1.5-4b", **fields: Any) -> Entry:
    changed = msgspec.structs.replace(FEW, **fields)
    return Entry(name=name, folder=Path(name), manifest=manifest(model=model), summary=changed)


def with_slo() -> Entry:
    met = PercentileFigures(slo="ttft:p90=30ms", requests=800, share=1.0, ci95=(0.995, 1.0), decision="met")
    slo = SloFigures(
        slos=["ttft=26ms", "ttft:p90=30ms"], offered=800, good=720, undefined={}, goodput_rps=104.3,
        goodput_ci95_rps=(100.1, 108.2), attainment=0.9, attainment_ci95=(0.878, 0.918), missed={"ttft=26ms": 0.1},
        percentiles=[met],
    )  # fmt: skip
    return entry("slo", levels=[msgspec.structs.replace(one, slo=slo) for one in FEW.levels])


def of_a_server(text: str) -> Entry:
    """A run in which everything that a user or a server can choose is this text."""
    reason = SPOILT.verdict.reasons[0]
    verdict = Verdict(status="ERRORS", reasons=[msgspec.structs.replace(reason, text=reason.text.replace("?", text))])
    made = Summary(simulated=False, levels=[msgspec.structs.replace(SPOILT, verdict=verdict)], notes=[text])
    about = manifest(simulated=False, model=text)
    about.engine = engine_with(about.engine, kind=text, version=text, url=text, shell=text)
    about.dataset = FileDataset(path=text, sha256="0" * 64, prompts=256)
    about.host.name = text
    about.command = ["loadgen", "sweep", "--model", text]
    return Entry(name=text, folder=Path("x"), manifest=about, summary=made)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("report.md", lambda: TEXTS["markdown"](Shown([entry()], alone=True))),
        ("slo.md", lambda: TEXTS["markdown"](Shown([with_slo()], alone=True))),
        ("report.csv", lambda: TEXTS["csv"](Shown([entry(), with_slo()], alone=False))),
        ("several.txt", lambda: TEXTS["terminal"](Shown([entry("a"), with_slo()], alone=False))),
    ],
)
def test_text_is_the_golden_one(name: str, text: Callable[[], str]) -> None:
    made = text().encode()
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(made)
    assert made.decode() == path.read_bytes().decode()


def test_lines_of_the_terminal_fit_80_columns() -> None:
    lines = TEXTS["terminal"](Shown([entry("a" * 70), of_a_server(EVIL)], alone=False)).splitlines()
    assert any("a" * 70 in line for line in lines)
    for line in lines:
        assert len(line) <= 80, line


# --- Markdown


def rows_of(table: str) -> list[int]:
    """Cells of each line that is a table's, as GitHub splits them."""
    return [len(re.split(r"(?<!\\)\|", line)) for line in table.splitlines() if line.startswith("|")]


def tags_of(text: str) -> set[str]:
    return set(re.findall(r"</?([a-z]+)[^>]*>", text))


def test_a_table_has_the_same_cells_in_every_row() -> None:
    for entries in ([entry()], [with_slo()]):
        assert len(set(rows_of(markdown.render(entries)))) == 1
    both = markdown.render([entry("a"), entry("b")])
    assert both.count("### <code>") == 2 and "### Side by side" in both
    assert both.count("| 8 | <code>a</code> (SIMULATED) |") == both.count("| 8 | <code>b</code> (SIMULATED) |") == 1


def test_text_of_others_makes_no_markup() -> None:
    made = markdown.render([of_a_server(EVIL)])
    assert tags_of(made) == {"code", "details", "summary"}
    assert len(set(rows_of(made))) == 1
    assert "\x1b" not in made and "\r" not in made
    assert not re.search(r"[@#]\w", re.sub(r"&#\d+;|<code>.*?</code>", "", made))
    outside = re.sub(r"<code>.*?</code>", "", made)
    assert "http:" not in outside and "www." not in outside and "```" not in made and "~~~" not in made
    assert [line for line in made.splitlines() if line.startswith("#")] == [made.splitlines()[0]]


@given(st.text(min_size=1, max_size=60))
def test_any_text_stays_on_its_line_and_in_its_cell(text: str) -> None:
    for made in (markdown.escaped(text), markdown.code(text)):
        assert len(made.splitlines()) <= 1
        assert not set(made.removeprefix("<code>").removesuffix("</code>")) & set("|<>`*[]\\")


def test_a_level_that_the_client_spoilt_is_withheld() -> None:
    row = next(line for line in markdown.render([with_slo()]).splitlines() if line.startswith("| 128 "))
    assert row == "| 128 | CLIENT_BOUND | - | - | - | - | 20,235 | 1,788 | - | - |"


# --- CSV


def parsed(text: str) -> list[dict[str, str]]:
    rows = list(csv_module.reader(io.StringIO(text, newline=""), strict=True))
    assert len(set(map(len, rows))) == 1
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_figures_are_those_of_the_summary_in_full() -> None:
    made = with_slo()
    rows = parsed(csv.render([entry("a"), made]))
    assert [row["run"] for row in rows] == ["a"] * 4 + ["slo"] * 4
    assert [row["concurrency"] for row in rows] == ["1", "8", "64", "128"] * 2
    row, one = rows[5], made.summary.levels[1]
    assert float(row["ttft_s_p50"]) == one.ttft_s.p50
    assert (float(row["ttft_s_p50_ci95_low"]), float(row["ttft_s_p50_ci95_high"])) == one.ttft_s.ci95["p50"]
    assert float(row["output_throughput_tps"]) == one.output_throughput_tps
    assert row["slo_attainment"] == "0.9" and row["slo_percentiles"] == "ttft:p90=30ms met"
    assert rows[4]["ttft_s_p50"] == "", "10 requests have no median"
    assert rows[1]["slo_attainment"] == rows[1]["rate_rps"] == rows[1]["gpu_energy_j"] == ""


def test_the_energy_of_all_cards_is_a_column() -> None:
    cards = [
        GpuDevice(uuid=uuid, samples=9, throttle={}, energy_j=joules) for uuid, joules in (("a", 70.0), ("b", 60.0))
    ]
    one = msgspec.structs.replace(FEW.levels[0], gpu=GpuFigures(devices=cards, energy_per_output_token_j=0.3))
    (row,) = parsed(csv.render([entry(levels=[one])]))
    assert (row["gpu_energy_j"], row["gpu_energy_per_output_token_j"]) == ("130.0", "0.3")


def test_what_is_withheld_is_empty() -> None:
    row = parsed(csv.render([with_slo()]))[3]
    assert row["verdict"] == "CLIENT_BOUND"
    latencies = {name for name in row if re.match(r"(ttft|tpot|itl|itl_per_token|e2e|stalls)_", name)}
    assert {row[name] for name in latencies if not name.endswith("_count")} == {""}
    assert row["slo_attainment"] == row["slo_goodput_rps"] == ""
    assert row["output_throughput_tps"]


def test_a_header_stands_above_nothing_too() -> None:
    empty = csv.render([entry(levels=[])])
    assert empty.splitlines() == csv.render([entry()]).splitlines()[:1]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", "\t=1", "\r=1", "\n=1"])
def test_no_text_becomes_a_formula(text: str) -> None:
    row = parsed(csv.render([of_a_server(text)]))[0]
    assert row["model"] == f"'{text}"
    assert row["run"] == f"'{text}"


@given(st.text(max_size=40))
def test_any_text_comes_back(text: str) -> None:
    out = io.StringIO(newline="")
    csv_module.writer(out).writerow(["x", csv.guarded(text), "y"])
    ((_, cell, _),) = csv_module.reader(io.StringIO(out.getvalue(), newline=""), strict=True)
    assert cell.removeprefix("'") == text.removeprefix("'")
    assert cell[:1] not in ("=", "+", "-", "@")


def test_numbers_are_not_guarded() -> None:
    assert "'-" not in csv.render([entry()])


# --- OpenMetrics


def samples(text: str) -> dict[str, list[Any]]:
    assert text.endswith("# EOF\n")
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    assert list(plain_families(text)), "a textfile collector reads the older format"
    return found


def test_figures_are_those_of_the_summary() -> None:
    made = with_slo()
    found = samples(openmetrics.render([made]))
    of_8 = {name: [s for s in series if s.labels.get("load") == "8"] for name, series in found.items()}
    (p50,) = [s for s in of_8["loadgen_ttft_seconds"] if s.labels["quantile"] == "0.5"]
    one = made.summary.levels[1]
    assert p50.value == one.ttft_s.p50
    about = {"run": "slo", "engine": "sim", "version": "0.1.0", "model": "sim-qwen1.5-4b", "simulated": "true"}
    assert p50.labels == {**about, "level": "1", "load_model": "closed", "load": "8", "quantile": "0.5"}
    low, high = (s.value for s in of_8["loadgen_ttft_seconds_ci95"] if s.labels["statistic"] == "p50")
    assert (low, high) == one.ttft_s.ci95["p50"]
    (count,), (total,) = ([s.value for s in of_8[f"loadgen_ttft_seconds_{name}"]] for name in ("count", "sum"))
    assert total / count == pytest.approx(one.ttft_s.mean)
    assert {s.value for s in found["loadgen_slo_attainment_ratio"]} == {0.9}


def test_the_verdicts_that_hold_are_1() -> None:
    found = samples(openmetrics.render([entry()]))["loadgen_verdict"]
    held = {(s.labels["load"], s.labels["status"]) for s in found if s.value == 1}
    assert held == {
        ("1", "TOO_FEW"), ("8", "VALID"), ("64", "INTERRUPTED"), ("64", "ERRORS"), ("128", "CLIENT_BOUND")
    }  # fmt: skip
    assert {s.value for s in found} == {0.0, 1.0}


def test_what_is_unknown_or_withheld_has_no_sample() -> None:
    found = samples(openmetrics.render([with_slo()]))
    spoilt = {name for name, of in found.items() if any(s.labels.get("load") == "128" for s in of)}
    latencies = re.compile(r"loadgen_(ttft|tpot|itl|e2e|stalls|slo_attainment|slo_good|goodput)")
    assert not [name for name in spoilt if latencies.match(name)]
    assert "loadgen_output_tokens_per_second" in spoilt
    assert not [s for s in found["loadgen_ttft_seconds"] if s.labels["load"] == "1"], "10 requests have no median"
    assert "loadgen_energy_per_output_token_joules" not in found


def test_names_keep_to_the_rules_that_promtool_checks() -> None:
    families = list(plain_families(openmetrics.render([with_slo()])))
    assert len(families) > 20
    for family in families:
        assert family.documentation
        assert re.fullmatch(r"loadgen_[a-z0-9_]+", family.name)
        assert not re.search(r"_(ms|s|us|mb|kb|milliseconds|gauge|counter|total)(_|$)", family.name)
        labels = set().union(*(sample.labels for sample in family.samples))
        assert family.type == "summary" or not labels & {"quantile", "le"}, family.name
        suffixed = family.name.endswith(("_count", "_sum", "_bucket"))
        assert not suffixed


def test_two_levels_of_one_load_are_two_series() -> None:
    made = entry(levels=[level(0, 8, 100), level(1, 8, 100)])
    found = samples(openmetrics.render([made, entry("b")]))
    assert {s.labels["level"] for s in found["loadgen_requests"] if s.labels["run"] == "run"} == {"0", "1"}


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_any_text_is_a_label(text: str) -> None:
    made = of_a_server("x")
    made.name = text
    made.manifest.engine.model = text
    (info,) = samples(openmetrics.render([made]))["loadgen_run_info"]
    assert info.labels["model"] == info.labels["run"] == text


# --- what all of them take


@pytest.mark.parametrize("form", ["terminal", "markdown", "csv", "json", "openmetrics"])
@pytest.mark.parametrize(
    "levels",
    [[], [level(0, 1, 0)], [level(0, 1, 1)], [level(0, 4, 0, failed=8)]],
    ids=["no level", "no request", "one request", "no success"],
)
def test_a_run_with_next_to_nothing_in_it(form: str, levels: list[Any]) -> None:
    assert TEXTS[form](Shown([entry(levels=levels)], alone=True))
    assert TEXTS[form](Shown([entry("a", levels=levels), entry("b")], alone=False))


def test_json_of_one_is_its_summary_and_of_several_a_map() -> None:
    one = msgspec.json.decode(TEXTS["json"](Shown([entry()], alone=True)))
    assert len(one["levels"]) == 4
    several = msgspec.json.decode(TEXTS["json"](Shown([entry("a"), entry("b")], alone=False)))
    assert several == {"a": one, "b": one}


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/r/a"], ["a"]),
        (["/r/a", "/r/b"], ["a", "b"]),
        (["/r/1/vllm", "/r/2/vllm"], ["1/vllm", "2/vllm"]),
        (["/r/1/vllm", "/r/1/trtllm", "/r/2/vllm"], ["1/vllm", "trtllm", "2/vllm"]),
        (["/r/a", "/r/a"], ["a", "a (2)"]),
        (["/vllm", "/r/vllm"], ["vllm", "r/vllm"]),
        (["/"], ["/"]),
    ],
)
def test_names_tell_runs_apart(folders: list[str], names: list[str]) -> None:
    assert names_of(list(map(Path, folders))) == names
    assert len(set(names)) == len(names)


def test_a_manifest_with_hardly_anything_in_it() -> None:
    bare = manifest_from(
        command=[], started_utc="", simulated=False, host={}, engine={}, dataset={}, seed=0, load={}, levels=[],
        client={},
    )  # fmt: skip
    for form in ("markdown", "csv", "json", "openmetrics"):
        assert TEXTS[form](Shown([Entry(name="x", folder=Path("x"), manifest=bare, summary=summary())], alone=True))
