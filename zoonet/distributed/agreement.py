"""Those who are left of a run find out together who that is."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zoonet.crypto import PeerId
from zoonet.distributed.views import Views
from zoonet.distributed.wire import Kind, Message
from zoonet.errors import GroupFailed, PeerTimeout

if TYPE_CHECKING:
    from zoonet.distributed.exchange import Exchange


class Agreement:
    """One peer's part in it, time after time. Used on the event loop."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._views = Views()
        self._number = 0
        self._changed = asyncio.Event()

    def hear(self, peer_id: PeerId, message: Message) -> None:
        """Another peer says whom it has lost. Raises ProtocolViolation."""
        self._views.hear(peer_id, message.number, frozenset(message.ranks))
        self._changed.set()

    def look(self) -> None:
        """This peer has lost another one."""
        self._changed.set()

    async def reach(self, timeout_s: float) -> tuple[PeerId, ...]:
        """See `Exchange.agree`."""
        exchange = self._exchange
        self._number += 1
        said: frozenset[int] | None = None
        living: list[PeerId] = []
        lost: frozenset[int] = frozenset()
        try:
            async with asyncio.timeout(timeout_s):
                while said is None or self._views.differing(living, lost):
                    if said is not None:
                        await self._changed.wait()
                        self._changed.clear()
                    living, lost = self._share_losses()
                    if lost != said:
                        said = lost
                        ranks = tuple(sorted(lost))
                        exchange.say(Message(Kind.LOST, number=self._number, ranks=ranks))
        except TimeoutError as error:
            late = ", ".join(map(exchange.name, self._views.differing(living, lost)))
            raise PeerTimeout(
                f"after {timeout_s:.0f} s {late} did not agree on who is left; "
                "every peer has to regroup when its group has failed"
            ) from error
        self._views.agree(living, lost)
        return tuple(peer for rank, peer in enumerate(exchange.peers) if rank not in lost)

    def _share_losses(self) -> tuple[list[PeerId], frozenset[int]]:
        """Give up whom the others have lost; return who is left of them, and the lost ranks."""
        exchange = self._exchange
        others = [peer_id for peer_id in exchange.peers if peer_id != exchange.peer_id]
        for rank in self._views.all_lost(others):
            if rank == exchange.rank:
                raise GroupFailed("the others have given this peer up; join them again")
            exchange.give_up(exchange.peers[rank])
        living = [peer_id for peer_id in others if peer_id not in exchange.lost]
        return living, frozenset(map(exchange.peers.index, exchange.lost))
