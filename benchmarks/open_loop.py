"""How well an open loop keeps its schedule, and whether its response clock tells the truth.

    python benchmarks/open_loop.py [--rounds 3] [--quick] [--output FILE.json]

Two parts, against a server of known timing (known_server.c) on one core, loadgen on the other:

* Schedule: Poisson arrivals at rising rates; how late each request was sent after it was due.
* Queue: a server that answers after exactly D, and at most c requests in flight, is an M/D/c queue. What its
  waiting times are is known: by the recursion of Kiefer and Wolfowitz (1955) for the very arrivals that were
  drawn, and in the steady state. The clock from when a request was due has to agree with it; the one from the
  real send cannot, since the queue is on the client's side.

Writes FILE.json and FILE.md.
"""

from __future__ import annotations

import argparse
import datetime
import heapq
import json
import statistics
import sys
import tempfile
from itertools import islice
from pathlib import Path

from client import HERE, build_server, heading, known_server, machine, timed

sys.path.insert(0, str(HERE.parent))

from loadgen.client.pacing import Arrivals, schedule

RATES = (100, 500, 1000, 2000)
SERVICE_S = 0.040
QUEUES = ((1, 0.7, 1000), (4, 0.8, 3000), (16, 0.9, 3000))  # servers, load on each, requests
STEADY_ARRIVALS = 2_000_000


def sweep(port: int, rate: float, *words: str) -> dict:
    with tempfile.TemporaryDirectory(prefix="loadgen-bench-") as folder:
        argv = [sys.executable, "-m", "loadgen", "sweep", "--url", f"http://127.0.0.1:{port}", "--rate", str(rate)]
        argv += ["--workers", "1", "--input-tokens", "16", "--json", "--output", f"{folder}/run", *words]
        run = timed(argv, env={"PYTHONPATH": str(HERE.parent), "PATH": "/usr/bin:/bin"})
        try:
            return json.loads(run["out"])["levels"][0]
        except (json.JSONDecodeError, IndexError):
            raise SystemExit(f"loadgen failed: {run['err'][-2000:]}") from None


def measure_schedule(binary: Path, duration: str) -> list[dict]:
    rows = []
    for rate in RATES:
        with known_server(binary, 0.020, 0.005) as port:
            level = sweep(port, rate, "--duration", duration, "--output-tokens", "8")
        kept = level["open_loop"]
        rows.append(
            {
                "rate_rps": rate,
                "requests": level["requests"]["completed"],
                "failed": level["requests"]["failed"],
                "lateness_mean_s": kept["send_lateness_s"]["mean"],
                "lateness_p99_s": kept["send_lateness_s"]["p99"],
                "lateness_max_s": kept["send_lateness_s"]["max"],
                "late_share": kept["late"] / max(level["requests"]["issued"], 1),
                "achieved_share": kept["achieved_rate_rps"] / kept["intended_rate_rps"],
                "utilization": level["client"]["utilization"],
                "verdict": level["verdict"]["status"],
            }
        )
    return rows


def mean_response_s(times_s: list[float], servers: int, first: int) -> float:
    """Kiefer and Wolfowitz: mean time in the system from arrival ``first`` on, service of ``SERVICE_S``."""
    free = [0.0] * servers
    total = 0.0
    for number, at in enumerate(times_s):
        start = max(at, heapq.heappop(free))
        heapq.heappush(free, start + SERVICE_S)
        if number >= first:
            total += start + SERVICE_S - at
    return total / (len(times_s) - first)


