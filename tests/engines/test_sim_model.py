"""The model of a GPU: step times by hand, and who runs in which step."""

from __future__ import annotations

import math

import pytest

from loadgen.engines.sim_model import GPUS, MODELS, BatchModel, Gpu, Model, Sequence

OVERHEAD_S = 0.0015
A100_BANDWIDTH = 2039e9 * 0.80
A100_FLOPS = 312e12 * 0.65
# A cache of 100 tokens, and steps that take no time but for the overhead.
SMALL = (Gpu(memory_bytes=1000, bandwidth=math.inf, peak_flops=math.inf), Model(400, 0, 1, 1, 1, 1))


def a100(max_batch_size: int = 256, max_num_tokens: int = 8192) -> BatchModel:
    return BatchModel(GPUS["a100-80gb"], MODELS["qwen1.5-4b"], max_batch_size, max_num_tokens)


def small(max_batch_size: int = 256, max_num_tokens: int = 8192) -> BatchModel:
    return BatchModel(*SMALL, max_batch_size, max_num_tokens)


def added(model: BatchModel, *shapes: tuple[int, int]) -> list[Sequence]:
    """Sequences of these input and output tokens, queued."""
    sequences = [Sequence(*shape) for shape in shapes]
    for sequence in sequences:
        model.add(sequence)
    return sequences


def step(model: BatchModel) -> list[Sequence]:
    """One whole step; the sequences with a token more."""
    assert model.begin_step() is not None
    return model.end_step()


def run_out(model: BatchModel, limit: int = 1000) -> list[Sequence]:
    """Steps until there is no work left; the sequences in the order in which they finished."""
    finished: list[Sequence] = []
    for _ in range(limit):
        if model.begin_step() is None:
            return finished
        done = [sequence for sequence in model.end_step() if sequence.generated == sequence.output_tokens]
        for sequence in done:
            model.remove(sequence)
        finished += done
    raise AssertionError(f"still at work after {limit} steps")


# --- step times


def test_prefill_step_is_bound_by_arithmetic() -> None:
    model = a100()
    added(model, (1000, 5))
    linear = 2 * 3.95e9 * 1000
    attention = 4 * 20 * 128 * 40 * (1000 * 1001 / 2)
    assert (linear + attention) / A100_FLOPS == pytest.approx(0.0399655, rel=1e-6)
    assert model.begin_step() == pytest.approx((linear + attention) / A100_FLOPS + OVERHEAD_S, rel=1e-12)


def test_short_prefill_is_bound_by_memory() -> None:
    model = a100()
    added(model, (60, 5), (40, 5))
    moved = 7.12e9 + 409_600 * (100 + 100)  # every token is written, and read
    assert model.begin_step() == pytest.approx(moved / A100_BANDWIDTH + OVERHEAD_S, rel=1e-12)


@pytest.mark.parametrize("sequences", [1, 4])
def test_decode_step_is_bound_by_memory(sequences: int) -> None:
    model = a100()
    added(model, *[(100, 5)] * sequences)
    step(model)
    # The weights once; of each sequence 101 tokens read, and one written.
    moved = 7.12e9 + 409_600 * (101 + 1) * sequences
    assert model.begin_step() == pytest.approx(moved / A100_BANDWIDTH + OVERHEAD_S, rel=1e-12)
    model.end_step()
    moved += 409_600 * sequences
    assert model.begin_step() == pytest.approx(moved / A100_BANDWIDTH + OVERHEAD_S, rel=1e-12)


def test_step_of_decoding_and_prefill_adds_both_up() -> None:
    model = a100()
    added(model, (100, 5))
    step(model)
    added(model, (2000, 5))
    linear = 2 * 3.95e9 * (1 + 2000)
    attention = 4 * 20 * 128 * 40 * (101 + 2000 * 2001 / 2)
    assert model.begin_step() == pytest.approx((linear + attention) / A100_FLOPS + OVERHEAD_S, rel=1e-12)


def test_attention_costs_the_same_in_one_chunk_or_in_several() -> None:
    gpu, shape = Gpu(1e9, math.inf, 1e12), Model(0, 0, 1, 2, 3, 4)

    def arithmetic_s(max_num_tokens: int) -> float:
        model = BatchModel(gpu, shape, 1, max_num_tokens)
        (sequence,) = added(model, (1000, 1))
        total = 0.0
        while not sequence.generated:
            total += (model.begin_step() or math.nan) - OVERHEAD_S
            model.end_step()
        return total

    assert arithmetic_s(1000) == pytest.approx(4 * 3 * 4 * 2 * (1000 * 1001 / 2) / (1e12 * 0.65), rel=1e-6)
    assert arithmetic_s(300) == pytest.approx(arithmetic_s(1000), rel=1e-6)


def test_idle_engine_takes_no_step() -> None:
    model = a100()
    assert model.begin_step() is None
    assert (model.running, model.waiting, model.kv_usage) == (0, 0, 0)


# --- who runs


def test_prefill_gives_the_first_token_and_each_step_one_more() -> None:
    model = small()
    (sequence,) = added(model, (10, 4))
    assert [step(model) for _ in range(4)] == [[sequence]] * 4
    assert sequence.generated == 4


