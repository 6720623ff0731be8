"""Peers that play by hand, and swarms of honest ones that must not mind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tests.averaging.swarm import JOB_ID, Swarm, contributed_slots, identity_of
from zoonet.averaging import Chain, RoundsConfig
from zoonet.averaging.chain_sync import ChainPage, ChainRequest
from zoonet.averaging.leases import lease
from zoonet.averaging.messages import (
    Beat,
    Planned,
    Ready,
    Round,
    RoundResult,
    Share,
    cast_vote,
    decode_from_coordinator,
)
from zoonet.averaging.votes import Counted, VoteCast
from zoonet.crypto import Identity, PeerId
from zoonet.errors import ProtocolViolation, TransportError
from zoonet.records import sign
from zoonet.testing import MemoryTransport, run
from zoonet.transport import Stream, call, serve_calls

HONEST = ("ada", "bob", "cyd")
ROUND, VOTE = f"/zoonet/{JOB_ID}/round/1", f"/zoonet/{JOB_ID}/vote/1"
CHAIN = f"/zoonet/{JOB_ID}/chain/1"
REDUCE = f"{JOB_ID}/reduce/1"
INDEX, CHUNK = f"/zoonet/{JOB_ID}/state-index/2", f"/zoonet/{JOB_ID}/state-chunk/2"
NUM_SLOTS = 300

OnReady = Callable[["Hostile", Stream, Ready], Awaitable[None]]


@dataclass
class Hostile:
    """A peer's key and wire in other hands. `victims` are the honest peers of the job."""

    swarm: Swarm
    identity: Identity
    transport: MemoryTransport
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    log: list[object] = field(default_factory=list)

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def victims(self) -> list[PeerId]:
        return [peer.peer_id for peer in self.swarm.peers.values()]

    @property
    def chain(self) -> Chain:
        """The truth as ada sees it: everybody may read it."""
        return self.swarm.peers["ada"].chain

    @property
    def turn(self) -> PeerId:
        """Who coordinates the next round in view 0."""
        return self.chain.turns[0]

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.tasks.add(asyncio.create_task(work))

    # --- as coordinator -----------------------------------------------------------------------

    async def coordinate(self, on_ready: OnReady) -> None:
        """Be an honest member until one's turn comes; then serve the others by hand."""

        async def handle(stream: Stream) -> None:
            ready = msgspec.msgpack.decode(await stream.receive(), type=Ready)
            self.log.append(ready)
            self.turn_coat()
            await on_ready(self, stream, ready)

        await self.transport.serve(ROUND, handle)

    def turn_coat(self) -> None:
        """Stop the honest program that ran under this key until now."""
        for name, peer in list(self.swarm.peers.items()):
            if peer.peer_id == self.peer_id and peer.task is not None:
                del self.swarm.peers[name]
                peer.task.cancel()
                self.tasks.add(peer.task)
                self.spawn(peer.averager.close())

    async def tell(self, stream: Stream, *messages: msgspec.Struct) -> None:
        for message in messages:
            await stream.send(msgspec.msgpack.encode(message))

    async def beat(self, stream: Stream) -> None:
        """Be alive and nothing else."""
        while True:
            await self.tell(stream, Beat())
            await asyncio.sleep(0.5)

    def plan(self, ready: Ready, **fields: object) -> Round:
        """A fair plan of the round that this Ready is for, unless fields say otherwise."""
        chain = self.chain
        order = chain.turns
        ones = dict.fromkeys(chain.roster, ready)
        fair = Round(
            job_id=JOB_ID,
            index=ready.length,
            view=order.index(self.peer_id) if self.peer_id in order else 0,
            parent=ready.head,
            leases=lease(chain.free, ones, 10),
        )
        return msgspec.structs.replace(fair, **fields)

    def planned(self, plan: Round, *, by: Identity | None = None, sequence: int = 1) -> Planned:
        now = self.swarm.memory.clock.now()
        signed = sign(by or self.identity, plan, sequence=sequence, expires_at=now + 600)
        return Planned(record=signed.raw)

    # --- as member or stranger ----------------------------------------------------------------

    def ready(self, **fields: object) -> Ready:
        chain = self.chain
        honest = Ready(job_id=JOB_ID, length=len(chain), head=chain.head, view=0, slots_per_s=10.0)
        return msgspec.structs.replace(honest, **fields)

    async def attend(
        self, coordinator: PeerId, ready: Ready, play: Callable[[Stream], Awaitable[None]]
    ) -> None:
        """Go to a coordinator and play; however that ends."""
        with contextlib.suppress(TransportError, ProtocolViolation, TimeoutError):
            stream = await self.transport.open(coordinator, ROUND)
            try:
                await self.tell(stream, ready)
                await play(stream)
            finally:
                await stream.close()

    async def take_part(self, play: Callable[[Stream], Awaitable[None]], **fields: object) -> None:
        """Attend one round after the other at whoever coordinates it; come back when expelled."""
        view = 0
        while True:
            head = self.chain.head
            order = self.chain.turns
            others = [peer for peer in order if peer != self.peer_id]
            if self.peer_id not in self.chain.roster:
                await self.apply()
            ready = self.ready(**{"view": order.index(others[view % len(others)]), **fields})
            playing = asyncio.create_task(self.attend(others[view % len(others)], ready, play))
            while self.chain.head == head and not playing.done():
                await asyncio.sleep(0.01)
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)
            view = 0 if self.chain.head != head else view + 1
            if view:
                await asyncio.sleep(0.5)

    async def apply(self) -> None:
        """Ask everybody to be let into the next round."""
        for victim in self.victims:
            with contextlib.suppress(TransportError, ProtocolViolation):
                await call(
                    self.transport,
                    victim,
                    CHAIN,
                    ChainRequest(0, 0.0, True),
                    ChainPage,
                    timeout_s=5.0,
                )

    async def hear(self, stream: Stream) -> Any:
        """The next message of a coordinator that is not a beat."""
        while True:
            message = decode_from_coordinator(await stream.receive())
            if not isinstance(message, Beat):
                return message

    async def hear_plan(self, stream: Stream) -> Round:
        message = await self.hear(stream)
        if not isinstance(message, Planned):
            raise ProtocolViolation(stream.peer_id, "no plan")
        return msgspec.msgpack.decode(msgspec.msgpack.decode(message.record)[4], type=Round)

    async def alive(self, stream: Stream) -> None:
        """Beat as a member does."""
        while True:
            await self.tell(stream, Beat())
            await asyncio.sleep(0.5)

    async def vote(self, victim: PeerId, result: RoundResult) -> None:
        with contextlib.suppress(TransportError, ProtocolViolation):
            cast = VoteCast(result, cast_vote(self.identity, result))
            await call(self.transport, victim, VOTE, cast, Counted, timeout_s=5.0)

    def result(self, *shares: Share, **fields: object) -> RoundResult:
        """A result of this peer's own making, after the head."""
        chain = self.chain
        mine = RoundResult(
            job_id=JOB_ID,
            index=len(chain),
            view=0,
            parent=chain.head,
            members=(self.peer_id,),
            joiners=(),
            contributions=shares or (Share(self.peer_id, chain.free),),
            state=bytes(32),
        )
        return msgspec.structs.replace(mine, **fields)

    async def show_chain(self, chain: Chain) -> None:
        """Serve a chain of one's own and say everywhere that it is the better one."""

        async def answer(_: PeerId, request: ChainRequest) -> ChainPage:
            start = min(request.start, len(chain))
            return ChainPage(
                job_id=chain.job_id,
                length=len(chain),
                head=chain.head,
                num_done=chain.num_done,
                parent=chain.head_at(start),
                certificates=tuple(chain.certificates[start : start + 32]),
            )

        await serve_calls(self.transport, CHAIN, ChainRequest, answer)
        for peer in self.swarm.peers.values():
            peer.participant.hint(self.peer_id, chain.num_done, chain.head)


