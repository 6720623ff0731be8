"""Lanes that are opened before anything is sent."""

from __future__ import annotations

import asyncio

from tests.averaging.makers import peer
from tests.averaging.swarm import identity_of
from zoonet.averaging.allreduce import MAX_MET, MEET_S, TreeAllReduce
from zoonet.averaging.outlets import Outlets
from zoonet.crypto import PeerId
from zoonet.errors import PeerUnreachable
from zoonet.testing import MemorySwarm, run
from zoonet.transport import Buffer, Lane, LaneEnded, StreamLanes

BOB = peer("bob")


class WrittenLane:
    """A `Lane` of which only what is posted matters."""

    path = "direct"
    unsent_bytes = 0

    def __init__(self, peer_id: PeerId) -> None:
        self.peer_id = peer_id
        self.posted: list[bytes] = []

    def post(self, header: bytes, payload: Buffer) -> None:
        self.posted.append(header)

    async def close(self) -> None: ...


class SlowDoor(StreamLanes):
    """Opens lanes when it is let; ahead of need only where these are direct."""

    def __init__(self, *, is_direct: bool = True, is_reachable: bool = True) -> None:
        super().__init__(MemorySwarm().peer(identity_of("ada"))[0])
        self.let = asyncio.Event()
        self.opened: list[WrittenLane] = []
        self._is_direct = is_direct
        self._is_reachable = is_reachable

    async def open(self, peer_id: PeerId, channel: str, on_end: LaneEnded) -> Lane:
        await self.let.wait()
        if not self._is_reachable:
            raise PeerUnreachable("nobody there")
        self.opened.append(WrittenLane(peer_id))
        return self.opened[-1]

    async def open_ahead(self, peer_id: PeerId, channel: str, on_end: LaneEnded) -> Lane | None:
        await self.let.wait()
        return await self.open(peer_id, channel, on_end) if self._is_direct else None


def outlets_through(door: SlowDoor, broken: list[PeerId]) -> Outlets:
    return Outlets(door, "vector", lambda peer_id, why: broken.append(peer_id))


def test_what_is_sent_over_a_lane_opened_ahead_opens_no_other_one() -> None:
    async def main() -> None:
        door = SlowDoor()
        outlets = outlets_through(door, [])
        assert outlets.expect_ahead(BOB)
        door.let.set()
        await outlets.open(BOB)
        assert not outlets.expect(BOB)
        outlets.post(BOB, b"hello", b"")
        assert [lane.posted for lane in door.opened] == [[b"hello"]]
        await outlets.close()

    run(main())


def test_where_only_a_stream_would_do_none_is_opened_ahead() -> None:
    async def main() -> None:
        door = SlowDoor(is_direct=False)
        broken: list[PeerId] = []
        outlets = outlets_through(door, broken)
        assert outlets.expect_ahead(BOB)
        door.let.set()
        await outlets.open(BOB)
        assert not door.opened and not broken
        assert outlets.expect(BOB), "so one is opened when it is needed"

    run(main())


def test_unless_it_is_needed_meanwhile() -> None:
    async def main() -> None:
        door = SlowDoor(is_direct=False)
        outlets = outlets_through(door, [])
        outlets.expect_ahead(BOB)
        opening = asyncio.create_task(outlets.open(BOB))
        await asyncio.sleep(0)
        assert not outlets.expect(BOB), "it is on its way"
        outlets.post(BOB, b"hello", b"")
        door.let.set()
        await opening
        assert [lane.posted for lane in door.opened] == [[b"hello"]]
        await outlets.close()

    run(main())


def test_a_peer_meets_some_others_and_waits_for_none_of_them_for_long() -> None:
    async def main() -> None:
        door = SlowDoor()
        averager = TreeAllReduce(door, "job", 10)
        others = {peer(f"peer {number}") for number in range(2 * MAX_MET)}
        loop = asyncio.get_running_loop()
        began = loop.time()
        await averager.meet(others | {door.peer_id})
        assert loop.time() - began == MEET_S
        door.let.set()
        await averager.meet(())
        await asyncio.sleep(0.1)
        assert len({lane.peer_id for lane in door.opened} & others) == len(door.opened) == MAX_MET
        await averager.meet(others)
        assert len(door.opened) == MAX_MET, "they are open"
        await averager.close()

    run(main())


def test_who_cannot_be_reached_ahead_can_be_tried_again() -> None:
    async def main() -> None:
        door = SlowDoor(is_reachable=False)
        broken: list[PeerId] = []
        outlets = outlets_through(door, broken)
        outlets.expect_ahead(BOB)
        assert not outlets.expect_ahead(BOB)
        door.let.set()
        await outlets.open(BOB)
        assert not broken, "nobody waits for it"
        assert outlets.expect(BOB)

    run(main())
