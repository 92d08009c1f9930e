"""``loadgen dataset ...``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from loadgen.cli.options import Json, Seed
from loadgen.cli.output import show, show_result
from loadgen.cli.panels import command, group
from loadgen.cli.params import COUNT, DATASET, argument, option

OUTPUT_HELP = "File to write, which must not exist yet; - for standard output."

datasets = group(
    "dataset",
    "Make, inspect and convert datasets of prompts.\n\nA dataset is a JSONL file with one prompt a line.",
    """
# What a bundled dataset holds
loadgen dataset inspect chat-256
# 1,000 chat prompts, the same on every machine
loadgen dataset make chat --prompts 1000 --seed 1 --output chat.jsonl
# A file that vllm bench serve reads
loadgen dataset convert chat.jsonl vllm.jsonl --to vllm
""",
)


@command(
    datasets,
    """
# Chat prompts
loadgen dataset make chat --output chat.jsonl
# Token ids in the form of trtllm-bench
loadgen dataset make tokens --prompts 512 --output tokens.jsonl
# Prompts that share long prefixes, to standard output
loadgen dataset make prefixed --seed 7 --output -
""",
    name="make",
)
def make_dataset(
    kind: Annotated[str, argument(metavar="KIND", help="Kind of prompts, from the list above.")],
    output: Annotated[str, option("--output", metavar="FILE", help=OUTPUT_HELP)],
    prompts: Annotated[int, option("--prompts", metavar="N", help="Number of prompts.")] = 256,
    seed: Seed = 0,
) -> int:
    """Make a dataset from a seed, the same on every machine.

    \b
    Kinds of prompts:
      chat        a system and a user message
      completion  a text to continue
      tokens      256 token ids in, 128 tokens out, in the form of trtllm-bench
      prefixed    64 token ids after one of 8 prefixes of 1,024, for prefix caches
    """
    from loadgen.workloads.datasets import make

    _write(make(kind, prompts, seed), output, f"{prompts:,} prompts")
    return 0


@command(
    datasets,
    """
# For vllm bench serve
loadgen dataset convert chat-256 vllm.jsonl --to vllm
# For trtllm-bench, with 200 output tokens for every prompt
loadgen dataset convert a.jsonl b.jsonl --to trtllm-bench --output-tokens 200
# Back into loadgen's own format, to standard output
loadgen dataset convert vllm.jsonl - --to loadgen
""",
    name="convert",
)
def convert_dataset(
    file: Annotated[str, argument(kind=DATASET, metavar="FILE", help="Dataset of any tool, or a bundled one.")],
    output: Annotated[str, argument(metavar="OUTPUT", help=OUTPUT_HELP)],
    to: Annotated[Literal["loadgen", "trtllm-bench", "vllm"], option("--to", help="Format to write.")],
    output_tokens: Annotated[
        int | None, option("--output-tokens", kind=COUNT, help="Tokens to request, in place of each line's own number.")
    ] = None,
) -> int:
    """Convert a dataset to the format of another tool.

    The dataset can be in the format of any of the tools.
    """
    from loadgen.workloads.datasets import convert, find_dataset

    lines = list(convert(find_dataset(file), to, output_tokens))
    _write(lines, output, f"{len(lines):,} prompts in the format of {to}")
    return 0


@command(
    datasets,
    """
# A bundled dataset
loadgen dataset inspect chat-256
# A file of your own
loadgen dataset inspect prompts.jsonl
# As JSON
loadgen dataset inspect prompts.jsonl --json
""",
    name="inspect",
)
def inspect_dataset(
    file: Annotated[str, argument(kind=DATASET, metavar="FILE", help="Path, or a bundled dataset such as chat-256.")],
    json: Json = False,
) -> int:
    """Check a dataset and show what it holds."""
    from loadgen.report.dataset import render
    from loadgen.workloads.datasets import find_dataset, inspect

    found = inspect(find_dataset(file))
    show_result(found, json, lambda: render(found))
    return 0


def _write(lines: Iterable[bytes], output: str, what: str) -> None:
    from loadgen.workloads.datasets import write

    if output == "-":
        sys.stdout.buffer.writelines(lines)
    else:
        write(Path(output), lines)
        show(f"{output}: {what}")
