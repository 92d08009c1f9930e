"""``engines doctor --selftest``: does the real engine here behave as its adapter believes?

For owners of an engine that loadgen's authors could not run: it launches the engine with the tiny
model (weights made up by the engine), asks it everything that a sweep asks, measures a small sweep,
stops it, and says of each belief whether it held. It takes a few minutes.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path

from loadgen.engines.launch import Launched, launch, prepare
from loadgen.engines.server import MetricsPage, stream_a_token
from loadgen.engines.spec import EngineSpec
from loadgen.engines.table import ENGINES
from loadgen.errors import LoadgenError
from loadgen.gpus import find_gpus
from loadgen.processes import Interrupts
from loadgen.records import read_records
from loadgen.sweeps.spec import SweepSpec
from loadgen.sweeps.sweep import run_sweep
from loadgen.workloads.prompts import SourceSpec, TokenRange

Say = Callable[[str], None]
INPUT_TOKENS = 32
OUTPUT_TOKENS = 16
CONCURRENCY = 8
REQUESTS = 64


class _Quiet:
    """A listener that says only how the start gets on."""

    def __init__(self, say: Say) -> None:
        self.said = say

    def started(self, *_: object) -> None: ...
    def level_started(self, *_: object) -> None: ...
    def sampled(self, *_: object) -> None: ...
    def level_ended(self, *_: object) -> None: ...


def run_selftest(kind: str, python: str | None, say: Say) -> bool:
    """Runs every check and says its outcome.

    Returns:
        Whether all beliefs held.

    Raises:
        UsageError: the engine is not installed.
    """
    spec = EngineSpec(
        kind=kind,  # type: ignore[arg-type]
        name=kind,
        model="shape:tiny",
        python=python,
        max_seq_len=1024,
        max_batch_size=64,
    )
    outcomes: list[bool] = []

    def check(what: str, held: bool, seen: object = None) -> None:
        outcomes.append(held)
        say(f"{'ok  ' if held else 'FAIL'} {what}" + ("" if held or seen is None else f"; seen: {seen}"))

    with tempfile.TemporaryDirectory(prefix="loadgen-selftest-") as name:
        folder = Path(name)
        try:
            command = prepare(spec, find_gpus()[0])
            say(f"command: {command.shell()}")
            check("the installed version has every option that the adapter uses", True)
            (folder / "engine").mkdir()
            asyncio.run(_endpoints(spec, folder / "engine", say, check))
            _sweep(spec, folder / "sweep", say, check)
        except LoadgenError as error:
            check("the engine starts, serves and stops", False, error)
    say(f"{sum(outcomes)} of {len(outcomes)} held" + ("" if all(outcomes) else "; please report the lines marked FAIL"))
    return all(outcomes)


async def _endpoints(spec: EngineSpec, folder: Path, say: Say, check: Callable[..., None]) -> None:
    """What the control side believes."""
    command = prepare(spec, find_gpus()[0])
    async with launch(spec, command, folder, say=say) as launched:
        check("it starts, is healthy, says who it is, and streams a token", True)
        server = launched.server
        check("/version is the package's version", server.version == command.version, (server.version, command.version))
        check("/v1/models lists the model by its folder's name", command.model in server.models, server.models)
        await _metrics(launched, check)
    ending = launched.ending or {}
    check("it ends by itself on SIGTERM, and leaves nothing behind", not ending.get("killed"), ending)


async def _metrics(launched: Launched, check: Callable[..., None]) -> None:
    page = MetricsPage(launched.url, {}, True, launched.command.kind)
    try:
        await stream_a_token(launched.url, launched.command.model, 60)
        await asyncio.sleep(1)
        values = await page.read()
        missing = ENGINES[launched.command.kind].watched - values.keys()
        check("its metrics page gives what is watched", not missing, f"without {sorted(missing)}: {sorted(values)}")
    finally:
        await page.close()


def _sweep(spec: EngineSpec, output: Path, say: Say, check: Callable[..., None]) -> None:
    """What the wire believes: lengths, counts, ends of streams."""
    tokens = TokenRange(OUTPUT_TOKENS, OUTPUT_TOKENS)
    sweep = SweepSpec(
        command=["loadgen", "engines", "doctor", "--selftest", spec.kind],
        levels=[CONCURRENCY],
        requests=REQUESTS,
        engines=[spec],
        source=SourceSpec(seed=0, input_tokens=TokenRange(INPUT_TOKENS, INPUT_TOKENS), output_tokens=tokens),
        output=output,
    )
    with Interrupts().watching() as interrupts:
        result = run_sweep(sweep, _Quiet(say), interrupts)
    folder, summary = result.runs[0]
    records = list(read_records(folder / "records.jsonl")[0])
    errors = [r.error.message for r in records if r.error]
    check("every request of a small sweep succeeds", not errors, errors[:3])
    good = [r for r in records if r.error is None]
    lengths = {r.output_tokens for r in good}
    check(f"ignore_eos and min_tokens pin the answer to {OUTPUT_TOKENS} tokens", lengths == {OUTPUT_TOKENS}, lengths)
    inputs = {r.input_tokens for r in good}
    check(f"{INPUT_TOKENS} token ids are counted as {INPUT_TOKENS} prompt tokens", inputs == {INPUT_TOKENS}, inputs)
    sources = {r.token_source for r in good}
    check("every event carries a cumulative token count", sources == {"usage_continuous"}, sources)
    sums = {sum(r.event_tokens) == r.output_tokens for r in good}
    check("the tokens of the events add up", sums == {True})
    server = summary.levels[0].server
    if server is not None and server.agrees is not None:
        check("its own counters agree with the records", server.agrees, server)
