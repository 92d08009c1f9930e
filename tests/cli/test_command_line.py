"""The command line itself: its help pages, the values that options take, and its errors."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from commands import COMMANDS
from servers import wait_for
from typer.core import TyperGroup
from typer.testing import CliRunner, Result

from loadgen import __version__
from loadgen.cli import options
from loadgen.cli.main import app
from loadgen.cli.panels import Command
from loadgen.cli.sweep_options import Options, kept_command, sweep_spec
from loadgen.engines.installs import EngineKind

ROOT = Path(__file__).parents[2]
RUN = ROOT / "reports" / "vllm-0.25.1-h200-qwen1.5-4b-levels"
PARAMETERS = [
    pytest.param(param, id=f"{words} {param.opts[-1]}")
    for words, command in COMMANDS.items()
    for param in command.params
]  # fmt: skip
EXAMPLES = [
    line
    for command in COMMANDS.values()
    for line in (command.epilog or "").splitlines()
    if line and not line.startswith(("#", "Exit codes"))
]


def loadgen(*words: str) -> Result:
    return CliRunner().invoke(app, list(words), prog_name="loadgen", standalone_mode=False)


def ends(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own."""
    command = [sys.executable, "-m", "loadgen", *words]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60)


# --- help pages


@pytest.mark.parametrize("param", PARAMETERS)
def test_every_option_says_what_it_is(param: Any) -> None:
    text = param.help
    assert re.match(r"[A-Z]", text) and not text.startswith("Of "), text
    assert text.endswith((".", "]")), text


