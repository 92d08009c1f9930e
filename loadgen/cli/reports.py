"""``loadgen report``, ``compare`` and ``plan``: what is made of runs afterwards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from loadgen.cli.kernels import report_kernels
from loadgen.cli.options import Slo
from loadgen.cli.output import EXIT_CODES, complain, rendered, show
from loadgen.cli.panels import alone, command
from loadgen.cli.params import ATTAINMENT, COUNT, MONEY, POSITIVE, RUN, SHARES, argument, count, option, share
from loadgen.errors import LoadgenError, UsageError

REPORT_EXAMPLES = f"""
# The newest run
loadgen report @last
# Two runs side by side, against other objectives
loadgen report baseline tuned --slo ttft=300ms,tpot=30ms
# One page of both
loadgen report baseline tuned --format html --output both.html
# A table for a spreadsheet
loadgen report @last --format csv --output run.csv

{EXIT_CODES}
"""
COMPARE_EXAMPLES = f"""
# Whether the newest run is faster than the one before it
loadgen compare @last~1 @last
# Fail a CI job if TPOT is certainly more than 3 % worse
loadgen compare baseline @last --fail-on 'tpot_p50>+3%'
# The highest load that each can serve within an SLO
loadgen compare baseline @last --slo ttft=500ms,tpot=50ms --attainment 99%
# A result of vllm bench serve
loadgen compare vllm-result.json @last

{EXIT_CODES}
"""
PLAN_EXAMPLES = f"""
# What one replica can serve within the SLO that the sweep was given
loadgen plan @last
# Replicas, GPUs and cost for a peak of 40 requests/s
loadgen plan @last --slo ttft=500ms --peak-rate 40 --gpu-hour '$2.50'
# With one spare replica, and a mean load of 40 % of the peak
loadgen plan @last --peak-rate 40 --spares 1 --duty 40% --gpu-hour 2.50
# Two engines side by side, as Markdown
loadgen plan vllm trtllm --peak-rate 40 --format markdown

{EXIT_CODES}
"""
report_app, compare_app, plan_app = alone(), alone(), alone()

Runs = Annotated[
    list[Path],
    argument(
        kind=RUN, metavar="RUN...",
        help="Run folders, beginnings of names that `loadgen runs` lists, or @last. The folder of a sweep over several "
        "engines stands for all its runs.",
    ),
]  # fmt: skip
Attainment = Annotated[
    float | None,
    option(
        "--attainment",
        kind=ATTAINMENT,
        help="Share of requests that must meet the objectives.  [default: that of the sweep, else 99%]",
    ),
]
Format = Literal["terminal", "html", "markdown", "csv", "json", "openmetrics"]
FORMATS_HELP = (
    "Format: terminal, html, markdown, csv, json or openmetrics.  [default: terminal, and a page in report.html]"
)
TextForm = Annotated[Literal["terminal", "markdown", "json"], option("--format", help="Format of the result.")]


def publish(folder: Path, runs: list[tuple[Path, Any]], as_json: bool) -> None:
    """Writes each run's report.html and prints the results of a sweep, several runs side by side."""
    from loadgen.report.formats import TEXTS, Shown
    from loadgen.run_folders import is_together

    entries = _entries(runs)
    pages = _write_pages(entries, {}, together=folder)
    form = "json" if as_json else "terminal"
    show(TEXTS[form](Shown(entries, alone=runs[0][0] == folder, together=is_together(folder))), end="")
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


def _write_pages(
    entries: list[Any], gathered: dict[Path, Any], output: Path | None = None, together: Path | None = None
) -> list[Path]:
    """Writes report.html into each run's folder, or one page of all of them to ``output``; gives the pages.

    Several runs of one sweep have a page in its folder ``together`` too.

    Args:
        gathered: the requests of the runs whose records have been read, by folder.
    """
    from loadgen.report import html
    from loadgen.report.page_data import read_page

    of = {entry.folder: read_page(entry, gathered.get(entry.folder)) for entry in entries}
    if output is not None:
        _write(output, html.render(list(of.values()), _page_comparison(entries)))
        return [output]
    pages = [(entry.folder / "report.html", [entry]) for entry in entries]
    if together is not None and len(entries) > 1:
        pages.append((together / "report.html", entries))
    for page, shown in pages:
        try:
            page.write_bytes(html.render([of[entry.folder] for entry in shown], _page_comparison(shown)).encode())
        except OSError as error:
            complain(f"{page}: cannot be written: {error.strerror}")
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
        complain(f"the page has no comparison: {error}")
        return None


def _write(path: Path, text: str) -> None:
    try:
        path.write_bytes(text.encode())
    except OSError as error:
        raise LoadgenError(f"{path}: cannot be written: {error.strerror}") from None


def _name_pages(pages: list[Path]) -> None:
    show("")
    for page in pages:
        show(f"Report: {page}")


