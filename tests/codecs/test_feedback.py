"""Error feedback: what was not sent comes later, and anybody can check it to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from tests.codecs.chunks import bits, decoded, encoded, made
from zoonet.codecs import NAMES, codec, encode_with_feedback

LOSSY = tuple(name for name in NAMES if not codec(name).is_exact)
SIZE = 3 * 4096 + 50


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("decay", [1.0, 0.95])
def test_feedback_is_what_was_wanted_less_what_was_sent(name: str, decay: float) -> None:
    one = codec(name)
    room = memoryview(bytearray(one.max_bytes(SIZE)))
    feedback_N = np.zeros(SIZE, np.float32)
    for round_ in range(3):
        delta_N = made("normal", SIZE, round_)
        wanted_N = delta_N + feedback_N
        num_bytes = encode_with_feedback(one, delta_N, feedback_N, room, decay=decay)
        payload = bytes(room[:num_bytes])
        assert payload == encoded(one, wanted_N)
        sent_N = decoded(one, payload, SIZE)
        assert bits(feedback_N) == bits((wanted_N - sent_N) * np.float32(decay))


@pytest.mark.parametrize("name", LOSSY)
def test_with_feedback_the_sum_of_many_rounds_arrives(name: str) -> None:
    one = codec(name)
    room = memoryview(bytearray(one.max_bytes(SIZE)))
    delta_N = made("normal", SIZE, 9)
    feedback_N = np.zeros(SIZE, np.float32)
    with_feedback_N = np.zeros(SIZE, np.float32)
    without_N = np.zeros(SIZE, np.float32)
    for _ in range(100):
        num_bytes = encode_with_feedback(one, delta_N, feedback_N, room)
        one.accumulate(room[:num_bytes], np.float32(1), with_feedback_N, is_first=False)
        num_bytes = one.encode(delta_N, room)
        one.accumulate(room[:num_bytes], np.float32(1), without_N, is_first=False)
    wanted_N = 100 * delta_N

    def distance(sum_N: np.ndarray) -> float:
        return float(np.linalg.norm(sum_N - wanted_N) / np.linalg.norm(wanted_N))

    assert distance(with_feedback_N) < distance(without_N) / 2
    assert distance(with_feedback_N) < (0.7 if name == "topk2" else 0.02)


def test_an_exact_codec_leaves_nothing_behind() -> None:
    room = memoryview(bytearray(4 * SIZE))
    feedback_N = np.zeros(SIZE, np.float32)
    encode_with_feedback(codec("fp32"), made("normal", SIZE, 1), feedback_N, room)
    assert not feedback_N.any()


def test_feedback_stays_as_it_was_where_the_values_cannot_be_encoded() -> None:
    room = memoryview(bytearray(codec("int8").max_bytes(SIZE)))
    feedback_N = made("normal", SIZE, 2)
    before = bits(feedback_N)
    delta_N = made("normal", SIZE, 1)
    delta_N[-1] = np.inf
    with pytest.raises(ValueError, match="not finite"):
        encode_with_feedback(codec("int8"), delta_N, feedback_N, room)
    with pytest.raises(ValueError, match="decay"):
        encode_with_feedback(codec("int8"), made("normal", SIZE, 1), feedback_N, room, decay=1.5)
    with pytest.raises(ValueError, match="f32"):
        encode_with_feedback(codec("int8"), made("normal", 5, 1), feedback_N, room)
    assert bits(feedback_N) == before
