"""Loops in memory: whole runs with real models, in virtual time and one thread."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from zoonet.blocks import BlockExchange, MemoryBlockStore
from zoonet.client.loop.data import SlotOrder
from zoonet.client.loop.place import Place
from zoonet.client.loop.run import LoopRun
from zoonet.client.loop.spec import RunSpec, SwarmConfig
from zoonet.crypto import Identity
from zoonet.errors import ConfigError
from zoonet.ranges import count
from zoonet.records import Progress, RecordStore, Signed
from zoonet.testing import MemorySwarm
from zoonet.training.own_loop import OwnLoop
from zoonet.training.vector import ModelVector
from zoonet.transport import StreamLanes

NUM_SAMPLES, BATCH_SIZE = 64, 4
INPUTS = torch.randn(NUM_SAMPLES, 3, generator=torch.Generator().manual_seed(5))
TARGETS = INPUTS @ torch.tensor([1.0, -2.0, 0.5]) + 0.25


def identity_of(name: str) -> Identity:
    """The same key for the same name in every run."""
    return Identity(hashlib.sha256(name.encode()).digest())


def model_of(seed: int, *, width: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1))


def loss_of(model: nn.Module) -> float:
    with torch.no_grad():
        return float((model(INPUTS).squeeze(1) - TARGETS).square().mean())


def spec_of(
    vector: ModelVector, *, num_slots: int = 48, batch_size: int = BATCH_SIZE, **config: object
) -> RunSpec:
    return RunSpec(
        run="squares",
        num_slots=num_slots,
        batch_size=batch_size,
        num_samples=NUM_SAMPLES,
        config=SwarmConfig(**{"inner_steps": 4, "outer_lr": 0.7, **config}),
        layout=vector.layout,
    )


def place_of(memory: MemorySwarm, identity: Identity) -> Place:
    transport, records = memory.peer(identity)
    return Place(
        identity=identity,
        clock=memory.clock,
        transport=transport,
        lanes=StreamLanes(transport),
        records=records,
        exchange=BlockExchange(transport, MemoryBlockStore()),
    )


class SlowToHear:
    """A record store out of which no record of a kind comes at first."""

    def __init__(self, beneath: RecordStore, delay_s: float, kind: type[Any]) -> None:
        self._beneath = beneath
        self._kind = kind
        self._now = asyncio.get_running_loop().time
        self._hears_at = self._now() + delay_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._beneath, name)

    async def fetch(self, key: str, body_type: type[Any]) -> list[Signed[Any]]:
        if body_type is self._kind and self._now() < self._hears_at:
            return []
        return await self._beneath.fetch(key, body_type)

    @asynccontextmanager
    async def listen(self, topic: str) -> AsyncIterator[AsyncIterator[Signed[Any]]]:
        async with self._beneath.listen(topic) as events:
            yield self._later(events)

    async def _later(self, events: AsyncIterator[Signed[Any]]) -> AsyncIterator[Signed[Any]]:
        await asyncio.sleep(self._hears_at - self._now())
        async for event in events:
            yield event


@dataclass
class Looper:
    """One peer: its model, its loop and its part in the run."""

    place: Place
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loop: OwnLoop
    part: LoopRun
    order: SlotOrder
    step_s: float
    slots: list[int] = field(default_factory=list)  # that it has stepped on
    tasks: list[asyncio.Task[None]] = field(default_factory=list)
    on_step: Callable[[], None] = lambda: None

    async def train(self) -> None:
        """The loop of somebody, in time of the test: a batch, a step, another batch."""
        optimizer = self.optimizer
        optimizer.register_step_post_hook(lambda *_: self.loop.stepped())
        while not self.loop.is_concluded:
            slot = self.loop.poll_slot()
            await asyncio.sleep(self.step_s)
            if slot is None:
                continue
            indices = torch.from_numpy(self.order.indices(slot))
            loss = (self.model(INPUTS[indices]).squeeze(1) - TARGETS[indices]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            self.slots.append(slot)
            optimizer.step()
            self.on_step()
        assert self.loop.poll_slot() is None

    def theta(self) -> bytes:
        theta_P = np.empty(self.loop._vector.num_parameters, np.float32)
        self.loop._vector.store(theta_P)
        return theta_P.tobytes()


@dataclass
class LoopStory:
    memory: MemorySwarm = field(default_factory=MemorySwarm)
    loopers: dict[str, Looper] = field(default_factory=dict)

    async def add(
        self,
        name: str,
        *,
        seed: int = 0,
        step_s: float = 0.1,
        width: int = 8,
        hears_after_s: float = 0.0,
        unheard: type[Any] = Progress,
        **settings: object,
    ) -> Looper:
        place = place_of(self.memory, identity_of(name))
        if hears_after_s:
            place = replace(place, records=SlowToHear(place.records, hears_after_s, unheard))
        await place.exchange.serve()
        model = model_of(seed, width=width)
        vector = ModelVector(model)
        spec = spec_of(vector, **settings)
        own_P = np.empty(vector.num_parameters, np.float32)
        vector.store(own_P)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        loop = OwnLoop(
            vector,
            spec.batch_size,
            forget_moments=optimizer.state.clear,
            now=asyncio.get_running_loop().time,
        )
        part = LoopRun(place, spec, loop, own_P, name=name)
        order = SlotOrder(spec.num_samples, spec.batch_size, spec.config.seed)
        looper = Looper(place, model, optimizer, loop, part, order, step_s)
        looper.tasks = [asyncio.create_task(part.run()), asyncio.create_task(looper.train())]
        self.loopers[name] = looper
        return looper

    async def finish(self, *, within_s: float = 600.0) -> None:
        async with asyncio.timeout(within_s):
            for looper in self.loopers.values():
                await asyncio.gather(*looper.tasks)

    async def until(self, condition: Callable[[], bool], *, within_s: float = 600.0) -> None:
        async with asyncio.timeout(within_s):
            while not condition():
                await asyncio.sleep(0.05)

    async def kill(self, name: str) -> Looper:
        looper = self.loopers.pop(name)
        await self.memory.kill(looper.place.identity.peer_id)
        looper.loop.fail(ConfigError("closed"))
        for task in looper.tasks:
            task.cancel()
        await asyncio.gather(*looper.tasks, return_exceptions=True)
        return looper


def certified(looper: Looper) -> list[int]:
    """Every slot that the chain certifies, in order, with repetitions if there were any."""
    assert looper.part.chain is not None
    shares = [
        share
        for certificate in looper.part.chain.certificates
        for share in certificate.result.contributions
    ]
    assert all(count(share.slots) > 0 for share in shares)
    return sorted(s for share in shares for a, b in share.slots for s in range(a, b))
