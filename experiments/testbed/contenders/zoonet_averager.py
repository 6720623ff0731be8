"""This project's own all-reduce, driven as a round drives it, without agreement and training.

P = values of the vector
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec
import numpy as np

from experiments.testbed import vectors
from experiments.testbed.bare_transport import BareTransport
from experiments.testbed.contenders.base import Hello, Stage
from zoonet.averaging import TreeAllReduce
from zoonet.averaging.forecast import Payload
from zoonet.averaging.links import PeerLinks
from zoonet.averaging.messages import Attempt, Share
from zoonet.averaging.plan import Plan
from zoonet.averaging.planner import make_butterfly, make_plan
from zoonet.codecs import codec as codec_named
from zoonet.crypto import Identity, PeerId
from zoonet.exact import Vector
from zoonet.net.lanes import HostLanes, LanesConfig

JOB_ID: Final = hashlib.sha256(b"benchmark").hexdigest()[:32]
VARIANTS: Final = ("", "tls", "shm", "butterfly", "fp16", "bf16", "int8", "e3m0", "learned")
# Of values up to 28, quantised twice, the second time with what was left out before.
TOLERANCES: Final = {"fp16": 0.05, "bf16": 0.4, "int8": 0.3, "e3m0": 30.0}


class Steered(TreeAllReduce):
    """Says of its links what a benchmark wants the planner to hear, where it wants something."""

    links: PeerLinks | None = None
    lanes: HostLanes

    def own_links(self) -> PeerLinks:
        return self.links or super().own_links()


async def make_averager(
    stage: Stage, variant: str, transport: BareTransport, stack: AsyncExitStack
) -> Steered:
    """Open the averager that is measured: the single place that knows how that is done.

    `variant` is what follows the hyphen of the contender's name. Only "shm" may use shared
    memory: namespaces are hosts of their own, though the machine is one. Raises ValueError for a
    variant that there is not.
    """
    if variant not in VARIANTS:
        raise ValueError(f"the engine has no variant {variant!r}, only {VARIANTS}")
    codec = codec_named(variant if variant in TOLERANCES else "fp32")
    codec.prepare()
    config = LanesConfig(hosts=(stage.address,), use_shm=variant == "shm")
    lanes = HostLanes(transport, config, transport.routes_of)
    await stack.enter_async_context(lanes.listening())
    averager = Steered(lanes, JOB_ID, stage.num_values, codec=codec)
    averager.lanes = lanes
    if speeds := stage.options.get("speeds"):
        known = {int(peer): float(speed) for peer, speed in speeds.items()}
        averager.links = links_of(stage.sites, known)[transport.peer_id]
    await averager.serve()
    stack.push_async_callback(averager.close)
    return averager


def plan_of(stage: Stage, variant: str) -> Plan:
    """The forest for the stage's sites, or the butterfly that knows none."""
    links = links_of(stage.sites, {})
    if variant == "butterfly":
        payload = Payload(num_values=stage.num_values)
        return make_butterfly(set(links), frozenset(), links, payload)
    return make_plan(set(links), frozenset(), links, stage.num_values)


def plan_as_told(told: Sequence[Mapping[str, Any]], num_values: int) -> Plan:
    """What a coordinator would plan, who knows what all have said of their links."""
    links = links_as_told(told)
    return make_plan(set(links), frozenset(), links, num_values)


def links_as_told(told: Sequence[Mapping[str, Any]]) -> dict[PeerId, PeerLinks]:
    """What peers have said of their links when they prepared."""
    return {PeerId(each["peer_id"]): msgspec.convert(each["links"], PeerLinks) for each in told}


def links_of(
    sites: Sequence[Sequence[int]], speeds: Mapping[int, float]
) -> dict[PeerId, PeerLinks]:
    """What peers would say of their links: who is near, and rates in units of 10 MB/s."""
    links = {}
    for site in sites:
        for peer in site:
            near = tuple(identity_of(other).peer_id for other in site if other != peer)
            rate = 1e7 * speeds.get(peer, 1.0)
            links[identity_of(peer).peer_id] = PeerLinks(
                near=near, up_bytes_per_s=rate, down_bytes_per_s=rate, lan_bytes_per_s=10 * rate
            )
    return links


class Zoonet:
    """See `Contender`. Hashing the contribution is part of the round."""

    also_allowed: frozenset[int] = frozenset()

    def __init__(self, stage: Stage, variant: str) -> None:
        self.value_tolerance = TOLERANCES.get(variant, vectors.EXACT_TOLERANCE)
        self._stage = stage
        self._variant = variant
        self._numbers = {identity_of(peer).peer_id: peer for peer in range(stage.num_peers)}
        self._transport = BareTransport(identity_of(stage.peer).peer_id, stage.address)
        self._stack = AsyncExitStack()
        self._averager: TreeAllReduce
        self._plan: Plan
        self._round_number = 0
        self._contribution_P = np.zeros(0, np.float32)
        self._mean_P = np.zeros(0, np.float32)

    async def start(self) -> Hello:
        await self._stack.enter_async_context(self._transport.listening())
        self._averager = await make_averager(
            self._stage, self._variant, self._transport, self._stack
        )
        self._plan = plan_of(self._stage, self._variant)
        peer_id, place = self._transport.peer_id, [self._stage.address, self._transport.port]
        return {"peer_id": peer_id, "place": place}

    async def connect(self, hellos: list[Hello]) -> None:
        for hello in hellos:
            host, port = hello["place"]
            self._transport.learn(PeerId(hello["peer_id"]), host, port)

    async def prepare(self, round_number: int, contribution_P: Vector) -> dict[str, Any]:
        """Hash the contribution once more than needed, so that all know its root beforehand."""
        self._round_number = round_number
        self._contribution_P = contribution_P
        root = await self._averager.commit(contribution_P)
        links = msgspec.to_builtins(self._averager.own_links())
        return {"peer_id": self._transport.peer_id, "root": root.hex(), "links": links}

    async def run(self, told: list[dict[str, Any]]) -> list[int]:
        roots = {each["peer_id"]: bytes.fromhex(each["root"]) for each in told}
        if self._variant == "learned":
            self._plan = plan_as_told(told, self._stage.num_values)
        attempt = Attempt(
            job_id=JOB_ID,
            index=self._round_number,
            view=0,
            parent=bytes(32),
            number=0,
            contributions=tuple(Share(peer_id, ((0, 1),)) for peer_id in sorted(roots)),
            roots=tuple(roots[peer_id] for peer_id in sorted(roots)),
            plan=self._plan,
        )
        await self._averager.commit(self._contribution_P)
        self._mean_P = await self._averager.average(attempt)
        return sorted(self._numbers[peer_id] for peer_id in attempt.contributors)

    def result(self) -> Vector:
        return self._mean_P

    async def close(self) -> None:
        await self._stack.aclose()


def identity_of(peer: int) -> Identity:
    """The same key for the same number in every run."""
    return Identity(hashlib.sha256(b"benchmark peer %d" % peer).digest())
