"""A swarm whose replicas do arithmetic instead of training, in virtual time."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from blake3 import blake3

from zoonet.averaging import (
    Certificate,
    Chain,
    Participant,
    ParticipantEvents,
    RoundsConfig,
    SiteMean,
    TreeAllReduce,
)
from zoonet.averaging.replica import STATE_CHUNK_BYTES, Mix
from zoonet.averaging.state_sync import root_of
from zoonet.crypto import Identity, PeerId
from zoonet.errors import NonFiniteLoss
from zoonet.ranges import Ranges, count, difference, normalise, union
from zoonet.testing import MemorySwarm
from zoonet.testing.memory import MemoryTransport
from zoonet.transport import LinkStats, StreamLanes

JOB_ID = "0123456789abcdef0123456789abcdef"
NUM_PARAMETERS = 301


def identity_of(name: str) -> Identity:
    """The same key for the same name in every run."""
    return Identity(hashlib.sha256(name.encode()).digest())


class CountingReplica:
    """Each slot adds a vector that depends on the slot alone; the state sums what was merged."""

    def __init__(self, *, slots_per_s: float = 10.0) -> None:
        self.num_parameters = NUM_PARAMETERS
        self.theta_P = np.zeros(NUM_PARAMETERS, np.float32)
        self.local_P = np.zeros(NUM_PARAMETERS, np.float32)
        self.speed = slots_per_s
        self.slots_per_s = 0.0
        self.trained: list[int] = []
        self.carried: Ranges = ()
        self.ahead_P = np.zeros(NUM_PARAMETERS, np.float32)  # trained since it was told of
        self._told: Ranges = ()
        self._background: asyncio.Task[None] | None = None
        self._since: list[int] = []  # trained since then
        self.is_stuck = False
        self.poison = False
        self.is_released = False  # the peer has let go of the finished job's state
        self.commit_s = 0.0  # a large model takes a while to be swapped in
        self.fails = 0
        self.bad: set[int] = set()  # slots that give no loss here
        self._staged: tuple[bytes, np.ndarray] | None = None
        self._previous: np.ndarray | None = None
        self._stop = asyncio.Event()
        self.spoils_site = False  # brings neighbours what no model survives, and takes nothing
        self.mixed: list[tuple[int, np.ndarray]] = []  # what sites came to, with slots trained

    @staticmethod
    def digest_of(theta_P: np.ndarray) -> bytes:
        return root_of([blake3(chunk).digest() for chunk in chunks_of(theta_P)])

    @property
    def state_digest(self) -> bytes:
        return self.digest_of(self.theta_P)

    async def train(
        self,
        slots: Ranges,
        *,
        steps: int,
        num_done: int,
        num_planned: int,
        stops: Sequence[int] = (),
        mix: Mix | None = None,
    ) -> Ranges:
        await self._rest()
        self._stop.clear()
        if self.fails:
            self.fails -= 1
            raise NonFiniteLoss("the loss became nan")
        left = difference(slots, union(self.carried, self._ahead()))
        todo = deque(s for start, stop in left for s in range(start, stop))
        while todo and not self._stop.is_set() and self.num_trained < steps:
            await self._step(todo)
            if mix is not None and self.num_trained in stops:
                await self._mix(mix)
        self.carried = self._told = union(self.carried, self._ahead())
        self.local_P += self.ahead_P
        self.ahead_P[:] = 0
        self._since = []
        self.slots_per_s = self.speed
        self._background = asyncio.create_task(self._go_on(todo))
        return self.carried

    async def _mix(self, mix: Mix) -> None:
        """Average the local work with neighbours, unless told to stop meanwhile."""
        theta_P = self.local_P + self.ahead_P
        if self.spoils_site:
            theta_P[:] = 1e38
        mixing = asyncio.ensure_future(mix(self.num_trained, theta_P))
        stopping = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({mixing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (mixing, stopping):
            task.cancel()
        await asyncio.gather(mixing, stopping, return_exceptions=True)
        if not mixing.cancelled() and mixing.result() and not self.spoils_site:
            self.mixed.append((self.num_trained, theta_P.copy()))
            self.ahead_P = theta_P - self.local_P

    @property
    def num_trained(self) -> int:
        return count(self.carried) + len(self._since)

    def _ahead(self) -> Ranges:
        return normalise((slot, slot + 1) for slot in self._since)

    async def _step(self, todo: deque[int]) -> None:
        await asyncio.sleep(1.0 / self.speed)
        while self.is_stuck and not self._stop.is_set():
            await asyncio.sleep(1.0)
        slot = todo.popleft()
        if slot in self.bad or np.abs(self.ahead_P).max() > 1e30:
            raise NonFiniteLoss("the loss became nan", slots=((slot, slot + 1),))
        self.ahead_P -= np.random.default_rng(slot).random(NUM_PARAMETERS, np.float32)
        self.trained.append(slot)
        self._since.append(slot)

    async def _go_on(self, todo: deque[int]) -> None:
        while todo and todo[0] not in self.bad:
            await self._step(todo)

    async def _rest(self) -> None:
        if self._background is not None:
            self._background.cancel()
            await asyncio.gather(self._background, return_exceptions=True)
            self._background = None

    def stop(self) -> None:
        self._stop.set()

    async def pseudo_gradient(self) -> np.ndarray:
        delta_P = self.theta_P - self.local_P
        if self.poison:
            delta_P[7] = np.nan
        return delta_P

    async def stage(self, mean_P: np.ndarray) -> bytes:
        theta_P = self.theta_P - mean_P
        self._staged = (self.digest_of(theta_P), theta_P)
        return self._staged[0]

    async def commit(self, state: bytes, *, is_merged: bool) -> bool:
        if self._staged is None or self._staged[0] != state:
            return False
        await asyncio.sleep(self.commit_s)
        delta_P = self.theta_P - self.local_P
        self._previous = self.theta_P
        self.theta_P = self._staged[1]
        self.local_P = self.theta_P.copy() if is_merged else self.theta_P - delta_P
        self._staged = None
        if is_merged:
            self.carried = difference(self.carried, self._told)
        return True

    async def drop_local(self) -> None:
        await self._rest()
        self.local_P = self.theta_P.copy()
        self.ahead_P[:] = 0
        self.carried, self._since = (), []

    def _held(self, state: bytes) -> np.ndarray | None:
        if self.is_released:
            return None
        for theta_P in (self.theta_P, self._previous):
            if theta_P is not None and self.digest_of(theta_P) == state:
                return theta_P
        return None

    def chunk_digests(self, state: bytes) -> list[bytes] | None:
        theta_P = self._held(state)
        return None if theta_P is None else [blake3(c).digest() for c in chunks_of(theta_P)]

    def read_chunk(self, state: bytes, index: int) -> bytes | None:
        theta_P = self._held(state)
        return None if theta_P is None else chunks_of(theta_P)[index]

    async def adopt(self, state: bytes, digests: list[bytes], chunks: list[bytes]) -> None:
        raw = b"".join(chunks)
        self.theta_P = np.frombuffer(raw[: 4 * NUM_PARAMETERS], np.float32).copy()
        await self.drop_local()


def chunks_of(theta_P: np.ndarray) -> list[bytes]:
    assert theta_P.nbytes <= STATE_CHUNK_BYTES
    return [theta_P.tobytes(), bytes(theta_P.nbytes)]  # and a momentum of zeros


class PlacedLanes(StreamLanes):
    """Lanes that know how far others are: those of the same site near, the rest far."""

    def __init__(self, transport: MemoryTransport, places: Mapping[PeerId, str]) -> None:
        super().__init__(transport)
        self._places = places

    def links(self) -> Mapping[PeerId, LinkStats]:
        here = self._places.get(self.peer_id)
        return {
            peer: LinkStats(0.001 if place == here else 0.05, 0.0, 0.0, "stream")
            for peer, place in self._places.items()
            if peer != self.peer_id
        }


@dataclass
class Peer:
    identity: Identity
    replica: CountingReplica
    participant: Participant
    phases: list[str]
    certificates: list[Certificate]
    averager: TreeAllReduce
    site: SiteMean | None = None
    task: asyncio.Task[None] | None = None

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    @property
    def chain(self) -> Chain:
        return self.participant.chain

    async def close(self) -> None:
        await self.averager.close()
        if self.site is not None:
            await self.site.close()


@dataclass
class Swarm:
    """Peers of one job. `names` are founders unless they are added later."""

    num_slots: int
    config: RoundsConfig
    memory: MemorySwarm = field(default_factory=MemorySwarm)
    peers: dict[str, Peer] = field(default_factory=dict)
    strangers: set[PeerId] = field(default_factory=set)  # who merely say that they want the job
    places: dict[PeerId, str] = field(default_factory=dict)  # at which sites peers are

    async def add(self, name: str, *, slots_per_s: float = 10.0, place: str = "") -> Peer:
        identity = identity_of(name)
        transport, _ = self.memory.peer(identity)
        replica = CountingReplica(slots_per_s=slots_per_s)
        phases: list[str] = []
        certificates: list[Certificate] = []

        async def on_round(certificate: Certificate) -> None:
            certificates.append(certificate)
            self._gossip(peer)

        if place:
            self.places[identity.peer_id] = place
        lanes = PlacedLanes(transport, self.places)
        averager = TreeAllReduce(lanes, JOB_ID, NUM_PARAMETERS)
        await averager.serve()
        site = None
        if self.config.site_steps:
            site = SiteMean(lanes, JOB_ID, NUM_PARAMETERS, self.config)
            await site.serve()
        participant = Participant(
            identity,
            self.memory.clock,
            transport,
            Chain(JOB_ID, self.num_slots),
            replica,
            averager,
            self.config,
            ParticipantEvents(self._founders, phases.append, on_round),
            site,
        )
        await participant.serve()
        peer = Peer(identity, replica, participant, phases, certificates, averager, site)
        self.peers[name] = peer
        for other in self.peers.values():
            self._gossip(other)
        return peer

    def _founders(self) -> set[PeerId]:
        return {peer.peer_id for peer in self.peers.values()} | self.strangers

    def _gossip(self, teller: Peer) -> None:
        for peer in self.peers.values():
            if not self.memory.faults.is_cut(teller.peer_id, peer.peer_id):
                peer.participant.hint(teller.peer_id, teller.chain.num_done, teller.chain.head)

    def start(self, *names: str) -> None:
        for name in names or self.peers:
            self.peers[name].task = asyncio.create_task(self.peers[name].participant.run())

    async def kill(self, name: str) -> Peer:
        """End a peer as SIGKILL would."""
        peer = self.peers.pop(name)
        await self.memory.kill(peer.peer_id)
        assert peer.task is not None
        peer.task.cancel()
        await asyncio.gather(peer.task, return_exceptions=True)
        await peer.replica.drop_local()
        await peer.close()
        return peer

    async def close(self) -> None:
        """Let go of what the peers still hold."""
        for peer in self.peers.values():
            await peer.replica.drop_local()
            await peer.close()
            await self.memory.transports[peer.peer_id].close()

    async def until(self, condition, *, within_s: float = 600.0, step_s: float = 0.05) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(step_s)

    async def finish(self, *, within_s: float = 3600.0) -> None:
        """Wait until every live peer has the whole job certified."""
        async with asyncio.timeout(within_s):
            await asyncio.gather(*(p.task for p in self.peers.values() if p.task))


def contributed_slots(chain: Chain) -> list[int]:
    """Every slot that the chain certifies, in order, with repetitions if there were any."""
    found = []
    for certificate in chain.certificates:
        for share in certificate.result.contributions:
            assert count(share.slots) > 0
            found += [s for start, stop in share.slots for s in range(start, stop)]
    return sorted(found)
