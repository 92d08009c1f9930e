"""Makes docs/metrics.md from the table of definitions in the code: ``make docs``."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from loadgen.analysis.gpu_figures import GPU_GAUGES
from loadgen.analysis.metrics import METRICS
from loadgen.analysis.outcome import LATENCIES
from loadgen.analysis.server_metrics import METRICS as SERVER_METRICS
from loadgen.analysis.server_metrics import SeriesNames
from loadgen.analysis.stats import CONFIDENCE, QUANTILES, quantile_floor
from loadgen.analysis.verdicts import VERDICTS
from loadgen.engines.table import ENGINES
from loadgen.records import ErrorKind

TARGET = Path(__file__).parent / "metrics.md"


def text() -> str:
    """The page."""
    lines = [
        "# Metrics",
        "",
        "Made by `make docs` from the code in `loadgen/analysis` (`metrics.py`, `stats.py`, `intervals.py`, "
        "`verdicts.py`, `server_metrics.py`, `gpu_figures.py`) and `loadgen/records`; change it there.",
        "",
        "One clock, CLOCK_MONOTONIC; every stamp of an arrival is taken at the socket read, before anything is parsed.",
        "",
        "| key in summary.json | name | unit | definition | why so | source |",
        "|---|---|---|---|---|---|",
    ]
    for metric in METRICS:
        cells = (f"`{metric.key}`", metric.name, metric.unit, metric.definition, metric.why, metric.source)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    with_intervals = [metric.key for metric in METRICS if metric.intervals]
    alike = ", ".join(f"`{key}`" for key in with_intervals if key in LATENCIES)
    apart = ", ".join(f"`{key}`" for key in with_intervals if key not in LATENCIES)
    kinds = ", ".join(f"`{kind}`" for kind in get_args(ErrorKind))
    floors = ", ".join(f"{name} {quantile_floor(q)}" for name, q in QUANTILES.items())
    lines += [
        "",
        "## Success and failure",
        "",
        "A request has succeeded when the status is 200, a finish_reason came, no event held an `error`, and "
        f"`[DONE]` was seen. Any other is a failure of one of these kinds: {kinds}. Failures are kept and counted; "
        "none enters a latency.",
        "",
        "## Quantiles",
        "",
        f"A quantile is shown from so many samples on: {floors}. Below that the summary holds null and the table "
        "`n/a`. The floor is the smallest sample in which at most one value above the estimate would be seen with a "
        "probability of at most 1 %, were the true quantile above it (MLPerf's early stopping).",
        "",
        f"Intervals are at {CONFIDENCE:.0%}. Requests that are served together are slow together, so the intervals of "
        f"{alike} and of the throughputs allow for autocorrelation; docs/validation.md has how often they hold the "
        f"truth. Those of {apart} take the values as independent. Other distributions have none.",
        "",
        "## Verdicts",
        "",
        "A level is VALID when none of these holds:",
        "",
        "| verdict | holds when |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {rule} |" for name, rule in VERDICTS.items()]
    lines += [
        "",
        "## What the engine says: `server`",
        "",
        "Read from the engine's own metrics page before a level's first request, while it runs (once a second, or so "
        "seldom that reading costs the engine at most 0.5 % of its time), and after its last; every read is in "
        "`server_metrics.jsonl`. States are means and maxima over the reads inside the measured window; times are "
        "means over the requests that the engine finished between the first and the last of those reads (`span`). They "
        "start and end inside the engine: what its HTTP server adds is in loadgen's figures and not in these.",
        "",
        "| name | kind | series it is read from, the first that is there |",
        "|---|---|---|",
    ]
    names = SeriesNames(*(row.series for row in ENGINES.values()))
    for name, metric in SERVER_METRICS.items():
        known = dict.fromkeys(names.of.get(name, ()))
        series = ", ".join(f"`{s}`" for s in known) or "TensorRT-LLM's iterations (`/metrics` as JSON)"
        lines.append(f"| `{name}` | {metric.kind} | {series} |")
    lines += [
        "",
        "`agrees` says whether requests, prompt tokens and generated tokens grew over the level by loadgen's own "
        "totals. `prefix_cache_hit_rate` is hits over queries, in tokens (vLLM, SGLang) or blocks "
        "(TensorRT-LLM), over the level.",
        "",
        "## What the GPUs do: `gpu`",
        "",
        "Read through NVML four times a second, for an engine that loadgen launched; every reading is in `gpu.jsonl`. "
        "Mean, least and most over the measured window of "
        + ", ".join(f"`{name}`" for name in GPU_GAUGES)
        + "; `throttle` has the share of readings in which clocks were held back, by reason. `energy_j` is the "
        "difference of the card's own energy counter between the window's ends, interpolated (mean power times the "
        "window where a card has none); `energy_per_output_token_j` is that of all the engine's GPUs over the "
        "tokens generated inside the window. NVML counts what else runs on the card too.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text())
