"""The live screen: its lines for made-up samples, and what a terminal, a file and a full disk get."""

from __future__ import annotations

import io
import os
import pty
import re
import struct
import termios
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any, TextIO

import pytest
from made import MS, figures_of, manifest_from, request, sample
from msgspec.structs import asdict

from loadgen.analysis.figures import LevelSummary, Verdict
from loadgen.cli.progress import LevelProgress, Progress, screen
from loadgen.client.pacing import Arrivals
from loadgen.client.runner import LevelSpec
from loadgen.records import Manifest

RUN, OTHER = Path("r/vllm"), Path("r/trtllm")
RATE_S = 2.0


def at(now: float, **fields: Any) -> Any:
    """What a worker said after so many seconds."""
    made = {"in_flight": 8, "lateness_ns": [100_000], **fields}
    return sample(int(now * 1000), **made)


def progress(spec: LevelSpec, *samples: Any, planned: int = 3) -> LevelProgress:
    level = LevelProgress(spec, planned, "vllm", 0.0)
    for one in samples:
        level.add(one, one.t_ns / MS / 1000, RATE_S)
    return level


BY_TIME = LevelSpec(index=1, concurrency=8, duration_s=20.0)
BY_COUNT = LevelSpec(index=0, concurrency=4, requests=100)
OPEN = LevelSpec(index=0, concurrency=64, arrivals=Arrivals(kind="poisson", rate_rps=2.5, seed=0), requests=50)
RUNNING = (
    at(1, phase="warmup", output_tokens=500),
    at(2, completed=8, output_tokens=1000, ttft_sum_ns=100 * MS, ttft_count=8, tpot_sum_ns=48 * MS, tpot_count=8),
    at(
        7, completed=60, failed=2, output_tokens=6000, ttft_sum_ns=600 * MS, ttft_count=60, tpot_sum_ns=360 * MS,
        tpot_count=60,
    ),
)  # fmt: skip


def manifest(model: str = "m", levels: int = 2) -> Manifest:
    engine = {"kind": "sim", "model": model, "url": "http://127.0.0.1:8000"}
    return manifest_from(
        command=[], started_utc="", simulated=True, host={}, engine=engine, dataset={}, seed=0, load={},
        levels=[{"model": "closed", "concurrency": 8}] * levels, client={},
    )  # fmt: skip


FIGURES = figures_of([request(10 * i, 4, 3, 3, seq=i) for i in range(100)], concurrency=8)
ENDED = LevelSummary(**asdict(FIGURES), verdict=Verdict(status="VALID"))


def test_the_screen_of_a_level() -> None:
    lines = screen([progress(BY_TIME, *RUNNING)], 7.0, 60, 20, ascii_only=True)
    assert lines == [
        "level 2 of 3: 8 in flight, measuring",
        "   25% |##########2                              | 15 s left",
        "  8 in flight, 1,000 tokens/s, TTFT 10.0 ms, TPOT 6.00 ms",
        "  60 done, 2 FAILED, own stamps 0.100 ms late",
    ]


def test_before_anything_has_come_nothing_is_made_up() -> None:
    lines = screen([progress(BY_TIME)], 0.0, 79, 20, ascii_only=True)
    assert lines[0] == "level 2 of 3: 8 in flight, warming up"
    assert lines[1].startswith("    0% |") and "left" not in lines[1]
    assert lines[2:] == ["  0 in flight, 0 tokens/s", "  0 done, none failed"]


def test_a_level_by_requests_and_one_of_an_open_loop() -> None:
    by_count = progress(BY_COUNT, at(1), at(11, completed=29))
    assert by_count.done(11) == 25, "the first request of each slot is not measured"
    assert by_count.left_s(11) == pytest.approx(30)
    assert progress(OPEN, at(1), at(2, completed=10)).done(2) == 10
    assert screen([progress(OPEN)], 0, 79, 20, True)[0] == "level 1 of 3: 2.5 requests/s, warming up"
    assert progress(BY_COUNT, at(1), at(2, completed=500)).phase(2) == "ending"


def test_samples_of_several_workers_are_added_up() -> None:
    level = progress(BY_TIME, at(1), at(1, worker=1), at(2, worker=0, completed=3), at(2, worker=1, completed=4))
    assert level.speed()[0] == "16 in flight" and level.health()[0] == "7 done"


def test_tokens_that_are_missing_for_a_moment_make_no_rate_below_zero() -> None:
    assert progress(BY_TIME, at(1, output_tokens=900), at(4, output_tokens=800)).speed()[1] == "0 tokens/s"


def test_a_level_beyond_what_was_planned() -> None:
    assert progress(BY_TIME, planned=0).number == "level 2"


