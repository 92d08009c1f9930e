"""``loadgen runs``, and how a run is named wherever one is asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from loadgen.errors import RunFolderError


class _Run(click.ParamType):  # type: ignore[type-arg]
    """A run folder: its path, ``@last``, ``@last~1``, or the beginning of a name below ``reports``."""

    name = "run"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        from loadgen.run_folders import find_run

        return value if isinstance(value, Path) else find_run(value)


RUN = _Run()


@click.command("runs")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
def runs(folder: Path | None, as_json: bool) -> int:
    """List the runs below FOLDER, the newest first.

    FOLDER is reports/local and reports where none is named. Wherever a run is asked for, the beginning
    of a name will do if only one of the runs there begins so; @last is the newest run, @last~1 the one
    before.
    """
    import msgspec

    from loadgen.report.listing import render
    from loadgen.run_folders import HOMES, list_runs

    if folder is not None and not folder.is_dir():
        raise RunFolderError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}")
    homes = HOMES if folder is None else (folder,)
    found = list_runs(homes)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2))
    elif found:
        click.echo(render(found, datetime.now(UTC)), nl=False)
    else:
        click.echo(f"No runs below {' or '.join(map(str, homes))}.")
    return 0