@pytest.mark.parametrize("words", COMMANDS)
def test_every_page_has_three_or_four_examples_that_fit_and_no_line_that_is_too_long(words: str) -> None:
    page = loadgen(*words.split()[1:], "--help").stdout
    examples = re.findall(rf"^  {words} ?.*", page.partition("\nExamples:\n")[2], re.MULTILINE)
    assert 3 <= len(examples) <= 4
    assert all(len(line) <= 80 for line in page.splitlines())
    assert "\x1b" not in page and "..." not in page.partition("\nCommands:\n")[2].partition("\nOptions:\n")[0]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runs and files that the examples name."""
    for name in ("baseline", "tuned", "vllm", "trtllm"):
        shutil.copytree(RUN, tmp_path / "reports" / "local" / name)
    (tmp_path / "vllm-result.json").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", EXAMPLES)
def test_every_example_can_be_parsed(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = []
    monkeypatch.setattr(Command, "invoke", lambda command, ctx: reached.append(ctx.command_path))
    program, *words = shlex.split(line)
    done = loadgen(*words)
    assert program == "loadgen" and done.exception is None, done.exception
    assert reached and line.startswith(reached[0])


@pytest.mark.parametrize("line", [line for line in EXAMPLES if line.startswith("loadgen sweep")])
def test_every_example_of_a_sweep_would_start(line: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ReachedError(Exception):
        pass

    def run_sweep(*arguments: Any) -> None:
        raise ReachedError

    monkeypatch.setattr("loadgen.sweeps.sweep.run_sweep", run_sweep)
    assert isinstance(loadgen(*shlex.split(line)[1:]).exception, ReachedError)


def test_commands_come_in_the_order_in_which_people_need_them() -> None:
    page = loadgen("--help").stdout
    listed = re.findall(r"^  ([a-z]+) +[A-Z]", page, re.MULTILINE)
    assert listed == ["sweep", "report", "runs", "compare", "plan", "calibrate", "engines", "dataset", "kernels"]


@pytest.mark.parametrize("name", COMMANDS["loadgen"].commands)
def test_the_list_of_commands_says_what_their_pages_say(name: str) -> None:
    assert COMMANDS["loadgen"].rows[name].about == COMMANDS[f"loadgen {name}"].help.partition("\n")[0]


def headings(page: str) -> list[str]:
    return re.findall(r"^([A-Z][A-Za-z ]+):$", page, re.MULTILINE)


def test_options_of_a_sweep_stand_in_panels_and_those_of_engines_are_folded() -> None:
    page = loadgen("sweep", "--help").stdout
    shown = ["Examples", "Load", "Prompts", "Server", "Stopping", "SLO and search", "Client", "Output", "Other"]
    assert headings(page) == shown
    assert "Engine and simulator options: loadgen sweep --help-all\n" in page
    assert not re.search(r"^  --(tensor-parallel|sim-gpu)", page, re.MULTILINE)


def test_help_all_shows_every_option_of_a_sweep() -> None:
    page = loadgen("sweep", "--help-all").stdout
    assert headings(page)[-3:] == ["Engine", "Simulator", "Other"] and "Engine and simulator options:" not in page
    for param in COMMANDS["loadgen sweep"].params:
        assert re.search(rf"^  .*{param.opts[0]}\b", page, re.MULTILINE), param.opts


def test_engines_of_the_help_are_those_that_there_are() -> None:
    kinds = get_args(EngineKind)
    assert f"--engine [{'|'.join(kinds)}]" in loadgen("sweep", "--help").stdout
    serves = [words.rpartition(" ")[2] for words in COMMANDS if words.startswith("loadgen engines serve ")]
    assert sorted(serves) == sorted(kinds)
    refused = loadgen("sweep", "--engine", "tgi").exception
    assert "'tgi' is not one of sim, vllm, trtllm" in str(refused)


@pytest.mark.parametrize("param", PARAMETERS)
def test_a_default_in_a_help_text_is_the_default(param: Any) -> None:
    named = re.search(r"\[default: (\S+)\]$", param.help)
    if named is None or param.default in (None, False) or param.multiple:
        return
    assert param.type.convert(named[1], param, None) == param.default


def test_some_defaults_are_named_in_help_texts() -> None:
    named = [param.values[0] for param in PARAMETERS if "[default: 30m]" in param.values[0].help]
    assert {param.default for param in named} == {1800.0}


@pytest.mark.parametrize("words", [[], ["sweep"], ["engines", "serve", "sim"]])
def test_h_is_help(words: list[str]) -> None:
    assert loadgen(*words, "-h").stdout == loadgen(*words, "--help").stdout != ""


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_version(option: str) -> None:
    assert loadgen(option).stdout == f"loadgen {__version__}\n"


def test_no_command_line_has_a_name_twice() -> None:
    for words, command in COMMANDS.items():
        names = [name for param in command.params for name in (*param.opts, *param.secondary_opts)]
        assert len(names) == len(set(names)), words


# --- values


def spec(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """What a sweep is asked to do."""
    found = []

    def run_sweep(made: Any, *_: Any) -> None:
        found.append(made)
        raise KeyboardInterrupt

    monkeypatch.setattr("loadgen.sweeps.sweep.run_sweep", run_sweep)
    done = loadgen("sweep", "--output", "run", *words)
    assert found, done.exception
    return found[0]


@pytest.mark.parametrize(
    ("field", "texts"),
    [
        ("duration_s", ["--duration 90", "--duration 90s", "--duration 1m30s"]),
        ("precision", ["--precision 5%", "--precision 5", "--precision 0.05"]),
        ("max_duration_s", ["--precision 5% --max-duration 60", "--precision 5% --max-duration 1m"]),
        ("timeouts", ["--timeout first_token=60,connect=1", "--timeout connect=1s,first-token=1m"]),
    ],
)
def test_forms_of_one_value_mean_the_same(field: str, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    without = getattr(spec(monkeypatch, "--concurrency", "1"), field)
    first, *others = [getattr(spec(monkeypatch, "--concurrency", "1", *text.split()), field) for text in texts]
    assert first != without and all(other == first for other in others)


def test_a_share_goes_with_objectives_and_into_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--concurrency", "8", "--slo", "ttft=1s")
    assert spec(monkeypatch, *words, "--attainment", "95%").load_entry().attainment == 0.95
    assert spec(monkeypatch, *words).load_entry().attainment is None


def test_forms_of_an_attainment_mean_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("--find", "capacity", "--slo", "ttft=1s", "--attainment")
    assert {spec(monkeypatch, *words, text).find.attainment for text in ("0.95", "95", "95%")} == {0.95}


def test_loads_rates_and_token_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spec(monkeypatch, "--concurrency", "1,8,64").levels == [1, 8, 64]
    assert spec(monkeypatch, "--rate", "0.5,2").rates == [0.5, 2]
    source = spec(monkeypatch, "--rate", "1", "--input-tokens", "9", "--output-tokens", "3:5").source
    assert (str(source.input_tokens), str(source.output_tokens)) == ("9", "3:5")


@pytest.mark.parametrize("price", ["2.50", "2.5", "$2.50", "€2.50", "2.50 USD"])
def test_a_price_with_a_currency(price: str) -> None:
    words = ("plan", str(RUN), "--slo", "ttft=500ms", "--peak-rate", "1", "--format", "json", "--gpu-hour")
    plain, given = loadgen(*words, "2.5"), loadgen(*words, price)
    assert json.loads(plain.stdout) and given.stdout == plain.stdout


BAD_VALUES = {
    "a duration": ("sweep --duration soon", "'--duration'", "500ms, 60s or 5m, or as a number of seconds"),
    "a share": ("sweep --precision much", "'--precision'", "write it as 20% or 0.2"),
    "loads": ("sweep --concurrency 1;8", "'--concurrency'", "such as 1,8,64"),
    "rates": ("sweep --rate 1,-2", "'--rate'", "above 0 and at most 100,000"),
    "token range": ("sweep --input-tokens 9:3", "'--input-tokens'", "1 <= low <= high"),
    "money": ("plan x --gpu-hour cheap", "'--gpu-hour'", "'$2.50'"),
    "count": ("sweep --workers 0", "'--workers'", "must be 1 or above, not 0"),
    "number": ("sweep --speedup -1", "'--speedup'", "must be above 0, not -1"),
    "port": ("engines serve sim --port 65536", "'--port'", "must be at most 65,535"),
}


@pytest.mark.parametrize(("words", "option", "hint"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_a_bad_value_names_its_option_and_shows_a_good_one(words: str, option: str, hint: str) -> None:
    done = CliRunner().invoke(app, words.split(), prog_name="loadgen")
    assert done.exit_code == 2 and done.stdout == ""
    usage, try_help, empty, error, *rest = done.stderr.splitlines()
    assert usage.startswith("Usage: loadgen ") and try_help.startswith("Try 'loadgen ") and empty == ""
    assert error.startswith(f"Error: Invalid value for {option}: ") and hint in error and not rest


def test_objectives_need_a_unit_still() -> None:
    done = loadgen("sweep", "--concurrency", "1", "--slo", "ttft=500")
    assert "no unit" in str(done.exception)


def test_secrets_are_not_kept() -> None:
    words = ["sweep", "--api-key", "k1", "--header", "X: k2", "--api-key=k3", "--header=X: k4", "--url", "u"]
    kept = kept_command(words)
    assert kept[:2] == ["loadgen", "sweep"] and kept[-2:] == ["--url", "u"]
    assert not re.search(r"k\d", " ".join(kept))


def test_a_key_from_the_environment_goes_to_a_url_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADGEN_API_KEY", "secret")
    assert spec(monkeypatch, "--concurrency", "1").headers == {}
    assert spec(monkeypatch, "--concurrency", "1", "--url", "http://a").headers == {"Authorization": "Bearer secret"}
    given = spec(monkeypatch, "--concurrency", "1", "--url", "http://a", "--api-key", "mine").headers
    assert given == {"Authorization": "Bearer mine"}


def test_a_spec_is_made_from_options_alone(tmp_path: Path) -> None:
    made = sweep_spec(
        Options(
            load=options.Load(levels=(1, 2)),
            prompts=options.Prompts(seed=3),
            server=options.Server(url="http://127.0.0.1:8000/"),
            stopping=options.Stopping(requests=5),
            search=options.Search(slo="ttft=1s"),
            engines=options.SweepOfEngines(),
            engine=options.Engine(),
            simulator=options.Simulator(),
            client=options.Client(workers=2),
            output=options.Output(folder=tmp_path),
        ),
        ["loadgen"],
    )
    assert (made.levels, made.requests, made.duration_s, made.workers) == ([1, 2], 5, None, 2)
    assert made.source.seed == 3 and [slo.text for slo in made.slos] == ["ttft=1s"] and made.output == tmp_path


# --- the program


@pytest.mark.integration
def test_errors_are_plain_text_even_where_colours_are_forced() -> None:
    done = ends("sweep", "--speed", "9", FORCE_COLOR="1", PY_COLORS="1", TERM="xterm-256color")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Usage: loadgen sweep") and "Error: No such option: --speed" in done.stderr
    assert done.stderr.isascii() and "\x1b" not in done.stderr


@pytest.mark.integration
def test_nothing_heavy_is_imported_for_help_or_an_error() -> None:
    heavy = "{'rich', 'pydantic', 'numpy', 'scipy', 'aiohttp', 'uvloop', 'torch', 'triton', 'vllm', 'tensorrt_llm'}"
    code = (
        "import sys\nfrom loadgen.cli import main\n"
        "assert 'msgspec' not in sys.modules\n"
        "try:\n    main.main()\nexcept SystemExit:\n    pass\n"
        f"sys.exit(str(found) if (found := {heavy} & set(sys.modules)) else 0)"
    )
    for words in (["--help"], ["-V"], ["sweep", "--help-all"], ["sweep", "--no-such"], ["report", "nosuch"], []):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, (words, done.stderr)


def test_groups_show_their_help_without_a_command() -> None:
    for words, command in COMMANDS.items():
        if isinstance(command, TyperGroup):
            done = CliRunner().invoke(app, words.split()[1:], prog_name="loadgen")
            assert done.exit_code == 2 and "\nExamples:\n" in done.stderr


@pytest.mark.integration
def test_ctrl_c_ends_with_130_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loadgen", "dataset", "make", "chat", "--prompts", "10000000", "--output", "out"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    # A shell's job in the background starts with SIGINT ignored, and so do its children.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environ, preexec_fn=heeding
    ) as process:
        try:
            wait_for(lambda: list(tmp_path.iterdir()))
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130 and "Traceback" not in said
    assert not list(tmp_path.iterdir()), "half a file"


@pytest.mark.integration
@pytest.mark.parametrize("words", ["--help", "-V", "sweep --help-all"])
def test_help_to_a_full_disk(words: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "loadgen", *words.split()]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environ, timeout=60)
    assert (done.returncode, done.stderr) == (1, "loadgen: standard output: no space left on device\n")
