"""Documents that must not drift from the code."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_metrics_page_is_what_the_code_makes() -> None:
    spec = importlib.util.spec_from_file_location("make_metrics", ROOT / "docs" / "make_metrics.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "metrics.md").read_text() == module.text(), "run `make docs`"


def test_every_option_in_the_readme_exists() -> None:
    readme = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", readme, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if "loadgen " in line]
    assert lines
    for line in lines:
        words = line[line.index("loadgen ") :].split("#")[0].split()
        commands = [word for word in words[1:4] if re.fullmatch(r"[a-z][a-z-]*", word)]
        help_text = ""
        while commands:
            done = subprocess.run(
                [sys.executable, "-m", "loadgen", *commands, "--help"], capture_output=True, text=True, cwd=ROOT
            )
            if done.returncode == 0:
                help_text = done.stdout
                break
            commands.pop()
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            assert option in help_text, f"{option} in {line!r}"


@pytest.mark.parametrize("target", ["demo", "test", "test-engines", "bench", "docs"])
def test_every_target_of_the_readme_is_in_the_makefile(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert f"make {target}" in (ROOT / "README.md").read_text()


def test_importing_loadgen_and_asking_for_help_stays_light() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from loadgen.cli.main import cli; "
        "assert CliRunner().invoke(cli, ['sweep', '--help']).exit_code == 0; "
        "heavy = {'torch', 'triton', 'vllm', 'tensorrt_llm', 'scipy', 'numpy', 'aiohttp', 'uvloop'}; "
        "heavy &= set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
