"""GPUs through a stand-in for NVML, and what their samples amount to."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from made import MS

from loadgen import gpus
from loadgen.analysis.gpu_figures import gpu_figures
from loadgen.gpus import ARCHITECTURES, DATA_SHEETS, Gpu, GpuReading, GpuSample, MigSlice, data_sheet, find_gpus, nvml

FAKE = Path(__file__).parent / "fakes" / "nvml"
GIB = 2**30

H200: dict[str, Any] = {
    "name": "NVIDIA H200",
    "uuid": "GPU-h200",
    "memory": 141 * GIB,
    "used": 3 * GIB,
    "capability": [9, 0],
    "power_mw": 412_500,
    "power_limit_mw": 700_000,
    "energy_mj": 9_000_250,
    "temperature": 61,
    "utilization": [97, 55],
    "throttle": 0x4 | 0x20 | 0x1,
    "clocks": {"sm": 1755, "memory": 3201},
    "max_clocks": {"sm": 1980, "memory": 3201},
    "bus_width": 6144,
    "mig": False,
    "processes": [{"pid": 4711, "memory": 2 * GIB}, {"pid": 4712, "memory": None}],
}
A100: dict[str, Any] = {
    "name": "NVIDIA A100-SXM4-40GB",
    "uuid": "GPU-a100",
    "memory": 40 * GIB,
    "capability": [8, 0],
    "power_mw": 90_000,
    "energy_mj": 1_000,
    "clocks": {"sm": 1410, "memory": 1215},
    "mig": [
        {"uuid": "MIG-1", "name": "NVIDIA A100-SXM4-40GB MIG 1g.5gb", "memory": 5 * GIB},
        None,
        {"uuid": "MIG-3", "name": "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "memory": 20 * GIB},
    ],
}
T4 = {
    "name": "Tesla T4",
    "uuid": "GPU-t4",
    "memory": 15 * GIB,
    "capability": [7, 5],
    "power_mw": 30_000,
    "clocks": {"sm": 1590, "memory": 5000},
    "max_clocks": {"sm": 1590, "memory": 5001},
    "bus_width": 256,
}
SILENT = {"name": "NVIDIA GeForce GT 1030", "uuid": "GPU-1030", "memory": 2 * GIB, "capability": [6, 1]}

Cards = Callable[..., Path]


def stand_in() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pynvml", FAKE / "pynvml.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cards:
    """Puts these cards into the host; again, to change them."""
    path = tmp_path / "nvml.json"
    monkeypatch.setitem(sys.modules, "pynvml", stand_in())
    monkeypatch.setenv("FAKE_NVML", str(path))

    def put(*found: dict[str, Any]) -> Path:
        path.write_text(json.dumps(found))
        return path

    return put


# --- the stand-in itself


def names_used() -> set[str]:
    """What loadgen/gpus.py takes from pynvml, which it calls ``pynvml``, ``lib`` or ``self._lib``."""
    tree = ast.parse(Path(gpus.__file__).read_text())
    attributes = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return {
        node.attr
        for node in attributes
        if (isinstance(node.value, ast.Name) and node.value.id in ("lib", "pynvml"))
        or (isinstance(node.value, ast.Attribute) and node.value.attr == "_lib")
    }


def test_every_name_that_is_used_is_in_the_real_library() -> None:
    real = pytest.importorskip("pynvml")
    used = names_used()
    assert len(used) > 20
    assert {name for name in used if not hasattr(real, name)} == set()


def test_the_stand_in_has_the_names_that_are_used_and_no_others() -> None:
    fake = stand_in()
    offered = {name for name in vars(fake) if name.lower().startswith("nvml")}
    errors = {name for name in offered if name.startswith("NVMLError_")}
    assert offered - errors == names_used()


def test_the_stand_in_is_like_the_real_library() -> None:
    real, fake = pytest.importorskip("pynvml"), stand_in()
    names = [name for name in vars(fake) if name.lower().startswith("nvml")]
    assert len(names) > 20
    for name in names:
        theirs, ours = getattr(real, name), getattr(fake, name)
        if name.startswith("NVML_"):
            assert ours == theirs
        elif name.startswith("NVMLError"):
            assert issubclass(theirs, real.NVMLError) and issubclass(ours, fake.NVMLError)
        else:
            # As the signatures differ in names and defaults, only how many have to be given is compared.
            inspect.signature(theirs).bind(*inspect.signature(ours).parameters)


def test_a_process_of_its_own_finds_the_cards_through_pythonpath(cards: Cards) -> None:
    code = "import msgspec; from loadgen.gpus import find_gpus; print(msgspec.json.encode(find_gpus()).decode())"
    environ = {**os.environ, "PYTHONPATH": str(FAKE), "FAKE_NVML": str(cards(H200, A100))}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert msgspec.json.decode(done.stdout, type=tuple[list[Gpu], str]) == find_gpus()
    del environ["FAKE_NVML"]
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "[[],null]\n"


# --- data sheets


@pytest.mark.parametrize(
    ("name", "bandwidth_gbs", "bf16_tflops", "fp8_tflops"),
    [
        ("NVIDIA B200", 8000, 2250, 4500),
        ("NVIDIA GB200", 8000, 2500, 5000),
        ("NVIDIA H200", 4800, 989, 1979),
        ("NVIDIA H200 MIG 1g.18gb", 4800, 989, 1979),
        ("NVIDIA H100 80GB HBM3", 3350, 989, 1979),
        ("NVIDIA H100 PCIe", 2000, 756, 1513),
        ("NVIDIA A100-SXM4-80GB", 2039, 312, None),
        ("NVIDIA A100-SXM4-40GB", 1555, 312, None),
        ("NVIDIA A100-PCIE-40GB", 1555, 312, None),
        ("NVIDIA A100 80GB PCIe", 1935, 312, None),
        ("NVIDIA A30", 933, 165, None),
        ("NVIDIA L40S", 864, 362, 733),
        ("NVIDIA L4", 300, 121, 242),
        ("NVIDIA GeForce RTX 3090", 936, 71, None),
        ("Tesla V100-SXM2-16GB", 900, None, None),
    ],
)
def test_data_sheet_is_found_by_the_name(
    name: str, bandwidth_gbs: float, bf16_tflops: float | None, fp8_tflops: float | None
) -> None:
    sheet = data_sheet(name)
    assert sheet is not None
    assert (sheet.bandwidth_gbs, sheet.bf16_tflops, sheet.fp8_tflops) == (bandwidth_gbs, bf16_tflops, fp8_tflops)


@pytest.mark.parametrize("name", ["Tesla T4", "NVIDIA A10", "NVIDIA H20", "NVIDIA GeForce RTX 4090", ""])
def test_a_card_that_is_not_listed_has_no_data_sheet(name: str) -> None:
    assert data_sheet(name) is None


@pytest.mark.parametrize(
    ("name", "published_gbs"),
    [
        ("NVIDIA L40", 864),
        ("NVIDIA GH200 480GB", 4000),
        ("NVIDIA H100 NVL", 3938),
        ("NVIDIA RTX A3000 Laptop GPU", 264),
        ("NVIDIA GeForce RTX 3090 Ti", 1008),
    ],
)
def test_a_card_is_not_taken_for_one_whose_name_is_in_its_own(name: str, published_gbs: float) -> None:
    sheet = data_sheet(name)
    assert sheet is None or sheet.bandwidth_gbs == pytest.approx(published_gbs, rel=0.03)


def test_no_data_sheet_hides_another() -> None:
    pieces = [piece for piece, _ in DATA_SHEETS]
    assert [piece for piece, sheet in DATA_SHEETS if data_sheet(f"NVIDIA {piece}") is not sheet] == []
    assert len(pieces) == len(set(pieces))


# --- what is there


def test_h200_as_nvml_describes_it(cards: Cards) -> None:
    cards(H200)
    found, driver = find_gpus()
    assert driver == "580.65.06"
    assert found == [
        Gpu(
            index=0,
            uuid="GPU-h200",
            name="NVIDIA H200",
            memory_bytes=141 * GIB,
            memory_used_bytes=3 * GIB,
            compute_capability=(9, 0),
            architecture="Hopper",
            bandwidth_gbs=4800,
            bf16_tflops=989,
            fp8_tflops=1979,
            int8_tops=1979,
            power_limit_w=700,
            sm_clock_mhz=1755,
            max_sm_clock_mhz=1980,
            memory_clock_mhz=3201,
            processes=[{"pid": 4711, "memory_bytes": 2 * GIB}, {"pid": 4712, "memory_bytes": None}],
        )
    ]


def test_a100_with_slices(cards: Cards) -> None:
    cards(H200, A100)
    gpu = find_gpus()[0][1]
    assert (gpu.index, gpu.architecture, gpu.fp8_tflops, gpu.mig_enabled) == (1, "Ampere", None, True)
    # The place between them is empty.
    assert gpu.mig_slices == [
        MigSlice(uuid="MIG-1", name="NVIDIA A100-SXM4-40GB MIG 1g.5gb", memory_bytes=5 * GIB),
        MigSlice(uuid="MIG-3", name="NVIDIA A100-SXM4-40GB MIG 3g.20gb", memory_bytes=20 * GIB),
    ]


def test_mig_that_is_on_and_has_no_slice(cards: Cards) -> None:
    cards({**A100, "mig": []})
    (gpu,), _ = find_gpus()
    assert (gpu.mig_enabled, gpu.mig_slices) == (True, [])


def test_bandwidth_of_a_card_without_data_sheet_is_that_of_its_bus(cards: Cards) -> None:
    cards(T4)
    (gpu,), _ = find_gpus()
    # 32 bytes, 5,001 MHz, two transfers a clock: the 320 GB/s of the T4.
    assert gpu.bandwidth_gbs == pytest.approx(320.064)
    assert (gpu.architecture, gpu.bf16_tflops, gpu.int8_tops) == ("Turing", None, None)


def test_what_a_card_does_not_say_is_unknown(cards: Cards) -> None:
    cards(SILENT)
    assert find_gpus()[0] == [
        Gpu(
            index=0,
            uuid="GPU-1030",
            name="NVIDIA GeForce GT 1030",
            memory_bytes=2 * GIB,
            memory_used_bytes=0,
            compute_capability=(6, 1),
            architecture="unknown",
        )
    ]
    with nvml() as session:
        assert session is not None
        assert session.sample(0).gpus == [GpuReading(uuid="GPU-1030", memory_used_bytes=0)]


@pytest.mark.parametrize(("version", "text"), [(13000, "13.0"), (12080, "12.8"), (11040, "11.4")])
def test_newest_cuda_of_the_driver(version: int, text: str, cards: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    cards(H200)
    monkeypatch.setattr(sys.modules["pynvml"], "CUDA", version)
    with nvml() as session:
        assert session is not None
        assert session.cuda == text


def test_architectures_are_in_order() -> None:
    assert list(ARCHITECTURES) == sorted(ARCHITECTURES)


# --- samples


def test_sample_has_every_reading_in_our_units(cards: Cards) -> None:
    cards(H200)
    with nvml() as session:
        assert session is not None
        sample = session.sample(3)
    assert sample.level == 3
    assert sample.gpus == [
        GpuReading(
            uuid="GPU-h200",
            power_w=412.5,
            energy_j=9000.25,
            sm_clock_mhz=1755,
            memory_clock_mhz=3201,
            temperature_c=61,
            utilization=0.97,
            memory_utilization=0.55,
            memory_used_bytes=3 * GIB,
            throttle=["power cap", "software thermal"],
        )
    ]


def test_samples_are_new_readings_of_the_cards_asked_for(cards: Cards) -> None:
    cards(H200, A100, T4)
    with nvml() as session:
        assert session is not None
        first = session.sample(0, {"GPU-t4", "GPU-h200", "GPU-gone"})
        cards(H200, A100, {**T4, "power_mw": 55_000})
        second = session.sample(0, {"GPU-t4"})
    assert [(gpu.uuid, gpu.power_w) for gpu in first.gpus] == [("GPU-h200", 412.5), ("GPU-t4", 30)]
    assert [(gpu.uuid, gpu.power_w) for gpu in second.gpus] == [("GPU-t4", 55)]
    assert second.t_ns > first.t_ns


@pytest.mark.parametrize(
    ("bits", "reasons"),
    [(0, []), (0x1 | 0x2, []), (0x40, ["hardware thermal"]), (0x88, ["hardware slowdown", "power brake"])],
    ids=["none", "idle and application clocks", "one", "two"],
)
def test_throttle_reasons(bits: int, reasons: list[str], cards: Cards) -> None:
    cards({**H200, "throttle": bits})
    with nvml() as session:
        assert session is not None
        assert session.sample(0).gpus[0].throttle == reasons


def test_a_card_that_falls_off_the_bus_ends_no_run(cards: Cards) -> None:
    cards(H200, T4)
    with nvml() as session:
        assert session is not None
        cards({**H200, "lost": True}, T4)
        sample = session.sample(0)
    assert "GPU-t4" in [gpu.uuid for gpu in sample.gpus]
    assert not any(gpu.power_w for gpu in sample.gpus if gpu.uuid != "GPU-t4")


# --- no driver


def test_without_a_driver_there_are_no_gpus(cards: Cards, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAKE_NVML")
    with nvml() as session:
        assert session is None
    assert find_gpus() == ([], None)


def test_without_the_library_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert find_gpus() == ([], None)


def test_session_is_closed_also_after_a_failure(cards: Cards) -> None:
    cards(H200)
    context = nvml()
    session = context.__enter__()
    assert session is not None and len(session.gpus()) == 1
    assert not context.__exit__(KeyError, KeyError(), None)
    with pytest.raises(sys.modules["pynvml"].NVMLError):
        session.gpus()


# --- a level of samples

WINDOW = (500 * MS, 2500 * MS)


def samples(**readings: list[Any]) -> list[GpuSample]:
    """One card, a sample a second from 0 on, with these values of these fields; the window is 0.5 to 2.5 s."""
    rows = [dict(zip(readings, values, strict=True)) for values in zip(*readings.values(), strict=True)]
    return [
        GpuSample(t_ns=1000 * second * MS, level=0, gpus=[GpuReading(uuid="a", **row)])
        for second, row in enumerate(rows)
    ]


def beside(first: list[GpuSample], second: list[GpuSample]) -> list[GpuSample]:
    """Both cards in the same samples; the second is called b."""
    return [
        msgspec.structs.replace(one, gpus=[*one.gpus, *[msgspec.structs.replace(gpu, uuid="b") for gpu in other.gpus]])
        for one, other in zip(first, second, strict=True)
    ]


def figures(taken: list[GpuSample], tokens: float | None = 800) -> dict[str, Any]:
    found = gpu_figures(taken, *WINDOW, tokens)
    assert found is not None
    figures: dict[str, Any] = msgspec.to_builtins(found)
    return figures


def test_energy_is_interpolated_between_the_samples_around_the_window() -> None:
    # 1,050 J at 0.5 s and 1,450 J at 2.5 s; the power is not needed for it.
    found = figures(samples(energy_j=[1000, 1100, 1300, 1600], power_w=[9999, 9999, 9999, 9999]))
    assert found["devices"][0]["energy_j"] == pytest.approx(400)
    assert found["energy_per_output_token_j"] == pytest.approx(0.5)


@pytest.mark.parametrize("counter", [[None] * 4, [None, 1100, None, None]], ids=["no counter", "one reading"])
def test_energy_without_a_counter_is_mean_power_times_the_window(counter: list[float | None]) -> None:
    found = figures(samples(energy_j=counter, power_w=[100, 200, 300, 400]))
    assert found["devices"][0]["energy_j"] == pytest.approx(250 * 2)
    assert found["energy_per_output_token_j"] == pytest.approx(500 / 800)


def test_readings_that_a_card_left_out_are_left_out() -> None:
    found = figures(samples(energy_j=[1000, None, None, 1600], power_w=[None, None, 300, None]))
    # 200 J a second.
    assert found["devices"][0]["energy_j"] == pytest.approx(400)
    assert found["devices"][0]["power_w"] == {"mean": 300, "min": 300, "max": 300}


def test_states_are_of_the_samples_in_the_window() -> None:
    (device,) = figures(samples(sm_clock_mhz=[100, 1400, 1200, 9999], temperature_c=[0, 60, 61, 99]))["devices"]
    assert (device["uuid"], device["samples"]) == ("a", 2)
    assert device["sm_clock_mhz"] == {"mean": 1300, "min": 1200, "max": 1400}
    assert device["temperature_c"] == {"mean": 60.5, "min": 60, "max": 61}
    assert "power_w" not in device


def test_throttling_is_a_share_of_the_samples_in_the_window() -> None:
    cap, heat = "power cap", "hardware thermal"
    taken = [
        GpuSample(t_ns=ms * MS, level=0, gpus=[GpuReading(uuid="a", throttle=reasons)])
        for ms, reasons in [(0, [heat]), (600, [cap]), (1000, [cap, heat]), (1500, [cap]), (2000, []), (2600, [heat])]
    ]
    assert figures(taken)["devices"][0]["throttle"] == {"power cap": 0.75, "hardware thermal": 0.25}
    assert figures(samples(power_w=[1, 1, 1]))["devices"][0]["throttle"] == {}


def test_energy_per_token_is_of_all_cards_together() -> None:
    two = beside(samples(energy_j=[1000, 1100, 1300, 1600]), samples(energy_j=[0, 100, 200, 300]))
    found = figures(two)
    assert [device["uuid"] for device in found["devices"]] == ["a", "b"]
    assert found["energy_per_output_token_j"] == pytest.approx((400 + 200) / 800)


@pytest.mark.parametrize("tokens", [None, 0])
def test_energy_per_token_of_no_tokens_is_unknown(tokens: float | None) -> None:
    found = figures(samples(energy_j=[1000, 1100, 1300, 1600]), tokens)
    assert found["energy_per_output_token_j"] is None
    assert found["devices"][0]["energy_j"] == pytest.approx(400)


def test_energy_per_token_is_unknown_when_one_cards_energy_is() -> None:
    two = beside(samples(energy_j=[1000, 1100, 1300, 1600]), samples(temperature_c=[50, 50, 50, 50]))
    assert figures(two)["energy_per_output_token_j"] is None


def test_a_card_without_a_sample_in_the_window_is_left_out() -> None:
    taken = samples(power_w=[100, 200, 300, 400])
    taken[0].gpus.append(GpuReading(uuid="late", power_w=1))
    assert [device["uuid"] for device in figures(taken)["devices"]] == ["a"]


@pytest.mark.parametrize("taken", [[], samples(power_w=[100]), [GpuSample(t_ns=1000 * MS, level=0, gpus=[])]])
def test_without_samples_in_the_window_there_are_no_figures(taken: list[GpuSample]) -> None:
    assert gpu_figures(taken, *WINDOW, 800) is None
