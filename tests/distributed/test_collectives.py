"""Every collective against plain torch, over memory, TLS and shared memory."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

import pytest
import torch

from tests.distributed.worlds import WORLDS, MemoryWorld, World
from zoonet.distributed import Group
from zoonet.errors import ConfigError

torch.set_num_threads(1)

SIZES = (0, 5, 70_001)  # of fp32: below and above what is sent to everybody whole
LARGE = 1_500_001  # several parts for each owner


SETTINGS = [
    *(("memory", num_peers) for num_peers in (2, 3, 4)),
    *(("tls", 2), ("tls", 4), ("striped", 3)),
    *(("shm", 2), ("shm", 3)),
]


@pytest.fixture(params=SETTINGS, ids=lambda setting: f"{setting[0]} {setting[1]}")
def setting(request: pytest.FixtureRequest) -> tuple[str, int]:
    """How many peers there are, and how they are connected."""
    name, num_peers = request.param
    return str(name), int(num_peers)


@pytest.fixture
def world(setting: tuple[str, int]) -> World:
    return WORLDS[setting[0]]()


@pytest.fixture
def num_peers(setting: tuple[str, int]) -> int:
    return setting[1]


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


DTYPES = [
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("size", [1000, 70_001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_adds_up_as_torch_adds_it(dtype: torch.dtype, size: int) -> None:
    async def story(group: Group) -> torch.Tensor:
        mine = values(group.rank, size, dtype)
        await group.all_reduce_(mine)
        return mine

    expected = in_order([values(rank, size, dtype) for rank in range(3)])
    for result in MemoryWorld().run(3, story):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("size", [1000, 70_001])
@pytest.mark.parametrize(
    ("how", "combine"),
    [
        ("product", torch.mul),
        ("min", torch.minimum),
        ("max", torch.maximum),
        ("band", torch.bitwise_and),
        ("bor", torch.bitwise_or),
        ("bxor", torch.bitwise_xor),
    ],
)
def test_every_reduction_is_what_torch_makes_of_it(
    how: str, combine: Callable[..., torch.Tensor], size: int
) -> None:
    async def story(group: Group) -> torch.Tensor:
        mine = values(group.rank, size, torch.int64)
        await group.all_reduce_(mine, how)
        return mine

    terms = [values(rank, size, torch.int64) for rank in range(3)]
    for result in MemoryWorld().run(3, story):
        assert torch.equal(result, functools.reduce(combine, terms))


def test_the_mean_is_the_sum_by_the_number_of_ranks_and_no_integers_have_one() -> None:
    async def story(group: Group) -> torch.Tensor:
        mine = values(group.rank, 1000)
        await group.all_reduce_(mine, "avg")
        with pytest.raises(ConfigError, match=r"the mean of torch.int64 is none"):
            await group.all_reduce_(values(group.rank, 10, torch.int64), "avg")
        with pytest.raises(ConfigError, match="no reduction 'median'"):
            await group.all_reduce_(mine, "median")
        with pytest.raises(ConfigError, match="bits of integers"):
            await group.all_reduce_(mine, "bor")
        await group.barrier()  # what was refused has not happened: the group goes on
        return mine

    expected = in_order([values(rank, 1000) for rank in range(4)]).div(4)
    for result in MemoryWorld().run(4, story):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("size", [*SIZES, LARGE])
def test_reduce_changes_the_tensor_of_one_rank_alone(
    world: World, num_peers: int, size: int
) -> None:
    async def story(group: Group) -> torch.Tensor:
        mine = values(group.rank, size)
        await group.reduce_(mine, to=1)
        return mine

    terms = [values(rank, size) for rank in range(num_peers)]
    for rank, result in enumerate(world.run(num_peers, story)):
        assert torch.equal(result, in_order(terms) if rank == 1 else terms[rank])


@pytest.mark.parametrize("size", [*SIZES, LARGE])
def test_reduce_scatter_gives_each_rank_its_sum_and_leaves_the_inputs_alone(
    world: World, num_peers: int, size: int
) -> None:
    def inputs(rank: int) -> list[torch.Tensor]:
        return [values(10 * rank + to, size + to) for to in range(num_peers)]

    async def story(group: Group) -> torch.Tensor:
        mine = inputs(group.rank)
        output = torch.empty(size + group.rank)
        await group.reduce_scatter(output, mine)
        assert all(map(torch.equal, mine, inputs(group.rank)))
        return output

    for rank, result in enumerate(world.run(num_peers, story)):
        terms = [inputs(other)[rank] for other in range(num_peers)]
        assert torch.equal(result, in_order(terms))


@pytest.mark.parametrize("size", [*SIZES, LARGE])
@pytest.mark.parametrize("source", [0, 1])
def test_broadcast_brings_everyone_the_same(
    world: World, num_peers: int, size: int, source: int
) -> None:
    async def story(group: Group) -> torch.Tensor:
        mine = values(group.rank, size)
        await group.broadcast_(mine, source)
        return mine

    for result in world.run(num_peers, story):
        assert torch.equal(result, values(source, size))


@pytest.mark.parametrize("size", [*SIZES, LARGE])
def test_all_gather_brings_everyone_everything(world: World, num_peers: int, size: int) -> None:
    async def story(group: Group) -> list[torch.Tensor]:
        outputs = [torch.empty(size + rank) for rank in range(num_peers)]
        await group.all_gather(outputs, values(group.rank, size + group.rank))
        return outputs

    for results in world.run(num_peers, story):
        for rank, result in enumerate(results):
            assert torch.equal(result, values(rank, size + rank))


@pytest.mark.parametrize("size", [1, 70_001])
def test_gather_scatter_and_all_to_all_move_each_tensor_where_it_belongs(
    world: World, num_peers: int, size: int
) -> None:
    def item(source: int, to: int) -> torch.Tensor:
        return values(10 * source + to, size)

    async def story(group: Group) -> None:
        rank, ranks = group.rank, range(num_peers)
        outputs = [torch.empty(size) for _ in ranks]
        await group.all_to_all(outputs, [item(rank, to) for to in ranks])
        assert all(torch.equal(outputs[other], item(other, rank)) for other in ranks)
        is_root = rank == 1
        outputs = [torch.empty(size) for _ in ranks] if is_root else []
        await group.gather(outputs, item(rank, 0), to=1)
        assert all(torch.equal(got, item(other, 0)) for other, got in enumerate(outputs))
        output = torch.empty(size)
        await group.scatter(output, [item(1, to) for to in ranks] if is_root else [], source=1)
        assert torch.equal(output, item(1, rank))

    world.run(num_peers, story)


@pytest.mark.parametrize("num_peers", [2, 3, 4])
def test_nobody_leaves_a_barrier_before_the_last_has_come(num_peers: int) -> None:
    async def story(group: Group) -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(group.rank)  # virtual seconds
        came = loop.time()
        await group.barrier()
        return came, loop.time()

    times = MemoryWorld().run(num_peers, story)
    assert max(came for came, _ in times) <= min(left for _, left in times)


def test_operations_under_way_at_the_same_time_do_not_meet(world: World, num_peers: int) -> None:
    async def story(group: Group) -> list[torch.Tensor]:
        tensors = [values(group.rank, size) for size in (50_000, 10, 300_000, 70_000)]
        works = [group.all_reduce_(tensor) for tensor in tensors]
        await asyncio.gather(*works, group.barrier())
        return tensors

    for results in world.run(num_peers, story):
        for result in results:
            terms = [values(rank, result.numel()) for rank in range(num_peers)]
            assert torch.equal(result, in_order(terms))


def test_two_runs_give_the_same_bits_over_every_path() -> None:
    async def story(group: Group) -> torch.Tensor:
        mine = values(group.rank, 300_000, torch.bfloat16)
        await group.all_reduce_(mine, "avg")
        return mine

    results = [result for make in WORLDS.values() for result in make().run(4, story)]
    assert all(torch.equal(result, results[0]) for result in results)
