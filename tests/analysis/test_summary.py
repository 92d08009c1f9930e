"""A run folder, finished or not, gives the summary that its levels gave one by one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec
import pytest
from made import MS, failure, manifest_from, request, sample

from loadgen.analysis.figures import Gauge, LevelSummary
from loadgen.analysis.measure import KILLED, gather, summarize, summarize_level, summarize_run
from loadgen.analysis.summary import Summary
from loadgen.errors import RunFolderError
from loadgen.gpus import GpuReading, GpuSample
from loadgen.loads import Closed
from loadgen.records import (
    ClientSample,
    LevelMark,
    NoteMark,
    RequestRecord,
    RunTail,
    ServerSample,
    encode_line,
    write_json,
    write_manifest,
)
from loadgen.run_folders import RUNS_FILE, RunIndex, is_together, run_folders

LOADS = [Closed(concurrency=1), Closed(concurrency=2)]


def level_records(level: int, start: int) -> list[RequestRecord]:
    """One slot that is always busy from ``start`` on: a warm-up, 20 measured, a failure, and a drain."""
    return [
        request(start, 50, phase="warmup", level=level),
        *[request(start + 50 + 30 * i, 10, 5 + level, 15 - level, seq=i + 1, level=level) for i in range(20)],
        failure(start + 650, 10, end=start + 660, seq=21, level=level, message=f"of level {level}"),
        request(start + 660, 50, phase="drain", seq=22, level=level),
    ]


RECORDS = [level_records(0, 1000), level_records(1, 5000)]
SAMPLES = [
    [sample(t + start, cpu=t // (level + 2), lateness_ns=[1000 * level + t], level=level) for t in range(0, 1000, 100)]
    for level, start in ((0, 1000), (1, 5000))
]
MARKS = [
    LevelMark(level=0, window_start_ns=1050 * MS, window_end_ns=1650 * MS),
    LevelMark(level=1, window_start_ns=5050 * MS, window_end_ns=5650 * MS),
]


def run_folder(
    run: Path,
    records: Iterable[RequestRecord | bytes],
    client: Iterable[ClientSample | LevelMark | NoteMark] = (),
    levels: int = 2,
    server: Iterable[ServerSample] = (),
    gpu: Iterable[GpuSample] = (),
) -> Path:
    """A run folder of these lines; bytes go into records.jsonl as they are."""
    manifest = manifest_from(
        command=["loadgen"],
        started_utc="2024-05-01T00:00:00+00:00",
        simulated=True,
        host={},
        engine={},
        dataset={},
        seed=0,
        load={},
        levels=LOADS[:levels],
        client={},
    )
    write_manifest(run, manifest)
    lines = [line if isinstance(line, bytes) else encode_line(line) for line in records]
    (run / "records.jsonl").write_bytes(b"".join(lines))
    for name, log in (("client", client), ("server_metrics", server), ("gpu", gpu)):
        (run / f"{name}.jsonl").write_bytes(b"".join(map(encode_line, log)))
    return run


def counted(t: int, level: int, at: Literal["start", "during", "end"], **values: float) -> ServerSample:
    """What the engine had counted at ``t``, which it took 2 ms to say."""
    return ServerSample(t_ns=t * MS, took_ns=2 * MS, level=level, at=at, values=values)


def drawn(t: int, level: int, joules: float) -> GpuSample:
    """One card that had used that much energy by ``t``."""
    return GpuSample(t_ns=t * MS, level=level, gpus=[GpuReading(uuid="GPU-1", power_w=200, energy_j=joules)])


def one_by_one(level: int, mark: LevelMark | None = None) -> LevelSummary:
    return summarize_level(LOADS[level], RECORDS[level], SAMPLES[level], mark or MARKS[level])


def statuses(level: LevelSummary) -> list[str]:
    return [reason.status for reason in level.verdict.reasons]


# --- whole runs


def test_run_is_summarised_as_its_levels_were(tmp_path: Path) -> None:
    run_folder(tmp_path, RECORDS[0] + RECORDS[1], [*SAMPLES[0], MARKS[0], *SAMPLES[1], MARKS[1]])
    manifest, summary = summarize_run(tmp_path)
    assert manifest.levels == LOADS
    assert summary == Summary(simulated=True, levels=[one_by_one(0), one_by_one(1)])
    # That the two are no equals of nothing:
    assert [level.requests.completed for level in summary.levels] == [20, 20]
    assert [level.client.lateness_s.count for level in summary.levels] == [7, 7]
    assert [level.errors for level in summary.levels] == [{"timeout": 1}, {"timeout": 1}]


def test_records_of_two_levels_may_be_mixed(tmp_path: Path) -> None:
    mixed = [record for pair in zip(*RECORDS, strict=True) for record in pair]
    run_folder(tmp_path, mixed, [*SAMPLES[1], *SAMPLES[0], MARKS[1], MARKS[0]])
    assert summarize_run(tmp_path)[1].levels == [one_by_one(0), one_by_one(1)]


def test_a_level_takes_only_its_own_records() -> None:
    assert summarize_level(LOADS[1], RECORDS[0] + RECORDS[1], SAMPLES[1], MARKS[1]) == one_by_one(1)


def test_summary_survives_a_round_trip_as_json(tmp_path: Path) -> None:
    run_folder(tmp_path, RECORDS[0], [*SAMPLES[0], MARKS[0]], levels=1)
    summary = summarize_run(tmp_path)[1]
    # Distributions inside dicts come back as dicts: the JSON is compared.
    raw = msgspec.json.encode(summary)
    assert msgspec.json.encode(msgspec.json.decode(raw, type=Summary)) == raw


def test_run_is_valid_when_every_level_is() -> None:
    failed, good = one_by_one(0), summarize_level(LOADS[0], RECORDS[0][:-2], SAMPLES[0], MARKS[0])
    assert (failed.verdict.status, good.verdict.status) == ("ERRORS", "VALID")
    assert Summary(simulated=True, levels=[good, good]).valid
    assert not Summary(simulated=True, levels=[good, failed]).valid
    assert not Summary(simulated=True, levels=[]).valid


# --- runs that did not end


def test_interrupted_level_says_why(tmp_path: Path) -> None:
    mark = msgspec.structs.replace(MARKS[1], interrupted="Ctrl-C")
    run_folder(tmp_path, RECORDS[0] + RECORDS[1], [*SAMPLES[0], MARKS[0], *SAMPLES[1], mark])
    levels = summarize_run(tmp_path)[1].levels
    assert levels == [one_by_one(0), one_by_one(1, mark)]
    assert levels[1].interrupted == "Ctrl-C"
    assert levels[1].verdict.status == "INTERRUPTED"


def test_killed_run_is_summarised_over_what_was_measured(tmp_path: Path) -> None:
    run_folder(tmp_path, RECORDS[0] + RECORDS[1], [*SAMPLES[0], MARKS[0], *SAMPLES[1]])
    summary = summarize_run(tmp_path)[1]
    # From the first measured send to the last measured end, which is that of the failure.
    window = LevelMark(level=1, window_start_ns=5050 * MS, window_end_ns=5660 * MS, interrupted=KILLED)
    assert summary.levels == [one_by_one(0), one_by_one(1, window)]
    assert statuses(summary.levels[1])[0] == "INTERRUPTED"
    # 20 requests of 3 tokens, the failure's one, and the warm-up's at the very start.
    assert summary.levels[1].output_throughput_tps == pytest.approx(62 / 0.61)
    assert summary.notes == []


def test_levels_that_were_not_run_are_noted(tmp_path: Path) -> None:
    run_folder(tmp_path, RECORDS[0], [*SAMPLES[0], MARKS[0]])
    summary = summarize_run(tmp_path)[1]
    assert summary.levels == [one_by_one(0)]
    assert summary.notes == ["1 of 2 levels were not run"]


def test_run_killed_before_its_first_record_has_no_level(tmp_path: Path) -> None:
    run_folder(tmp_path, [])
    (tmp_path / "records.jsonl").unlink()
    (tmp_path / "client.jsonl").unlink()
    summary = summarize_run(tmp_path)[1]
    assert summary.levels == []
    assert summary.notes == ["2 of 2 levels were not run"]
    assert not summary.valid


def test_level_in_which_nothing_ended_has_no_figures(tmp_path: Path) -> None:
    run_folder(tmp_path, [], [MARKS[0]], levels=1)
    (level,) = summarize_run(tmp_path)[1].levels
    assert level.requests.issued == 0
    assert level.output_throughput_tps is None
    assert statuses(level) == ["TOO_FEW", "LOAD_NOT_ACHIEVED"]


def test_level_that_the_manifest_does_not_have_is_summarised_without_a_load(tmp_path: Path) -> None:
    run_folder(tmp_path, RECORDS[0] + RECORDS[1], [*SAMPLES[0], MARKS[0], *SAMPLES[1], MARKS[1]], levels=1)
    levels = summarize_run(tmp_path)[1].levels
    assert levels[0] == one_by_one(0)
    assert levels[1].load == Closed(concurrency=0)
    assert levels[1].ttft_s == one_by_one(1).ttft_s


def test_lines_that_cannot_be_read_are_noted(tmp_path: Path) -> None:
    cut = encode_line(RECORDS[0][0])[:99]
    run_folder(tmp_path, [cut + b"\n", *RECORDS[0], b"\0\0\n", cut], [*SAMPLES[0], MARKS[0]], levels=1)
    summary = summarize_run(tmp_path)[1]
    assert summary.levels == [one_by_one(0)]
    (note,) = summary.notes
    assert note.startswith(f"{tmp_path / 'records.jsonl'}: 3 lines cannot be read")
    assert note.endswith("(lines 1, 25, 26)")


def test_only_the_first_bad_lines_are_listed(tmp_path: Path) -> None:
    run_folder(tmp_path, [*RECORDS[0], *[b"?\n"] * 9], [*SAMPLES[0], MARKS[0]], levels=1)
    (note,) = summarize_run(tmp_path)[1].notes
    assert "9 lines" in note
    assert note.endswith("(lines 24, 25, 26, 27, 28, ...)")


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError):
        summarize_run(tmp_path)


def test_notes_of_the_run_are_in_its_summary_before_those_about_the_folder(tmp_path: Path) -> None:
    notes = [NoteMark(text="the prefix cache could not be emptied"), NoteMark(text="caf\u00e9")]
    run_folder(tmp_path, [*RECORDS[0], b"?\n"], [notes[0], *SAMPLES[0], MARKS[0], notes[1]])
    found = summarize_run(tmp_path)[1].notes
    assert found[:2] == ["the prefix cache could not be emptied", "caf\u00e9"]
    assert [note.partition(":")[0] for note in found[2:]] == [
        "1 of 2 levels were not run",
        str(tmp_path / "records.jsonl"),
    ]


# --- what the engine and the cards say

SERVER = [
    counted(900, 0, "start", requests=7),
    counted(1300, 0, "during", requests=15, requests_running=2),
    counted(1800, 0, "end", requests=29),
    counted(4900, 1, "start", requests=29),
    counted(5800, 1, "end", requests=50),
]
GPU = [drawn(1000, 0, 100), drawn(1400, 0, 300), drawn(2000, 0, 600), drawn(5000, 1, 900), drawn(5700, 1, 1600)]


def test_each_level_is_compared_with_the_counters_around_it(tmp_path: Path) -> None:
    run_folder(tmp_path, RECORDS[0] + RECORDS[1], [*SAMPLES[0], MARKS[0], *SAMPLES[1], MARKS[1]], server=SERVER)
    levels = summarize_run(tmp_path)[1].levels
    assert [level.totals.requests for level in levels] == [22, 22]
    servers = [level.server for level in levels]
    assert [server and (server.requests, server.agrees) for server in servers] == [(22, True), (21, False)]
    # Of the level's own samples only, and of those in the window.
    assert [server and server.scrapes for server in servers] == [3, 2]
    assert [server and server.requests_running for server in servers] == [Gauge(mean=2, max=2), None]


def test_cards_are_in_the_level_during_which_they_were_read(tmp_path: Path) -> None:
    run_folder(tmp_path, RECORDS[0] + RECORDS[1], [*SAMPLES[0], MARKS[0], *SAMPLES[1], MARKS[1]], gpu=GPU)
    first, second = (level.gpu for level in summarize_run(tmp_path)[1].levels)
    # The window of level 0 is 1050 to 1650 ms: 100 + 200/8 J at its start, 300 + 300 * 250/600 J at its end.
    assert first is not None
    assert first.devices[0].energy_j == pytest.approx(425 - 125)
    # 20 requests of 3 tokens, and the warm-up's at its very start; the failure's token came after it.
    assert first.energy_per_output_token_j == pytest.approx(300 / 61)
    # No sample of level 1 lies in its window.
    assert second is None


def test_a_level_without_logs_of_engine_and_cards_says_nothing_of_them(tmp_path: Path) -> None:
    run_folder(tmp_path, RECORDS[0], [*SAMPLES[0], MARKS[0]], levels=1)
    (level,) = summarize_run(tmp_path)[1].levels
    assert (level.server, level.gpu) == (None, None)


def test_report_made_again_is_the_live_one(tmp_path: Path) -> None:
    run_folder(tmp_path, RECORDS[0] + RECORDS[1], [*SAMPLES[0], MARKS[0], *SAMPLES[1], MARKS[1]], 2, SERVER, GPU)
    live = [
        summarize(
            LOADS[level],
            gather(RECORDS[level], MARKS[level]),
            SAMPLES[level],
            None,
            [line for line in SERVER if line.level == level],
            [line for line in GPU if line.level == level],
        )
        for level in (0, 1)
    ]
    assert summarize_run(tmp_path)[1] == Summary(simulated=True, levels=live)
    assert live[0].server is not None and live[0].gpu is not None


# --- several runs of one sweep


def runs_file(folder: Path, *names: str, together: bool = False) -> Path:
    write_json(folder / RUNS_FILE, RunIndex(command=["loadgen", "sweep"], runs=list(names), together=together))
    return folder


def measured(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).mkdir()
        run_folder(folder / name, [])


def test_a_sweep_of_one_engine_is_its_own_folder(tmp_path: Path) -> None:
    run_folder(tmp_path, [])
    assert run_folders(tmp_path) == [tmp_path]
    assert not is_together(tmp_path)


def test_a_sweep_of_several_has_their_folders_in_its_order(tmp_path: Path) -> None:
    measured(tmp_path, "b", "a", "stranger")
    runs_file(tmp_path, "b", "a")
    assert run_folders(tmp_path) == [tmp_path / "b", tmp_path / "a"]


def test_runs_that_were_never_measured_are_left_out(tmp_path: Path) -> None:
    measured(tmp_path, "b")
    (tmp_path / "a").mkdir()  # launched, and dead before its first level
    runs_file(tmp_path, "a", "b", "c")
    assert run_folders(tmp_path) == [tmp_path / "b"]


def test_a_sweep_of_which_nothing_was_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"none of its runs was measured \(a, b\)$"):
        run_folders(runs_file(tmp_path, "a", "b"))


@pytest.mark.parametrize("together", [False, True])
def test_whether_the_runs_shared_the_machine_is_kept(together: bool, tmp_path: Path) -> None:
    assert is_together(runs_file(tmp_path, "a", "b", together=together)) is together


@pytest.mark.parametrize(
    "raw", [b"", b'{"command": ["loadgen"], "ru', b'{"runs": ["a"]}', b"[]", b'{"command": ["\xff"]}']
)
def test_a_broken_runs_file_is_refused_with_its_path(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / RUNS_FILE
    path.write_bytes(raw)
    for look in (run_folders, is_together):
        with pytest.raises(RunFolderError) as caught:
            look(tmp_path)
        assert str(caught.value).startswith(f"{path}: ")


# --- reading on while the run goes on


def test_tail_gives_what_came_since_the_last_look_and_what_the_disk_did_not_take(tmp_path: Path) -> None:
    path = run_folder(tmp_path, RECORDS[0][:3]) / "records.jsonl"
    tail = RunTail(tmp_path)
    assert list(tail.records([])) == RECORDS[0][:3]
    assert list(tail.records([])) == []
    with path.open("ab") as file:
        file.write(encode_line(RECORDS[0][3]) + b"cut\n" + encode_line(RECORDS[0][4]))
    unwritten = [encode_line(RECORDS[0][5]).decode(), "cut"]
    assert list(tail.records(unwritten)) == RECORDS[0][3:6]
    assert list(tail.records([])) == []
