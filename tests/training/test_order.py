from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoonet.errors import ConfigError
from zoonet.training.order import SampleOrder, epoch_keys, permute

FIRST = [490171, 453947, 101819, 295483, 419003, 268859]
ACROSS_EPOCHS = [961723, 869051, 946079, 484063]


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 2**40))
def test_a_permutation_visits_every_position_once(size: int, seed: int, epoch: int) -> None:
    positions = np.arange(size, dtype=np.uint64)
    permuted = permute(positions, size, epoch_keys(seed, epoch)[:7])
    assert np.array_equal(np.sort(permuted), positions)


@given(
    num_tokens=st.integers(2, 10_000),
    context=st.integers(1, 200),
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 5),
)
def test_an_epoch_is_non_overlapping_windows_inside_the_text(
    num_tokens: int, context: int, seed: int, epoch: int
) -> None:
    if num_tokens < 2 * context:
        with pytest.raises(ConfigError, match="too few"):
            SampleOrder(num_tokens, context, seed)
        return
    order = SampleOrder(num_tokens, context, seed)
    starts = np.sort(order.starts(epoch * order.samples_per_epoch, order.samples_per_epoch))
    assert starts[0] >= 0
    assert starts[-1] + context + 1 <= num_tokens
    assert (np.diff(starts) == context).all()


@given(first=st.integers(0, 500), num=st.integers(0, 200))
def test_any_part_of_the_order_is_the_same_as_one_sample_at_a_time(first: int, num: int) -> None:
    order = SampleOrder(1000, 16, seed=3)
    singly = [int(order.starts(index, 1)[0]) for index in range(first, first + num)]
    assert order.starts(first, num).tolist() == singly


def test_slots_cut_the_order_into_batches() -> None:
    order = SampleOrder(1000, 16, seed=3)
    slots = [order.slot_starts(slot, 7) for slot in range(20)]
    assert np.array_equal(np.concatenate(slots), order.starts(0, 140))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    order, other = SampleOrder(10_000, 16, seed=3), SampleOrder(10_000, 16, seed=4)
    num = order.samples_per_epoch
    orders = [order.starts(0, num), order.starts(num, num), other.starts(0, num)]
    for index, starts in enumerate(orders):
        for further in orders[index + 1 :]:
            assert (starts == further).mean() < 0.05


def test_the_order_never_changes_between_versions() -> None:
    order = SampleOrder(1_003_854, 64, seed=1337)
    assert order.starts(0, 6).tolist() == FIRST
    assert order.starts(order.samples_per_epoch - 2, 4).tolist() == ACROSS_EPOCHS


@pytest.mark.parametrize(("first", "num"), [(-1, 1), (0, -1)])
def test_negative_samples_are_refused(first: int, num: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        SampleOrder(1000, 16, seed=0).starts(first, num)
