"""report.html without a browser: what is in it, and that what is in it says the same as the records."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
import zlib
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import MS, failure, request
from made_reports import level, manifest, summary

from loadgen.analysis.figures import LevelSummary, Window
from loadgen.analysis.measure import summarize_run
from loadgen.analysis.outcome import outcome
from loadgen.analysis.slo import Slo
from loadgen.analysis.summary import Summary
from loadgen.loads import Closed
from loadgen.records import LevelMark, RequestRecord, encode_line, write_manifest
from loadgen.report import html, terminal
from loadgen.report.entry import Entry
from loadgen.report.page_data import (
    FAILED,
    MEASURED,
    OFFERED,
    TPOT_PARTS,
    UNKNOWN,
    LevelRequests,
    RunPage,
    encode,
    read_page,
)

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "reports" / "vllm-0.25.1-h200-qwen1.5-4b-levels"


def page_of(made: Summary, *, name: str = "run", **fields: Any) -> RunPage:
    empty: list[Any] = [[] for _ in made.levels]
    requests = [LevelRequests() for _ in made.levels]
    found = manifest(simulated=made.simulated, **fields)
    return RunPage(Entry(name=name, folder=Path(), manifest=found, summary=made), requests, empty, empty, empty)


def entry_of(run: Path) -> Entry:
    found, data = summarize_run(run)
    return Entry(name=run.name, folder=run, manifest=found, summary=data)


def decoded(text: str) -> tuple[dict[str, Any], bytes]:
    """The JSON of a page's blob, and its columns."""
    blob = zlib.decompress(base64.b64decode(text))
    (length,) = struct.unpack("<I", blob[:4])
    return json.loads(blob[4 : 4 + length]), blob[4 + length :]


def column(columns: bytes, place: dict[str, int]) -> list[float]:
    """A column's values, NaN where unknown."""
    at, count = place["at"], place["count"]
    planes = np.frombuffer(columns[at : at + 4 * count], dtype=np.uint8).reshape(4, count)
    whole = planes.T.copy().view("<u4").ravel()
    return [math.nan if value == UNKNOWN else value / place["parts"] for value in whole.tolist()]


