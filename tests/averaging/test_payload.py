"""What a contributor's payload leaves out: the same bits as ever, in one vector instead of two."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from msgspec import structs

from tests.averaging.forest import Forest
from zoonet.averaging.landing import Buffers
from zoonet.averaging.payload import MAX_MAPPINGS, make_payload
from zoonet.averaging.plan import chunk_bounds, num_chunks
from zoonet.averaging.reduction import Reduction
from zoonet.averaging.wire import REPEATABLE, Wire
from zoonet.codecs import NAMES, codec, encode_with_feedback
from zoonet.crypto import PeerId
from zoonet.exact import Vector

LOSSY = [name for name in NAMES if name != "fp32"]
SIZE = 40_000
LARGE = 1 << 20  # values: 4 MiB


def values(seed: int, size: int = SIZE) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal(size).astype(np.float32)
    found[::97] = -0.0
    return found


@pytest.mark.parametrize("name", LOSSY)
def test_what_a_payload_leaves_out_has_the_bits_of_encoding_with_feedback(name: str) -> None:
    """Also from round to round, and with the same payload."""
    expected_P = np.zeros(SIZE, np.float32)
    feedback_P: Vector | None = None
    for seed in range(3):
        delta_P = values(seed)
        payload = make_payload(delta_P, codec(name), feedback_P)
        for number in range(num_chunks(SIZE)):
            start, stop = chunk_bounds(SIZE, number)
            out = memoryview(bytearray(codec(name).max_bytes(stop - start)))
            length = encode_with_feedback(
                codec(name), delta_P[start:stop], expected_P[start:stop], out
            )
            assert payload.chunk(number) == out[:length]
        before_P = feedback_P
        feedback_P = payload.leave_out()
        assert feedback_P is not None and feedback_P.tobytes() == expected_P.tobytes()
        assert seed == 0 or feedback_P is before_P  # there is no second vector


def test_an_exact_payload_leaves_nothing_out() -> None:
    assert make_payload(values(0), codec("fp32")).leave_out() is None


@pytest.mark.parametrize("name", LOSSY)
def test_feedback_of_means_has_the_bits_of_encoding_with_feedback(name: str) -> None:
    wire = Wire(codec(name))
    left_N = np.zeros(SIZE, np.float32)
    for seed in range(3):
        sum_N = values(seed)
        out = memoryview(bytearray(codec(name).max_bytes(SIZE)))
        length = encode_with_feedback(codec(name), sum_N, left_N, out)
        assert wire.encode(True, 0, sum_N) == out[:length]
        wire.settle(is_certified=True)


def test_feedback_of_a_mean_that_was_given_up_is_forgotten_and_that_of_others_is_not() -> None:
    wire = Wire(codec("int8"))
    fresh = bytes(Wire(codec("int8")).encode(True, 0, values(1)))
    for number in (0, 1):
        wire.encode(True, number, values(0))
    wire.settle(is_certified=True)
    wire.encode(True, 0, values(0))
    wire.settle(is_certified=False)
    assert wire.encode(True, 0, values(1)) == fresh
    assert wire.encode(True, 1, values(1)) != fresh


def test_feedback_of_a_mean_that_this_peer_did_not_make_in_a_certified_round_is_forgotten() -> None:
    wire = Wire(codec("int8"))
    fresh = bytes(Wire(codec("int8")).encode(True, 0, values(1)))
    wire.encode(True, 0, values(0))
    wire.settle(is_certified=True)
    wire.settle(is_certified=True)
    assert wire.encode(True, 0, values(1)) == fresh


def test_encoded_parts_add_up_to_the_bits_of_their_weighted_mean() -> None:
    wire = Wire(codec("int8"))
    raws = []
    for seed in range(3):
        out = memoryview(bytearray(wire.max_bytes(SIZE)))
        raws.append(out[: wire.codec.encode(values(seed), out)])
    decoded = [np.empty(SIZE, np.float32) for _ in raws]
    for raw, decoded_N in zip(raws, decoded, strict=True):
        wire.codec.decode(raw, decoded_N)
    sums = [np.empty(SIZE, np.float32) for _ in range(3)]
    wire.add_up(decoded, [3, 1, 2], sums[0])
    wire.add_up(raws, [3, 1, 2], sums[1])
    wire.add_up([decoded[0], *raws[1:]], [3, 1, 2], sums[2])
    assert len({sum_N.tobytes() for sum_N in sums}) == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [SIZE, LARGE])
async def test_a_payload_holds_what_one_that_was_settled_just_before_has_left_out(
    size: int,
) -> None:
    forest = Forest(("ada",), size=size, codec="int8")
    await forest.serve()  # has committed once
    delta_P, int8 = forest.vectors["ada"], codec("int8")
    first = make_payload(delta_P, int8)
    forest.reducers["ada"].settle(is_certified=True, is_merged=True)
    root = await forest.reducers["ada"].commit(delta_P)
    assert root == make_payload(delta_P, int8, first.leave_out()).root != first.root
    await forest.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(("name", "num_copies"), [("fp32", 0.0), ("fp16", 1.0), ("int8", 1.25)])
async def test_an_averager_alone_holds_its_feedback_and_what_is_sent(
    name: str, num_copies: float
) -> None:
    """Beside contribution and mean; the payload of the round before goes as the next one comes."""
    forest = Forest(("ada",), size=LARGE, codec=name)
    await forest.serve()
    ada = forest.reducers["ada"]
    tracemalloc.start()  # the contribution and its first payload are older
    for index in range(3):
        root = await ada.commit(forest.vectors["ada"])
        await ada.average(structs.replace(forest.attempt, index=index, roots=(root,)))
        held_bytes, _ = tracemalloc.get_traced_memory()
        ada.settle(is_certified=True, is_merged=True)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await forest.close()
    held, peak = (found / (4 * LARGE) - 1 for found in (held_bytes, peak_bytes))
    assert num_copies - 0.1 < held < num_copies + 0.2
    assert peak < num_copies + 0.7


@pytest.mark.parametrize("name", sorted(REPEATABLE))
def test_what_a_repeatable_codec_decodes_is_encoded_as_the_same_payload(name: str) -> None:
    """For every word that stands for a value."""
    wire = Wire(codec(name))
    words = np.arange(1 << 16, dtype=np.uint16)
    decoded = np.empty(1, np.float32)
    valid = []
    for word in words:
        try:
            wire.codec.decode(word.tobytes(), decoded)
        except ValueError:
            continue
        valid.append(word)
    payload = np.array(valid, np.uint16).tobytes()
    values_N = np.empty(len(valid), np.float32)
    wire.codec.decode(payload, values_N)
    assert len(valid) > 50_000 and wire.encode_again(values_N) == payload


@pytest.mark.parametrize("name", LOSSY)
def test_a_chunk_that_was_dropped_is_the_same_bytes_for_whoever_asks_again(name: str) -> None:
    delta_P, before_P = values(0), values(1) / 100
    expected_P = make_payload(delta_P, codec(name), before_P.copy()).leave_out()
    payload = make_payload(delta_P, codec(name), before_P)
    numbers = range(num_chunks(SIZE))
    sent = [bytes(payload.chunk(number) or b"") for number in numbers]
    for number in numbers:
        payload.drop(number)
    assert payload.held_bytes == 0
    assert [payload.chunk(number) for number in numbers[::2]] == sent[::2]
    left_P = payload.leave_out()
    assert left_P is not None and expected_P is not None
    assert left_P.tobytes() == expected_P.tobytes()


def test_a_dropped_chunk_is_not_made_of_feedback_that_has_changed_since() -> None:
    payload = make_payload(values(0), codec("int8"), values(1) / 100)
    payload.drop(3)
    payload.leave_out()
    assert payload.chunk(3) is None and payload.chunk(4) is not None


def test_an_exact_payload_keeps_its_chunks() -> None:
    payload = make_payload(values(0), codec("fp32"))
    payload.drop(0)
    assert payload.held_bytes == 4 * SIZE


def test_chunks_that_share_memory_are_the_same_bytes_as_alone() -> None:
    delta_P = values(0, 2 * LARGE)
    assert num_chunks(delta_P.size) > MAX_MAPPINGS
    payload, fp16 = make_payload(delta_P, codec("fp16")), codec("fp16")
    for number in range(num_chunks(delta_P.size)):
        start, stop = chunk_bounds(delta_P.size, number)
        out = memoryview(bytearray(fp16.max_bytes(stop - start)))
        fp16.encode(delta_P[start:stop] + np.float32(0), out)  # which makes -0.0 0.0
        assert payload.chunk(number) == out
        if number % 2:
            payload.drop(number)  # the one before stays


@pytest.mark.parametrize("name", LOSSY)
def test_chunks_of_a_lossy_payload_are_let_go_as_they_leave(name: str) -> None:
    forest = Forest(("ada", "bob"), size=SIZE, codec=name)
    payload = make_payload(forest.vectors["ada"], codec(name))
    posted: list[bytes] = []
    reduction = Reduction(
        forest.attempt,
        PeerId(forest.plan.peers[0]),
        payload,
        np.empty(SIZE, np.float32),
        Wire(codec(name)),
        Buffers(SIZE),
        lambda _peer, _header, raw: posted.append(bytes(raw)),
        lambda: None,
    )
    reduction.adopt(forest.attempt)
    assert payload.held_bytes > 0
    reduction.advance()
    assert len(posted) > 1 and payload.held_bytes == 0
