"""``loadgen runs``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from loadgen.cli.options import Json
from loadgen.cli.output import show_result
from loadgen.cli.panels import alone, command
from loadgen.cli.params import argument
from loadgen.errors import RunFolderError

EXAMPLES = """
# What was measured here, the newest first
loadgen runs
# Published runs only
loadgen runs reports
# As JSON, for scripts
loadgen runs --json
"""

runs_app = alone()


@command(runs_app, EXAMPLES)
def runs(
    folder: Annotated[
        Path | None,
        argument(metavar="[FOLDER]", help="Folder to look below.  [default: reports/local and reports]"),
    ] = None,
    json: Json = False,
) -> int:
    """List the runs that were measured here, the newest first.

    Wherever a command takes a RUN, the beginning of a name is enough if only one run begins with it;
    @last is the newest run, @last~1 the one before it.
    """
    from loadgen.report.listing import render
    from loadgen.run_folders import HOMES, list_runs

    if folder is not None and not folder.is_dir():
        raise RunFolderError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}")
    homes = HOMES if folder is None else (folder,)
    found = list_runs(homes)
    nothing = f"No runs below {' or '.join(map(str, homes))}."
    show_result(found, json, lambda: render(found, datetime.now(UTC)) if found else nothing)
    return 0