def test_several_engines_have_a_line_each() -> None:
    levels = [progress(BY_TIME, *RUNNING) for _ in range(7)]
    lines = screen(levels, 7.0, 79, 20, True)
    assert lines[0] == "level 2 of 3: 8 in flight, 7 engines at once"
    assert lines[1] == "  vllm             25%, 2 FAILED, 8 in flight, 1,000 tokens/s, TTFT 10.0 ms"
    assert len(lines) == 8
    assert screen(levels, 7.0, 79, 5, True)[-1] == "  and 4 more"


@pytest.mark.parametrize("columns", [1, 10, 20, 40, 57, 79])
@pytest.mark.parametrize("rows", [1, 2, 5, 23])
def test_lines_fit_any_terminal_and_no_figure_is_cut(columns: int, rows: int) -> None:
    for levels in ([progress(BY_TIME, *RUNNING)], [progress(BY_TIME, *RUNNING)] * 4):
        lines = screen(levels, 7.0, columns, rows, False)
        assert len(lines) <= rows
        assert all(len(line) <= columns for line in lines)
        if columns >= 20:
            assert not any(re.search(r"(TTFT|TPOT)( [\d.]*)?$", line) for line in lines)


# --- what is written


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def play(stream: TextIO, clock: Clock, seconds: int = 35, together: bool = False, model: str = "m") -> None:
    """A sweep of two levels, each of so many seconds with ten samples a second."""
    listener = Progress(stream, together, clock)
    runs = [RUN, OTHER] if together else [RUN]
    for run in runs:
        listener.started(manifest(model), run)
    for index in range(2):
        for run in runs:
            listener.level_started(LevelSpec(index=index, concurrency=8, duration_s=float(seconds)), run)
        start = clock.now
        while clock.now - start < seconds:
            clock.now += 0.1
            done = int((clock.now - start) * 10)
            for run in runs:
                listener.sampled(at(clock.now, completed=done, output_tokens=done * 10), run)
        for run in runs:
            listener.level_ended(ENDED, run)
    listener.said("the end")


LINE = "8 in flight: 100 measured, 300 tokens/s, TTFT 4.00 ms, TPOT 3.00 ms, VALID"


def test_a_file_gets_whole_lines_and_few_of_them() -> None:
    stream = io.StringIO()
    play(stream, Clock(), model="evil\x1b[31m\r\nmodel")
    text = stream.getvalue()
    assert not re.search(r"[^\n -~]", text), "no control characters"
    lines = text.splitlines()
    assert lines[0] == "Measuring evil?[31m model (sim, SIMULATED) at http://127.0.0.1:8000"
    assert lines[1] == "Run folder: r/vllm"
    assert lines[2] == "8 in flight: started (level 1 of 2)"
    assert len([line for line in lines if "measuring" in line]) == 6, "one each 10 s of twice 35 s"
    assert re.fullmatch(
        r"8 in flight: measuring, \d+%, \d+ s left, 8 in flight, 99 tokens/s, \d+ done, none failed, own stamps "
        r"0.100 ms late",
        lines[3],
    )
    assert lines[6] == lines[-2] == LINE
    assert lines[-1] == "the end"


def test_several_engines_share_a_line_in_a_file() -> None:
    stream = io.StringIO()
    play(stream, Clock(), together=True)
    lines = stream.getvalue().splitlines()
    assert len([line for line in lines if "started" in line]) == 2
    about = [line for line in lines if "vllm" in line and "trtllm" in line]
    assert len(about) == 6
    assert "vllm 29%, 8 in flight, 99 tokens/s; trtllm 29%, 8 in flight" in about[0]
    assert len([line for line in lines if line.startswith("trtllm, 8 in flight: 100 measured")]) == 2


