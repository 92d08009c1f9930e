"""The waterfall: kernels that were made up, beside a run that was real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from made import engine_with
from made_kernels import MIB, PEAKS, attempt, manifest, samples

from loadgen.analysis.figures import LevelSummary
from loadgen.analysis.measure import summarize_run
from loadgen.analysis.summary import Summary
from loadgen.microbench.cases import Step
from loadgen.microbench.records import KernelRecord, Use, records_of
from loadgen.microbench.steps import decode_step, no_sum, prefill_step
from loadgen.records import Manifest, encode_line, read_manifest, write_json
from loadgen.report import html
from loadgen.report.entry import Entry
from loadgen.report.kernels import render as render_kernels
from loadgen.report.page_data import read_page
from loadgen.report.waterfall import ATTENTION, PROJECTIONS, STEP_KERNELS, Beside, read_beside, render, waterfalls

RUN = Path(__file__).parents[2] / "reports" / "vllm-0.25.1-h200-qwen1.5-4b-levels"


def page_of(run: Manifest, summary: Summary, beside: Beside) -> str:
    return html.render([read_page(Entry(name="run", folder=RUN, manifest=run, summary=summary, beside=beside))])


@pytest.fixture(scope="module")
def level() -> LevelSummary:
    return summarize_run(RUN)[1].levels[1]  # 8 in flight


def case(kernel: str, label: str, step: Step, us: float, **fields: Any) -> Any:
    per_step = 1 if label == "lm_head" else 40
    use = Use(phase=step.phase, sequences=step.sequences, context=step.context, per_step=per_step)
    made = [attempt("triton", us), attempt("eager", us * 1.1, own=False)]
    return samples(*made, kernel=kernel, label=label, uses=[use], params={"step": step.name}, **fields)


def all_cases(level: LevelSummary, us: float) -> list[Any]:
    found = []
    for step in (decode_step(level), prefill_step(level)):
        assert step is not None
        found += [case(name, "", step, us, matrix_dtype=None) for name in (*STEP_KERNELS, ATTENTION[step.phase])]
        found += [case("matmul_bf16", label, step, us) for label in PROJECTIONS]
    return found


def records(cases: list[Any]) -> list[KernelRecord]:
    return [record for one in cases for record in records_of(one, PEAKS)]


def test_gaps_add_up_to_what_was_served(level: LevelSummary) -> None:
    found = waterfalls(Summary(simulated=False, levels=[level]), manifest(), records(all_cases(level, 12)))
    assert [fall.metric for fall in found] == ["tpot", "ttft"]
    for fall in found:
        assert fall.missing == [] and fall.served_s is not None
        assert fall.sheet_roof_s + sum(gap.seconds for gap in fall.gaps) == pytest.approx(fall.served_s)
        assert fall.sheet_roof_s < fall.roof_s < fall.kernels_s
    tpot = found[0]
    assert tpot.served_s == level.tpot_s.mean
    # Ten kernels of 40 a step, and the LM head once.
    assert tpot.kernels_s == pytest.approx((10 * 40 + 1) * 12e-6)
    assert tpot.own_kernels_s == pytest.approx(tpot.kernels_s)
    assert tpot.sheet_roof_s == pytest.approx((10 * 40 + 1) * 41 * MIB / 4800e9)
    assert tpot.roof_s == pytest.approx((10 * 40 + 1) * 41 * MIB / 4200e9)
    names = [gap.name for gap in tpot.gaps]
    assert names == ["below the data sheet", "starting kernels", "kernels above their roof", "time for other prompts",
                     "the engine", "outside the engine"]  # fmt: skip
    # 1 us to start each kernel, of the 1.76 us that each is above its roof.
    assert tpot.gaps[1].seconds == pytest.approx((10 * 40 + 1) * 1e-6)


def test_time_for_other_prompts_is_the_share_that_prefill_takes(level: LevelSummary) -> None:
    tpot, ttft = waterfalls(Summary(simulated=False, levels=[level]), manifest(), records(all_cases(level, 12)))
    share = level.request_throughput_rps * ttft.kernels_s * 7 / 8  # type: ignore[operator]
    assert tpot.served_s is not None
    assert tpot.gaps[3].seconds == pytest.approx(share * tpot.served_s)


def gaps(level: LevelSummary, us: float = 12, **server: float | None) -> tuple[dict[str, float], dict[str, float]]:
    """The named gaps of TPOT and of TTFT outside the kernels; ``server`` replaces what the engine said, None takes it
    away."""
    assert level.server is not None
    changed = msgspec.structs.replace(level, server=msgspec.structs.replace(level.server, **server))
    falls = waterfalls(Summary(simulated=False, levels=[changed]), manifest(), records(all_cases(level, us)))
    for fall in falls:
        assert fall.served_s is not None
        assert fall.kernels_s + sum(gap.seconds for gap in fall.gaps[3:]) == pytest.approx(fall.served_s)
    tpot, ttft = ({gap.name: gap.seconds for gap in fall.gaps[3:]} for fall in falls)
    return tpot, ttft


def test_ttft_is_split_by_the_engines_own_clock(level: LevelSummary) -> None:
    _, ttft = gaps(level)
    server, served = level.server, level.ttft_s.mean
    assert server is not None and served is not None
    assert list(ttft) == ["prefill above kernels", "queue", "to the core and back", "outside the engine"]
    assert ttft["prefill above kernels"] == pytest.approx(server.prefill_s - (10 * 40 + 1) * 12e-6)
    assert ttft["queue"] == server.queue_s
    assert ttft["to the core and back"] == pytest.approx(server.ttft_s - server.queue_s - server.prefill_s)
    assert ttft["outside the engine"] == pytest.approx(served - server.ttft_s)


# Nothing is made up: what the server does not say stays in the one gap.
@pytest.mark.parametrize(
    ("silent", "names"),
    [
        (["ttft_s", "queue_s", "prefill_s"], ["the engine"]),
        (["prefill_s"], ["queue", "the engine", "outside the engine"]),
        (["ttft_s", "prefill_s"], ["queue", "the engine"]),
        (["ttft_s"], ["prefill above kernels", "queue", "the engine"]),
        (["queue_s"], ["prefill above kernels", "the engine", "outside the engine"]),
        (["queue_s", "ttft_s"], ["prefill above kernels", "the engine"]),
    ],
)
def test_what_the_server_does_not_say_has_no_name(level: LevelSummary, silent: list[str], names: list[str]) -> None:
    assert list(gaps(level, **dict.fromkeys(silent))[1]) == names


def test_a_level_without_the_servers_metrics_has_one_gap(level: LevelSummary) -> None:
    blind = msgspec.structs.replace(level, server=None)
    falls = waterfalls(Summary(simulated=False, levels=[blind]), manifest(), records(all_cases(blind, 12)))
    assert [gap.name for gap in falls[0].gaps[3:]] == ["time for other prompts", "the engine"]
    assert [gap.name for gap in falls[1].gaps[3:]] == ["the engine"]


def test_tpot_takes_what_is_outside_from_the_engines_clock(level: LevelSummary) -> None:
    served = level.tpot_s.mean
    assert served is not None
    told, _ = gaps(level, tpot_s=served - 1e-4)
    untold, _ = gaps(level, tpot_s=None)
    assert told["outside the engine"] == pytest.approx(1e-4)
    assert "outside the engine" not in untold
    assert untold["the engine"] == pytest.approx(told["the engine"] + 1e-4)


def test_an_engine_that_says_more_than_was_served_is_not_called_a_cost(level: LevelSummary) -> None:
    served = level.tpot_s.mean
    assert served is not None and level.server is not None
    slow = msgspec.structs.replace(level, server=msgspec.structs.replace(level.server, tpot_s=served + 1e-5))
    tpot, _ = waterfalls(Summary(simulated=False, levels=[slow]), manifest(), records(all_cases(level, 12)))
    assert tpot.gaps[-1].seconds == pytest.approx(-1e-5)
    assert tpot.gaps[-1].why.startswith("none: ")


def test_prefill_below_the_sum_of_its_kernels_is_shown_as_negative(level: LevelSummary) -> None:
    assert gaps(level, prefill_s=1e-3)[1]["prefill above kernels"] < 0


def test_an_engine_below_the_sum_of_its_kernels_is_shown_as_negative(level: LevelSummary) -> None:
    tpot, _ = waterfalls(Summary(simulated=False, levels=[level]), manifest(), records(all_cases(level, 15)))
    engine = next(gap for gap in tpot.gaps if gap.name == "the engine")
    assert engine.seconds < 0 and "fuses or overlaps" in engine.why


def test_without_one_of_its_kernels_there_is_no_sum(level: LevelSummary) -> None:
    cases = [c for c in all_cases(level, 12) if c.label != "down"]
    found = waterfalls(Summary(simulated=False, levels=[level]), manifest(), records(cases))
    assert all(fall.missing == ["matmul_bf16 down"] and not fall.parts for fall in found)
    assert "no sum" in render(found) and "matmul_bf16 down" in render(found)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"argv": ["vllm", "serve", "m", "--tensor-parallel-size", "2"]}, "spread over several GPUs"),
        ({"argv": ["trtllm-serve", "m", "--tp_size=4"]}, "spread over several GPUs"),
        ({"quantization": "fp8"}, "is quantized (fp8)"),
    ],
)
def test_models_that_one_gpus_kernels_do_not_add_up_to(
    level: LevelSummary, tmp_path: Path, engine: dict[str, Any], words: str
) -> None:
    write_json(tmp_path / "manifest.json", manifest())
    (tmp_path / "samples.jsonl").write_bytes(b"".join(encode_line(c) for c in all_cases(level, 12)))
    run = read_manifest(RUN)
    run = msgspec.structs.replace(run, engine=engine_with(run.engine, **engine))
    summary = Summary(simulated=False, levels=[level])
    beside = read_beside(tmp_path, run, summary)
    assert beside is not None and beside.records
    assert all(not fall.parts and not fall.gaps for fall in beside.waterfalls)
    text = render(beside.waterfalls)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert " ".join(text.split()).count(f"no sum: the model {words if 'is' in words else 'was ' + words}") == 2
    page = page_of(run, summary, beside)
    assert page.count(f": no sum: the model {words if 'is' in words else 'was ' + words}") == 2


def test_one_gpu_named_as_such_is_one_gpu(level: LevelSummary) -> None:
    run = read_manifest(RUN)
    alone = engine_with(run.engine, argv=["vllm", "serve", "--tensor-parallel-size", "1"])
    one = msgspec.structs.replace(run, engine=alone)
    assert no_sum(run) is None and no_sum(one) is None
    assert no_sum(msgspec.structs.replace(run, simulated=True)) == "it is SIMULATED: no kernel ran there"


def test_kernels_at_other_sizes_do_not_count(level: LevelSummary) -> None:
    cases = all_cases(level, 12)
    for one in cases:
        one.uses = [msgspec.structs.replace(use, context=use.context + 1) for use in one.uses]
    assert all(
        fall.missing for fall in waterfalls(Summary(simulated=False, levels=[level]), manifest(), records(cases))
    )


def test_refused_and_wrong_kernels_do_not_count(level: LevelSummary) -> None:
    cases = all_cases(level, 12)
    for name in ("triton", "eager"):
        next(a for a in cases[0].attempts if a.name == name).status = "wrong"
    tpot = waterfalls(Summary(simulated=False, levels=[level]), manifest(), records(cases))[0]
    assert tpot.missing == ["add_rms_norm"]


def test_the_best_of_all_implementations_is_the_floor(level: LevelSummary) -> None:
    cases = all_cases(level, 12)
    cases[0].attempts[1].samples_s = [value * 0.88 for value in cases[0].attempts[1].samples_s]
    tpot = waterfalls(Summary(simulated=False, levels=[level]), manifest(), records(cases))[0]
    best = next(part for part in tpot.parts if part.kernel == "add_rms_norm")
    assert best.implementation == "eager"
    assert tpot.own_kernels_s is not None and tpot.own_kernels_s > tpot.kernels_s


def test_text_and_page_show_it(level: LevelSummary, tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.json", manifest())
    (tmp_path / "samples.jsonl").write_bytes(b"".join(encode_line(c) for c in all_cases(level, 12)))
    summary = Summary(simulated=False, levels=[level])
    beside = read_beside(tmp_path, read_manifest(RUN), summary)
    assert beside is not None
    text = render(beside.waterfalls)
    assert all(len(line) <= 80 for line in text.splitlines())
    for word in ("data sheet roof", "measured roof", "sum of kernels", "served TPOT", "served TTFT", "the engine",
                 "to the core and back"):  # fmt: skip
        assert word in text
    table = render_kernels(beside.manifest, beside.records)
    assert all(len(line) <= 80 for line in table.splitlines())
    page = page_of(read_manifest(RUN), summary, beside)
    assert "Kernels beside TTFT and TPOT" in page and "time for other prompts" in page


def test_a_run_without_kernels_has_none(level: LevelSummary, tmp_path: Path) -> None:
    assert read_beside(tmp_path, read_manifest(RUN), Summary(simulated=False, levels=[level])) is None
    write_json(tmp_path / "manifest.json", manifest(peaks=None))  # ended before anything was measured
    assert read_beside(tmp_path, read_manifest(RUN), Summary(simulated=False, levels=[level])) is None
