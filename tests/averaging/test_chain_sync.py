"""Reading others' chains: forks in the middle, lighter chains, pages without an end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from tests.averaging.makers import certified, empty_chain, grow, peer, result_after
from tests.averaging.swarm import JOB_ID, identity_of
from zoonet.averaging.chain import Chain, replaces
from zoonet.averaging.chain_sync import (
    LINK_S,
    LOOK_S,
    MAX_PATIENT,
    PAGE,
    SPARE_LINKS,
    ChainPage,
    ChainRequest,
    ChainSync,
    _size,
)
from zoonet.averaging.messages import MAX_FAILED, report_failure
from zoonet.averaging.rivals import LONGEST_PAUSE_S, MAX_WAITING, NUM_AT_ONCE, Rivals
from zoonet.crypto import Identity, PeerId, sha256
from zoonet.errors import PeerTimeout, PeerUnreachable, ProtocolViolation
from zoonet.testing import MemorySwarm, MemoryTransport, run
from zoonet.transport import serve_calls

THREE = ("ada", "bob", "cyd")
PROTOCOL = f"/zoonet/{JOB_ID}/chain/1"


class Reader:
    """A peer with a chain, which serves it and reads others'."""

    def __init__(self, memory: MemorySwarm, name: str, chain: Chain) -> None:
        self.memory = memory
        self.chain = chain
        self.grown = asyncio.Condition()
        self.applicants: list[PeerId] = []
        self.transport: MemoryTransport = memory.peer(identity_of(name))[0]
        self.sync = ChainSync(
            self.transport, lambda: self.chain, self.grown, self.applicants.append
        )

    async def grow(self, *members: str) -> None:
        async with self.grown:
            grow(self.chain, *members)
            self.grown.notify_all()


async def readers(ours: Chain, theirs: Chain) -> tuple[Reader, Reader]:
    memory = MemorySwarm()
    ada, bob = Reader(memory, "ada", ours), Reader(memory, "bob", theirs)
    await ada.sync.serve()
    await bob.sync.serve()
    return ada, bob


def fetched(ours: Chain, theirs: Chain) -> Chain | None:
    async def main() -> Chain | None:
        ada, _ = await readers(ours, theirs)
        return await ada.sync.fetch_rival(peer("bob"))

    return run(main())


def chain_of(rounds: int, *, members: tuple[str, ...] = THREE, num_slots: int = 10_000) -> Chain:
    return grow(empty_chain(num_slots), *members, rounds=rounds)


def test_a_longer_chain_is_read_over_several_pages() -> None:
    theirs = chain_of(2 * PAGE + 5)
    assert fetched(chain_of(0), theirs) == theirs
    assert fetched(chain_of(3), theirs) == theirs


def test_a_chain_that_ours_has_all_of_is_not_read() -> None:
    assert fetched(chain_of(5), chain_of(5)) is None
    assert fetched(chain_of(5), chain_of(3)) is None
    assert fetched(chain_of(5), chain_of(0)) is None


@pytest.mark.parametrize("common", [0, 1, 7, 40])
def test_a_fork_in_the_middle_is_found(common: int) -> None:
    ours = grow(chain_of(common), "ada", "bob", rounds=9)
    theirs = grow(chain_of(common), "bob", "cyd", rounds=4)
    assert fetched(ours, theirs) == theirs
    assert fetched(theirs, ours) == ours


def test_a_longer_chain_of_fewer_is_read_and_not_followed() -> None:
    ours = grow(chain_of(3), *THREE)
    theirs = grow(chain_of(3), "bob", rounds=30)
    found = fetched(ours, theirs)
    assert found == theirs and not replaces(found, ours)


async def against(
    ours: Chain, answer: Callable[[ChainRequest], ChainPage]
) -> tuple[ChainSync, MemorySwarm]:
    """A reader, and a bob that answers by hand."""
    memory = MemorySwarm()
    ada = Reader(memory, "ada", ours)
    bob = memory.peer(identity_of("bob"))[0]

    async def reply(_: PeerId, request: ChainRequest) -> ChainPage:
        return answer(request)

    await serve_calls(bob, PROTOCOL, ChainRequest, reply)
    return ada.sync, memory


def page_of(chain: Chain, start: int, num: int = PAGE, **fields: object) -> ChainPage:
    start = min(start, len(chain))
    page = ChainPage(
        job_id=chain.job_id,
        length=len(chain),
        head=chain.head,
        num_done=chain.num_done,
        parent=chain.head_at(start),
        certificates=tuple(chain.certificates[start : start + num]),
    )
    return msgspec.structs.replace(page, **fields)


def refused(ours: Chain, answer: Callable[[ChainRequest], ChainPage], why: str) -> None:
    async def main() -> None:
        sync, _ = await against(ours, answer)
        with pytest.raises(ProtocolViolation, match=why):
            await sync.fetch_rival(peer("bob"))

    run(main())


