"""When a peer that others wait for counts as missing."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from tests.averaging.forest import Forest
from tests.averaging.makers import peer
from tests.averaging.swarm import JOB_ID
from zoonet.averaging.allreduce import INLINE_BYTES
from zoonet.averaging.chunks import Kind, decode_header
from zoonet.averaging.lateness import FIRST_S, PATIENCE, SPARE_S, Lateness
from zoonet.averaging.reduction import Awaited
from zoonet.crypto import PeerId
from zoonet.errors import ZoonetError
from zoonet.transport import StreamLanes

ADA, BOB, CYD, DAN = (PeerId(name) for name in ("ada", "bob", "cyd", "dan"))
LONG_S = 100.0
PAYLOAD_BYTES = 8 << 20


def awaited(peer: PeerId, num_come: int, num_all: int = 10, *, is_mean: bool = False) -> Awaited:
    return Awaited(peer, num_come, num_all, is_mean=is_mean, is_waiting=False)


def late_after(elapsed_s: float, all_awaited: list[Awaited], near: set[PeerId]) -> set[PeerId]:
    lateness = Lateness(PAYLOAD_BYTES)
    lateness.begin()
    assert not lateness.late(all_awaited, 0.1, near)
    return lateness.late(all_awaited, elapsed_s, near)


@pytest.mark.parametrize("is_mean", [False, True])
def test_a_slow_line_is_not_late_because_neighbours_are_fast(is_mean: bool) -> None:
    """A neighbour is done in a moment; a line of 20 Mbit/s takes half a minute for 64 MiB."""
    one_by_one = [awaited(ADA, 10, is_mean=is_mean), awaited(BOB, 5, is_mean=is_mean)]
    assert not late_after(LONG_S, one_by_one, near={ADA})


def test_a_line_that_nobody_is_left_to_compare_with_is_late_when_it_takes_unusually_long() -> None:
    """Somebody may trickle for ever, and bring no chunk in the end."""
    lateness = Lateness(PAYLOAD_BYTES)
    trickling = [awaited(ADA, 10), awaited(BOB, 0)]
    lateness.begin()
    assert not lateness.late(trickling, 0.1, {ADA})
    assert not lateness.late(trickling, LONG_S, {ADA})
    for _ in range(4):
        lateness.begin()
        lateness.succeed(10.0)
    lateness.begin()
    assert not lateness.late(trickling, 0.1, {ADA})
    assert not lateness.late(trickling, PATIENCE * 10.0 - 0.1, {ADA})
    assert lateness.late(trickling, PATIENCE * 10.0 + 0.1, {ADA}) == {BOB}


def test_who_is_far_behind_others_of_other_sites_is_late() -> None:
    others = [awaited(ADA, 10), awaited(BOB, 10), awaited(CYD, 5)]
    assert late_after(PATIENCE * 0.1 + SPARE_S + 0.1, others, near=set()) == {CYD}
    assert not late_after(PATIENCE * 0.1 + SPARE_S - 0.1, others, near=set())


def test_who_has_nearly_done_is_given_time_to_finish() -> None:
    """Where five share a line and another has one alone, it takes five times as long."""
    others, limit_s = (
        [awaited(ADA, 10), awaited(BOB, 10), awaited(CYD, 9)],
        PATIENCE * 0.1 + SPARE_S,
    )
    assert not late_after(1.7 * limit_s, others, near=set())
    assert late_after(2.0 * limit_s, others, near=set()) == {CYD}


def test_a_neighbour_that_is_behind_the_others_is_late_whoever_they_are() -> None:
    assert late_after(LONG_S, [awaited(ADA, 5), awaited(BOB, 10)], near={ADA}) == {ADA}
    assert late_after(LONG_S, [awaited(ADA, 5), awaited(BOB, 10)], near={ADA, BOB}) == {ADA}


def test_who_has_much_to_bring_is_not_late_because_others_have_little() -> None:
    others = [awaited(ADA, 1, 1), awaited(BOB, 1, 1), awaited(CYD, 1, 1), awaited(DAN, 5, 10)]
    assert not late_after(LONG_S, others, near=set())


def test_nobody_is_late_while_half_of_the_others_are_still_at_it() -> None:
    others = [awaited(ADA, 10), awaited(BOB, 5), awaited(CYD, 5)]
    assert not late_after(LONG_S, others, near=set())


def test_who_falls_silent_is_named_and_who_hears_nobody_suspects_itself_first() -> None:
    lateness = Lateness(PAYLOAD_BYTES)
    lateness.begin()
    everybody = {ADA, BOB}
    assert lateness.silent({ADA: FIRST_S + 0.1, BOB: 0.1}, everybody) == {ADA}
    assert not lateness.silent({ADA: FIRST_S + 0.1, BOB: FIRST_S + 0.1}, everybody)


class Ears:
    """Takes whatever is sent, and counts who says that it waits for others."""

    def __init__(self) -> None:
        self.num_said: Counter[PeerId] = Counter()
        self.changed = asyncio.Event()

    def admit(self, peer_id: PeerId, header: bytes, num_bytes: int) -> memoryview:
        if decode_header(header).kind == Kind.ALIVE:
            self.num_said[peer_id] += 1
            self.changed.set()
        return memoryview(bytearray(num_bytes))

    def arrived(self, peer_id: PeerId, header: bytes) -> None: ...

    def ended(self, peer_id: PeerId, error: ZoonetError) -> None: ...

    async def until_said(self, *names: str) -> None:
        while not all(self.num_said[peer(name)] > 1 for name in names):
            await self.changed.wait()
            self.changed.clear()


@pytest.mark.parametrize("size", [1000, INLINE_BYTES // 4 + 1], ids=["small", "large"])
def test_who_waits_for_others_says_so_in_every_round_and_attempt(size: int) -> None:
    """Of a large vector, too, which is taken up in a thread while the event loop goes on."""
    names = ("ada", "bob", "cyd")

    async def main() -> None:
        forest, ears = Forest((*names, "dan"), size=size), Ears()
        await forest.serve(*names)  # dan brings nothing, so they wait
        await StreamLanes(forest.transport("dan")).serve(f"{JOB_ID}/reduce/1", ears)
        for index, number in ((0, 0), (0, 1), (1, 0)):
            forest.index, forest.number = index, number
            attempt = forest.attempt_of(forest.names)
            ears.num_said.clear()
            waiting = [asyncio.create_task(forest.average(name, attempt)) for name in names]
            async with asyncio.timeout(20.0):
                await ears.until_said(*names)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        await forest.close()

    asyncio.run(main())  # in real time, because of the threads
