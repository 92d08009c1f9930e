"""report.html in a real Chromium: what it shows, what it answers, and that it loads and runs nothing else.

LOADGEN_CHROMIUM names the browser (/usr/bin/chromium where it is not set).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_reports import level, manifest

from loadgen.analysis.measure import summarize_run
from loadgen.analysis.summary import Summary
from loadgen.comparison.differences import compare
from loadgen.comparison.sides import read_side
from loadgen.records import read_manifest
from loadgen.report import html
from loadgen.report.entry import Entry
from loadgen.report.page_data import LevelRequests, RunPage, read_page
from loadgen.report.waterfall import read_beside

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "reports"
LEVELS = REPORTS / "vllm-0.25.1-h200-qwen1.5-4b-levels"
KERNELS = REPORTS / "vllm-0.25.1-h200-qwen1.5-4b-kernels"
FOUND = REPORTS / "vllm-0.25.1-h200-qwen1.5-4b-find"
PAIR = [REPORTS / f"vllm-0.25.1-h200-qwen1.5-4b-prefix-{state}" for state in ("off", "on")]
ARGUMENTS = ["--no-sandbox", "--disable-quic", "--disable-background-networking"]
EVIL = "<script>window.hacked=1</script><img src=x onerror='window.hacked=2'></script>`${window.hacked=3}`"


def loadgen(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadgen", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = os.environ.get("LOADGEN_CHROMIUM", "/usr/bin/chromium")
        running = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield running
        running.close()


class Opened:
    """A page that is open, and what it did that it must not do."""

    def __init__(self, browser: Any, path: Path, *, width: int = 1280, theme: str = "light", anchor: str = "") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=theme, offline=True, accept_downloads=True
        )
        self.page = self.context.new_page()
        self.trouble: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.trouble.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(path.as_uri() + anchor)
        self.page.wait_for_selector("html[data-ready]", timeout=30_000, state="attached")

    def _asked(self, url: str) -> None:
        if not url.startswith(("file:", "blob:", "data:")):
            self.trouble.append(f"request: {url}")

    def draw_all(self) -> None:
        self.page.evaluate("loadgen.drawAll()")

    def drawn(self, figure: str) -> Any:
        """Names and data of a figure's series, as the chart got them."""
        return self.page.evaluate(
            "id => { const one = document.getElementById(id).loadgen; one.draw(); const option = one.drawn();"
            " return option && option.series.map(s => [s.name, s.type, (s.data ?? []).map(d => d.value ?? d)]); }",
            figure,
        )

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()
        assert self.trouble == []


def written(folder: Path, name: str, pages: list[RunPage], comparison: Any = None) -> Path:
    path = folder / f"{name}.html"
    path.write_text(html.render(pages, comparison), encoding="utf-8")
    return path


def read(run: Path) -> RunPage:
    found, summary = summarize_run(run)
    beside = read_beside(run / "kernels", found, summary)
    return read_page(Entry(name=run.name, folder=run, manifest=found, summary=summary, beside=beside))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def levels_page(folder: Path) -> Path:
    return written(folder, "levels", [read(LEVELS)])


@pytest.fixture(scope="module")
def kernels_page(folder: Path) -> Path:
    return written(folder, "kernels", [read(KERNELS)])


@pytest.fixture(scope="module")
def pair_page(folder: Path) -> Path:
    sides = [read_side(run) for run in PAIR]
    return written(folder, "pair", [read(run) for run in PAIR], compare(*sides, force=True))


@pytest.fixture(scope="module")
def sim_run(folder: Path) -> Path:
    out = folder / "sim-run"
    done = loadgen(
        "sweep", "--concurrency", "1,4,16", "--duration", "3s", "--output-tokens", "16",
        "--slo", "ttft=100ms,tpot:p90=20ms", "--output", str(out),
    )  # fmt: skip
    assert (out / "report.html").exists(), done.stderr
    return out


@pytest.fixture(scope="module")
def evil_page(folder: Path) -> Path:
    """Markup in every string that comes from outside."""
    made = Summary(simulated=False, levels=[level(0, 1, 40, failed=10, message=EVIL), level(1, 8, 800)], notes=[EVIL])
    requests = [LevelRequests(), LevelRequests()]
    requests[0].errors.append((0, "http_status", EVIL))
    empty: list[Any] = [[], []]
    found = manifest(simulated=False, model=EVIL)
    found.engine.kind = found.engine.version = found.engine.shell = EVIL
    entries = [Entry(name=f"{EVIL}{i}", folder=folder, manifest=found, summary=made) for i in range(2)]
    pages = [RunPage(entry, requests, empty, empty, empty) for entry in entries]
    return written(folder, "evil", pages)


