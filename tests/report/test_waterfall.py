"""The waterfall: kernels that were made up, beside a run that was real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from made_kernels import MIB, PEAKS, attempt, manifest, samples

from loadgen.microbench.cases import Step
from loadgen.microbench.records import KernelRecord, Use, records_of
from loadgen.microbench.steps import decode_step, prefill_step
from loadgen.records import encode_line, read_manifest, write_json
from loadgen.report import html
from loadgen.report.kernels import render as render_kernels
from loadgen.report.waterfall import ATTENTION, PROJECTIONS, STEP_KERNELS, read_beside, render, waterfalls
from loadgen.summary import LevelSummary, Summary, summarize_run

RUN = Path(__file__).parents[2] / "reports" / "vllm-0.25.1-h200-qwen1.5-4b-levels"


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
                     "the engine"]  # fmt: skip
    # 1 us to start each kernel, of the 1.76 us that each is above its roof.
    assert tpot.gaps[1].seconds == pytest.approx((10 * 40 + 1) * 1e-6)


def test_time_for_other_prompts_is_the_share_that_prefill_takes(level: LevelSummary) -> None:
    tpot, ttft = waterfalls(Summary(simulated=False, levels=[level]), manifest(), records(all_cases(level, 12)))
    share = level.request_throughput_rps * ttft.kernels_s * 7 / 8  # type: ignore[operator]
    assert tpot.served_s is not None
    assert tpot.gaps[3].seconds == pytest.approx(share * tpot.served_s)


def test_ttft_takes_queue_and_http_from_the_engine(level: LevelSummary) -> None:
    _, ttft = waterfalls(Summary(simulated=False, levels=[level]), manifest(), records(all_cases(level, 12)))
    by_name = {gap.name: gap.seconds for gap in ttft.gaps}
    assert level.server is not None and ttft.served_s is not None
    assert by_name["queue"] == level.server["queue_s"]
    assert by_name["HTTP server"] == pytest.approx(ttft.served_s - level.server["ttft_s"])


def test_an_engine_below_the_sum_of_its_kernels_is_shown_as_negative(level: LevelSummary) -> None:
    tpot, _ = waterfalls(Summary(simulated=False, levels=[level]), manifest(), records(all_cases(level, 15)))
    assert tpot.gaps[-1].name == "the engine" and tpot.gaps[-1].seconds < 0
    assert "fuses or overlaps" in tpot.gaps[-1].why


def test_without_one_of_its_kernels_there_is_no_sum(level: LevelSummary) -> None:
    cases = [c for c in all_cases(level, 12) if c.label != "down"]
    found = waterfalls(Summary(simulated=False, levels=[level]), manifest(), records(cases))
    assert all(fall.missing == ["matmul_bf16 down"] and not fall.parts for fall in found)
    assert "no sum" in render(found) and "matmul_bf16 down" in render(found)


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
    beside = read_beside(tmp_path, summary)
    assert beside is not None
    text = render(beside.waterfalls)
    assert all(len(line) <= 80 for line in text.splitlines())
    for word in ("data sheet roof", "measured roof", "sum of kernels", "served TPOT", "served TTFT", "the engine"):
        assert word in text
    table = render_kernels(beside.manifest, beside.records)
    assert all(len(line) <= 80 for line in table.splitlines())
    page = html.render(read_manifest(RUN), summary, beside)
    assert "Kernels beside TTFT and TPOT" in page and "time for other prompts" in page
    assert "<script" not in page


def test_a_run_without_kernels_has_none(level: LevelSummary, tmp_path: Path) -> None:
    assert read_beside(tmp_path, Summary(simulated=False, levels=[level])) is None
    write_json(tmp_path / "manifest.json", manifest(peaks=None))  # ended before anything was measured
    assert read_beside(tmp_path, Summary(simulated=False, levels=[level])) is None
