"""When a peer that others wait for counts as missing."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Container, Mapping, Set

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.averaging.forest import Forest
from tests.averaging.makers import peer
from tests.averaging.swarm import JOB_ID
from zoonet.averaging.allreduce import INLINE_BYTES
from zoonet.averaging.chunks import Kind, decode_header, indices_of
from zoonet.averaging.lateness import (
    AGREE_S,
    CLEARLY,
    EXCUSED_S,
    FIRST_S,
    SHORT,
    STALLED_S,
    Lateness,
)
from zoonet.averaging.reduction import Awaited
from zoonet.crypto import PeerId
from zoonet.errors import ZoonetError
from zoonet.transport import StreamLanes

ADA, BOB, CYD, DAN, EVE = (PeerId(name) for name in ("ada", "bob", "cyd", "dan", "eve"))
PAYLOAD_BYTES = 8 << 20
WINDOW_S = SHORT * FIRST_S  # of who has seen few attempts
USUAL_S = 2.0
EVERYBODY = frozenset((ADA, BOB, CYD, DAN, EVE))
Chunks = Callable[[float], float]  # that have come, by seconds


def usual_lateness(usual_s: float = USUAL_S, peers: Set[PeerId] = EVERYBODY) -> Lateness:
    lateness = Lateness(PAYLOAD_BYTES)
    lateness.lasted(usual_s, peers)
    lateness.begin()
    return lateness


def late_at(
    lateness: Lateness,
    until_s: float,
    come: Mapping[PeerId, Chunks],
    *,
    num_all: int = 40,
    waiting: Container[PeerId] = (),
    unserved: Container[PeerId] = (),
    unheard_s: tuple[float, float] = (math.inf, math.inf),
) -> dict[PeerId, float]:
    """When each peer was found late first, looking ten times a second; waiting ones say so.

    Nothing is heard of ada from the first to the second instant of `unheard_s`.
    """
    found: dict[PeerId, float] = {}
    for look in range(int(10 * until_s) + 1):
        elapsed_s = look / 10
        awaited = [
            Awaited(
                peer,
                min(num_all, int(chunks(elapsed_s))),
                num_all,
                is_mean=True,
                num_waits=look if peer in waiting else 0,
            )
            for peer, chunks in come.items()
        ]
        unheard = {ADA} if unheard_s[0] < elapsed_s < unheard_s[1] else ()
        for one in lateness.late(awaited, elapsed_s, unserved=unserved, unheard=unheard):
            found.setdefault(one, elapsed_s)
    return found


def steady(num_per_s: float) -> Chunks:
    return lambda elapsed_s: num_per_s * elapsed_s


def slowing(num_per_s: float, at_s: float, factor: float) -> Chunks:
    return lambda t: num_per_s * (min(t, at_s) + max(0.0, t - at_s) / factor)


def test_who_becomes_twenty_times_slower_is_late_within_a_window() -> None:
    """It would have taken 24 seconds more. The others were done after two."""
    come = {ADA: slowing(20.0, 0.8, 20.0), BOB: steady(20.0), CYD: steady(25.0)}
    found = late_at(usual_lateness(), 10.0, come)
    assert found.keys() == {ADA} and found[ADA] < max(USUAL_S, 0.8 + WINDOW_S) + 0.3


def test_whose_machine_was_busy_for_a_moment_is_not_late_for_it() -> None:
    """A second without a chunk is enough where bytes come; where none come it is not."""
    come: dict[PeerId, Chunks] = {
        ADA: lambda t: 20 * (min(t, 1.3) + max(0.0, t - 2.5)),
        BOB: steady(20.0),
        CYD: steady(25.0),
    }
    assert late_at(usual_lateness(), 4.0, come).keys() == {ADA}
    assert not late_at(usual_lateness(), 4.0, come, unheard_s=(1.8, 2.5))


@given(st.floats(0.1, 200.0), st.floats(0.0, 1.0), st.floats(1.0, 1.9))
def test_who_becomes_less_than_twice_as_slow_never_is(
    usual_s: float, at_share: float, factor: float
) -> None:
    """Whenever that happens and however long rounds take: a round anew would not be done before."""
    rate = 40 / usual_s
    come = {ADA: slowing(rate, at_share * usual_s, factor), BOB: steady(rate)}
    assert not late_at(usual_lateness(usual_s), min(60.0, 2 * usual_s), come)


@given(st.floats(0.1, 20.0), st.floats(0.0, 0.7), st.floats(20.0, 200.0))
def test_nobody_who_becomes_slow_costs_much_more_than_two_rounds(
    usual_s: float, at_share: float, factor: float
) -> None:
    """It is late or done a window after it became slow, and what waiting for it is worth."""
    rate = 40 / usual_s
    come = {ADA: slowing(rate, at_share * usual_s, factor), BOB: steady(rate)}
    seen_s = max(usual_s, at_share * usual_s + WINDOW_S)
    allowed_s = seen_s + CLEARLY * (AGREE_S + usual_s)
    found = late_at(usual_lateness(usual_s), allowed_s + 0.2, come)
    is_done = come[ADA](allowed_s) >= 40
    assert is_done or found.keys() == {ADA}


def test_who_always_was_slow_is_not_late_but_who_becomes_so_is() -> None:
    """The plan knows the slow line, and rounds take as long as it needs."""
    come = {ADA: steady(2.0), BOB: steady(100.0), CYD: steady(100.0)}
    assert not late_at(usual_lateness(20.0), 30.0, come)
    assert late_at(usual_lateness(1.0), 30.0, come).keys() == {ADA}


def test_a_new_peer_with_a_slow_line_is_given_more_time() -> None:
    come = {ADA: steady(5.0), BOB: steady(40.0), CYD: steady(40.0)}  # it needs eight seconds
    assert late_at(usual_lateness(1.0), 9.0, come).keys() == {ADA}
    assert not late_at(usual_lateness(1.0, EVERYBODY - {ADA}), 9.0, come)


def test_in_the_first_round_a_line_of_a_megabit_has_time() -> None:
    lateness = Lateness(PAYLOAD_BYTES)
    lateness.begin()
    assert not late_at(lateness, 70.0, {ADA: steady(0.6), BOB: steady(40.0)})


def test_who_trickles_is_late_in_the_first_round_too_before_its_work_would_be_done() -> None:
    lateness = Lateness(PAYLOAD_BYTES)
    lateness.begin()
    found = late_at(lateness, 200.0, {ADA: steady(0.01), BOB: steady(40.0)})
    assert found.keys() == {ADA}


def test_one_odd_round_does_not_make_others_usual() -> None:
    lateness = Lateness(PAYLOAD_BYTES)
    for elapsed_s in (60.0, 2.0, 2.0):
        lateness.lasted(elapsed_s, EVERYBODY)
    lateness.begin()
    assert late_at(lateness, 4.0, {ADA: slowing(20.0, 0.8, 20.0), BOB: steady(20.0)})


def test_the_last_chunk_is_waited_for_but_not_for_ever() -> None:
    """Bytes may trickle so that it is never silent, and the chunk never comes."""
    come: dict[PeerId, Chunks] = {ADA: lambda t: min(39.0, 20 * t), BOB: steady(20.0)}
    found = late_at(usual_lateness(), 30.0, come)
    assert found.keys() == {ADA} and found[ADA] > USUAL_S + AGREE_S + WINDOW_S


def test_who_waits_for_others_is_not_late_while_somebody_can_name_the_culprit() -> None:
    """Cyd's chunks come by way of bob, who says that it waits."""
    come = {ADA: steady(20.0), BOB: slowing(20.0, 0.8, 20.0)}
    assert not late_at(usual_lateness(), 10.0, come, waiting={BOB})
    assert late_at(usual_lateness(), 30.0, come, waiting={BOB}).keys() == {BOB}


