"""Who is there at all: asked some at a time, whoever says nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tests.averaging.makers import empty_chain, grow
from zoonet.averaging.chain import Chain
from zoonet.averaging.roll_call import FRESH_S, NUM_AT_ONCE, RollCall
from zoonet.crypto import PeerId
from zoonet.errors import PeerUnreachable, ProtocolViolation
from zoonet.testing import run

ANSWER_S = 6.0


class Street:
    """Peers who want the job, of whom some answer."""

    def __init__(self, *wanted: str, chain: Chain | None = None) -> None:
        self.wanted = {PeerId(name) for name in wanted}
        self.chain = chain or empty_chain()
        self.silent: set[str] = set()
        self.gone: set[str] = set()
        self.asked: list[str] = []
        self.most_at_once = 0
        self._num_at_once = 0
        self.call = RollCall(lambda: self.chain, lambda: self.wanted, self.ask, answer_s=ANSWER_S)

    async def ask(self, peer: PeerId) -> None:
        self.asked.append(peer)
        self._num_at_once += 1
        self.most_at_once = max(self.most_at_once, self._num_at_once)
        try:
            await asyncio.sleep(1e9 if peer in self.silent else 0.05)
        finally:
            self._num_at_once -= 1
        if peer in self.gone:
            raise PeerUnreachable("gone")
        if peer == "rude":
            raise ProtocolViolation(peer, "nonsense")

    def play(self, story: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            calling = asyncio.create_task(self.call.run())
            try:
                await story()
            finally:
                calling.cancel()
                await asyncio.gather(calling, return_exceptions=True)

        run(main())


def now() -> float:
    return asyncio.get_running_loop().time()


def test_who_answers_is_there_and_who_does_not_is_not() -> None:
    street = Street("ada", "bob", "gone", "rude")
    street.gone = {"gone"}

    async def story() -> None:
        assert street.call.present() == set()
        await street.call.settled(60.0)
        assert now() < 1.0
        assert street.call.present() == {"ada", "bob"}

    street.play(story)


def test_many_silent_ones_keep_the_others_waiting_for_their_lots_only() -> None:
    crowd = [f"a{number:02}" for number in range(40)]
    street = Street(*crowd, "zoe")
    street.silent = set(crowd)

    async def story() -> None:
        await street.call.settled(60.0)
        assert now() < 3 * ANSWER_S + 1
        assert street.call.present() == {"zoe"}
        assert street.most_at_once == NUM_AT_ONCE

    street.play(story)


def test_waiting_for_answers_ends_with_its_time() -> None:
    street = Street("ada", "sit")
    street.silent = {"sit"}

    async def story() -> None:
        await street.call.settled(2.0)
        assert now() == pytest.approx(2.0)
        assert street.call.present() == {"ada"}

    street.play(story)


def test_who_stops_answering_is_missed_and_welcome_again() -> None:
    street = Street("ada")

    async def story() -> None:
        await street.call.settled(60.0)
        street.gone = {"ada"}
        await asyncio.sleep(FRESH_S + 1)
        assert street.call.present() == set()
        street.gone = set()
        await asyncio.sleep(5.0)
        assert street.call.present() == {"ada"}

    street.play(story)


def test_who_never_answers_is_asked_less_and_less_often() -> None:
    street = Street("gone")
    street.gone = {"gone"}

    async def story() -> None:
        await asyncio.sleep(3600.0)
        assert 50 < len(street.asked) < 80

    street.play(story)


def test_who_comes_by_itself_is_asked_again_at_once() -> None:
    street = Street("ada")
    street.gone = {"ada"}

    async def story() -> None:
        await asyncio.sleep(200.0)
        street.gone = set()
        street.call.knocked(PeerId("ada"))
        street.call.knocked(PeerId("a stranger"))
        await asyncio.sleep(1.0)
        assert street.call.present() == {"ada"}

    street.play(story)


def test_who_no_longer_wants_the_job_is_forgotten() -> None:
    street = Street("ada", "bob")

    async def story() -> None:
        await street.call.settled(60.0)
        street.wanted = {PeerId("bob")}
        assert street.call.present() == {"bob"}
        await asyncio.sleep(1.0)
        street.asked.clear()
        street.wanted = {PeerId("ada"), PeerId("bob")}
        await asyncio.sleep(1.0)
        assert street.asked == ["ada"]

    street.play(story)


def test_nobody_is_asked_once_the_job_is_founded() -> None:
    street = Street("ada", chain=grow(empty_chain(), "ada", "bob"))

    async def story() -> None:
        await asyncio.sleep(100.0)
        assert street.asked == []

    street.play(story)
