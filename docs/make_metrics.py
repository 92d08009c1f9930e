"""Makes docs/metrics.md from the table of definitions in the code: ``make docs``."""

from __future__ import annotations

from pathlib import Path

from loadgen.metrics import METRICS
from loadgen.stats import QUANTILES, quantile_floor
from loadgen.verdicts import VERDICTS

TARGET = Path(__file__).parent / "metrics.md"


def text() -> str:
    """The page."""
    lines = [
        "# Metrics",
        "",
        "Made by `make docs` from `loadgen/metrics.py`, `stats.py` and `verdicts.py`; change it there.",
        "",
        "One clock, CLOCK_MONOTONIC; every stamp of an arrival is taken at the socket read, before anything is parsed.",
        "",
        "| key in summary.json | name | unit | definition | why so | source |",
        "|---|---|---|---|---|---|",
    ]
    for metric in METRICS:
        cells = (f"`{metric.key}`", metric.name, metric.unit, metric.definition, metric.why, metric.source)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    floors = ", ".join(f"{name} {quantile_floor(q)}" for name, q in QUANTILES.items())
    lines += [
        "",
        "## Success and failure",
        "",
        "A request has succeeded when the status is 200, a finish_reason came, no event held an `error`, and `[DONE]` "
        "was seen. Any other is a failure of one of these kinds: `connect`, `timeout`, `http_status`, `stream_error`, "
        "`stream_truncated`, `bad_payload`, `cancelled`. Failures are kept and counted; none enters a latency.",
        "",
        "## Quantiles",
        "",
        f"A quantile is shown from so many samples on: {floors}. Below that the summary holds null and the table "
        "`n/a`. The floor is the smallest sample in which at most one value above the estimate would be seen with a "
        "probability of at most 1 %, were the true quantile above it (MLPerf's early stopping).",
        "",
        "Intervals are at 95 %: Student's t for means, order statistics for quantiles; both take samples as "
        "independent, which requests of a closed loop are only roughly.",
        "",
        "## Verdicts",
        "",
        "A level is VALID when none of these holds:",
        "",
        "| verdict | holds when |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {rule} |" for name, rule in VERDICTS.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text())
