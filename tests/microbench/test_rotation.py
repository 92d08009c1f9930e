"""The plan of a window: what rotates is out of the cache when its turn comes again."""

from hypothesis import given
from hypothesis import strategies as st

from loadgen.microbench.rotation import MOST_CALLS, MOST_SETS, PASSES, Rotation, plan

L2 = 60 * 2**20
GIB = 2**30


def test_a_weight_below_the_cache_rotates_until_it_exceeds_it() -> None:
    found = plan(13 * 2**20, 13 * 2**20, 4e-6, L2, 40 * GIB)
    assert found is not None and found.proven
    assert found.flush_bytes == 0
    assert (found.sets - 1) * 13 * 2**20 >= PASSES * L2
    assert found.calls % found.sets == 0
    assert found.calls * 4e-6 >= 1e-3


def test_a_weight_of_kilobytes_is_flushed_between_windows() -> None:
    found = plan(5120, 5120, 2e-6, L2, 40 * GIB)
    assert found is not None and found.proven
    assert found.calls == found.sets <= MOST_SETS  # each buffer once a window
    assert found.flush_bytes >= PASSES * L2


def test_a_large_cache_needs_only_two_sets() -> None:
    found = plan(3 * GIB, 3 * GIB, 7e-4, L2, 40 * GIB)
    assert found is not None and found.proven
    assert found.sets == 2


def test_hot_is_never_proven_cold() -> None:
    found = plan(0, 0, 2e-6, L2, GIB)
    assert found is not None and not found.proven
    assert found.sets == 1


def test_no_room_for_a_second_set_gives_no_plan() -> None:
    assert plan(3 * GIB, 3 * GIB, 7e-4, L2, GIB) is None


def test_a_rotation_that_does_not_wrap_is_not_proven() -> None:
    good = Rotation(sets=21, calls=42, set_bytes=13 * 2**20, touched_bytes=13 * 2**20, cache_bytes=L2)
    assert good.proven
    assert not Rotation(sets=21, calls=40, set_bytes=13 * 2**20, touched_bytes=13 * 2**20, cache_bytes=L2).proven
    assert not Rotation(sets=10, calls=40, set_bytes=13 * 2**20, touched_bytes=13 * 2**20, cache_bytes=L2).proven
    # A flush between windows says nothing about two uses within one.
    assert not Rotation(
        sets=2, calls=4, set_bytes=5120, touched_bytes=5120, cache_bytes=L2, flush_bytes=PASSES * L2
    ).proven


def test_a_pool_of_which_little_is_touched_counts_for_little() -> None:
    found = plan(512 * 2**20, 20_000, 2e-6, L2, 40 * GIB)
    assert found is not None and found.proven
    assert found.flush_bytes  # 80 pools of 512 MiB are no 240 MiB of traffic


@given(
    st.integers(1, 8 * GIB),
    st.floats(0, 1),
    st.floats(1e-7, 1e-1),
    st.integers(2**20, 2**28),
    st.integers(0, 64 * GIB),
)
def test_every_plan_is_proven_and_affordable(size: int, share: float, call_s: float, cache: int, memory: int) -> None:
    found = plan(size, int(size * share), call_s, cache, memory)
    if found is None:
        assert memory < size
        return
    assert found.proven
    assert (found.sets - 1) * size <= memory
    assert 1 <= found.calls <= MOST_CALLS + MOST_SETS
