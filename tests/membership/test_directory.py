"""Who is there, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from tests.contracts.networks import identity_of
from tests.contracts.test_record_store import peer_record
from zoonet.clock import LoopClock
from zoonet.crypto import Identity
from zoonet.errors import ConfigError, PeerUnreachable
from zoonet.membership import Directory, DirectoryConfig
from zoonet.records import PEERS_TOPIC, PeerRecord, Signed
from zoonet.testing import MemoryRecordStore, MemorySwarm, run

CONFIG = DirectoryConfig(heartbeat_s=20, lifetime_s=75, refresh_s=30)


@dataclass
class Member:
    identity: Identity
    directory: Directory
    task: asyncio.Task[None]
    met: list[str]


def body_of(identity: Identity) -> PeerRecord:
    return peer_record(identity).body


@asynccontextmanager
async def member(swarm: MemorySwarm, name: str, *, watches: bool = False, **options: Any) -> Any:
    identity = identity_of(name)
    _, records = swarm.peer(identity)
    met: list[str] = []

    async def describe() -> PeerRecord:
        return body_of(identity)

    directory = Directory(
        identity,
        options.pop("records", records),
        swarm.clock,
        describe=None if watches else describe,
        on_peer=lambda record: met.append(record.author),
        config=options.pop("config", CONFIG),
    )
    task = asyncio.create_task(directory.run())
    try:
        yield Member(identity, directory, task, met)
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task.exception()


class FlakyStore(MemoryRecordStore):
    """A store whose network is up or down as told."""

    is_down = False

    async def publish(self, record: Signed[Any]) -> None:
        if self.is_down:
            raise PeerUnreachable("the network is down")
        await super().publish(record)

    async def announce(self, topic: str, record: Signed[Any]) -> None:
        assert topic == PEERS_TOPIC
        if self.is_down:
            raise PeerUnreachable("the network is down")
        await super().announce(topic, record)


def authors(directory: Directory) -> set[str]:
    return {record.author for record in directory.peers()}


Story = Callable[[MemorySwarm], Awaitable[None]]


def tell(story: Story) -> None:
    async def main() -> None:
        await story(MemorySwarm(clock=LoopClock()))

    run(main())


def test_peers_know_each_other_within_seconds_and_not_themselves() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with member(swarm, "a") as a, member(swarm, "b") as b, member(swarm, "c") as c:
            await asyncio.sleep(1)
            assert authors(a.directory) == {b.identity.peer_id, c.identity.peer_id}
            assert authors(c.directory) == {a.identity.peer_id, b.identity.peer_id}

    tell(story)


def test_a_newcomer_reads_the_records_of_those_who_spoke_before_it_listened() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with member(swarm, "a") as a:
            await asyncio.sleep(5)
            async with member(swarm, "late", watches=True) as late:
                await asyncio.sleep(1)
                assert authors(late.directory) == {a.identity.peer_id}
                assert late.met == [a.identity.peer_id]
                assert authors(a.directory) == set()

    tell(story)


def test_a_peer_that_falls_silent_is_forgotten_and_one_that_lives_is_not() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with member(swarm, "a") as a, member(swarm, "b") as b:
            store = FlakyStore(swarm, identity_of("killed").peer_id)
            async with member(swarm, "killed", records=store) as killed:
                await asyncio.sleep(1)
                killed_id = killed.identity.peer_id
                store.is_down = True  # its goodbye reaches nobody
            await asyncio.sleep(CONFIG.lifetime_s - 5)
            assert killed_id in authors(a.directory)
            await asyncio.sleep(6)
            assert killed_id not in authors(a.directory)
            assert b.identity.peer_id in authors(a.directory)

    tell(story)


def test_a_peer_that_leaves_says_goodbye() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with member(swarm, "a") as a:
            async with member(swarm, "b"):
                await asyncio.sleep(1)
            await asyncio.sleep(6)
            assert authors(a.directory) == set()

    tell(story)


def test_a_change_is_announced_at_once() -> None:
    async def story(swarm: MemorySwarm) -> None:
        async with member(swarm, "a") as a, member(swarm, "b") as b:
            await asyncio.sleep(1)
            before = a.directory.peers()[0].sequence
            b.directory.beat_now()
            await asyncio.sleep(0.5)
            assert a.directory.peers()[0].sequence > before

    tell(story)


def test_the_view_is_bounded() -> None:
    async def story(swarm: MemorySwarm) -> None:
        config = DirectoryConfig(max_peers=3)
        async with member(swarm, "a", watches=True, config=config) as a:
            now = swarm.clock.now()
            for number in range(10):
                identity = identity_of(f"peer {number}")
                a.directory.add(
                    Signed(body_of(identity), identity.peer_id, 1, now + 10 + number, b"")
                )
            assert len(a.directory.peers()) == 3
            assert {record.expires_at - now for record in a.directory.peers()} == {17, 18, 19}

    tell(story)


def test_a_network_that_is_down_is_waited_out() -> None:
    async def story(swarm: MemorySwarm) -> None:
        flaky = FlakyStore(swarm, identity_of("b").peer_id)
        flaky.is_down = True
        async with member(swarm, "a") as a, member(swarm, "b", records=flaky) as b:
            await asyncio.sleep(10)
            assert authors(a.directory) == set()
            flaky.is_down = False
            await asyncio.sleep(CONFIG.heartbeat_s)
            assert authors(a.directory) == {b.identity.peer_id}

    tell(story)


def test_a_heartbeat_slower_than_the_records_life_is_refused() -> None:
    for wrong in ({"heartbeat_s": 80.0}, {"lifetime_s": 9999.0}, {"max_peers": 0}):
        with pytest.raises(ConfigError):
            DirectoryConfig(**wrong)  # type: ignore[arg-type]
