"""What ranks do in processes of their own, written as any PyTorch program would write it."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel

from zoonet.distributed import World


def ddp(world: World) -> None:
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


def pipeline(world: World, schedule_type: type[Any]) -> None:
    """One stage a rank."""
    blocks, is_last = layers(), world.rank == world.size - 1
    share = len(blocks) // world.size
    module = nn.Sequential(*blocks[world.rank * share : (world.rank + 1) * share])
    stage = PipelineStage(module, world.rank, world.size, torch.device("cpu"))
    schedule = schedule_type(stage, NUM_MICRO_BATCHES, loss_fn=nn.functional.mse_loss)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2)
    losses: list[torch.Tensor] = []
    for x, y in batches(3):
        optimizer.zero_grad()
        micro_losses: list[torch.Tensor] = []
        if world.rank == 0:
            schedule.step(x)
        elif is_last:
            schedule.step(target=y, losses=micro_losses)
        else:
            schedule.step()
        optimizer.step()
        losses += [loss.detach() for loss in micro_losses]
    if is_last:
        for ours, whole in zip(losses, losses_of_one_process(3), strict=True):
            assert torch.equal(ours, whole), f"{ours} in the pipeline, {whole} in one process"


def gpipe(world: World) -> None:
    pipeline(world, ScheduleGPipe)


def one_forward_one_backward(world: World) -> None:
    pipeline(world, Schedule1F1B)