Attack = Callable[[Hostile], Awaitable[None]]


async def overtake(swarm: Swarm, name: str) -> Hostile:
    """Stop an honest peer and hand its key and its place in the roster to somebody else."""
    peer = swarm.peers.pop(name)
    assert peer.task is not None
    peer.task.cancel()
    await asyncio.gather(peer.task, return_exceptions=True)
    await peer.averager.close()
    transport = swarm.memory.transports[peer.peer_id]
    await transport.close()
    for stream in list(transport.streams):
        await stream.close()
    return Hostile(swarm, peer.identity, transport)


def stranger(swarm: Swarm, name: str = "mal") -> Hostile:
    """Somebody who has nothing but a key."""
    identity = identity_of(name)
    return Hostile(swarm, identity, swarm.memory.peer(identity)[0])


@dataclass
class Outcome:
    """What was left when the honest peers had finished the job."""

    swarm: Swarm
    hostile: list[Hostile]
    took_s: float
    most_tasks: int
    bugs: list[dict[str, Any]]

    @property
    def chain(self) -> Chain:
        return self.swarm.peers["ada"].chain


async def _watch_tasks(outcome: Outcome) -> None:
    while True:
        outcome.most_tasks = max(outcome.most_tasks, len(asyncio.all_tasks()))
        await asyncio.sleep(0.25)


