"""What a person sees while a sweep runs: a few lines that are drawn anew on a terminal, plain lines elsewhere.

Of a terminal only "one row up" and "erase to the end of the screen" are asked, which all of them know, tmux
and screen too; one that says it is dumb, a file and a pipe get whole lines. There are no colours.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from loadgen.analysis.figures import LevelSummary
from loadgen.client.runner import LevelSpec
from loadgen.records import ClientSample, Manifest
from loadgen.report.terminal import latency_ms
from loadgen.report.text import one_line, printable
from loadgen.units import NS_PER_S, format_count, format_ms

PLAIN_EVERY_S = 10.0
DRAW_EVERY_S = 0.25
RATE_OVER_S = 2.0  # tokens/s are those of so long
MOST_COLUMNS = 80
MOST_ROWS = 24


class LevelProgress:
    """How far one run's level is, from its workers' samples. Pure: the time is an argument, in seconds.

    Args:
        spec: the level.
        planned: levels of the run.
        name: the run's.
        started_s: when the level began.
    """

    def __init__(self, spec: LevelSpec, planned: int, name: str, started_s: float) -> None:
        self.spec = spec
        self.name = one_line(name)
        self.load = spec.load.text
        number = spec.index + 1
        self.number = f"level {number} of {planned}" if planned >= number else f"level {number}"
        self._last: dict[int, ClientSample] = {}
        self._measure_from_s: float | None = None
        self._tokens: deque[tuple[float, int]] = deque([(started_s, 0)])
        self._lateness_ns = 0
        self._probes = 0

    def add(self, sample: ClientSample, now_s: float, rate_over_s: float) -> None:
        """Takes one worker's sample in."""
        self._last[sample.worker] = sample
        if sample.phase == "measure" and self._measure_from_s is None:
            self._measure_from_s = now_s
        self._lateness_ns += sum(sample.lateness_ns)
        self._probes += len(sample.lateness_ns)
        self._tokens.append((now_s, self._sum("output_tokens")))
        while len(self._tokens) > 2 and self._tokens[1][0] <= now_s - rate_over_s:
            self._tokens.popleft()

    def _sum(self, field: str) -> int:
        return sum(getattr(sample, field) for sample in self._last.values())

    @property
    def total(self) -> float:
        """What is to be measured at most: requests, or seconds."""
        return float(self.spec.requests if self.spec.requests is not None else self.spec.most_s or 0.0)

    def done(self, now_s: float) -> float:
        """How much of it has been."""
        if self._measure_from_s is None:
            return 0.0
        if self.spec.requests is None:
            return min(now_s - self._measure_from_s, self.total)
        first = self.spec.concurrency if self.spec.warmup and self.spec.arrivals is None else 0
        return min(float(max(0, self._sum("completed") + self._sum("failed") - first)), self.total)

    def left_s(self, now_s: float) -> float | None:
        """How long the rest takes, if it goes on so; None where that is not known yet."""
        done = self.done(now_s)
        if self._measure_from_s is None or (self.spec.requests is not None and not done):
            return None
        if self.spec.requests is None:
            return self.total - done
        return (now_s - self._measure_from_s) / done * (self.total - done)

    def phase(self, now_s: float) -> str:
        """What is going on."""
        if self._measure_from_s is None:
            return "warming up" if self.spec.warmup else "starting"
        return "ending" if self.done(now_s) >= self.total else "measuring"

    def progress(self, now_s: float) -> str:
        """``62%, 8 s left``."""
        share = self.done(now_s) / self.total if self.total else 0.0
        left = self.left(now_s)
        return f"{share:.0%}" + (f", {left}" if left else "")

    def left(self, now_s: float) -> str:
        """``8 s left``, at most so much of a level that ends when it is precise; empty where it is not known."""
        left_s = self.left_s(now_s)
        if not left_s:
            return ""
        return f"{_span(left_s)} left" + (" at most" if self.spec.max_duration_s is not None else "")

    def speed(self) -> list[str]:
        """What the load sees: in flight, tokens/s, mean TTFT and TPOT of the requests that have ended."""
        (before_s, before), (now_s, now) = self._tokens[0], self._tokens[-1]
        # A request whose record is not made yet is missing from the count for a moment.
        rate = max(0, now - before) / (now_s - before_s) if now_s > before_s else 0.0
        words = [f"{self._sum('in_flight')} in flight", f"{format_count(round(rate))} tokens/s"]
        for name in ("ttft", "tpot"):
            count = self._sum(f"{name}_count")
            if count:
                words.append(f"{name.upper()} {format_ms(self._sum(f'{name}_sum_ns') / count / NS_PER_S)} ms")
        return words

    def health(self) -> list[str]:
        """What has ended and how, and how late loadgen itself is."""
        failed = self._sum("failed")
        words = [f"{self._sum('completed'):,} done", f"{failed:,} FAILED" if failed else "none failed"]
        if self._probes:
            words.append(f"own stamps {format_ms(self._lateness_ns / self._probes / NS_PER_S)} ms late")
        return words


