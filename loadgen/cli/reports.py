"""``loadgen report``, ``compare`` and ``plan``: what is made of runs that there are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loadgen.cli.kernels import report_kernels
from loadgen.cli.runs import RUN
from loadgen.errors import LoadgenError, UsageError

EPILOG = "Exit codes: 0 valid, 1 ran but a verdict failed, 2 usage or bad input, 3 an engine failed."


def publish(folder: Path, runs: list[tuple[Path, Any]], as_json: bool) -> None:
    """Writes each run's report.html and prints the results of a sweep, several runs side by side."""
    from loadgen.report import texts
    from loadgen.run_folders import is_together

    entries = _entries(runs)
    pages = _write_pages(entries, together=folder)
    alone = runs[0][0] == folder
    text = texts.render("json" if as_json else "terminal", entries, alone=alone, together=is_together(folder))
    click.echo(text, nl=False)
    if not as_json:
        _name_pages(pages)


def _entries(runs: list[tuple[Path, Any]], kernels: Path | None = None) -> list[Any]:
    """The runs as reports take them.

    Kernels that were measured for a run stand in its folder ``kernels``, or in the one given.
    """
    from loadgen.engines.offline import REPORT_FILE, read_offline_report
    from loadgen.records import read_manifest
    from loadgen.report.entry import Entry, names_of
    from loadgen.report.waterfall import read_beside

    return [
        Entry(
            name=name,
            folder=run,
            manifest=manifest,
            summary=summary,
            beside=read_beside(kernels or run / "kernels", manifest, summary),
            offline=read_offline_report(run / REPORT_FILE) if (run / REPORT_FILE).exists() else None,
        )
        for name, (run, summary) in zip(names_of([run for run, _ in runs]), runs, strict=True)
        for manifest in [read_manifest(run)]
    ]


def _write_pages(entries: list[Any], output: Path | None = None, together: Path | None = None) -> list[Path]:
    """Writes report.html into each run's folder, or one page of all of them to ``output``; gives the pages.

    Several runs of one sweep have a page in its folder ``together`` too.
    """
    from loadgen.report import html
    from loadgen.report.page_data import read_page

    if output is not None:
        _write(output, html.render([read_page(entry) for entry in entries], _page_comparison(entries)))
        return [output]
    pages = [(entry.folder / "report.html", [entry]) for entry in entries]
    if together is not None and len(entries) > 1:
        pages.append((together / "report.html", entries))
    for page, shown in pages:
        try:
            page.write_bytes(html.render([read_page(entry) for entry in shown], _page_comparison(shown)).encode())
        except OSError as error:
            click.echo(f"loadgen: {page}: cannot be written: {error.strerror}", err=True)
    return [page for page, _ in pages]


def _page_comparison(entries: list[Any]) -> Any:
    """The second of two runs against the first; None where there is nothing to compare."""
    from loadgen.comparison.differences import compare as compare_sides
    from loadgen.comparison.sides import read_side

    if len(entries) != 2 or not all(entry.summary.levels for entry in entries):
        return None
    try:
        return compare_sides(*(read_side(entry.folder, entry.name) for entry in entries))
    except LoadgenError as error:  # a disk that took no records, say: what was measured is still to be shown
        click.echo(f"loadgen: the page has no comparison: {error}", err=True)
        return None


def _write(path: Path, text: str) -> None:
    try:
        path.write_bytes(text.encode())
    except OSError as error:
        raise LoadgenError(f"{path}: cannot be written: {error.strerror}") from None


def _name_pages(pages: list[Path]) -> None:
    click.echo()
    for page in pages:
        click.echo(f"Report: {page}")


@click.command(epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, type=RUN, metavar="RUN...")
@click.option("--format", "form", type=click.Choice(["terminal", "html", "markdown", "csv", "json", "openmetrics"]),
              help="[default: terminal, and the page in report.html]")  # fmt: skip
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE",
              help="Where to write.  [default: standard output; of html, RUN/report.html]")  # fmt: skip
@click.option("--offline", type=click.Path(path_type=Path), metavar="FILE",
              help="A --report_json of trtllm-bench throughput, kept in the run and shown beside it.")  # fmt: skip
