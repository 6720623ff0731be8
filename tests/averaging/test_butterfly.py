"""The all-reduce: exact, all or nothing, and every failure named."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.averaging.makers import peer, peers, shares
from tests.averaging.swarm import JOB_ID, identity_of
from zoonet.averaging.butterfly import MAX_EARLY, AttemptFailed, Butterfly, Mean
from zoonet.averaging.messages import Attempt
from zoonet.averaging.parts import (
    FRAME_BYTES,
    MeanHeader,
    MeanRequest,
    PartHeader,
    Received,
    slice_bounds,
)
from zoonet.crypto import PeerId
from zoonet.errors import ProtocolViolation, RoundFailed, StreamClosed, TransportError
from zoonet.testing import MemorySwarm, MemoryTransport, run
from zoonet.transport import Stream

THREE = ("ada", "bob", "cyd")
PART, MEAN = f"/zoonet/{JOB_ID}/part/1", f"/zoonet/{JOB_ID}/mean/1"
SILENCE_S = 5.0


def attempt_of(names: tuple[str, ...], *, num_slots: int = 2, number: int = 0) -> Attempt:
    slots = {name: ((10 * at, 10 * at + num_slots + at),) for at, name in enumerate(names)}
    return Attempt(
        job_id=JOB_ID,
        index=0,
        view=0,
        parent=bytes(32),
        number=number,
        contributions=shares(slots),
    )


def vector_of(name: str, size: int) -> np.ndarray:
    seed = int.from_bytes(name.encode(), "big")
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def numpy_mean(attempt: Attempt, vectors: dict[PeerId, np.ndarray]) -> np.ndarray:
    """Separate fp32 multiplies and adds in the order of peer ids, by the book."""
    weights = [sum(stop - start for start, stop in s.slots) for s in attempt.contributions]
    total = sum(weights)
    mean = None
    for one, weight in zip(attempt.contributors, weights, strict=True):
        term = vectors[one] * np.float32(weight / total)
        mean = term if mean is None else mean + term
    assert mean is not None
    return mean


class Ring:
    """Butterflies of some peers in one memory swarm; others may be added that play by hand."""

    def __init__(self, *names: str, size: int = 1000, followers: tuple[str, ...] = ()) -> None:
        self.size = size
        self.memory = MemorySwarm()
        self.names = names
        self.attempt = attempt_of(names)
        self.followers = frozenset(peer(name) for name in (*names, *followers))
        self.transports: dict[str, MemoryTransport] = {}
        self.butterflies: dict[str, Butterfly] = {}

    async def serve(self, *names: str) -> None:
        for name in names:
            transport = self.transport(name)
            self.butterflies[name] = Butterfly(transport, JOB_ID, self.size, silence_s=SILENCE_S)
            await self.butterflies[name].serve()

    def transport(self, name: str) -> MemoryTransport:
        if name not in self.transports:
            self.transports[name] = self.memory.peer(identity_of(name))[0]
        return self.transports[name]

    async def average(self, name: str) -> Mean | AttemptFailed:
        contribution = vector_of(name, self.size) if name in self.names else None
        try:
            return await self.butterflies[name].average(self.attempt, contribution, self.followers)
        except AttemptFailed as error:
            return error

    async def average_all(self) -> dict[str, Mean | AttemptFailed]:
        found = await asyncio.gather(*(self.average(name) for name in self.butterflies))
        return dict(zip(self.butterflies, found, strict=True))

    def expected(self) -> np.ndarray:
        return numpy_mean(
            self.attempt, {peer(name): vector_of(name, self.size) for name in self.names}
        )


def slice_of(ring: Ring, name: str) -> tuple[int, int]:
    """Bounds of the slice that this peer reduces."""
    at = ring.attempt.contributors.index(peer(name))
    return slice_bounds(ring.size, len(ring.names))[at]


# --- the mean -----------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(1, 50))
def test_slices_cover_the_vector_and_differ_by_one_at_most(size: int, num_slices: int) -> None:
    bounds = slice_bounds(size, num_slices)
    assert bounds[0][0] == 0 and bounds[-1][1] == size and len(bounds) == num_slices
    assert all(left[1] == right[0] for left, right in itertools.pairwise(bounds))
    sizes = {stop - start for start, stop in bounds}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("names", [THREE[:1], THREE[:2], THREE, (*THREE, "dan", "eve")])
@pytest.mark.parametrize("size", [1, 2, 1000, 100_003])
def test_everybody_gets_numpys_mean_bit_for_bit(names: tuple[str, ...], size: int) -> None:
    async def main() -> None:
        ring = Ring(*names, size=size, followers=("zoe",))
        await ring.serve(*names, "zoe")
        means = await ring.average_all()
        expected = ring.expected()
        for mean in means.values():
            assert isinstance(mean, Mean)
            assert mean.mean_P.tobytes() == expected.tobytes()
        assert len({mean.slices for mean in means.values()}) == 1

    run(main())


@settings(max_examples=15)
@given(st.lists(st.floats(0.0, 4.0), min_size=5, max_size=5))
def test_the_order_of_arrival_does_not_change_a_bit(delays_s: list[float]) -> None:
    names = (*THREE, "dan", "eve")

    async def main() -> bytes:
        ring = Ring(*names, size=97)
        await ring.serve(*names)
        for name, delay_s in zip(names, delays_s, strict=True):
            ring.memory.faults.extra_delay_s[peer(name)] = delay_s / 10
        means = await ring.average_all()
        assert ring.expected().tobytes() == means["ada"].mean_P.tobytes()
        return means["bob"].mean_P.tobytes()

    run(main())


def test_a_vector_of_many_frames_arrives_whole() -> None:
    async def main() -> None:
        ring = Ring("ada", "bob", size=FRAME_BYTES)  # two frames and a bit for each slice
        await ring.serve("ada", "bob")
        means = await ring.average_all()
        assert means["ada"].mean_P.tobytes() == ring.expected().tobytes()

    run(main())


def test_after_it_only_the_own_slice_stays_in_memory() -> None:
    async def main() -> None:
        ring = Ring(*THREE)
        await ring.serve(*THREE)
        await ring.average_all()
        for name in THREE:
            (reduction,) = ring.butterflies[name]._reductions.values()
            assert set(reduction.means) == {reduction.mine} and not reduction.parts

    run(main())


def test_old_attempts_are_forgotten() -> None:
    async def main() -> None:
        ring = Ring("ada")
        await ring.serve("ada")
        for number in range(10):
            ring.attempt = attempt_of(("ada",), number=number)
            await ring.average("ada")
        assert len(ring.butterflies["ada"]._reductions) == 4

    run(main())


# --- one of three plays by hand ---------------------------------------------------------------


async def against(
    part: Callable[[Ring, Stream], Awaitable[None]],
    mean: Callable[[Ring, Stream], Awaitable[None]],
    also: Callable[[Ring], Awaitable[None]] | None = None,
) -> tuple[dict[str, Mean | AttemptFailed], float]:
    """Ada and bob average with a cyd that takes parts and hands out means in its own way."""
    ring = Ring(*THREE)
    await ring.serve("ada", "bob")
    cyd = ring.transport("cyd")
    await cyd.serve(PART, lambda stream: part(ring, stream))
    await cyd.serve(MEAN, lambda stream: mean(ring, stream))
    mine = asyncio.create_task(also(ring)) if also is not None else None
    outcomes = await ring.average_all()
    if mine is not None:
        mine.cancel()
        await asyncio.gather(mine, return_exceptions=True)
    return outcomes, asyncio.get_running_loop().time()


async def take_it(ring: Ring, stream: Stream) -> None:
    """An honest reducer's side of a part."""
    msgspec.msgpack.decode(await stream.receive(), type=PartHeader)
    start, stop = slice_of(ring, "cyd")
    num_bytes = 4 * (stop - start)
    while num_bytes > 0:
        num_bytes -= len(await stream.receive())
    await stream.send(b"\x00" + msgspec.msgpack.encode(Received()))


