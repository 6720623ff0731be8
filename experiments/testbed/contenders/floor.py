"""The floor: a butterfly's bytes through bare TLS 1.3 sockets, its additions, one BLAKE3 pass.

No headers, no chunks, no checks, no recovery: what nobody can be faster than who does this work
with Python's `ssl`. A connection and a thread for each direction between two peers.

P = values of the vector, N = one slice of it
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
from blake3 import blake3

from experiments.testbed import sockets, vectors
from experiments.testbed.contenders.base import Hello, Stage
from zoonet.exact import Vector, weighted_mean


class Floor:
    """See `Contender`. Every peer averages one slice and sends the mean to all others."""

    value_tolerance = vectors.EXACT_TOLERANCE
    also_allowed: frozenset[int] = frozenset()

    def __init__(self, stage: Stage, variant: str) -> None:
        self._stage = stage
        self._listener = sockets.listen(stage.address)
        self._tls = None if variant == "plain" else sockets.tls_contexts(stage.folder)
        self._threads = ThreadPoolExecutor(2 * stage.num_peers + 1)
        self._outgoing: dict[int, socket.socket] = {}
        self._incoming: dict[int, socket.socket] = {}
        edges = np.linspace(0, stage.num_values, stage.num_peers + 1).astype(int)
        self._slices = [slice(a, b) for a, b in itertools.pairwise(edges)]
        self._contribution_P = np.zeros(0, np.float32)
        self._mean_P = np.zeros(stage.num_values, np.float32)
        mine = self._slices[stage.peer]
        self._parts = {peer: np.zeros(mine.stop - mine.start, np.float32) for peer in stage.others}

    async def start(self) -> Hello:
        return {"port": self._listener.getsockname()[1], "address": self._stage.address}

    async def connect(self, hellos: list[Hello]) -> None:
        places = {peer: (hellos[peer]["address"], hellos[peer]["port"]) for peer in self._others}
        self._outgoing, self._incoming = await asyncio.to_thread(
            sockets.exchange, self._listener, self._stage.peer, places, len(places), self._tls
        )

    @property
    def _others(self) -> list[int]:
        return self._stage.others

    async def prepare(self, round_number: int, contribution_P: Vector) -> dict[str, Any]:
        self._contribution_P = contribution_P
        return {}

    async def run(self, told: list[dict[str, Any]]) -> list[int]:
        await asyncio.to_thread(self._reduce)
        return list(range(self._stage.num_peers))

    def result(self) -> Vector:
        return self._mean_P

    async def close(self) -> None:
        sockets.close_all([*self._outgoing.values(), *self._incoming.values(), self._listener])
        self._threads.shutdown(wait=False)

    def _reduce(self) -> None:
        num_missing = [len(self._others)]
        lock, is_averaged = threading.Lock(), threading.Event()

        def receive(peer: int) -> None:
            sockets.receive_into(self._incoming[peer], vectors.raw(self._parts[peer]))
            with lock:
                num_missing[0] -= 1
                is_last = num_missing[0] == 0
            if is_last:
                self._average()
                is_averaged.set()
            sockets.receive_into(
                self._incoming[peer], vectors.raw(self._mean_P[self._slices[peer]])
            )

        def send(peer: int) -> None:
            part_N = self._contribution_P[self._slices[peer]]
            sockets.send_all(self._outgoing[peer], vectors.raw(part_N))
            is_averaged.wait()
            mine_N = self._mean_P[self._slices[self._stage.peer]]
            sockets.send_all(self._outgoing[peer], vectors.raw(mine_N))

        running = [self._threads.submit(receive, peer) for peer in self._others]
        running += [self._threads.submit(send, peer) for peer in self._others]
        running.append(self._threads.submit(self._hash))
        wait(running)
        for one in running:
            one.result()

    def _hash(self) -> None:
        blake3(vectors.raw(self._contribution_P)).digest()

    def _average(self) -> None:
        mine = self._slices[self._stage.peer]
        parts = [
            self._contribution_P[mine] if peer == self._stage.peer else self._parts[peer]
            for peer in range(self._stage.num_peers)
        ]
        weighted_mean(parts, [1] * len(parts), out=self._mean_P[mine])
