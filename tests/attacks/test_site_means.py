"""A neighbour that sends what it likes to a site's mean: refused by name, or nobody notices."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.averaging.swarm import JOB_ID, identity_of
from zoonet.averaging import RoundsConfig, SiteMean
from zoonet.averaging.chunks import Header, Kind
from zoonet.averaging.messages import Lease, Round
from zoonet.averaging.plan import chunk_bounds, num_chunks
from zoonet.errors import PeerUnreachable, ProtocolViolation
from zoonet.testing import MemorySwarm, run
from zoonet.transport import StreamLanes

SIZE = 1000
ADA, BOB, MAL = (identity_of(name).peer_id for name in ("ada", "bob", "mal"))
STRANGER = identity_of("eve").peer_id
PLAN = Round(
    job_id=JOB_ID,
    index=3,
    view=0,
    parent=bytes(32),
    leases=tuple(Lease(one, (), 10) for one in sorted((ADA, BOB, MAL))),
)


async def site_of(name: str, swarm: MemorySwarm) -> SiteMean:
    transport, _ = swarm.peer(identity_of(name))
    config = RoundsConfig(inner_steps=10, site_steps=5)
    site = SiteMean(StreamLanes(transport), JOB_ID, SIZE, config)
    await site.serve()
    return site


def header(site: SiteMean, kind: Kind, chunk: int, *, bits: int = 7, number: int = 1) -> bytes:
    return Header(kind, site._key, number, chunk, 0, bits).encode()


headers = st.one_of(
    st.binary(max_size=80),
    st.builds(
        lambda kind, key, number, chunk, maker, bits: Header(
            kind, key, number, chunk, maker, bits
        ).encode(),
        st.sampled_from(Kind),
        st.sampled_from([b"k" * 16, bytes(16)]),
        st.integers(0, 3),
        st.integers(0, 40),
        st.integers(0, 255),
        st.integers(0, 2**64),
    ),
)


@settings(max_examples=300, deadline=None)
@given(raw=headers, num_bytes=st.integers(0, 1 << 30), sender=st.sampled_from([MAL, STRANGER]))
def test_no_header_makes_room_for_more_than_a_chunk_or_ends_in_another_error(
    raw: bytes, num_bytes: int, sender: str
) -> None:
    async def main() -> None:
        site = await site_of("ada", MemorySwarm())
        site.begin(PLAN, frozenset((BOB, MAL)), is_carrying=False)
        site._key = b"k" * 16
        try:
            place = site.admit(sender, raw, num_bytes)
            assert len(place) == num_bytes <= 4 * (chunk_bounds(SIZE, 0)[1])
            site.arrived(sender, raw)
        except ProtocolViolation as violation:
            assert violation.peer == sender  # noqa: PT017
        await site.close()

    run(main())


@pytest.mark.parametrize("num_bytes", [0, 1, 4 << 20])
def test_a_part_of_another_size_is_refused(num_bytes: int) -> None:
    async def main() -> None:
        site = await site_of("ada", MemorySwarm())
        site.begin(PLAN, frozenset((BOB, MAL)), is_carrying=False)
        with pytest.raises(ProtocolViolation) as refused:
            site.admit(MAL, header(site, Kind.PART, 2), num_bytes)
        assert refused.value.peer == MAL
        await site.close()

    run(main())


def test_who_floods_a_site_with_what_does_not_count_keeps_it_from_nothing() -> None:
    """Two honest neighbours meet while the third answers nothing and sends other rounds' chunks."""

    async def main() -> None:
        swarm = MemorySwarm()
        ada, bob = await site_of("ada", swarm), await site_of("bob", swarm)
        transport, _ = swarm.peer(identity_of("mal"))
        for site, other in ((ada, BOB), (bob, ADA)):
            site.begin(PLAN, frozenset((other,)), is_carrying=False)
        lane = await StreamLanes(transport).open(
            ada._lanes.peer_id, f"{JOB_ID}/site/1", lambda *_: None
        )
        for number in range(200):
            stale = Header(Kind.PART, bytes(16), number, number % num_chunks(SIZE)).encode()
            lane.post(stale, bytes(4 * chunk_bounds(SIZE, 0)[1]))
        await asyncio.sleep(2.0)
        ours, theirs = np.ones(SIZE, np.float32), np.full(SIZE, 3, np.float32)
        began = asyncio.get_running_loop().time()
        changed = await asyncio.gather(ada.mix(5, ours), bob.mix(5, theirs))
        assert changed == [True, True]
        assert asyncio.get_running_loop().time() - began < 1.0  # nobody finds mal near
        # What mal owns stays apart; the rest is the mean of the two.
        assert set(np.unique(ours)) <= {1.0, 2.0} and np.mean(ours == 2.0) > 0.5
        await lane.close()
        for site in (ada, bob):
            await site.close()

    run(main())


def test_a_neighbour_that_is_not_there_is_no_error() -> None:
    async def main() -> None:
        site = await site_of("ada", MemorySwarm())
        site.begin(PLAN, frozenset((BOB, MAL)), is_carrying=False)
        values = np.ones(SIZE, np.float32)
        assert not await site.mix(5, values)
        assert (values == 1).all() and not site.mixed_with
        assert not await site.mix(99, values)  # no meeting of this round
        await site.close()

    try:
        run(main())
    except PeerUnreachable:
        pytest.fail("who cannot be reached is done without")
