"""Neighbours found by multicast, on the loopback interface."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.contracts.networks import START, ManualClock, identity_of
from tests.contracts.test_record_store import job_list, peer_record
from zoonet.errors import ConfigError
from zoonet.membership import Lan, LanConfig
from zoonet.membership.lan import MAGIC, MAX_BEACON_BYTES


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def loopback(**options: Any) -> LanConfig:
    return LanConfig(**{"interface": "127.0.0.1", "port": free_port(), **options})


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30):
            await story()

    asyncio.run(main())


def names(records: list[Any]) -> list[str]:
    return [record.body.name for record in records]


def test_two_peers_find_each_other_without_any_address() -> None:
    async def story() -> None:
        clock, config = ManualClock(), loopback(interval_s=3600)
        a, b = identity_of("a"), identity_of("b")
        async with Lan.open(a.peer_id, config, clock) as first:
            first.present(peer_record(a, name="a"))
            async with Lan.open(b.peer_id, config, clock) as second:
                second.present(peer_record(b, name="b"))
                # The first one answers the newcomer, long before its own next beacon.
                assert names(await second.search(10)) == ["a"]
                assert names(await first.search(10)) == ["b"]
                clock.time = START + 61
                assert first.peers() == []

    run(story)


def send(config: LanConfig, *datagrams: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        interface = socket.inet_aton(config.interface)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface)
        for datagram in datagrams:
            sender.sendto(datagram, (config.group, config.port))


def test_beacons_that_cannot_be_believed_are_refused() -> None:
    async def story() -> None:
        config, eve = loopback(), identity_of("eve")
        record = peer_record(eve, name="eve", sequence=5)
        async with Lan.open(identity_of("a").peer_id, config, ManualClock()) as lan:
            send(
                config,
                b"",
                b"something else entirely",
                MAGIC,
                MAGIC + b"garbage",
                MAGIC + record.raw[:-1] + bytes([record.raw[-1] ^ 1]),
                MAGIC + bytes(MAX_BEACON_BYTES),
                MAGIC + job_list(eve).raw,
                MAGIC + peer_record(eve, lifetime_s=-1).raw,
                MAGIC + record.raw,
                MAGIC + peer_record(eve, name="older", sequence=4).raw,
            )
            assert names(await lan.search(10)) == ["eve"]
            assert lan.num_refused == 8

    run(story)


def test_a_flood_costs_a_bounded_number_of_signature_checks() -> None:
    async def story() -> None:
        config = loopback()
        async with Lan.open(identity_of("a").peer_id, config, ManualClock()) as lan:
            for number in range(2000):
                lan.datagram_received(MAGIC + bytes(10) + number.to_bytes(4, "big"), ("x", 1))
            assert 100 <= lan.num_refused <= 200

    run(story)


def test_a_peer_that_will_not_be_found_hears_and_says_nothing() -> None:
    async def story() -> None:
        config = loopback()
        silent = loopback(port=config.port, is_enabled=False)
        a, b = identity_of("a"), identity_of("b")
        async with (
            Lan.open(a.peer_id, silent, ManualClock()) as off,
            Lan.open(b.peer_id, config, ManualClock()) as on,
        ):
            off.present(peer_record(a))
            on.present(peer_record(b))
            assert await on.search(0.2) == []
            assert await off.search(0) == []

    run(story)


def test_a_machine_without_multicast_hears_nobody_and_goes_on() -> None:
    async def story() -> None:
        config = loopback(interface="203.0.113.77")
        async with Lan.open(identity_of("a").peer_id, config, ManualClock()) as lan:
            lan.present(peer_record(identity_of("a")))
            assert await lan.search(0.05) == []

    run(story)


def test_settings_that_cannot_work_are_refused() -> None:
    for wrong in ({"group": "10.0.0.1"}, {"group": "lan"}, {"port": 0}, {"interval_s": 0}):
        with pytest.raises(ConfigError):
            LanConfig(**wrong)  # type: ignore[arg-type]