def test_another_jobs_chain_is_refused() -> None:
    theirs = chain_of(3)
    refused(chain_of(1), lambda ask: page_of(theirs, ask.start, job_id="f" * 32), "another job")


def test_a_page_with_a_forged_link_is_refused() -> None:
    theirs = chain_of(3)
    result = result_after(theirs, THREE)
    forged = certified(result, ["ada"])

    def answer(ask: ChainRequest) -> ChainPage:
        return page_of(theirs, ask.start, length=4, head=result.digest(), certificates=(forged,))

    refused(theirs.copy_until(3), answer, "no quorum")


def test_a_lie_about_where_the_split_is_comes_to_light() -> None:
    ours, theirs = chain_of(5), grow(chain_of(2), "bob", "cyd", rounds=9)

    def answer(ask: ChainRequest) -> ChainPage:
        return page_of(theirs, ask.start, parent=ours.head_at(min(ask.start, 5)))

    refused(ours, answer, "does not follow")


def test_links_that_repeat_without_an_end_are_refused() -> None:
    theirs = chain_of(3)
    refused(
        chain_of(1),
        lambda ask: page_of(theirs, 1, length=10**9, head=bytes(32)),
        "does not follow",
    )


def test_a_page_without_links_ends_the_reading() -> None:
    theirs = chain_of(3)

    def answer(ask: ChainRequest) -> ChainPage:
        return page_of(theirs, ask.start, length=10**9, head=bytes(32))

    async def main() -> Chain | None:
        sync, _ = await against(chain_of(1), answer)
        return await sync.fetch_rival(peer("bob"))

    assert run(main()) == theirs


def test_a_chain_that_comes_link_by_link_is_read_no_longer_than_it_is_worth() -> None:
    theirs = chain_of(200)

    async def main() -> None:
        sync, memory = await against(chain_of(1), lambda ask: page_of(theirs, ask.start, 1))
        memory.faults.extra_delay_s[peer("bob")] = 4.0
        with pytest.raises(PeerTimeout, match="takes too long"):
            await sync.fetch_rival(peer("bob"))
        assert asyncio.get_running_loop().time() < 2 * LOOK_S + 200 * LINK_S

    run(main())


def failing(chain: Chain, rounds: int) -> Chain:
    """Go on with rounds in which ada fails on one and the same slot, and nobody trains."""
    for _ in range(rounds):
        failure = report_failure(identity_of("ada"), JOB_ID, chain.head, ((9, 10),))
        result = result_after(chain, THREE, slots={})
        result = msgspec.structs.replace(result, failures=(failure,))
        chain.extend(certified(result, THREE))
    return chain


def test_a_chain_of_failures_without_an_end_is_refused() -> None:
    theirs = failing(empty_chain(10), 20 + SPARE_LINKS + 2 * PAGE)
    refused(empty_chain(10), lambda ask: page_of(theirs, ask.start), "more than 276 rounds")
    found = fetched(empty_chain(10), failing(empty_chain(10), 2))
    assert found is not None and len(found) == 2


def test_a_links_estimated_size_counts_its_failures() -> None:
    chain = empty_chain(2**40)
    slots = tuple((2**39 + 2 * at, 2**39 + 2 * at + 1) for at in range(MAX_FAILED))
    failure = report_failure(identity_of("ada"), JOB_ID, chain.head, slots)
    result = result_after(chain, THREE, slots={})
    link = certified(msgspec.structs.replace(result, failures=(failure,)), THREE)
    without = certified(result, THREE)
    added = len(msgspec.msgpack.encode(link)) - len(msgspec.msgpack.encode(without))
    assert _size(link) - _size(without) >= added


# --- serving --------------------------------------------------------------------------------------


def test_who_waits_for_the_next_link_gets_it_when_it_is_there() -> None:
    async def main() -> None:
        ada, bob = await readers(chain_of(0), chain_of(2))
        asking = asyncio.create_task(ada.sync.read(peer("bob"), 2, wait_s=20.0, wants_in=True))
        await asyncio.sleep(3.0)
        assert not asking.done() and bob.applicants == [peer("ada")]
        await bob.grow(*THREE)
        page = await asking
        assert page.certificates == tuple(bob.chain.certificates[2:])
        assert asyncio.get_running_loop().time() < 4.0

    run(main())


def test_who_waits_in_vain_is_told_so_in_time() -> None:
    async def main() -> None:
        ada, _ = await readers(chain_of(0), chain_of(2))
        page = await ada.sync.read(peer("bob"), 2, wait_s=20.0)
        assert page.certificates == () and page.length == 2
        assert 20.0 <= asyncio.get_running_loop().time() < 21.0

    run(main())


