"""``loadgen calibrate``."""

from __future__ import annotations

from typing import Annotated

from loadgen.cli.options import Json, Workers
from loadgen.cli.output import say, show_result
from loadgen.cli.panels import alone, command
from loadgen.cli.params import DURATION, LOADS, option

CALIBRATED = "1,8,64,256,512,1024"
EXAMPLES = """
# This machine, at the default loads
loadgen calibrate
# A few loads, for longer
loadgen calibrate --concurrency 64,1024 --duration 10
# With a fixed number of worker processes, as JSON
loadgen calibrate --workers 2 --json
"""

calibrate_app = alone()


@command(calibrate_app, EXAMPLES)
def calibrate(
    levels: Annotated[
        tuple[int, ...], option("--concurrency", kind=LOADS, help=f"Loads to try.  [default: {CALIBRATED}]")
    ] = LOADS.parse(CALIBRATED),
    duration_s: Annotated[
        float, option("--duration", kind=DURATION, help="Length of the measurement at each load.  [default: 4s]")
    ] = 4.0,
    workers: Workers = None,
    json: Json = False,
) -> int:
    """Measure loadgen's own error on this machine.

    The embedded simulator sends tokens at known times. loadgen measures it at rising loads and compares
    what it measured with those times.
    """
    from loadgen.sweeps.calibrate import calibrate as run_calibration
    from loadgen.sweeps.calibrate import render

    result = run_calibration(list(levels), duration_s, workers, say)
    show_result(result, json, lambda: render(result))
    return 0