@click.option("--slo", metavar="ttft=500ms,tpot=50ms", help="Objectives in place of the sweep's own.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def report(
    runs: tuple[Path, ...], form: str | None, output: Path | None, offline: Path | None, slo: str | None, as_json: bool
) -> int:
    """Make a run's table and page again from its records, finished or not.

    RUN is a run folder, the folder of a sweep over several engines, the beginning of a name that
    `loadgen runs` lists, or @last; several are shown side by side. A folder of `loadgen kernels bench
    --from RUN` among them is put beside TTFT and TPOT; alone, it gives its table.
    """
    from loadgen.analysis.measure import summarize_run
    from loadgen.analysis.slo import parse_slos
    from loadgen.engines.offline import REPORT_FILE, read_offline_report
    from loadgen.microbench.records import is_kernel_folder
    from loadgen.records import write_json
    from loadgen.report import texts
    from loadgen.run_folders import is_together, run_folders

    if as_json and form not in (None, "json"):
        raise UsageError(f"--json and --format {form} exclude each other")
    form = "json" if as_json else form or "terminal"
    slos = None if slo is None else parse_slos(slo)
    kernels = [run for run in runs if is_kernel_folder(run)]
    served = [run for run in runs if run not in kernels]
    if not served:
        if form not in ("terminal", "json") or output is not None:
            raise UsageError("kernels alone are shown as a table or with --format json, on standard output")
        return max(report_kernels(folder, form == "json") for folder in kernels)
    if len(kernels) > 1:
        raise UsageError(f"one folder of kernels goes beside runs; these are {', '.join(map(str, kernels))}")
    folders = [folder for run in served for folder in run_folders(run)]
    if offline is not None:
        read_offline_report(offline)  # only a report that can be read is kept
        if len(folders) > 1:
            raise UsageError(f"--offline belongs to one run; name one of {', '.join(map(str, folders))}")
        (folders[0] / REPORT_FILE).write_bytes(offline.read_bytes())
    found = []
    for folder in folders:
        _, summary = summarize_run(folder, slos)
        found.append((folder, summary))
        path = folder / "summary.json"
        if not path.exists():  # a run that was killed
            try:
                write_json(path, summary)
            except OSError as error:
                click.echo(f"loadgen: {path}: cannot be written: {error.strerror}", err=True)
    entries = _entries(found, kernels[0] if kernels else None)
    pages = []
    if form in ("terminal", "html"):
        sweep = served[0] if len(served) == 1 else None
        pages = _write_pages(entries, output if form == "html" else None, sweep)
    if form != "html":
        together = len(served) == 1 and is_together(served[0])
        text = texts.render(form, entries, alone=folders == served and len(served) == 1, together=together)
        if output is None:
            click.echo(text, nl=False)
        else:
            _write(output, text)
    if form == "html" or (form == "terminal" and output is None):
        _name_pages(pages)
    return 0 if all(summary.valid for _, summary in found) else 1


@click.command(epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, type=RUN, metavar="A B")
@click.option("--force", is_flag=True, help="Show figures, marked, even where the runs cannot be compared.")
@click.option("--fail-on", "conditions", multiple=True, metavar="'tpot_p50>+3%'",
              help="Exit with 1 when B is surely beyond this; repeatable. Decided on the interval.")  # fmt: skip
@click.option("--slo", metavar="ttft=500ms,tpot=50ms",
              help="Compare what both carry under these too.  [default: those of both runs, if the same]")  # fmt: skip
@click.option("--attainment", metavar="99%", default="99%", show_default=True,
              help="Of requests that are to meet what --slo asks of each.")  # fmt: skip
@click.option("--format", "form", type=click.Choice(["terminal", "markdown", "json"]), default="terminal",
              show_default=True)  # fmt: skip
def compare(
    runs: tuple[Path, ...], force: bool, conditions: tuple[str, ...], slo: str | None, attainment: str, form: str
) -> int:
    """Compare run B with run A: first whether that can be done, then what is faster, and how surely.

    A and B are run folders; one folder of a sweep over two engines is both. Either can be what
    `vllm bench serve --save-result --save-detailed` wrote: a file, or a folder of such files, one a
    level. What spoils the comparison gives NOT COMPARABLE and exit code 1.
    """
    import msgspec

    from loadgen.analysis.slo import parse_slos
    from loadgen.comparison.decisions import decide, fail_on, overall_decision
    from loadgen.comparison.differences import compare as compare_sides
    from loadgen.comparison.imported import import_side, is_imported
    from loadgen.comparison.sides import read_side
    from loadgen.report import compare as report
    from loadgen.run_folders import run_folders

    wanted = [fail_on(text) for text in conditions]
    slos = None if slo is None else parse_slos(slo)
    share = _attainment(attainment)
    folders = [folder for run in runs for folder in ([run] if is_imported(run) else run_folders(run))]
    if len(folders) != 2:
        raise UsageError(f"compare takes two runs; these are {len(folders)}: {', '.join(map(str, folders))}")
    a, b = (import_side(folder) if is_imported(folder) else read_side(folder) for folder in folders)
    found = compare_sides(a, b, force=force, slos=slos, attainment=share)
    rulings = [ruling for condition in wanted for ruling in decide(condition, found)]
    if form == "json":
        value = {"comparison": found, "rulings": rulings}
        click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2))
    elif form == "markdown":
        click.echo(report.markdown(found, rulings))
    else:
        click.echo(report.render(found, rulings))
    if not found.comparable:
        return 1
    return 1 if rulings and overall_decision(rulings) == "fails" else 0


