"""All-reduces of some peers in one memory swarm, by plans made by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tests.averaging.makers import peer, shares
from tests.averaging.swarm import JOB_ID, identity_of
from zoonet.averaging.allreduce import AttemptFailed, TreeAllReduce
from zoonet.averaging.messages import Attempt
from zoonet.averaging.payload import make_payload
from zoonet.averaging.plan import Plan, Tree, num_chunks, repair
from zoonet.codecs import codec as codec_named
from zoonet.crypto import PeerId
from zoonet.testing import MemorySwarm, MemoryTransport
from zoonet.transport import StreamLanes


def sited(size: int, *sites: Sequence[str], idle: Iterable[str] = ()) -> Plan:
    """Each chunk gets another root and, in every site, another owner. Idle peers own none."""
    names = [name for site in sites for name in site]
    everyone = sorted(peer(name) for name in names)
    index = {name: everyone.index(peer(name)) for name in names}
    active = [[name for name in site if name not in idle] for site in sites]
    roots = [name for site in active for name in site]
    trees = []
    for chunk in range(num_chunks(size)):
        root = roots[chunk % len(roots)]
        root_site = next(at for at, site in enumerate(sites) if root in site)
        owners = [
            index[(active[at] or list(site))[chunk % len(active[at] or site)]]
            for at, site in enumerate(sites)
        ]
        owners[root_site] = index[root]
        trees.append(Tree(chunk, chunk + 1, root_site, tuple(owners)))
    places = tuple(tuple(sorted(index[name] for name in site)) for site in sites)
    return Plan(tuple(everyone), places, tuple(trees))


def vector_of(name: str, size: int) -> np.ndarray:
    seed = int.from_bytes(name.encode(), "big")
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


class Forest:
    """Peers that average by one plan. Who is in `followers` contributes nothing."""

    def __init__(
        self,
        *sites: Sequence[str],
        size: int = 1000,
        followers: Sequence[str] = (),
        codec: str = "fp32",
        owners: Sequence[str] = (),
    ) -> None:
        self.size = size
        self.codec = codec_named(codec)
        self.memory = MemorySwarm()
        self.names = [name for site in sites for name in site if name not in followers]
        self.followers = followers
        names = [name for site in sites for name in site]
        idle = [name for name in names if owners and name not in owners]
        self.plan = sited(size, *sites, idle=[*followers, *idle])
        self.vectors = {name: vector_of(name, size) for name in self.names}
        self.transports: dict[str, MemoryTransport] = {}
        self.reducers: dict[str, TreeAllReduce] = {}
        self.number = 0
        self.index = 0
        self.attempt = self.attempt_of(self.names)

    def slots_of(self, name: str) -> Mapping[str, object]:
        at = self.names.index(name)
        return {name: ((100 * at, 100 * at + 2 + at),)}

    def attempt_of(
        self,
        names: Sequence[str],
        roots: Mapping[str, bytes] | None = None,
        *,
        plan: Plan | None = None,
        former: Sequence[str] = (),
    ) -> Attempt:
        contributions = shares({n: s for name in names for n, s in self.slots_of(name).items()})
        fresh = {name: make_payload(self.vectors[name], self.codec).root for name in names}
        by_peer = {peer(name): root for name, root in (roots or fresh).items()}
        return Attempt(
            job_id=JOB_ID,
            index=self.index,
            view=0,
            parent=bytes(32),
            number=self.number,
            contributions=contributions,
            roots=tuple(by_peer[PeerId(share.peer)] for share in contributions),
            plan=plan or self.plan,
            former=shares({n: s for name in former for n, s in self.slots_of(name).items()}),
        )

    def without(self, *lost: str) -> Attempt:
        """The attempt that follows when these are lost."""
        self.number += 1
        left = [name for name in self.names if name not in lost]
        plan = repair(self.attempt.plan, {peer(n) for n in lost}, {peer(n) for n in left})
        return self.attempt_of(left, plan=plan, former=lost)

    def transport(self, name: str) -> MemoryTransport:
        if name not in self.transports:
            self.transports[name] = self.memory.peer(identity_of(name))[0]
        return self.transports[name]

    async def serve(self, *names: str) -> None:
        for name in names or (*self.names, *self.followers):
            lanes = StreamLanes(self.transport(name))
            self.reducers[name] = TreeAllReduce(lanes, JOB_ID, self.size, codec=self.codec)
            await self.reducers[name].serve()
            if name in self.vectors:
                await self.reducers[name].commit(self.vectors[name])

    async def average(
        self, name: str, attempt: Attempt | None = None
    ) -> np.ndarray | AttemptFailed:
        try:
            return await self.reducers[name].average(attempt or self.attempt)
        except AttemptFailed as error:
            return error

    async def average_all(
        self, attempt: Attempt | None = None
    ) -> dict[str, np.ndarray | AttemptFailed]:
        names = [name for name in self.reducers if peer(name) in self.memory.transports]
        found = await asyncio.gather(*(self.average(name, attempt) for name in names))
        return dict(zip(names, found, strict=True))

    async def kill(self, name: str) -> None:
        """End a peer as SIGKILL would."""
        await self.memory.kill(peer(name))

    async def close(self) -> None:
        for reducer in self.reducers.values():
            await reducer.close()
        for transport in self.transports.values():
            await transport.close()

    def exact_mean(self, names: Sequence[str] | None = None) -> np.ndarray:
        """The mean in double precision."""
        names = names or self.names
        weights = [2 + self.names.index(name) for name in names]
        total = sum(
            w * self.vectors[n].astype(np.float64) for n, w in zip(names, weights, strict=True)
        )
        return np.asarray(total / sum(weights))
