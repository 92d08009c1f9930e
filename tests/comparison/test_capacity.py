"""Capacities of two sides at one SLO: the ratio's interval, the word, and when there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from made import MS, manifest_from, request
from typer.testing import CliRunner, Result

from loadgen.analysis.bursts import ratio_of
from loadgen.analysis.capacity import Interval
from loadgen.analysis.measure import Measured, summarize_level
from loadgen.analysis.outcome import outcome
from loadgen.analysis.slo import parse_slos
from loadgen.cli.main import app
from loadgen.comparison.capacity import Capacities, capacities, word_of
from loadgen.comparison.gate import Finding
from loadgen.comparison.sides import Side, read_side
from loadgen.loads import Closed, Open
from loadgen.records import LevelMark, RequestError, RequestRecord, encode_line, write_manifest

REPORTS = Path(__file__).resolve().parents[2] / "reports"
LEVELS = str(REPORTS / "vllm-0.25.1-h200-qwen1.5-4b-levels")
SLOS = parse_slos("ttft=500ms")


def measured(rate: float, slow: int, gap: int = 10, requests: int = 1500, output: int = 11) -> Measured:
    """An open loop's level in which every so many-th request takes 900 ms to its first token, and others 100 ms."""
    every_ms = round(1000 / rate)
    records = [
        request(
            seq * every_ms,
            900 if slow and seq % slow == 0 else 100,
            *[gap] * (output - 1),
            seq=seq,
            scheduled_ns=seq * every_ms * MS,
        )
        for seq in range(requests)
    ]
    load = Open(arrival="poisson", rate_rps=rate)
    mark = LevelMark(level=0, window_start_ns=0, window_end_ns=requests * every_ms * MS)
    return Measured(level=summarize_level(load, records, [], mark), outcomes=[outcome(one) for one in records])


def side(label: str, *levels: Measured, gpus: int = 1, **load: Any) -> Side:
    manifest = manifest_from(
        command=[], started_utc="", simulated=False, host={}, dataset={}, seed=0, levels=[], client={}, load=load,
        engine={"kind": "vllm", "gpu_uuids": [str(number) for number in range(gpus)]},
    )  # fmt: skip
    return Side(label=label, manifest=manifest, levels=[], measured=list(levels))


def made(a: Side, b: Side, *findings: Finding, force: bool = False) -> Capacities:
    found = capacities(a, b, findings, SLOS, force=force)
    assert found is not None
    return found


def finding(name: str) -> Finding:
    return Finding(weight="spoils", name=name, a="", b="", text="")


def test_the_ratio_lies_between_the_extremes_of_both() -> None:
    a = side("a", measured(10, 0), measured(20, 2))
    b = side("b", measured(25, 0), measured(40, 2), gpus=2)
    found = made(a, b)
    row = found.rows[0]
    assert (row.a.capacity_rps, row.b.capacity_rps) == ((10, 20), (25, 40))
    assert (row.a.output_tps, row.b.output_tps_per_gpu) == ((110, 220), (137.5, 220))
    assert row.ratio == (25 / 20, 40 / 10) and row.word == "B carries more" and not row.advice
    assert row.ratio_per_gpu == (12.5 / 20, 20 / 10) and row.word_per_gpu == "cannot be told"
    assert made(b, a).rows[0].word == "A carries more"
    assert msgspec.json.decode(msgspec.json.encode(found), type=Capacities) == found


def test_what_cannot_be_told_says_what_to_measure() -> None:
    a, b = side("a", measured(10, 0), measured(20, 2)), side("b", measured(12, 0), measured(25, 2))
    row = made(a, b).rows[0]
    assert row.word == "cannot be told" and "A between 10 and 20 and B between 12 and 25" in row.advice
    row = made(a, side("b", measured(5, 0), measured(10, 0))).rows[0]
    assert row.ratio == (0.5, None) and row.word == "cannot be told"
    assert row.advice == "no load broke the SLO: sweep B at more than 10 requests/s"
    row = made(a, side("b", measured(30, 0), measured(40, 0))).rows[0]
    assert row.ratio == (2, None) and row.word == "B carries more"


def test_a_side_without_a_bracket_has_no_ratio() -> None:
    row = made(side("a", measured(10, 0)), side("b", measured(10, 0), measured(20, 2))).rows[0]
    assert row.ratio is None and row.word == "cannot be told" and not row.advice
    assert "a single load" in row.a.refused and row.b.capacity_rps == (10, 20)


def test_speeds_take_the_place_of_tpot() -> None:
    # 10 ms between tokens: 100 tokens/s for each user; 40 ms: 25.
    a = side("a", measured(10, 0), measured(20, 0, gap=40))
    b = side("b", measured(10, 0), measured(20, 0))
    at = {row.tokens_per_s: row for row in made(a, b).rows}
    assert list(at) == [None, 10, 20, 30, 50]
    assert at[20].a.capacity_rps == at[20].b.capacity_rps == (20, None)
    assert at[30].a.capacity_rps == (10, 20) and at[30].ratio == (1, None)


def test_only_what_spoils_more_than_levels_refuses() -> None:
    a, b = side("a", measured(10, 0), measured(20, 2)), side("b", measured(25, 0), measured(40, 2))
    assert not made(a, b, finding("verdict"), finding("errors"), finding("levels")).refused
    assert made(a, b, finding("prompts"), finding("verdict")).refused == "the sides cannot be compared: prompts"
    assert not made(a, b, finding("prompts"), force=True).refused
    longer = side("b", measured(25, 0, output=15), measured(40, 2, output=15))
    assert made(a, longer, finding("levels")).refused == "the sides cannot be compared: output tokens"
    assert "no verdicts" in made(a, side("b"), force=True).refused


