"""This machine's own measuring error: loadgen against the embedded engine's known timing.

The engine stamps each request's arrival and its token writes with the same monotonic clock, so
the error is what loadgen adds to the engine's own interval: the way of the bytes through both
kernels, and the delay until loadgen has stamped them. What the engine itself was late by does not
count as loadgen's error; it is shown beside it.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from loadgen import __version__, environment
from loadgen.analysis.measure import summarize_level
from loadgen.client.endpoint import Endpoint
from loadgen.client.runner import LevelSpec, Runner, default_workers, split_cores
from loadgen.client.wire import Timeouts
from loadgen.engines.launch import launch_sim
from loadgen.engines.server import get_json
from loadgen.engines.sim_config import SimConfig
from loadgen.environment import Host
from loadgen.errors import LoadgenError
from loadgen.processes import Interrupts
from loadgen.records import CalibrationEntry, ClientSample, RequestRecord, RunTail
from loadgen.report.table import laid
from loadgen.units import NS_PER_S, format_count, format_ms
from loadgen.workloads.prompts import SourceSpec, TokenRange

TTFT_S = 0.050
TPOT_S = 0.010
INPUT_TOKENS = 256
OUTPUT_TOKENS = 128
MAX_ERROR_S = 0.001
MAX_ERROR_SHARE = 0.05


class CalibrationRow(msgspec.Struct, kw_only=True):
    """One load. Errors are what loadgen added to the engine's own stamps; seconds."""

    concurrency: int
    requests: int
    output_throughput_tps: float
    ttft_error_mean_s: float
    ttft_error_p99_s: float
    tpot_error_share: float
    utilization: float
    lateness_mean_s: float | None
    engine_lateness_mean_s: float


class Calibration(msgspec.Struct, kw_only=True):
    """What one machine can measure. Rates are None when no load stayed within the bound."""

    host: Host
    loadgen_version: str
    workers: int
    rows: list[CalibrationRow]
    tokens_per_s_within_1ms: float | None
    tokens_per_s_within_5_percent: float | None


def errors_of(records: list[RequestRecord], stamps: dict[int, tuple[int, int, int]]) -> tuple[list[float], list[float]]:
    """TTFT errors in seconds and TPOT errors as a share, one for each record with stamps.

    Args:
        records: successful, streamed requests.
        stamps: by ``seq``: arrival, first token write, last token write, in ns.
    """
    ttft, tpot = [], []
    for record in records:
        stamp = stamps.get(record.seq)
        first, last, sent = record.first_token_ns, record.last_token_ns, record.sent_ns
        if stamp is None or first is None or last is None or sent is None:
            continue
        arrival, first_write, last_write = stamp
        ttft.append(((first - sent) - (first_write - arrival)) / NS_PER_S)
        if last_write > first_write:
            tpot.append((last - first) / (last_write - first_write) - 1)
    return ttft, tpot


def highest_rate(rows: list[CalibrationRow], within: Callable[[CalibrationRow], bool]) -> float | None:
    """The token rate of the highest load up to which every load stays within a bound."""
    best = None
    for row in sorted(rows, key=lambda r: r.concurrency):
        if not within(row):
            break
        best = max(best or 0.0, row.output_throughput_tps)
    return best


def _measure(spec: LevelSpec, runner: Runner, tail: RunTail, engine_url: str) -> CalibrationRow:
    """Runs one load and compares its records with the engine's own stamps.

    Raises:
        LoadgenError: it was interrupted, or gave no measurement.
    """
    import numpy as np

    samples: list[ClientSample] = []
    asyncio.run(get_json(f"{engine_url}/sim/lateness"))  # starts it anew
    mark = runner.run_level(spec, first_index=0, on_sample=samples.append)
    if mark.interrupted:
        raise LoadgenError(f"calibration stopped: {mark.interrupted}")
    records = list(tail.records(runner.take_unwritten()))
    late = asyncio.run(get_json(f"{engine_url}/sim/lateness"))
    log = asyncio.run(get_json(f"{engine_url}/sim/requests"))
    stamps = {int(row[0].rpartition("-")[2]): (row[1], row[2], row[3]) for row in log}
    good = [r for r in records if r.phase == "measure" and r.error is None]
    ttft, tpot = errors_of(good, stamps)
    load = f"{spec.concurrency} in flight"
    if not ttft or not tpot:
        raise LoadgenError(f"{load}: nothing ended within {spec.duration_s:g} s; use a longer --duration")
    level = summarize_level(spec.load, records, samples, mark)
    if not level.output_throughput_tps:
        raise LoadgenError(f"{load}: no token came within {spec.duration_s:g} s; use a longer --duration")
    return CalibrationRow(
        concurrency=spec.concurrency,
        requests=len(ttft),
        output_throughput_tps=level.output_throughput_tps,
        ttft_error_mean_s=float(np.mean(ttft)),
        ttft_error_p99_s=float(np.quantile(ttft, 0.99)),
        tpot_error_share=float(np.mean(tpot)),
        utilization=level.client.utilization,
        lateness_mean_s=level.client.lateness_s.mean,
        engine_lateness_mean_s=float(late.get("mean_s", 0.0)),
    )


