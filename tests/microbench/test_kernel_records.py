"""Records from samples: figures, ratios, refusals and doubts. No GPU: the samples are made up."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from made_kernels import MIB, PEAKS, attempt, manifest, samples

from loadgen.errors import RunFolderError
from loadgen.microbench.records import (
    Attempt,
    KernelTimes,
    clock_figures,
    compare_pairs,
    is_kernel_folder,
    memory_bytes,
    read_kernel_manifest,
    read_samples,
    records_of,
)
from loadgen.microbench.rotation import Rotation
from loadgen.records import encode_line, write_json


def test_figures_follow_from_the_median() -> None:
    record = records_of(samples(attempt("triton", 20)), PEAKS)[0]
    assert record.status == "ok"
    assert record.time_s == pytest.approx(20e-6)
    assert record.bytes_per_s == pytest.approx(41 * MIB / 20e-6)
    assert record.flops_per_s == pytest.approx(1e9 / 20e-6)
    assert record.copy_share == pytest.approx(41 * MIB / 20e-6 / 4e12)
    # The roof is the slower of memory, at the faster of the two rates measured, and the matrix units.
    assert record.roof_s == pytest.approx(41 * MIB / 4.2e12)
    assert record.roof_share == pytest.approx(41 * MIB / 4.2e12 / 20e-6)
    assert record.ci95_s is not None and record.ci95_s[0] <= 20e-6 <= record.ci95_s[1]
    assert record.windows == 40 and record.calls == 98


def test_compute_bound_roof_is_of_the_matrix_units() -> None:
    record = records_of(samples(attempt("triton", 2000), flops=1e12), PEAKS)[0]
    assert record.roof_s == pytest.approx(1e12 / 700e12)
    unlimited = records_of(samples(attempt("triton", 2000), flops=1e12, matrix_dtype=None), PEAKS)[0]
    assert unlimited.roof_s == pytest.approx(41 * MIB / 4.2e12)


def test_ratio_is_to_the_best_baseline_that_is_right() -> None:
    found = records_of(
        samples(
            attempt("triton", 20),
            attempt("eager", 30, own=False),
            attempt("compile", 25, own=False),
            attempt("vllm", 5, own=False, status="wrong", message="off"),
        ),
        PEAKS,
    )
    ratio = found[0].best_baseline
    assert ratio is not None and ratio.baseline == "compile"
    assert ratio.ratio == pytest.approx(1.25) and ratio.word == "faster"
    assert ratio.ci95[0] <= 1.25 <= ratio.ci95[1]
    # The best baseline is compared with nobody, and what is wrong has no figure at all.
    assert found[2].best_baseline is None
    assert found[3].status == "wrong" and found[3].time_s is None and found[3].bytes_per_s is None


@pytest.mark.parametrize(("factor", "word"), [(1.02, "faster"), (0.98, "slower"), (1.0, "same")])
def test_the_word_is_decided_on_the_interval(factor: float, word: str) -> None:
    own = [1.0 + 0.01 * math.sin(i) for i in range(40)]
    other = [factor * (1.0 + 0.01 * math.cos(i)) for i in range(40)]
    ratio = compare_pairs(own, other, "eager")
    assert ratio is not None and ratio.word == word


def test_windows_too_few_for_an_interval_give_no_ratio() -> None:
    assert compare_pairs([1.0, 1.0], [1.1, 1.1], "eager") is None
    assert compare_pairs([], [], "eager") is None


def test_more_than_the_memory_can_do_is_refused() -> None:
    record = records_of(samples(attempt("triton", 9)), PEAKS)[0]  # 40 MiB in 9 us: 4,660 GB/s
    assert record.status == "impossible"
    assert record.time_s is None and record.roof_share is None
    assert record.message is not None and "4,660 GB/s" in record.message and "4,200" in record.message


def test_more_than_the_matrix_units_can_do_is_refused() -> None:
    record = records_of(samples(attempt("triton", 100), flops=80e9), PEAKS)[0]
    assert record.status == "impossible"
    assert record.message is not None and "800 TFLOP/s" in record.message


def test_within_five_percent_of_the_peak_is_not_refused() -> None:
    assert records_of(samples(attempt("triton", 40 * MIB / (4.2e12 * 1.04) * 1e6)), PEAKS)[0].status == "ok"


def test_what_is_in_the_cache_is_not_held_against_the_memory() -> None:
    small = Rotation(
        sets=100, calls=100, set_bytes=5120, touched_bytes=5120, cache_bytes=60 * MIB, flush_bytes=240 * MIB
    )
    # 80 MiB of activations that stay: the cache holds most of them.
    record = records_of(
        samples(attempt("triton", 9), bytes=80.0 * MIB, rotation=small, staying_bytes=80 * MIB, flops=0), PEAKS
    )[0]
    assert record.status == "ok"
    assert record.copy_share is not None and record.copy_share > 1
    assert any("mostly in the cache" in note for note in record.notes)


def test_activations_far_beyond_the_cache_count_as_memory_traffic() -> None:
    small = Rotation(
        sets=100, calls=100, set_bytes=5120, touched_bytes=5120, cache_bytes=60 * MIB, flush_bytes=240 * MIB
    )
    large = samples(attempt("triton", 40), bytes=240.0 * MIB, rotation=small, staying_bytes=240 * MIB)
    assert memory_bytes(large) == 240 * MIB
    assert records_of(large, PEAKS)[0].status == "impossible"


def test_hot_has_no_roof() -> None:
    hot = Rotation(sets=1, calls=98, set_bytes=0, touched_bytes=0, cache_bytes=60 * MIB)
    record = records_of(samples(attempt("triton", 5), state="hot", rotation=hot, staying_bytes=41 * MIB), PEAKS)[0]
    assert record.status == "ok" and record.roof_s is None and record.roof_share is None


def test_timers_that_disagree_are_named() -> None:
    slow = attempt("triton", 20, cupti=KernelTimes(call_s=15e-6, names={"k": 2}), wall_s=60e-6)
    notes = " / ".join(records_of(samples(slow), PEAKS)[0].notes)
    assert "launch-bound: 5.0 us of a call lie between its 2 kernel(s)" in notes
    assert "60.0 us of host time" in notes
    agreeing = attempt("triton", 20, cupti=KernelTimes(call_s=19.5e-6, names={"k": 1}), wall_s=21e-6)
    assert records_of(samples(agreeing), PEAKS)[0].notes == []


def test_a_time_that_moves_is_named_and_is_not_called_launch_bound() -> None:
    """A matrix product that runs into the power limit; CUPTI looked at it when the card had rested."""
    moving = attempt("triton", 173, cupti=KernelTimes(call_s=172e-6, names={"k": 1}), wall_s=207e-6)
    moving.samples_s = [173e-6] * 15 + [205e-6] * 25
    record = records_of(samples(moving, flops=100e9), PEAKS)[0]
    assert record.time_s == 205e-6
    assert record.notes == ["its time moved between 173.0 and 205.0 us while it was timed"]


def test_overlapping_kernels_are_named() -> None:
    overlapping = attempt("triton", 20, cupti=KernelTimes(call_s=30e-6, names={"k": 1}))
    assert any("overlap" in note for note in records_of(samples(overlapping), PEAKS)[0].notes)


def test_a_rotation_that_proves_nothing_is_a_warm_cache() -> None:
    warm = Rotation(sets=3, calls=99, set_bytes=40 * MIB, touched_bytes=40 * MIB, cache_bytes=60 * MIB)
    assert any(
        "warm cache" in note for note in records_of(samples(attempt("triton", 20), rotation=warm), PEAKS)[0].notes
    )


def test_throttling_is_named_and_a_power_cap_is_kept() -> None:
    readings = [
        {"sm_clock_mhz": 1980, "power_w": 690.0, "throttle": ["power cap"]},
        {"sm_clock_mhz": 1500, "power_w": 700.0, "throttle": ["power cap", "hardware thermal"]},
    ]
    record = records_of(samples(attempt("triton", 20), clocks=readings), PEAKS)[0]
    assert record.clocks["throttle"] == {"power cap": 1.0, "hardware thermal": 0.5}
    assert "throttled: hardware thermal" in record.notes
    assert any("between 1,500 and 1,980 MHz" in note for note in record.notes)


def test_clock_figures_leave_out_what_nvml_does_not_say() -> None:
    assert clock_figures([{"sm_clock_mhz": None}]) == {}
    assert clock_figures([]) == {}
    assert clock_figures([{"power_w": 1.0}, {"power_w": 3.0}])["power_w_mean"] == 2.0


def test_failures_are_records_too() -> None:
    lost = Attempt(name="cuda", own=True, status="out_of_memory", message="tried to allocate 3 GiB")
    record = records_of(samples(lost, rotation=None), PEAKS)[0]
    assert record.status == "out_of_memory" and record.message == "tried to allocate 3 GiB" and record.time_s is None


def test_a_folder_survives_a_round_trip(tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.json", manifest())
    kept = samples(attempt("triton", 20), attempt("eager", 30, own=False))
    (tmp_path / "samples.jsonl").write_bytes(encode_line(kept) + b'{"kernel": "cut')
    assert is_kernel_folder(tmp_path)
    assert read_kernel_manifest(tmp_path) == manifest()
    assert read_samples(tmp_path) == [kept]


def test_other_folders_are_refused(tmp_path: Path) -> None:
    assert not is_kernel_folder(tmp_path)
    with pytest.raises(RunFolderError, match="a folder of loadgen kernels bench"):
        read_kernel_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text('["x"]')
    assert not is_kernel_folder(tmp_path)
    with pytest.raises(RunFolderError):
        read_kernel_manifest(tmp_path)
    write_json(tmp_path / "manifest.json", manifest(format_version=9))
    with pytest.raises(RunFolderError, match="upgrade"):
        read_kernel_manifest(tmp_path)
