from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zoonet.errors import ConfigError, TrainingError
from zoonet.training.tokens import TokenFile, token_dtype


@pytest.fixture(params=[1, 2, 4])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> TokenFile:
    path = tmp_path / "tokens"
    path.write_bytes(np.arange(101, dtype=f"<u{request.param}").tobytes())
    return TokenFile(path, 128, request.param)


def test_targets_are_the_inputs_one_token_later(file: TokenFile) -> None:
    x_BT, y_BT = file.batch(np.array([0, 50, 96]), 4)
    assert x_BT.tolist() == [[0, 1, 2, 3], [50, 51, 52, 53], [96, 97, 98, 99]]
    assert (y_BT == x_BT + 1).all()
    assert x_BT.dtype == y_BT.dtype == np.int64


def test_every_held_out_window_comes_once_and_in_order(file: TokenFile) -> None:
    batches = list(file.heldout_windows(8, 5))
    assert [len(x_BT) for x_BT, _ in batches] == [5, 5, 2]
    seen = np.concatenate([x_BT for x_BT, _ in batches])
    assert seen.flatten().tolist() == list(range(96))


def test_a_part_of_the_held_out_windows_is_spread_over_all_of_them(file: TokenFile) -> None:
    (batch,) = file.heldout_windows(8, 5, max_tokens=24)
    assert batch[0][:, 0].tolist() == [0, 32, 64]


def test_more_tokens_than_there_are_is_all_of_them(file: TokenFile) -> None:
    batches = list(file.heldout_windows(10, 100, max_tokens=10**9))
    assert [x_BT.shape for x_BT, _ in batches] == [(10, 10)]


def test_the_last_window_needs_a_target_for_its_last_token(file: TokenFile) -> None:
    assert file.num_windows(100) == 1
    assert file.num_windows(101) == 0
    assert list(file.heldout_windows(101, 1)) == []


def test_a_token_outside_the_vocabulary_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(bytes([1, 2, 65, 3]))
    with TokenFile(path, 65, 1) as file, pytest.raises(TrainingError, match="token 65"):
        file.batch(np.array([0]), 3)


def test_batches_outlive_the_file(file: TokenFile) -> None:
    x_BT, _ = file.batch(np.array([7]), 2)
    file.close()
    assert x_BT.tolist() == [[7, 8]]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), (b"", "empty"), (b"123", "not a multiple")]
)
def test_a_file_that_is_not_whole_is_refused(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "tokens"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        TokenFile(path, 65, 2)


@pytest.mark.parametrize(
    ("vocab_size", "width"), [(2, 1), (256, 1), (257, 2), (65536, 2), (65537, 4)]
)
def test_ids_take_as_few_bytes_as_the_vocabulary_needs(vocab_size: int, width: int) -> None:
    assert token_dtype(vocab_size).itemsize == width
