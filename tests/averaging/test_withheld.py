"""Who withholds a single chunk of a swarm's first round, and goes on talking."""

from __future__ import annotations

import asyncio

from tests.averaging.forest import Forest
from tests.averaging.makers import peer
from tests.averaging.swarm import JOB_ID
from zoonet.averaging.allreduce import AttemptFailed, TreeAllReduce
from zoonet.averaging.chunks import Kind, decode_header
from zoonet.averaging.lateness import STALLED_S
from zoonet.crypto import PeerId
from zoonet.testing import run
from zoonet.transport import Buffer, LaneEnded, StreamLanes
from zoonet.transport.stream_lanes import StreamLane, protocol_of

NAMES = ("ada", "bob", "cyd", "dan")
WITHHELD = 12  # a chunk that ada averages


class WithholdingLane(StreamLane):
    """A lane over which one part never leaves; everything else does."""

    def post(self, header: bytes, payload: Buffer) -> None:
        parsed = decode_header(header)
        if (parsed.kind, parsed.chunk) != (Kind.PART, WITHHELD):
            super().post(header, payload)


class Withholding(StreamLanes):
    """Opens such lanes only."""

    async def open(self, peer_id: PeerId, channel: str, on_end: LaneEnded) -> StreamLane:
        stream = await self._transport.open(peer_id, protocol_of(channel))
        return WithholdingLane(stream, on_end)


def test_it_is_named_after_seconds_though_nothing_is_usual_yet() -> None:
    async def main() -> tuple[float, AttemptFailed | object]:
        forest = Forest(NAMES)
        await forest.serve("ada", "bob", "cyd")
        lanes = Withholding(forest.transport("dan"))
        liar = forest.reducers["dan"] = TreeAllReduce(lanes, JOB_ID, forest.size)
        await liar.serve()
        await liar.commit(forest.vectors["dan"])
        loop = asyncio.get_running_loop()
        began = loop.time()
        averaging = {name: asyncio.create_task(forest.average(name)) for name in NAMES}
        await asyncio.wait(averaging.values(), return_when=asyncio.FIRST_COMPLETED)
        took_s, found = loop.time() - began, await averaging["ada"]
        for task in averaging.values():
            task.cancel()
        await asyncio.gather(*averaging.values(), return_exceptions=True)
        await forest.close()
        return took_s, found

    took_s, found = run(main())
    assert isinstance(found, AttemptFailed) and found.missing == {peer("dan")}
    assert took_s < STALLED_S + 1.0, found
