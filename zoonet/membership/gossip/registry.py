"""Gossip on a real network: drives the machine over a `Transport`, and answers from its table."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from zoonet.clock import Clock
from zoonet.crypto import Identity, PeerId, short
from zoonet.errors import InvalidRecord, ProtocolViolation, TransportError, ZoonetError
from zoonet.membership.gossip.config import GossipConfig
from zoonet.membership.gossip.item import GOSSIPED, Gone, Item, MemberRecord, id_of, subject_of
from zoonet.membership.gossip.machine import Accuse, Call, Effect, Machine, Renew
from zoonet.membership.gossip.messages import (
    PROTOCOL,
    Ask,
    AskWire,
    ToldWire,
    from_wire,
    num_told_bytes,
    to_wire,
    told_from_wire,
    told_to_wire,
)
from zoonet.records import JobRecord, PeerRecord, Signed, sign, verify
from zoonet.transport import Transport, call, serve_calls

MAX_CALLS: Final = 16  # under way at one time
MAX_FIND_ROUNDS: Final = 3
GOODBYE_S: Final = 2.0
GOODBYE_LIFETIME_S: Final = 3600.0  # longer where our record would live longer
CHECKS_PER_TURN: Final = 32  # signatures between two looks at everything else
ASKS_PER_S: Final = 1.0  # that one peer may ask in the long run
ASK_BURST: Final = 160.0  # and at once: a newcomer's pages
BYTES_PER_ASK: Final = 128 * 1024  # a longer answer counts as more than one
MAX_METERED: Final = 4096

Describe = Callable[[], Awaitable[PeerRecord]]
Learn = Callable[[PeerId, Iterable[str]], None]

log = logging.getLogger(__name__)


class Registry:
    """Everyone and every job, as this peer knows them. `run` keeps it current.

    `describe` tells what our record says; without it the registry only listens along. `learn` is
    told where a peer is before it is called.
    """

    def __init__(
        self,
        identity: Identity,
        transport: Transport,
        clock: Clock,
        *,
        describe: Describe | None = None,
        learn: Learn = lambda peer_id, addresses: None,
        config: GossipConfig | None = None,
        seed: int | None = None,
    ) -> None:
        self.config = config or GossipConfig()
        self.refusals = 0  # records that could not be believed
        self._identity = identity
        self._transport = transport
        self._clock = clock
        self._describe = describe
        self._learn = learn
        self._random = random.Random(seed)
        self.machine = Machine(
            identity.peer_id,
            self.config,
            seed=self._random.getrandbits(64),
            is_watcher=describe is not None,
        )
        self._sequence = 0
        self._tasks: asyncio.TaskGroup | None = None
        self._slots = asyncio.Semaphore(MAX_CALLS)
        self._meter = _Meter()
        self._is_due = asyncio.Event()
        self._is_settled = asyncio.Event()  # complete, or nobody could be asked
        self._must_renew = False

    # Reading: local, at once.

    @property
    def is_complete(self) -> bool:
        """Whether the table holds what this peer's contacts held when it came."""
        return self.machine.is_complete

    @property
    def is_member(self) -> bool:
        """Whether others know this peer from its own record in their tables."""
        return self._describe is not None and self.is_complete

    def is_known_gone(self, peer_id: PeerId) -> bool:
        """Whether a goodbye or an accusation of a peer stands."""
        return self.machine.table.is_suspected(peer_id)

    def peers(self) -> list[Signed[PeerRecord]]:
        """Records of the other peers, in the order of their ids."""
        records = (item.record for item in self.machine.table.members())
        others = (record for record in records if record.author != self._identity.peer_id)
        return sorted(others, key=lambda record: record.author)

    def jobs(self) -> list[Signed[JobRecord]]:
        """Records of all jobs, cancelled ones too, in the order of their ids."""
        records = [item.record for item in self.machine.table.jobs()]
        return sorted(records, key=lambda record: str(record.body.job_id))

    def find_here(self, key: str) -> list[Signed[Any]]:
        """The records that the table holds under a key."""
        now = self._clock.now()
        return [i.record for i in self.machine.table.find(key) if i.expires_at > now]

    async def find(self, key: str) -> list[Signed[Any]]:
        """The records under a key: from the table, else from three peers, else from three more.

        Empty where none of them knows any. At most three round trips; safe to cancel.
        """
        tried: list[PeerId] = []
        for _ in range(MAX_FIND_ROUNDS):
            peers = [] if self.find_here(key) else self.machine.neighbours.whom_to_ask(key, tried)
            tried += peers
            ask = Ask(is_exchange=False, find=(key,))
            pending = {asyncio.create_task(self._call(Call(peer, ask))) for peer in peers}
            try:
                while pending and not self.find_here(key):
                    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()  # a bug would surface here
            finally:
                for task in pending:
                    task.cancel()
        return self.find_here(key)

    async def complete(self, timeout_s: float) -> bool:
        """Wait until the table is complete, or no contact answered; tell whether it is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._is_settled.wait()
        return self.is_complete

    # Life.

    async def serve(self) -> None:
        """Begin to answer other peers. `run` does it too."""
        await serve_calls(self._transport, PROTOCOL, AskWire, self._answer)

    async def run(self) -> None:
        """Gossip until cancelled, then say goodbye.

        The network's failures are waited out; other exceptions come as an ExceptionGroup.
        """
        await self.serve()
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                try:
                    await self._gossip()
                finally:
                    self._tasks = None
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    await self._say_goodbye()

    async def _gossip(self) -> None:
        await self.renew()
        while True:
            if self._must_renew:
                await self.renew()
            was_complete = self.is_complete
            self._carry_on(self.machine.tick(self._clock.now()))
            if was_complete and not self.is_complete:
                log.warning("out of touch with all other peers for minutes: joining anew")
            pause_s = self.config.tick_s * self._random.uniform(0.8, 1.2)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._is_due.wait()
            self._is_due.clear()

    def meet(self, peer_id: PeerId) -> None:
        """Tell of a peer met elsewhere: a newcomer's way in, a bridge between two swarms."""
        is_first = not self.machine.is_complete
        self.machine.meet(peer_id)
        if is_first:
            self._is_due.set()

    def renew_soon(self) -> None:
        """What `describe` says has changed: sign our record again and tell everyone."""
        self._must_renew = True
        self._is_due.set()

    async def renew(self) -> None:
        """Sign our record again and tell everyone, now."""
        self._must_renew = False
        if self._describe is not None:
            await self._renew()

    def publish(self, record: Signed[Any]) -> None:
        """Take a record of a gossiped kind into the table and tell the neighbours."""
        if record.body.KIND in GOSSIPED:
            self._carry_on(self.machine.publish(Item(record), self._clock.now()))

    # Effects.

    def _carry_on(self, effects: list[Effect]) -> None:
        if self.machine.is_complete or self.machine.has_tried:
            self._is_settled.set()
        if self._tasks is None:
            return
        for effect in effects:
            self._tasks.create_task(self._carry_out(effect))

    async def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Call():
                await self._call(effect)
            case Renew():
                await self._renew()
            case Accuse(accused):
                log.info("no answer from peer=%s", short(accused.author))
                self.publish(self._gone(accused.author, accused.record.sequence, accused))

    async def _call(self, effect: Call) -> None:
        peer_id = effect.peer_id
        known = self.machine.table.member(peer_id)
        if known is not None:
            self._learn(peer_id, known.record.body.addresses)
        try:
            async with self._slots:
                wire = await call(
                    self._transport,
                    peer_id,
                    PROTOCOL,
                    to_wire(effect.ask),
                    ToldWire,
                    timeout_s=self.config.call_timeout_s,
                )
            told = told_from_wire(wire, peer_id, await self._admit(wire.news, peer_id))
        except (TransportError, ProtocolViolation) as error:
            log.debug("gossip with peer=%s failed: %s", short(peer_id), error)
            self._carry_on(self.machine.on_failure(effect, self._clock.now()))
            return
        self._carry_on(self.machine.on_told(effect, told, self._clock.now()))

    async def _answer(self, peer_id: PeerId, wire: AskWire) -> ToldWire:
        if not self._meter.allows(peer_id, asyncio.get_running_loop().time()):
            raise ProtocolViolation(peer_id, "asks too often")
        ask = from_wire(wire, peer_id, await self._admit(wire.news, peer_id))
        told, effects = self.machine.on_ask(peer_id, ask, self._clock.now())
        self._carry_on(effects)
        self._meter.charge(peer_id, num_told_bytes(told) / BYTES_PER_ASK)
        return told_to_wire(told)

    async def _renew(self) -> None:
        assert self._describe is not None
        try:
            body = await self._describe()
        except ZoonetError as error:  # the daemon is busy; the next tick asks again
            log.debug("own record not renewed, next time: %s", error)
            return
        fields = {name: getattr(body, name) for name in body.__struct_fields__}
        now = self._clock.now()
        # Time as the sequence: higher than in any earlier run of this peer.
        self._sequence = max(self._sequence + 1, int(now * 1000))
        record = sign(
            self._identity,
            MemberRecord(**fields),
            sequence=self._sequence,
            expires_at=now + self.config.lifetime_s,
        )
        self.publish(record)

    def _gone(self, peer_id: PeerId, sequence: int, known: Item | None) -> Signed[Gone]:
        now = self._clock.now()
        expires_at = known.expires_at if known is not None else now + GOODBYE_LIFETIME_S
        body = Gone(subject=subject_of(peer_id), seq=sequence)
        self._sequence = max(self._sequence + 1, int(now * 1000))
        return sign(self._identity, body, sequence=self._sequence, expires_at=expires_at)

    async def _say_goodbye(self) -> None:
        """Tell the neighbours, who tell the rest."""
        own = self.machine.table.member(self._identity.peer_id)
        if own is None:
            return
        gone = Item(self._gone(own.author, own.record.sequence, own))
        ask = Ask(is_exchange=False, news=(gone,))
        await asyncio.gather(*(self._call(Call(peer, ask)) for peer in self.machine.leave()))

    # Records from outside.

    async def _admit(self, raws: Iterable[bytes], sender: PeerId) -> tuple[Item, ...]:
        """Verify the records of one message; what is known byte for byte is not checked again.

        Raises ProtocolViolation for a forgery: its sender passed on what it never checked.
        """
        items = []
        num_checked = 0
        for raw in raws:
            known = self.machine.table.by_id(id_of(raw))
            if known is not None and known.record.raw == raw:
                items.append(known)
                continue
            num_checked += 1
            if num_checked % CHECKS_PER_TURN == 0:
                await asyncio.sleep(0)
            try:
                record = verify(raw, now=self._clock.now())
            except InvalidRecord as error:
                self.refusals += 1
                if error.reason in ("forged", "malformed", "oversized"):
                    raise ProtocolViolation(sender, f"passed on a bad record: {error}") from error
                continue
            items.append(Item(record))
        return tuple(items)

    def __repr__(self) -> str:
        table = self.machine.table
        return f"Registry({short(self._identity.peer_id)}, {table.num_members} members)"


class _Meter:
    """How often each peer may ask: a bucket of tokens for each, a bounded number of buckets."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[PeerId, tuple[float, float]] = OrderedDict()

    def allows(self, peer_id: PeerId, now: float) -> bool:
        """Take a token; False where there is none."""
        tokens, at = self._buckets.pop(peer_id, (ASK_BURST, now))
        tokens = min(ASK_BURST, tokens + (now - at) * ASKS_PER_S)
        self._buckets[peer_id] = (tokens - 1 if tokens >= 1 else tokens, now)
        if len(self._buckets) > MAX_METERED:
            self._buckets.popitem(last=False)
        return tokens >= 1

    def charge(self, peer_id: PeerId, num: float) -> None:
        """Take more tokens, after the fact."""
        tokens, at = self._buckets.get(peer_id, (ASK_BURST, 0.0))
        self._buckets[peer_id] = (tokens - num, at)
