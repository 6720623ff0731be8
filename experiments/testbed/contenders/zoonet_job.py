"""This project's all-reduce as a job uses it: one commitment a round, and a settlement after it.

For looks at memory, not for timings: `prepare` commits, so that is no part of the round. Its
process has the allocator's settings of every role.

P = values of the vector
"""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from experiments.testbed.contenders.base import Hello
from experiments.testbed.contenders.zoonet_averager import Zoonet
from peers import runtime
from zoonet.averaging import TreeAllReduce
from zoonet.averaging.links import PeerLinks
from zoonet.averaging.messages import Attempt
from zoonet.crypto import PeerId
from zoonet.exact import Vector


class ZoonetJob(Zoonet):
    """See `Contender`."""

    async def start(self) -> Hello:
        runtime.tame_allocator()
        hello = await super().start()
        self._averager = cast(TreeAllReduce, _OnceARound(self._averager))
        return hello


class _OnceARound:
    """An `Averager` that commits once a round, and for which each round is certified."""

    def __init__(self, averager: TreeAllReduce) -> None:
        self._averager = averager
        self._root: bytes | None = None

    def own_links(self) -> PeerLinks:
        return self._averager.own_links()

    async def meet(self, peers: Collection[PeerId]) -> None:
        await self._averager.meet(peers)

    async def commit(self, contribution_P: Vector) -> bytes:
        if self._root is None:
            self._root = await self._averager.commit(contribution_P)
        return self._root

    async def average(self, attempt: Attempt) -> Vector:
        mean_P = await self._averager.average(attempt)
        self._averager.settle(is_certified=True, is_merged=True)
        self._root = None
        runtime.give_back_freed()  # as a peer does after each round
        return mean_P
