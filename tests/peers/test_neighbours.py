"""Peers on one local network, here the loopback interface, find each other without an address."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from peers.peer import PeerOptions, run_peer
from tests.peers.real import LOOPBACK
from zoonet.client import EntryConfig, Network
from zoonet.crypto import Identity
from zoonet.errors import PeerUnreachable
from zoonet.membership import Lan, LanConfig
from zoonet.records import Hardware, PeerRecord, sign

pytestmark = pytest.mark.p2p

HANG_S = 240.0  # no measure of anything: only so that nobody waits for ever


@dataclass
class Street:
    """Peers in this process that look for each other on one local network."""

    scratch: Path
    lan: LanConfig
    capsys: pytest.CaptureFixture[str]
    caplog: pytest.LogCaptureFixture
    said: str = ""

    @asynccontextmanager
    async def peer(self, name: str, **options: Any) -> AsyncIterator[None]:
        """A peer that runs while the block does."""
        home = self.scratch / name
        chosen = {"listen": (LOOPBACK,), "name": name, "lan_config": self.lan, **options}
        running = asyncio.create_task(run_peer(PeerOptions(home=home, **chosen)))
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait({running})
        assert running.cancelled(), "it ended by itself"

    async def invitation(self) -> str:
        """The address that a founder prints for others, once it does."""
        while True:
            self.said += self.capsys.readouterr().out
            if found := re.search(r"zoonet peer --join (\S+)\n", self.said):
                return found[1]
            await asyncio.sleep(0.05)

    async def logged(self, text: str) -> None:
        while text not in self.caplog.text:
            await asyncio.sleep(0.05)


@pytest.fixture
def street(
    scratch: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Street:
    caplog.set_level(logging.INFO, "peers.peer")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # The loopback interface: nobody outside this machine hears a thing.
    return Street(scratch, LanConfig(interface="127.0.0.1", port=port), capsys, caplog)


def beacon_of(identity: Identity, *addresses: str, role: str = "worker") -> Any:
    body = PeerRecord(
        peer_id=identity.peer_id,
        roles=(role,),
        addresses=addresses,
        hardware=Hardware(num_cpus=1, memory_bytes=1),
        version="1",
        started_at=0.0,
    )
    return sign(identity, body, sequence=1, expires_at=time.time() + 300)


@pytest.mark.asyncio
async def test_peers_and_clients_find_the_founder_of_a_swarm_on_the_local_network(
    street: Street,
) -> None:
    async with asyncio.timeout(HANG_S), street.peer("founder"):
        assert (await street.invitation()).startswith("/ip4/127.0.0.1/tcp/")
        assert "joined" not in street.caplog.text
        async with street.peer("neighbour"):
            await street.logged("joined peers=1")
            config = EntryConfig(
                folder=street.scratch / "client", listen=(LOOPBACK,), lan=street.lan
            )
            async with await Network.join(config=config) as network:
                names: set[str] = set()
                while names != {"founder", "neighbour"}:
                    names = {record.body.name for record in await network.peers()}
                    await asyncio.sleep(0.05)
        assert "zoonet peer" not in street.capsys.readouterr().out, "only a founder invites"


@pytest.mark.asyncio
async def test_a_newcomer_speaks_first_on_the_local_network(street: Street) -> None:
    async with asyncio.timeout(HANG_S), street.peer("founder", lan=False):
        address = await street.invitation()
        founder = Identity.load(street.scratch / "founder" / "identity.pem")
        async with Lan.open(founder.peer_id, street.lan) as shy, street.peer("newcomer"):
            await shy.search(30)
            shy.present(beacon_of(founder, address))
            await street.logged("joined peers=1")
            assert "zoonet peer" not in street.capsys.readouterr().out


@pytest.mark.asyncio
async def test_neighbours_whose_beacons_lead_nowhere_are_passed_over(street: Street) -> None:
    odd, visitor = Identity(b"\x31" * 32), Identity(b"\x32" * 32)
    elsewhere = f"/ip4/127.0.0.1/tcp/1/p2p/{visitor.peer_id}"
    async with (
        asyncio.timeout(HANG_S),
        Lan.open(odd.peer_id, street.lan) as oddity,
        Lan.open(visitor.peer_id, street.lan) as visit,
    ):
        oddity.present(beacon_of(odd, "nonsense", "/ip4/x/tcp/1", elsewhere))
        visit.present(beacon_of(visitor, elsewhere, role="client"))
        async with street.peer("founder"):
            await street.invitation()
        config = EntryConfig(folder=street.scratch / "client", lan=street.lan)
        with pytest.raises(PeerUnreachable, match="no peer is known here"):
            await Network.join(config=config)


@pytest.mark.asyncio
async def test_a_founder_that_is_alone_joins_the_neighbour_that_comes_up_later(
    street: Street,
) -> None:
    async with asyncio.timeout(HANG_S), street.peer("founder", lan=False):
        address = await street.invitation()
        founder = Identity.load(street.scratch / "founder" / "identity.pem")
        async with street.peer("lonely"):
            street.said = ""
            await street.invitation()  # nobody was there, so it has founded a swarm, too
            async with Lan.open(founder.peer_id, street.lan) as late:
                late.present(beacon_of(founder, address))
                await street.logged("joined a neighbour")