PAGES = ["levels_page", "kernels_page", "pair_page", "evil_page"]


# --- nothing but itself


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_draws_without_network_and_is_usable_by_all(
    browser: Any, request: pytest.FixtureRequest, name: str, theme: str, width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    with Opened(browser, request.getfixturevalue(name), width=width, theme=theme) as opened:
        opened.draw_all()
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.page.evaluate("window.hacked") is None
        # Details are opened, so that what is in them is looked at too.
        opened.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        found = Axe().run(opened.page)
        assert found.violations_count == 0, found.generate_report()


def test_the_page_of_a_sweep_as_it_was_written(browser: Any, sim_run: Path) -> None:
    with Opened(browser, sim_run / "report.html") as opened:
        opened.draw_all()
        captions = opened.page.locator("figcaption > span:first-child").all_inner_texts()
        assert len(captions) > 10
        assert all("SIMULATED" in caption for caption in captions)
        assert opened.page.locator("text=SIMULATED").count() > len(captions), "on the drawings themselves too"
        assert opened.page.input_value("#whatif-ttft") == "100"
        assert opened.page.input_value("#whatif-tpot-of") == "90"


def test_the_answer_stands_on_top(browser: Any, sim_run: Path) -> None:
    text = loadgen("report", str(sim_run)).stdout
    with Opened(browser, sim_run / "report.html") as opened:
        answer = opened.page.inner_text("header p.answer")
    assert answer.startswith("SIMULATED: ")
    assert answer.split()[-8:] == text.rsplit("Report:", 1)[0].split()[-8:], "as the terminal has it"


def test_two_runs_of_one_report_are_compared(browser: Any, tmp_path: Path) -> None:
    done = loadgen("report", *map(str, PAIR), "--format", "html", "--output", str(tmp_path / "both.html"))
    assert done.returncode == 1, "levels are not valid"
    with Opened(browser, tmp_path / "both.html") as opened:
        opened.draw_all()
        assert "NOT COMPARABLE" in opened.page.inner_text("#comparison")
        assert opened.page.locator("#level-choice option").count() == 4


def test_the_page_without_a_script_has_its_tables(browser: Any, levels_page: Path) -> None:
    context = browser.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(levels_page.as_uri())
    assert page.locator("#results tbody tr").count() == 4
    assert page.locator("noscript").count() == 1
    context.close()


def test_a_run_that_was_killed_has_a_page(browser: Any, sim_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "killed"
    run.mkdir()
    (run / "manifest.json").write_bytes((sim_run / "manifest.json").read_bytes())
    lines = (sim_run / "records.jsonl").read_bytes().splitlines(keepends=True)
    (run / "records.jsonl").write_bytes(b"".join(lines[:-5]) + lines[-5][:40])
    done = loadgen("report", str(run))
    assert done.returncode == 1
    with Opened(browser, run / "report.html") as opened:
        opened.draw_all()
        assert "ended from outside" in opened.page.inner_text("#verdicts")


@pytest.mark.parametrize(
    "levels",
    [[], [level(0, 1, 0)], [level(0, 1, 1)], [level(0, 4, 0, failed=8)], [level(0, 8, 800)]],
    ids=["no level", "no request", "one request", "no success", "one level"],
)
def test_a_run_with_next_to_nothing_in_it_has_a_page(browser: Any, tmp_path: Path, levels: list[Any]) -> None:
    empty: list[Any] = [[] for _ in levels]
    requests = [LevelRequests() for _ in levels]
    entry = Entry(name="run", folder=tmp_path, manifest=manifest(), summary=Summary(simulated=True, levels=levels))
    page = RunPage(entry, requests, empty, empty, empty)
    with Opened(browser, written(tmp_path, "page", [page])) as opened:
        opened.draw_all()


# --- what it shows is what was measured


def test_charts_show_what_the_summary_holds(browser: Any, levels_page: Path) -> None:
    summary = json.loads((LEVELS / "summary.json").read_bytes())
    with Opened(browser, levels_page) as opened:
        for figure, field in (("ttft", "ttft_s"), ("tpot", "tpot_s"), ("itl", "itl_s"), ("e2e", "e2e_s")):
            for name, kind, data in opened.drawn(f"chart-{figure}"):
                known = [one for one in summary["levels"] if one[field][name] is not None]
                if kind == "line":
                    expected = [[one["load"]["concurrency"], one[field][name] * 1e3] for one in known]
                else:
                    bounds = [(one, one[field]["ci95"].get(name)) for one in known]
                    expected = [[one["load"]["concurrency"], ci[0] * 1e3, ci[1] * 1e3] for one, ci in bounds if ci]
                assert [pytest.approx(row) for row in expected] == data, (figure, name, kind)
        measured = opened.drawn("chart-throughput")[0]
        assert measured[2] == [[one["load"]["concurrency"], one["output_throughput_tps"]] for one in summary["levels"]]
        pareto = opened.drawn("chart-pareto")[0]
        speeds = [[1 / one["tpot_s"]["mean"], one["output_throughput_tps"]] for one in summary["levels"]]
        assert [pytest.approx(row) for row in speeds] == pareto[2]


def test_percentile_curves_agree_with_the_summary(browser: Any, levels_page: Path) -> None:
    summary = json.loads((LEVELS / "summary.json").read_bytes())
    with Opened(browser, levels_page) as opened:
        assert len(summary["levels"]) > 1
        for (_, _, points), one in zip(opened.drawn("percentiles-ttft"), summary["levels"], strict=True):
            assert points[-1][1] == pytest.approx(one["ttft_s"]["max"] * 1e3, rel=1e-3)
            middle = min(points, key=lambda point: abs(point[0] - 0.30103))
            assert middle[1] == pytest.approx(one["ttft_s"]["p50"] * 1e3, rel=0.1)


def test_levels_that_are_not_valid_look_so_and_say_why(browser: Any, kernels_page: Path) -> None:
    with Opened(browser, kernels_page) as opened:
        assert opened.page.locator("tr.bad[data-level]").count() == 2
        assert "DRIFTING" in (opened.page.locator("tr.bad[data-level]").first.get_attribute("title") or "")
        hollow = opened.page.evaluate(
            "() => { const one = document.getElementById('chart-ttft').loadgen; one.draw();"
            " const line = one.drawn().series.find(s => s.name === 'p50');"
            " return line.data.map(d => d.itemStyle?.borderType ?? 'solid'); }"
        )
        assert hollow == ["solid", "dashed", "dashed"]
        opened.page.select_option("#level-choice", "2")
        assert "DRIFTING" in opened.page.inner_text("#level-verdict")


def test_waterfalls_add_up_in_the_page(browser: Any, kernels_page: Path) -> None:
    beside = read_beside(KERNELS / "kernels", read_manifest(KERNELS), summarize_run(KERNELS)[1])
    assert beside is not None
    with Opened(browser, kernels_page) as opened:
        for index, fall in enumerate(beside.waterfalls):
            ((_, _, bars),) = opened.drawn(f"waterfall-{index}")
            assert bars[0][2] == pytest.approx(fall.sheet_roof_s * 1e3)
            assert bars[-1][2] == pytest.approx((fall.served_s or 0) * 1e3)
            assert bars[-2][2] == pytest.approx(bars[-1][2]), "the last gap ends where the served figure does"


def test_the_forest_shows_the_comparison(browser: Any, pair_page: Path) -> None:
    comparison = compare(*(read_side(run) for run in PAIR), force=True)
    effects = [e for one in comparison.levels for e in one.effects] + comparison.overall
    expected = [effect.ratio for effect in effects if effect.ratio is not None and effect.ratio_ci95]
    with Opened(browser, pair_page) as opened:
        dots = opened.drawn("forest")[0][2]
        assert [pytest.approx(ratio) for ratio in expected] == [ratio for ratio, _ in dots]
        assert "NOT COMPARABLE" in opened.page.inner_text("#comparison")


# --- what if

DEMANDS: list[dict[str, str]] = [
    {"slo": "ttft=500ms,tpot=50ms"},
    {"slo": "ttft=100ms,tpot=5ms", "peak-rate": "100", "gpu-hour": "2.5"},
    {"slo": "ttft=300ms", "attainment": "90%", "peak-rate": "333", "headroom": "30%", "spares": "2"},
    {"slo": "ttft:p90=250ms,tpot:p99=8ms", "peak-rate": "40", "gpu-hour": "3.1", "duty": "40%"},
    {"slo": "ttft:p99=400ms,tpot=7ms", "attainment": "95%", "gpus-per-replica": "2", "gpu-hour": "1", "peak-rate": "9"},
    {"slo": "e2e=1100ms", "attainment": "50%"},
    {"slo": "e2e:p50=900ms,ttft=240ms", "attainment": "80%", "peak-rate": "1000", "gpu-hour": "2"},
    {"slo": "tpot=3410us", "attainment": "50%"},
    {"slo": "ttft=1ms"},
]  # fmt: skip


def ask(opened: Opened, demand: dict[str, str]) -> dict[str, Any]:
    """Fills the form in and returns the page's plan."""
    page = opened.page
    given = dict(one.replace(":", "=").split("=", 1) for one in demand["slo"].split(","))
    for metric in ("ttft", "tpot", "e2e"):
        percentile, limit = "", ""
        if metric in given:
            *of, limit = given[metric].split("=")
            percentile = of[0][1:] if of else ""
            limit = str(float(limit[:-2]) / (1000 if limit.endswith("us") else 1))
        page.fill(f"#whatif-{metric}", limit)
        page.select_option(f"#whatif-{metric}-of", percentile)
    fields = {
        "attainment": "attainment", "peak-rate": "peak", "duty": "duty", "headroom": "headroom", "spares": "spares",
        "gpu-hour": "price", "gpus-per-replica": "gpus",
    }  # fmt: skip
    blank = {"attainment": "99", "duty": "100", "headroom": "20", "spares": "0", "gpus-per-replica": "1"}
    for name, field in fields.items():
        page.fill(f"#whatif-{field}", demand.get(name, blank.get(name, "")).rstrip("%"))
    found: dict[str, Any] = page.evaluate(
        "() => JSON.parse(JSON.stringify(loadgen.whatIf.plan(), (k, v) => k === 'level' ? v.words : v))"
    )
    return found


@pytest.mark.parametrize("demand", DEMANDS, ids=lambda demand: demand["slo"])
@pytest.mark.parametrize("run", [LEVELS, PAIR[1], FOUND], ids=["levels", "prefix-on", "find"])
def test_what_if_says_what_plan_says(browser: Any, folder: Path, run: Path, demand: dict[str, str]) -> None:
    options = [word for name, value in demand.items() for word in (f"--{name}", value)]
    options += [] if "gpus-per-replica" in demand else ["--gpus-per-replica", "1"]
    (plan,) = json.loads(loadgen("plan", str(run), *options, "--format", "json").stdout)
    page = written(folder, f"whatif-{run.name}", [read(run)])
    with Opened(browser, page) as opened:
        found = ask(opened, demand)
        shown = opened.page.inner_text("#plan")
    assert (found["refused"] is None) == (plan["refused"] is None)
    assert ("NO PLAN" in shown) == (plan["refused"] is not None)
    for mine, true in zip(found["points"], plan["points"], strict=True):
        assert mine["level"] == true["load"].partition(",")[0]
        assert mine["word"] == true["word"]
        assert mine["rate"] == pytest.approx(true["rate_rps"])
        for name in ("fit", "chance_broken"):
            assert mine.get(name) == (None if true[name] is None else pytest.approx(true[name], rel=1e-6, abs=1e-9))
        for left, right in zip(mine["criteria"], true["criteria"], strict=True):
            assert (left["name"], left["requests"], left["share"]) == (right["name"], right["requests"], right["share"])
            assert left["ci95"] == (None if right["ci95"] is None else pytest.approx(right["ci95"], abs=1e-9))
    if plan["refused"] is not None:
        return
    assert found["binds"] == plan["binds"]
    same = ["output_tps", "total_tps", "per_million_output", "per_million_total", "per_thousand_requests"]
    for mine, true in [("capacity", "capacity_rps"), *((name, name) for name in same)]:
        assert_interval(found.get(mine), plan[true])
    for mine, true in zip(found["speeds"], plan["speeds"], strict=True):
        assert_interval(mine["capacity"], true["capacity_rps"])
    if plan["fleets"]:
        fleet = plan["fleets"][0]
        assert found["fleet"]["replicas"] == fleet["replicas"]
        assert found["fleet"]["replicas_at_best"] == fleet["replicas_at_best"]
        assert found["fleet"]["gpus"] == fleet["gpus"]
        for name in ("cost_per_hour", "cost_per_month", "per_million_output", "per_thousand_requests"):
            assert_interval(found["fleet"].get(name), fleet[name])


def assert_interval(mine: Any, true: Any) -> None:
    if true is None or mine is None:
        assert mine is None and true is None
        return
    assert mine[0] == pytest.approx(true[0])
    assert mine[1] == (None if true[1] is None else pytest.approx(true[1]))


def test_a_number_that_is_none_is_said_and_nothing_is_planned(browser: Any, levels_page: Path) -> None:
    with Opened(browser, levels_page) as opened:
        opened.page.fill("#whatif-headroom", "120")
        assert "headroom" in opened.page.inner_text(".refused")
        assert opened.page.get_attribute("#whatif-headroom", "aria-invalid") == "true"
        opened.page.fill("#whatif-headroom", "20")
        for metric in ("ttft", "tpot", "e2e"):
            opened.page.fill(f"#whatif-{metric}", "")
        assert "Give a limit" in opened.page.inner_text(".refused")


# --- what one can do


def test_a_level_is_chosen_by_click_list_and_address(browser: Any, levels_page: Path) -> None:
    with Opened(browser, levels_page, anchor="#level=8") as opened:
        page = opened.page
        assert page.input_value("#level-choice") == "1"
        page.click("tr[data-level='0.2'] button.pick")
        assert page.input_value("#level-choice") == "2"
        assert page.url.endswith("#level=64")
        assert "64 in flight" in (page.get_attribute("#timeline .chart", "aria-label") or "")
        page.select_option("#level-choice", "0")
        assert page.url.endswith("#level=1")
        assert page.locator("tr.focus").get_attribute("data-level") == "0.0"


def test_a_load_that_was_measured_again_has_an_address_of_its_own(browser: Any, folder: Path) -> None:
    with Opened(browser, written(folder, "found", [read(FOUND)]), anchor="#level=51.88~2") as opened:
        assert opened.page.input_value("#level-choice") == "8"
        opened.page.select_option("#level-choice", "7")
        assert opened.page.url.endswith("#level=51.88")


def test_axes_turn_logarithmic_and_back(browser: Any, levels_page: Path) -> None:
    kind = "document.getElementById('chart-ttft').loadgen.drawn().yAxis.type"
    with Opened(browser, levels_page) as opened:
        opened.draw_all()
        opened.page.click("#chart-ttft button >> text=log")
        assert opened.page.evaluate(kind) == "log"
        opened.page.click("#chart-ttft button >> text=reset")
        assert opened.page.evaluate(kind) == "value"


def test_points_tell_their_figures_to_mouse_and_keyboard(browser: Any, levels_page: Path) -> None:
    with Opened(browser, levels_page) as opened:
        opened.draw_all()
        chart = opened.page.locator("#chart-throughput .chart")
        chart.focus()
        chart.press("ArrowRight")
        text = chart.inner_text()
        assert "tokens/s" in text and "1 in flight" in text and "VALID" in text and "requests" in text


@pytest.mark.parametrize(("button", "start"), [("PNG", b"\x89PNG"), ("SVG", b"<svg")])
@pytest.mark.parametrize("figure", ["chart-ttft", "timeline"])
def test_charts_can_be_taken_along(
    browser: Any, levels_page: Path, tmp_path: Path, figure: str, button: str, start: bytes
) -> None:
    with Opened(browser, levels_page) as opened:
        opened.draw_all()
        with opened.page.expect_download() as taken:
            opened.page.click(f"#{figure} button >> text={button}")
        taken.value.save_as(tmp_path / "chart")
    assert (tmp_path / "chart").read_bytes().startswith(start)


def test_data_can_be_taken_along(browser: Any, levels_page: Path, tmp_path: Path) -> None:
    summary = json.loads((LEVELS / "summary.json").read_bytes())
    with Opened(browser, levels_page) as opened:
        for number, label in enumerate(["Summary as JSON", "Levels as CSV", "Requests as CSV"]):
            with opened.page.expect_download() as taken:
                opened.page.click(f"#downloads button >> text={label}")
            taken.value.save_as(tmp_path / str(number))
    assert json.loads((tmp_path / "0").read_bytes())[LEVELS.name] == summary["levels"]
    assert len((tmp_path / "1").read_text().splitlines()) == 1 + len(summary["levels"])
    rows = (tmp_path / "2").read_text().splitlines()
    records = sum(one["requests"][k] for one in summary["levels"] for k in ("issued", "warmup", "drain"))
    assert len(rows) == 1 + records
    assert rows[0].startswith("run,level,issued_us,seq,flags")


def test_the_page_prints(browser: Any, kernels_page: Path, tmp_path: Path) -> None:
    with Opened(browser, kernels_page) as opened:
        opened.page.pdf(path=tmp_path / "page.pdf")
        charts = opened.page.locator(".chart:not([hidden])")
        assert charts.count() == charts.filter(has=opened.page.locator("svg, canvas")).count()
    assert (tmp_path / "page.pdf").stat().st_size > 50_000


def test_summaries_in_the_page_are_those_of_the_folder(browser: Any, levels_page: Path) -> None:
    with Opened(browser, levels_page) as opened:
        shown = opened.page.evaluate("loadgen.data.runs[0].levels.map(level => level.summary)")
    assert shown == json.loads(msgspec.json.encode(summarize_run(LEVELS)[1]))["levels"]
