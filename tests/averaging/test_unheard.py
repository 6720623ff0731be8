"""Rounds that a peer never hears of, while others send it chunks of them."""

from __future__ import annotations

import asyncio

import numpy as np

from tests.averaging.forest import Forest
from tests.averaging.makers import peer
from tests.averaging.swarm import JOB_ID
from zoonet.averaging.allreduce import AttemptFailed
from zoonet.averaging.chunks import Header, Kind
from zoonet.averaging.unheard import MAX_OVER, MAX_SENDERS, MAX_WAITING, RoundKeys
from zoonet.crypto import PeerId
from zoonet.testing import run
from zoonet.transport import Lane, StreamLanes

ADA, BOB, MAL = (PeerId(name) for name in ("ada", "bob", "mal"))
PATIENCE_S = 8.0  # of a lane whose message nobody takes


def test_a_round_that_was_never_heard_of_blocks_its_senders_next_one_no_longer() -> None:
    async def main() -> None:
        forest = Forest(("ada", "bob", "cyd", "dan"))
        await forest.serve()
        others = [asyncio.create_task(forest.average(name)) for name in ("ada", "cyd", "dan")]
        await asyncio.sleep(0.5)  # bob has been sent chunks, and has not heard of the round
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        forest.index = 1
        began = asyncio.get_running_loop().time()
        found = await forest.average_all(forest.attempt_of(forest.names))
        assert not [one for one in found.values() if isinstance(one, AttemptFailed)]
        assert len({one.tobytes() for one in found.values() if isinstance(one, np.ndarray)}) == 1
        assert asyncio.get_running_loop().time() - began < 1.0
        await forest.close()

    run(main())


def test_a_strangers_chunks_of_a_round_that_nobody_heard_of_still_end_its_lane() -> None:
    async def main() -> None:
        forest = Forest(("ada", "bob", "cyd"))
        await forest.serve()
        ended = asyncio.Event()

        def note(lane: Lane, error: Exception) -> None:
            ended.set()

        lanes = StreamLanes(forest.transport("mal"))
        lane = await lanes.open(peer("ada"), f"{JOB_ID}/reduce/1", note)
        lane.post(Header(Kind.ALIVE, bytes(16), 0).encode(), b"")
        await asyncio.sleep(0.5)
        await forest.average_all()  # a round without the stranger
        lane.post(Header(Kind.ALIVE, bytes(16), 0).encode(), b"")
        async with asyncio.timeout(2 * PATIENCE_S):
            while not ended.is_set():
                lane.post(Header(Kind.ALIVE, bytes(16), 0).encode(), b"")
                await asyncio.sleep(1.0)
        await forest.close()

    run(main())


def test_what_a_sender_named_before_the_round_that_is_taken_up_is_left_behind() -> None:
    keys = RoundKeys()
    assert not keys.is_over(b"old", ADA)
    assert not keys.is_over(b"new", ADA)
    assert not keys.is_over(b"newer", ADA)
    keys.begin(b"new", {ADA, BOB})
    assert keys.is_over(b"old", ADA)
    assert not keys.is_over(b"newer", ADA)


def test_what_one_sender_names_means_nothing_for_others() -> None:
    keys = RoundKeys()
    keys.is_over(b"next", MAL)  # guessed before its time
    keys.begin(b"this", {ADA, MAL})
    assert keys.is_over(b"next", MAL)
    assert not keys.is_over(b"next", ADA)


def test_who_has_no_part_in_the_round_that_is_taken_up_goes_on_waiting() -> None:
    keys = RoundKeys()
    keys.is_over(b"junk", MAL)
    keys.begin(b"round", {ADA, BOB})
    assert not keys.is_over(b"junk", MAL)


def test_a_round_that_is_over_is_so_for_its_members_alone() -> None:
    keys = RoundKeys()
    keys.begin(b"round", {ADA})
    keys.end(b"round", {ADA})
    assert keys.is_over(b"round", ADA) and not keys.is_foreign(b"round", ADA)
    assert keys.is_foreign(b"round", MAL) and not keys.is_over(b"round", MAL)
    for number in range(MAX_OVER):
        keys.end(b"%d" % number, {ADA})
    assert not keys.is_over(b"round", ADA) and not keys.is_foreign(b"round", MAL)


def test_senders_and_their_rounds_are_bounded_and_whoever_still_asks_stays() -> None:
    keys = RoundKeys()
    strangers = [PeerId(f"stranger{number}") for number in range(MAX_SENDERS)]
    for stranger in strangers:
        keys.is_over(b"junk", stranger)
        keys.is_over(b"old", ADA)
    keys.begin(b"round", {ADA, *strangers})
    assert keys.is_over(b"old", ADA)
    assert not keys.is_over(b"junk", strangers[0])  # it was pushed out, and waits anew
    for number in range(MAX_WAITING):
        keys.is_over(b"%d" % number, ADA)
    assert not keys.is_over(b"old", ADA)
