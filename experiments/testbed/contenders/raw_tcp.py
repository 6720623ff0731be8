"""One TCP connection between two peers, full in both directions: what the link carries at best.

Nothing is averaged: each peer gets the other's vector. These are the bytes that cross between two
sites in any all-reduce that sends as little as possible.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import numpy as np

from experiments.testbed import sockets, vectors
from experiments.testbed.contenders.base import Hello, Stage
from zoonet.exact import Vector


class RawTcp:
    """See `Contender`. For two peers; the first connects to the second."""

    value_tolerance = vectors.EXACT_TOLERANCE
    also_allowed: frozenset[int] = frozenset()

    def __init__(self, stage: Stage, variant: str) -> None:
        if stage.num_peers != 2:
            raise ValueError(f"a single connection joins two peers, not {stage.num_peers}")
        self._stage = stage
        self._listener = sockets.listen(stage.address)
        self._socket: socket.socket | None = None
        self._contribution_P = np.zeros(0, np.float32)
        self._received_P = np.zeros(stage.num_values, np.float32)

    async def start(self) -> Hello:
        return {"port": self._listener.getsockname()[1], "address": self._stage.address}

    async def connect(self, hellos: list[Hello]) -> None:
        is_first = self._stage.peer == 0
        places = {1: (hellos[1]["address"], hellos[1]["port"])} if is_first else {}
        outgoing, incoming = await asyncio.to_thread(
            sockets.exchange, self._listener, self._stage.peer, places, 0 if is_first else 1
        )
        self._socket = (outgoing or incoming)[1 - self._stage.peer]

    async def prepare(self, round_number: int, contribution_P: Vector) -> dict[str, Any]:
        self._contribution_P = contribution_P
        return {}

    async def run(self, told: list[dict[str, Any]]) -> list[int]:
        assert self._socket is not None
        sending = vectors.raw(self._contribution_P)
        receiving = vectors.raw(self._received_P)
        await asyncio.gather(
            asyncio.to_thread(sockets.send_all, self._socket, sending),
            asyncio.to_thread(sockets.receive_into, self._socket, receiving),
        )
        return [1 - self._stage.peer]

    def result(self) -> Vector:
        return self._received_P

    async def close(self) -> None:
        sockets.close_all([self._listener, *([self._socket] if self._socket else [])])
