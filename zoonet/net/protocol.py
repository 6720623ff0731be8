"""How our DHT nodes speak: hivemind's Kademlia with node ids and records that are checked.

Routing, traversal and the RPC messages are hivemind's. Ours are: a node id that follows from the
peer id (so nobody chooses a place next to a key), storage of verified records only, merging by
sequence, bounded messages both ways.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection, Coroutine, Sequence
from typing import Any, Final

from zoonet.errors import InvalidRecord, ProtocolViolation
from zoonet.net.decoder import (
    MAX_DICTIONARY_BYTES,
    Entry,
    StrictSerializer,
    decode_bytes,
    decode_entries,
    decode_text,
    encode,
    encode_entries,
)
from zoonet.net.foreign import FOREIGN_TYPES
from zoonet.net.gate import Gate
from zoonet.net.shelf import Shelf
from zoonet.net.substrate import (
    DHTID,
    DHTProtocol,
    P2PContext,
    PeerID,
    RecordValidatorBase,
    ValueWithExpiration,
    dht_pb2,
    use_protocol,
)
from zoonet.records import Signed

MAX_KEYS_PER_CALL: Final = 64
MAX_RECORDS_PER_STORE: Final = 512
MAX_STORE_BYTES: Final = 1024 * 1024
MAX_NEIGHBOURS: Final = 64
RAW_PEER_ID_BYTES: Final = 39  # the identity multihash of a secp256k1 key
MAX_PENDING_TASKS: Final = 1024

log = logging.getLogger(__name__)


def node_id_of(raw_peer_id: bytes) -> Any:
    """The only DHT node id that a peer may have."""
    return DHTID.generate(source=b"zoonet-node/1\x00" + raw_peer_id)


def key_id_of(key: str) -> Any:
    """Where a key of the record store lies in the DHT."""
    return DHTID.generate(source=b"zoonet-key/1\x00" + key.encode())


class RecordValidator(RecordValidatorBase):  # type: ignore[misc]  # hivemind is untyped
    """Believes a DHT entry only where its record says the same of key, author and expiry."""

    def __init__(self, gate: Gate, shelf: Shelf) -> None:
        self.gate = gate
        self.shelf = shelf

    def read(
        self, key_id: bytes, author: str, value: bytes, expires_at: float
    ) -> Signed[Any] | None:
        """Return the record of an entry, or None and count why not."""
        try:
            try:
                record = self.gate.admit(decode_bytes(value))
            except ProtocolViolation as error:
                if isinstance(error, InvalidRecord):
                    raise
                raise InvalidRecord("", "malformed", error.evidence) from error
            if record.author != author:
                raise InvalidRecord(record.author, "misplaced", f"under the subkey {author[-8:]}")
            if key_id_of(record.key).to_bytes() != key_id:
                raise InvalidRecord(record.author, "misplaced", f"not under {record.key}")
            if record.expires_at != expires_at:
                raise InvalidRecord(record.author, "misplaced", "with another expiry")
        except InvalidRecord as error:
            self.gate.refuse(error)
            log.debug("refused a record: %s", error)
            return None
        return record

    def validate(self, record: Any) -> bool:
        """hivemind's question about an entry, for code of its own that asks it."""
        try:
            author = decode_text(record.subkey)
        except ProtocolViolation:
            return False
        return self.read(record.key, author, record.value, record.expiration_time) is not None


