"""A group of peers that do something together: its operations, each a set of transfers.

Every member of a group calls the same collective operations in the same order. Operations may be
under way at the same time; what they were called in is what counts.

N = values of a tensor, flat, contiguous and on the CPU; K = members of the group
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import torch

from zoonet.crypto import PeerId, sha256
from zoonet.distributed import collectives
from zoonet.distributed.exchange import Exchange
from zoonet.distributed.reduction import check
from zoonet.distributed.turn import Turn
from zoonet.distributed.wire import GROUP_BYTES, Key, Op
from zoonet.distributed.wording import peer_words
from zoonet.errors import ConfigError, GroupFailed, PeerTimeout, ZoonetError

POINT_TO_POINT: Final = 1


class Group:
    """This peer's place in a group. Used on the event loop.

    Tensors are contiguous and on the CPU. An operation that fails raises GroupFailed and ends the
    group: it raises at every other member, too, and so does every later operation. An operation
    that is cancelled ends the group in the same way: the others cannot go on without it.
    """

    def __init__(self, exchange: Exchange, name: str, members: Sequence[PeerId]) -> None:
        """`members` in the order of their ranks; `name` is the same for all of them.

        A name may be used again once its former group is closed, by all members alike.
        """
        unknown = [peer_id for peer_id in members if peer_id not in exchange.peers]
        if unknown or exchange.peer_id not in members or len(set(members)) != len(members):
            raise ConfigError(f"group {name!r}: its members are peers of the run, this one too")
        self.name = name
        self.members = tuple(members)
        self.rank = self.members.index(exchange.peer_id)
        self.size = len(self.members)
        self.failure: GroupFailed | None = None
        self.timeout_s = exchange.config.operation_timeout_s
        self._exchange = exchange
        self._loop = asyncio.get_running_loop()
        words = (name, *self.members)
        generation = exchange.num_opened[words]
        exchange.num_opened[words] += 1
        self._id = sha256("\n".join([str(generation), *words]).encode())[:GROUP_BYTES]
        self._num_collectives = 0
        self._num_sent: Counter[tuple[int, int]] = Counter()  # by rank and tag
        self._num_received: Counter[tuple[int, int]] = Counter()
        self._turns: set[Turn] = set()
        self._offered = asyncio.Event()
        exchange.join_group(self._id, frozenset(members), self._on_offer, self._fail)

    def _on_offer(self) -> None:
        with contextlib.suppress(RuntimeError):  # a loop that has closed
            self._loop.call_soon_threadsafe(self._offered.set)

    def _fail(self, failure: GroupFailed) -> None:
        if self.failure is None:
            self.failure = failure
            for turn in self._turns:
                turn.abort(failure)
            self._offered.set()
            self._exchange.leave_group(self._id, failure, tell=True)

    def close(self) -> None:
        """Leave the group in good order: nothing of it is under way any more. Idempotent."""
        if self.failure is None:
            self.failure = GroupFailed(f"group {self.name!r} is closed")
            self._exchange.leave_group(self._id, self.failure, tell=False)

    # Operations. All raise GroupFailed, or ConfigError before anything has happened.

    async def send(self, values_N: torch.Tensor, to: int, tag: int = 0) -> None:
        """Send a tensor to a member; return when it is there.

        Sends to one member with one tag are received in their order. Its shape travels along.
        """
        self._check_partner(to)
        number = self._num_sent[to, tag]
        self._num_sent[to, tag] += 1
        async with self._turn(Op.POINT_TO_POINT, number, f"send to rank {to}", tag) as turn:
            await turn.all([turn.send(to, 0, 0, values_N, tuple(values_N.shape))])

    async def receive(self, values_N: torch.Tensor, source: int, tag: int = 0) -> None:
        """Receive a tensor of the same dtype and shape from a member, in place."""
        self._check_partner(source)
        number = self._num_received[source, tag]
        self._num_received[source, tag] += 1
        what = f"recv from rank {source}"
        async with self._turn(Op.POINT_TO_POINT, number, what, tag) as turn:
            await turn.all([turn.receive(source, 0, 0, values_N, tuple(values_N.shape))])

    async def receive_any(self, values_N: torch.Tensor, tag: int = 0) -> int:
        """Receive from whoever sends first; return that rank."""
        what = "recv from any rank"
        try:
            async with asyncio.timeout(self.timeout_s):
                source = await self._first_to_offer(tag)
        except TimeoutError as error:
            late = PeerTimeout(f"{self.timeout_s:.0f} s passed, nobody sent")
            raise self._failed(what, late) from error
        await self.receive(values_N, source, tag)
        return source

    async def _first_to_offer(self, tag: int) -> int:
        while self.failure is None:
            self._offered.clear()
            for source, peer_id in enumerate(self.members):
                number = self._num_received[source, tag]
                key = Key(self._id, POINT_TO_POINT, number, tag, 0)
                if source != self.rank and self._exchange.mailbox.is_offered(peer_id, key):
                    return source
            await self._offered.wait()
        raise self.failure

    def _check_partner(self, rank: int) -> None:
        if rank == self.rank or not 0 <= rank < self.size:
            raise ConfigError(
                f"rank {self.rank} of {self.size} cannot exchange tensors with rank {rank}"
            )

    async def all_reduce_(self, values_N: torch.Tensor, how: str = "sum") -> None:
        """Reduce over all members, in place, with equal bits for all.

        `how`: sum, avg, product, min, max, band, bor or bxor; in the order of ranks. fp16 and bf16
        are accumulated in fp32.
        """
        check(how, values_N.dtype)
        async with self._collective(Op.ALL_REDUCE) as turn:
            await collectives.all_reduce_(turn, values_N, how)

    async def reduce_(self, values_N: torch.Tensor, to: int, how: str = "sum") -> None:
        """Reduce over all members; only at `to` is the tensor replaced."""
        check(how, values_N.dtype)
        async with self._collective(Op.REDUCE) as turn:
            await collectives.reduce_(turn, values_N, to, how)

    async def reduce_scatter(
        self, output_N: torch.Tensor, inputs: Sequence[torch.Tensor], how: str = "sum"
    ) -> None:
        """Member r gets the reduction of everyone's `inputs[r]`. `inputs`: K of them."""
        check(how, output_N.dtype)
        self._check_count("inputs", inputs)
        async with self._collective(Op.REDUCE_SCATTER) as turn:
            await collectives.reduce_scatter(turn, output_N, inputs, how)

    async def broadcast_(self, values_N: torch.Tensor, source: int) -> None:
        """Let all members have what the source has."""
        async with self._collective(Op.BROADCAST) as turn:
            await collectives.broadcast_(turn, values_N, source)

    async def all_gather(self, outputs: Sequence[torch.Tensor], input_N: torch.Tensor) -> None:
        """`outputs[r]` becomes what member r puts in. `outputs`: K of them."""
        self._check_count("outputs", outputs)
        async with self._collective(Op.ALL_GATHER) as turn:
            await collectives.all_to_all(turn, outputs, [input_N] * self.size)

    async def all_to_all(
        self, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
    ) -> None:
        """`outputs[r]` becomes member r's `inputs[our rank]`."""
        self._check_count("outputs", outputs)
        self._check_count("inputs", inputs)
        async with self._collective(Op.ALL_TO_ALL) as turn:
            await collectives.all_to_all(turn, outputs, inputs)

    async def gather(self, outputs: Sequence[torch.Tensor], input_N: torch.Tensor, to: int) -> None:
        """At member `to`, `outputs[r]` becomes what member r puts in; empty elsewhere."""
        if to == self.rank:
            self._check_count("outputs", outputs)
        async with self._collective(Op.GATHER) as turn:
            await collectives.gather(turn, outputs, input_N, to)

    async def scatter(
        self, output_N: torch.Tensor, inputs: Sequence[torch.Tensor], source: int
    ) -> None:
        """Member r gets `inputs[r]` of the source; empty elsewhere."""
        if source == self.rank:
            self._check_count("inputs", inputs)
        async with self._collective(Op.SCATTER) as turn:
            await collectives.scatter(turn, output_N, inputs, source)

    async def barrier(self) -> None:
        """Return once every member has called it."""
        async with self._collective(Op.BARRIER) as turn:
            nothing = [torch.empty(0, dtype=torch.uint8)] * self.size
            await collectives.all_to_all(turn, nothing, nothing)

    def _check_count(self, what: str, tensors: Sequence[torch.Tensor]) -> None:
        if len(tensors) != self.size:
            raise ConfigError(f"{len(tensors)} {what} for a group of {self.size}: one a member")

    @asynccontextmanager
    async def _collective(self, op: Op) -> AsyncIterator[Turn]:
        number = self._num_collectives
        self._num_collectives += 1
        if self.failure is None:
            self._exchange.mailbox.begin(self._id, number, op)
        async with self._turn(op, number, f"{op.words} (number {number})", 0) as turn:
            yield turn
        self._exchange.mailbox.end(self._id, number)

    @asynccontextmanager
    async def _turn(self, op: Op, number: int, what: str, tag: int) -> AsyncIterator[Turn]:
        stream = int(op is Op.POINT_TO_POINT)
        turn = Turn(self._exchange.mailbox, self.members, self.rank, self._id, stream, number, op)
        turn.tag = tag
        self._turns.add(turn)
        is_done = False
        try:
            if self.failure is not None:
                raise self.failure
            async with asyncio.timeout(self.timeout_s):
                yield turn
            is_done = True
        except TimeoutError:
            whom = ", ".join(peer_words(rank, self.members[rank]) for rank in turn.awaited())
            late = PeerTimeout(f"{self.timeout_s:.0f} s passed, still waiting for {whom}")
            raise self._failed(what, late) from late
        except ZoonetError as error:
            raise self._failed(what, error) from error
        finally:
            self._turns.discard(turn)
            if not is_done and self.failure is None:
                self._fail(GroupFailed(f"{what} was cancelled"))

    def _failed(self, what: str, error: ZoonetError) -> GroupFailed:
        missing = error.missing if isinstance(error, GroupFailed) else frozenset()
        failure = GroupFailed(f"{what} of group {self.name!r}: {error}", missing=missing)
        self._fail(failure)
        return failure
