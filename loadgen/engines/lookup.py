"""Finding the engines that are installed: here, in another environment, or on PATH.

An environment is asked through its own Python, without importing anything heavy: versions come
from the packages' metadata, CUDA's from torch/version.py.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from loadgen.engines.installs import EngineKind, Environment, Install, ask
from loadgen.engines.table import ENGINES
from loadgen.errors import UsageError

PROBE_TIMEOUT_S = 30
# Packages that engines are built on.
STACK = ("torch", "torchvision", "triton", "transformers", "tensorrt", "flashinfer-python", "mpi4py")

# Runs in the environment that is looked at: any Python from 3.8 up, nothing imported that is not its own.
_PROBE = r"""
import importlib.metadata as m, importlib.util as u, json, os, re, sys, sysconfig
versions, needs = {}, {}
for name in sys.argv[1:]:
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


def looked_for() -> list[str]:
    """The packages whose versions are asked for: the engines', and what they are built on."""
    rows = ENGINES.values()
    return [*(p for row in rows for p in row.packages), *STACK, *(p for row in rows for p in row.stack)]


def look_at(python: str) -> Environment:
    """What the environment of a Python holds.

    Raises:
        UsageError: it is no Python that runs.
    """
    path = shutil.which(python) or python
    try:
        done = ask([path, "-c", _PROBE, *looked_for()], PROBE_TIMEOUT_S)
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
    for script in (script for row in ENGINES.values() for script in row.scripts):
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
        for kind, row in ENGINES.items()
        for package in row.packages
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
    package = ENGINES[kind].packages[0]
    raise UsageError(
        f"--engine {kind}: {package} is not installed in {where}. Name the Python of the environment that has it "
        f"with --engine-python {kind}=PATH; `loadgen engines doctor` shows what is found"
    )