@click.command(epilog=EPILOG)
@click.argument("runs", nargs=-1, required=True, type=RUN, metavar="RUN...")
@click.option("--slo", metavar="ttft=500ms,tpot=50ms",
              help="Objectives in place of the sweep's own.")  # fmt: skip
@click.option("--attainment", metavar="99%", default="99%", show_default=True,
              help="Of requests that are to meet what is asked of each.")  # fmt: skip
@click.option("--peak-rate", type=click.FloatRange(0, min_open=True), metavar="R", help="Requests/s to be served.")
@click.option("--duty", metavar="40%", default="100%", show_default=True, help="The mean rate, of the peak's.")
@click.option("--headroom", metavar="20%", default="20%", show_default=True,
              help="Of a replica's capacity, to be kept free at the peak.")  # fmt: skip
@click.option("--spares", type=click.IntRange(0), default=0, show_default=True, help="Replicas beyond the peak's.")
@click.option("--growth", metavar="25%,50%", default="25%,50%,100%", show_default=True,
              help="Of the peak, to be planned for too.")  # fmt: skip
@click.option("--gpu-hour", type=click.FloatRange(0, min_open=True), metavar="2.50", help="Price of a GPU for an hour.")
@click.option("--gpus-per-replica", type=click.IntRange(1), metavar="N", help="[default: those of the run's engine]")
@click.option("--format", "form", type=click.Choice(["terminal", "markdown", "json"]), default="terminal",
              show_default=True)  # fmt: skip
def plan(
    runs: tuple[Path, ...],
    slo: str | None,
    attainment: str,
    peak_rate: float | None,
    duty: str,
    headroom: str,
    spares: int,
    growth: str,
    gpu_hour: float | None,
    gpus_per_replica: int | None,
    form: str,
) -> int:
    """Plan capacity from a sweep: what a replica carries under the SLO, how many, at what cost.

    RUN is a run folder, or the folder of a sweep over several engines; several are planned side
    by side, and of those that differ only in --arrival it says what bursts take from the capacity.
    Where the measurements do not carry a plan it is refused, with what to measure, and the exit code
    is 1.
    """
    import msgspec

    from loadgen.analysis.bursts import add_bursts
    from loadgen.analysis.plan import plan_run
    from loadgen.analysis.slo import parse_slos
    from loadgen.report import plan as planning
    from loadgen.run_folders import run_folders
    from loadgen.units import parse_share

    mean_share = parse_share(duty)
    if not 0 < mean_share <= 1:
        raise UsageError("--duty is above 0% and at most 100%")
    kept_free = parse_share(headroom)
    if kept_free >= 1:
        raise UsageError("--headroom must leave something: below 100%")
    slos = None if slo is None else parse_slos(slo)
    plans = [
        plan_run(
            folder,
            slos,
            attainment=_attainment(attainment),
            duty=mean_share,
            peak_rps=peak_rate,
            headroom=kept_free,
            spares=spares,
            growth=[parse_share(piece) for piece in growth.split(",") if piece.strip()],
            gpu_hour=gpu_hour,
            gpus=gpus_per_replica,
        )
        for run in runs
        for folder in run_folders(run)
    ]
    add_bursts(plans)
    if form == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(plans), indent=2))
    else:
        click.echo((planning.markdown if form == "markdown" else planning.render)(plans), nl=False)
    return 1 if any(found.refused is not None for found in plans) else 0


def _attainment(text: str) -> float:
    from loadgen.units import parse_share

    share = parse_share(text)
    if not 0 < share <= 1:
        raise UsageError("--attainment is above 0% and at most 100%")
    if share == 1:
        raise UsageError("--attainment 100% can be shown by no sample; 99% takes 381 requests at least, 99.9% 3,838")
    return share
