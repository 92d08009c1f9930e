"""Made-up levels, manifests and summaries for the tests of reports."""

from __future__ import annotations

from pathlib import Path

from made import manifest_from

from loadgen.analysis.figures import LevelSummary
from loadgen.analysis.measure import summarize_level
from loadgen.analysis.summary import Summary
from loadgen.loads import Closed
from loadgen.records import ClientSample, LevelMark, Manifest, RequestError, RequestRecord

GOLDEN = Path(__file__).parent / "report" / "golden"
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
    return summarize_level(Closed(concurrency=concurrency), records, samples, mark)


def manifest(*, simulated: bool = True, model: str = "sim-qwen1.5-4b") -> Manifest:
    return manifest_from(
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
