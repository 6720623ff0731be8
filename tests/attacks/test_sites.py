"""Lies that need sites: a peer between its neighbours and the others adds up what is not so.

Ada, bob and eve are one site, cyd, dan and mal the other; each owns some chunks in its site.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from tests.attacks.test_chunks import Deaf
from tests.averaging.forest import Forest
from tests.averaging.makers import peer
from tests.averaging.swarm import JOB_ID
from zoonet.averaging.allreduce import FP32, AttemptFailed
from zoonet.averaging.blame import to_leave_out
from zoonet.averaging.chunks import Header, Kind
from zoonet.averaging.config import Patience
from zoonet.averaging.payload import make_payload
from zoonet.averaging.plan import chunk_bounds, parent_of, receivers_of
from zoonet.averaging.wire import Wire
from zoonet.codecs import NAMES, codec
from zoonet.crypto import PeerId
from zoonet.errors import ZoonetError
from zoonet.exact import Vector, weighted_mean
from zoonet.testing import run
from zoonet.transport import Lane, StreamLanes

SIZE = 1000
NEAR, FAR = ("ada", "bob", "eve"), ("cyd", "dan", "mal")
HONEST = tuple(name for name in (*NEAR, *FAR) if name != "mal")
CHANNEL = f"{JOB_ID}/reduce/1"
Message = tuple[str, Header, bytes]
Lie = Callable[[list[Message]], list[Message]]


class Liar:
    """Mal, who knows everybody's contribution, so that it need not wait for any."""

    def __init__(self, forest: Forest) -> None:
        self.forest = forest
        self.plan = forest.plan
        self.me = self.plan.peers.index(peer("mal"))
        self.names = {self.plan.peers.index(peer(name)): name for name in forest.names}
        self.key = forest.attempt.round_key()
        self.payload = make_payload(forest.vectors["mal"], FP32)
        self.lanes = StreamLanes(forest.transport("mal"))
        self.open: dict[str, Lane] = {}

    def set_of(self, names: tuple[str, ...]) -> int:
        return sum(1 << self.plan.peers.index(peer(name)) for name in names)

    def mean_of(self, names: tuple[str, ...], start: int, stop: int) -> Vector:
        vectors = [self.forest.vectors[name][start:stop] for name in names]
        return weighted_mean(vectors, [2 + self.forest.names.index(name) for name in names])

    def honest_play(self) -> list[Message]:
        """All that it would send by the rules."""
        sent: list[Message] = [
            (name, Header(Kind.COMMITMENT, self.key, 0), self.payload.digests)
            for name in FAR
            if name != "mal"
        ]
        for tree in self.plan.trees:
            chunk = tree.first
            start, stop = chunk_bounds(SIZE, chunk)
            parent = parent_of(self.plan, tree, self.me)
            if self.me not in tree.owners:
                assert parent is not None
                part = Header(Kind.PART, self.key, 0, chunk, bits=1 << self.me)
                sent.append((self.names[parent], part, bytes(self.payload.chunk(chunk) or b"")))
            elif parent is not None:
                bits = self.set_of(FAR)
                raw = self.mean_of(FAR, start, stop).tobytes()
                sent.append(
                    (self.names[parent], Header(Kind.SUM, self.key, 0, chunk, 0, bits), raw)
                )
            everyone = self.set_of((*HONEST, "mal"))
            maker = self.plan.peers.index(self.plan.peers[tree.root])
            mean = Header(Kind.MEAN, self.key, 0, chunk, maker, everyone)
            sites = [self.mean_of(site, start, stop) for site in (NEAR, FAR)]
            raw = weighted_mean(sites, [9, 18]).tobytes()
            for receiver in receivers_of(self.plan, tree, self.me):
                sent.append((self.names[receiver], mean, raw))
        return sent

    async def send(self, name: str, header: Header, payload: bytes) -> None:
        if name not in self.open:
            self.open[name] = await self.lanes.open(peer(name), CHANNEL, self.ended)
        self.open[name].post(header.encode(), payload)

    def ended(self, lane: Lane, error: ZoonetError) -> None: ...

    async def say_alive(self) -> None:
        while True:
            for name in HONEST:
                await self.send(name, Header(Kind.ALIVE, self.key, 0), b"")
            await asyncio.sleep(0.25)


async def against(lie: Lie, *, says_alive: bool) -> dict[str, object]:
    """What the honest peers come to until one of them reports somebody, and a moment longer."""
    forest = Forest(NEAR, FAR, size=SIZE)
    await forest.serve(*HONEST)
    mal = Liar(forest)
    await mal.lanes.serve(CHANNEL, Deaf())
    running = {name: asyncio.create_task(forest.average(name)) for name in HONEST}
    for message in lie(mal.honest_play()):
        await mal.send(*message)
    alive = asyncio.create_task(mal.say_alive() if says_alive else asyncio.sleep(0))
    await asyncio.wait(
        [asyncio.create_task(_failure(task)) for task in running.values()],
        return_when=asyncio.FIRST_COMPLETED,
        timeout=60.0,
    )
    await asyncio.sleep(Patience().doubt_s)  # as a coordinator waits at most
    found = {name: task.result() if task.done() else None for name, task in running.items()}
    for task in (alive, *running.values()):
        task.cancel()
    await asyncio.gather(alive, *running.values(), return_exceptions=True)
    for lane in mal.open.values():
        await lane.close()
    await forest.close()
    return found


async def _failure(task: asyncio.Task[object]) -> None:
    if not isinstance(await task, AttemptFailed):
        await asyncio.Event().wait()