def test_batch_limit_keeps_the_rest_waiting() -> None:
    model = small(max_batch_size=2)
    first, second, third = added(model, (10, 3), (10, 3), (10, 3))
    assert step(model) == [first, second]
    assert (model.running, model.waiting) == (2, 1)
    model.remove(first)
    assert step(model) == [second, third]
    assert (model.running, model.waiting) == (2, 0)


def test_token_budget_cuts_a_prefill_into_chunks() -> None:
    model = small(max_num_tokens=30)
    (sequence,) = added(model, (70, 5))
    prefilled = []
    while not sequence.generated:
        step(model)
        prefilled.append(sequence.prefilled)
    assert prefilled == [30, 60, 70]


def test_decoding_comes_first_and_leaves_the_rest_of_the_budget_to_prefills_in_order() -> None:
    model = small(max_num_tokens=10)
    first, second, third = added(model, (4, 5), (9, 5), (9, 5))
    assert step(model) == [first]
    assert [s.prefilled for s in (first, second, third)] == [4, 6, 0]
    assert step(model) == [first, second]
    assert [s.prefilled for s in (first, second, third)] == [4, 9, 6]
    assert step(model) == [first, second, third]
    assert [s.generated for s in (first, second, third)] == [3, 2, 1]


def test_decoding_alone_can_use_up_the_budget() -> None:
    model = small(max_num_tokens=2)
    first, second, third = added(model, (1, 5), (1, 5), (1, 5))
    assert step(model) == [first, second]
    assert step(model) == [first, second]
    assert third.prefilled == 0
    model.remove(first)
    assert step(model) == [second, third]


def test_at_most_64_prefills_share_a_step() -> None:
    model = small()
    sequences = added(model, *[(1, 0)] * 65)
    assert step(model) == sequences[:64]
    assert step(model) == sequences


def test_work_runs_out_and_everything_is_given_back() -> None:
    model = small(max_batch_size=3, max_num_tokens=16)
    sequences = added(model, *[(7 + 5 * i % 11, 1 + 3 * i % 7) for i in range(20)])
    assert sorted(map(id, run_out(model))) == sorted(map(id, sequences))
    assert (model.running, model.waiting, model.kv_usage) == (0, 0, 0)


# --- the KV cache


def test_kv_capacity_is_what_the_weights_leave() -> None:
    assert a100().kv_capacity_tokens == 156_494  # (0.9 * 80e9 - 2 * 3.95e9) / 409,600
    assert small().kv_capacity_tokens == 100


def test_full_cache_keeps_a_sequence_waiting_and_those_behind_it() -> None:
    model = small()
    first, second, third = added(model, (50, 10), (40, 10), (1, 1))
    assert step(model) == [first]
    assert (model.running, model.waiting) == (1, 2)
    assert model.kv_usage == pytest.approx(0.60)
    model.remove(first)
    assert step(model) == [second, third]
    assert model.kv_usage == pytest.approx(0.52)


def test_cache_can_be_filled_to_the_last_token() -> None:
    model = small()
    sequences = added(model, (50, 10), (30, 10))
    assert step(model) == sequences
    assert model.kv_usage == 1.0


def test_sequence_larger_than_the_cache_runs_alone_and_blocks_nobody_for_ever() -> None:
    model = small()
    before, huge, after = added(model, (10, 2), (500, 3), (10, 2))
    assert step(model) == [before]
    assert (model.running, model.waiting) == (1, 2)
    step(model)
    model.remove(before)
    assert step(model) == [huge]
    assert (model.running, model.waiting) == (1, 1)
    assert run_out(model) == [huge, after]


def test_kv_usage_of_a_sequence_larger_than_the_cache_is_at_most_1() -> None:
    model = small()
    added(model, (500, 3))
    step(model)
    assert model.kv_usage == 1.0


# --- taking sequences out


def test_sequence_removed_in_mid_step_gets_no_token() -> None:
    model = small()
    decoding, other = added(model, (10, 5), (10, 5))
    step(model)
    (prefilling,) = added(model, (20, 5))
    assert model.begin_step() is not None
    model.remove(decoding)
    model.remove(prefilling)
    assert model.end_step() == [other]
    assert (decoding.generated, other.generated, prefilling.generated, prefilling.prefilled) == (1, 2, 0, 0)
    assert (model.running, model.waiting) == (1, 0)
    assert model.kv_usage == pytest.approx(0.15)


def test_step_whose_every_sequence_was_removed_ends_empty() -> None:
    model = small()
    (sequence,) = added(model, (10, 5))
    assert model.begin_step() is not None
    model.remove(sequence)
    assert model.end_step() == []
    assert model.begin_step() is None
    assert model.kv_usage == 0


def test_waiting_sequence_can_be_removed() -> None:
    model = small(max_batch_size=1)
    first, second, third = added(model, (10, 5), (10, 5), (10, 5))
    step(model)
    model.remove(second)
    assert (model.running, model.waiting) == (1, 1)
    model.remove(first)
    assert step(model) == [third]


def test_removing_twice_changes_nothing_more() -> None:
    model = small()
    first, _ = added(model, (10, 5), (10, 5))
    step(model)
    model.remove(first)
    model.remove(first)
    assert model.running == 1
    assert model.kv_usage == pytest.approx(0.15)