@command(report_app, REPORT_EXAMPLES)
def report(
    runs: Runs,
    slo: Slo = None,
    offline: Annotated[
        Path | None,
        option(
            "--offline", metavar="FILE",
            help="Result of trtllm-bench throughput (--report_json) to keep in the run and show beside it.",
        ),
    ] = None,
    form: Annotated[
        Format | None,
        option("--format", metavar="FORMAT", help=FORMATS_HELP),
    ] = None,
    output: Annotated[
        Path | None,
        option("--output", metavar="FILE", help="File to write.  [default: standard output; html: RUN/report.html]"),
    ] = None,
    json: Annotated[bool, option("--json", help="Print JSON, as --format json does.")] = False,
) -> int:  # fmt: skip
    """Make the table and page of a run again, from its records.

    A run that was cut short has a report too. Several runs are shown side by side. A folder of `loadgen
    kernels bench --from RUN` among them is shown beside TTFT and TPOT; alone, it gives its own table.
    """
    from loadgen.analysis.slo import parse_slos
    from loadgen.microbench.records import is_kernel_folder
    from loadgen.report.formats import TEXTS, Shown
    from loadgen.run_folders import is_together, run_folders

    if json and form not in (None, "json"):
        raise UsageError(f"--json and --format {form} exclude each other")
    form = "json" if json else form or "terminal"
    slos = None if slo is None else parse_slos(slo)
    kernels = [run for run in runs if is_kernel_folder(run)]
    served = [run for run in runs if run not in kernels]
    if not served:
        if form not in ("terminal", "json") or output is not None:
            raise UsageError("a folder of kernels alone is shown as a table or with --format json, on standard output")
        return max(report_kernels(folder, form == "json") for folder in kernels)
    if len(kernels) > 1:
        raise UsageError(f"runs can have one folder of kernels beside them; these are {', '.join(map(str, kernels))}")
    folders = [folder for run in served for folder in run_folders(run)]
    if offline is not None:
        _keep_offline(offline, folders)
    with_page = form in ("terminal", "html")
    gathered: dict[Path, Any] = {}
    found = _summaries(folders, slos, gathered if with_page else None)
    entries = _entries(found, kernels[0] if kernels else None)
    sweep = served[0] if len(served) == 1 else None
    pages = []
    if with_page:
        pages = _write_pages(entries, gathered, output if form == "html" else None, sweep)
    if form != "html":
        alone = sweep is not None and folders == served
        text = TEXTS[form](Shown(entries, alone, together=sweep is not None and is_together(sweep)))
        if output is None:
            show(text, end="")
        else:
            _write(output, text)
    if form == "html" or (form == "terminal" and output is None):
        _name_pages(pages)
    return 0 if all(summary.valid for _, summary in found) else 1


def _keep_offline(offline: Path, folders: list[Path]) -> None:
    """Copies the result of trtllm-bench into the run."""
    from loadgen.engines.offline import REPORT_FILE, read_offline_report

    read_offline_report(offline)  # only a report that can be read is kept
    if len(folders) > 1:
        raise UsageError(f"--offline belongs to one run; name one of {', '.join(map(str, folders))}")
    (folders[0] / REPORT_FILE).write_bytes(offline.read_bytes())


def _summaries(folders: list[Path], slos: Any, gathered: dict[Path, Any] | None) -> list[tuple[Path, Any]]:
    """Each run's summary from its records; a run that was killed gets its summary.json.

    Args:
        gathered: takes the requests for the page, in the same reading; None where there is no page.
    """
    from loadgen.analysis.measure import summarize_run
    from loadgen.records import write_json
    from loadgen.report.page_data import RunRequests

    found = []
    for folder in folders:
        requests = RunRequests()
        if gathered is None:
            _, summary = summarize_run(folder, slos)
        else:
            _, summary = summarize_run(folder, slos, requests.add)
            gathered[folder] = requests
        found.append((folder, summary))
        path = folder / "summary.json"
        if not path.exists():
            try:
                write_json(path, summary)
            except OSError as error:
                complain(f"{path}: cannot be written: {error.strerror}")
    return found


