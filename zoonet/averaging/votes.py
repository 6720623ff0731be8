"""The votes of a round: this peer's on its way to the others, and theirs counted here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

from msgspec import Struct

from zoonet.averaging.ballot import Ballot
from zoonet.averaging.chain import Chain
from zoonet.averaging.gear import Gear
from zoonet.averaging.messages import Certificate, Round, RoundResult, Vote, cast_vote
from zoonet.crypto import PeerId
from zoonet.errors import ProtocolViolation, TransportError
from zoonet.transport import call, serve_calls

VOTE_TIMEOUT_S: Final = 10.0

log = logging.getLogger(__name__)


class VoteCast(Struct, frozen=True, forbid_unknown_fields=True):
    """A vote on its way to the others of its round."""

    result: RoundResult
    vote: Vote


class Counted(Struct, frozen=True, forbid_unknown_fields=True):
    """The vote has arrived."""


class Votes:
    """Casts, delivers and counts votes; `extend` is given the certificate that they make.

    `on_ahead` is told of peers that vote in a round beyond this peer's chain.
    """

    def __init__(
        self,
        gear: Gear,
        chain: Callable[[], Chain],
        extend: Callable[[Certificate], Coroutine[Any, Any, None]],
        on_ahead: Callable[[PeerId], None],
    ) -> None:
        self._gear = gear
        self._chain = chain
        self._extend = extend
        self._on_ahead = on_ahead
        self._ballot = Ballot()
        self._protocol = f"/zoonet/{chain().job_id}/vote/1"

    async def serve(self) -> None:
        """Begin to take others' votes."""
        await serve_calls(self._gear.transport, self._protocol, VoteCast, self._on_vote)

    def admit(self, plan: Round) -> None:
        """Let this plan's results be voted on; votes that came before it count now."""
        certificate = self._ballot.admit(self._chain(), plan)
        if certificate is not None:
            self._gear.errands.spawn(self._extend(certificate))

    async def cast(self, result: RoundResult) -> None:
        """Sign a result and tell everybody in its round, if this peer is one of its members."""
        me = self._gear.me
        if me not in result.members:
            return
        vote = cast_vote(self._gear.identity, result)
        for peer in (*result.members, *result.joiners):
            if peer != me:
                self._gear.errands.spawn(self._deliver(PeerId(peer), VoteCast(result, vote)))
        await self._count(result, vote)

    async def _deliver(self, peer: PeerId, cast: VoteCast) -> None:
        try:
            await call(
                self._gear.transport,
                peer,
                self._protocol,
                cast,
                Counted,
                timeout_s=VOTE_TIMEOUT_S,
            )
        except (TransportError, ProtocolViolation) as error:
            log.debug("vote not delivered: %s", error)

    async def _on_vote(self, peer: PeerId, cast: VoteCast) -> Counted:
        if cast.vote.peer != peer:
            raise ProtocolViolation(peer, "somebody else's vote")
        if cast.result.index > len(self._chain()):
            self._on_ahead(peer)
        elif cast.result.parent == self._chain().head:
            await self._count(cast.result, cast.vote)
        return Counted()

    async def _count(self, result: RoundResult, vote: Vote) -> None:
        if result.parent != self._chain().head:
            return
        certificate = self._ballot.cast(self._chain(), result, vote)
        if certificate is not None:
            await self._extend(certificate)