def test_the_runs_own_objectives_count_where_they_agree() -> None:
    levels = measured(10, 0), measured(20, 2)
    a, b = side("a", *levels, slo="ttft=500ms"), side("b", *levels, slo="ttft=500ms")
    found = capacities(a, b, [])
    assert found is not None and found.slos == ["ttft=500ms"] and found.rows[0].ratio == (0.5, 2)
    assert capacities(a, side("b", *levels, slo="ttft=1s"), []) is None
    assert capacities(side("a", *levels), side("b", *levels), []) is None


ends = st.tuples(st.floats(0.01, 100), st.one_of(st.none(), st.floats(1, 10))).map(
    lambda pair: (pair[0], None if pair[1] is None else pair[0] * pair[1])
)


@given(ends)
def test_a_side_against_itself_holds_1(interval: Interval) -> None:
    ratio = ratio_of(interval, interval)
    assert ratio is not None
    assert (ratio[0] is None or ratio[0] <= 1) and (ratio[1] is None or ratio[1] >= 1)
    assert word_of(ratio) == "cannot be told"


@given(ends, ends, st.floats(0, 1), st.floats(0, 1))
def test_wherever_both_capacities_lie_the_ratio_holds_theirs(a: Interval, b: Interval, x: float, y: float) -> None:
    ratio = ratio_of(b, a)
    assert ratio is not None
    one, other = (low + share * ((high or low * 50) - low) for (low, high), share in ((a, x), (b, y)))
    assert ratio[0] is None or ratio[0] <= other / one * (1 + 1e-9)
    assert ratio[1] is None or ratio[1] >= other / one * (1 - 1e-9)
    turned = {"A carries more": "B carries more", "B carries more": "A carries more"}
    assert word_of(ratio_of(a, b)) == turned.get(word_of(ratio), "cannot be told")


# --- one reading of the records


def written(run: Path, records: list[RequestRecord], start_ms: int, end_ms: int) -> Path:
    run.mkdir()
    manifest = side("a").manifest
    manifest.levels = [Closed(concurrency=4)]
    write_manifest(run, manifest)
    (run / "records.jsonl").write_bytes(b"".join(map(encode_line, records)))
    mark = LevelMark(level=0, window_start_ns=start_ms * MS, window_end_ns=end_ms * MS)
    (run / "client.jsonl").write_bytes(encode_line(mark))
    return run


def looks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The readings of records.jsonl, as they happen."""
    from loadgen.analysis import measure
    from loadgen.comparison import sides
    from loadgen.records import read_records

    found: list[Path] = []

    def counted(path: Path) -> Any:
        found.append(path)
        return read_records(path)

    monkeypatch.setattr(measure, "read_records", counted)
    monkeypatch.setattr(sides, "read_records", counted)
    return found


def test_records_are_read_once_where_nothing_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [request(30 * seq, 20, 5, 5, seq=seq, prompt_id=str(seq)) for seq in range(600)]
    run, read = written(tmp_path / "run", records, 0, 18_000), looks(monkeypatch)
    (level,) = read_side(run).levels
    assert len(read) == 1 and level.sample.completed == 600


def test_a_transient_is_cut_off_a_side_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [
        request(30 * seq, 400 if seq < 60 else 20 + seq * 7 % 5, 5, 5, seq=seq, prompt_id=str(seq))
        for seq in range(600)
    ]
    run, read = written(tmp_path / "run", records, 0, 18_000), looks(monkeypatch)
    found = read_side(run)
    cut = found.measured[0].level.steady.cut_transient
    assert cut > 0 and len(read) == 3  # the window's start is known after the first
    sample = found.levels[0].sample
    assert sample.completed == 600 - cut and sample.sent_s.min() >= 0
    assert sample.window_s == pytest.approx(found.measured[0].level.duration_s)


# --- the command, on committed runs


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["compare", *words], standalone_mode=False)


def test_a_real_run_against_itself() -> None:
    done = run(LEVELS, LEVELS, "--slo", "tpot=10ms")
    assert done.return_value == 0
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "At the same SLO: tpot=10ms, met by 99 % of requests" in done.stdout and "not told" in done.stdout
    found = json.loads(run(LEVELS, LEVELS, "--slo", "tpot=10ms", "--format", "json").stdout)
    at_slo, *speeds = found["comparison"]["capacities"]["rows"]
    assert at_slo["ratio"][0] < 1 < at_slo["ratio"][1] and at_slo["word"] == "cannot be told"
    assert [row["tokens_per_s"] for row in speeds] == [10, 20, 30, 50]
    assert "| at the SLO | 56.1 .. 169 |" in run(LEVELS, LEVELS, "--slo", "tpot=10ms", "--format", "markdown").stdout
    assert "same SLO" not in run(LEVELS, LEVELS).stdout


def test_bad_attainment() -> None:
    done = run(LEVELS, LEVELS, "--slo", "tpot=10ms", "--attainment", "100%")
    assert isinstance(done.exception, typer.BadParameter) and "no sample" in str(done.exception)


def test_a_failed_request_is_none_that_keeps_the_slo() -> None:
    whole = measured(20, 0)
    lost = measured(20, 0)
    lost.outcomes = [
        outcome(
            request(50 * seq, 100, seq=seq, scheduled_ns=50 * seq * MS, error=RequestError(kind="timeout", message=""))
        )
        if seq % 10 == 0
        else one
        for seq, one in enumerate(lost.outcomes)
    ]
    row = made(side("a", measured(10, 0), whole), side("b", measured(10, 0), lost)).rows[0]
    assert row.a.capacity_rps == (20, None) and row.b.capacity_rps == (10, 20)
