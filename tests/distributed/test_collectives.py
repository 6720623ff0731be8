"""Every collective against plain torch, over memory, TLS and shared memory."""

from __future__ import annotations

import functools

import pytest
import torch

from tests.distributed.worlds import WORLDS, World
from zoonet.distributed import Group

torch.set_num_threads(1)

SIZES = (0, 1, 5, 1000, 70_001)  # of fp32: below and above what is sent to everybody whole
LARGE = 1_500_001  # several parts for each owner


@pytest.fixture(params=list(WORLDS))
def world(request: pytest.FixtureRequest) -> World:
    """How the peers are connected."""
    return WORLDS[request.param]()


@pytest.fixture(params=[2, 3, 4])
def num_peers(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def values(rank: int, size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What a rank puts in: the same in every run."""
    generator = torch.Generator().manual_seed(1000 * rank + size)
    if dtype == torch.bool:
        return torch.randint(0, 2, (size,), generator=generator).bool()
    if not dtype.is_floating_point:
        return torch.randint(0, 100, (size,), generator=generator).to(dtype)
    return torch.randn(size, generator=generator).to(dtype)


def in_order(terms: list[torch.Tensor]) -> torch.Tensor:
    """The sum in the order of ranks; halves in fp32, rounded once."""
    is_half = terms[0].dtype in (torch.float16, torch.bfloat16)
    wide = [term.float() if is_half else term for term in terms]
    return functools.reduce(torch.add, wide).to(terms[0].dtype)


@pytest.mark.parametrize("size", [*SIZES, LARGE])
def test_all_reduce_is_the_sum_in_rank_order_bit_for_bit(
    world: World, num_peers: int, size: int
) -> None:
    async def story(group: Group) -> torch.Tensor:
        mine = values(group.rank, size)
        await group.all_reduce_(mine)
        return mine

    expected = in_order([values(rank, size) for rank in range(num_peers)])
    for result in world.run(num_peers, story):
        assert torch.equal(result, expected)
