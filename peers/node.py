"""What every role stands on: a key, the network, blocks and jobs."""

from __future__ import annotations

from dataclasses import dataclass

from zoonet.blocks import BlockExchange
from zoonet.clock import Clock
from zoonet.crypto import Identity, PeerId
from zoonet.jobs import Catalog
from zoonet.records import RecordStore
from zoonet.transport import Lanes, Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One peer's access to the swarm, whether over libp2p or in memory."""

    identity: Identity
    clock: Clock
    transport: Transport
    lanes: Lanes
    records: RecordStore
    exchange: BlockExchange
    catalog: Catalog

    @property
    def peer_id(self) -> PeerId:
        """This peer."""
        return self.identity.peer_id
