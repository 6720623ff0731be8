"""What a hostile DHT node may try, on real daemons."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from tests.contracts.networks import LOOPBACK, START, ManualClock, identity_of, store_raw
from tests.contracts.test_record_store import job_list, peer_record
from tests.net.test_decoder import nested
from zoonet.net import Host, HostConfig
from zoonet.net.decoder import encode
from zoonet.net.protocol import key_id_of, node_id_of
from zoonet.net.substrate import DHTID, P2PHandlerError, PeerID, dht_pb2
from zoonet.records import JOBS_KEY, JobList, PeerRecord, peers_key

pytestmark = pytest.mark.p2p


@pytest.fixture
def base() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="zoonet-test-"))
    yield path
    shutil.rmtree(path)


@asynccontextmanager
async def victim_and_attacker(base: Path, clock: ManualClock) -> AsyncIterator[tuple[Host, Host]]:
    def config(name: str, *bootstrap: str) -> HostConfig:
        return HostConfig(run_dir=base / name, listen=LOOPBACK, bootstrap=bootstrap)

    async with Host.open(identity_of("victim"), config("v"), clock) as victim:
        known = await victim.addresses()
        async with Host.open(identity_of("attacker"), config("a", *known), clock) as attacker:
            yield victim, attacker


Attack = Callable[[Host, Host, ManualClock], Awaitable[None]]


def run(base: Path, attack: Attack) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with asyncio.timeout(180), victim_and_attacker(base, clock) as (victim, attacker):
            await attack(victim, attacker, clock)

    uvloop.run(main())


def test_a_valid_record_is_refused_under_every_other_key_subkey_and_expiry(base: Path) -> None:
    async def attack(victim: Host, attacker: Host, clock: ManualClock) -> None:
        record = peer_record(identity_of("eve"))
        author, value, end = encode(record.author), encode(record.raw), record.expires_at
        stranger = encode(identity_of("mallory").peer_id)
        store = victim.peer_id

        async def put(key: str, subkey: bytes, expires_at: float) -> list[bool]:
            return await store_raw(attacker, store, key, subkey, value, expires_at)

        assert await put(JOBS_KEY, author, end) == [False]
        assert await put(record.key, stranger, end) == [False]
        assert await put(record.key, author, end + 1) == [False]
        assert await put(record.key, author, end - 1) == [False]
        assert await put(record.key, author, float("nan")) == [False]
        assert victim.records.refusals == {"misplaced": 5}
        assert await victim.records.fetch(record.key, PeerRecord) == []
        assert await put(record.key, author, end) == [True]
        assert len(await victim.records.fetch(record.key, PeerRecord)) == 1

    run(base, attack)


def test_a_replay_does_not_shorten_the_life_of_the_current_record(base: Path) -> None:
    async def attack(victim: Host, attacker: Host, clock: ManualClock) -> None:
        eve = identity_of("eve")
        old = peer_record(eve, sequence=1, lifetime_s=10)
        new = peer_record(eve, sequence=2, lifetime_s=90)

        async def put(record: Any) -> list[bool]:
            value = encode(record.raw)
            subkey = encode(record.author)
            return await store_raw(
                attacker, victim.peer_id, record.key, subkey, value, record.expires_at
            )

        assert await put(new) == [True]
        assert await put(old) == [False]
        assert victim.records.refusals == {"replayed": 1}
        clock.time = START + 50
        found = await victim.records.fetch(new.key, PeerRecord)
        assert [record.sequence for record in found] == [2]

    run(base, attack)


def test_one_bad_entry_does_not_take_the_good_ones_of_its_request_along(base: Path) -> None:
    async def attack(victim: Host, attacker: Host, clock: ManualClock) -> None:
        good = [job_list(identity_of(name)) for name in ("a", "b", "c")]
        raws = [good[0].raw, b"garbage", good[1].raw, good[2].raw]
        authors = [good[0].author, good[0].author, good[1].author, good[2].author]
        request = dht_pb2.StoreRequest(
            keys=[key_id_of(JOBS_KEY).to_bytes()] * 4,
            subkeys=[encode(author) for author in authors],
            values=[encode(raw) for raw in raws],
            expiration_time=[good[0].expires_at] * 4,
            in_cache=[False] * 4,
        )
        stub = attacker._dht._protocol.get_stub(PeerID.from_base58(victim.peer_id))
        response = await stub.rpc_store(request, timeout=10)
        assert list(response.store_ok) == [True, False, True, True]
        assert len(await victim.records.fetch(JOBS_KEY, JobList)) == 3

    run(base, attack)


def test_malformed_requests_are_answered_or_refused_and_the_node_lives(base: Path) -> None:
    bomb = nested(50_000, 0x40)

    async def attack(victim: Host, attacker: Host, clock: ManualClock) -> None:
        record = peer_record(identity_of("eve"))
        key, end = record.key, record.expires_at
        for subkey, value in (
            (bomb, encode(record.raw)),
            (encode(record.author), bomb),
            (b"", b""),
            (msgspec.msgpack.encode(None), encode(record.raw)),
            (encode(record.author), encode(os.urandom(1_000_000))),
        ):
            assert await store_raw(attacker, victim.peer_id, key, subkey, value, end) == [False]
        stub = attacker._dht._protocol.get_stub(PeerID.from_base58(victim.peer_id))
        uneven = dht_pb2.StoreRequest(keys=[b"k" * 20] * 3, subkeys=[b"s"])
        assert list((await stub.rpc_store(uneven, timeout=10)).store_ok) == []
        many = dht_pb2.FindRequest(keys=[os.urandom(20) for _ in range(1000)])
        assert len((await stub.rpc_find(many, timeout=10)).results) <= 64
        for odd in (b"", b"x" * 5000):
            with contextlib.suppress(P2PHandlerError):
                await stub.rpc_find(dht_pb2.FindRequest(keys=[odd]), timeout=10)
        for node_id in (b"x" * 5000, b"y" * 20, b"z"):
            peer = dht_pb2.NodeInfo(node_id=node_id)
            await stub.rpc_ping(dht_pb2.PingRequest(peer=peer), timeout=10)
        await attacker.records.publish(peer_record(identity_of("attacker")))
        key = peers_key(attacker.peer_id)
        assert len(await victim.records.fetch(key, PeerRecord)) == 1

    run(base, attack)


def test_nobody_chooses_a_place_in_the_dht(base: Path) -> None:
    async def attack(victim: Host, attacker: Host, clock: ManualClock) -> None:
        protocol = attacker._dht._protocol
        chosen = key_id_of("jobs")
        stub = protocol.get_stub(PeerID.from_base58(victim.peer_id))
        peer = dht_pb2.NodeInfo(node_id=chosen.to_bytes())
        await stub.rpc_ping(dht_pb2.PingRequest(peer=peer), timeout=10)
        await stub.rpc_find(dht_pb2.FindRequest(keys=[chosen.to_bytes()], peer=peer), timeout=10)
        table = victim._dht._protocol.routing_table
        assert chosen not in table
        assert victim._dht._protocol.num_false_node_ids == 2
        raw = PeerID.from_base58(attacker.peer_id).to_bytes()
        assert table[PeerID(raw)] == node_id_of(raw)

    run(base, attack)


def test_false_neighbours_and_false_records_in_an_answer_are_passed_over(base: Path) -> None:
    async def attack(victim: Host, attacker: Host, clock: ManualClock) -> None:
        eve, other = identity_of("eve"), identity_of("other")
        raw_other = PeerID.from_base58(other.peer_id).to_bytes()
        result = dht_pb2.FindResult(
            type=dht_pb2.FOUND_DICTIONARY,
            value=nested(50_000, 0x50),
            expiration_time=START + 60,
            nearest_node_ids=[
                b"n" * 20,
                node_id_of(raw_other).to_bytes(),
                b"short",
                b"n" * 5000,
            ],
            nearest_peer_ids=[raw_other, raw_other, b"p" * 1_000_000, raw_other],
        )
        protocol = victim._dht._protocol
        neighbours = protocol._read_neighbours(result)
        assert {str(peer) for peer in neighbours.values()} == {other.peer_id}
        assert protocol._read_result(DHTID(1), result) == []
        assert victim.records.refusals == {"malformed": 1}
        assert eve.peer_id not in neighbours

    run(base, attack)


def test_an_announcement_of_another_peers_record_is_refused(base: Path) -> None:
    async def attack(victim: Host, attacker: Host, clock: ManualClock) -> None:
        record = peer_record(identity_of("eve"))
        with pytest.raises(ValueError, match="only its author"):
            await attacker.records.announce("peers", record)
        async with victim.records.listen("peers") as announcements:
            while not await attacker.records.listeners("peers"):
                await asyncio.sleep(0.02)
            for raw in (record.raw, b"garbage", bytes(70_000)):
                await attacker._control.publish("zoonet/peers", raw)
            own = peer_record(identity_of("attacker"))
            hearing = asyncio.ensure_future(anext(announcements))
            while sum(victim.records.refusals.values()) < 3:
                await asyncio.wait([hearing], timeout=0.05)
            await attacker.records.announce("peers", own)
            assert (await hearing).raw == own.raw
        assert victim.records.refusals == {"misplaced": 1, "malformed": 1, "oversized": 1}

    run(base, attack)
