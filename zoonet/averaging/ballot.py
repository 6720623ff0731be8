"""Counting signatures of round results until one result has its certificate. Pure."""

from __future__ import annotations

from typing import Final

from zoonet.averaging.chain import Chain, assemble
from zoonet.averaging.messages import Certificate, RoundResult, Vote
from zoonet.errors import ProtocolViolation

MAX_RESULTS: Final = 16  # different results kept for one round; each attempt may make one


class Ballot:
    """The votes for the round that would come next."""

    def __init__(self) -> None:
        self._parent = b""
        self._results: dict[bytes, tuple[RoundResult, dict[str, Vote]]] = {}

    def cast(self, chain: Chain, result: RoundResult, vote: Vote) -> Certificate | None:
        """Count one vote; return the certificate once the result has a quorum.

        Raises ProtocolViolation for a result that cannot follow the chain or a forged vote.
        """
        if chain.head != self._parent:
            self._parent = chain.head
            self._results.clear()
        digest = result.digest()
        if digest not in self._results:
            chain.check_result(result)
            if len(self._results) >= MAX_RESULTS:
                raise ProtocolViolation(vote.peer, "too many different results of one round")
        if vote.peer not in result.members or not vote.is_for(digest):
            raise ProtocolViolation(vote.peer, "a forged vote, or not that of a member")
        _, votes = self._results.setdefault(digest, (result, {}))
        votes[vote.peer] = vote
        return assemble(result, votes.values())
