"""What a person sees while a sweep runs: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from loadgen.records import ClientSample, Manifest
from loadgen.report.terminal import in_words, latency_ms
from loadgen.runner import LevelSpec
from loadgen.summary import LevelSummary
from loadgen.units import NS_PER_S, format_count, format_ms

if TYPE_CHECKING:
    from tqdm import tqdm

PLAIN_EVERY_S = 10.0


class Progress:
    """Listens to a sweep and writes to ``stream``.

    Args:
        stream: standard error, as a rule.
        together: several engines are under load at once; only the ends of their levels are told.
    """

    def __init__(self, stream: TextIO, together: bool = False) -> None:
        self._stream = stream
        self._together = together
        self._terminal = stream.isatty() and not together
        self._rate_over_s = 0.5 if self._terminal else PLAIN_EVERY_S - 0.2
        self._bar: tqdm[None] | None = None
        self._spec: LevelSpec | None = None
        self._last: dict[int, ClientSample] = {}
        self._measure_from_s: float | None = None
        self._tokens_before = 0
        self._tokens_before_s = 0.0
        self._rate = 0.0
        self._said_s = 0.0

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=self._stream)  # above the bar
        else:
            print(text, file=self._stream, flush=True)

    def said(self, text: str) -> None:
        """Something that a person should know now, such as how an engine's start gets on."""
        self._say(text)

    def started(self, manifest: Manifest, run: Path) -> None:
        engine = manifest.engine
        simulated = ", SIMULATED" if manifest.simulated else ""
        self._say(f"Measuring {engine['model']} ({engine['kind']}{simulated}) at {engine['url']}")
        self._say(f"Run folder: {run}")

    def level_started(self, spec: LevelSpec) -> None:
        self._spec = spec
        self._last = {}
        self._measure_from_s = None
        self._tokens_before, self._tokens_before_s, self._rate = 0, time.monotonic(), 0.0
        self._said_s = time.monotonic()
        if not self._terminal:
            if not self._together:
                self._say(f"{in_words(spec.load)}: started")
            return
        from tqdm import tqdm

        self._bar = tqdm(
            total=spec.requests if spec.requests is not None else round(spec.most_s or 0, 1),
            desc=f"{in_words(spec.load):>15}",
            file=self._stream,
            bar_format="{desc} |{bar:8}|{percentage:3.0f}%{postfix}",
            leave=False,
            dynamic_ncols=True,
        )

    def sampled(self, sample: ClientSample) -> None:
        if self._together:
            return
        assert self._spec is not None
        self._last[sample.worker] = sample
        now = time.monotonic()
        if sample.phase == "measure" and self._measure_from_s is None:
            self._measure_from_s = now
        if now - self._tokens_before_s >= self._rate_over_s:
            tokens = sum(s.output_tokens for s in self._last.values())
            # A request whose record is not made yet is missing from the count for a moment.
            self._rate = max(0, tokens - self._tokens_before) / (now - self._tokens_before_s)
            self._tokens_before, self._tokens_before_s = tokens, now
        if self._bar is not None:
            self._draw(now)
        elif now - self._said_s >= PLAIN_EVERY_S:
            self._said_s = now
            self._say(f"{in_words(self._spec.load)}: {self._state()}")

    def _draw(self, now: float) -> None:
        assert self._bar is not None and self._spec is not None
        done = 0.0
        if self._measure_from_s is not None:
            if self._spec.requests is not None:
                ended = sum(s.completed + s.failed for s in self._last.values())
                first = self._spec.concurrency if self._spec.warmup and self._spec.arrivals is None else 0
                done = max(0, ended - first)
            else:
                done = now - self._measure_from_s
        total = float(self._bar.total)
        self._bar.n = round(min(done, total), 1)
        phase = "warm-up, " if self._measure_from_s is None else ("ending, " if done >= total else "")
        self._bar.set_postfix_str(phase + self._state())

    def _state(self) -> str:
        samples = self._last.values()
        completed = sum(s.completed for s in samples)
        failed = sum(s.failed for s in samples)
        ttft_count = sum(s.ttft_count for s in samples)
        parts = [
            f"{completed} done",
            f"{sum(s.in_flight for s in samples)} open",
            f"{format_count(round(self._rate))} tok/s",
        ]
        if ttft_count:
            parts.append(f"TTFT {format_ms(sum(s.ttft_sum_ns for s in samples) / ttft_count / NS_PER_S)} ms")
        if failed:
            parts.insert(1, f"{failed} FAILED")
        return ", ".join(parts)

    def level_ended(self, summary: LevelSummary) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        tokens = summary.output_throughput_tps
        self._say(
            f"{in_words(summary.load):>15}: {summary.requests.completed} measured, "
            f"{'n/a' if tokens is None else format_count(tokens)} tokens/s, "
            f"TTFT {latency_ms(summary, 'ttft_s', 'mean')} ms, {summary.verdict.status}"
        )
