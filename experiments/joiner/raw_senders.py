"""The ceiling: a bare TCP connection from each donor, of which each sends its share of the state.

Nothing is asked for, named or checked: all shares are as large as each other, as are the links.

S = values of the state
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import threading
from typing import Any

import numpy as np

from experiments.joiner.download import Download, is_joiner, state_of
from experiments.testbed import sockets, vectors
from experiments.testbed.contenders.base import Hello, Stage
from zoonet.exact import Vector


class RawSenders:
    """See `Trainee`."""

    def __init__(self, stage: Stage, variant: str) -> None:
        self._stage = stage
        self._listener = sockets.listen(stage.address)
        self._sockets: dict[int, socket.socket] = {}
        self._state_S = state_of(stage)
        self._download = Download(self._state_S)
        edges = np.linspace(0, stage.num_values, stage.num_peers).astype(int)
        self._shares = [slice(a, b) for a, b in itertools.pairwise(edges)]

    async def start(self) -> Hello:
        return {"port": self._listener.getsockname()[1], "address": self._stage.address}

    async def connect(self, hellos: list[Hello]) -> None:
        me, donors = self._stage.peer, self._stage.num_peers - 1
        if is_joiner(self._stage):
            places = {peer: (hellos[peer]["address"], hellos[peer]["port"]) for peer in range(me)}
            self._sockets, _ = await asyncio.to_thread(
                sockets.exchange, self._listener, me, places, 0
            )
            return
        _, self._sockets = await asyncio.to_thread(sockets.exchange, self._listener, me, {}, 1)
        threading.Thread(target=self._give, args=(self._sockets[donors],), daemon=True).start()

    def _give(self, asker: socket.socket) -> None:
        """Send this donor's share for each byte that comes."""
        share = vectors.raw(self._state_S[self._shares[self._stage.peer]])
        with contextlib.suppress(OSError):  # the end of the benchmark
            while asker.recv(1):
                sockets.send_all(asker, share)

    async def train(self) -> None:
        self._download.begin(self._fetch)

    async def _fetch(self) -> Vector:
        found_S = np.zeros_like(self._state_S)

        def take(donor: int) -> None:
            self._sockets[donor].sendall(b"?")
            sockets.receive_into(self._sockets[donor], vectors.raw(found_S[self._shares[donor]]))

        await asyncio.gather(*(asyncio.to_thread(take, donor) for donor in self._sockets))
        return found_S

    def figures(self) -> dict[str, Any]:
        return self._download.figures()

    async def close(self) -> None:
        sockets.close_all([*self._sockets.values(), self._listener])
