"""The peers of a run, for an ordinary synchronous script: ranks, send, recv, PyTorch's groups."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import Any, Final, Protocol, Self, TypeVar

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from zoonet.crypto import PeerId
from zoonet.distributed.exchange import Exchange, ExchangeConfig
from zoonet.distributed.group import Group
from zoonet.distributed.memory import Staged
from zoonet.distributed.process_group import PeerProcessGroup
from zoonet.distributed.work import PendingWork
from zoonet.errors import ConfigError
from zoonet.transport import Lanes

BACKEND: Final = "zoonet"
T = TypeVar("T")


class Runner(Protocol):
    """An event loop in a thread of its own."""

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine there."""
        ...


class World:
    """This process among the peers of a run. Every method may be called from every thread.

    ::

        with World.open(runner, lanes, peers, config) as world:
            world.init_process_group()
            ...  # torch.distributed as ever
    """

    def __init__(
        self, runner: Runner, exchange: Exchange, leave: Callable[[], Coroutine[Any, Any, object]]
    ) -> None:
        """Stand on an exchange that runs on the runner's loop; users call `open` instead."""
        self.peers = exchange.peers
        self.rank = exchange.rank
        self.size = len(exchange.peers)
        self._runner = runner
        self._exchange = exchange
        self._leave = leave
        self._pairs: dict[PeerId, Group] = {}
        self._has_process_group = False
        self._is_closed = False
        self._last: list[Callable[[], None]] = []

    @classmethod
    def open(
        cls,
        runner: Runner,
        lanes: AbstractAsyncContextManager[Lanes],
        peers: Sequence[PeerId],
        config: ExchangeConfig | None = None,
    ) -> Self:
        """Open the lanes, meet all peers of the list, and return. Raises as `Exchange.open`."""

        async def enter() -> Self:
            return cls(runner, *await _enter(lanes, peers, config))

        return runner.submit(enter()).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the run in good order. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._has_process_group and dist.is_initialized():
            dist.destroy_process_group()
        try:
            self._runner.submit(self._leave()).result()
        finally:
            for call in self._last:
                call()

    def on_close(self, call: Callable[[], None]) -> None:
        """Have something called once the run is left."""
        self._last.append(call)

    def init_process_group(self, *, timeout: timedelta | None = None) -> None:
        """Make these peers PyTorch's default process group, with ranks as in the list of peers.

        `timeout`: for one operation; by default the world's `operation_timeout_s`.
        """
        create = functools.partial(_create, self)
        dist.Backend.register_backend(BACKEND, create, extended_api=True, devices=["cpu", "cuda"])
        timeout_s = self._exchange.config.operation_timeout_s
        dist.init_process_group(
            BACKEND,
            store=HashStore(),  # nothing has to be agreed on through it
            rank=self.rank,
            world_size=self.size,
            timeout=timeout or timedelta(seconds=timeout_s),
        )
        self._has_process_group = True

    def regroup(self, *, agree_timeout_s: float = 60.0) -> None:
        """After GroupFailed: go on with those who are left, all of whom call this.

        `peers`, `rank` and `size` are theirs from now on, and PyTorch's default process group is
        made anew of them; other groups, and models on them such as DDP's, are to be made anew by
        the program. Raises PeerTimeout where some do not call it, GroupFailed where this peer has
        been given up by the others.
        """
        if dist.is_initialized():
            dist.destroy_process_group()
        own = self.peers[self.rank]
        self.peers = self._runner.submit(self._exchange.agree(agree_timeout_s)).result()
        self.rank, self.size = self.peers.index(own), len(self.peers)
        self.init_process_group()

    def process_group(
        self, name: str, ranks: Sequence[int], timeout: timedelta
    ) -> dist.ProcessGroup:
        """A group of some ranks. `torch.distributed.new_group` calls it."""
        members = [self.peers[rank] for rank in ranks]

        async def form() -> Group:
            return Group(self._exchange, name, members)

        group = self._runner.submit(form()).result()
        group.timeout_s = timeout.total_seconds()
        return PeerProcessGroup(group, self._runner.submit)

    def send(self, tensor: torch.Tensor, peer: PeerId, tag: int = 0) -> None:
        """Send a tensor to a peer; return when it is there. Raises GroupFailed."""
        self.isend(tensor, peer, tag).wait()

    def recv(self, tensor: torch.Tensor, peer: PeerId, tag: int = 0) -> None:
        """Receive a tensor of this dtype and shape from a peer, in place. Raises GroupFailed."""
        self.irecv(tensor, peer, tag).wait()

    def isend(self, tensor: torch.Tensor, peer: PeerId, tag: int = 0) -> PendingWork:
        """Begin to send; the tensor must not change until the work is done."""
        values = Staged(tensor).values_N.view(tensor.shape)
        return PendingWork(self._runner.submit(self._send(values, peer, tag)), f"send to {peer}")

    def irecv(self, tensor: torch.Tensor, peer: PeerId, tag: int = 0) -> PendingWork:
        """Begin to receive."""
        work = self._runner.submit(self._recv(Staged(tensor, reads=False), tensor.shape, peer, tag))
        return PendingWork(work, f"recv from {peer}", [tensor])

    async def _send(self, values: torch.Tensor, peer: PeerId, tag: int) -> int:
        pair = self._pair(peer)
        await pair.send(values, 1 - pair.rank, tag)
        return -1

    async def _recv(self, staged: Staged, shape: torch.Size, peer: PeerId, tag: int) -> int:
        pair = self._pair(peer)
        await pair.receive(staged.values_N.view(shape), 1 - pair.rank, tag)
        staged.write_back()
        return self.peers.index(peer)

    def _pair(self, peer: PeerId) -> Group:
        """The group of this peer and another: others that fail do not matter to the two."""
        if peer not in self.peers or peer == self.peers[self.rank]:
            raise ConfigError(f"{peer} is not another peer of this run: {', '.join(self.peers)}")
        if peer not in self._pairs:
            both = sorted((self.peers[self.rank], peer))
            self._pairs[peer] = Group(self._exchange, "pair " + " ".join(both), both)
        return self._pairs[peer]


async def _enter(
    lanes: AbstractAsyncContextManager[Lanes],
    peers: Sequence[PeerId],
    config: ExchangeConfig | None,
) -> tuple[Exchange, Callable[[], Coroutine[Any, Any, None]]]:
    """Return the exchange, held open by a task of its own, and what ends that task."""
    inside: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
    is_over = asyncio.Event()

    async def hold() -> None:
        async with lanes as opened, Exchange.open(opened, peers, config) as exchange:
            inside.set_result(exchange)
            await is_over.wait()

    holder = asyncio.create_task(hold(), name="world")
    either: set[asyncio.Future[Any]] = {holder, inside}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not inside.done():
        await holder  # raises why it could not enter

    async def leave() -> None:
        is_over.set()
        await holder

    return inside.result(), leave


def _create(world: World, opts: Any, _: object) -> dist.ProcessGroup:
    """Called by torch.distributed for the default group and for each new one."""
    ranks = list(opts.global_ranks_in_group) or list(range(world.size))
    return world.process_group(str(opts.group_id), ranks, opts.timeout)