def test_unless_it_waits_for_what_it_does_not_take_from_here() -> None:
    """Its line is slow in both directions."""
    come = {ADA: steady(20.0), BOB: slowing(20.0, 0.8, 20.0)}
    found = late_at(usual_lateness(), 10.0, come, waiting={BOB}, unserved={BOB})
    assert found.keys() == {BOB}
    assert not late_at(usual_lateness(), 10.0, come, waiting={BOB}, unserved={ADA})


def withheld(share: float) -> dict[PeerId, Chunks]:
    """Ada brings this share of its chunks at once, and nothing more. The others are done."""
    return {ADA: lambda t: 40 * share, BOB: lambda t: 40.0, CYD: lambda t: 40.0}


def test_who_is_new_and_says_that_it_waits_is_excused_no_longer_than_others() -> None:
    known, new = usual_lateness(), usual_lateness(peers=EVERYBODY - {ADA})
    assert late_at(known, 16.0, withheld(0.5), waiting={ADA}).keys() == {ADA}
    found = late_at(new, 60.0, withheld(0.5), waiting={ADA})
    assert found.keys() == {ADA} and found[ADA] < 8 * USUAL_S + 1.0


def test_going_on_without_who_is_new_takes_no_longer_than_usual() -> None:
    """It withholds but one chunk, of which nobody can say that it is not nearly here."""
    new = usual_lateness(peers=EVERYBODY - {ADA})
    found = late_at(new, 100.0, withheld(0.975), waiting={ADA})
    assert found.keys() == {ADA} and found[ADA] < 10 * USUAL_S


