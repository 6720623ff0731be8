"""A benchmark's vectors tell who is in a mean, and when its bytes are not this round's."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.testbed import vectors

NUM_VALUES = 3 * vectors.WINDOW + 77
NOISE_P = vectors.noise(NUM_VALUES)


def contribution(peer: int, round_number: int = 1) -> np.ndarray:
    vector_P = np.empty_like(NOISE_P)
    vectors.fill_(vector_P, NOISE_P, peer, round_number)
    return vector_P


def mean_of(peers: list[int], round_number: int = 1) -> np.ndarray:
    return np.mean([contribution(peer, round_number) for peer in peers], axis=0)


def test_the_mean_of_everyone_is_right() -> None:
    assert vectors.judge(mean_of([0, 1, 2, 3]), NOISE_P, [0, 1, 2, 3], 1).is_right


@pytest.mark.parametrize("num_peers", [2, 3, 8, 24])
def test_whoever_is_left_out_is_noticed(num_peers: int) -> None:
    everyone = list(range(num_peers))
    for left_out in everyone:
        others = [peer for peer in everyone if peer != left_out]
        assert not vectors.judge(mean_of(others), NOISE_P, everyone, 1).is_right


def test_a_mean_that_misses_somebody_in_one_slice_alone_is_noticed() -> None:
    mean_P = mean_of([0, 1, 2, 3])
    mean_P[-77:] = mean_of([0, 1, 2])[-77:]
    judgement = vectors.judge(mean_P, NOISE_P, [0, 1, 2, 3], 1)
    assert judgement.num_wrong_windows == 1
    assert judgement.num_wrong_values == 77


def test_the_bytes_of_an_earlier_round_are_noticed() -> None:
    assert not vectors.judge(mean_of([0, 1], 1), NOISE_P, [0, 1], 2).is_right


def test_values_that_are_no_numbers_are_noticed() -> None:
    mean_P = mean_of([0, 1])
    mean_P[5] = np.nan
    judgement = vectors.judge(mean_P, NOISE_P, [0, 1], 1, value_tolerance=1.0)
    assert judgement.num_wrong_windows == 1
    assert judgement.num_wrong_values == 1


def test_a_quantised_mean_is_right_within_its_codecs_tolerance() -> None:
    error_P = np.random.default_rng(1).uniform(-0.3, 0.3, NUM_VALUES).astype(np.float32)
    mean_P = mean_of([0, 1, 2]) + error_P
    assert not vectors.judge(mean_P, NOISE_P, [0, 1, 2], 1).is_right
    assert vectors.judge(mean_P, NOISE_P, [0, 1, 2], 1, value_tolerance=0.5).num_wrong_values == 0


def test_who_was_lost_may_be_in_some_windows_where_that_is_allowed() -> None:
    mean_P = mean_of([0, 1, 2])
    mean_P[: vectors.WINDOW] = mean_of([0, 1, 2, 3])[: vectors.WINDOW]
    assert vectors.judge(mean_P, NOISE_P, [0, 1, 2], 1).num_wrong_windows == 1
    judgement = vectors.judge(mean_P, NOISE_P, [0, 1, 2], 1, also_allowed=[3])
    assert judgement.is_right
    assert judgement.num_fuller_windows == 1