async def hand_out(ring: Ring, stream: Stream) -> None:
    """An honest reducer's mean."""
    await stream.receive()
    start, stop = slice_of(ring, "cyd")
    await stream.send(b"\x00" + msgspec.msgpack.encode(MeanHeader("ready")))
    await stream.send(ring.expected()[start:stop].tobytes())


async def say_nothing(ring: Ring, stream: Stream) -> None:
    await asyncio.Event().wait()


async def hang_up(ring: Ring, stream: Stream) -> None:
    await stream.receive()


async def send_part(
    ring: Ring, name: str, values: np.ndarray | None = None, *, raw: bytes | None = None
) -> None:
    """Cyd's part to another, or whatever it sends for one."""
    start, stop = slice_of(ring, name)
    part = vector_of("cyd", ring.size)[start:stop] if values is None else values
    stream = await ring.transport("cyd").open(peer(name), PART)
    await stream.send(msgspec.msgpack.encode(PartHeader(ring.attempt.identifier())))
    await stream.send(part.astype("<f4").tobytes() if raw is None else raw)
    await stream.receive()


async def send_parts(ring: Ring) -> None:
    await asyncio.gather(*(send_part(ring, name) for name in ("ada", "bob")))


def missing(outcome: Mean | AttemptFailed) -> frozenset[str]:
    assert isinstance(outcome, AttemptFailed), outcome
    return outcome.missing


