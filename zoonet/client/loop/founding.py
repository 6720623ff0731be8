"""How those who come to a run agree on the parameters that it begins with.

Whoever finds nobody there offers its own model's, waits until others can have seen that, and looks
again. What somebody trains with already comes first, of mere offers the oldest, of equally old ones
that with the lesser name. So whoever decides without having seen an offer has begun before that
offer's author decides. Where two have begun apart all the same, since the network kept them apart,
the same order says who goes over to whom, as long as nothing of theirs is certified.

P = flat parameters
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar

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
LOOK_S: Final = 5.0  # between looks for another run of that name
PATIENCE_S: Final = 60.0  # for the record store to answer
RETRY_S: Final = 1.0

T = TypeVar("T")

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
    others: frozenset[PeerId]  # who were there before


@dataclass(frozen=True, slots=True)
class _Offer:
    """Parameters to begin with, and who holds them."""

    is_begun: bool
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
        self._offered_at = -1.0  # loop time; below 0: has neither offered nor waited
        self._said: list[Signed[RunRecord]] = []  # by this peer, last
        self._is_unavailable: set[str] = set()  # offers whose holders are gone

    async def settle(self) -> Founded:
        """Agree on a run, or found it. Raises ConfigError where one of that name is another."""
        store = self._access.exchange.store
        self._spec_cid = await call_store(store, store.put, self._raw)
        store.pin(self._owner, (self._spec_cid,))
        while True:
            offer = await self._best_offer()
            wait_s = 0.0
            if offer is None:
                wait_s = await self._make_offer()
            elif not offer.is_begun and self._offered_at < 0:
                wait_s = SETTLE_S  # others may see another one first
                self._offered_at = self._now()
            if wait_s:
                await asyncio.sleep(wait_s)
                continue
            assert offer is not None
            if (founded := await self._taken(offer)) is not None:
                await self._say(offer.parameters_cid, offer.founded_at, is_begun=True)
                return founded
            self._is_unavailable.add(offer.parameters_cid)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    async def keep_open(self, founded: Founded) -> None:
        """Say again and again that this peer takes part, until cancelled."""
        is_told = False
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                await self._publish(founded.parameters_cid, founded.founded_at, is_begun=True)
                offer = await self._best_offer()
            except TransportError as error:
                log.info("run=%s not announced: %s", self._spec.run, error)
                continue
            if not is_told and offer is not None and _is_apart(offer, founded):
                is_told = True
                log.warning(
                    "another run=%s is under way, begun earlier and apart from this one, with "
                    "peer=%s in it: end this one and join again to take part in that",
                    self._spec.run,
                    short(offer.holders[0]),
                )

    async def outdone(self, founded: Founded, is_certified: Callable[[], bool]) -> Founded | None:
        """Return the run to take part in instead, once there is one.

        None when a round of this one is certified: from then on its peers stay with it. Raises
        StorageError.
        """
        while not is_certified():
            await asyncio.sleep(LOOK_S)
            try:
                offer = await self._best_offer()
                if offer is None or not _is_apart(offer, founded):
                    continue
                better = await self._taken(offer)
                if is_certified():  # meanwhile
                    return None
                if better is not None:
                    await self._say(offer.parameters_cid, offer.founded_at, is_begun=True)
                    return better
            except TransportError as error:
                log.info("run=%s not looked for: %s", self._spec.run, error)
                continue
            self._is_unavailable.add(offer.parameters_cid)
        return None

    async def others(self) -> frozenset[PeerId]:
        """Who else has come to this run by now: offered parameters, or taken some.

        Not those whose parameters nobody could be asked for: they have gone. Raises
        TransportError.
        """
        return frozenset(
            record.author
            for record in await self._patiently(self._others)
            if record.body.run == self._spec.run
            and record.body.spec_cid == self._spec_cid
            and record.body.parameters_cid not in self._is_unavailable
        )

    async def _others(self) -> list[Signed[RunRecord]]:
        records = await self._access.records.fetch(run_key(self._spec.run), RunRecord)
        me = self._access.identity.peer_id
        return [record for record in records if record.author != me]

    def close(self) -> None:
        """Let go of the initial parameters."""
        self._access.exchange.store.unpin(self._owner)

    async def _best_offer(self) -> _Offer | None:
        others = await self._patiently(self._others)
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

    async def _make_offer(self) -> float:
        """Offer the own parameters; return how many seconds others may take to see that."""
        store = self._access.exchange.store
        content = self._own_P.astype("<f4").tobytes()
        cid = await call_store(store, lambda: put_bytes(store, content, owner=self._owner))
        self._is_unavailable.discard(cid)
        self._offered_at = self._now()
        await self._say(cid, self._access.clock.now(), is_begun=False)
        return max(SETTLE_S, 2 * (self._now() - self._offered_at))  # on a slow network longer

    async def _say(self, parameters_cid: str, founded_at: float, *, is_begun: bool) -> None:
        await self._patiently(lambda: self._publish(parameters_cid, founded_at, is_begun=is_begun))

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask the record store again while nobody answers. Raises TransportError."""
        give_up_at = self._now() + PATIENCE_S
        while True:
            try:
                return await ask()
            except TransportError as error:
                if self._now() > give_up_at:
                    raise
                log.info("run=%s: %s; trying again", self._spec.run, error)
                await asyncio.sleep(RETRY_S)

    async def _publish(self, parameters_cid: str, founded_at: float, *, is_begun: bool) -> None:
        now = self._access.clock.now()
        self._sequence = max(self._sequence + 1, int(now * 1000))
        body = RunRecord(
            run=self._spec.run,
            spec_cid=self._spec_cid,
            parameters_cid=parameters_cid,
            founded_at=founded_at,
            is_begun=is_begun,
        )
        record = sign(
            self._access.identity, body, sequence=self._sequence, expires_at=now + LIFETIME_S
        )
        self._said = [record]
        await self._access.records.publish(record)

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
        others = frozenset(offer.holders) - {self._access.identity.peer_id}
        return Founded(found, offer.parameters_cid, offer.founded_at, initial_P, others)


def _is_apart(offer: _Offer, founded: Founded) -> bool:
    return offer.is_begun and offer.parameters_cid != founded.parameters_cid


def _best(records: Iterable[Signed[RunRecord]]) -> _Offer | None:
    offers: dict[str, list[Signed[RunRecord]]] = {}
    for record in records:
        offers.setdefault(record.body.parameters_cid, []).append(record)
    found = [
        _Offer(
            any(record.body.is_begun for record in same),
            min(record.body.founded_at for record in same),
            cid,
            tuple(record.author for record in same),
        )
        for cid, same in offers.items()
    ]
    return min(
        found,
        key=lambda offer: (not offer.is_begun, offer.founded_at, offer.parameters_cid),
        default=None,
    )
