"""Blocks between peers, in virtual time: several holders, liars, stalls, losses."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from zoonet.blocks import BlockExchange, Codec, MemoryBlockStore, cid_of, put_bytes, read_bytes
from zoonet.blocks.exchange import PROTOCOL, Want
from zoonet.crypto import Identity, PeerId
from zoonet.errors import (
    DigestMismatch,
    ProtocolViolation,
    ShardUnavailable,
    StorageError,
    StreamClosed,
)
from zoonet.testing import FaultPlan, MemorySwarm, run
from zoonet.transport import Stream, receive_request, send_reply

CONTENT = random.Random(0).randbytes(10_240)
IDENTITIES = [Identity(bytes([number]) * 32) for number in range(1, 6)]


class Peer:
    def __init__(self, swarm: MemorySwarm, identity: Identity, max_bytes: int = 10**6) -> None:
        self.id = identity.peer_id
        self.transport, _ = swarm.peer(identity)
        self.store = MemoryBlockStore(max_bytes=max_bytes)
        self.exchange = BlockExchange(self.transport, self.store, stall_timeout_s=20.0)


async def peers_of(swarm: MemorySwarm, num: int) -> list[Peer]:
    peers = [Peer(swarm, identity) for identity in IDENTITIES[:num]]
    for peer in peers:
        await peer.exchange.serve()
    return peers


def test_a_file_comes_from_several_holders_at_once() -> None:
    async def story() -> None:
        asker, first, second = await peers_of(MemorySwarm(), 3)
        for holder in (first, second):
            cid = put_bytes(holder.store, CONTENT, block_bytes=256)
        seen: list[tuple[int, int]] = []
        await asker.exchange.fetch_file(
            cid, [first.id, second.id], on_progress=lambda done, total: seen.append((done, total))
        )
        assert read_bytes(asker.store, cid) == CONTENT
        assert seen[-1] == (len(CONTENT), len(CONTENT))
        assert seen == sorted(seen)
        assert min(first.transport.sent_bytes, second.transport.sent_bytes) > len(CONTENT) // 4

    run(story())


def test_blocks_that_are_here_are_not_asked_for_again() -> None:
    async def story() -> None:
        asker, holder = await peers_of(MemorySwarm(), 2)
        cid = put_bytes(holder.store, CONTENT, block_bytes=1024)
        await asker.exchange.fetch_file(cid, [holder.id])
        sent_bytes = holder.transport.sent_bytes
        await asker.exchange.fetch_file(cid, [])
        asker.store.delete(cid_of(CONTENT[:1024]))
        await asker.exchange.fetch_file(cid, [holder.id])
        assert holder.transport.sent_bytes - sent_bytes < 1200

    run(story())


def serving(block_for: Callable[[str], bytes]) -> Callable[[Stream], Awaitable[None]]:
    async def handle(stream: Stream) -> None:
        while True:
            want = await receive_request(stream, Want)
            await send_reply(stream, block_for(want.cid))

    return handle


def test_a_holder_that_sends_wrong_bytes_is_named_and_avoided(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        asker, liar, honest = await peers_of(MemorySwarm(), 3)
        cid = put_bytes(honest.store, CONTENT, block_bytes=256)
        await liar.transport.serve(PROTOCOL, serving(lambda _: b"wrong"))
        await asker.exchange.fetch_file(cid, [liar.id, honest.id])
        assert read_bytes(asker.store, cid) == CONTENT
        assert asker.exchange.distrusted == {liar.id}
        assert not asker.store.has(cid_of(b"wrong"))
        with pytest.raises(ShardUnavailable):
            await asker.exchange.fetch(cid_of(b"wrong"), [liar.id])

    run(story())
    assert f"wrong bytes, not asked again peer={IDENTITIES[1].peer_id[-8:]}" in caplog.text


def test_a_stalled_holder_costs_seconds_not_the_fetch() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        asker, stalled, honest = await peers_of(swarm, 3)
        cid = put_bytes(honest.store, CONTENT, block_bytes=256)

        async def never(stream: Stream) -> None:
            while True:
                await stream.receive()

        await stalled.transport.serve(PROTOCOL, never)
        started_at = swarm.clock.now()
        await asker.exchange.fetch_file(cid, [stalled.id, honest.id])
        assert read_bytes(asker.store, cid) == CONTENT
        assert swarm.clock.now() - started_at < 6.0

    run(story())


def test_a_holder_killed_in_the_middle_is_replaced() -> None:
    async def story() -> None:
        swarm = MemorySwarm(faults=FaultPlan(latency_s=0.05))
        asker, first, second = await peers_of(swarm, 3)
        for holder in (first, second):
            cid = put_bytes(holder.store, CONTENT, block_bytes=256)
        doomed: list[PeerId] = [first.id]

        def kill_once(done: int, _: int) -> None:
            if doomed and done > len(CONTENT) // 2:
                for stream in list(swarm.transports.pop(doomed.pop()).streams):
                    stream.break_both()

        await asker.exchange.fetch_file(cid, [first.id, second.id], on_progress=kill_once)
        assert doomed == []
        assert read_bytes(asker.store, cid) == CONTENT

    run(story())


def test_a_block_that_nobody_holds_is_unavailable_and_says_who_was_asked() -> None:
    async def story() -> None:
        asker, holder = await peers_of(MemorySwarm(), 2)
        with pytest.raises(ShardUnavailable, match=f"asked: {holder.id[-8:]}"):
            await asker.exchange.fetch(cid_of(b"nowhere"), [holder.id])
        with pytest.raises(ShardUnavailable, match="asked: nobody"):
            await asker.exchange.fetch(cid_of(b"nowhere"), [])

    run(story())


def test_two_holders_of_half_a_file_each_are_enough() -> None:
    async def story() -> None:
        asker, first, second = await peers_of(MemorySwarm(), 3)
        for holder in (first, second):
            cid = put_bytes(holder.store, CONTENT[:512], block_bytes=256)
        first.store.delete(cid_of(CONTENT[:256]))
        second.store.delete(cid_of(CONTENT[256:512]))
        await asker.exchange.fetch_file(cid, [first.id, second.id])
        assert read_bytes(asker.store, cid) == CONTENT[:512]

    run(story())


def test_a_damaged_local_copy_is_fetched_again() -> None:
    class Damaged(MemoryBlockStore):
        is_damaged = True

        def get(self, cid: str) -> bytes:
            if self.is_damaged:
                self.is_damaged = False
                self.delete(cid)
                raise DigestMismatch("", "damaged on the disk")
            return super().get(cid)

    async def story() -> None:
        asker, holder = await peers_of(MemorySwarm(), 2)
        cid = holder.store.put(b"right")
        exchange = BlockExchange(asker.transport, Damaged())
        exchange.store.put(b"right")
        assert await exchange.fetch(cid, [holder.id]) == b"right"

    run(story())


def test_a_full_store_stops_the_fetch_and_keeps_its_reason() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        asker = Peer(swarm, IDENTITIES[0], max_bytes=5000)
        (holder,) = await peers_of_others(swarm)
        cid = put_bytes(holder.store, CONTENT, block_bytes=256)
        with pytest.raises(StorageError, match="the block store is full"):
            await asker.exchange.fetch_file(cid, [holder.id])

    run(story())


async def peers_of_others(swarm: MemorySwarm) -> list[Peer]:
    holder = Peer(swarm, IDENTITIES[1])
    await holder.exchange.serve()
    return [holder]


def test_a_file_larger_than_allowed_is_refused_before_its_blocks_are_asked_for() -> None:
    async def story() -> None:
        asker, holder = await peers_of(MemorySwarm(), 2)
        cid = put_bytes(holder.store, CONTENT, block_bytes=256)
        with pytest.raises(ProtocolViolation, match="at most 1000"):
            await asker.exchange.fetch_file(cid, [holder.id], max_bytes=1000)
        assert not asker.store.has(cid_of(CONTENT[:256]))

    run(story())


def test_a_file_of_over_a_thousand_blocks_is_fetched_with_its_nodes() -> None:
    async def story() -> None:
        asker, *holders = await peers_of(MemorySwarm(), 3)
        content = b"".join(number.to_bytes(4, "big") for number in range(1100))
        for holder in holders:
            cid = put_bytes(holder.store, content, block_bytes=4)
        heard: list[tuple[int, int]] = []
        await asker.exchange.fetch_file(
            cid,
            [holder.id for holder in holders],
            on_progress=lambda done, total: heard.append((done, total)),
        )
        assert read_bytes(asker.store, cid) == content
        assert heard[-1] == (4400, 4400)

    run(story())


def test_a_file_of_a_single_block_is_that_block() -> None:
    async def story() -> None:
        asker, holder = await peers_of(MemorySwarm(), 2)
        cid = put_bytes(holder.store, b"text")
        assert cid == cid_of(b"text")
        await asker.exchange.fetch_file(cid, [holder.id])
        assert read_bytes(asker.store, cid) == b"text"
        with pytest.raises(ProtocolViolation, match="at most 3"):
            await asker.exchange.fetch_file(cid, [holder.id], max_bytes=3)

    run(story())


@pytest.mark.parametrize("cid", ["", "../../etc/passwd", "bafyrei" + "a" * 52])
def test_what_is_no_name_of_a_block_is_asked_of_nobody(cid: str) -> None:
    async def story() -> None:
        asker, holder = await peers_of(MemorySwarm(), 2)
        with pytest.raises(ProtocolViolation, match="not the name of a block"):
            await asker.exchange.fetch_file(cid, [holder.id])

    run(story())


def test_a_block_that_is_no_node_of_a_file_is_refused() -> None:
    async def story() -> None:
        asker, holder = await peers_of(MemorySwarm(), 2)
        with pytest.raises(ProtocolViolation, match="not a node of a file"):
            await asker.exchange.fetch_file(holder.store.put(b"text", Codec.DAG_PB), [holder.id])

    run(story())


def test_fetched_blocks_stay_pinned_for_their_owner() -> None:
    async def story() -> None:
        swarm = MemorySwarm()
        asker = Peer(swarm, IDENTITIES[0], max_bytes=4000)
        (holder,) = await peers_of_others(swarm)
        cid = put_bytes(holder.store, CONTENT[:1024], block_bytes=256)
        await asker.exchange.fetch_file(cid, [holder.id], owner="job")
        for number in range(10):
            asker.store.put(bytes([number]) * 1000)
        assert read_bytes(asker.store, cid) == CONTENT[:1024]

    run(story())


def test_one_peer_cannot_take_all_streams() -> None:
    async def story() -> None:
        asker, holder = await peers_of(MemorySwarm(), 2)
        cid = holder.store.put(b"block")
        greedy = [await asker.transport.open(holder.id, PROTOCOL) for _ in range(8)]
        with pytest.raises(ShardUnavailable):
            await asker.exchange.fetch(cid, [holder.id])
        for stream in greedy:
            await stream.close()
        assert await asker.exchange.fetch(cid, [holder.id]) == b"block"

    run(story())


@pytest.mark.parametrize("request_frame", [b"", b"junk", msgspec.msgpack.encode({"cid": "../x"})])
def test_a_malformed_question_ends_the_stream_and_nothing_else(request_frame: bytes) -> None:
    async def story() -> None:
        asker, holder = await peers_of(MemorySwarm(), 2)
        stream = await asker.transport.open(holder.id, PROTOCOL)
        await stream.send(request_frame)
        with pytest.raises(StreamClosed):
            await stream.receive()
        assert await asker.exchange.fetch(holder.store.put(b"block"), [holder.id]) == b"block"

    run(story())