def test_an_honest_hand_written_peer_is_averaged_in() -> None:
    """So that what fails below fails for its reason alone."""

    async def main() -> None:
        ring_means, _ = await against(take_it, hand_out, send_parts)
        left, right = ring_means["ada"], ring_means["bob"]
        assert left.mean_P.tobytes() == right.mean_P.tobytes()

    run(main())


def test_a_peer_that_is_not_there_is_named_at_once() -> None:
    async def main() -> None:
        ring = Ring(*THREE)
        await ring.serve("ada", "bob")
        outcomes = await ring.average_all()
        assert missing(outcomes["ada"]) == missing(outcomes["bob"]) == {peer("cyd")}
        assert asyncio.get_running_loop().time() < 1.0

    run(main())


@pytest.mark.parametrize("part", [say_nothing, hang_up, take_it])
@pytest.mark.parametrize("mean", [say_nothing, hang_up, hand_out])
@pytest.mark.parametrize("sends", [True, False])
def test_whoever_is_silent_in_any_way_is_named_in_time(part, mean, sends: bool) -> None:
    async def main() -> None:
        outcomes, took_s = await against(part, mean, send_parts if sends else None)
        if part is take_it and mean is hand_out and sends:
            return
        assert took_s <= 4 * SILENCE_S
        for outcome in outcomes.values():
            assert missing(outcome) | outcome.blocked <= peers_set("ada", "bob", "cyd")
        accused = missing(outcomes["ada"]) | missing(outcomes["bob"])
        assert accused == {peer("cyd")}

    run(main())


def peers_set(*names: str) -> frozenset[PeerId]:
    return frozenset(peers(*names))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00",
        np.full(333, np.nan, np.float32).tobytes(),
        np.full(333, np.inf, np.float32).tobytes(),
        bytes(4 * 100),
        bytes(4 * 400),
        bytes(FRAME_BYTES),
        bytes(FRAME_BYTES + 4),
    ],
)
def test_a_part_of_nonsense_names_its_sender(raw: bytes) -> None:
    async def send_nonsense(ring: Ring) -> None:
        await asyncio.gather(
            *(send_part(ring, name, raw=raw) for name in ("ada", "bob")), return_exceptions=True
        )

    async def main() -> None:
        outcomes, took_s = await against(take_it, hand_out, send_nonsense)
        assert missing(outcomes["ada"]) | missing(outcomes["bob"]) == {peer("cyd")}
        assert took_s <= 2 * SILENCE_S + 1

    run(main())


def test_a_part_that_trickles_in_is_refused() -> None:
    """One value at a time would hold the round for hours."""

    async def trickle(ring: Ring) -> None:
        stream = await ring.transport("cyd").open(peer("ada"), PART)
        await stream.send(msgspec.msgpack.encode(PartHeader(ring.attempt.identifier())))
        while True:
            await stream.send(bytes(4))
            await asyncio.sleep(SILENCE_S - 1)

    async def main() -> None:
        outcomes, took_s = await against(take_it, hand_out, trickle)
        assert missing(outcomes["ada"]) == {peer("cyd")}
        assert took_s < 2 * SILENCE_S + 1

    run(main())