class ZoonetDHT(DHTProtocol):  # type: ignore[misc]  # hivemind is untyped
    """The DHT's RPCs. Peers of other programs do not answer to its name."""

    serializer = StrictSerializer
    # Computed per class by hivemind: without these the base's handler names would be inherited.
    _rpc_handlers = None
    _stub_type = None

    record_validator: RecordValidator

    def __init__(self, *, _initialized_with_create: bool = False) -> None:
        super().__init__(_initialized_with_create=_initialized_with_create)
        self._pending: set[asyncio.Task[Any]] = set()
        self.num_false_node_ids = 0

    # What others ask of us.

    async def rpc_ping(
        self, request: dht_pb2.PingRequest, context: P2PContext
    ) -> dht_pb2.PingResponse:
        """Someone wants to be in our routing table."""
        if not self._is_own_node_id(request.peer.node_id, context.remote_id):
            request.peer.node_id = b""
        return await super().rpc_ping(request, context)

    async def rpc_store(
        self, request: dht_pb2.StoreRequest, context: P2PContext
    ) -> dht_pb2.StoreResponse:
        """Someone wants us to keep records: all of them are read, each is judged by itself."""
        self._meet(request.peer.node_id, context.remote_id)
        columns = (request.keys, request.subkeys, request.values, request.expiration_time)
        response = dht_pb2.StoreResponse(peer=self.node_info)
        if len({len(column) for column in columns}) != 1:
            self.record_validator.gate.refuse(InvalidRecord("", "malformed", "unequal columns"))
            return response
        for num_read, entry in enumerate(zip(*columns, strict=True)):
            response.store_ok.append(num_read < MAX_RECORDS_PER_STORE and self._keep(*entry))
        return response

    def _keep(self, key_id: bytes, subkey: bytes, value: bytes, expires_at: float) -> bool:
        try:
            author = decode_text(subkey)
        except ProtocolViolation as error:
            self.record_validator.gate.refuse(InvalidRecord("", "malformed", error.evidence))
            return False
        record = self.record_validator.read(key_id, author, value, expires_at)
        return record is not None and self.record_validator.shelf.put(key_id, record)

    async def rpc_find(
        self, request: dht_pb2.FindRequest, context: P2PContext
    ) -> dht_pb2.FindResponse:
        """Someone looks for keys: give the records we keep and the neighbours we know."""
        self._meet(request.peer.node_id, context.remote_id)
        response = dht_pb2.FindResponse(peer=self.node_info)
        budget_bytes = MAX_DICTIONARY_BYTES - 64 * 1024
        for raw_key in request.keys[:MAX_KEYS_PER_CALL]:
            result = response.results.add(type=dht_pb2.NOT_FOUND)
            entries, used_bytes = self._pack(raw_key, budget_bytes)
            budget_bytes -= used_bytes
            if entries:
                result.type = dht_pb2.FOUND_DICTIONARY
                result.value = encode_entries(entries)
                result.expiration_time = max(expires_at for _, _, expires_at in entries)
            asker = node_id_of(context.remote_id.to_bytes())
            for node_id, peer_id in self.routing_table.get_nearest_neighbors(
                DHTID.from_bytes(raw_key[:20]), k=self.bucket_size, exclude=asker
            ):
                result.nearest_node_ids.append(node_id.to_bytes())
                result.nearest_peer_ids.append(peer_id.to_bytes())
        return response

    def _pack(self, key_id: bytes, budget_bytes: int) -> tuple[list[Entry], int]:
        """As many records under a key as fit, beginning anywhere, and their size in bytes."""
        records = self.record_validator.shelf.get(key_id)
        start = random.randrange(len(records)) if records else 0
        entries: list[Entry] = []
        used_bytes = 0
        for record in records[start:] + records[:start]:
            size_bytes = len(record.raw) + 80
            if used_bytes + size_bytes > budget_bytes:
                break
            used_bytes += size_bytes
            entries.append((record.author, encode(record.raw), record.expires_at))
        return entries, used_bytes

    # What we ask of others.

    async def call_find(
        self, peer: Any, keys: Collection[Any]
    ) -> dict[Any, tuple[Any, dict[Any, Any]]] | None:
        """Ask a node for keys.

        Returns, for each key, `ValueWithExpiration` of a list of verified records (None where it
        keeps none) and the neighbours it knows; None where it did not answer.
        """
        keys = list(keys)
        request = dht_pb2.FindRequest(keys=[key.to_bytes() for key in keys], peer=self.node_info)
        response = await self._ask(peer, "rpc_find", request)
        if response is None:
            return None
        found: dict[Any, tuple[Any, dict[Any, Any]]] = {key: (None, {}) for key in keys}
        for key, result in zip(keys, response.results, strict=False):
            records = self._read_result(key, result)
            value = ValueWithExpiration(records, result.expiration_time) if records else None
            found[key] = (value, self._read_neighbours(result))
        return found

    def _read_result(self, key: Any, result: Any) -> list[Signed[Any]]:
        if result.type != dht_pb2.FOUND_DICTIONARY:
            return []
        try:
            entries = decode_entries(result.value)
        except ProtocolViolation as error:
            self.record_validator.gate.refuse(InvalidRecord("", "malformed", error.evidence))
            return []
        raw_key = key.to_bytes()
        records = (self.record_validator.read(raw_key, *entry) for entry in entries)
        return [record for record in records if record is not None]

    def _read_neighbours(self, result: Any) -> dict[Any, Any]:
        neighbours = {}
        pairs = zip(result.nearest_node_ids, result.nearest_peer_ids, strict=False)
        for _, (raw_node_id, raw_peer_id) in zip(range(MAX_NEIGHBOURS), pairs, strict=False):
            if len(raw_peer_id) != RAW_PEER_ID_BYTES:
                continue
            peer_id = PeerID(raw_peer_id)
            if self._is_own_node_id(raw_node_id, peer_id):
                neighbours[node_id_of(raw_peer_id)] = peer_id
        return neighbours

    async def store_records(self, peer: Any, records: Sequence[Signed[Any]]) -> list[bool] | None:
        """Ask a node to keep records; say of each whether it did, None where it did not answer."""
        kept: list[bool] = []
        for batch in _batches(records):
            request = dht_pb2.StoreRequest(
                keys=[key_id_of(record.key).to_bytes() for record in batch],
                subkeys=[encode(record.author) for record in batch],
                values=[encode(record.raw) for record in batch],
                expiration_time=[record.expires_at for record in batch],
                in_cache=[False] * len(batch),
                peer=self.node_info,
            )
            response = await self._ask(peer, "rpc_store", request)
            if response is None:
                return None
            answers = list(response.store_ok)[: len(batch)]
            kept += answers + [False] * (len(batch) - len(answers))
        return kept

    async def call_ping(self, peer: Any, validate: bool = False, strict: bool = True) -> Any:
        """Return the node id of a peer that is a DHT node and answers, else None."""
        response = await self._ask(peer, "rpc_ping", dht_pb2.PingRequest(peer=self.node_info))
        if response is None or not response.peer.node_id:
            return None
        own_node_id = node_id_of(peer.to_bytes())
        return own_node_id if response.peer.node_id == own_node_id.to_bytes() else None

    async def _ask(self, peer: Any, method: str, request: Any) -> Any:
        try:
            async with self.rpc_semaphore:
                rpc = getattr(self.get_stub(peer), method)
                response = await rpc(request, timeout=self.wait_timeout)
        except FOREIGN_TYPES as error:
            log.debug("dht method=%s peer=%s failed: %r", method, str(peer)[-8:], error)
            known = self.routing_table.get(peer_id=peer)
            await self.update_routing_table(known, peer, responded=False)
            return None
        if response.peer.node_id and self._is_own_node_id(response.peer.node_id, peer):
            await self.update_routing_table(None, peer)
        return response

    # Who is where.

    def _is_own_node_id(self, raw_node_id: bytes, peer: Any) -> bool:
        """Whether a claimed node id is the peer's own; an empty one claims nothing."""
        if not raw_node_id:
            return True
        if raw_node_id == node_id_of(peer.to_bytes()).to_bytes():
            return True
        self.num_false_node_ids += 1
        log.debug("peer=%s claims a node id that is not its own", str(peer)[-8:])
        return False

    def _meet(self, raw_node_id: bytes, peer: Any) -> None:
        if raw_node_id and self._is_own_node_id(raw_node_id, peer):
            self._spawn(self.update_routing_table(node_id_of(peer.to_bytes()), peer))

    async def update_routing_table(
        self, node_id: Any, peer_id: Any, responded: bool = True
    ) -> None:
        """Note that a node answered or did not. A new node is handed what it should keep."""
        if responded:
            own_node_id = node_id_of(peer_id.to_bytes())
            if node_id is not None and node_id != own_node_id:
                self.num_false_node_ids += 1
                return
            node_id = own_node_id
            if node_id == self.node_id:
                return
        is_new = responded and node_id not in self.routing_table
        records = self._to_hand_over(node_id) if is_new else []
        await super().update_routing_table(node_id, peer_id, responded)
        if records:
            self._spawn(self.store_records(peer_id, records))

    def _to_hand_over(self, newcomer: Any) -> list[Signed[Any]]:
        """Records that the newcomer is near enough to keep and that we are the one to send."""
        handed: list[Signed[Any]] = []
        shelf = self.record_validator.shelf
        for raw_key in shelf.key_ids():
            key = DHTID.from_bytes(raw_key)
            near = [
                node.xor_distance(key)
                for node, _ in self.routing_table.get_nearest_neighbors(
                    key, self.num_replicas, exclude=self.node_id
                )
            ]
            is_wanted = len(near) < self.num_replicas or newcomer.xor_distance(key) < near[-1]
            if is_wanted and (not near or self.node_id.xor_distance(key) < near[0]):
                handed += shelf.get(raw_key)
        return handed

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        if len(self._pending) >= MAX_PENDING_TASKS:
            work.close()
            return
        task = asyncio.create_task(work)
        self._pending.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._pending.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a DHT task failed", exc_info=task.exception())

    async def stop(self) -> None:
        """Drop what is still under way."""
        for task in list(self._pending):
            task.cancel()
        if self._pending:
            await asyncio.wait(self._pending)


def _batches(records: Sequence[Signed[Any]]) -> list[list[Signed[Any]]]:
    """Cut into requests of bounded count and size."""
    batches: list[list[Signed[Any]]] = []
    size_bytes = 0
    for record in records:
        record_bytes = len(record.raw) + 200
        is_full = bool(batches) and len(batches[-1]) >= MAX_RECORDS_PER_STORE
        if not batches or is_full or size_bytes + record_bytes > MAX_STORE_BYTES:
            batches.append([])
            size_bytes = 0
        batches[-1].append(record)
        size_bytes += record_bytes
    return batches


use_protocol(ZoonetDHT)
