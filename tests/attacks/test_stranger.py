"""Peers that are no members: strangers with a key, or with a thousand keys, and joiners."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attacks.hostile import (
    CHAIN,
    CHUNK,
    HONEST,
    INDEX,
    REDUCE,
    ROUND,
    VOTE,
    Hostile,
    as_strangers,
    stranger,
)
from tests.averaging.makers import certified, empty_chain, result_after
from tests.averaging.swarm import Swarm, contributed_slots, identity_of
from zoonet.averaging import RoundsConfig
from zoonet.averaging.chain_sync import ChainPage, ChainRequest
from zoonet.averaging.messages import Share
from zoonet.averaging.state_sync import ChunkRequest, IndexRequest
from zoonet.averaging.votes import VoteCast
from zoonet.errors import ProtocolViolation, TransportError
from zoonet.testing import run
from zoonet.transport import MAX_FRAME_BYTES, Stream, call
from zoonet.transport.stream_lanes import protocol_of

ALL = (ROUND, VOTE, CHAIN, INDEX, CHUNK, protocol_of(REDUCE))
SYBILS = tuple(f"sybil{number}" for number in range(40))


async def knock(hostile: Hostile, protocol: str, *frames: bytes) -> list[Stream]:
    """Open a stream to each victim and say something."""
    streams = []
    for victim in hostile.victims:
        with contextlib.suppress(TransportError):
            stream = await hostile.transport.open(victim, protocol)
            for frame in frames:
                await stream.send(frame)
            streams.append(stream)
    return streams


# --- garbage ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ALL)
@pytest.mark.parametrize(
    "frame", [b"", b"\xc1", b"\x91" * 5000, bytes(2**20 + 1), bytes(MAX_FRAME_BYTES)], ids=len
)
def test_garbage_ends_its_own_stream_only(protocol: str, frame: bytes) -> None:
    async def attack(hostile: Hostile) -> None:
        for _ in range(5):
            await knock(hostile, protocol, frame)

    outcome = as_strangers(attack, num_slots=60)
    assert outcome.took_s < 15 and outcome.most_tasks < 120


def garble(frame: bytes, changes: list[tuple[int, int]]) -> bytes:
    raw = bytearray(frame)
    for at, value in changes:
        raw[at % len(raw)] = value
    return bytes(raw)


@settings(max_examples=12)
@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1, max_size=6))
def test_messages_with_any_bytes_changed_end_their_own_stream_only(
    changes: list[tuple[int, int]],
) -> None:
    async def attack(hostile: Hostile) -> None:
        chain, encode = hostile.chain, msgspec.msgpack.encode
        result = result_after(chain, HONEST)
        honest = {
            ROUND: encode(hostile.ready()),
            VOTE: encode(VoteCast(result, certified(result, ["mal"]).votes[0])),
            CHAIN: encode(ChainRequest(0, 1.0, True)),
            INDEX: encode(IndexRequest(chain.last.state)),
            CHUNK: encode(ChunkRequest(chain.last.state, 0)),
        }
        for protocol, frame in honest.items():
            await knock(hostile, protocol, garble(frame, changes))

    outcome = as_strangers(attack, num_slots=60, after_rounds=1)
    assert outcome.took_s < 30


@pytest.mark.parametrize("protocol", ALL)
def test_streams_that_are_opened_and_left_alone_are_closed_in_time(protocol: str) -> None:
    async def main() -> None:
        swarm = Swarm(10_000, RoundsConfig(inner_steps=10, min_founders=3))
        for name in HONEST:
            await swarm.add(name)
        swarm.start()
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 2)
        mal = stranger(swarm)
        before = len(asyncio.all_tasks())
        for _ in range(30):
            await knock(mal, protocol)
        assert len(asyncio.all_tasks()) > before + 60
        await asyncio.sleep(40.0)
        assert len(asyncio.all_tasks()) < before + 30
        for name in HONEST:
            await swarm.kill(name)

    run(main())


# --- rounds -------------------------------------------------------------------------------------


def test_many_who_attend_and_say_nothing_get_no_work_and_hold_up_nobody_for_long() -> None:
    """Forty strangers come to every round and never apply, train or answer."""

    async def attack(hostile: Hostile) -> None:
        async def come() -> None:
            while True:
                for victim in hostile.victims:
                    for view in range(3):
                        await hostile.attend(
                            victim, hostile.ready(view=view), lambda stream: asyncio.sleep(0.3)
                        )

        hostile.spawn(come())

    outcome = as_strangers(attack, *SYBILS, num_slots=150)
    assert outcome.took_s < 60
    for link in outcome.chain.certificates:
        contributors = {share.peer for share in link.result.contributions}
        assert contributors <= set(victims_of(outcome.swarm))


def victims_of(swarm: Swarm) -> list[str]:
    return [swarm.peers[name].peer_id for name in HONEST]


def test_many_who_apply_and_never_come_cost_each_round_a_moment() -> None:
    async def attack(hostile: Hostile) -> None:
        async def apply() -> None:
            while True:
                await hostile.apply()
                await asyncio.sleep(1.0)

        hostile.spawn(apply())

    outcome = as_strangers(attack, *SYBILS)
    assert outcome.took_s < 60


@pytest.mark.parametrize("num_joiners", [1, 6])
@pytest.mark.parametrize("comes_in_time", [False, True])
def test_joiners_that_never_fetch_train_or_vote_cost_learned_times(
    num_joiners: int, *, comes_in_time: bool
) -> None:
    """Each is let in by a round, comes back for a moment, is planned with, and is gone again."""

    async def attack(hostile: Hostile) -> None:
        async def join_and_vanish() -> None:
            while True:
                await hostile.apply()
                turns = hostile.chain.turns if comes_in_time else hostile.chain.roster
                for victim in hostile.victims:
                    await hostile.attend(
                        victim,
                        hostile.ready(view=turns.index(victim)),
                        lambda stream: asyncio.sleep(0.5),
                    )

        hostile.spawn(join_and_vanish())

    outcome = as_strangers(attack, *SYBILS[:num_joiners])
    assert outcome.took_s < 60


def test_joiners_that_stay_and_do_nothing_are_done_without() -> None:
    async def attack(hostile: Hostile) -> None:
        hostile.spawn(hostile.take_part(hostile.beat))

    outcome = as_strangers(attack, "mal", "max", num_slots=600, within_s=3600)
    assert outcome.took_s < 180
    mal = outcome.hostile[0].peer_id
    joined = [link for link in outcome.chain.certificates if mal in link.result.joiners]
    assert joined, "it was never let in"


# --- votes and chains ---------------------------------------------------------------------------


def test_votes_of_strangers_end_nobodys_round() -> None:
    async def attack(hostile: Hostile) -> None:
        async def vote() -> None:
            while True:
                for victim in hostile.victims:
                    await hostile.vote(victim, hostile.result())
                    await hostile.vote(victim, hostile.result(index=10**6, parent=bytes(32)))
                await asyncio.sleep(0.1)

        hostile.spawn(vote())

    outcome = as_strangers(attack, *SYBILS[:10])
    assert outcome.took_s < 40


def test_a_vote_founds_no_job_over_the_heads_of_those_who_are_about_to() -> None:
    async def attack(hostile: Hostile) -> None:
        async def vote() -> None:
            while True:
                share = Share(hostile.peer_id, ((0, 300),))
                for victim in hostile.victims:
                    await hostile.vote(victim, hostile.result(share))
                await asyncio.sleep(0.05)

        hostile.spawn(vote())

    outcome = as_strangers(attack, after_rounds=0)
    assert outcome.took_s < 40
    assert len(outcome.chain.certificates[0].result.members) == 3


def test_a_vote_with_hundreds_of_thousands_of_slots_takes_no_time_to_refuse() -> None:
    async def main() -> None:
        swarm = Swarm(10**7, RoundsConfig(inner_steps=10, min_founders=3))
        for name in HONEST:
            await swarm.add(name)
        swarm.start()
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 1)
        mal = stranger(swarm)
        pieces = tuple((at, at + 1) for at in range(100, 2100, 2))
        result = mal.result(
            members=swarm.peers["ada"].chain.roster,
            contributions=tuple(Share(one, pieces) for one in swarm.peers["ada"].chain.roster * 30),
        )
        for _ in range(20):
            await mal.vote(swarm.peers["ada"].peer_id, result)
        for name in HONEST:
            await swarm.kill(name)

    run(main())


def test_strangers_that_claim_better_chains_and_show_none_hold_up_nobody() -> None:
    async def attack(hostile: Hostile) -> None:
        async def sit(stream: Stream) -> None:
            await asyncio.Event().wait()

        await hostile.transport.serve(CHAIN, sit)

        async def boast() -> None:
            number = 0
            while True:
                number += 1
                for peer in list(hostile.swarm.peers.values()):
                    head = number.to_bytes(32, "big")
                    peer.participant.hint(hostile.peer_id, 10**9, head)
                await asyncio.sleep(0.2)

        hostile.spawn(boast())

    outcome = as_strangers(attack, *SYBILS)
    assert outcome.took_s < 20 and outcome.most_tasks < 400


@pytest.mark.parametrize(
    "fields",
    [{"length": 10**9}, {"head": bytes(32)}, {"job_id": "f" * 32}, {"certificates": ()}],
)
def test_pages_of_nonsense_are_not_followed(fields: dict[str, object]) -> None:
    async def attack(hostile: Hostile) -> None:
        honest = hostile.chain

        async def answer(stream: Stream) -> None:
            ask = msgspec.msgpack.decode(await stream.receive(), type=ChainRequest)
            start = min(ask.start, len(honest))
            page = ChainPage(
                job_id=honest.job_id,
                length=len(honest),
                head=honest.head,
                num_done=honest.num_done,
                parent=honest.head_at(start),
                certificates=tuple(honest.certificates[start : start + 2]),
            )
            page = msgspec.structs.replace(page, **fields)
            await stream.send(b"\x00" + msgspec.msgpack.encode(page))

        await hostile.transport.serve(CHAIN, answer)
        for peer in list(hostile.swarm.peers.values()):
            peer.participant.hint(hostile.peer_id, 10**9, bytes(32))

    assert as_strangers(attack).took_s < 20


def test_a_chain_that_a_stranger_founded_alone_is_not_followed_by_those_who_are_more() -> None:
    async def attack(hostile: Hostile) -> None:
        forged = empty_chain(300)
        forged.extend(certified(result_after(forged, ["mal"], slots={"mal": ((0, 300),)}), ["mal"]))

        async def show() -> None:
            while True:
                await hostile.show_chain(forged)
                await asyncio.sleep(0.5)

        hostile.spawn(show())

    outcome = as_strangers(attack)
    assert outcome.took_s < 20
    assert len(outcome.chain) > 1


# --- data -----------------------------------------------------------------------------------------


def test_strangers_that_fetch_the_state_again_and_again_hold_up_nobody() -> None:
    async def attack(hostile: Hostile) -> None:
        async def fetch() -> None:
            while True:
                state = hostile.chain.last.state
                for victim in hostile.victims:
                    with contextlib.suppress(TransportError, ProtocolViolation):
                        await call(
                            hostile.transport,
                            victim,
                            CHUNK,
                            ChunkRequest(state, 0),
                            bytes,
                            timeout_s=5.0,
                        )

        for _ in range(8):
            hostile.spawn(fetch())

    outcome = as_strangers(attack, *SYBILS[:5], num_slots=90)
    assert outcome.took_s < 15


def test_a_honest_newcomer_gets_in_while_strangers_crowd_the_door() -> None:
    async def main() -> None:
        swarm = Swarm(2000, RoundsConfig(inner_steps=10, min_founders=3))
        for name in HONEST:
            await swarm.add(name)
        swarm.start()
        ada = swarm.peers["ada"]
        await swarm.until(lambda: len(ada.chain) == 2)
        crowd = [stranger(swarm, name) for name in SYBILS[:20]]
        for one in crowd:
            one.spawn(one.take_part(one.beat))
        eve = await swarm.add("eve")
        swarm.start("eve")
        await swarm.until(
            lambda: (
                ada.chain.last is not None
                and eve.peer_id in [share.peer for share in ada.chain.last.contributions]
            ),
            within_s=300.0,
        )
        for one in crowd:
            for task in one.tasks:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for name in (*HONEST, "eve"):
            await swarm.kill(name)

    run(main())


# --- not prevented yet ----------------------------------------------------------------------------


def test_not_prevented_yet_a_member_may_contribute_any_finite_vector() -> None:
    """Nobody re-computes what a member says that its training came to."""

    async def main() -> Swarm:
        swarm = Swarm(120, RoundsConfig(inner_steps=10, min_founders=3))
        for name in HONEST:
            await swarm.add(name)
        swarm.start()
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 1)
        swarm.peers["bob"].replica.local_P += 1e6
        await swarm.finish()
        return swarm

    swarm = run(main())
    assert abs(swarm.peers["ada"].replica.theta_P).max() > 1e5
    assert contributed_slots(swarm.peers["ada"].chain) == list(range(120))


def test_not_prevented_yet_more_keys_than_founders_may_found_another_chain() -> None:
    """The first round is anyone's: whoever makes up more members than there are wins the split."""

    async def main() -> Swarm:
        swarm = Swarm(2000, RoundsConfig(inner_steps=10, min_founders=3))
        for name in HONEST:
            await swarm.add(name)
        swarm.start()
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 2)
        mal = stranger(swarm)
        crowd = ("mal", *SYBILS[:4])
        forged = empty_chain(2000)
        forged.extend(certified(result_after(forged, crowd, slots={"mal": ((0, 2000),)}), crowd))
        await mal.show_chain(forged)
        await swarm.until(lambda: swarm.peers["ada"].chain.is_finished)
        for name in HONEST:
            await swarm.kill(name)
        return swarm

    run(main())


def test_not_prevented_yet_most_of_the_roster_may_certify_what_it_likes() -> None:
    async def attack(hostile: Hostile) -> None:
        crowd = ("mal", "max", "moe")
        forged = hostile.chain.copy_until(len(hostile.chain))
        result = hostile.result(
            Share(hostile.peer_id, forged.free),
            members=tuple(sorted(identity_of(name).peer_id for name in crowd)),
        )
        forged.extend(certified(result, crowd))
        await hostile.show_chain(forged)

    async def main() -> None:
        names = (*HONEST[:2], "mal", "max", "moe")
        swarm = Swarm(2000, RoundsConfig(inner_steps=10, min_founders=5))
        for name in names:
            await swarm.add(name)
        swarm.start()
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 2)
        for name in ("mal", "max", "moe"):
            await swarm.kill(name)
        mal = stranger(swarm)
        mal.spawn(attack(mal))
        await swarm.until(lambda: swarm.peers["ada"].chain.is_finished)
        for name in HONEST[:2]:
            await swarm.kill(name)

    run(main())
