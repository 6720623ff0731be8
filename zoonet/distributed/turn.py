"""One operation of a group under way: its transfers, and what is still missing of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

import torch

from zoonet.crypto import PeerId
from zoonet.distributed.mailbox import Mailbox, Settle
from zoonet.distributed.memory import bytes_of, dtype_number, flat
from zoonet.distributed.wire import Key, Op, Spec
from zoonet.errors import ZoonetError

Transfer = asyncio.Future[None]
Begin = Callable[[PeerId, Key, Spec, memoryview, Settle], None]


class Turn:
    """What an operation sees of the group. Used on the event loop."""

    def __init__(
        self,
        mailbox: Mailbox,
        members: Sequence[PeerId],
        rank: int,
        group: bytes,
        stream: int,
        number: int,
        op: Op,
    ) -> None:
        self.rank = rank
        self.size = len(members)
        self.tag = 0
        self._mailbox = mailbox
        self._members = members
        self._group, self._stream, self._number, self._op = group, stream, number, op
        self._loop = asyncio.get_running_loop()
        self._pending: dict[Transfer, int] = {}  # and with whom

    def others(self) -> list[int]:
        """The ranks of the other members, beginning with the next one: not all ask one first."""
        return [(self.rank + step) % self.size for step in range(1, self.size)]

    def send(
        self,
        to: int,
        step: int,
        part: int,
        values_N: torch.Tensor,
        shape: tuple[int, ...] = (),
    ) -> Transfer:
        """Begin to send. The values must not change until the transfer is done."""
        return self._begin(self._mailbox.send, to, (step, part), values_N, shape)

    def receive(
        self,
        source: int,
        step: int,
        part: int,
        values_N: torch.Tensor,
        shape: tuple[int, ...] = (),
    ) -> Transfer:
        """Begin to receive in place."""
        return self._begin(self._mailbox.receive, source, (step, part), values_N, shape)

    def _begin(
        self,
        begin: Begin,
        rank: int,
        place: tuple[int, int],
        values_N: torch.Tensor,
        shape: tuple[int, ...],
    ) -> Transfer:
        step, part = place
        memory = bytes_of(flat(values_N))
        key = Key(self._group, self._stream, self._number, self.tag + step, part)
        spec = Spec(self._op, dtype_number(values_N.dtype), len(memory), shape)
        transfer: Transfer = self._loop.create_future()
        self._pending[transfer] = rank
        transfer.add_done_callback(self._done)
        begin(self._members[rank], key, spec, memory, self._settler(transfer))
        return transfer

    def _settler(self, transfer: Transfer) -> Settle:
        def settle(error: ZoonetError | None) -> None:
            with contextlib.suppress(RuntimeError):  # a loop that has closed
                self._loop.call_soon_threadsafe(_settle, transfer, error)

        return settle

    def _done(self, transfer: Transfer) -> None:
        if not transfer.cancelled():  # else it is still missing
            del self._pending[transfer]
            transfer.exception()  # another one may have failed first: this one was seen, too

    async def all(self, transfers: Sequence[Transfer]) -> None:
        """Wait for transfers. Raises what the first to fail failed with."""
        for transfer in transfers:
            await transfer

    def abort(self, error: ZoonetError) -> None:
        """The group has failed: whoever waits here learns why."""
        for transfer in list(self._pending):
            _settle(transfer, error)

    def awaited(self) -> list[int]:
        """The ranks from which something is still missing."""
        return sorted(set(self._pending.values()))


def _settle(transfer: Transfer, error: ZoonetError | None) -> None:
    if transfer.done():
        return
    if error is None:
        transfer.set_result(None)
    else:
        transfer.set_exception(error)
