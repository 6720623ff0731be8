"""Chunks that break the rules: refused by name, their sender's contribution lost, nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.averaging.forest import Forest
from tests.averaging.makers import peer
from tests.averaging.swarm import JOB_ID
from zoonet.averaging.allreduce import FP32, AttemptFailed
from zoonet.averaging.chunks import Header, Kind
from zoonet.averaging.payload import make_payload
from zoonet.averaging.plan import chunk_bounds, num_chunks, receivers_of
from zoonet.crypto import PeerId
from zoonet.errors import ZoonetError
from zoonet.testing import run
from zoonet.transport import Lane, StreamLanes

SIZE = 1000
HONEST = ("ada", "bob", "cyd")
Message = tuple[Header, bytes]
Play = Callable[["Liar"], list[tuple[str, Message]]]


class Deaf:
    """Takes whatever is sent and does nothing with it."""

    def admit(self, peer_id: PeerId, header: bytes, num_bytes: int) -> memoryview:
        return memoryview(bytearray(num_bytes))

    def arrived(self, peer_id: PeerId, header: bytes) -> None: ...

    def ended(self, peer_id: PeerId, error: ZoonetError) -> None: ...


class Liar:
    """Mal, the fourth contributor of a flat round, whose messages are made by hand."""

    def __init__(self, forest: Forest) -> None:
        self.forest = forest
        self.plan = forest.plan
        self.me = self.plan.peers.index(peer("mal"))
        self.payload = make_payload(forest.vectors["mal"], FP32)
        self.key = forest.attempt.round_key()

    def header(self, kind: Kind, chunk: int = 0, **fields: int) -> Header:
        number = fields.pop("number", 0)
        return Header(kind, self.key, number, chunk, **fields)

    def commitment(self) -> Message:
        return self.header(Kind.COMMITMENT), self.payload.digests

    def part(self, chunk: int, **fields: int) -> Message:
        raw = bytes(self.payload.chunk(chunk) or b"")
        return self.header(Kind.PART, chunk, bits=1 << self.me, **fields), raw

    def mean(self, chunk: int, values: float = 0.0, bits: int = 15) -> Message:
        start, stop = chunk_bounds(SIZE, chunk)
        raw = np.full(stop - start, values, np.float32).tobytes()
        return self.header(Kind.MEAN, chunk, maker=self.me, bits=bits), raw

    def root_of(self, chunk: int) -> str:
        at = self.plan.trees[chunk].root
        return next(n for n in self.forest.names if peer(n) == self.plan.peers[at])

    def honest_play(self) -> list[tuple[str, Message]]:
        """All that an honest peer sends, with zeros for the mean of its own chunks."""
        sent = [(name, self.commitment()) for name in HONEST]
        for chunk in range(num_chunks(SIZE)):
            root = self.root_of(chunk)
            if root != "mal":
                sent.append((root, self.part(chunk)))
                continue
            for at in receivers_of(self.plan, self.plan.trees[chunk], self.me):
                name = next(n for n in HONEST if peer(n) == self.plan.peers[at])
                sent.append((name, self.mean(chunk)))
        return sent


async def against(play: Play, lie: bool = True) -> tuple[dict[str, object], float]:
    """What the honest peers come to in the first attempt, and in the next one without mal."""
    forest = Forest((*HONEST, "mal"), size=SIZE)
    await forest.serve(*HONEST)
    mal = Liar(forest)
    lanes = StreamLanes(forest.transport("mal"))
    await lanes.serve(f"{JOB_ID}/reduce/1", Deaf())
    opened: dict[str, Lane] = {}
    began = asyncio.get_running_loop().time()
    running = {name: asyncio.create_task(forest.average(name)) for name in HONEST}
    for name, (header, payload) in play(mal):
        if name not in opened:
            opened[name] = await lanes.open(
                peer(name), f"{JOB_ID}/reduce/1", lambda lane, error: None
            )
        opened[name].post(header.encode(), payload)
    found: dict[str, object] = {}
    done, pending = await asyncio.wait(
        running.values(), return_when=asyncio.FIRST_COMPLETED if lie else asyncio.ALL_COMPLETED
    )
    took_s = asyncio.get_running_loop().time() - began
    for name, task in running.items():
        found[name] = task.result() if task in done else None
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    if lie:
        second = forest.without("mal")
        again = await asyncio.gather(*(forest.average(name, second) for name in HONEST))
        for mean_P in again:
            assert isinstance(mean_P, np.ndarray), mean_P
            assert mean_P.tobytes() == again[0].tobytes()
            assert np.isfinite(mean_P).all()
    for lane in opened.values():
        await lane.close()
    await forest.close()
    return found, took_s


def test_hand_written_messages_by_the_rules_are_averaged_in() -> None:
    found, took_s = run(against(Liar.honest_play, lie=False))
    assert all(isinstance(mean_P, np.ndarray) for mean_P in found.values())
    assert took_s < 2.0


def poisoned(mal: Liar, value: float) -> list[tuple[str, Message]]:
    mal.forest.vectors["mal"][:] = value
    mal.payload = make_payload(mal.forest.vectors["mal"], FP32)
    return mal.honest_play()


def instead_of(mal: Liar, at: int, message: Message) -> list[tuple[str, Message]]:
    """Everything by the rules but the first message to whom the part at `at` goes."""
    play = mal.honest_play()
    victim = play[at][0]
    return [(victim, message), *play]


LIES: dict[str, Play] = {
    "no commitment": lambda mal: [one for one in mal.honest_play() if one[1][0].kind != 1],
    "another commitment": lambda mal: [
        (name, (header, bytes(len(raw)) if header.kind == Kind.COMMITMENT else raw))
        for name, (header, raw) in mal.honest_play()
    ],
    "other values": lambda mal: [
        (name, (header, bytes(len(raw)) if header.kind == Kind.PART else raw))
        for name, (header, raw) in mal.honest_play()
    ],
    "a part too short": lambda mal: instead_of(mal, 3, (mal.part(0)[0], b"\x00" * 4)),
    "a part too long": lambda mal: instead_of(mal, 3, (mal.part(0)[0], bytes(100_000))),
    "a chunk that is none": lambda mal: instead_of(
        mal, 3, (mal.header(Kind.PART, 2**31), bytes(8))
    ),
    "a mean in another's name": lambda mal: instead_of(
        mal, 3, mal.mean(next(c for c in range(16) if mal.root_of(c) != "mal"))
    ),
    "a mean of nobody": lambda mal: [
        (name, mal.mean(header.chunk, bits=0) if header.kind == Kind.MEAN else (header, raw))
        for name, (header, raw) in mal.honest_play()
    ],
    "a mean that is not finite": lambda mal: [
        (name, mal.mean(header.chunk, np.inf) if header.kind == Kind.MEAN else (header, raw))
        for name, (header, raw) in mal.honest_play()
    ],
    "a sum in a round without sites": lambda mal: instead_of(
        mal, 3, (mal.header(Kind.SUM, 0, bits=1), mal.part(0)[1])
    ),
    "an attempt far ahead": lambda mal: instead_of(mal, 3, mal.part(0, number=9999)),
    "a message that only says that it is alive, with a payload": lambda mal: instead_of(
        mal, 3, (mal.header(Kind.ALIVE), bytes(50))
    ),
}


@pytest.mark.parametrize("lie", list(LIES))
def test_a_lie_costs_its_sender_and_is_named_within_seconds(lie: str) -> None:
    found, took_s = run(against(LIES[lie]))
    failures = [one for one in found.values() if isinstance(one, AttemptFailed)]
    assert failures
    assert all(failure.missing == {peer("mal")} for failure in failures)
    assert took_s < 15.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_although_they_were_committed_to(
    value: float,
) -> None:
    async def main() -> None:
        forest = Forest((*HONEST, "mal"), size=SIZE)
        forest.vectors["mal"][123] = value
        forest.attempt = forest.attempt_of(forest.names)
        await forest.serve()
        found = await asyncio.gather(*(forest.average(name) for name in HONEST))
        failures = [one for one in found if isinstance(one, AttemptFailed)]
        assert failures
        assert all(failure.missing == {peer("mal")} for failure in failures)
        second = forest.without("mal")
        again = await asyncio.gather(*(forest.average(name, second) for name in HONEST))
        for mean_P in again:
            assert isinstance(mean_P, np.ndarray) and np.isfinite(mean_P).all()
        await forest.close()

    run(main())


async def beside(play: Callable[[Liar], list[tuple[str, Message]]], num_times: int = 1) -> None:
    """Mal does all that it should, and something else; nobody minds."""
    forest = Forest((*HONEST, "mal"), size=SIZE)
    await forest.serve(*HONEST)
    mal = Liar(forest)
    lanes = StreamLanes(forest.transport("mal"))
    await lanes.serve(f"{JOB_ID}/reduce/1", Deaf())
    running = [asyncio.create_task(forest.average(name)) for name in HONEST]
    ends: list[ZoonetError] = []
    opened = {
        name: await lanes.open(
            peer(name), f"{JOB_ID}/reduce/1", lambda _, error: ends.append(error)
        )
        for name in HONEST
    }
    for _ in range(num_times):
        for name, (header, payload) in play(mal):
            opened[name].post(header.encode(), payload)
    means = await asyncio.gather(*running)
    for lane in opened.values():
        await lane.close()
    await forest.close()
    assert not ends
    roots = [mal.root_of(chunk) for chunk in range(num_chunks(SIZE))]
    honest = forest.exact_mean()
    for mean_P in means:
        assert isinstance(mean_P, np.ndarray), mean_P
        assert mean_P.tobytes() == means[0].tobytes()
        for chunk, root in enumerate(roots):
            start, stop = chunk_bounds(SIZE, chunk)
            expected = 0.0 if root == "mal" else honest[start:stop]  # its own means are zeros
            np.testing.assert_allclose(mean_P[start:stop], expected, rtol=1e-4, atol=1e-5)


def test_chunks_that_come_twice_count_once() -> None:
    run(beside(lambda mal: [message for message in mal.honest_play() for _ in range(2)]))


def test_chunks_that_come_again_and_again_with_other_values_change_nothing() -> None:
    """What is here already is not looked at: the sender only wastes its own line."""

    def flood(mal: Liar) -> list[tuple[str, Message]]:
        play = mal.honest_play()
        other = [
            (name, (header, bytes(len(raw))))
            for name, (header, raw) in play
            if header.kind != Kind.COMMITMENT
        ]
        return [*play, *other * 50]

    run(beside(flood))


def test_a_chunk_of_another_round_is_waited_for_and_then_ends_its_lane() -> None:
    """It may be of the next one, of which its sender has heard sooner."""

    async def main() -> float:
        forest = Forest(HONEST, size=SIZE)
        await forest.serve()
        lanes = StreamLanes(forest.transport("mal"))
        ended: asyncio.Future[ZoonetError] = asyncio.get_running_loop().create_future()
        lane = await lanes.open(
            peer("ada"), f"{JOB_ID}/reduce/1", lambda _, error: ended.set_result(error)
        )
        header = Header(Kind.PART, b"another round!!!", 0).encode()
        lane.post(header, bytes(4))
        means = await forest.average_all()
        assert all(isinstance(mean_P, np.ndarray) for mean_P in means.values())
        began = asyncio.get_running_loop().time()
        while not ended.done():
            lane.post(header, bytes(4))
            await asyncio.sleep(0.1)
        await lane.close()
        await forest.close()
        return asyncio.get_running_loop().time() - began

    assert run(main()) < 30.0


def test_chunks_that_come_after_the_round_are_no_offence() -> None:
    """Their sender may not have heard yet that the others did without it."""

    async def main() -> None:
        forest = Forest(HONEST, size=SIZE)
        await forest.serve()
        old = Header(Kind.PART, forest.attempt.round_key(), 0, bits=1).encode()
        for forest.index in (0, 1):
            forest.attempt = forest.attempt_of(forest.names)
            means = await forest.average_all()
            assert all(isinstance(mean_P, np.ndarray) for mean_P in means.values())
        ends: list[ZoonetError] = []
        late = StreamLanes(forest.transport("bob"))
        lane = await late.open(
            peer("ada"), f"{JOB_ID}/reduce/1", lambda _, error: ends.append(error)
        )
        for _ in range(5):
            lane.post(old, bytes(4))
            await asyncio.sleep(3.0)
        assert not ends and not lane.unsent_bytes
        await lane.close()
        await forest.close()

    run(main())


@settings(max_examples=60)
@given(st.binary(max_size=120), st.binary(max_size=40))
def test_any_bytes_end_their_own_lane_only(header: bytes, payload: bytes) -> None:
    async def main() -> None:
        forest = Forest(HONEST, size=SIZE)
        await forest.serve()
        lanes = StreamLanes(forest.transport("mal"))
        lane = await lanes.open(peer("ada"), f"{JOB_ID}/reduce/1", lambda lane, error: None)
        lane.post(header, payload)
        found = await forest.average_all()
        for mean_P in found.values():
            assert isinstance(mean_P, np.ndarray)
        await lane.close()
        await forest.close()

    run(main())
