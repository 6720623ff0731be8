"""A member that breaks the rules in rounds that honest peers coordinate."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import numpy as np
import pytest

from tests.attacks.hostile import (
    NUM_SLOTS,
    REDUCE,
    ROUND,
    Hostile,
    Outcome,
    survive,
)
from tests.averaging.swarm import NUM_PARAMETERS, contributed_slots
from zoonet.averaging.allreduce import FP32
from zoonet.averaging.chunks import Header, Kind
from zoonet.averaging.messages import (
    MAX_VIEW,
    Attempt,
    Beat,
    Done,
    Explained,
    Failed,
    Ready,
    Round,
    RoundResult,
    Start,
    Voted,
)
from zoonet.averaging.payload import make_payload
from zoonet.averaging.plan import chunk_bounds, receivers_of
from zoonet.crypto import PeerId
from zoonet.errors import ZoonetError
from zoonet.ranges import Ranges
from zoonet.transport import Lane, Stream, StreamLanes

Play = Callable[[Stream], Awaitable[None]]


def takes_part(
    play_of: Callable[[Hostile], Play], *, rounds: int = 2, **options: object
) -> Outcome:
    """A job with a member that attends every round and plays in its own way."""

    async def attack(hostile: Hostile) -> None:
        hostile.spawn(hostile.take_part(play_of(hostile)))

    outcome = survive(attack, **options)
    assert rounds_with(outcome) >= rounds, "it has hardly been there"
    return outcome


def rounds_with(outcome: Outcome) -> int:
    """How many rounds had the hostile peer among their members after it had turned."""
    mal = outcome.hostile[0].peer_id
    return sum(mal in link.result.members for link in outcome.chain.certificates[3:])


def beating(hostile: Hostile, play: Play) -> Play:
    """Play, and be alive meanwhile and afterwards."""

    async def both(stream: Stream) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(hostile.alive(stream))
            await play(stream)
            await asyncio.Event().wait()

    async def safely(stream: Stream) -> None:
        try:
            await both(stream)
        except* Exception as group:
            raise group.exceptions[0] from None

    return safely


async def each_attempt(
    hostile: Hostile,
    stream: Stream,
    answer: Callable[[Round, Attempt], Awaitable[None]],
    root: bytes = bytes(32),
) -> None:
    """Be done with all that was leased, and answer every attempt."""
    plan = await hostile.hear_plan(stream)
    await hostile.tell(stream, Done(slots=plan.slots_of(hostile.peer_id), root=root))
    while True:
        message = await hostile.hear(stream)
        if isinstance(message, Start):
            await answer(plan, message.attempt)


# --- it trains nothing, or says so --------------------------------------------------------------


def test_one_that_is_alive_and_never_done_is_left_out() -> None:
    outcome = takes_part(lambda me: beating(me, lambda stream: asyncio.sleep(0)))
    assert outcome.took_s < 90


@pytest.mark.parametrize(
    "slots",
    [(), ((0, 1),), ((0, NUM_SLOTS),), ((5, 2),), ((-1, 2),), ((0, 2**64 - 1),)],
)
def test_one_that_is_done_with_slots_it_was_not_leased_contributes_nothing(slots: Ranges) -> None:
    def play_of(hostile: Hostile) -> Play:
        async def done_at_once(stream: Stream) -> None:
            await hostile.hear_plan(stream)
            await hostile.tell(stream, Done(slots=slots))

        return beating(hostile, done_at_once)

    outcome = takes_part(play_of)
    assert outcome.took_s < 60
    mal = outcome.hostile[0].peer_id
    for link in outcome.chain.certificates[3:]:
        assert mal not in [share.peer for share in link.result.contributions]


def test_one_that_claims_an_absurd_speed_gets_eight_times_the_usual_at_most() -> None:
    async def attack(hostile: Hostile) -> None:
        play = beating(hostile, lambda stream: asyncio.sleep(0))
        hostile.spawn(hostile.take_part(play, slots_per_s=1e6))

    assert survive(attack).took_s < 90


def test_one_that_claims_all_the_work_as_done_keeps_nobody_from_working() -> None:
    async def attack(hostile: Hostile) -> None:
        play = beating(hostile, lambda stream: asyncio.sleep(0))
        hostile.spawn(hostile.take_part(play, leased=((0, NUM_SLOTS),)))
        hostile.spawn(hostile.take_part(play, leased=hostile.chain.free))

    assert survive(attack).took_s < 90


def test_one_that_claims_work_in_hundreds_of_pieces_breaks_no_plan() -> None:
    """The plan would have become longer than a record may be."""
    crumbs = tuple((slot, slot + 1) for slot in range(100, 1100, 2))

    async def attack(hostile: Hostile) -> None:
        play = beating(hostile, lambda stream: asyncio.sleep(0))
        hostile.spawn(hostile.take_part(play, leased=crumbs))

    assert survive(attack, num_slots=1200, after_rounds=1).took_s < 200


# --- it fails the attempts ----------------------------------------------------------------------


@pytest.mark.parametrize("accuses", ["everyone", "one", "nobody", "itself", "strangers"])
def test_one_that_fails_every_attempt_costs_its_own_contribution(accuses: str) -> None:
    def play_of(hostile: Hostile) -> Play:
        async def fail(plan: Round, attempt: Attempt, stream: Stream) -> None:
            others = [peer for peer in attempt.contributors if peer != hostile.peer_id]
            missing = {
                "everyone": others,
                "one": others[:1],
                "nobody": [],
                "itself": [hostile.peer_id],
                "strangers": ["x", "y" * 64],
            }[accuses]
            await hostile.tell(
                stream,
                Failed(number=attempt.number, missing=tuple(missing)),
            )

        return beating(
            hostile,
            lambda stream: each_attempt(
                hostile, stream, lambda plan, attempt: fail(plan, attempt, stream)
            ),
        )

    outcome = takes_part(play_of)
    assert outcome.took_s < 120


def test_one_that_sends_no_parts_costs_an_attempt_a_round() -> None:
    def play_of(hostile: Hostile) -> Play:
        return beating(
            hostile,
            lambda stream: each_attempt(hostile, stream, lambda plan, attempt: asyncio.sleep(0)),
        )

    async def attack(hostile: Hostile) -> None:
        await StreamLanes(hostile.transport).serve(REDUCE, Deaf())
        hostile.spawn(hostile.take_part(play_of(hostile)))

    outcome = survive(attack)
    assert outcome.took_s < 300
    mal = outcome.hostile[0].peer_id
    assert all(
        mal not in [share.peer for share in link.result.contributions]
        for link in outcome.chain.certificates[3:]
    )


# --- it votes wrongly ---------------------------------------------------------------------------


class Deaf:
    """Takes whatever is sent and does nothing with it."""

    def admit(self, peer_id: PeerId, header: bytes, num_bytes: int) -> memoryview:
        return memoryview(bytearray(num_bytes))

    def arrived(self, peer_id: PeerId, header: bytes) -> None: ...

    def ended(self, peer_id: PeerId, error: ZoonetError) -> None: ...


class TwoFaced:
    """A member that commits to zeros, sends them, and gives everyone another mean."""

    def __init__(self, hostile: Hostile) -> None:
        self.hostile = hostile
        self.lanes = StreamLanes(hostile.transport)
        self.payload = make_payload(np.zeros(NUM_PARAMETERS, np.float32), FP32)
        self.open: dict[str, Lane] = {}

    async def serve(self) -> None:
        await self.lanes.serve(REDUCE, Deaf())

    async def lane(self, peer: PeerId) -> Lane:
        if peer not in self.open:
            self.open[peer] = await self.lanes.open(peer, REDUCE, lambda lane, error: None)
        return self.open[peer]

    async def play(self, attempt: Attempt) -> None:
        plan, key = attempt.plan, attempt.round_key()
        me = plan.peers.index(self.hostile.peer_id)
        for peer in attempt.contributors:
            if peer != self.hostile.peer_id:
                header = Header(Kind.COMMITMENT, key, attempt.number)
                (await self.lane(peer)).post(header.encode(), self.payload.digests)
        everyone = sum(1 << plan.peers.index(peer) for peer in attempt.contributors)
        for tree in plan.trees:
            for chunk in range(tree.first, tree.stop):
                start, stop = chunk_bounds(NUM_PARAMETERS, chunk)
                if tree.root != me:
                    part = Header(Kind.PART, key, attempt.number, chunk, bits=1 << me).encode()
                    root = await self.lane(PeerId(plan.peers[tree.root]))
                    root.post(part, bytes(self.payload.chunk(chunk) or b""))
                    continue
                for receiver in receivers_of(plan, tree, me):
                    mean = Header(Kind.MEAN, key, attempt.number, chunk, me, everyone).encode()
                    face = np.full(stop - start, receiver, np.float32)
                    lane = await self.lane(PeerId(plan.peers[receiver]))
                    lane.post(mean, face.tobytes())


def test_a_reducer_that_gives_everyone_another_mean_costs_an_attempt_a_round() -> None:
    """It would keep every round from its certificate."""

    async def attack(hostile: Hostile) -> None:
        two_faced = TwoFaced(hostile)
        await two_faced.serve()

        async def average(plan: Round, attempt: Attempt, stream: Stream) -> None:
            if hostile.peer_id in attempt.contributors:
                await two_faced.play(attempt)
            await hostile.tell(stream, Voted(number=attempt.number, result=bytes(32)))

        hostile.spawn(
            hostile.take_part(
                beating(
                    hostile,
                    lambda stream: each_attempt(
                        hostile,
                        stream,
                        lambda plan, attempt: average(plan, attempt, stream),
                        root=two_faced.payload.root,
                    ),
                )
            )
        )

    outcome = survive(attack, after_rounds=1)
    assert outcome.took_s < 200
    mal = outcome.hostile[0].peer_id
    assert any(mal in link.result.members for link in outcome.chain.certificates[2:])
    assert all(
        mal not in [share.peer for share in link.result.contributions]
        for link in outcome.chain.certificates[2:]
    )


@pytest.mark.parametrize("honest", [("ada",), ("ada", "bob")])
@pytest.mark.parametrize("votes", ["nothing", "garbage", "another state"])
def test_one_whose_vote_is_needed_and_wrong_is_soon_done_without(
    honest: tuple[str, ...], votes: str
) -> None:
    """With one or two honest peers; two more of its kind make a quorum impossible."""

    async def attack(hostile: Hostile) -> None:
        async def vote(plan: Round, attempt: Attempt, stream: Stream) -> None:
            if votes == "nothing":
                return
            if votes == "another state":
                result = RoundResult(
                    job_id=plan.job_id,
                    index=plan.index,
                    view=plan.view,
                    parent=plan.parent,
                    members=plan.members,
                    joiners=plan.joiners,
                    contributions=attempt.contributions,
                    state=hostile.peer_id.encode()[:32],
                )
                for victim in hostile.victims:
                    await hostile.vote(victim, result)
            await hostile.tell(stream, Voted(number=attempt.number, result=bytes(32)))

        async def play(stream: Stream) -> None:
            plan = await hostile.hear_plan(stream)
            await hostile.tell(stream, Done(slots=()))
            while True:
                message = await hostile.hear(stream)
                if isinstance(message, Start):
                    await vote(plan, message.attempt, stream)

        hostile.spawn(hostile.take_part(beating(hostile, play)))

    members = ("mal", "max")[: 1 if len(honest) == 1 else 2]
    outcome = survive(attack, honest=honest, members=members, num_slots=150, within_s=3600)
    assert outcome.took_s < 600
    for hostile in outcome.hostile:
        assert hostile.peer_id not in outcome.chain.last.members


# --- it takes too much ------------------------------------------------------------------------


def test_one_that_reads_nothing_holds_up_nobody() -> None:
    """Beats and plans for it pile up while the others wait for theirs."""

    async def deaf(stream: Stream) -> None:
        while True:
            await asyncio.sleep(3600)

    async def attack(hostile: Hostile) -> None:
        for _ in range(3):
            hostile.spawn(hostile.take_part(deaf))

    assert survive(attack).took_s < 60


def test_one_that_talks_without_an_end_holds_up_nobody() -> None:
    def play_of(hostile: Hostile) -> Play:
        async def flood(stream: Stream) -> None:
            frames = [
                msgspec.msgpack.encode(message)
                for message in (
                    Beat(num_slots=2**60),
                    hostile.ready(),
                    Done(slots=((0, 1),) * 1000),
                    Failed(number=2**60, missing=("x",) * 256),
                    Voted(number=2**60, result=bytes(32)),
                    Explained(number=2**60, slices=(bytes(32),) * 256),
                )
            ]
            while True:
                for frame in frames:
                    await stream.send(frame)

        return flood

    outcome = takes_part(play_of, num_slots=120, after_rounds=1, rounds=1)
    assert outcome.took_s < 60


@pytest.mark.parametrize("frame", [b"", b"\xc1", bytes(2**18 + 1)], ids=len)
def test_one_that_talks_nonsense_is_lost(frame: bytes) -> None:
    def play_of(hostile: Hostile) -> Play:
        async def nonsense(stream: Stream) -> None:
            await stream.send(frame)
            await hostile.beat(stream)

        return nonsense

    assert takes_part(play_of).took_s < 60


def test_one_that_comes_in_every_view_at_once_opens_no_seat_after_the_other() -> None:
    """Each view that it asked for made a coordinator of its own, for ever."""

    async def attack(hostile: Hostile) -> None:
        async def come(view: int) -> None:
            while True:
                for victim in hostile.victims:
                    await hostile.attend(
                        victim, hostile.ready(view=view), lambda stream: asyncio.sleep(0.2)
                    )

        for view in (*range(60), MAX_VIEW - 1, MAX_VIEW):
            hostile.spawn(come(view))

    outcome = survive(attack, num_slots=150)
    assert outcome.took_s < 60
    assert outcome.most_tasks < 62 * 6 + 100


def test_one_that_sits_down_first_does_not_lead_the_round_in_anothers_name() -> None:
    """It attends bob's seat before bob does, so that bob would plan with it alone."""

    async def attack(hostile: Hostile) -> None:
        async def hurry() -> None:
            while True:
                for view in range(4):
                    for victim in hostile.victims:
                        hostile.spawn(
                            hostile.attend(victim, hostile.ready(view=view), hostile.beat)
                        )
                await asyncio.sleep(1.0)

        hostile.spawn(hurry())

    outcome = survive(attack, num_slots=150)
    assert outcome.took_s < 90
    assert all(len(link.result.members) >= 3 for link in outcome.chain.certificates)


