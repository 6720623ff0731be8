"""The outer state from several donors: checked by chunk, whoever lies or vanishes."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from blake3 import blake3

from tests.averaging.makers import peer
from tests.averaging.swarm import JOB_ID, identity_of
from zoonet.averaging.replica import STATE_CHUNK_BYTES
from zoonet.averaging.state_sync import (
    CALL_TIMEOUT_S,
    MAX_AT_ONCE,
    ChunkRequest,
    StateSync,
    num_chunks,
    root_of,
)
from zoonet.errors import DigestMismatch, ShardUnavailable
from zoonet.ranges import Ranges
from zoonet.testing import MemorySwarm, MemoryTransport, run
from zoonet.transport import Refused, Stream, call, receive_request, send_reply

NUM_PARAMETERS = 3 * STATE_CHUNK_BYTES // 4 - 7  # six chunks in all
CHUNK = f"/zoonet/{JOB_ID}/state-chunk/2"
INDEX = f"/zoonet/{JOB_ID}/state-index/2"
STATES = {
    seed: [
        bytes([seed, at]) + bytes(STATE_CHUNK_BYTES - (2 if at % 3 < 2 else 30)) for at in range(6)
    ]
    for seed in (1, 2)
}


def digests_of(chunks: list[bytes]) -> list[bytes]:
    return [blake3(chunk).digest() for chunk in chunks]


def name_of(seed: int) -> bytes:
    return root_of(digests_of(STATES[seed]))


class Holder:
    """A replica that holds one state, or none, and adopts another."""

    def __init__(self, seed: int = 0) -> None:
        self.num_parameters = NUM_PARAMETERS
        self.chunks = STATES.get(seed, [])
        self.slots_per_s, self.num_trained = 0.0, 0
        self.read: list[int] = []

    @property
    def state_digest(self) -> bytes:
        return root_of(digests_of(self.chunks))

    def chunk_digests(self, state: bytes) -> list[bytes] | None:
        return digests_of(self.chunks) if state == self.state_digest else None

    def read_chunk(self, state: bytes, index: int) -> bytes | None:
        self.read.append(index)
        if state != self.state_digest or index >= len(self.chunks):
            return None
        return self.chunks[index]

    async def adopt(self, state: bytes, digests: list[bytes], chunks: list[bytes]) -> None:
        if digests_of(chunks) != digests or root_of(digests) != state:
            raise DigestMismatch("", "chunks that do not make up the state")
        self.chunks = chunks

    async def train(self, slots: Ranges, *, num_done: int, num_planned: int) -> Ranges:
        raise NotImplementedError

    def stop(self) -> None: ...

    async def pseudo_gradient(self) -> np.ndarray:
        raise NotImplementedError

    async def stage(self, mean_P: np.ndarray) -> bytes:
        raise NotImplementedError

    async def commit(self, state: bytes, *, is_merged: bool) -> bool:
        raise NotImplementedError

    async def drop_local(self) -> None: ...


class Scene:
    """A joiner, and donors who hold the state of a seed."""

    def __init__(self) -> None:
        self.memory = MemorySwarm()
        self.read_by_bob: list[int] = []
        self.holders: dict[str, Holder] = {}
        self.syncs: dict[str, StateSync] = {}
        self.transports: dict[str, MemoryTransport] = {}

    async def add(self, name: str, seed: int = 0) -> Holder:
        transport = self.memory.peer(identity_of(name))[0]
        self.transports[name] = transport
        self.holders[name] = Holder(seed)
        self.syncs[name] = StateSync(transport, JOB_ID, self.holders[name])
        await self.syncs[name].serve()
        return self.holders[name]

    async def fetch(self, *donors: str, seed: int = 1) -> list[tuple[int, int]]:
        told: list[tuple[int, int]] = []
        joiner = self.syncs["zoe"]
        await joiner.fetch(
            name_of(seed), [peer(name) for name in donors], lambda *at: told.append(at)
        )
        return told


async def scene(**donors: int) -> Scene:
    made = Scene()
    await made.add("zoe")
    for name, seed in donors.items():
        await made.add(name, seed)
    return made


def test_the_number_of_chunks_is_that_of_both_vectors() -> None:
    per_chunk = STATE_CHUNK_BYTES // 4
    assert [num_chunks(n) for n in (1, per_chunk, per_chunk + 1, NUM_PARAMETERS)] == [2, 2, 4, 6]


def test_a_joiner_fetches_from_several_donors_at_once() -> None:
    async def main() -> None:
        made = await scene(ada=1, bob=1, cyd=1)
        told = await made.fetch("ada", "bob", "cyd")
        assert made.holders["zoe"].chunks == STATES[1]
        assert told[-1] == (6, 6)
        assert all(made.holders[name].read for name in ("ada", "bob", "cyd"))

    run(main())


def test_a_donor_that_lies_about_a_chunk_is_found_out_and_passed_over() -> None:
    async def main() -> None:
        made = await scene(ada=1, bob=1)
        liar = made.holders["bob"]
        liar.chunks = [b"\x66" + chunk[1:] for chunk in STATES[1]]
        made.holders["bob"].chunk_digests = lambda state: digests_of(STATES[1])

        def lie(state: bytes, index: int) -> bytes:
            made.read_by_bob.append(index)
            return liar.chunks[index]

        liar.read_chunk = lie
        await made.fetch("bob", "ada")
        assert made.holders["zoe"].chunks == STATES[1]
        assert made.syncs["zoe"].distrusted == {peer("bob")}
        asked = len(made.read_by_bob)
        made.holders["zoe"].chunks = []
        await made.fetch("bob", "ada")
        assert len(made.read_by_bob) == asked  # not again

    run(main())


def test_a_liar_is_asked_again_where_nobody_else_is_left() -> None:
    async def main() -> None:
        made = await scene(ada=1)
        made.syncs["zoe"].distrusted.add(peer("ada"))
        await made.fetch("ada")
        assert made.holders["zoe"].chunks == STATES[1]

    run(main())


def test_an_index_that_is_not_the_states_is_not_believed() -> None:
    async def main() -> None:
        for wrong in (digests_of(STATES[2]), digests_of(STATES[1])[:-1], [], [bytes(32)] * 6):
            made = await scene(ada=1, bob=1)
            made.holders["bob"].chunk_digests = lambda state, wrong=wrong: wrong
            made.holders["zoe"].chunks = []
            await made.fetch("bob", "ada")
            assert made.holders["zoe"].chunks == STATES[1]
            with pytest.raises(ShardUnavailable, match="none of 1 peers"):
                await made.fetch("bob")

    run(main())


def test_donors_of_another_state_are_passed_over() -> None:
    async def main() -> None:
        made = await scene(ada=1, bob=2)
        await made.fetch("bob", "ada")
        assert made.holders["zoe"].chunks == STATES[1]
        with pytest.raises(ShardUnavailable):
            await made.fetch("bob", seed=1)

    run(main())


def test_a_donor_that_vanishes_in_the_middle_costs_nothing() -> None:
    async def main() -> None:
        made = await scene(ada=1, bob=1)
        made.memory.faults.extra_delay_s[peer("bob")] = 3.0
        fetching = asyncio.create_task(made.fetch("ada", "bob"))
        await asyncio.sleep(4.0)
        await made.memory.kill(peer("bob"))
        await fetching
        assert made.holders["zoe"].chunks == STATES[1]

    run(main())


def test_a_donor_that_stalls_at_its_last_chunk_costs_less_than_a_second() -> None:
    async def main() -> None:
        made = await scene(ada=1)
        await made.add("bob", 1)
        honest, sent = made.holders["bob"], 0

        async def stall(stream: Stream) -> None:
            nonlocal sent
            while sent < 2:
                request = await receive_request(stream, ChunkRequest)
                await send_reply(stream, honest.chunks[request.index])
                sent += 1
            await asyncio.Event().wait()

        await made.transports["bob"].serve(CHUNK, stall)
        started = asyncio.get_running_loop().time()
        await made.fetch("ada", "bob")
        assert made.holders["zoe"].chunks == STATES[1]
        assert sent == 2
        assert asyncio.get_running_loop().time() - started < 1.0

    run(main())


def test_several_chunks_are_asked_for_before_the_first_has_come() -> None:
    async def main() -> None:
        made = await scene(ada=1)
        requests: list[int] = []

        async def listen(stream: Stream) -> None:
            while True:
                requests.append((await receive_request(stream, ChunkRequest)).index)

        await made.transports["ada"].serve(CHUNK, listen)
        with pytest.raises(ShardUnavailable):
            await made.fetch("ada")
        assert requests == [0, 1]

    run(main())


def test_a_donor_that_sits_on_one_chunk_holds_nobody_up() -> None:
    async def main() -> None:
        made = await scene(ada=1)
        await made.add("bob", 1)

        async def sit(stream: Stream) -> None:
            await asyncio.Event().wait()

        await made.transports["bob"].serve(CHUNK, sit)
        started = asyncio.get_running_loop().time()
        await made.fetch("ada", "bob")
        assert made.holders["zoe"].chunks == STATES[1]
        assert asyncio.get_running_loop().time() - started < 2.0

    run(main())


def test_donors_that_all_vanish_are_an_error_that_says_how_far_it_came() -> None:
    async def main() -> None:
        made = await scene(ada=1)
        fetching = asyncio.create_task(made.fetch("ada"))
        while len(made.holders["ada"].read) < 3:
            await asyncio.sleep(0.01)
        await made.memory.kill(peer("ada"))
        with pytest.raises(ShardUnavailable, match=r"got 1 of 6 chunks"):
            await fetching
        assert made.holders["zoe"].chunks == []

    run(main())


def test_silent_donors_cost_their_timeout_and_no_more() -> None:
    async def main() -> None:
        made = await scene(ada=1)

        async def sit(stream: Stream) -> None:
            await asyncio.Event().wait()

        for protocol in (INDEX, CHUNK):
            await made.transports["ada"].serve(protocol, sit)
        started = asyncio.get_running_loop().time()
        with pytest.raises(ShardUnavailable):
            await made.fetch("ada")
        assert asyncio.get_running_loop().time() - started < CALL_TIMEOUT_S + 1

    run(main())


@pytest.mark.parametrize(("num_silent", "within_s"), [(1, 0.5), (3, 0.5), (10, 8.0)])
def test_silent_donors_asked_first_keep_nobody_from_asking_the_others(
    num_silent: int, within_s: float
) -> None:
    async def main() -> None:
        silent = [f"silent{number}" for number in range(num_silent)]
        made = await scene(**dict.fromkeys((*silent, "ada"), 1))

        async def sit(stream: Stream) -> None:
            await asyncio.Event().wait()

        for name in silent:
            for protocol in (INDEX, CHUNK):
                await made.transports[name].serve(protocol, sit)
        await made.fetch(*silent, "ada")
        assert made.holders["zoe"].chunks == STATES[1]
        assert asyncio.get_running_loop().time() < within_s

    run(main())


def test_a_cancelled_fetch_leaves_the_replica_as_it_was() -> None:
    async def main() -> None:
        made = await scene(ada=1)
        made.memory.faults.extra_delay_s[peer("ada")] = 1.0
        fetching = asyncio.create_task(made.fetch("ada"))
        await asyncio.sleep(5.0)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        assert made.holders["zoe"].chunks == []

    run(main())


@pytest.mark.parametrize("index", [6, 999_999])
def test_a_chunk_that_the_state_does_not_have_is_refused(index: int) -> None:
    async def main() -> None:
        made = await scene(ada=1)
        with pytest.raises(Refused, match="not, or no longer, held"):
            await call(
                made.transports["zoe"],
                peer("ada"),
                CHUNK,
                ChunkRequest(name_of(1), index),
                bytes,
                timeout_s=5.0,
                max_bytes=2 * STATE_CHUNK_BYTES,
            )

    run(main())


def test_a_peer_that_asks_for_everything_and_reads_nothing_holds_a_few_chunks() -> None:
    async def main() -> None:
        made = await scene(ada=1)
        made.memory.faults.extra_delay_s[peer("ada")] = 0.5  # answers are on their way for a while

        async def ask(index: int) -> str:
            try:
                await call(
                    made.transports["zoe"],
                    peer("ada"),
                    CHUNK,
                    ChunkRequest(name_of(1), index % 6),
                    bytes,
                    timeout_s=30.0,
                    max_bytes=2 * STATE_CHUNK_BYTES,
                )
            except Refused as error:
                return str(error)
            return "served"

        answers = await asyncio.gather(*(ask(index) for index in range(40)))
        assert answers.count("served") == MAX_AT_ONCE
        assert not made.syncs["ada"]._num_served

    run(main())
