"""What a report costs: time, memory and size of the page, of runs of many requests, and how soon a browser shows it.

Writes run folders of made-up requests with 128 tokens each, then times `loadgen report` on them, each in a
process of its own, and opens the pages in Chromium where Playwright is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from loadgen import environment
from loadgen.records import ClientSample, LevelMark, RequestRecord, encode_line

ROOT = Path(__file__).resolve().parents[1]
LIKE = ROOT / "reports" / "vllm-0.25.1-h200-qwen1.5-4b-levels" / "manifest.json"
TOKENS = 128
ARGUMENTS = ["--no-sandbox", "--disable-quic", "--disable-background-networking"]
# Requests and levels, and what the page may weigh.
RUNS = [(10_000, 3, 1_500_000), (10_000, 10, 4_000_000), (100_000, 10, None)]


def make_run(folder: Path, requests: int, levels: int) -> None:
    """A run folder of a closed loop at 1, 2, 4, ... in flight, with drawn TTFT and gaps."""
    folder.mkdir(parents=True)
    manifest = json.loads(LIKE.read_bytes())
    loads = [min(4**i if levels <= 5 else 2**i, requests // levels // 4) for i in range(levels)]
    manifest["levels"] = [{"model": "closed", "concurrency": load} for load in loads]
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))
    rng = np.random.default_rng(0)
    clock = 10**12
    with (folder / "records.jsonl").open("wb") as records, (folder / "client.jsonl").open("wb") as client:
        for level, load in enumerate(loads):
            made = [_record(rng, level, seq, load) for seq in range(requests // levels)]
            free = np.full(load, clock)
            for record in made:
                slot = int(free.argmin())
                sent = int(free[slot])
                record.sent_ns = sent
                record.first_token_ns = sent + record.event_ns[0]
                record.last_token_ns = sent + sum(record.event_ns)
                record.end_ns = record.last_token_ns + 100_000
                record.slot_gap_ns = 50_000
                free[slot] = record.end_ns + 50_000
            start, end = max(one.end_ns for one in made[:load]), min(one.end_ns for one in made[-load:])
            for record in made[:load]:
                record.phase = "warmup"
            records.writelines(encode_line(one) for one in sorted(made, key=lambda one: one.end_ns))
            client.write(encode_line(LevelMark(level=level, window_start_ns=start, window_end_ns=end)))
            tenths = range(clock, end, max((end - clock) // 600, 1))
            client.writelines(encode_line(_sample(t, level, load)) for t in tenths)
            clock = int(free.max()) + 10**9


def _record(rng: np.random.Generator, level: int, seq: int, load: int) -> RequestRecord:
    ttft = int(rng.lognormal(0, 0.3) * 20e6 * (1 + load / 20))
    gaps = rng.normal(5e6 * (1 + load / 100), 3e5, TOKENS - 1).astype(int)
    return RequestRecord(
        level=level, seq=seq, prompt_id=str(seq), worker=0, phase="measure", end_ns=0, event_ns=[ttft, *gaps.tolist()],
        event_tokens=[1] * TOKENS, input_tokens=256, output_tokens=TOKENS, requested_tokens=TOKENS,
        token_source="usage_continuous", finish_reason="length",
    )  # fmt: skip


def _sample(t_ns: int, level: int, load: int) -> ClientSample:
    return ClientSample(
        t_ns=t_ns, level=level, worker=0, phase="measure", in_flight=load, issued=0, completed=0, failed=0,
        output_tokens=0, ttft_sum_ns=0, ttft_count=0, cpu_ns=t_ns // 50, max_rss_bytes=10**8, lateness_ns=[50_000] * 10,
    )  # fmt: skip


def report(folder: Path) -> tuple[float, float]:
    """Seconds and the most memory in MB that `loadgen report` takes."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "loadgen", "report", str(folder)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
    _, _, usage = os.wait4(child.pid, 0)
    child.returncode = 0
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def opened_s(page: Path, browser: Any) -> float:
    """Seconds from the navigation to the charts in view being drawn."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    started = time.perf_counter()
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-ready]", state="attached", timeout=60_000)
    tab.wait_for_selector("#chart-ttft svg", timeout=60_000)
    took = time.perf_counter() - started
    tab.close()
    return took


def measure(rounds: int, runs: list[tuple[int, int, int | None]]) -> list[dict[str, Any]]:
    """A row for each run: medians over the rounds."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / f"{requests}-{levels}" for requests, levels, _ in runs]
        for folder, (requests, levels, _) in zip(folders, runs, strict=True):
            make_run(folder, requests, levels)
        costs = [[report(folder) for folder in folders] for _ in range(rounds)]
        shown = _shown(folders, rounds)
        for place, (folder, (requests, levels, limit)) in enumerate(zip(folders, runs, strict=True)):
            rows.append(
                {
                    "requests": requests,
                    "levels": levels,
                    "report_s": statistics.median(cost[place][0] for cost in costs),
                    "memory_mb": statistics.median(cost[place][1] for cost in costs),
                    "page_bytes": (folder / "report.html").stat().st_size,
                    "page_bytes_limit": limit,
                    "opened_s": shown[place],
                }
            )
    return rows


def _shown(folders: list[Path], rounds: int) -> list[float | None]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return [None] * len(folders)
    with sync_playwright() as playwright:
        path = os.environ.get("LOADGEN_CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        opened_s(folders[0] / "report.html", browser)  # the browser's own start
        found = [[opened_s(folder / "report.html", browser) for folder in folders] for _ in range(rounds)]
        browser.close()
    return [statistics.median(one[place] for one in found) for place in range(len(folders))]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| requests | levels | report, s | memory, MB | page, MB | opened in, s |", "|--:|--:|--:|--:|--:|--:|"]
    for row in rows:
        shown = "n/a" if row["opened_s"] is None else f"{row['opened_s']:.2f}"
        lines.append(
            f"| {row['requests']:,} | {row['levels']} | {row['report_s']:.1f} | {row['memory_mb']:,.0f} "
            f"| {row['page_bytes'] / 1e6:.2f} | {shown} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of the smallest run")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "report.json")
    arguments = parser.parse_args()
    rows = measure(1 if arguments.quick else arguments.rounds, RUNS[:1] if arguments.quick else RUNS)
    host = environment.host()
    found = msgspec.json.encode({"host": host, "rows": rows})
    arguments.output.write_bytes(msgspec.json.format(found, indent=2) + b"\n")
    text = (
        "# What a report costs\n\nMade by `python benchmarks/report.py`: made-up runs of 128 tokens a request, "
        f"`loadgen report` in a process of its own, medians of {arguments.rounds} rounds; the page in Chromium, from "
        f"the navigation to the first charts. {host['processor']}, {host['cores']} cores.\n\n"
    )
    if not arguments.quick:
        arguments.output.with_suffix(".md").write_text(text + table(rows))
    print(table(rows), end="")


if __name__ == "__main__":
    main()
