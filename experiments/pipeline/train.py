"""A pipeline that goes on without a peer that it loses, from the last checkpoint.

Every `checkpoint_every` steps a peer gives a copy of its blocks and their optimizers to the peer of
the next stage. After a loss those who are left agree on who that is, share the lost blocks, fetch
what they lack from who keeps it, and go back to the last step that all of them have a checkpoint
of. Training is the same computation wherever the blocks are, so not a bit of the loss changes.

N = values of a block: its parameters, then both moments of AdamW
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

from zoonet.distributed import World
from zoonet.distributed.stages import Stage, cut, moves, take_over
from zoonet.errors import GroupFailed

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is trained."""

    num_steps: int = 60
    checkpoint_every: int = 10
    num_blocks: int = 8
    width: int = 32
    batch_size: int = 32
    num_micro_batches: int = 4
    learning_rate: float = 3e-3

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of a step: any peer can make them."""
        generator = torch.Generator().manual_seed(step)
        x = torch.rand(self.batch_size, self.width, generator=generator)
        return x, x.flip(1)

    def blocks(self) -> list[Block]:
        """The whole model as it begins."""
        torch.manual_seed(0)
        return [Block(self) for _ in range(self.num_blocks)]


class Block:
    """A piece of the model with its own optimizer, so that it can move by itself."""

    def __init__(self, plan: Plan) -> None:
        self.module = nn.Sequential(nn.Linear(plan.width, plan.width), nn.Tanh())
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=plan.learning_rate)

    def state(self) -> torch.Tensor:
        """All of it (N)."""
        return torch.cat([tensor.detach().flatten() for tensor in self._tensors()])

    def load(self, state_N: torch.Tensor, step: int) -> None:
        """Be what it was after that many steps."""
        for parameter in self.module.parameters():
            self.optimizer.state[parameter]["step"] = torch.tensor(float(step))
        tensors = list(self._tensors())
        parts = state_N.split([tensor.numel() for tensor in tensors])
        with torch.no_grad():
            for tensor, part in zip(tensors, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def _tensors(self) -> Iterator[torch.Tensor]:
        yield from self.module.parameters()
        for name in ("exp_avg", "exp_avg_sq"):
            for parameter in self.module.parameters():
                state: dict[str, Any] = self.optimizer.state[parameter]
                state.setdefault("step", torch.tensor(0.0))
                yield state.setdefault(name, torch.zeros_like(parameter))


@dataclass(slots=True)
class Checkpoint:
    """What this peer keeps of one step: its own blocks, and those of the stage before it."""

    stages: tuple[Stage, ...]
    states: dict[int, torch.Tensor]


class PipelinePeer:
    """One peer's part in it."""

    def __init__(self, world: World, plan: Plan, say: Say) -> None:
        self._world = world
        self._plan = plan
        self._say = say
        self._blocks = dict(enumerate(plan.blocks()))
        self._checkpoints: dict[int, Checkpoint] = {}
        self._stages = cut(world.peers, plan.num_blocks)
        self._build()

    def train(self) -> None:
        """Train to the end, whoever is lost, while anyone is left who has the model."""
        step = 0
        self._keep(step)
        while step < self._plan.num_steps:
            try:
                self._train_step(step)
                step += 1
                if step % self._plan.checkpoint_every == 0:
                    self._keep(step)
            except GroupFailed as failure:
                self._say(f"failed {failure}")
                step = self._recover()

    def _build(self) -> None:
        """Make the stage that this peer has now."""
        plan, world = self._plan, self._world
        mine = [self._blocks[block] for block in self._stages[world.rank].blocks]
        micro = torch.zeros(plan.batch_size // plan.num_micro_batches, plan.width)
        stage = PipelineStage(
            nn.Sequential(*(block.module for block in mine)),
            world.rank,
            world.size,
            torch.device("cpu"),
            input_args=micro.requires_grad_(world.rank > 0),
            output_args=torch.zeros_like(micro).requires_grad_(),  # no objects need to be sent
        )
        self._schedule = ScheduleGPipe(
            stage, plan.num_micro_batches, loss_fn=nn.functional.mse_loss
        )
        self._optimizers = [block.optimizer for block in mine]

    def _train_step(self, step: int) -> None:
        x, y = self._plan.batch(step)
        is_last = self._world.rank == self._world.size - 1
        losses: list[torch.Tensor] = []
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        inputs = (x,) if self._world.rank == 0 else ()
        self._schedule.step(*inputs, **({"target": y, "losses": losses} if is_last else {}))
        for optimizer in self._optimizers:
            optimizer.step()
        if is_last:
            self._say(f"step {step} loss {torch.stack(losses).mean().item().hex()}")

    def _keep(self, step: int) -> None:
        """Take a checkpoint and give it to the next stage, and keep that of the one before."""
        world = self._world
        own = {block: self._blocks[block].state() for block in self._stages[world.rank].blocks}
        states = dict(own)
        if world.size > 1:
            after, before = (world.rank + 1) % world.size, (world.rank - 1) % world.size
            received = {
                block: torch.empty_like(self._blocks[block].state())
                for block in self._stages[before].blocks
            }
            works = [dist.isend(own[block], after, tag=block) for block in own]
            works += [dist.irecv(received[block], before, tag=block) for block in received]
            for work in works:
                assert work is not None
                work.wait()
            states |= received
        self._checkpoints[step] = Checkpoint(self._stages, states)
        for old in sorted(self._checkpoints)[:-2]:  # others may not have come as far as this one
            del self._checkpoints[old]

    def _recover(self) -> int:
        """Go on with those who are left; return the step to go on from."""
        while True:
            try:
                self._world.regroup()
                newest = torch.tensor(max(self._checkpoints))
                dist.all_reduce(newest, op=dist.ReduceOp.MIN)
                step = int(newest)
                self._restore(step)
                self._keep(step)
            except GroupFailed as failure:  # another one is lost
                self._say(f"failed {failure}")
                continue
            shares = ", ".join(f"{s.peer_id[-8:]} {s.start}-{s.stop - 1}" for s in self._stages)
            self._say(f"recovered to step {step} with blocks {shares}")
            return step

    def _restore(self, step: int) -> None:
        kept, world = self._checkpoints[step], self._world
        self._stages = take_over(kept.stages, world.peers)
        own = world.peers[world.rank]
        sends = []
        for move in moves(kept.stages, self._stages, world.peers):
            if move.source == own != move.target:
                sends.append(world.isend(kept.states[move.block], move.target, tag=move.block))
        for move in moves(kept.stages, self._stages, world.peers):
            if move.target == own:
                state_N = torch.empty_like(self._blocks[move.block].state())
                if move.source == own:
                    state_N.copy_(kept.states[move.block])
                else:
                    world.recv(state_N, move.source, tag=move.block)
                self._blocks[move.block].load(state_N, step)
        for work in sends:
            work.wait()
        for later in [later for later in self._checkpoints if later > step]:
            del self._checkpoints[later]
        self._build()


def losses_of_one_process(plan: Plan) -> list[float]:
    """The same training without a pipeline: what it is compared with."""
    blocks = plan.blocks()
    model = nn.Sequential(*(block.module for block in blocks))
    losses = []
    for step in range(plan.num_steps):
        x, y = plan.batch(step)
        micro_losses = []
        model.zero_grad()
        chunks = zip(x.chunk(plan.num_micro_batches), y.chunk(plan.num_micro_batches), strict=True)
        for micro_x, micro_y in chunks:
            loss = nn.functional.mse_loss(model(micro_x), micro_y)
            loss.backward()
            micro_losses.append(loss.detach())
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.div_(plan.num_micro_batches)
        for block in blocks:
            block.optimizer.step()
        losses.append(torch.stack(micro_losses).mean().item())
    return losses
