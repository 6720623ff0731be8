"""The three lines, as far as they go without a network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import torch
from torch import nn

from tests.client.loop.loops import identity_of, place_of
from zoonet.client.loop import Swarm, SwarmConfig
from zoonet.client.loop.place import Place
from zoonet.clock import SystemClock
from zoonet.errors import ConfigError, PeerUnreachable
from zoonet.testing import MemorySwarm


@asynccontextmanager
async def nowhere() -> AsyncIterator[Place]:
    yield place_of(MemorySwarm(clock=SystemClock()), identity_of("a"))


@asynccontextmanager
async def shut() -> AsyncIterator[Place]:
    raise PeerUnreachable("nobody answers")
    yield


@pytest.fixture
def swarm() -> Iterator[Swarm]:
    with Swarm("squares", nowhere(), SwarmConfig(), name="ada") as swarm:
        yield swarm


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters())


def test_prepare_returns_the_very_same_objects(swarm: Swarm) -> None:
    model = nn.Linear(2, 2)
    optimizer = adam(model)
    assert swarm.prepare(model, optimizer) == (model, optimizer)
    optimizer.step()  # before the run has begun it is a step like any other


def test_what_cannot_work_is_said_before_anything_begins(swarm: Swarm) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="call prepare"):
        swarm.shard(range(3))
    with pytest.raises(ConfigError, match="needs the optimizer"):
        swarm.prepare(model)
    with pytest.raises(ConfigError, match="Adam holds no trainable parameter of the model"):
        swarm.prepare(model, adam(nn.Linear(2, 2)))
    swarm.prepare(model, adam(model))
    with pytest.raises(ConfigError, match="has a model already"):
        swarm.prepare(model, adam(model))
    for wrong in ({"batch_size": 0}, {"epochs": 0}, {"steps": -1}):
        with pytest.raises(ConfigError, match="above 0"):
            swarm.shard(range(3), **wrong)
    with pytest.raises(ConfigError, match="above 0"):
        swarm.shard([])
    with pytest.raises(ConfigError, match="begins with the first batch"), swarm.outer():
        pass


def test_a_model_that_is_not_finite_is_refused(swarm: Swarm) -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    swarm.prepare(model, adam(model))
    with pytest.raises(ConfigError, match="infinite or NaN"):
        next(swarm.shard(range(3)))


def test_the_status_is_a_line_from_the_beginning(swarm: Swarm) -> None:
    assert swarm.status().progress == 0.0
    assert str(swarm.status()).startswith("squares: joining, round 0")


def test_a_closed_swarm_says_so(swarm: Swarm) -> None:
    model = nn.Linear(2, 2)
    swarm.prepare(model, adam(model))
    swarm.close()
    swarm.close()
    with pytest.raises(ConfigError, match="this swarm is closed"):
        next(swarm.shard(range(3)))


def test_who_cannot_enter_learns_why() -> None:
    with pytest.raises(PeerUnreachable, match="nobody answers"):
        Swarm("squares", shut(), SwarmConfig(), name="ada")
    with pytest.raises(ConfigError, match="1 to 100 characters"):
        Swarm("", nowhere(), SwarmConfig(), name="ada")