@pytest.mark.parametrize("usual_s", [10.0, 60.0, 200.0])
def test_where_rounds_are_long_waiting_is_no_excuse_for_a_multiple_of_them(usual_s: float) -> None:
    found = late_at(usual_lateness(usual_s), 2 * usual_s + 45.0, withheld(0.5), waiting={ADA})
    assert found.keys() == {ADA} and found[ADA] < usual_s + EXCUSED_S + 1.0


@pytest.mark.parametrize(("num_bytes", "most_s"), [(8 << 20, 75.0), (100 << 20, 445.0)])
def test_nor_is_it_for_minutes_where_nothing_is_known(num_bytes: int, most_s: float) -> None:
    lateness = Lateness(num_bytes)
    lateness.begin()
    found = late_at(lateness, 600.0, withheld(0.5), waiting={ADA})
    assert found.keys() == {ADA} and found[ADA] < most_s


def test_a_round_of_several_attempts_says_what_is_usual_while_no_whole_one_is_known() -> None:
    lateness = Lateness(PAYLOAD_BYTES)
    lateness.lasted(2.0, EVERYBODY - {ADA}, is_whole=False)
    lateness.begin()
    assert late_at(lateness, 20.0, withheld(0.5), waiting={ADA}).keys() == {ADA}
    lateness.lasted(20.0, EVERYBODY)
    lateness.begin()
    assert not late_at(lateness, 20.0, withheld(0.5))


def test_who_finds_all_others_slow_names_nobody() -> None:
    """The line that became slow is this peer's own; the others name it meanwhile."""
    slow = slowing(20.0, 0.8, 20.0)
    assert not late_at(usual_lateness(), 20.0, dict.fromkeys((ADA, BOB, CYD), slow))


def test_but_two_of_five_may_be_slow() -> None:
    slow, fast = slowing(20.0, 0.8, 20.0), steady(20.0)
    come = {ADA: slow, BOB: slow, CYD: fast, DAN: fast, EVE: fast}
    assert late_at(usual_lateness(), 20.0, come).keys() == {ADA, BOB}
    assert late_at(usual_lateness(), 20.0, {ADA: slow}).keys() == {ADA}


def test_those_who_wait_do_not_make_everybody_of_a_single_slow_one() -> None:
    """All wait for ada's part, so that all means are late."""
    come = {peer: slowing(20.0, 0.8, 20.0) for peer in (ADA, BOB, CYD)}
    found = late_at(usual_lateness(), 5.0, come, waiting={BOB, CYD})
    assert found.keys() == {ADA} and found[ADA] < max(USUAL_S, 0.8 + WINDOW_S) + 0.3


def test_what_came_while_this_process_was_away_is_no_measure() -> None:
    lateness = usual_lateness()
    for elapsed_s, num_come in ((0.0, 5), (1.5, 5), (3.0, 5)):
        awaited = [Awaited(ADA, num_come, 40, is_mean=False, num_waits=0)]
        is_late = bool(lateness.late(awaited, elapsed_s, awake_s=0.9 * WINDOW_S))
    assert not is_late
    assert lateness.late(awaited, 3.1, awake_s=2.0) == {ADA}


def test_after_an_accusation_windows_are_longer_until_an_attempt_succeeds() -> None:
    come = {ADA: slowing(80.0, 0.2, 80.0), BOB: steady(80.0)}
    lateness = usual_lateness(0.5)
    lateness.accuse()
    assert late_at(lateness, 10.0, come)[ADA] >= 2 * WINDOW_S
    lateness.succeed()
    lateness.begin()
    assert late_at(lateness, 10.0, come)[ADA] < 2 * WINDOW_S


def stalled_at(
    until_s: float,
    come: Mapping[PeerId, Chunks],
    *,
    is_whole: bool = False,
    waiting: Container[PeerId] = (),
    unserved: Container[PeerId] = (),
    num_bytes: int = PAYLOAD_BYTES,
) -> dict[PeerId, float]:
    """When each peer's chunks were found not to move first, where nothing is known yet."""
    lateness = Lateness(num_bytes)
    lateness.begin()
    found: dict[PeerId, float] = {}
    for look in range(int(10 * until_s) + 1):
        elapsed_s = look / 10
        num = {peer: min(40.0, chunks(elapsed_s)) for peer, chunks in come.items()}
        awaited = [
            Awaited(peer, int(n), 40, is_mean=True, num_waits=look if peer in waiting else 0)
            for peer, n in num.items()
        ]
        partly = {peer: None if is_whole else n - int(n) for peer, n in num.items()}
        for one in lateness.stalled(awaited, elapsed_s, partly, unserved=unserved):
            found.setdefault(one, elapsed_s)
    return found


