"""``loadgen sweep``."""

from __future__ import annotations

import sys

from loadgen.cli.options import (
    Client,
    Engine,
    Load,
    Output,
    Prompts,
    Search,
    Server,
    Simulator,
    Stopping,
    SweepOfEngines,
)
from loadgen.cli.output import EXIT_CODES, complain, say
from loadgen.cli.panels import HelpAll, alone, command
from loadgen.cli.reports import publish
from loadgen.cli.sweep_options import Options, kept_command, sweep_spec

EXAMPLES = f"""
# A first look at the embedded simulator; no server needed
loadgen sweep --concurrency 1,8,64
# A running server, with prompts from a bundled dataset
loadgen sweep --rate 2,4,8 --url http://127.0.0.1:8000 --dataset chat-256
# Two engines, launched one after another, with the same prompts
loadgen sweep --concurrency 8,64 --engine vllm --engine trtllm --model ./M
# The highest load at which 99 % of requests meet the SLO
loadgen sweep --find capacity --slo ttft=500ms --engine vllm --model ./M

{EXIT_CODES}
"""

sweep_app = alone()


@command(sweep_app, EXAMPLES)
def sweep(
    load: Load,
    prompts: Prompts,
    server: Server,
    stopping: Stopping,
    search: Search,
    client: Client,
    output: Output,
    engines: SweepOfEngines,
    engine: Engine,
    simulator: Simulator,
    help_all: HelpAll = False,
) -> int:
    """Measure a server at one load level after another.

    --concurrency keeps a fixed number of requests in flight at each level (a closed loop). --rate sends
    requests on time, however slow the server is (an open loop). --engine launches an engine and stops it
    afterwards; several engines get the same prompts. With neither --url nor --engine, loadgen measures
    its embedded simulator, and marks every figure SIMULATED.
    """
    from loadgen.cli.kernels import measure_kernels_of
    from loadgen.cli.progress import Progress
    from loadgen.processes import Interrupts
    from loadgen.sweeps.sweep import run_sweep

    options = Options(
        load=load, prompts=prompts, server=server, stopping=stopping, search=search,
        engines=engines, engine=engine, simulator=simulator, client=client, output=output,
    )  # fmt: skip
    spec = sweep_spec(options, kept_command(sys.argv[1:]))
    if server.url is None and not server.engines:
        say("No --url given: measuring the embedded engine; every figure is SIMULATED.")
    with Interrupts().watching() as interrupts:
        result = run_sweep(spec, Progress(sys.stderr, spec.together), interrupts)
        if engines.kernels:
            result.failures += measure_kernels_of(result.runs, interrupts)
    publish(spec.output, result.runs, output.json)
    for failure in result.failures:
        complain(failure)
    return result.exit_code or (1 if result.failures else 0)
