from zoonet.averaging.landing import Buffers

ENCODED_BYTES = 40_000


def test_memory_of_a_part_that_was_added_up_holds_the_next_one() -> None:
    buffers = Buffers(1 << 20, ENCODED_BYTES)
    first = buffers.take_encoded(ENCODED_BYTES)
    second = buffers.take_encoded(ENCODED_BYTES)
    assert second.obj is not first.obj

    buffers.give_back_encoded(first)

    third = buffers.take_encoded(ENCODED_BYTES - 1)
    assert third.obj is first.obj
    assert len(third) == ENCODED_BYTES - 1
    assert buffers.take_encoded(ENCODED_BYTES).obj is not first.obj


def test_after_a_round_only_an_eighth_of_a_payload_s_parts_keep_their_memory() -> None:
    buffers = Buffers(1 << 20, ENCODED_BYTES)
    taken = [buffers.take_encoded(ENCODED_BYTES) for _ in range(64)]
    for payload in taken:
        buffers.give_back_encoded(payload)

    buffers.settle()

    kept = {id(payload.obj) for payload in taken}
    again = [buffers.take_encoded(ENCODED_BYTES) for _ in range(64)]
    assert sum(id(payload.obj) in kept for payload in again) == 8


def test_memory_that_is_not_a_part_s_is_not_used_for_one() -> None:
    buffers = Buffers(1 << 20, ENCODED_BYTES)
    strange = memoryview(bytearray(ENCODED_BYTES + 1))
    buffers.give_back_encoded(strange)
    assert buffers.take_encoded(ENCODED_BYTES).obj is not strange.obj