def test_a_reducer_that_waits_for_ever_costs_a_multiple_of_what_the_others_took() -> None:
    async def wait_for_ever(ring: Ring, stream: Stream) -> None:
        while True:
            await stream.send(b"\x00" + msgspec.msgpack.encode(MeanHeader("waiting")))
            await asyncio.sleep(1.0)

    async def main() -> None:
        outcomes, took_s = await against(take_it, wait_for_ever, send_parts)
        assert missing(outcomes["ada"]) == missing(outcomes["bob"]) == {peer("cyd")}
        assert took_s < 5 * SILENCE_S

    run(main())


def test_a_reducer_that_says_it_is_blocked_is_not_accused_yet() -> None:
    async def blocked(ring: Ring, stream: Stream) -> None:
        await stream.receive()
        await stream.send(b"\x00" + msgspec.msgpack.encode(MeanHeader("failed")))

    async def main() -> None:
        outcomes, _ = await against(take_it, blocked, send_parts)
        for outcome in outcomes.values():
            assert isinstance(outcome, AttemptFailed)
            assert not missing(outcome) and peer("cyd") in outcome.blocked

    run(main())


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\x01refused",
        b"\x00",
        b"\x00" + msgspec.msgpack.encode({"status": "maybe"}),
        b"\x00" + msgspec.msgpack.encode({"missing": ["ada"]}),
        bytes(2000),
    ],
)
def test_a_malformed_mean_header_names_its_sender(reply: bytes) -> None:
    async def answer(ring: Ring, stream: Stream) -> None:
        await stream.receive()
        await stream.send(reply)
        await asyncio.Event().wait()

    async def main() -> None:
        outcomes, took_s = await against(take_it, answer, send_parts)
        assert missing(outcomes["ada"]) == {peer("cyd")}
        assert took_s < SILENCE_S

    run(main())


@pytest.mark.parametrize("values", [np.full(333, np.nan, np.float32), np.zeros(5, np.float32)])
def test_a_mean_of_nonsense_names_its_reducer(values: np.ndarray) -> None:
    async def nonsense(ring: Ring, stream: Stream) -> None:
        await stream.receive()
        await stream.send(b"\x00" + msgspec.msgpack.encode(MeanHeader("ready")))
        await stream.send(values.tobytes())

    async def main() -> None:
        outcomes, _ = await against(take_it, nonsense, send_parts)
        assert missing(outcomes["ada"]) == missing(outcomes["bob"]) == {peer("cyd")}

    run(main())


def test_a_reducer_that_serves_two_means_is_betrayed_by_the_digests() -> None:
    async def two_faced(ring: Ring, stream: Stream) -> None:
        await stream.receive()
        start, stop = slice_of(ring, "cyd")
        lie = np.float32(1.0 if stream.peer_id == peer("ada") else 0.0)
        await stream.send(b"\x00" + msgspec.msgpack.encode(MeanHeader("ready")))
        await stream.send((ring.expected()[start:stop] + lie).tobytes())

    async def main() -> None:
        outcomes, _ = await against(take_it, two_faced, send_parts)
        left, right = outcomes["ada"].slices, outcomes["bob"].slices
        differing = [at for at in range(3) if left[at] != right[at]]
        assert differing == [list(attempt_of(THREE).contributors).index(peer("cyd"))]

    run(main())


# --- who has no part in it --------------------------------------------------------------------


async def opened(ring: Ring, name: str, protocol: str, message: msgspec.Struct) -> Stream:
    stream = await ring.transport(name).open(peer("ada"), protocol)
    await stream.send(msgspec.msgpack.encode(message))
    return stream


async def is_refused(stream: Stream, *, within_s: float) -> bool:
    started = asyncio.get_running_loop().time()
    try:
        await stream.receive()
    except StreamClosed:
        return asyncio.get_running_loop().time() - started <= within_s
    return False


