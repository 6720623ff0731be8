"""Records on the DHT: published near their key, fetched by merging what the nodes there keep."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Any, Final, Self

from zoonet.crypto import PeerId
from zoonet.errors import PeerUnreachable
from zoonet.net.control import raw_peer_id
from zoonet.net.gate import Gate
from zoonet.net.protocol import RecordValidator, ZoonetDHT, key_id_of, node_id_of
from zoonet.net.shelf import Shelf
from zoonet.net.substrate import P2P, DHTNode, PeerID, traverse_dht
from zoonet.records import Signed
from zoonet.records.envelope import B

NUM_REPLICAS: Final = 5
BEAM_NODES: Final = 10  # how many of the nearest nodes a search asks
NUM_SEARCHERS: Final = 4
RPC_TIMEOUT_S: Final = 10.0
REPUBLISH_S: Final = 300.0
MAX_OWN_RECORDS: Final = 1024

log = logging.getLogger(__name__)


class RecordDHT:
    """A DHT node of ours and the records we published through it."""

    def __init__(self, node: Any, gate: Gate, shelf: Shelf) -> None:
        self._node = node
        self._protocol: ZoonetDHT = node.protocol
        self._gate = gate
        self.shelf = shelf
        # By key and author: a participant also keeps a submitter's records alive.
        self._own: dict[tuple[str, PeerId], tuple[Signed[Any], float]] = {}

    @classmethod
    async def start(cls, p2p: P2P, gate: Gate, *, is_client: bool) -> Self:
        """Start a node that knows nobody yet."""
        shelf = Shelf(gate.now)
        node = await DHTNode.create(
            p2p=p2p,
            node_id=node_id_of(p2p.peer_id.to_bytes()),
            num_replicas=NUM_REPLICAS,
            wait_timeout=RPC_TIMEOUT_S,
            client_mode=is_client,
            record_validator=RecordValidator(gate, shelf),
            blacklist_time=10.0,
            backoff_rate=1.0,
            strict=False,
            ensure_bootstrap_success=False,
        )
        return cls(node, gate, shelf)

    async def stop(self) -> None:
        """Drop what is under way. The daemon's end closes the rest."""
        self._node.is_alive = False
        await self._protocol.stop()

    @property
    def num_neighbours(self) -> int:
        """How many DHT nodes this one knows."""
        return len(self._protocol.routing_table.uid_to_peer_id)

    def knows(self, peer_id: PeerId) -> bool:
        """Whether the peer is in the routing table."""
        return PeerID(raw_peer_id(peer_id)) in self._protocol.routing_table

    async def join(self, peers: Collection[PeerId]) -> tuple[PeerId, ...]:
        """Meet these peers and, through them, our neighbourhood; return who is a DHT node."""
        answers = await asyncio.gather(
            *(self._protocol.call_ping(PeerID(raw_peer_id(peer_id))) for peer_id in peers)
        )
        met = tuple(
            peer_id for peer_id, node_id in zip(peers, answers, strict=True) if node_id is not None
        )
        if met:
            await self.explore()
        return met

    async def explore(self) -> None:
        """Look for our own neighbourhood, which fills the routing table."""
        await self._node.find_nearest_nodes([self._node.node_id], beam_size=BEAM_NODES)

    async def publish(self, record: Signed[Any]) -> None:
        """Store the record with the nodes nearest to its key, and again while it lives.

        Raises PeerUnreachable where nobody keeps it. Safe to cancel.
        """
        now = self._gate.now()
        slot = (record.key, record.author)
        known = self._own.get(slot)
        if known is not None and known[0].sequence > record.sequence:
            log.warning("not published, a newer one stands: key=%s", record.key)
            return
        self._own[slot] = (record, now)
        if len(self._own) > MAX_OWN_RECORDS:
            self._own.pop(min(self._own, key=lambda slot: self._own[slot][0].expires_at))
        num_reached, num_kept = await self._store(record)
        log.debug("published key=%s kept=%d reached=%d", record.key, num_kept, num_reached)
        if num_reached == 0:
            raise PeerUnreachable(f"no peer could be reached to store {record.key}")
        if num_kept == 0:
            log.warning("no peer keeps key=%s: they hold a newer record of ours", record.key)

    async def _store(self, record: Signed[Any]) -> tuple[int, int]:
        """Return how many nodes answered and how many of them keep the record."""
        key = key_id_of(record.key)
        nearest = await self._node.find_nearest_nodes(
            [key],
            k_nearest=NUM_REPLICAS,
            beam_size=BEAM_NODES,
            exclude_self=self._protocol.client_mode,
        )
        answers: list[list[bool] | None] = []
        others = []
        for node_id, peer in nearest[key].items():
            if node_id == self._node.node_id:
                answers.append([self.shelf.put(key.to_bytes(), record)])
            else:
                others.append(self._protocol.store_records(peer, [record]))
        answers += await asyncio.gather(*others)
        reached = [answer for answer in answers if answer]
        return len(reached), sum(answer[0] for answer in reached)

    def tidy(self) -> None:
        """Let go of answered calls: hivemind keeps those that a peer broke off, for ever."""
        calls = self._node.p2p._client.control._handler_tasks
        for call_id in [call_id for call_id, task in calls.items() if task.done()]:
            del calls[call_id]

    async def republish(self) -> None:
        """Store again what we published, since those who kept it come and go."""
        now = self._gate.now()
        for slot, (record, stored_at) in list(self._own.items()):
            if record.expires_at <= now:
                del self._own[slot]
            elif stored_at + REPUBLISH_S <= now:
                self._own[slot] = (record, now)
                await self._store(record)

    async def fetch(self, key: str, body_type: type[B]) -> list[Signed[B]]:
        """Return the newest record of each author that any of the nearest nodes keeps."""
        key_id = key_id_of(key)
        newest: dict[PeerId, Signed[Any]] = {}
        self._merge(newest, self.shelf.get(key_id.to_bytes()))
        self._merge(newest, [own for own, _ in self._own.values() if own.key == key])
        await self._search(key_id, newest)
        now = self._gate.now()
        return [
            record
            for _, record in sorted(newest.items())
            if isinstance(record.body, body_type) and record.expires_at > now
        ]

    def _merge(self, newest: dict[PeerId, Signed[Any]], records: Collection[Signed[Any]]) -> None:
        for record in records:
            known = newest.get(record.author)
            if known is None or record.is_newer_than(known):
                newest[record.author] = record

    async def _search(self, key_id: Any, newest: dict[PeerId, Signed[Any]]) -> None:
        table = self._protocol.routing_table
        peers = dict(table.get_nearest_neighbors(key_id, BEAM_NODES, exclude=self._node.node_id))
        if not peers:
            return

        async def ask(node_id: Any, _: Collection[Any]) -> dict[Any, tuple[Any, bool]]:
            answer = await self._protocol.call_find(peers[node_id], [key_id])
            if answer is None:
                return {key_id: ((), False)}
            found, neighbours = answer[key_id]
            if found is not None:
                self._merge(newest, found.value)
            peers.update(neighbours)
            return {key_id: (tuple(neighbours), False)}

        await traverse_dht(
            queries=[key_id],
            initial_nodes=list(peers),
            beam_size=BEAM_NODES,
            num_workers=NUM_SEARCHERS,
            queries_per_call=1,
            get_neighbors=ask,
            visited_nodes={key_id: {self._node.node_id}},
        )