def measure_queue(binary: Path, share: float) -> list[dict]:
    rows = []
    for servers, load, most in QUEUES:
        requests = round(most * share)
        rate = servers * load / SERVICE_S
        with known_server(binary, SERVICE_S, 0.001) as port:
            level = sweep(
                port, rate, "--requests", str(requests), "--output-tokens", "1", "--max-in-flight", str(servers)
            )
        # The schedule of seed 0 and level 0, with its warm-up.
        arrivals = Arrivals(kind="poisson", rate_rps=rate, seed=0)
        warmup_s = min(max(0.2 * requests / rate, 2.0), 30.0)
        times = [t / 1e9 for t in islice(schedule(arrivals), int(requests + 3 * rate * warmup_s + 1000))]
        first = sum(t < warmup_s for t in times)
        theory = mean_response_s(times[: first + requests], servers, first)
        steady = [t / 1e9 for t in islice(schedule(Arrivals(kind="poisson", rate_rps=rate, seed=99)), STEADY_ARRIVALS)]
        rows.append(
            {
                "servers": servers,
                "load": load,
                "rate_rps": rate,
                "requests": level["requests"]["completed"],
                "theory_s": theory,
                "steady_s": mean_response_s(steady, servers, 10_000),
                "response_s": level["e2e_s"]["mean"],
                "service_s": level["open_loop"]["service"]["e2e_s"]["mean"],
                "verdict": level["verdict"]["status"],
            }
        )
    return rows


def median_rows(rounds: list[list[dict]], key: str) -> list[dict]:
    """The median of each number over the rounds."""
    found = []
    for same in zip(*rounds, strict=True):
        row = {}
        for name, value in same[0].items():
            values = [one[name] for one in same if one[name] is not None]  # A p99 of few requests is withheld.
            row[name] = value if isinstance(value, str) else statistics.median(values) if values else None
        found.append(row)
    return found


def markdown(result: dict) -> str:
    lines = [
        "# Open loop",
        "",
        heading(result),
        "",
        "How late requests were sent (Poisson arrivals, 8 tokens each, one core for loadgen, one for the server):",
        "",
        "| due, requests/s | sent, of those due | late, mean ms | p99 ms | max ms | later than 1 ms | of a core |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result["schedule"]:
        p99_s = row["lateness_p99_s"]
        p99 = "too few" if p99_s is None else f"{p99_s * 1e3:.3f}"
        lines.append(
            f"| {row['rate_rps']:,} | {row['achieved_share']:.2%} | {row['lateness_mean_s'] * 1e3:.3f} | "
            f"{p99} | {row['lateness_max_s'] * 1e3:.2f} | {row['late_share']:.2%} | "
            f"{row['utilization']:.0%} |"
        )
    lines += [
        "",
        f"Mean time in an M/D/c queue with a service of {SERVICE_S * 1e3:g} ms, the queue being on loadgen's side "
        "(`--max-in-flight c`):",
        "",
        "| c | load | requests | theory for these arrivals, ms | steady state, ms | response clock, ms | off | "
        "service clock, ms | off |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in result["queue"]:
        theory = row["theory_s"]
        lines.append(
            f"| {row['servers']} | {row['load']:.0%} | {row['requests']:,.0f} | {theory * 1e3:.2f} | "
            f"{row['steady_s'] * 1e3:.2f} | {row['response_s'] * 1e3:.2f} | {row['response_s'] / theory - 1:+.1%} | "
            f"{row['service_s'] * 1e3:.2f} | {row['service_s'] / theory - 1:+.1%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "open-loop.json")
    args = parser.parse_args()
    rounds = 1 if args.quick else args.rounds
    with tempfile.TemporaryDirectory() as folder:
        binary = build_server(Path(folder))
        duration, share = ("3s", 0.2) if args.quick else ("10s", 1.0)
        schedules, queues = [], []
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", flush=True)
            schedules.append(measure_schedule(binary, duration))
            queues.append(measure_queue(binary, share))
    result = {
        "command": ["python", "benchmarks/open_loop.py", *sys.argv[1:]],
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "rounds": rounds,
        "schedule": median_rows(schedules, "rate_rps"),
        "queue": median_rows(queues, "servers"),
        "all": {"schedule": schedules, "queue": queues},
    }
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    args.output.with_suffix(".md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main()