class Page(HTMLParser):
    """Collects tags, attributes and text; an unbalanced page fails."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] == "script" else self.text).append(data)


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    assert page.open == []
    return page


# --- the page


def test_the_page_takes_nothing_from_outside_and_runs_its_own_script_only() -> None:
    page = parsed(html.render([page_of(summary())]))
    assert not {"link", "img", "iframe", "object", "base", "form"} & {tag for tag, _ in page.tags}
    assert not [attrs for _, attrs in page.tags if "src" in attrs or any(name.startswith("on") for name in attrs)]
    assert all((attrs["href"] or "").startswith("#") for tag, attrs in page.tags if "href" in attrs)
    assert [attrs.get("type") for tag, attrs in page.tags if tag == "script"] == ["text/plain", None]
    (policy,) = [a["content"] or "" for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; script-src 'sha256-{digest}';")
    assert "http" not in policy


def test_links_lead_to_sections() -> None:
    page = parsed(html.render([page_of(summary())]))
    names = {attrs.get("id") for tag, attrs in page.tags if tag == "section"}
    assert {(attrs["href"] or "")[1:] for tag, attrs in page.tags if tag == "a"} == names
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))


def test_simulated_is_on_top_and_in_the_data() -> None:
    text = html.render([page_of(summary())])
    assert text.index(escape(terminal.SIMULATED)) < text.index("<table>")
    content, _ = decoded(parsed(text).scripts[0])
    assert content["runs"][0]["simulated"] is True
    real = html.render([page_of(msgspec.structs.replace(summary(), simulated=False))])
    assert escape(terminal.SIMULATED) not in real
    assert decoded(parsed(real).scripts[0])[0]["runs"][0]["simulated"] is False


def test_what_a_server_says_is_text_and_never_markup() -> None:
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)></script>"
    made = Summary(simulated=False, levels=[level(0, 1, 20, failed=5, message=evil)], notes=[evil])
    page = parsed(html.render([page_of(made, name=evil, model=evil)]))
    assert "img" not in {tag for tag, _ in page.tags}
    assert len(page.scripts) == 2
    assert any(evil in text for text in page.text)


@pytest.mark.parametrize(
    "levels",
    [[], [level(0, 1, 0)], [level(0, 1, 1)], [level(0, 4, 0, failed=8)]],
    ids=["no level", "no request", "one request", "no success"],
)
def test_a_run_with_next_to_nothing_in_it_still_gives_a_page(levels: list[LevelSummary]) -> None:
    parsed(html.render([page_of(Summary(simulated=False, levels=levels))]))


def test_runs_in_one_page_have_letters() -> None:
    text = html.render([page_of(summary(), name="one"), page_of(summary(), name="two")])
    page = parsed(text)
    assert "A: one" in text and "B: two" in text
    rows = [attrs["data-level"] for tag, attrs in page.tags if "data-level" in attrs]
    assert rows == [f"{run}.{index}" for run in range(2) for index in range(4)]


def test_the_script_is_made_from_its_source() -> None:
    total = hashlib.sha256()
    for path in sorted((ROOT / "web" / "src").iterdir()):
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    built = (ROOT / "loadgen" / "report" / "page" / "page.js").read_text()
    assert total.hexdigest() in built[:200], "run `npm ci && npm run build` in web/"


def test_licences_of_what_the_script_contains_come_with_it() -> None:
    text = (ROOT / "loadgen" / "report" / "page" / "THIRD_PARTY.txt").read_text()
    assert "Apache License" in text and "zrender" in text and "The Apache Software Foundation" in text


# --- its data


def one_level(records: list[RequestRecord], folder: Path, **window: int) -> tuple[dict[str, Any], bytes]:
    """The only level of a run made of these records."""
    made = manifest(simulated=False)
    made.levels = [Closed(concurrency=2)]
    folder.mkdir(exist_ok=True)
    write_manifest(folder, made)
    (folder / "records.jsonl").write_bytes(b"".join(encode_line(record) for record in records))
    mark = LevelMark(level=0, window_start_ns=window["start"] * MS, window_end_ns=window["end"] * MS)
    (folder / "client.jsonl").write_bytes(encode_line(mark))
    content, columns = decoded(encode([read_page(entry_of(folder))], {}))
    return content["runs"][0]["levels"][0], columns


def test_requests_are_columns_in_the_order_of_their_issue(tmp_path: Path) -> None:
    records = [
        request(50, 20, 10, 40, seq=1),
        request(0, 30, 10, phase="warmup", seq=0),
        failure(60, end=90, seq=2),
        request(200, 20, 10, phase="drain", seq=3),
    ]
    found, columns = one_level(records, tmp_path / "run", start=40, end=150)
    named = {name: column(columns, place) for name, place in found["requests"].items()}
    assert named["seq"] == [0, 1, 2, 3]
    assert named["issued_us"] == [0, 50_000, 60_000, 200_000]
    assert named["flags"] == [0, MEASURED | OFFERED, MEASURED | FAILED | OFFERED, 0]
    assert named["ttft_us"][:2] == [30_000, 20_000] and math.isnan(named["ttft_us"][2])
    assert named["tpot_us"][:2] == [10_000, 25_000]
    assert named["e2e_us"][:2] == [40_000, 70_000]
    assert named["gap_us"][:2] == [10_000, 40_000]
    assert named["took_us"][2] == 30_000
    assert found["window_us"] == [40_000, 150_000]
    assert sum(rate for _, rate in found["tokens_per_s"]) / 10 == pytest.approx(2 + 3 + 2)


def test_latencies_that_are_withheld_are_not_in_the_page() -> None:
    rows = LevelRequests()
    rows.add(request(0, 20, 10))
    _, columns = rows.columns(Window(start_ns=0, end_ns=100 * MS), hidden=True)
    assert {name for name, values in columns.items() if (values == -1).all()} >= {
        "ttft_us", "tpot_us", "e2e_us", "gap_us",
    }  # fmt: skip
    assert columns["output_tokens"].tolist() == [2]


@given(
    ns=st.integers(1, 10**12),
    gaps=st.lists(st.integers(1, 10**9), min_size=1, max_size=5),
    limit_us=st.integers(1, 10**9),
    near=st.integers(-1500, 1500),
)
@settings(max_examples=300, deadline=None)
def test_an_objective_is_met_in_the_page_exactly_where_the_record_meets_it(
    ns: int, gaps: list[int], limit_us: int, near: int
) -> None:
    ns = max(1, limit_us * 1000 + near) if near % 2 else ns
    record = request(0, *[1] * (len(gaps) + 1), first_token_ns=ns, last_token_ns=ns + sum(gaps))
    rows = LevelRequests()
    rows.add(record)
    _, columns = rows.columns(Window(start_ns=0, end_ns=1), hidden=False)
    found = outcome(record)
    for metric, parts in (("ttft", 1), ("e2e", 1), ("tpot", TPOT_PARTS)):
        value = columns[f"{metric}_us"][0]
        slo = Slo(metric=metric, limit_s=limit_us / 1e6)  # type: ignore[arg-type]
        exact = found.latency_s(slo.metric)
        assert exact is not None
        # In floats the two sides of the record's own comparison may part from what they stand for.
        if abs(exact - slo.limit_s) > 1e-12 * exact:
            assert (value / parts <= limit_us) == slo.is_met(found)


def test_a_real_run_is_small_enough() -> None:
    entry = entry_of(RUN)
    data = entry.summary
    text = html.render([read_page(entry)])
    assert len(text) < 1_500_000
    content, columns = decoded(parsed(text).scripts[0])
    for shown, made in zip(content["runs"][0]["levels"], data.levels, strict=True):
        flags = [int(value) for value in column(columns, shown["requests"]["flags"])]
        assert sum(value & MEASURED > 0 for value in flags) == made.requests.issued + made.steady.cut_transient
        assert shown["summary"] == json.loads(msgspec.json.encode(made))