def test_strangers_get_no_mean_and_give_no_part() -> None:
    async def main() -> None:
        ring = Ring("ada", "bob")
        await ring.serve("ada", "bob")
        await ring.average_all()
        identifier = ring.attempt.identifier()
        for protocol, message in ((MEAN, MeanRequest(identifier)), (PART, PartHeader(identifier))):
            stream = await opened(ring, "eve", protocol, message)
            assert await is_refused(stream, within_s=1.0)
            assert isinstance(ring.transports["ada"].failures[-1], ProtocolViolation)

    run(main())


def test_a_follower_gives_no_part() -> None:
    async def main() -> None:
        ring = Ring("ada", "bob", followers=("zoe",))
        await ring.serve("ada", "bob", "zoe")
        await ring.average_all()
        header = PartHeader(ring.attempt.identifier())
        assert await is_refused(await opened(ring, "zoe", PART, header), within_s=1.0)

    run(main())


def test_a_part_comes_once() -> None:
    async def main() -> None:
        ring = Ring("ada", "bob")
        await ring.serve("ada")
        for protocol in (PART, MEAN):
            await ring.transport("bob").serve(protocol, partial(say_nothing, ring))
        averaging = asyncio.create_task(ring.average("ada"))
        await asyncio.sleep(0.1)
        header = PartHeader(ring.attempt.identifier())
        first = await opened(ring, "bob", PART, header)
        await asyncio.sleep(0.1)
        second = await opened(ring, "bob", PART, header)
        assert await is_refused(second, within_s=1.0)
        start, stop = slice_of(ring, "ada")
        await first.send(vector_of("bob", ring.size)[start:stop].tobytes())
        assert await first.receive()
        assert len(ring.butterflies["ada"]._reductions) == 1
        assert missing(await averaging) == {peer("bob")}  # which reduces nothing here

    run(main())


def test_attempts_that_nobody_knows_hold_few_streams_for_a_short_time() -> None:
    async def main() -> None:
        ring = Ring("ada")
        await ring.serve("ada")
        streams = [
            await opened(ring, "eve", protocol, message)
            for protocol, message in (
                [(MEAN, MeanRequest(bytes(32)))] * MAX_EARLY + [(PART, PartHeader(bytes(32)))] * 40
            )
        ]
        assert await is_refused(streams[-1], within_s=0.5)
        for stream in streams:
            assert await is_refused(stream, within_s=SILENCE_S + 1)
        butterfly = ring.butterflies["ada"]
        assert not butterfly._num_early and not butterfly._reductions

    run(main())


def test_a_part_may_come_before_its_attempt() -> None:
    async def main() -> None:
        ring = Ring("ada", "bob")
        await ring.serve("ada", "bob")
        first = asyncio.create_task(ring.average("ada"))
        await asyncio.sleep(SILENCE_S / 2)
        second = await ring.average("bob")
        assert isinstance(await first, Mean) and isinstance(second, Mean)

    run(main())


@given(st.sampled_from([PART, MEAN]), st.binary(max_size=100))
def test_any_bytes_for_a_header_end_their_own_stream_only(protocol: str, frame: bytes) -> None:
    async def main() -> None:
        ring = Ring("ada", "bob")
        await ring.serve("ada", "bob")
        stream = await ring.transport("eve").open(peer("ada"), protocol)
        await stream.send(frame)
        with pytest.raises(TransportError):
            await stream.receive()
        means = await ring.average_all()
        assert means["ada"].mean_P.tobytes() == ring.expected().tobytes()

    run(main())


def test_a_cancelled_attempt_leaves_the_next_one_alone() -> None:
    async def main() -> None:
        ring = Ring("ada", "bob")
        await ring.serve("ada", "bob")
        averaging = asyncio.create_task(ring.average("ada"))
        await asyncio.sleep(0.1)
        averaging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await averaging
        ring.attempt = attempt_of(ring.names, number=1)
        means = await ring.average_all()
        assert means["bob"].mean_P.tobytes() == ring.expected().tobytes()

    run(main())


def test_a_failed_attempt_is_a_failed_round_to_who_does_not_look_closer() -> None:
    assert issubclass(AttemptFailed, RoundFailed)
