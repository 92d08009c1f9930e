"""The command line: arguments -> calls -> exit code. The only room that prints or exits.

Everything beyond typer is imported inside the command that needs it, so that ``--help`` is quick.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any, ClassVar

import typer

from loadgen import __version__
from loadgen.cli.completion import VARIABLE, rejoin_words
from loadgen.cli.output import EXIT_CODES, complain, show
from loadgen.cli.panels import LazyGroup, Row
from loadgen.errors import LoadgenError

EXAMPLES = f"""
# A first look at the embedded simulator; no server needed
loadgen sweep --concurrency 1,8,64
# A running server
loadgen sweep --concurrency 1,8,64 --url http://127.0.0.1:8000
# The last run's table and page again
loadgen report @last
# Replicas, GPUs and cost for 40 requests/s
loadgen plan @last --slo ttft=500ms --peak-rate 40 --gpu-hour '$2.50'

{EXIT_CODES}
"""


class Commands(LazyGroup):
    """The commands in the order in which people need them."""

    rows: ClassVar = {
        "sweep": Row("loadgen.cli.sweep", "sweep_app", "Measure a server at one load level after another."),
        "report": Row("loadgen.cli.reports", "report_app", "Make the table and page of a run again, from its records."),
        "runs": Row("loadgen.cli.runs", "runs_app", "List the runs that were measured here, the newest first."),
        "compare": Row("loadgen.cli.reports", "compare_app", "Compare two runs: is it fair, and what is faster."),
        "plan": Row("loadgen.cli.reports", "plan_app", "Plan replicas, GPUs and cost for an SLO, from a sweep."),
        "calibrate": Row("loadgen.cli.calibrate", "calibrate_app", "Measure loadgen's own error on this machine."),
        "engines": Row("loadgen.cli.engines", "engines", "Find, build and serve the engines that loadgen can launch."),
        "dataset": Row("loadgen.cli.datasets", "datasets", "Make, inspect and convert datasets of prompts."),
        "kernels": Row("loadgen.cli.kernels", "kernels", "Measure GPU kernels at the sizes that a model's steps have."),
    }


def _exit(code: Any, **_: Any) -> None:
    """A command's result is the exit code."""
    raise typer.Exit(code if isinstance(code, int) else 0)


def _show_version(value: bool) -> None:
    if value:
        show(f"loadgen {__version__}")
        raise typer.Exit()


app = typer.Typer(
    cls=Commands,
    epilog=EXAMPLES,
    result_callback=_exit,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


@app.callback()
def loadgen(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", is_eager=True, callback=_show_version, help="Show the version and exit."),
    ] = False,
) -> None:
    """Load-test an LLM server, and know how far to trust each number."""


def main() -> None:
    """The entry point: a user's mistake never ends in a traceback."""
    if VARIABLE in os.environ:
        rejoin_words(os.environ)
    try:
        # Typer shows its own errors as plain text and exits with 2, or 130 after Ctrl-C.
        app(prog_name="loadgen")
    except LoadgenError as error:
        complain(str(error))
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # Standard output takes no more. What Python still holds for it would fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.ENOSPC:
            complain("standard output: no space left on device")
        sys.exit(1)


if __name__ == "__main__":
    main()