@command(compare_app, COMPARE_EXAMPLES)
def compare(
    runs: Annotated[
        list[Path],
        argument(
            kind=RUN, metavar="A B",
            help="Two runs, or the folder of a sweep over two engines. Either can be a result of `vllm bench serve "
            "--save-result --save-detailed`: a file, or a folder with one file for each level.",
        ),
    ],
    force: Annotated[
        bool, option("--force", help="Show figures, marked, even if the runs are not comparable.")
    ] = False,
    conditions: Annotated[
        list[str] | None,
        option(
            "--fail-on", metavar="'tpot_p50>+3%'",
            help="Condition that ends with exit code 1 if it certainly holds for B; repeatable. Decided on the "
            "interval, not on the point estimate.",
        ),
    ] = None,
    slo: Annotated[
        str | None,
        option(
            "--slo", metavar="ttft=500ms,tpot=50ms",
            help="Objectives to compare capacities by.  [default: those of both runs, if they are the same]",
        ),
    ] = None,
    attainment: Attainment = None,
    form: TextForm = "terminal",
) -> int:  # fmt: skip
    """Compare two runs: is it fair, and what is faster.

    If anything makes the comparison unfair, the result is NOT COMPARABLE and the exit code is 1.
    """
    from loadgen.analysis.slo import parse_slos
    from loadgen.comparison.decisions import decide, fail_on, overall_decision
    from loadgen.comparison.differences import compare as compare_sides
    from loadgen.comparison.imported import import_side, is_imported
    from loadgen.comparison.sides import read_side
    from loadgen.report import compare as comparing
    from loadgen.run_folders import run_folders

    wanted = [fail_on(text) for text in conditions or []]
    slos = None if slo is None else parse_slos(slo)
    folders = [folder for run in runs for folder in ([run] if is_imported(run) else run_folders(run))]
    if len(folders) != 2:
        raise UsageError(f"compare takes two runs; these are {len(folders)}: {', '.join(map(str, folders))}")
    a, b = (import_side(folder) if is_imported(folder) else read_side(folder) for folder in folders)
    found = compare_sides(a, b, force=force, slos=slos, attainment=attainment)
    rulings = [ruling for condition in wanted for ruling in decide(condition, found)]
    renders = {
        "terminal": partial(comparing.render, found, rulings),
        "markdown": partial(comparing.markdown, found, rulings),
    }
    show(rendered(form, {"comparison": found, "rulings": rulings}, renders), end="")
    if not found.comparable:
        return 1
    return 1 if rulings and overall_decision(rulings) == "fails" else 0


class Objectives(NamedTuple):
    """SLO."""

    slo: Slo = None
    attainment: Attainment = None


class Demand(NamedTuple):
    """Demand."""

    peak_rate_rps: Annotated[
        float | None, option("--peak-rate", kind=POSITIVE, help="Requests/s to serve at the peak.")
    ] = None
    duty: Annotated[
        float, option("--duty", kind=share("40%"), help="Mean rate as a share of the peak.  [default: 100%]")
    ] = 1.0
    growth: Annotated[
        tuple[float, ...],
        option(
            "--growth", kind=SHARES,
            help="Growth of the peak to plan for as well.  [default: 25%,50%,100%]",
        ),
    ] = (0.25, 0.5, 1.0)  # fmt: skip


class Replicas(NamedTuple):
    """Replicas."""

    headroom: Annotated[
        float,
        option(
            "--headroom",
            kind=share("20%", zero=True, whole=False),
            help="Share of a replica's capacity to keep free at the peak.  [default: 20%]",
        ),
    ] = 0.2
    spares: Annotated[
        int, option("--spares", kind=count(least=0), help="Replicas in addition to those for the peak.  [default: 0]")
    ] = 0
    gpus_per_replica: Annotated[
        int | None,
        option("--gpus-per-replica", kind=COUNT, help="GPUs of one replica.  [default: those of the run's engine]"),
    ] = None
    gpu_hour: Annotated[
        float | None,
        option("--gpu-hour", kind=MONEY, help="Price of one GPU-hour, such as 2.50, '$2.50' or '2.50 EUR'."),
    ] = None


class PlanOutput(NamedTuple):
    """Output."""

    form: TextForm = "terminal"


@command(plan_app, PLAN_EXAMPLES)
def plan(runs: Runs, objectives: Objectives, demand: Demand, replicas: Replicas, output: PlanOutput) -> int:
    """Plan replicas, GPUs and cost for an SLO, from a sweep.

    Several runs are planned side by side; if they differ only in --arrival, the plan says how much
    capacity bursts cost. If the measurements do not support a plan, loadgen says so, names what to
    measure, and the exit code is 1.
    """
    from loadgen.analysis.bursts import add_bursts
    from loadgen.analysis.plan import plan_run
    from loadgen.analysis.slo import parse_slos
    from loadgen.report import plan as planning
    from loadgen.run_folders import run_folders

    slos = None if objectives.slo is None else parse_slos(objectives.slo)
    plans = [
        plan_run(
            folder,
            slos,
            attainment=objectives.attainment,
            duty=demand.duty,
            peak_rps=demand.peak_rate_rps,
            headroom=replicas.headroom,
            spares=replicas.spares,
            growth=list(demand.growth),
            gpu_hour=replicas.gpu_hour,
            gpus=replicas.gpus_per_replica,
        )
        for run in runs
        for folder in run_folders(run)
    ]
    add_bursts(plans)
    renders = {"terminal": partial(planning.render, plans), "markdown": partial(planning.markdown, plans)}
    show(rendered(output.form, plans, renders), end="")
    return 1 if any(found.refused is not None for found in plans) else 0
