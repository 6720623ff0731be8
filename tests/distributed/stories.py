"""What ranks do in processes of their own, written as any PyTorch program would write it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from zoonet.distributed import World
from zoonet.errors import ConfigError, GroupFailed


def ddp(world: World) -> None:
    """Replicas that learn from shares of a batch, against one that learns from the whole."""
    torch.manual_seed(world.rank)  # DDP has to make them equal
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    ddp_model = DistributedDataParallel(model, bucket_cap_mb=0.001)
    torch.manual_seed(7)
    x, y = torch.randn(24, 8), torch.randn(24, 4)
    reference = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    reference.load_state_dict(model.state_dict())
    opt = torch.optim.SGD(ddp_model.parameters(), lr=0.1, momentum=0.9)
    ref_opt = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    share = len(x) // world.size
    mine = slice(world.rank * share, (world.rank + 1) * share)
    for _ in range(5):
        opt.zero_grad()
        nn.functional.mse_loss(ddp_model(x[mine]), y[mine]).backward()
        opt.step()
        ref_opt.zero_grad()
        nn.functional.mse_loss(reference(x), y).backward()
        ref_opt.step()
    for ours, whole in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-6)
    for ours in model.parameters():
        rows = [torch.empty_like(ours) for _ in range(world.size)]
        dist.all_gather(rows, ours.detach())
        assert all(torch.equal(row, rows[0]) for row in rows), "replicas differ"


def fsdp(world: World) -> None:
    """Parameters in shards, on a mesh of all ranks, against the whole in one process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    reference = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    reference.load_state_dict(model.state_dict())
    mesh = init_device_mesh("cpu", (world.size,))
    for module in (model[0], model[2], model):
        fully_shard(module, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    ref_optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(8 * world.size, 8), torch.randn(8 * world.size, 4)
    mine = slice(8 * world.rank, 8 * world.rank + 8)
    for _ in range(5):
        for one, inputs, targets in ((model, x[mine], y[mine]), (reference, x, y)):
            one.zero_grad()
            nn.functional.mse_loss(one(inputs), targets).backward()
        optimizer.step()
        ref_optimizer.step()
    for ours, whole in zip(model.parameters(), reference.parameters(), strict=True):
        assert isinstance(ours, DTensor)
        torch.testing.assert_close(ours.full_tensor(), whole, rtol=1e-5, atol=1e-6)


WIDTH, BATCH, NUM_MICRO_BATCHES = 16, 16, 8


def layers() -> list[nn.Module]:
    """A model of eight blocks, the same in every process."""
    torch.manual_seed(3)
    return [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(8)]


def batches(num_steps: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(4)
    return [(torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)) for _ in range(num_steps)]


def losses_of_one_process(num_steps: int) -> list[torch.Tensor]:
    """The whole model in this process, over the same micro-batches."""
    model = nn.Sequential(*layers())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for x, y in batches(num_steps):
        optimizer.zero_grad()
        chunks = zip(x.chunk(NUM_MICRO_BATCHES), y.chunk(NUM_MICRO_BATCHES), strict=True)
        for micro_x, micro_y in chunks:
            loss = nn.functional.mse_loss(model(micro_x), micro_y)
            loss.backward()
            losses.append(loss.detach())
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.div_(NUM_MICRO_BATCHES)
        optimizer.step()
    return losses


def pipeline(schedule: str, group: dist.ProcessGroup | None = None) -> None:
    """One stage a rank of the group, by default of all ranks."""
    from torch.distributed import pipelining  # seconds to import: not for every story

    rank, size = dist.get_rank(group), dist.get_world_size(group)
    blocks, is_last = layers(), rank == size - 1
    share = len(blocks) // size
    module = nn.Sequential(*blocks[rank * share : (rank + 1) * share])
    stage = pipelining.PipelineStage(module, rank, size, torch.device("cpu"), group=group)
    make = getattr(pipelining, schedule)
    pipe = make(stage, NUM_MICRO_BATCHES, loss_fn=nn.functional.mse_loss)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses: list[torch.Tensor] = []
    for x, y in batches(3):
        optimizer.zero_grad()
        micro_losses: list[torch.Tensor] = []
        if rank == 0:
            pipe.step(x)
        elif is_last:
            pipe.step(target=y, losses=micro_losses)
        else:
            pipe.step()
        optimizer.step()
        losses += [loss.detach() for loss in micro_losses]
    if is_last:
        for ours, whole in zip(losses, losses_of_one_process(3), strict=True):
            assert torch.equal(ours, whole), f"{ours} in the pipeline, {whole} in one process"


def gpipe(world: World) -> None:
    """Four stages, and two at a time beside each other."""
    pipeline("ScheduleGPipe")
    pipeline("ScheduleGPipe", pair_of(world))


def one_forward_one_backward(world: World) -> None:
    pipeline("Schedule1F1B")
    pipeline("Schedule1F1B", pair_of(world))


def pair_of(world: World) -> dist.ProcessGroup:
    """The group of this rank and its neighbour: 0 and 1, 2 and 3."""
    pairs = [dist.new_group([first, first + 1]) for first in range(0, world.size, 2)]
    pair = pairs[world.rank // 2]
    assert dist.get_world_size(pair) == 2
    return pair


def functions(world: World) -> None:
    """What the documentation of torch.distributed promises, one call after the other."""
    rank, size = world.rank, world.size
    column = torch.arange(6.0).view(2, 3).t()  # not contiguous
    mine = column + rank
    dist.all_reduce(mine)
    assert torch.equal(mine, column * size + sum(range(size)))
    work = dist.all_reduce(torch.ones(3, dtype=torch.bfloat16), op=dist.ReduceOp.MAX, async_op=True)
    assert work.wait()
    assert work.is_completed()
    assert work.is_success()
    assert torch.equal(work.get_future().wait()[0], torch.ones(3).bfloat16())
    pair = torch.tensor([1 + 1j * rank])
    dist.all_reduce(pair)
    assert pair.item() == size + 1j * sum(range(size))
    dist.broadcast(mine := torch.full((2, 2), rank), src=1)
    assert torch.equal(mine, torch.ones(2, 2, dtype=torch.int64))
    dist.reduce(mine := torch.tensor([rank]), dst=2)
    assert rank != 2 or mine.item() == sum(range(size))
    rows = [torch.empty(2, dtype=torch.int64) for _ in range(size)]
    dist.all_gather(rows, torch.tensor([rank, -rank]))
    assert torch.equal(torch.stack(rows), torch.tensor([[r, -r] for r in range(size)]))
    whole = torch.empty(size * 2)
    dist.all_gather_into_tensor(whole, torch.tensor([rank, rank + 0.5]))
    assert whole.tolist() == [r + half for r in range(size) for half in (0, 0.5)]
    part = torch.empty(2)
    dist.reduce_scatter_tensor(part, torch.arange(2.0 * size), op=dist.ReduceOp.AVG)
    assert part.tolist() == [2.0 * rank, 2.0 * rank + 1]
    dist.reduce_scatter(part, [torch.full((2,), float(r)) for r in range(size)])
    assert part.tolist() == [float(size * rank)] * 2
    moved = torch.empty(size)
    dist.all_to_all_single(moved, torch.arange(size) * 10.0 + rank)
    assert moved.tolist() == [10.0 * rank + r for r in range(size)]
    uneven = torch.empty(sum(r + 1 for r in range(size)))
    dist.all_to_all_single(
        uneven,
        torch.full((size * (rank + 1),), float(rank)),
        [r + 1 for r in range(size)],
        [rank + 1] * size,
    )
    assert uneven.tolist() == [float(r) for r in range(size) for _ in range(r + 1)]
    outputs = [torch.empty(1) for _ in range(size)]
    dist.all_to_all(outputs, [torch.tensor([10.0 * rank + r]) for r in range(size)])
    assert [each.item() for each in outputs] == [10.0 * r + rank for r in range(size)]
    gathered = [torch.empty(1) for _ in range(size)] if rank == 0 else None
    dist.gather(torch.tensor([float(rank)]), gathered, dst=0)
    assert gathered is None or [each.item() for each in gathered] == list(range(size))
    sent = [torch.tensor([r * r]) for r in range(size)] if rank == 1 else None
    dist.scatter(mine := torch.empty(1, dtype=torch.int64), sent, src=1)
    assert mine.item() == rank * rank
    dist.barrier()
    objects: list[Any] = [None] * size
    dist.all_gather_object(objects, {"rank": rank})
    assert objects == [{"rank": r} for r in range(size)]
    functional = torch.ops._c10d_functional
    name = dist.group.WORLD.group_name  # type: ignore[union-attr]
    total = functional.wait_tensor(functional.all_reduce(torch.ones(2), "sum", name))
    assert total.tolist() == [size, size]
    with raises(ConfigError, "the mean of torch.int64"):
        dist.all_reduce(torch.ones(1, dtype=torch.int64), op=dist.ReduceOp.AVG)
    dist.barrier()


def subgroups(world: World) -> None:
    """Groups of some ranks, and sends within them."""
    rank = world.rank
    first, last = dist.new_group([0, 1]), dist.new_group([2, 1])
    for group, ranks in ((first, [0, 1]), (last, [1, 2])):
        if rank in ranks:
            mine = torch.tensor([float(rank)])
            dist.all_reduce(mine, group=group)
            assert mine.item() == sum(ranks)
            dist.broadcast(mine := torch.tensor([rank]), src=ranks[1], group=group)
            assert mine.item() == ranks[1]
    if rank == 0:
        works = [dist.isend(torch.full((3,), float(n)), dst=1, tag=n) for n in range(3)]
        assert all(work is not None and work.wait() for work in works)
    elif rank == 1:
        for n in (2, 0, 1):
            dist.recv(mine := torch.empty(3), src=0, tag=n)
            assert mine.tolist() == [n] * 3
    beyond = (rank + 1) % world.size
    before = (rank - 1) % world.size
    received = torch.empty(100_000)
    for work in dist.batch_isend_irecv(
        [
            dist.P2POp(dist.isend, torch.full((100_000,), float(rank)), beyond),
            dist.P2POp(dist.irecv, received, before),
        ]
    ):
        work.wait()
    assert received[-1].item() == before
    if rank == 2:
        seen = sorted(dist.recv(torch.empty(2)) for _ in range(2))
        assert seen == [0, 1]
    elif rank < 2:
        dist.send(torch.ones(2), dst=2)


def named_peers(world: World) -> None:
    """Tensors between peers by their ids, whatever PyTorch's groups do."""
    if world.rank == 0:
        world.send(torch.arange(5), world.peers[2])
    elif world.rank == 2:
        world.recv(mine := torch.empty(5, dtype=torch.int64), world.peers[0])
        assert mine.tolist() == [0, 1, 2, 3, 4]
    with raises(ConfigError, "is not another peer of this run"):
        world.send(torch.ones(1), world.peers[world.rank])


def train_until_failure(world: World) -> None:
    """DDP until it fails, and what follows."""
    model = DistributedDataParallel(nn.Linear(100, 100))
    try:
        for step in range(1_000_000):
            model(torch.randn(4, 100)).square().mean().backward()
            if step == 10:
                print("training", flush=True)
    except RuntimeError as error:
        print(f"in DDP: {type(error).__name__}: {error}", flush=True)
    try:
        dist.barrier()
    except GroupFailed as error:
        print(f"later: {type(error).__name__}: {error}", flush=True)


@contextmanager
def raises(kind: type[Exception], text: str) -> Iterator[None]:
    """As pytest.raises, for processes that have no pytest."""
    message = ""
    try:
        yield
    except kind as error:
        message = str(error)
    assert text in message, f"{message!r}, expected {text!r}"


def pipeline_that_survives(world: World) -> None:
    """Until its end. The first last stage waits for a line of input when it comes to some steps."""
    from experiments.pipeline.train import PipelinePeer, Plan

    waits_at = {"step 25", "step 45"} if world.rank == world.size - 1 else set()

    def say(line: str) -> None:
        print(line, flush=True)
        step = " ".join(line.split()[:2])
        if step in waits_at:
            waits_at.remove(step)
            sys.stdin.readline()

    PipelinePeer(world, Plan(num_steps=60), say).train()
