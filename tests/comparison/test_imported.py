"""Results of ``vllm bench serve`` as sides; tests/compare/imported holds one written by hand."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from loadgen.cli.main import app
from loadgen.comparison.blocks import THROUGHPUT
from loadgen.comparison.differences import Comparison, compare
from loadgen.comparison.effects import NO_DETAIL
from loadgen.comparison.imported import import_side, is_imported
from loadgen.errors import UsageError
from loadgen.loads import AllAtOnce, Closed, Open
from loadgen.report.compare import markdown, render

EXAMPLE = Path(__file__).parent / "imported" / "closed-2.json"
RUN = Path(__file__).parents[2] / "reports" / "vllm-0.25.1-h200-qwen1.5-4b-twice" / "vllm"


def result(
    slots: int | None = 8, requests: int = 600, slower: float = 1.0, seed: int = 1, **fields: Any
) -> dict[str, Any]:
    """A closed loop of so many slots, in which each request takes 50 to 70 ms and 20 gaps of 9 to 11 ms."""
    rng = random.Random(seed)
    ttfts = [slower * rng.uniform(0.05, 0.07) for _ in range(requests)]
    itls = [[slower * rng.uniform(0.009, 0.011) for _ in range(20)] for _ in range(requests)]
    free = [0.0] * (slots or requests)
    starts = []
    for ttft, gaps in zip(ttfts, itls, strict=True):
        slot = free.index(min(free))
        starts.append(1000.0 + free[slot])
        free[slot] += ttft + sum(gaps)
    duration = max(free)
    made: dict[str, Any] = {
        "date": "20260105-101500", "endpoint_type": "openai", "backend": "openai", "label": None, "model_id": "m",
        "num_prompts": requests, "request_rate": "inf", "burstiness": 1.0, "max_concurrency": slots,
        "duration": duration, "completed": requests, "failed": 0, "total_input_tokens": 100 * requests,
        "total_output_tokens": 21 * requests, "request_throughput": requests / duration,
        "output_throughput": 21 * requests / duration, "total_token_throughput": 121 * requests / duration,
        "input_lens": [100] * requests, "output_lens": [21] * requests, "ttfts": ttfts, "itls": itls,
        "start_times": starts, "generated_texts": [""] * requests, "errors": [""] * requests,
        "mean_ttft_ms": 1e3 * sum(ttfts) / requests, "median_ttft_ms": 1e3 * sorted(ttfts)[requests // 2],
        "mean_tpot_ms": 10.0 * slower, "median_tpot_ms": 10.0 * slower, "p99_tpot_ms": 0.0,
    }  # fmt: skip
    return {**made, **fields}


def saved(folder: Path, name: str, *results: dict[str, Any], without: tuple[str, ...] = ()) -> Path:
    kept = [{key: value for key, value in one.items() if key not in without} for one in results]
    path = folder / name
    path.write_text("\n".join(json.dumps(one) for one in kept))
    return path


DETAILS = ("input_lens", "output_lens", "start_times", "ttfts", "itls", "generated_texts", "errors")


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["compare", *words], standalone_mode=False)


def weights(found: Comparison) -> dict[str, str]:
    return {finding.name: finding.weight for finding in found.findings}


def test_a_file_that_was_written_by_hand() -> None:
    (level,) = import_side(EXAMPLE).levels
    sample = level.sample
    assert level.load == Closed(concurrency=2)
    assert level.verdict == []
    assert sample.sent_s.tolist() == pytest.approx([0.0, 0.0, 0.5, 0.7])
    assert sample.failed.tolist() == [False, False, False, True]
    assert sample.latencies["ttft_s"][:3].tolist() == pytest.approx([0.1, 0.2, 0.1])
    assert sample.latencies["e2e_s"][:3].tolist() == pytest.approx([0.5, 0.7, 0.4])
    assert sample.latencies["tpot_s"][:3].tolist() == pytest.approx(
        [0.4 / 4, 0.5 / 5, 0.3 / 2]
    )  # five, six and three tokens
    assert np.isnan(sample.latencies["ttft_s"][3]) and np.isnan(sample.input_tokens[3])
    assert sample.tokens.sum() == 14 == sum([5, 6, 3])
    assert sample.tokens_per_event is None and sample.cached_share is None
    # Five tokens in five events, six in three, three in two: what came in the first half second.
    first_half = sample.tokens[: len(sample.tokens) // 2]
    assert first_half.sum() == pytest.approx(4 + 2 + 2)


def test_without_send_times_they_follow_from_the_slots() -> None:
    whole = import_side_of(result(slots=4))
    older = import_side_of({key: value for key, value in result(slots=4).items() if key != "start_times"})
    assert older.levels[0].sample.sent_s == pytest.approx(whole.levels[0].sample.sent_s, abs=1e-6)
    assert (whole.unknown, older.unknown) == ([], ["send times"])


def import_side_of(value: dict[str, Any]) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return import_side(saved(Path(folder), "r.json", value))


@pytest.mark.parametrize(
    ("fields", "load"),
    [
        ({}, Closed(concurrency=8)),
        ({"max_concurrency": None}, AllAtOnce(requests=600)),
        ({"request_rate": 4.0}, Open(rate_rps=4.0, arrival="poisson", max_in_flight=8)),
        (
            {"request_rate": 4.0, "burstiness": 0.25, "max_concurrency": None},
            Open(rate_rps=4.0, arrival="gamma:2", max_in_flight=None),
        ),
        (
            {"request_rate": 4.0, "burstiness": math.inf},
            Open(rate_rps=4.0, arrival="constant", max_in_flight=8),
        ),
    ],
)
def test_loads(fields: dict[str, Any], load: dict[str, Any]) -> None:
    assert import_side_of(result(**fields)).levels[0].load == load


def test_a_folder_is_one_side_and_one_load_twice_is_two_rounds(tmp_path: Path) -> None:
    saved(tmp_path, "a.json", result(slots=8, date="2"), result(slots=16, date="3"))  # --append-result
    saved(tmp_path, "b.json", result(slots=8, date="1", seed=5))
    saved(tmp_path, "a.pytorch.json", {"benchmark": {}})
    assert is_imported(tmp_path) and not is_imported(RUN) and not is_imported(tmp_path / "nothing")
    levels = import_side(tmp_path).levels
    assert [(level.load.value, level.round) for level in levels] == [(8, 0), (8, 1), (16, 0)]


def test_two_imports_are_compared_with_a_caveat(tmp_path: Path) -> None:
    a = saved(tmp_path, "a.json", result())
    b = saved(tmp_path, "b.json", result(slower=1.2, seed=2))
    found = compare(import_side(a), import_side(b))
    assert found.comparable and weights(found)["IMPORTED"] == "limits"
    words = {(e.metric, e.statistic): e.word for e in found.levels[0].effects}
    assert words["tpot_s", "p50"] == "slower" and words[THROUGHPUT, "mean"] == "slower"
    same = compare(import_side(a), import_side(a))
    assert {e.word for e in same.levels[0].effects} <= {"no detectable difference", "n/a"}
    done = run(str(a), str(b), "--slo", "tpot=50ms")
    assert done.return_value == 0
    flat = " ".join(done.stdout.split())
    assert "no verdict, start burst and client delay are in these figures" in flat
    assert "have no verdicts of loadgen, so that none can show a capacity" in flat
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_an_import_and_a_run_are_not_comparable(tmp_path: Path) -> None:
    path = saved(tmp_path, "a.json", result(slots=64))
    done = run(str(path), str(RUN))
    assert done.return_value == 1 and "NOT COMPARABLE: IMPORTED" in done.stdout and "TPOT" not in done.stdout
    assert "clocks and windows differ" in " ".join(done.stdout.split())
    forced = run(str(path), str(RUN), "--force")
    assert forced.return_value == 1 and "64 in flight: 600 and" in forced.stdout and "TPOT p50" in forced.stdout


def test_without_detail_there_are_figures_but_no_intervals(tmp_path: Path) -> None:
    a = import_side(saved(tmp_path, "a.json", result(), without=DETAILS))
    b = import_side(saved(tmp_path, "b.json", result(slower=1.2)))
    for found in (compare(a, a), compare(a, b)):
        assert found.comparable and weights(found)["requests"] == "limits"
        (level,) = found.levels
        assert (level.requests_a, level.requests_b) == (600, 600)
        effects = {(e.metric, e.statistic): e for e in level.effects}
        shown = effects["tpot_s", "mean"]
        assert shown.a == pytest.approx(0.010) and shown.ratio is not None
        assert shown.ratio_ci95 is None and shown.word == "n/a" and shown.why == NO_DETAIL
        assert effects["tpot_s", "p99"].ratio is None  # 0 is what is written where nothing is known
        assert "no interval" in render(found) and "--save-detailed" in render(found)
        assert "| no interval |" in markdown(found)
    longer = result(total_output_tokens=25 * 600)
    assert not compare(a, import_side(saved(tmp_path, "c.json", longer, without=DETAILS))).comparable


def test_failed_requests_spoil_it(tmp_path: Path) -> None:
    errors = ["" if i % 20 else "Traceback" for i in range(600)]
    a = import_side(saved(tmp_path, "a.json", result()))
    b = import_side(saved(tmp_path, "b.json", result(errors=errors, failed=30, completed=570)))
    assert weights(compare(a, b))["errors"] == "spoils"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"duration": 3.5, "ttfts": [0.1, 0.', "a.json:1: is cut, or no JSON"),
        ("", "a.json:1: is cut, or no JSON"),
        ("[1, 2]", "a.json: holds no JSON object"),
        ('{"levels": []}', "missing required field `duration`"),
        (json.dumps({**result(), "ttfts": ["x"]}), r"\$.ttfts\[0\]"),
        (json.dumps({**result(), "ttfts": [0.1]}), "lists are of different lengths"),
        (json.dumps({**result(), "duration": 0}), "nothing was measured"),
        (json.dumps({**result(), "request_rate": "fast"}), "'fast' is no rate"),
        (json.dumps({**result(), "ramp_up_strategy": "linear"}), "ramped up"),
    ],
)
def test_what_is_no_result_is_refused_with_its_name(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    done = run(str(path), str(path))
    assert isinstance(done.exception, UsageError)
    with pytest.raises(UsageError, match=words):
        raise done.exception
    assert str(path) in str(done.exception)
