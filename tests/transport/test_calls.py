"""One question, one answer: every way in which the other side can get it wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Annotated

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct

from tests.records.bodies import identity_of
from zoonet.crypto import PeerId
from zoonet.errors import (
    PeerTimeout,
    PeerUnreachable,
    ProtocolViolation,
    ShardUnavailable,
    StreamClosed,
)
from zoonet.testing import MemorySwarm, MemoryTransport, run
from zoonet.transport import MAX_CALL_BYTES, Refused, Stream, call, local_pair, serve_calls
from zoonet.transport.calls import REPLY_TIMEOUT_S, REQUEST_TIMEOUT_S, parse_reply

ADA, BOB = identity_of("ada"), identity_of("bob")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Question(Struct, frozen=True, forbid_unknown_fields=True):
    number: Annotated[int, Meta(ge=0, le=9)]


class Reply(Struct, frozen=True, forbid_unknown_fields=True):
    text: Annotated[str, Meta(max_length=20)]


async def say_it_in_words(peer: PeerId, question: Question) -> Reply:
    assert peer == ADA.peer_id
    if question.number == 7:
        raise ShardUnavailable("seven is " + "held elsewhere " * 100)
    return Reply(WORDS[question.number])


async def served() -> tuple[MemoryTransport, MemoryTransport]:
    swarm = MemorySwarm()
    (ada, _), (bob, _) = swarm.peer(ADA), swarm.peer(BOB)
    await serve_calls(bob, "words", Question, say_it_in_words)
    return ada, bob


async def ask(ada: MemoryTransport, number: int, *, timeout_s: float = 5.0) -> Reply:
    return await call(ada, BOB.peer_id, "words", Question(number), Reply, timeout_s=timeout_s)


async def answered_by(handler: Callable[[Stream], Awaitable[None]], **limits: int) -> Reply:
    """Ask a peer whose side of the protocol is written by hand."""
    swarm = MemorySwarm()
    (ada, _), (bob, _) = swarm.peer(ADA), swarm.peer(BOB)
    await bob.serve("words", handler)
    return await call(ada, BOB.peer_id, "words", Question(1), Reply, timeout_s=5.0, **limits)


def replying(frame: bytes) -> Callable[[Stream], Awaitable[None]]:
    async def handler(stream: Stream) -> None:
        await stream.receive()
        await stream.send(frame)

    return handler


def test_a_question_is_answered() -> None:
    async def main() -> None:
        ada, _ = await served()
        assert await ask(ada, 3) == Reply("three")

    run(main())


def test_a_refusal_says_why_in_at_most_500_bytes() -> None:
    async def main() -> None:
        ada, _ = await served()
        with pytest.raises(Refused, match="seven is held elsewhere") as caught:
            await ask(ada, 7)
        assert len(str(caught.value)) < 600

    run(main())


def test_a_question_out_of_bounds_ends_its_own_stream_only() -> None:
    async def main() -> None:
        ada, bob = await served()
        with pytest.raises(StreamClosed):
            await ask(ada, 10)
        assert [type(error) for error in bob.failures] == [ProtocolViolation]
        assert bob.failures[0].peer == ADA.peer_id
        assert await ask(ada, 1) == Reply("one")

    run(main())


@given(st.binary(max_size=200))
def test_any_bytes_for_a_question_end_their_own_stream_only(frame: bytes) -> None:
    async def main() -> None:
        ada, bob = await served()
        stream = await ada.open(BOB.peer_id, "words")
        await stream.send(frame)
        try:
            assert (await stream.receive())[:1] in (b"\x00", b"\x01")
        except StreamClosed:
            assert isinstance(bob.failures[0], ProtocolViolation)
        assert await ask(ada, 1) == Reply("one")

    run(main())


def test_a_question_of_more_bytes_than_allowed_is_not_read() -> None:
    async def main() -> None:
        ada, bob = await served()
        stream = await ada.open(BOB.peer_id, "words")
        await stream.send(bytes(MAX_CALL_BYTES + 1))
        with pytest.raises(StreamClosed):
            await stream.receive()
        assert isinstance(bob.failures[0], ProtocolViolation)

    run(main())


def test_who_opens_a_stream_and_asks_nothing_is_hung_up_on() -> None:
    async def main() -> None:
        ada, bob = await served()
        stream = await ada.open(BOB.peer_id, "words")
        started = asyncio.get_running_loop().time()
        with pytest.raises(StreamClosed):
            await stream.receive()
        assert asyncio.get_running_loop().time() - started < REQUEST_TIMEOUT_S + 1
        assert [type(error) for error in bob.failures] == [PeerTimeout]

    run(main())


def test_who_asks_and_takes_no_answer_is_hung_up_on() -> None:
    class Deaf:
        """A stream whose other side asked, and whose buffers are full."""

        peer_id = ADA.peer_id

        async def receive(self, max_bytes: int = 0) -> bytes:
            return msgspec.msgpack.encode(Question(7 if self.is_refused else 1))

        async def send(self, frame: bytes) -> None:
            await asyncio.Event().wait()

        async def close(self) -> None: ...

        def __init__(self, *, is_refused: bool) -> None:
            self.is_refused = is_refused

    class Switchboard(MemoryTransport):
        async def serve(self, protocol, handler) -> None:
            self.handler = handler

    async def main(is_refused: bool) -> None:
        bob = Switchboard(MemorySwarm(), BOB.peer_id)
        await serve_calls(bob, "words", Question, say_it_in_words)
        loop = asyncio.get_running_loop()
        with pytest.raises(PeerTimeout, match="takes no answer"):
            await bob.handler(Deaf(is_refused=is_refused))
        assert loop.time() <= REPLY_TIMEOUT_S + 1

    run(main(False))
    run(main(True))


def test_a_silent_answerer_costs_the_time_that_was_allowed() -> None:
    async def silent(stream: Stream) -> None:
        await asyncio.sleep(3600)

    async def main() -> None:
        with pytest.raises(PeerTimeout, match=r"no answer in 5\.0 s"):
            await answered_by(silent)
        assert asyncio.get_running_loop().time() < 6

    run(main())


def test_an_answerer_that_hangs_up_is_a_closed_stream() -> None:
    async def hang_up(stream: Stream) -> None:
        await stream.receive()

    with pytest.raises(StreamClosed):
        run(answered_by(hang_up))


def test_an_answer_larger_than_allowed_blames_the_answerer() -> None:
    with pytest.raises(ProtocolViolation) as caught:
        run(answered_by(replying(bytes(101)), max_bytes=100))
    assert caught.value.peer == BOB.peer_id


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\x02" + msgspec.msgpack.encode(Reply("one")),
        b"\x00",
        b"\x00" + msgspec.msgpack.encode(Reply("one"))[:-1],
        b"\x00" + msgspec.msgpack.encode(Reply("one")) + b"\x00",
        b"\x00" + msgspec.msgpack.encode({"text": "one", "more": 1}),
        b"\x00" + msgspec.msgpack.encode({"text": 1}),
        b"\x00" + msgspec.msgpack.encode({"text": "far too long for this field"}),
        b"\x00" + b"\x91" * 50_000,
    ],
)
def test_a_malformed_answer_blames_the_answerer(frame: bytes) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        run(answered_by(replying(frame)))
    assert caught.value.peer == BOB.peer_id


@given(st.binary(max_size=200))
def test_any_bytes_for_an_answer_are_an_answer_or_one_of_our_errors(frame: bytes) -> None:
    with contextlib.suppress(ProtocolViolation, Refused):
        assert isinstance(parse_reply(BOB.peer_id, frame, Reply), Reply)


def test_a_refusal_in_no_language_is_still_a_refusal() -> None:
    with pytest.raises(Refused):
        run(answered_by(replying(b"\x01" + b"\xff\xfe" * 4000)))


def test_nobody_there_is_unreachable() -> None:
    async def main() -> None:
        ada, _ = await served()
        with pytest.raises(PeerUnreachable):
            await call(ada, PeerId("nobody"), "words", Question(1), Reply, timeout_s=5.0)
        with pytest.raises(PeerUnreachable):
            await call(ada, BOB.peer_id, "other", Question(1), Reply, timeout_s=5.0)

    run(main())


def test_a_bug_in_an_answer_is_not_told_to_the_asker() -> None:
    async def main() -> None:
        swarm = MemorySwarm()
        (ada, _), (bob, _) = swarm.peer(ADA), swarm.peer(BOB)
        bugs: list[BaseException] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: bugs.append(context["exception"]))

        async def buggy(peer: PeerId, question: Question) -> Reply:
            raise KeyError("a secret path")

        await serve_calls(bob, "words", Question, buggy)
        with pytest.raises(StreamClosed) as caught:
            await ask(ada, 1)
        assert "secret" not in str(caught.value)

    run(main())


# --- a stream to oneself ----------------------------------------------------------------------


def test_a_local_stream_carries_frames_both_ways_and_ends_both_ways() -> None:
    async def main() -> None:
        left, right = local_pair(ADA.peer_id)
        assert left.peer_id == right.peer_id == ADA.peer_id
        await left.send(b"one")
        await right.send(memoryview(b"two"))
        assert (await right.receive(), await left.receive()) == (b"one", b"two")
        await left.send(b"last")
        await left.close()
        assert await right.receive() == b"last"
        for _ in range(2):
            with pytest.raises(StreamClosed):
                await right.receive()
        with pytest.raises(StreamClosed):
            await right.send(b"late")
        await left.close()

    run(main())
