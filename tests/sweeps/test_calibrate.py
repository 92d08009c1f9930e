"""What loadgen says about its own error."""

from __future__ import annotations

from loadgen.environment import Host
from loadgen.sweeps.calibrate import Calibration, CalibrationRow, render


def row(concurrency: int, lateness_s: float | None) -> CalibrationRow:
    return CalibrationRow(
        concurrency=concurrency,
        requests=4 * concurrency,
        output_throughput_tps=90.0 * concurrency,
        ttft_error_mean_s=0.000_12,
        ttft_error_p99_s=0.001_5,
        tpot_error_share=0.000_2,
        utilization=0.04,
        lateness_mean_s=lateness_s,
        engine_lateness_mean_s=0.000_031,
    )


def test_table_golden() -> None:
    result = Calibration(
        host=Host(name="here", processor="a processor", cores=2),
        loadgen_version="1.0",
        workers=1,
        rows=[row(1, None), row(1024, 0.000_2)],
        tokens_per_s_within_1ms=92_160.0,
        tokens_per_s_within_5_percent=None,
    )
    assert render(result).splitlines()[2:] == [
        "    in  TTFT error, ms    TPOT   output     one      own  engine",
        "flight    mean     p99   error tokens/s  worker     late    late",
        "                             %              CPU       ms      ms",
        "-----------------------------------------------------------------",
        "     1   0.120   1.500   0.020       90      4%      n/a   0.031",
        "  1024   0.120   1.500   0.020   92,160      4%    0.200   0.031",
        "",
        "Within 1 ms of TTFT: at least 92,160 tokens/s.",
        "Within 5 % of TTFT and TPOT: no load that was tried.",
    ]