def left_out(found: dict[str, object]) -> set[PeerId]:
    """Whom a coordinator leaves out by what was reported to it."""
    reports = {name: one for name, one in found.items() if isinstance(one, AttemptFailed)}
    pairs = {
        frozenset((peer(name), PeerId(missing)))
        for name, failure in reports.items()
        for missing in failure.missing
    }
    return to_leave_out(pairs, peer("ada"))


def sums_of(bits: Callable[[int], int]) -> Lie:
    """Sums that say that others are in them."""

    def lie(play: list[Message]) -> list[Message]:
        return [
            (name, Header(**{**vars_of(header), "bits": bits(header.bits)}), raw)
            if header.kind == Kind.SUM
            else (name, header, raw)
            for name, header, raw in play
        ]

    return lie


def vars_of(header: Header) -> dict[str, object]:
    return {name: getattr(header, name) for name in Header.__slots__}


def without(kind: Kind) -> Lie:
    return lambda play: [message for message in play if message[1].kind != kind]


def least_of(bits: int) -> int:
    return bits & -bits


@pytest.mark.parametrize("says_alive", [False, True])
@pytest.mark.parametrize(
    "bits",
    [lambda bits: 0, least_of, lambda bits: bits - least_of(bits), lambda bits: ~bits & 63],
    ids=["nobody", "one", "all but one", "the other site"],
)
def test_a_sum_that_is_not_of_its_site_is_refused_by_name_and_at_once(
    bits: Callable[[int], int], says_alive: bool
) -> None:
    """The root of the other site waited for ever, and was blamed by its own neighbours."""
    found = run(against(sums_of(bits), says_alive=says_alive))
    failure = found["eve"]
    assert isinstance(failure, AttemptFailed) and failure.missing == {peer("mal")}
    assert "refused" in str(failure)
    assert not any(isinstance(found[name], AttemptFailed) for name in ("ada", "bob", "cyd", "dan"))


@pytest.mark.parametrize("says_alive", [False, True])
def test_who_sends_no_parts_is_left_out_alone_although_it_says_that_it_waits(
    says_alive: bool,
) -> None:
    """Its owners wait for it, others for these, and some are late by the same lie."""
    assert left_out(run(against(without(Kind.PART), says_alive=says_alive))) == {peer("mal")}


def test_a_part_that_overtakes_its_commitment_is_no_offence() -> None:
    """Over several connections a message may overtake another."""

    def parts_first(play: list[Message]) -> list[Message]:
        return [*without(Kind.COMMITMENT)(play), *play[:2]]

    async def main() -> None:
        forest = Forest(NEAR, FAR, size=SIZE)
        await forest.serve(*HONEST)
        mal = Liar(forest)
        await mal.lanes.serve(CHANNEL, Deaf())
        running = [asyncio.create_task(forest.average(name)) for name in HONEST]
        play = mal.honest_play()
        for message in play:
            if message[1].kind != Kind.COMMITMENT:
                await mal.send(*message)
        await asyncio.sleep(0.3)
        other = StreamLanes(forest.transport("mal"))
        lanes = []
        for name, header, raw in play:
            if header.kind == Kind.COMMITMENT:
                lanes.append(await other.open(peer(name), CHANNEL, mal.ended))
                lanes[-1].post(header.encode(), raw)
        for mean_P in await asyncio.gather(*running):
            assert isinstance(mean_P, np.ndarray), mean_P
        for lane in (*lanes, *mal.open.values()):
            await lane.close()
        await forest.close()

    run(main())


def test_a_mean_that_rounding_makes_infinite_is_the_largest_there_is() -> None:
    """Nobody was to blame for it, and its chunk was never done."""
    largest = float(np.finfo(np.float32).max)

    async def main() -> None:
        forest = Forest(NEAR, FAR, size=SIZE)
        for vector in forest.vectors.values():
            vector[:] = largest
        forest.attempt = forest.attempt_of(forest.names)
        await forest.serve()
        for mean_P in (await forest.average_all()).values():
            assert isinstance(mean_P, np.ndarray), mean_P
            assert np.isfinite(mean_P).all() and mean_P.max() > 0.99 * largest
        await forest.close()

    run(main())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "fp32"])
def test_sums_as_large_as_can_be_said_are_said_again_in_the_next_round(name: str) -> None:
    """What was left out of them came on top, and was too much: the chunk was never done."""
    wire = Wire(codec(name))
    largest = np.float32(wire.codec.max_magnitude)
    for _ in range(3):
        values_N = np.full(8192, largest)
        values_N[::7] = -largest
        wire.encode(True, 0, values_N)
        assert np.isfinite(values_N).all() and np.abs(values_N).max() <= largest
        wire.settle(is_certified=True)


def test_a_stranger_who_names_a_round_that_is_over_is_turned_away() -> None:
    """It could keep lanes open for ever, and fill the places of those that peers need."""

    async def main() -> None:
        forest = Forest(NEAR, size=SIZE)
        await forest.serve()
        await forest.average_all()
        old_key = forest.attempt.round_key()
        forest.index += 1
        forest.attempt = forest.attempt_of(forest.names)
        lanes = StreamLanes(forest.transport("mal"))
        ended = asyncio.Event()
        lane = await lanes.open(peer("ada"), CHANNEL, lambda lane, error: ended.set())
        await forest.average_all()
        lane.post(Header(Kind.PART, old_key, 0, 0).encode(), bytes(4))
        async with asyncio.timeout(5.0):
            while not ended.is_set():
                lane.post(Header(Kind.PART, old_key, 0, 0).encode(), bytes(4))
                await asyncio.sleep(0.1)
        await lane.close()
        await forest.close()

    run(main())