class Full(io.StringIO):
    """A stream that takes so many characters."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def write(self, text: str) -> int:
        if self.tell() + len(text) > self.most:
            raise OSError(28, "No space left on device")
        return super().write(text)


@pytest.mark.parametrize("most", [0, 100, 300])
def test_a_full_disk_under_standard_error_ends_no_sweep(most: int) -> None:
    stream = Full(most)
    play(stream, Clock())
    assert len(stream.getvalue()) <= most


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TextIO, int]]:
    """A pseudo-terminal of 80 x 24, and the descriptor of its other end."""
    monkeypatch.setenv("TERM", "screen")
    ours, theirs = pty.openpty()
    resize(theirs, 80, 24)
    attributes = termios.tcgetattr(theirs)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    os.set_blocking(ours, False)
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        yield stream, ours
    os.close(ours)


def resize(fd: int, columns: int, rows: int) -> None:
    ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def read(fd: int) -> str:
    found = b""
    while True:
        try:
            found += os.read(fd, 65536)
        except (BlockingIOError, OSError):
            return found.decode()


class Emulator:
    """What a terminal without line wrap shows: rows of text, "up" and "erase below" obeyed."""

    def __init__(self) -> None:
        self.rows = [""]
        self.row = 0
        self.most = 0

    def feed(self, text: str) -> None:
        for piece in re.findall(r"\x1b\[A|\x1b\[J|\r|\n|[^\x1b\r\n]+", text):
            if piece == "\x1b[A":
                self.row -= 1
                assert self.row >= 0
            elif piece == "\x1b[J":
                del self.rows[self.row :]
                self.rows.append("")
            elif piece == "\n":
                self.row += 1
                if self.row == len(self.rows):
                    self.rows.append("")
            elif piece != "\r":
                assert self.rows[self.row] == "", "nothing is written over"
                self.rows[self.row] = piece
                self.most = max(self.most, len(piece))
        assert not re.sub(r"\x1b\[[AJ]", "", text).count("\x1b"), "no other code"


def test_a_terminal_shows_four_lines_and_is_left_clean(terminal: tuple[TextIO, int], monkeypatch: Any) -> None:
    stream, ours = terminal
    clock, shown = Clock(), Emulator()
    listener = Progress(stream, now_s=clock)
    listener.started(manifest(), RUN)
    listener.level_started(BY_TIME, RUN)
    for tenth in range(1, 120):
        clock.now = tenth / 10
        listener.sampled(at(clock.now, completed=tenth, output_tokens=tenth * 10), RUN)
        if tenth == 50:
            listener.said("in between")
    shown.feed(read(ours))
    assert [row for row in shown.rows if row][:3] == [
        "Measuring m (sim, SIMULATED) at http://127.0.0.1:8000", "Run folder: r/vllm", "in between"
    ]  # fmt: skip
    below = [row for row in shown.rows if row][3:]
    assert len(below) == 4
    assert below[0] == "level 2 of 2: 8 in flight, measuring"
    assert below[1].endswith("| 8 s left") and len(below[1]) == 79 and "█" in below[1]
    assert below[3].startswith("  11") and below[3].endswith(" done, none failed, own stamps 0.100 ms late")
    listener.level_ended(ENDED, RUN)
    shown.feed(read(ours))
    assert len([row for row in shown.rows if row]) == 4
    assert shown.rows[3].startswith("8 in flight: 100 measured") and shown.rows[4:] == [""]
    assert shown.most <= 79


def test_it_is_drawn_four_times_a_second_at_most(terminal: tuple[TextIO, int]) -> None:
    stream, ours = terminal
    play(stream, Clock(), seconds=10)
    assert read(ours).count("measuring") <= 2 * 10 * 4


def test_a_terminal_that_becomes_narrow_is_not_garbled(terminal: tuple[TextIO, int]) -> None:
    stream, ours = terminal
    clock = Clock()
    listener = Progress(stream, now_s=clock)
    listener.level_started(BY_TIME, RUN)
    clock.now = 1.0
    listener.sampled(at(1), RUN)
    read(ours)
    resize(stream.fileno(), 40, 24)
    clock.now = 2.0
    listener.sampled(at(2), RUN)
    text = read(ours)
    # The bar of 79 columns and the last line have become two rows each.
    assert text.startswith("\r" + "\x1b[A" * 6 + "\x1b[J")
    assert all(len(line) <= 39 for line in text.split("\x1b[J")[1].splitlines())
    clock.now = 3.0
    listener.sampled(at(3), RUN)
    assert read(ours).startswith("\r" + "\x1b[A" * 4 + "\x1b[J")


def test_a_terminal_without_a_size_or_of_one_row(terminal: tuple[TextIO, int]) -> None:
    stream, ours = terminal
    for columns, rows in ((0, 0), (1, 1), (2, 3)):
        resize(stream.fileno(), columns, rows)
        play(stream, Clock(), seconds=2)
    assert read(ours)


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_is_dumb_gets_plain_lines(terminal: tuple[TextIO, int], monkeypatch: Any, term: str) -> None:
    monkeypatch.setenv("TERM", term)
    stream, ours = terminal
    play(stream, Clock())
    text = read(ours)
    assert "\x1b" not in text and "8 in flight: started" in text


def test_several_engines_on_a_terminal(terminal: tuple[TextIO, int]) -> None:
    stream, ours = terminal
    shown = Emulator()
    play(stream, Clock(), seconds=3, together=True)
    shown.feed(read(ours))
    assert [row for row in shown.rows if row][-1] == "the end"
    assert len([row for row in shown.rows if row]) == 4 + 4 + 1
