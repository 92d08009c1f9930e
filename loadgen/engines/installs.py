"""An engine's install and the environment that it is in: what a program there says, and which options it has.

Where installs are looked for is in :mod:`loadgen.engines.lookup`.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Literal

import msgspec

from loadgen.environment import cache_folder
from loadgen.errors import UsageError
from loadgen.processes import clean_environ

# Every engine has a row in loadgen/engines/table.py.
EngineKind = Literal["sim", "vllm", "trtllm", "sglang"]
HELP_TIMEOUT_S = 180


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
    def cpu_build(self) -> bool:
        """Whether package or version name a build without code for GPUs."""
        return self.package.endswith("-cpu") or "cpu" in self.version.partition("+")[2]


def version_tuple(text: str | None) -> tuple[int, ...]:
    """``"13.0"`` as ``(13, 0)``; empty for None."""
    return tuple(int(part) for part in re.findall(r"\d+", text or "")[:2])


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


def kept_options(install: Install, argv: list[str]) -> set[str]:
    """The options that a program of an install names in its help. Asking some takes 10 to 30 s, so the answer is kept.

    Raises:
        UsageError: as :func:`help_text`.
    """
    key = f"{install.environment.prefix}-{install.version}".replace("/", "_")
    kept = cache_folder() / "options" / f"{install.kind}{key}.json"
    try:
        return set(msgspec.json.decode(kept.read_bytes(), type=list[str]))
    except (OSError, msgspec.MsgspecError):
        pass
    found = options_in(help_text(argv))
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(msgspec.json.encode(sorted(found)))
    except OSError:
        pass  # only the next run would have used it
    return found


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