def _span(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def screen(levels: Sequence[LevelProgress], now_s: float, columns: int, rows: int, ascii_only: bool) -> list[str]:
    """The lines to draw, none longer than ``columns`` and no more than ``rows``; of several engines one each."""
    if not levels:
        return []
    if len(levels) == 1:
        lines = _whole(levels[0], now_s, columns, ascii_only)
    else:
        lines = [f"{levels[0].number}: {levels[0].load}, {len(levels)} engines at once"]
        lines += [f"  {level.name[:16]:<16} {_short(level, now_s)}" for level in levels]
        if len(lines) > rows:
            lines = [*lines[: max(rows - 1, 1)], f"  and {len(lines) - max(rows - 1, 1)} more"]
    return [_cut(line, columns) for line in lines[:rows]]


def _cut(line: str, columns: int) -> str:
    """As much of a line as there is room for; a figure is left out as a whole, since half of it would be another."""
    if len(line) <= columns:
        return line
    return line[: max(line.rfind(", ", 0, columns + 1), 0)] or line[:columns]


def _short(level: LevelProgress, now_s: float) -> str:
    failed = [word for word in level.health() if "FAILED" in word]
    share = level.progress(now_s).partition(",")[0]
    return ", ".join([share, *failed, *level.speed()])


def _whole(level: LevelProgress, now_s: float, columns: int, ascii_only: bool) -> list[str]:
    from tqdm import tqdm

    left = level.left(now_s)
    bar = tqdm.format_meter(
        level.done(now_s),
        level.total,
        0,
        ncols=columns,
        ascii=ascii_only,
        bar_format="  {percentage:3.0f}% |{bar}|" + (f" {left}" if left else ""),
    )
    return [
        f"{level.number}: {level.load}, {level.phase(now_s)}",
        bar,
        f"  {', '.join(level.speed())}",
        f"  {', '.join(level.health())}",
    ]


class Progress:
    """Listens to a sweep and writes to ``stream``.

    A stream that takes no more, such as a full disk, is written to no more: the sweep goes on.

    Args:
        stream: standard error, as a rule.
        together: several engines are under load at once.
        now_s: the clock.
    """

    def __init__(self, stream: TextIO, together: bool = False, now_s: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._together = together
        self._now_s = now_s
        self._live = stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb")
        self._ascii = "utf" not in (stream.encoding or "").lower()
        self._lock = threading.Lock()  # runners sample in threads of their own
        self._planned: dict[Path, int] = {}
        self._levels: dict[Path, LevelProgress] = {}
        self._drawn: list[str] = []
        self._drawn_s = -DRAW_EVERY_S
        self._said_s = now_s()
        self._gone = False

    def said(self, text: str) -> None:
        """Something that a person should know now, such as how an engine's start gets on."""
        with self._lock:
            self._say(printable(text))

    def started(self, manifest: Manifest, run: Path) -> None:
        engine = manifest.engine
        simulated = ", SIMULATED" if manifest.simulated else ""
        self._planned[run] = len(manifest.levels)
        self.said(f"Measuring {one_line(str(engine.model))} ({engine.kind}{simulated}) at {engine.url}")
        self.said(f"Run folder: {run}")

    def level_started(self, spec: LevelSpec, run: Path) -> None:
        with self._lock:
            now_s = self._now_s()
            level = LevelProgress(spec, self._planned.get(run, 0), run.name, now_s)
            if not self._levels:
                self._said_s = now_s
                if not self._live:
                    self._say(f"{level.load}: started ({level.number})")
            self._levels[run] = level
            self._draw(now_s)

    def sampled(self, sample: ClientSample, run: Path) -> None:
        with self._lock:
            level = self._levels.get(run)
            if level is None:
                return
            now_s = self._now_s()
            level.add(sample, now_s, RATE_OVER_S if self._live else PLAIN_EVERY_S)
            if self._live:
                if now_s - self._drawn_s >= DRAW_EVERY_S:
                    self._draw(now_s)
            elif now_s - self._said_s >= PLAIN_EVERY_S:
                self._said_s = now_s
                self._say(self._plain(now_s))

    def level_ended(self, summary: LevelSummary, run: Path) -> None:
        tokens = summary.output_throughput_tps
        where = f"{one_line(run.name)}, " if self._together else ""
        with self._lock:
            self._levels.pop(run, None)
            self._say(
                f"{where}{summary.load.text}: {summary.requests.completed:,} measured, "
                f"{'n/a' if tokens is None else format_count(tokens)} tokens/s, "
                f"TTFT {latency_ms(summary, 'ttft_s', 'mean')} ms, TPOT {latency_ms(summary, 'tpot_s', 'mean')} ms, "
                f"{summary.verdict.status}"
            )

    def _plain(self, now_s: float) -> str:
        """How far it is, on one line."""
        levels = list(self._levels.values())
        if len(levels) == 1:
            level = levels[0]
            words = [level.phase(now_s), level.progress(now_s), *level.speed(), *level.health()]
            return f"{level.load}: {', '.join(words)}"
        each = "; ".join(f"{level.name} {_short(level, now_s)}" for level in levels)
        return f"{levels[0].load}: {each}"

    def _say(self, text: str) -> None:
        """A line that stays, above what is drawn."""
        self._write(f"{self._up()}{text}\n")
        self._drawn = []
        self._draw(self._now_s())

    def _draw(self, now_s: float) -> None:
        if not self._live or not (self._levels or self._drawn):
            return
        columns, rows = self._size()
        lines = screen(list(self._levels.values()), now_s, min(columns, MOST_COLUMNS) - 1, rows - 1, self._ascii)
        self._write(self._up() + "".join(f"{line}\n" for line in lines))
        self._drawn, self._drawn_s = lines, now_s

    def _up(self) -> str:
        """To the first row of what is drawn, which is erased; a terminal that has become narrower wraps its lines.

        All of it is erased before it is written over: tmux keeps in mind that a row was wrapped until then.
        """
        columns, _ = self._size()
        rows = sum(max(1, -(-len(line) // columns)) for line in self._drawn)
        return "\r" + "\x1b[A" * rows + "\x1b[J" if rows else ""

    def _size(self) -> tuple[int, int]:
        """Columns and rows as they are now."""
        try:
            size = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return MOST_COLUMNS, MOST_ROWS
        return size.columns or MOST_COLUMNS, size.lines or MOST_ROWS

    def _write(self, text: str) -> None:
        if self._gone:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._gone = True
