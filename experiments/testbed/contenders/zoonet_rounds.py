"""This project's whole rounds: members, coordinator, averaging, votes, one certificate.

What a peer plays in a job, but for the training: every peer's contribution waits until the
benchmark lets it through, and the round is over when its certificate is here.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from experiments.testbed import vectors
from experiments.testbed.bare_transport import BareTransport
from experiments.testbed.contenders.base import Hello, Stage
from experiments.testbed.contenders.gated_replica import GatedReplica
from experiments.testbed.contenders.zoonet_averager import (
    JOB_ID,
    identity_of,
    make_averager,
)
from zoonet.averaging import (
    Certificate,
    Chain,
    Participant,
    ParticipantEvents,
    RoundsConfig,
)
from zoonet.averaging.chain import coordinators
from zoonet.clock import SystemClock
from zoonet.crypto import PeerId
from zoonet.exact import Vector
from zoonet.ranges import count

NUM_SLOTS = 1_000_000


class ZoonetRounds:
    """See `Contender`. A round that fails is played again, in the time of the same `run`.

    Chunks that were averaged before somebody was lost stand: they may hold who is lost.
    """

    value_tolerance = vectors.EXACT_TOLERANCE
    also_allowed: frozenset[int] = frozenset()

    def __init__(self, stage: Stage, variant: str) -> None:
        self._stage = stage
        self._variant = variant
        self._numbers = {identity_of(peer).peer_id: peer for peer in range(stage.num_peers)}
        self._transport = BareTransport(identity_of(stage.peer).peer_id, stage.address)
        self._replica = GatedReplica(stage.num_values)
        self._stack = AsyncExitStack()
        self._participant: Participant
        self._certified: asyncio.Queue[Certificate] = asyncio.Queue()

    async def start(self) -> Hello:
        stage = self._stage
        await self._stack.enter_async_context(self._transport.listening())
        averager = await make_averager(stage, self._variant, self._transport, self._stack)
        self._participant = Participant(
            identity_of(stage.peer),
            SystemClock(),
            self._transport,
            Chain(JOB_ID, NUM_SLOTS),
            self._replica,
            averager,
            RoundsConfig(inner_steps=1, is_dynamic=False, min_founders=stage.num_peers),
            ParticipantEvents(lambda: set(self._numbers), _ignore, self._on_round),
        )
        await self._participant.serve()
        peer_id, place = self._transport.peer_id, [stage.address, self._transport.port]
        return {"peer_id": peer_id, "place": place}

    async def connect(self, hellos: list[Hello]) -> None:
        for hello in hellos:
            host, port = hello["place"]
            self._transport.learn(PeerId(hello["peer_id"]), host, port)
        playing = asyncio.create_task(self._participant.run(), name="rounds")

        async def stop() -> None:
            playing.cancel()
            await asyncio.gather(playing, return_exceptions=True)

        self._stack.push_async_callback(stop)

    async def _on_round(self, certificate: Certificate) -> None:
        self._replica.close_gate()
        self._certified.put_nowait(certificate)

    async def prepare(self, round_number: int, contribution_P: Vector) -> dict[str, Any]:
        """Wait until this peer has its lease of the next round: forming it is not timed."""
        self._replica.contribution_P = contribution_P
        await self._replica.arrived.wait()
        chain = self._participant.chain
        order = coordinators(chain.head, chain.roster)
        return {"coordinator": self._numbers[order[0]] if order else None}

    async def run(self, told: list[dict[str, Any]]) -> list[int]:
        while not self._certified.empty():
            self._certified.get_nowait()
        self._replica.open_gate()
        certificate = await self._certified.get()
        await self._replica.reach(certificate.result.state)
        found = []
        for share in certificate.result.contributions:  # who did more slots weighs more
            found += [self._numbers[PeerId(share.peer)]] * count(share.slots)
        members = {self._numbers[PeerId(member)] for member in certificate.result.members}
        self.also_allowed = frozenset(members - set(found))
        return sorted(found)

    def result(self) -> Vector:
        return self._replica.mean_P

    async def close(self) -> None:
        await self._stack.aclose()


def _ignore(phase: str) -> None:
    """Phases are not looked at."""
