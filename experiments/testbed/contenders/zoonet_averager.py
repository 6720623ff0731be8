"""This project's own averaging, driven as a round drives it, without the training around it.

P = values of the vector
"""

from __future__ import annotations

import hashlib
from contextlib import AsyncExitStack
from typing import Any

import numpy as np

from experiments.testbed import vectors
from experiments.testbed.bare_transport import BareTransport
from experiments.testbed.contenders.base import Hello, Stage
from zoonet.averaging import Averager, Butterfly
from zoonet.averaging.messages import Attempt, Share
from zoonet.crypto import Identity, PeerId
from zoonet.exact import Vector

JOB_ID = hashlib.sha256(b"benchmark").hexdigest()[:32]


async def make_averager(
    stage: Stage, variant: str, transport: BareTransport, stack: AsyncExitStack
) -> Averager:
    """Open the averager that is measured: the single place that knows how that is done.

    `variant` is what follows the hyphen of the contender's name: "tls", "shm", "int8",
    "butterfly" or nothing, which is a forest over TLS in fp32.
    """
    averager = Butterfly(transport, JOB_ID, stage.num_values)
    await averager.serve()
    return averager


class Zoonet:
    """See `Contender`."""

    value_tolerance = vectors.EXACT_TOLERANCE

    def __init__(self, stage: Stage, variant: str) -> None:
        self._stage = stage
        self._variant = variant
        self._numbers = {identity_of(peer).peer_id: peer for peer in range(stage.num_peers)}
        self._transport = BareTransport(identity_of(stage.peer).peer_id, stage.address)
        self._stack = AsyncExitStack()
        self._averager: Averager
        self._attempt: Attempt
        self._contribution_P = np.zeros(0, np.float32)
        self._mean_P = np.zeros(0, np.float32)

    async def start(self) -> Hello:
        await self._stack.enter_async_context(self._transport.listening())
        self._averager = await make_averager(
            self._stage, self._variant, self._transport, self._stack
        )
        peer_id, place = self._transport.peer_id, [self._stage.address, self._transport.port]
        return {"peer_id": peer_id, "place": place}

    async def connect(self, hellos: list[Hello]) -> None:
        for hello in hellos:
            host, port = hello["place"]
            self._transport.learn(PeerId(hello["peer_id"]), host, port)

    async def prepare(self, round_number: int, contribution_P: Vector) -> dict[str, Any]:
        self._contribution_P = contribution_P
        members = sorted(self._numbers)
        self._attempt = Attempt(
            job_id=JOB_ID,
            index=round_number,
            view=0,
            parent=bytes(32),
            number=0,
            contributions=tuple(Share(member, ((0, 1),)) for member in members),
        )
        return {}

    async def run(self) -> list[int]:
        everyone = frozenset(self._attempt.contributors)
        mean = await self._averager.average(self._attempt, self._contribution_P, everyone)
        self._mean_P = mean.mean_P
        return sorted(self._numbers[member] for member in self._attempt.contributors)

    def result(self) -> Vector:
        return self._mean_P

    async def close(self) -> None:
        await self._stack.aclose()


def identity_of(peer: int) -> Identity:
    """The same key for the same number in every run."""
    return Identity(hashlib.sha256(b"benchmark peer %d" % peer).digest())