@pytest.mark.parametrize("num_bytes", [8 << 20, 100 << 20])
def test_who_withholds_the_last_chunk_of_a_first_round_is_found_after_seconds(
    num_bytes: int,
) -> None:
    found = stalled_at(30.0, withheld(0.975), num_bytes=num_bytes)
    assert found.keys() == {ADA} and found[ADA] <= STALLED_S + 0.2


def test_so_is_who_sends_a_byte_of_it_now_and_then() -> None:
    """Ten bytes a second of a chunk of 64 KiB."""
    come = withheld(0.975) | {ADA: lambda t: 39 + 10 * t / 65536}
    assert stalled_at(30.0, come).keys() == {ADA}


def test_but_not_whose_line_is_slow() -> None:
    """64 kbit/s of a megabit go to this peer: a chunk of 800 KiB takes a hundred seconds."""
    come = withheld(0.975) | {ADA: lambda t: t / 100}
    assert not stalled_at(300.0, come, num_bytes=100 << 20)
    assert not stalled_at(300.0, come, num_bytes=100 << 20, is_whole=True)
    assert stalled_at(300.0, withheld(0.975), is_whole=True).keys() == {ADA}


def test_nor_who_waits_for_others_while_that_is_an_excuse_or_for_what_has_not_left_here() -> None:
    assert not stalled_at(60.0, withheld(0.975), unserved={ADA})
    assert not stalled_at(60.0, withheld(0.975), waiting={ADA})
    assert stalled_at(80.0, withheld(0.975), waiting={ADA}).keys() == {ADA}


def test_where_nobodys_chunks_move_it_may_be_this_peers_fault() -> None:
    come = dict.fromkeys((ADA, BOB, CYD), lambda t: 20.0)
    assert not stalled_at(60.0, come)
    assert stalled_at(60.0, {ADA: lambda t: 20.0}).keys() == {ADA}


def test_who_falls_silent_is_named_and_who_hears_nobody_suspects_itself_first() -> None:
    lateness = Lateness(PAYLOAD_BYTES)
    lateness.begin()
    everybody = {ADA, BOB}
    assert lateness.silent({ADA: FIRST_S + 0.1, BOB: 0.1}, everybody) == {ADA}
    assert not lateness.silent({ADA: FIRST_S + 0.1, BOB: FIRST_S + 0.1}, everybody)


class Ears:
    """Takes whatever is sent, and counts who says that it waits for others."""

    def __init__(self) -> None:
        self.num_said: Counter[PeerId] = Counter()
        self.awaited_bits = 0
        self.changed = asyncio.Event()

    def admit(self, peer_id: PeerId, header: bytes, num_bytes: int) -> memoryview:
        parsed = decode_header(header)
        if parsed.kind == Kind.ALIVE:
            self.num_said[peer_id] += 1
            self.awaited_bits |= parsed.bits
            self.changed.set()
        return memoryview(bytearray(num_bytes))

    def arrived(self, peer_id: PeerId, header: bytes) -> None: ...

    def ended(self, peer_id: PeerId, error: ZoonetError) -> None: ...

    async def until_said(self, *names: str) -> None:
        while not all(self.num_said[peer(name)] > 1 for name in names):
            await self.changed.wait()
            self.changed.clear()


@pytest.mark.parametrize("size", [1000, INLINE_BYTES // 4 + 1], ids=["small", "large"])
def test_who_waits_for_others_says_so_in_every_round_and_attempt(size: int) -> None:
    """Of a large vector, too, which is taken up in a thread while the event loop goes on."""
    names = ("ada", "bob", "cyd")

    async def main() -> None:
        forest, ears = Forest((*names, "dan"), size=size), Ears()
        await forest.serve(*names)  # dan brings nothing, so they wait
        await StreamLanes(forest.transport("dan")).serve(f"{JOB_ID}/reduce/1", ears)
        for index, number in ((0, 0), (0, 1), (1, 0)):
            forest.index, forest.number = index, number
            attempt = forest.attempt_of(forest.names)
            ears.num_said.clear()
            waiting = [asyncio.create_task(forest.average(name, attempt)) for name in names]
            async with asyncio.timeout(120.0):
                await ears.until_said(*names)
            assert peer("dan") in {attempt.plan.peers[at] for at in indices_of(ears.awaited_bits)}
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        await forest.close()

    asyncio.run(main())  # in real time, because of the threads
