"""This project's own way: what a peer does that joins a running job, over real libp2p daemons.

The joiner knows the donors' addresses and is connected to them, as it is in a job, whose chain it
has just read from them.

S = values of the state
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, cast

import numpy as np
from blake3 import blake3

from experiments.joiner.download import Download, is_joiner, state_of
from experiments.testbed import vectors
from experiments.testbed.contenders.base import Hello, Stage
from experiments.testbed.contenders.zoonet_averager import identity_of
from zoonet.averaging import STATE_CHUNK_BYTES, Replica, root_of
from zoonet.averaging.state_sync import StateSync
from zoonet.errors import DigestMismatch
from zoonet.exact import Vector
from zoonet.net.config import HostConfig
from zoonet.net.host import Host

JOB_ID: Final = hashlib.sha256(b"joiner").hexdigest()[:32]


class ZoonetState:
    """See `Trainee`."""

    def __init__(self, stage: Stage, variant: str) -> None:
        if variant:
            raise ValueError(f"there is no variant {variant!r}")
        self._stage = stage
        self._stack = AsyncExitStack()
        self._host: Host
        self._sync: StateSync
        self._held = HeldState(state_of(stage))
        self._state = self._held.state_digest
        self._download = Download(state_of(stage) if is_joiner(stage) else np.zeros(0, np.float32))

    async def start(self) -> Hello:
        stage = self._stage
        config = HostConfig(
            run_dir=stage.folder / "run", listen=(f"/ip4/{stage.address}/tcp/0",), use_shm=False
        )
        self._host = await self._stack.enter_async_context(
            Host.open(identity_of(stage.peer), config)
        )
        self._sync = StateSync(self._host.transport, JOB_ID, cast(Replica, self._held))
        if not is_joiner(stage):
            await self._sync.serve()
        return {"addresses": list(await self._host.addresses())}

    async def connect(self, hellos: list[Hello]) -> None:
        if is_joiner(self._stage):
            for hello in hellos[:-1]:
                await self._host.connect(hello["addresses"])

    async def train(self) -> None:
        self._held.forget()
        self._download.begin(self._fetch)

    async def _fetch(self) -> Vector:
        donors = [identity_of(peer).peer_id for peer in self._stage.others]
        await self._sync.fetch(self._state, donors)
        return self._held.state_S

    def figures(self) -> dict[str, Any]:
        return self._download.figures()

    async def close(self) -> None:
        await self._stack.aclose()


class HeldState:
    """What of a `Replica` the state's exchange needs: half of the values are the momentum."""

    def __init__(self, state_S: Vector) -> None:
        self.state_S = state_S
        self.num_parameters = len(state_S) // 2
        self._digests = [blake3(vectors.raw(chunk)).digest() for chunk in self._chunks()]

    @property
    def state_digest(self) -> bytes:
        """Names the state."""
        return root_of(self._digests)

    def forget(self) -> None:
        """Hold zeros."""
        self.state_S = np.zeros_like(self.state_S)
        self._digests = []

    def chunk_digests(self, state: bytes) -> list[bytes] | None:
        """See `Replica`."""
        return self._digests if state == self.state_digest else None

    def read_chunk(self, state: bytes, index: int) -> bytes | None:
        """See `Replica`."""
        if state != self.state_digest or index >= len(self._digests):
            return None
        return self._chunks()[index].tobytes()

    async def adopt(self, state: bytes, digests: list[bytes], chunks: Sequence[bytes]) -> None:
        """See `Replica`: as there, everything is hashed once more."""
        for target, raw in zip(self._chunks(), chunks, strict=True):
            target[:] = np.frombuffer(raw, np.float32)
        found = [blake3(vectors.raw(chunk)).digest() for chunk in self._chunks()]
        if found != digests or root_of(found) != state:
            raise DigestMismatch("", "chunks that do not make up the state")
        self._digests = found

    def _chunks(self) -> list[Vector]:
        """Views of all chunks: those of the parameters, then those of the momentum."""
        size, half = STATE_CHUNK_BYTES // 4, self.num_parameters
        halves = (self.state_S[:half], self.state_S[half:])
        return [v[at : at + size] for v in halves for at in range(0, half, size)]