def test_so_many_may_wait_and_the_others_are_answered_at_once() -> None:
    async def main() -> None:
        ada, bob = await readers(chain_of(0), chain_of(2))
        asking = [
            asyncio.create_task(ada.sync.read(peer("bob"), 2, wait_s=25.0))
            for _ in range(MAX_PATIENT + 10)
        ]
        await asyncio.sleep(5.0)
        assert sum(task.done() for task in asking) == 10
        await asyncio.gather(*asking)
        assert bob.sync._num_patient == 0

    run(main())


def test_a_start_beyond_the_end_gets_an_empty_page() -> None:
    async def main() -> None:
        ada, _ = await readers(chain_of(0), chain_of(2))
        page = await ada.sync.read(peer("bob"), 2**60)
        assert page.certificates == () and page.parent == page.head

    run(main())


# --- rivals ---------------------------------------------------------------------------------------


class Scene:
    """Rivals of a peer with three rounds, with a transport on which nobody answers by itself."""

    def __init__(self, *, is_idle: bool = True) -> None:
        self.memory = MemorySwarm()
        self.reader = Reader(self.memory, "ada", chain_of(3))
        self.offered: list[Chain] = []
        self.is_idle = is_idle
        self.rivals = Rivals(
            self.reader.sync, lambda: self.reader.chain, self.offer, lambda: self.is_idle
        )

    async def offer(self, chain: Chain) -> bool:
        self.offered.append(chain)
        if not replaces(chain, self.reader.chain):
            return False
        self.reader.chain = chain
        return True

    async def __aenter__(self) -> Scene:
        self.task = asyncio.create_task(self.rivals.run())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def add(self, name: str, chain: Chain) -> None:
        await Reader(self.memory, name, chain).sync.serve()


def sybil(number: int) -> PeerId:
    return Identity(sha256(f"sybil {number}".encode())).peer_id


def test_a_peer_with_a_better_chain_is_read_and_offered() -> None:
    async def main() -> None:
        async with Scene() as scene:
            await scene.add("bob", chain_of(9))
            scene.rivals.note(peer("bob"), chain_of(9).head)
            await scene.rivals.settled(5.0)
            assert scene.offered == [chain_of(9)]

    run(main())


def test_a_head_that_is_known_is_not_worth_a_look() -> None:
    async def main() -> None:
        async with Scene() as scene:
            for length in (1, 2, 3):
                scene.rivals.note(peer("bob"), chain_of(length).head)
            assert not scene.rivals._waiting

    run(main())


def test_in_the_middle_of_a_round_nobody_is_looked_at() -> None:
    async def main() -> None:
        async with Scene(is_idle=False) as scene:
            await scene.add("bob", chain_of(9))
            scene.rivals.note(peer("bob"))
            await asyncio.sleep(10.0)
            assert scene.offered == []
            scene.is_idle = True
            scene.rivals.wake()
            await asyncio.sleep(0.5)
            assert len(scene.offered) == 1

    run(main())


def test_who_has_nothing_to_show_waits_longer_each_time() -> None:
    async def main() -> None:
        async with Scene() as scene:
            await scene.add("bob", grow(chain_of(2), "bob"))
            for _ in range(3600):
                scene.rivals.note(peer("bob"), bytes(32))
                await asyncio.sleep(1.0)
            assert 5 < len(scene.offered) < 20
            assert scene.rivals._pauses[peer("bob")][1] == LONGEST_PAUSE_S

    run(main())


def test_a_flood_of_names_is_bounded_and_the_roster_comes_first() -> None:
    async def main() -> None:
        scene = Scene()
        for number in range(1000):
            scene.rivals.note(sybil(number), bytes(32))
        await scene.add("bob", chain_of(9))
        scene.rivals.note(peer("bob"), bytes(32))
        assert len(scene.rivals._waiting) == MAX_WAITING
        async with scene:
            await asyncio.sleep(0.5)
            assert scene.reader.chain == chain_of(9)

    run(main())


def test_strangers_that_never_answer_keep_nobody_else_waiting_for_ever() -> None:
    async def main() -> None:
        async with Scene() as scene:
            for number in range(NUM_AT_ONCE):
                transport = scene.memory.peer(Identity(sha256(f"sybil {number}".encode())))[0]
                await transport.serve(PROTOCOL, lambda stream: asyncio.Event().wait())
                scene.rivals.note(sybil(number), bytes(32))
            await asyncio.sleep(1.0)
            await scene.add("bob", chain_of(9))
            scene.rivals.note(peer("bob"), bytes(32))
            await asyncio.sleep(16.0)
            assert scene.reader.chain == chain_of(9)

    run(main())


def test_who_cannot_be_reached_is_passed_over() -> None:
    async def main() -> None:
        async with Scene() as scene:
            with pytest.raises(PeerUnreachable):
                await scene.reader.sync.fetch_rival(sybil(1))
            scene.rivals.note(sybil(1), bytes(32))
            await scene.rivals.settled(5.0)
            assert not scene.task.done() and scene.offered == []

    run(main())
