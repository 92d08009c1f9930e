"""A comparison as text and as Markdown; UPDATE_GOLDEN=1 writes the golden file anew."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadgen.comparison.blocks import FAMILIES, THROUGHPUT
from loadgen.comparison.capacity import Capacities, CapacityRow, Carried
from loadgen.comparison.decisions import Ruling, decide, fail_on
from loadgen.comparison.differences import LAUNCH_SD, Comparison, LevelComparison, SpeedComparison, compare
from loadgen.comparison.effects import Effect
from loadgen.comparison.gate import Finding
from loadgen.comparison.sides import read_side
from loadgen.loads import Closed
from loadgen.report.compare import NAMES, markdown, percent, render, verdict_words
from loadgen.report.terminal import SIMULATED

GOLDEN = Path(__file__).parent / "golden" / "comparison.txt"
REPORTS = Path(__file__).resolve().parents[2] / "reports"
VLLM = "vllm-0.25.1-h200-qwen1.5-4b"
CAVEAT = Finding(weight="limits", name="driver", a="570", b="580", text="the difference is of the drivers too")
SPOILT = Finding(weight="spoils", name="errors", a="0.00%", b="2.50%", text="more than 1% failed", level="8 in flight")


def effects(slower: float, *, latencies: bool = True) -> list[Effect]:
    """Every latency longer by that factor and throughput less, certain to 2 %; p99 is missing."""
    made = []
    for metric, statistic in FAMILIES:
        ratio = 1 / slower if metric == THROUGHPUT else slower
        if statistic == "p99":
            made.append(Effect(metric=metric, statistic=statistic, why="needs 662 requests a round"))
            continue
        a = 2000.0 if metric == THROUGHPUT else 0.0125
        values: dict[str, Any] = {}
        if latencies and statistic != "paired":
            values = {"a": a, "b": a * ratio, "difference": a * (ratio - 1), "difference_ci95": (-a / 50, a / 50)}
        low, high = ratio / 1.02, ratio * 1.02
        made.append(
            Effect(
                metric=metric,
                statistic=statistic,
                ratio=ratio,
                ratio_ci95=(low, high),
                word="slower" if slower > 1.02 else "no detectable difference",
                detectable=0.0284,
                p=0.01,
                **values,
            )
        )
    return made


def carried(low: float, high: float | None, gpus: int = 1) -> Carried:
    def each(factor: float) -> tuple[float, float | None]:
        return low * factor, None if high is None else high * factor

    return Carried(
        capacity_rps=each(1),
        output_tps=each(128),
        capacity_rps_per_gpu=each(1 / gpus),
        output_tps_per_gpu=each(128 / gpus),
    )


CAPACITIES = Capacities(
    slos=["ttft=500ms", "tpot=50ms"],
    attainment=0.99,
    gpus_a=1,
    gpus_b=2,
    rows=[
        CapacityRow(
            slos=["ttft=500ms", "tpot=50ms"],
            a=carried(40, 50),
            b=carried(60, 80, gpus=2),
            ratio=(1.2, 2.0),
            word="B carries more",
            ratio_per_gpu=(0.6, 1.0),
        ),
        CapacityRow(
            slos=["ttft=500ms", "tpot=100ms"],
            tokens_per_s=10,
            a=carried(40, 50),
            b=carried(45, None, gpus=2),
            ratio=(0.9, None),
            ratio_per_gpu=(0.45, None),
            advice="no load broke the SLO: sweep B at more than 45 requests/s",
        ),
        CapacityRow(
            slos=["ttft=500ms", "tpot=50ms"],
            tokens_per_s=20,
            a=Carried(refused="already the lowest load breaks the SLO: 20 requests/s; sweep lower ones"),
            b=carried(60, 80, gpus=2),
        ),
    ],
)


def made(**fields: Any) -> Comparison:
    levels = [
        LevelComparison(
            load=Closed(concurrency=concurrency),
            name=f"{concurrency} in flight",
            rounds=5,
            requests_a=1500,
            requests_b=1400,
            pairs=1390,
            effects=effects(ratio),
        )
        for concurrency, ratio in ((8, 1.1), (64, 1.005))
    ]
    given: dict[str, Any] = {
        "a": "main",
        "b": "candidate",
        "engine_a": "vllm 1.0",
        "engine_b": "vllm 1.1",
        "comparable": True,
        "forced": False,
        "findings": [
            CAVEAT,
            Finding(weight="compared", name="engine", a="vllm 1.0", b="vllm 1.1", text="what is compared"),
        ],
        "only_a": ["256 in flight"],
        "only_b": [],
        "rounds": 5,
        "order": "interleaved",
        "launch_sd": None,
        "simulated": False,
        "levels": levels,
        "overall": effects(1.05, latencies=False),
        "speeds": [
            SpeedComparison(speed_tps=50, a_tps=2100, b_tps=1900, ratio=0.9048, ratio_ci95=(0.88, 0.93)),
            SpeedComparison(speed_tps=100, a_tps=800, b_tps=800, ratio=1.0, ratio_ci95=None),
        ],
        "capacities": CAPACITIES,
    }
    return Comparison(**{**given, **fields})


RULINGS = [
    Ruling(
        condition="tpot_p50>+3%",
        level="8 in flight",
        decision="fails",
        interval=(0.05, 0.15),
        text="between +5% and +15%",
    ),
    Ruling(
        condition="tpot_p50>+3%", level="64 in flight", decision="undecided", interval=None, text="no interval: few"
    ),
]


def test_text_is_the_golden_one() -> None:
    text = render(made(), RULINGS)
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


@pytest.mark.parametrize(
    "comparison",
    [
        made(),
        made(comparable=False, findings=[SPOILT, CAVEAT], levels=[], overall=[], speeds=[]),
        made(capacities=Capacities(slos=["ttft:p99=500ms"], attainment=0.99, refused="no verdicts " * 20)),
        made(comparable=False, forced=True, findings=[SPOILT] * 2, launch_sd=LAUNCH_SD, simulated=True),
        made(findings=[Finding(weight="limits", name="GPU", a="x" * 70, b="y" * 70, text="z " * 60)]),
    ],
)
def test_text_fits_80_columns(comparison: Comparison) -> None:
    assert max(map(len, render(comparison, RULINGS).splitlines())) <= 80


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"findings": []}, "COMPARABLE"),
        ({}, "COMPARABLE, with 1 caveat"),
        ({"findings": [CAVEAT, CAVEAT]}, "COMPARABLE, with 2 caveats"),
        ({"comparable": False, "findings": [SPOILT, CAVEAT, SPOILT]}, "NOT COMPARABLE: errors"),
        (
            {"comparable": False, "forced": True, "findings": [SPOILT]},
            "NOT COMPARABLE: errors. The figures below are shown because of --force",
        ),
    ],
)
def test_the_gate_in_a_line(fields: dict[str, Any], words: str) -> None:
    comparison = made(**fields)
    assert verdict_words(comparison) == words
    assert words in render(comparison).replace("\n  ", " ")
    assert f"**{words}**" in markdown(comparison)


def test_what_spoils_is_said_with_both_values_and_without_figures() -> None:
    text = render(made(comparable=False, findings=[SPOILT], levels=[], overall=[], speeds=[]))
    assert "spoils: 8 in flight: errors: A 0.00%; B 2.50% (more than 1% failed)" in text
    assert "TTFT" not in text
    assert "80 % power" not in text


def test_what_levels_have_alike_is_said_once() -> None:
    other = Finding(**{**{f: getattr(SPOILT, f) for f in SPOILT.__struct_fields__}, "level": "64 in flight"})
    text = render(made(comparable=False, findings=[SPOILT, other]))
    assert text.count("errors: A 0.00%") == 1
    assert "8 in flight; 64 in flight: errors" in text


def test_what_the_intervals_rest_on_is_said() -> None:
    assert "spread over 5 rounds" in render(made())
    assumed = render(made(launch_sd=LAUNCH_SD)).replace("\n  ", " ")
    assert "TTFT 10.0%, TPOT 1.5%, E2E 2.0%, tokens/s 1.5%" in assumed
    assert "--interleave and --rounds 5" in assumed
    assert "what launches differ by is not in them" in render(made(rounds=1)).replace("\n  ", " ")


def test_simulated_figures_are_marked() -> None:
    assert SIMULATED in render(made(simulated=True)) and SIMULATED in markdown(made(simulated=True))
    assert SIMULATED not in render(made()) + markdown(made())


def test_a_missing_figure_says_what_it_needs() -> None:
    assert re.search(r"^TTFT p99 +n/a +needs 662 requests a round$", render(made()), re.MULTILINE)


def test_no_detectable_difference_comes_with_what_could_have_been_seen() -> None:
    assert re.search(r"^TPOT p50 .* none \(2\.8%\)$", render(made()), re.MULTILINE)


@pytest.mark.parametrize(
    ("share", "text"), [(None, "n/a"), (0.0284, "2.8%"), (0.0994, "9.9%"), (0.0996, "10%"), (1, "100%")]
)
def test_percent(share: float | None, text: str) -> None:
    assert percent(share) == text


def test_large_ratios_fit() -> None:
    shown = Effect(
        metric="ttft_s", statistic="mean", a=0.1, b=25.0, difference=24.9, ratio=250.0, ratio_ci95=(240, 260)
    )
    levels = [msgspec.structs.replace(made().levels[0], effects=[shown])]
    text = render(made(levels=levels))
    assert "250.0  [240.0, 260.0]" in text and max(map(len, text.splitlines())) <= 80


def test_rulings_are_said_by_condition() -> None:
    text = render(made(), RULINGS).replace("\n  ", " ")
    assert (
        "--fail-on 'tpot_p50>+3%': FAILS: 8 in flight fails (between +5% and +15%); 64 in flight undecided "
        "(no interval: few)" in text
    )


def test_markdown_tables_have_as_many_cells_in_each_row() -> None:
    text = markdown(made(a="a|b"), RULINGS)
    assert "a&#124;b" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 5
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1


def test_markdown_has_every_figure() -> None:
    text = markdown(made())
    row = next(line for line in text.splitlines() if line.startswith("| TPOT mean"))
    assert row == "| TPOT mean, ms | 12.5 | 13.8 | +1.25 | -0.250 to +0.250 | 1.100 | 1.078 to 1.122 | slower |"
    for metric in {family[0] for family in FAMILIES}:
        assert f"| {NAMES[metric]}" in text


def test_published_runs_are_shown() -> None:
    twice = [read_side(REPORTS / f"{VLLM}-twice" / name) for name in ("vllm", "vllm-2")]
    result = compare(*twice)
    text = render(result, decide(fail_on("tpot_p50>+3%"), result))
    assert "COMPARABLE, with 1 caveat" in text and "slower" not in text
    assert max(map(len, text.splitlines())) <= 80
    prefix = [read_side(REPORTS / f"{VLLM}-prefix-{name}") for name in ("off", "on")]
    text = render(compare(*prefix))
    assert "NOT COMPARABLE: cached tokens" in text
    assert max(map(len, render(compare(*prefix, force=True)).splitlines())) <= 80
