"""Whether this version of loadgen measures as truly and as cheaply as an earlier one, on this machine.

    git worktree add ../earlier COMMIT
    (cd ../earlier && python -m venv .venv && .venv/bin/pip install .)
    python benchmarks/versions.py ../earlier [--rounds 6] [--output FILE.json]

Both send the same load to the server of known timing, one right after the other and in turn the first, so that
noise of the machine falls on both alike. A ratio is of one pair; the median over the rounds is shown, with the
range that holds the middle half of the rounds. Writes FILE.json and FILE.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from client import (
    CORES,
    HERE,
    SERVER_CORE,
    THIS,
    TPOT_S,
    TTFT_S,
    Version,
    build_server,
    known_server,
    machine,
    quick_facts,
    run_loadgen,
)

PACED = (8, 64, 256, 1024)  # in flight
UNPACED = 64
STARTS = 3  # of each version, in each round


def commit(version: Version) -> str:
    """The commit that a checkout is at, short."""
    words = ["git", "-C", str(version.root), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def one_round(binary: Path, versions: dict[str, Version]) -> dict[str, dict[str, dict]]:
    """The figures of each load and version, by title of the load; versions take turns in their order."""
    points = [(f"paced, {load} in flight", TTFT_S, TPOT_S, (load, 4 * load, 256, 128)) for load in PACED] + [
        (f"unpaced, {UNPACED} in flight", 0.0, 0.0, (UNPACED, 1024, 256, 1024))
    ]
    found: dict[str, dict[str, dict]] = {}
    for title, ttft_s, gap_s, load in points:
        for name, version in versions.items():
            with known_server(binary, ttft_s, gap_s) as port:
                got = run_loadgen(port, *load, version=version)
            found.setdefault(title, {})[name] = {
                "ttft_error_s": got["ttft_mean_s"] - ttft_s,
                "tpot_error_s": got["tpot_mean_s"] - gap_s,
                "tokens_per_s": got["tokens_per_s"],
                "cpu_s_per_token": got["cpu_s"] / got["tokens"],
                "rss_bytes": got["rss_bytes"],
            }
            print(title, name, found[title][name], file=sys.stderr, flush=True)
    for name, version in versions.items():
        with known_server(binary) as port:
            found.setdefault("start", {})[name] = quick_facts(port, STARTS, version)
    return found


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "p25": low, "p75": high}


def compared(rounds: list[dict[str, dict[str, dict]]]) -> list[dict]:
    """A row for each load and figure: both medians, and the ratio later/earlier of each round's pair."""
    rows = []
    for title, both in rounds[0].items():
        for figure in both["earlier"]:
            pairs = [(one[title]["earlier"][figure], one[title]["later"][figure]) for one in rounds]
            rows.append(
                {
                    "load": title,
                    "figure": figure,
                    "earlier": statistics.median(earlier for earlier, _ in pairs),
                    "later": statistics.median(later for _, later in pairs),
                    "ratio": quartiles([later / earlier for earlier, later in pairs]),
                }
            )
    return rows


SHOWN = {  # title, unit in a value's own unit, decimals
    "ttft_error_s": ("TTFT error, mean, ms", 1e-3, 3),
    "tpot_error_s": ("TPOT error, mean, us", 1e-6, 2),
    "tokens_per_s": ("tokens/s", 1, 0),
    "cpu_s_per_token": ("CPU per token, us", 1e-6, 2),
    "rss_bytes": ("memory, MB", 1e6, 0),
    "help_s": ("`--help`, s", 1, 3),
    "one_request_s": ("a sweep of one request, s", 1, 3),
}


def render(results: dict) -> str:
    where = results["machine"]
    lines = [
        f"Command: `{' '.join(results['command'])}`, {results['date']}. Machine: {where['processor']}, "
        f"{where['cores']} cores, Linux {where['kernel']}. Earlier: {results['earlier']}; later: {results['later']}. "
        f"{results['rounds']} rounds, the versions in turn; medians, and of the ratio also the middle half.",
        "",
        f"Paced: true TTFT {TTFT_S * 1e3:g} ms, true TPOT {TPOT_S * 1e3:g} ms, 256 tokens in, 128 out, 4 requests per "
        "slot. Unpaced: the server writes as fast as it can, so that TTFT and TPOT are the machine's own; 1,024 tokens "
        "out.",
        "",
        "| load | figure | earlier | later | later/earlier | middle half |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in results["rows"]:
        title, unit, decimals = SHOWN[row["figure"]]
        ratio = row["ratio"]
        earlier, later = (f"{row[name] / unit:,.{decimals}f}" for name in ("earlier", "later"))
        middle_half = f"{ratio['p25']:.3f} to {ratio['p75']:.3f}"
        lines.append(f"| {row['load']} | {title} | {earlier} | {later} | {ratio['median']:.3f} | {middle_half} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("earlier", type=Path, help="a checkout of the earlier version, with its .venv")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "versions.json")
    options = parser.parse_args()
    if len(CORES) < 2:
        raise SystemExit("this needs two cores: one for the server, one for the client")
    if options.rounds < 2:
        raise SystemExit("--rounds: a comparison needs two or more")
    earlier = Version(options.earlier.resolve(), str(options.earlier.resolve() / ".venv" / "bin" / "python"))
    if not Path(earlier.python).exists():
        raise SystemExit(f"{options.earlier} has no .venv; in it, run: python -m venv .venv && .venv/bin/pip install .")
    os.sched_setaffinity(0, {SERVER_CORE})
    versions = {"earlier": earlier, "later": THIS}
    rounds = []
    with tempfile.TemporaryDirectory(prefix="loadgen-bench-") as folder:
        binary = build_server(Path(folder))
        for number in range(options.rounds):
            order = list(versions) if number % 2 == 0 else list(versions)[::-1]
            rounds.append(one_round(binary, {name: versions[name] for name in order}))
    results = {
        "command": ["python", "benchmarks/versions.py", "EARLIER", "--rounds", str(options.rounds)],
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "earlier": commit(earlier),
        "later": commit(THIS),
        "rounds": options.rounds,
        "rows": compared(rounds),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    text = render(results)
    options.output.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