def calibrate(levels: list[int], duration_s: float, workers: int | None, say: Callable[[str], None]) -> Calibration:
    """Runs every load and keeps the result for later runs on this machine.

    Raises:
        LoadgenError: a load gave no measurement.
    """
    config = SimConfig(mode="fixed", ttft_s=TTFT_S, tpot_s=TPOT_S)
    tokens = TokenRange(OUTPUT_TOKENS, OUTPUT_TOKENS)
    source = SourceSpec(seed=0, input_tokens=TokenRange(INPUT_TOKENS, INPUT_TOKENS), output_tokens=tokens)
    count = workers or default_workers(max(levels))
    rows = []
    engine_cores, worker_cores = split_cores(count)
    with (
        tempfile.TemporaryDirectory(prefix="loadgen-calibrate-") as folder,
        launch_sim(config, cores=engine_cores) as engine,
    ):
        run = Path(folder)
        (run / "records.jsonl").touch()
        endpoint = Endpoint(url=engine.url, model=config.served_name, dialect="sim")
        tail = RunTail(run)
        with Interrupts().watching() as interrupts:
            runner = Runner(
                endpoint=endpoint,
                timeouts=Timeouts(),
                source=source,
                workers=count,
                run=run,
                interrupts=interrupts,
                cores=worker_cores,
            )
            try:
                runner.wait_ready()
                for index, concurrency in enumerate(levels):
                    say(f"{concurrency} in flight ...")
                    spec = LevelSpec(index=index, concurrency=concurrency, duration_s=duration_s)
                    rows.append(_measure(spec, runner, tail, engine.url))
            finally:
                runner.close()
    result = Calibration(
        host=environment.host(),
        loadgen_version=__version__,
        workers=count,
        rows=rows,
        tokens_per_s_within_1ms=highest_rate(rows, lambda r: abs(r.ttft_error_mean_s) <= MAX_ERROR_S),
        tokens_per_s_within_5_percent=highest_rate(
            rows,
            lambda r: (
                abs(r.ttft_error_mean_s) <= MAX_ERROR_SHARE * TTFT_S and abs(r.tpot_error_share) <= MAX_ERROR_SHARE
            ),
        ),
    )
    _keep(result)
    return result


def _cache_path() -> Path:
    return environment.cache_folder() / "calibration.json"


def _keep(result: Calibration) -> None:
    path = _cache_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(result))
    except OSError:
        pass  # only later runs would have used it


def kept_calibration() -> CalibrationEntry | None:
    """What the last calibration on this machine found, for the manifest; None without one."""
    try:
        result = msgspec.json.decode(_cache_path().read_bytes(), type=Calibration)
    except (OSError, msgspec.MsgspecError):
        return None
    here = environment.host()
    if any(getattr(result.host, key) != getattr(here, key) for key in ("name", "processor", "cores")):
        return None
    return CalibrationEntry(
        workers=result.workers,
        tokens_per_s_within_1ms=result.tokens_per_s_within_1ms,
        tokens_per_s_within_5_percent=result.tokens_per_s_within_5_percent,
    )


def render(result: Calibration) -> str:
    """The table and the two rates, for a terminal."""
    lines = [
        f"True timing: TTFT {format_ms(TTFT_S)} ms, TPOT {format_ms(TPOT_S)} ms; {INPUT_TOKENS} tokens in, "
        f"{OUTPUT_TOKENS} out; {result.workers} worker(s).",
        "",
        "    in  TTFT error, ms    TPOT   output     one      own  engine",
        "flight    mean     p99   error tokens/s  worker     late    late",
        "                             %              CPU       ms      ms",
        "-" * 65,
    ]
    rows = [
        [
            f"{row.concurrency}",
            f"{row.ttft_error_mean_s * 1e3:.3f}",
            f"{row.ttft_error_p99_s * 1e3:.3f}",
            f"{row.tpot_error_share * 100:.3f}",
            format_count(row.output_throughput_tps),
            f"{row.utilization:.0%}",
            "n/a" if row.lateness_mean_s is None else f"{row.lateness_mean_s * 1e3:.3f}",
            f"{row.engine_lateness_mean_s * 1e3:.3f}",
        ]
        for row in result.rows
    ]
    lines += [*laid("{:>6} {:>7} {:>7} {:>7} {:>8} {:>7} {:>8} {:>7}", rows), ""]
    for bound, rate in (
        ("1 ms of TTFT", result.tokens_per_s_within_1ms),
        ("5 % of TTFT and TPOT", result.tokens_per_s_within_5_percent),
    ):
        lines.append(
            f"Within {bound}: no load that was tried."
            if rate is None
            else f"Within {bound}: at least {format_count(rate)} tokens/s."
        )
    return "\n".join(lines)