def test_a_vote_of_one_ends_nobodys_round() -> None:
    """It certifies itself, as the only member, with all the slots that are left."""

    async def attack(hostile: Hostile) -> None:
        async def proclaim() -> None:
            while True:
                for victim in hostile.victims:
                    await hostile.vote(victim, hostile.result())
                await asyncio.sleep(0.2)

        hostile.spawn(proclaim())

    outcome = survive(attack)
    assert outcome.took_s < 60
    assert contributed_slots(outcome.chain) == list(range(NUM_SLOTS))
    assert all(len(link.result.members) >= 3 for link in outcome.chain.certificates)


def test_a_chain_that_one_has_certified_alone_is_followed_by_nobody() -> None:
    """It has every slot there is, and more certified slots used to win."""

    async def attack(hostile: Hostile) -> None:
        from tests.averaging.makers import certified

        forged = hostile.chain.copy_until(len(hostile.chain))
        forged.extend(certified(hostile.result(), ["mal"]))
        assert forged.is_finished

        async def show() -> None:
            while True:
                await hostile.show_chain(forged)
                await asyncio.sleep(0.5)

        hostile.spawn(show())

    outcome = survive(attack)
    assert outcome.took_s < 60
    assert all(len(link.result.members) >= 3 for link in outcome.chain.certificates)


def test_ready_is_refused_with_figures_that_are_no_figures() -> None:
    async def attack(hostile: Hostile) -> None:
        good = msgspec.to_builtins(hostile.ready(), builtin_types=(bytes,))
        wrong = [
            {"slots_per_s": float("nan")},
            {"slots_per_s": -1.0},
            {"slots_per_s": 1e7},
            {"view": -1},
            {"view": MAX_VIEW + 1},
            {"view": 2**70 // 2**7},
            {"length": -5},
            {"leased": [[0, 1]] * 5000},
            {"head": b"short"},
            {"surprise": 1},
        ]

        async def knock() -> None:
            for fields in wrong:
                for victim in hostile.victims:
                    stream = await hostile.transport.open(victim, ROUND)
                    await stream.send(msgspec.msgpack.encode({**good, **fields}))

        await knock()

    assert survive(attack).took_s < 60
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(
            msgspec.msgpack.encode({"type": "ready", "slots_per_s": float("nan")}), type=Ready
        )
