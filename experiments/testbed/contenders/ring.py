"""A ring that keeps each site's peers together: reduce-scatter, then all-gather, over plain TCP.

The vector is cut into as many slices as there are peers. In n - 1 steps every peer passes a slice
on and adds its own part to the one it gets; in n - 1 more the finished slices go round. Peers are
numbered site by site, so their order is that of the sites.

P = values of the vector, N = one slice of it
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from experiments.testbed import sockets, vectors
from experiments.testbed.contenders.base import Hello, Stage
from zoonet.exact import Vector


class Ring:
    """See `Contender`."""

    value_tolerance = vectors.EXACT_TOLERANCE
    also_allowed: frozenset[int] = frozenset()

    def __init__(self, stage: Stage, variant: str) -> None:
        self._stage = stage
        self._listener = sockets.listen(stage.address)
        self._thread = ThreadPoolExecutor(1)  # sends while this side receives
        self._next: socket.socket | None = None
        self._previous: socket.socket | None = None
        edges = np.linspace(0, stage.num_values, stage.num_peers + 1).astype(int)
        self._slices = [slice(a, b) for a, b in itertools.pairwise(edges)]
        self._mean_P = np.zeros(stage.num_values, np.float32)
        self._arriving_N = np.zeros(max(s.stop - s.start for s in self._slices), np.float32)

    async def start(self) -> Hello:
        return {"port": self._listener.getsockname()[1], "address": self._stage.address}

    async def connect(self, hellos: list[Hello]) -> None:
        following = (self._stage.peer + 1) % self._stage.num_peers
        place = (hellos[following]["address"], hellos[following]["port"])
        outgoing, incoming = await asyncio.to_thread(
            sockets.exchange, self._listener, self._stage.peer, {following: place}, 1
        )
        self._next, self._previous = outgoing[following], next(iter(incoming.values()))

    async def prepare(self, round_number: int, contribution_P: Vector) -> dict[str, Any]:
        np.copyto(self._mean_P, contribution_P)  # a ring works in place
        return {}

    async def run(self, told: list[dict[str, Any]]) -> list[int]:
        await asyncio.to_thread(self._reduce)
        return list(range(self._stage.num_peers))

    def result(self) -> Vector:
        return self._mean_P

    async def close(self) -> None:
        ends = [self._listener, *(end for end in (self._next, self._previous) if end is not None)]
        sockets.close_all(ends)
        self._thread.shutdown(wait=False)

    def _reduce(self) -> None:
        num_peers, me = self._stage.num_peers, self._stage.peer
        for step in range(num_peers - 1):
            leaving, arriving = (me - step) % num_peers, (me - step - 1) % num_peers
            part_N = self._mean_P[self._slices[arriving]]
            sum_N = self._arriving_N[: part_N.size]
            self._pass_on(self._mean_P[self._slices[leaving]], sum_N)
            np.add(part_N, sum_N, out=part_N)
        finished_N = self._mean_P[self._slices[(me + 1) % num_peers]]
        np.multiply(finished_N, np.float32(1 / num_peers), out=finished_N)
        for step in range(num_peers - 1):
            leaving, arriving = (me + 1 - step) % num_peers, (me - step) % num_peers
            self._pass_on(self._mean_P[self._slices[leaving]], self._mean_P[self._slices[arriving]])

    def _pass_on(self, leaving_N: Vector, arriving_N: Vector) -> None:
        assert self._next is not None and self._previous is not None
        sending = self._thread.submit(sockets.send_all, self._next, vectors.raw(leaving_N))
        sockets.receive_into(self._previous, vectors.raw(arriving_N))
        sending.result()
