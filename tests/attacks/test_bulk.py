"""A member whose bulk bytes break the rules, over real connections: named, and done without."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import numpy as np
import pytest

from tests.attacks.test_chunks import Deaf
from tests.averaging.forest import Forest
from tests.averaging.makers import peer
from tests.averaging.swarm import JOB_ID
from tests.net.lane_peers import Box, LanePeer, routes_nearby, run
from tests.net.test_lanes_attacks import QUICK, Scene
from zoonet.averaging.allreduce import AttemptFailed, TreeAllReduce
from zoonet.averaging.chunks import Header, Kind
from zoonet.net.lanes import HostLanes
from zoonet.net.lanes.certificates import make_credentials
from zoonet.net.lanes.tls import HEAD_BYTES, PREFIX
from zoonet.transport.lanes import MAX_PAYLOAD_BYTES

SIZE = 1000
CHANNEL = f"{JOB_ID}/reduce/1"
HONEST = ("ada", "bob", "cyd")
Misdeed = Callable[[ssl.SSLSocket, Header, int], Awaitable[None]]


@asynccontextmanager
async def swarm() -> AsyncIterator[tuple[Forest, Scene]]:
    """Three honest peers and mal, all with real lanes; the scene is mal before ada's door."""
    forest = Forest((*HONEST, "mal"), size=SIZE)
    async with AsyncExitStack() as stack:
        lanes: dict[str, HostLanes] = {}
        for name in (*HONEST, "mal"):
            lanes[name] = HostLanes(forest.transport(name), QUICK, routes_nearby)
            await stack.enter_async_context(lanes[name].listening())
        await lanes["mal"].serve(CHANNEL, Deaf())
        for name in HONEST:
            reducer = forest.reducers[name] = TreeAllReduce(lanes[name], JOB_ID, SIZE)
            await reducer.serve()
            await reducer.commit(forest.vectors[name])
        ada = LanePeer(lanes["ada"], forest.transport("ada"), Box(), Box())
        yield forest, Scene(ada, ada, forest.transport("mal"), make_credentials(time.time()))
        await forest.close()


def head(header: Header, num_bytes: int) -> bytes:
    raw = header.encode()
    return (PREFIX.pack(len(raw), num_bytes) + raw).ljust(HEAD_BYTES, b"\0")


async def promise_too_much(tls: ssl.SSLSocket, header: Header, num_bytes: int) -> None:
    tls.sendall(head(header, MAX_PAYLOAD_BYTES + 1))


async def stop_in_the_middle(tls: ssl.SSLSocket, header: Header, num_bytes: int) -> None:
    tls.sendall(head(header, num_bytes) + b"half")


async def send_byte_by_byte(tls: ssl.SSLSocket, header: Header, num_bytes: int) -> None:
    with contextlib.suppress(OSError):
        tls.sendall(head(header, num_bytes))
        for _ in range(num_bytes):
            await asyncio.to_thread(tls.sendall, b"x")
            await asyncio.sleep(0.1)


async def break_the_line(tls: ssl.SSLSocket, header: Header, num_bytes: int) -> None:
    tls.sendall(head(header, num_bytes))
    tls.close()


async def send_nonsense(tls: ssl.SSLSocket, header: Header, num_bytes: int) -> None:
    tls.sendall(b"\xff" * 1000)


@pytest.mark.parametrize(
    "misdeed",
    [promise_too_much, stop_in_the_middle, send_byte_by_byte, break_the_line, send_nonsense],
)
def test_bulk_bytes_that_break_the_rules_cost_their_sender_and_nobody_else(
    misdeed: Misdeed,
) -> None:
    async def story() -> None:
        async with swarm() as (forest, mal):
            offer = await mal.ask(channel=CHANNEL)
            tls = await asyncio.to_thread(mal.shake_hands, offer, mal.credentials)
            running = [asyncio.create_task(forest.average(name)) for name in HONEST]
            key, digests = forest.attempt.round_key(), 32 * len(forest.plan.trees)
            doing = asyncio.create_task(misdeed(tls, Header(Kind.COMMITMENT, key, 0), digests))
            failures = await asyncio.gather(*running)
            for failure in failures:
                assert isinstance(failure, AttemptFailed)
                assert failure.missing == {peer("mal")}
            assert "broken" in str(failures[0])
            second = forest.without("mal")
            means = await asyncio.gather(*(forest.average(name, second) for name in HONEST))
            for mean_P in means:
                assert isinstance(mean_P, np.ndarray), mean_P
                assert mean_P.tobytes() == means[0].tobytes()
            np.testing.assert_allclose(means[0], forest.exact_mean(HONEST), rtol=1e-4, atol=1e-5)
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)
            tls.close()

    run(story())
