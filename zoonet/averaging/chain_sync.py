"""Comparing chains with others: reading on, waiting for the next link, finding a split."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Annotated, Final

from msgspec import Meta, Struct

from zoonet.averaging.chain import Chain
from zoonet.averaging.messages import Certificate
from zoonet.crypto import PeerId, short
from zoonet.errors import PeerTimeout, ProtocolViolation
from zoonet.records.kinds import Digest, JobId, Natural
from zoonet.transport import MAX_CALL_BYTES, Transport, call, serve_calls

PAGE: Final = 32
MAX_WAIT_S: Final = 30.0
CALL_TIMEOUT_S: Final = 15.0
LOOK_S: Final = 60.0  # for a look at another chain
LINK_S: Final = 0.5  # and this much more for each link that it turns out to have
SPARE_LINKS: Final = 256  # without work that a chain may have, beside one for each slot
MAX_PATIENT: Final = 256  # askers who wait for the next link at the same time
_PAGE_BYTES: Final = MAX_CALL_BYTES // 2

log = logging.getLogger(__name__)


class ChainRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Asks for the links from `start` on.

    With `wait_s` the answer comes when there is such a link, or when the time is over.
    `wants_in` asks to be let into the next round.
    """

    start: Natural
    wait_s: Annotated[float, Meta(ge=0, le=MAX_WAIT_S)] = 0.0
    wants_in: bool = False


class ChainPage(Struct, frozen=True, forbid_unknown_fields=True):
    """Some links, and where the chain as a whole stands."""

    job_id: JobId
    length: Natural
    head: Digest
    num_done: Natural
    parent: Digest  # the head before `start`
    certificates: Annotated[tuple[Certificate, ...], Meta(max_length=PAGE)]


class ChainSync:
    """Serves this peer's chain and follows others'."""

    def __init__(
        self,
        transport: Transport,
        chain: Callable[[], Chain],
        grown: asyncio.Condition,
        on_applicant: Callable[[PeerId], None],
    ) -> None:
        self._transport = transport
        self._chain = chain
        self._grown = grown
        self._on_applicant = on_applicant
        self._num_patient = 0
        self._protocol = f"/zoonet/{chain().job_id}/chain/1"

    async def serve(self) -> None:
        """Begin to hand out the chain."""
        await serve_calls(self._transport, self._protocol, ChainRequest, self._answer)

    async def _answer(self, peer: PeerId, request: ChainRequest) -> ChainPage:
        if request.wants_in:
            self._on_applicant(peer)
        if request.wait_s and self._num_patient < MAX_PATIENT:
            await self._wait_for_link(request.start, request.wait_s)
        chain = self._chain()
        start = min(request.start, len(chain))
        links = tuple(chain.certificates[start : start + PAGE])
        while len(links) > 1 and sum(_size(link) for link in links) > _PAGE_BYTES:
            links = links[: len(links) // 2]
        return ChainPage(
            job_id=chain.job_id,
            length=len(chain),
            head=chain.head,
            num_done=chain.num_done,
            parent=chain.head_at(start),
            certificates=links,
        )

    async def _wait_for_link(self, start: int, wait_s: float) -> None:
        self._num_patient += 1
        try:
            async with asyncio.timeout(wait_s), self._grown:
                await self._grown.wait_for(lambda: len(self._chain()) > start)
        except TimeoutError:
            return
        finally:
            self._num_patient -= 1

    async def read(
        self, peer: PeerId, start: int, *, wait_s: float = 0.0, wants_in: bool = False
    ) -> ChainPage:
        """One page of a peer's chain. Raises TransportError or ProtocolViolation."""
        request = ChainRequest(start, wait_s, wants_in)
        page = await call(
            self._transport,
            peer,
            self._protocol,
            request,
            ChainPage,
            timeout_s=CALL_TIMEOUT_S + wait_s,
            max_bytes=MAX_CALL_BYTES,
        )
        if page.job_id != self._chain().job_id:
            raise ProtocolViolation(peer, "a chain of another job")
        return page

    async def fetch_rival(self, peer: PeerId) -> Chain | None:
        """The peer's chain, wholly checked, or None where ours has all of it.

        The longer it proves to be, the longer it may take. Raises TransportError or
        ProtocolViolation.
        """
        loop = asyncio.get_running_loop()
        started = loop.time()
        ours = self._chain()
        page = await self.read(peer, len(ours))
        if not page.length or page.head == ours.head or page.head in ours.heads:
            return None
        start = len(ours)
        step = 1
        most = 2 * ours.num_slots + SPARE_LINKS
        while start > 0 and page.parent != ours.head_at(start):
            start = max(0, start - step)  # look for the split in growing strides
            step *= 2
            page = await self.read(peer, start)
        theirs = ours.copy_until(start)
        while page.certificates:
            for certificate in page.certificates:
                theirs.extend(certificate)
                await asyncio.sleep(0)  # signatures are checked: let others have their turn
            if len(theirs) >= page.length:
                break
            if len(theirs) > most:
                raise ProtocolViolation(peer, f"a chain of more than {most} rounds")
            if loop.time() - started > LOOK_S + LINK_S * (len(theirs) - start):
                raise PeerTimeout(f"peer={short(peer)} takes too long over its chain")
            page = await self.read(peer, len(theirs))
        return theirs


def _size(certificate: Certificate) -> int:
    """A safe estimate of a link's encoded size in bytes."""
    result = certificate.result
    num_ranges = sum(len(share.slots) for share in result.contributions)
    num_peers = len(result.members) + len(result.joiners) + len(result.contributions)
    failed = sum(130 + 20 * len(failure.slots) for failure in result.failures)
    return 200 + 60 * num_peers + 20 * num_ranges + 130 * len(certificate.votes) + failed
