"""How those who come to a run agree on the parameters that it begins with.

Whoever finds nobody there offers its own model's. Of several offers the oldest counts, of equally
old ones that with the lesser name; everybody looks once more before an offer of the last seconds
is taken, so that two who come at the same moment see each other.

P = flat parameters
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from zoonet.blocks import BlockExchange, call_store, put_bytes, read_bytes
from zoonet.client.loop.spec import MAX_SPEC_BYTES, RunSpec, decode, differences, encode, job_id
from zoonet.clock import Clock
from zoonet.crypto import Identity, PeerId, short
from zoonet.errors import ConfigError, ProtocolViolation, ShardUnavailable, TransportError
from zoonet.exact import Vector
from zoonet.records import RecordStore, RunRecord, Signed, run_key, sign
from zoonet.transport import Lanes, Transport

SETTLE_S: Final = 3.0  # for an offer to be seen by others who make one
FRESH_S: Final = 10.0  # an offer that is younger may still be outdone
LIFETIME_S: Final = 180.0
RENEW_S: Final = 45.0

log = logging.getLogger(__name__)


class Access(Protocol):
    """One peer's access to the swarm, over libp2p or in memory."""

    @property
    def identity(self) -> Identity: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def transport(self) -> Transport: ...

    @property
    def lanes(self) -> Lanes: ...

    @property
    def records(self) -> RecordStore: ...

    @property
    def exchange(self) -> BlockExchange: ...


@dataclass(frozen=True, slots=True)
class Founded:
    """The run that this peer takes part in."""

    job_id: str
    parameters_cid: str
    founded_at: float
    initial_P: Vector


@dataclass(frozen=True, slots=True)
class _Offer:
    """Parameters to begin with, and who holds them."""

    founded_at: float
    parameters_cid: str
    holders: tuple[PeerId, ...]


class Founding:
    """One peer's way into a run."""

    def __init__(self, access: Access, spec: RunSpec, own_P: Vector) -> None:
        self._access = access
        self._spec = spec
        self._raw = encode(spec)
        self._own_P = own_P
        self._spec_cid = ""
        self._owner = f"run/{run_key(spec.run)}"
        self._sequence = 0
        self._said: list[Signed[RunRecord]] = []  # by this peer, last
        self._is_unavailable: set[str] = set()  # offers whose holders are gone

    async def settle(self) -> Founded:
        """Agree on a run, or found it. Raises ConfigError where one of that name is another."""
        store = self._access.exchange.store
        self._spec_cid = await call_store(store, store.put, self._raw)
        store.pin(self._owner, (self._spec_cid,))
        while True:
            offer = await self._best_offer()
            if offer is None:
                await self._make_offer()
                await asyncio.sleep(SETTLE_S)
                continue
            if offer.founded_at > self._access.clock.now() - FRESH_S:
                await asyncio.sleep(SETTLE_S)
                offer = await self._best_offer() or offer
            if (founded := await self._taken(offer)) is not None:
                return founded
            self._is_unavailable.add(offer.parameters_cid)

    async def keep_open(self, founded: Founded) -> None:
        """Say again and again that this peer takes part, until cancelled."""
        while True:
            await self._say(founded.parameters_cid, founded.founded_at)
            await asyncio.sleep(RENEW_S)

    def close(self) -> None:
        """Let go of the initial parameters."""
        self._access.exchange.store.unpin(self._owner)

    async def _best_offer(self) -> _Offer | None:
        try:
            records = await self._access.records.fetch(run_key(self._spec.run), RunRecord)
        except TransportError as error:
            log.info("run=%s not looked up: %s", self._spec.run, error)
            records = []
        me = self._access.identity.peer_id
        others = [record for record in records if record.author != me]
        named = [record for record in others if record.body.run == self._spec.run]
        named += self._said
        same = [record for record in named if record.body.spec_cid == self._spec_cid]
        if named and not same:
            await self._refuse(named)
        return _best(
            record for record in same if record.body.parameters_cid not in self._is_unavailable
        )

    async def _refuse(self, named: list[Signed[RunRecord]]) -> None:
        """Say what is different from the run of this name that there is."""
        oldest = min(named, key=lambda record: (record.body.founded_at, record.body.spec_cid))
        cid = oldest.body.spec_cid
        holders = [record.author for record in named if record.body.spec_cid == cid]
        try:
            raw = await self._access.exchange.fetch(cid, holders, max_bytes=MAX_SPEC_BYTES)
            what = differences(self._spec, decode(raw))
        except (TransportError, ProtocolViolation, ConfigError) as error:
            log.info("settings of run=%s not read: %s", self._spec.run, error)
            what = "what exactly could not be asked"
        raise ConfigError(
            f"a run named {self._spec.run!r} is under way with another model or settings: {what}; "
            "use the same ones, or another name"
        )

    async def _make_offer(self) -> None:
        store = self._access.exchange.store
        content = self._own_P.astype("<f4").tobytes()
        cid = await call_store(store, lambda: put_bytes(store, content, owner=self._owner))
        self._is_unavailable.discard(cid)
        await self._say(cid, self._access.clock.now())

    async def _say(self, parameters_cid: str, founded_at: float) -> None:
        now = self._access.clock.now()
        self._sequence = max(self._sequence + 1, int(now * 1000))
        body = RunRecord(
            run=self._spec.run,
            spec_cid=self._spec_cid,
            parameters_cid=parameters_cid,
            founded_at=founded_at,
        )
        record = sign(
            self._access.identity, body, sequence=self._sequence, expires_at=now + LIFETIME_S
        )
        self._said = [record]
        try:
            await self._access.records.publish(record)
        except TransportError as error:
            log.info("run=%s not announced: %s", self._spec.run, error)

    async def _taken(self, offer: _Offer) -> Founded | None:
        """Fetch what the run begins with; None where nobody who holds it is there."""
        exchange, num_bytes = self._access.exchange, 4 * self._spec.num_parameters
        try:
            manifest = await exchange.fetch_file(
                offer.parameters_cid, offer.holders, max_bytes=num_bytes, owner=self._owner
            )
            store = exchange.store
            content = await call_store(store, read_bytes, store, offer.parameters_cid)
        except (ShardUnavailable, ProtocolViolation) as error:
            log.info("run=%s not begun as others do: %s", self._spec.run, error)
            return None
        initial_P = np.frombuffer(content, "<f4").copy()
        if manifest.size != num_bytes or not np.isfinite(initial_P).all():
            log.warning("run=%s has malformed initial parameters", self._spec.run)
            return None
        found = job_id(self._spec_cid, offer.parameters_cid)
        holders = ",".join(short(holder) for holder in offer.holders)
        log.info("run=%s job=%s parameters of peers=%s", self._spec.run, found, holders)
        return Founded(found, offer.parameters_cid, offer.founded_at, initial_P)


def _best(records: Iterable[Signed[RunRecord]]) -> _Offer | None:
    offers: dict[str, list[Signed[RunRecord]]] = {}
    for record in records:
        offers.setdefault(record.body.parameters_cid, []).append(record)
    found = [
        _Offer(
            min(record.body.founded_at for record in same),
            cid,
            tuple(record.author for record in same),
        )
        for cid, same in offers.items()
    ]
    return min(found, key=lambda offer: (offer.founded_at, offer.parameters_cid), default=None)
