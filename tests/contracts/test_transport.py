"""What every Transport promises, on the twin and on real daemons."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from tests.contracts.networks import Network, Peer, identity_of
from zoonet.errors import (
    PeerTimeout,
    PeerUnreachable,
    ProtocolViolation,
    ShardUnavailable,
    StreamClosed,
)
from zoonet.transport import MAX_FRAME_BYTES, Refused, ServingScope, Stream, call, serve_calls


async def echo(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())


async def keep_open(stream: Stream) -> None:
    await asyncio.Event().wait()


def test_frames_arrive_whole_and_in_order_both_ways(network: Network) -> None:
    frames = [b"", b"x", bytes(100_000), b"last", bytes(range(256)) * 4096]

    async def story(_: Network, left: Peer, right: Peer) -> None:
        await right.transport.serve("echo", echo)
        stream = await left.open(right, "echo")
        for frame in frames:
            await stream.send(frame)
        assert [await stream.receive() for _ in frames] == frames
        await stream.close()

    network.run(story, 2)


def test_a_frame_may_be_any_buffer_and_is_copied_before_send_returns(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        await right.transport.serve("echo", echo)
        stream = await left.open(right, "echo")
        buffer = bytearray(b"a" * 1_000_000)
        await stream.send(memoryview(buffer))
        buffer[:] = b"b" * 1_000_000
        assert await stream.receive() == b"a" * 1_000_000

    network.run(story, 2)


def test_both_sides_know_whom_they_talk_to(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        seen: list[str] = []

        async def note(stream: Stream) -> None:
            seen.append(stream.peer_id)
            await stream.send(b"noted")

        await right.transport.serve("note", note)
        stream = await left.open(right, "note")
        await stream.receive()
        assert (stream.peer_id, seen) == (right.peer_id, [left.peer_id])
        assert (left.transport.peer_id, right.transport.peer_id) == (left.peer_id, right.peer_id)

    network.run(story, 2)


def test_a_frame_beyond_the_limit_is_not_sent(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        await right.transport.serve("keep", keep_open)
        stream = await left.open(right, "keep")
        with pytest.raises(ValueError, match="at most"):
            await stream.send(bytes(MAX_FRAME_BYTES + 1))
        assert left.transport.sent_bytes == 0

    network.run(story, 2)


def test_a_frame_larger_than_the_receiver_allows_is_blamed_on_its_sender(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        blamed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def allow_ten(stream: Stream) -> None:
            assert await stream.receive(10) == b"0123456789"
            try:
                await stream.receive(10)
            except ProtocolViolation as violation:
                blamed.set_result(violation.peer)

        await right.transport.serve("small", allow_ten)
        stream = await left.open(right, "small")
        await stream.send(b"0123456789")
        await stream.send(b"0123456789+")
        assert await blamed == left.peer_id

    network.run(story, 2)


def test_frames_sent_before_a_close_still_arrive(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        async def talk_and_leave(stream: Stream) -> None:
            for number in range(20):
                await stream.send(bytes([number]) * 200_000)
            await stream.close()

        await right.transport.serve("talk", talk_and_leave)
        stream = await left.open(right, "talk")
        await stream.send(b"unread by the other side")
        for number in range(20):
            assert await stream.receive() == bytes([number]) * 200_000
        with pytest.raises(StreamClosed):
            await stream.receive()

    network.run(story, 2)


def test_closing_twice_is_closing_once_and_nothing_is_sent_after_it(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        await right.transport.serve("echo", echo)
        stream = await left.open(right, "echo")
        await stream.close()
        await stream.close()
        with pytest.raises(StreamClosed):
            await stream.send(b"late")
        with pytest.raises(StreamClosed):
            await stream.receive()

    network.run(story, 2)


def test_a_stranger_and_an_unknown_protocol_are_unreachable(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        with pytest.raises(PeerUnreachable):
            await left.transport.open(identity_of("stranger").peer_id, "echo")
        with pytest.raises(PeerUnreachable):
            await left.transport.open(right.peer_id, "nobody-serves-this")

    network.run(story, 2)


def test_serving_a_protocol_again_replaces_its_handler(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        async def first(stream: Stream) -> None:
            await stream.send(b"first")

        async def second(stream: Stream) -> None:
            await stream.send(b"second")

        await right.transport.serve("greet", first)
        await right.transport.serve("greet", second)
        stream = await left.open(right, "greet")
        assert await stream.receive() == b"second"

    network.run(story, 2)


async def greet(left: Peer, right: Peer, protocol: str) -> None:
    stream = await left.open(right, protocol)
    await stream.send(b"hello")
    assert await stream.receive() == b"hello"


async def refused(left: Peer, right: Peer, protocol: str) -> None:
    """A peer that knew of the protocol may only find out by the first answer."""
    with pytest.raises((PeerUnreachable, StreamClosed)):
        await greet(left, right, protocol)


def test_what_is_no_longer_served_is_unreachable_and_may_be_served_again(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        await right.transport.serve("echo", echo)
        stream = await left.open(right, "echo")
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"
        await right.transport.unserve("echo")
        await right.transport.unserve("echo")
        await right.transport.unserve("never-served")
        await refused(left, right, "echo")
        await stream.send(b"an open stream goes on")
        assert await stream.receive() == b"an open stream goes on"
        await right.transport.serve("echo", echo)
        again = await left.open(right, "echo")
        await again.send(b"again")
        assert await again.receive() == b"again"

    network.run(story, 2)


def test_what_is_served_within_a_scope_ends_with_it(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        await right.transport.serve("outside", echo)
        scope = ServingScope(right.transport)
        await scope.serve("inside", echo)
        stream = await left.open(right, "inside")
        await stream.send(b"hello")
        assert await stream.receive() == b"hello"
        await scope.end()
        await scope.end()
        await refused(left, right, "inside")
        await left.open(right, "outside")

    network.run(story, 2)


def test_what_a_handler_raises_ends_its_stream_alone(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        async def break_on_demand(stream: Stream) -> None:
            while True:
                if await stream.receive() == b"break":
                    raise ProtocolViolation(stream.peer_id, "asked for it")
                await stream.send(b"fine")

        await right.transport.serve("fragile", break_on_demand)
        broken = await left.open(right, "fragile")
        whole = await left.open(right, "fragile")
        await broken.send(b"break")
        with pytest.raises(StreamClosed):
            await broken.receive()
        await whole.send(b"hello")
        assert await whole.receive() == b"fine"

    network.run(story, 2)


def test_payload_bytes_are_counted(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        await right.transport.serve("echo", echo)
        stream = await left.open(right, "echo")
        for size in (1, 1000, 0):
            await stream.send(bytes(size))
            await stream.receive()
        assert (left.transport.sent_bytes, left.transport.received_bytes) == (1001, 1001)
        assert right.transport.received_bytes == 1001

    network.run(story, 2)


def test_a_cancelled_receive_loses_nothing(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        may_answer = asyncio.Event()

        async def answer_late(stream: Stream) -> None:
            await may_answer.wait()
            await stream.send(b"a" * 3_000_000)
            await stream.send(b"b")

        await right.transport.serve("late", answer_late)
        stream = await left.open(right, "late")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await stream.receive()
        may_answer.set()
        frames: list[bytes] = []
        while len(frames) < 2:
            receiving = asyncio.create_task(stream.receive())
            await asyncio.wait([receiving], timeout=0.001)
            receiving.cancel()
            await asyncio.wait([receiving])
            if not receiving.cancelled():
                frames.append(receiving.result())
        assert frames == [b"a" * 3_000_000, b"b"]

    network.run(story, 2)


def test_a_sender_waits_for_a_slow_receiver(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        may_read = asyncio.Event()

        async def read_late(stream: Stream) -> None:
            await may_read.wait()
            for _ in range(80):
                await stream.receive()
            await stream.send(b"all read")

        await right.transport.serve("slow", read_late)
        stream = await left.open(right, "slow")

        async def send_all() -> None:
            for _ in range(80):
                await stream.send(bytes(1024 * 1024))

        sending = asyncio.create_task(send_all())
        done, _pending = await asyncio.wait([sending], timeout=1)
        assert not done, "80 MiB went somewhere while nobody read"
        may_read.set()
        await sending
        assert await stream.receive() == b"all read"

    network.run(story, 2)


def test_a_peer_that_is_killed_breaks_its_streams_soon(network: Network) -> None:
    async def story(network: Network, left: Peer, right: Peer) -> None:
        await right.transport.serve("keep", keep_open)
        stream = await left.open(right, "keep")
        await stream.send(b"hello")
        receiving = asyncio.create_task(stream.receive())
        await network.kill(right)
        with pytest.raises(StreamClosed):
            async with asyncio.timeout(10):
                await receiving
        with pytest.raises(PeerUnreachable):
            await left.transport.open(right.peer_id, "keep")

    network.run(story, 2)


class Question(msgspec.Struct, frozen=True):
    number: int


class Answer(msgspec.Struct, frozen=True):
    half: int


def test_a_call_is_answered_refused_or_timed_out(network: Network) -> None:
    async def story(_: Network, left: Peer, right: Peer) -> None:
        async def halve(asker: str, question: Question) -> Answer:
            assert asker == left.peer_id
            if question.number == 0:
                await asyncio.Event().wait()
            if question.number % 2:
                raise ShardUnavailable("only even numbers")
            return Answer(question.number // 2)

        await serve_calls(right.transport, "halve", Question, halve)

        async def ask(number: int, timeout_s: float = 20.0) -> Answer:
            return await call(
                left.transport,
                right.peer_id,
                "halve",
                Question(number),
                Answer,
                timeout_s=timeout_s,
            )

        assert await ask(84) == Answer(42)
        with pytest.raises(Refused, match="only even numbers"):
            await ask(3)
        with pytest.raises(PeerTimeout):
            await ask(0, timeout_s=0.2)
        assert await asyncio.gather(*(ask(2 * n) for n in range(1, 30))) == [
            Answer(n) for n in range(1, 30)
        ]

    network.run(story, 2)


def test_a_request_that_is_no_text_is_refused_like_any_malformed_one(network: Network) -> None:
    class Name(msgspec.Struct):
        name: str

    async def story(_: Network, left: Peer, right: Peer) -> None:
        async def greet(asker: str, asked: Name) -> Answer:
            return Answer(1)

        await serve_calls(right.transport, "greet", Name, greet)
        stream = await left.open(right, "greet")
        await stream.send(msgspec.msgpack.encode({"name": "xx"}).replace(b"xx", b"\xff\xfe"))
        with pytest.raises(StreamClosed):
            await stream.receive()

    network.run(story, 2)
