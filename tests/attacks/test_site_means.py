"""A neighbour that sends what it likes to a site's mean: refused by name, or nobody notices."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.averaging.swarm import JOB_ID, identity_of
from zoonet.averaging import RoundsConfig, SiteMean
from zoonet.averaging.chunks import Header, Kind, decode_header
from zoonet.averaging.messages import Lease, Round
from zoonet.averaging.plan import chunk_bounds, num_chunks
from zoonet.averaging.site_mean import INLINE_BYTES
from zoonet.errors import PeerUnreachable, ProtocolViolation
from zoonet.testing import MemorySwarm, run
from zoonet.transport import Buffer, Lane, StreamLanes

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


async def site_of(name: str, swarm: MemorySwarm, *, site_steps: int = 5) -> SiteMean:
    transport, _ = swarm.peer(identity_of(name))
    config = RoundsConfig(inner_steps=10, site_steps=site_steps)
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


def test_who_sends_one_part_of_every_meeting_and_then_nothing_is_waited_for_once() -> None:
    async def main() -> None:
        swarm = MemorySwarm()
        ada, mal = [await site_of(name, swarm, site_steps=2) for name in ("ada", "mal")]
        ada.begin(PLAN, frozenset((MAL,)), is_carrying=False)
        lane = await mal._lanes.open(ADA, f"{JOB_ID}/site/1", lambda *_: None)
        for steps, meeting in list(ada._meetings.items()):
            hers = next(n for n in range(num_chunks(SIZE)) if meeting.owner_of(n) == ADA)
            start, stop = chunk_bounds(SIZE, hers)
            raw = header(ada, Kind.PART, hers, number=meeting.number)
            lane.post(raw, bytes(4 * (stop - start)))
            await asyncio.sleep(4.0)  # she trains
            await ada.mix(steps, np.ones(SIZE, np.float32))
        assert len(ada._meetings) == 4
        assert 0.5 < ada.waited_s < 4.5  # at the first, and no longer than she has trained
        await lane.close()
        for site in (ada, mal):
            await site.close()

    run(main())


def test_who_takes_a_mean_may_hold_the_work_of_all_whom_its_neighbour_has_met() -> None:
    async def main() -> None:
        swarm = MemorySwarm()
        ada, bob, mal = [await site_of(n, swarm, site_steps=2) for n in ("ada", "bob", "mal")]
        ada.begin(PLAN, frozenset((BOB,)), is_carrying=False)
        bob.begin(PLAN, frozenset((MAL,)), is_carrying=False)
        mal.begin(PLAN, frozenset((BOB,)), is_carrying=False)
        await asyncio.sleep(2.0)
        at = {site: np.ones(SIZE, np.float32) for site in (ada, bob, mal)}
        assert all(await asyncio.gather(bob.mix(2, at[bob]), mal.mix(2, at[mal])))
        await asyncio.sleep(2.0)
        assert all(await asyncio.gather(ada.mix(4, at[ada]), bob.mix(4, at[bob])))
        assert ada.mixed_with == {BOB, MAL}
        for site in (ada, bob, mal):
            await site.close()

    run(main())


class WatchedLane:
    """A lane that notes which thread posts means."""

    def __init__(self, lane: Lane, seen: list[threading.Thread]) -> None:
        self._lane = lane
        self._seen = seen

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lane, name)

    def post(self, raw: bytes, payload: Buffer) -> None:
        if decode_header(raw).kind == Kind.MEAN:
            self._seen.append(threading.current_thread())
        self._lane.post(raw, payload)


class WatchedLanes(StreamLanes):
    def __init__(self, transport: Any) -> None:
        super().__init__(transport)
        self.seen: list[threading.Thread] = []

    async def open(self, *args: Any) -> Any:
        return WatchedLane(await super().open(*args), self.seen)


def test_what_a_neighbour_that_stays_away_leaves_to_add_up_does_not_hold_up_the_event_loop() -> (
    None
):
    async def main() -> None:
        swarm = MemorySwarm()
        size = INLINE_BYTES // 4
        config = RoundsConfig(inner_steps=10, site_steps=5)
        names = ("ada", "bob", "mal")
        lanes = [WatchedLanes(swarm.peer(identity_of(name))[0]) for name in names]
        ada, bob, mal = (SiteMean(one, JOB_ID, size, config) for one in lanes)
        for site in (ada, bob, mal):
            await site.serve()
        for site in (ada, bob):
            site.begin(PLAN, frozenset((ADA, BOB, MAL)), is_carrying=False)
        await asyncio.sleep(0.5)
        await asyncio.gather(*(one.mix(5, np.ones(size, np.float32)) for one in (ada, bob)))
        seen = [thread for one in lanes for thread in one.seen]
        assert seen and threading.main_thread() not in seen
        for site in (ada, bob, mal):
            await site.close()

    asyncio.run(main())


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