async def _play(
    attack: Attack,
    *,
    members: tuple[str, ...],
    turncoats: tuple[str, ...],
    honest: tuple[str, ...],
    strangers: tuple[str, ...],
    after_rounds: int,
    within_s: float,
    num_slots: int,
) -> Outcome:
    insiders = (*members, *turncoats)
    config = RoundsConfig(inner_steps=10, min_founders=len(honest) + len(insiders))
    swarm = Swarm(num_slots, config)
    outcome = Outcome(swarm, [], 0.0, 0, [])
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: outcome.bugs.append(context))
    for name in (*honest, *insiders):
        await swarm.add(name)
    if after_rounds or insiders:
        swarm.start()
        first = swarm.peers[honest[0]]
        await swarm.until(lambda: len(first.chain) >= max(1, after_rounds))
    outcome.hostile = [await overtake(swarm, name) for name in members]
    for name in turncoats:
        peer_id = swarm.peers[name].peer_id
        identity, transport = swarm.peers[name].identity, swarm.memory.transports[peer_id]
        outcome.hostile.append(Hostile(swarm, identity, transport))
    outcome.hostile += [stranger(swarm, name) for name in strangers]
    for hostile in outcome.hostile:
        await attack(hostile)
    if not (after_rounds or insiders):
        swarm.start()
    watching = asyncio.create_task(_watch_tasks(outcome))
    started = loop.time()
    try:
        async with asyncio.timeout(within_s):
            for name in honest:
                await swarm.peers[name].task
    finally:
        outcome.took_s = loop.time() - started
        for task in (watching, *(task for hostile in outcome.hostile for task in hostile.tasks)):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    await swarm.close()
    gc.collect()  # an exception that nobody looked at is told when its task is forgotten
    return outcome


def survive(
    attack: Attack,
    *,
    members: tuple[str, ...] = ("mal",),
    turncoats: tuple[str, ...] = (),
    honest: tuple[str, ...] = HONEST,
    strangers: tuple[str, ...] = (),
    after_rounds: int = 2,
    within_s: float = 900.0,
    num_slots: int = NUM_SLOTS,
) -> Outcome:
    """Run a job that somebody attacks, and require that the honest peers finish it together.

    `members` turn hostile all at once after so many rounds, `turncoats` when it is their turn to
    coordinate, `strangers` have never been in the job.
    Each slot is averaged in once, everybody ends with the same bits, and no exception other than
    ours has surfaced anywhere.
    """
    outcome = run(
        _play(
            attack,
            members=members,
            turncoats=turncoats,
            honest=honest,
            strangers=strangers,
            after_rounds=after_rounds,
            within_s=within_s,
            num_slots=num_slots,
        )
    )
    peers = [outcome.swarm.peers[name] for name in honest]
    assert len({peer.chain.head for peer in peers}) == 1
    assert len({peer.replica.theta_P.tobytes() for peer in peers}) == 1
    assert contributed_slots(outcome.chain) == list(range(num_slots))
    assert not outcome.bugs, outcome.bugs
    return outcome


def as_strangers(attack: Attack, *names: str, **options: Any) -> Outcome:
    """The same attack by peers who are not in the job."""
    return survive(attack, members=(), strangers=names or ("mal",), **options)
