"""Counting signatures of round results until one result has its certificate. Pure."""

from __future__ import annotations

from typing import Final

from zoonet.averaging.chain import Chain, assemble
from zoonet.averaging.messages import Certificate, Round, RoundResult, Vote
from zoonet.averaging.rules import follows
from zoonet.errors import ProtocolViolation

MAX_RESULTS: Final = 32  # different results kept for one round; each attempt may make one
MAX_PLANS: Final = 16


class Ballot:
    """The votes for the round that would come next.

    Only a result of a plan that this peer has seen is voted on: anyone who may coordinate could
    otherwise end everybody's round with one of its own making. Votes that come before their plan
    wait for it, one for each peer that may vote.
    """

    def __init__(self) -> None:
        self._parent = b""
        self._plans: list[Round] = []
        self._results: dict[bytes, tuple[RoundResult, dict[str, Vote]]] = {}
        self._early: dict[str, tuple[RoundResult, Vote]] = {}

    def admit(self, chain: Chain, plan: Round) -> Certificate | None:
        """Let this plan's results be voted on. Returns the certificate that early votes make."""
        self._turn_to(chain)
        if plan.parent != chain.head or plan in self._plans or len(self._plans) >= MAX_PLANS:
            return None
        self._plans.append(plan)
        for result, vote in list(self._early.values()):
            if follows(result, plan):
                del self._early[vote.peer]
                certificate = self.cast(chain, result, vote)
                if certificate is not None:
                    return certificate
        return None

    def cast(self, chain: Chain, result: RoundResult, vote: Vote) -> Certificate | None:
        """Count one vote; return the certificate once the result has a quorum.

        Raises ProtocolViolation for a result that cannot follow the chain or a forged vote.
        """
        self._turn_to(chain)
        digest = result.digest()
        may_vote = vote.peer in result.members and vote.peer in (chain.roster or result.members)
        if not may_vote or not vote.is_for(digest):
            raise ProtocolViolation(vote.peer, "a forged vote, or not that of a member")
        if digest not in self._results:
            if not any(follows(result, plan) for plan in self._plans):
                if chain.roster:
                    self._early[vote.peer] = (result, vote)
                return None
            chain.check_result(result)
            self._make_room(vote.peer)
        _, votes = self._results.setdefault(digest, (result, {}))
        votes[vote.peer] = vote
        return assemble(result, votes.values())

    def _turn_to(self, chain: Chain) -> None:
        if chain.head != self._parent:
            self._parent = chain.head
            self._plans.clear()
            self._results.clear()
            self._early.clear()

    def _make_room(self, peer: str) -> None:
        """Forget a result that this peer alone voted for, and refuse where there are too many."""
        alone = [digest for digest, (_, votes) in self._results.items() if set(votes) == {peer}]
        if len(alone) >= 4:
            del self._results[alone[0]]
        if len(self._results) >= MAX_RESULTS:
            raise ProtocolViolation(peer, "too many different results of one round")
