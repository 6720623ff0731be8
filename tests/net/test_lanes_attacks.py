"""What hostile peers and strangers try at a peer's lanes; another peer's lane goes on meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.contracts.networks import identity_of
from tests.net.lane_peers import SHM, LanePeer, lane_peer, run
from zoonet.crypto import PeerId
from zoonet.errors import PeerTimeout, ProtocolViolation, StreamClosed, ZoonetError
from zoonet.net.lanes import LanesConfig
from zoonet.net.lanes.certificates import (
    CLOCK_SLACK_S,
    Credentials,
    make_credentials,
    tls_context,
)
from zoonet.net.lanes.door import MAX_KNOCKING, secure
from zoonet.net.lanes.live import MAX_CONNECTIONS_PER_PEER
from zoonet.net.lanes.messages import (
    ASK,
    DIAL_BACK,
    TOKEN_BYTES,
    Ask,
    DialBack,
    Dialling,
    Offer,
    Place,
)
from zoonet.net.lanes.shm import FRAME, INLINE, REFERENCE, SEGMENT
from zoonet.net.lanes.tls import HEAD_BYTES, PREFIX
from zoonet.net.lanes.tokens import MAX_PER_PEER
from zoonet.testing import MemorySwarm
from zoonet.testing.memory import MemoryTransport
from zoonet.transport import Lane, Refused, call, serve_calls
from zoonet.transport.lanes import MAX_PAYLOAD_BYTES

READY = GO = b"\x01"
MOST_BYTES = 0xFFFFFFFF  # that can be promised at all
QUICK = replace(SHM, stall_timeout_s=1.0)
HASTY = replace(QUICK, token_timeout_s=0.3, handshake_timeout_s=0.5)  # nobody has to come in time


@dataclass(frozen=True, slots=True)
class Scene:
    """A victim, an honest peer with a lane to it, and somebody else."""

    victim: LanePeer
    honest: LanePeer
    hostile: MemoryTransport
    credentials: Credentials

    @property
    def hostile_id(self) -> PeerId:
        return self.hostile.peer_id

    async def ask(self, certificate: bytes = b"", channel: str = "bulk") -> Offer:
        """Ask the victim for an offer, as the protocol has it."""
        ask = Ask(certificate or self.credentials.certificate, channel)
        return await call(self.hostile, self.victim.peer_id, ASK, ask, Offer, timeout_s=10)

    async def tls(self) -> ssl.SSLSocket:
        """An accepted lane over TLS, up to and with GO."""
        offer = await self.ask()
        return await asyncio.to_thread(self.shake_hands, offer, self.credentials)

    def shake_hands(self, offer: Offer, credentials: Credentials) -> ssl.SSLSocket:
        sock = dial(offer)
        sock.sendall(offer.token)
        context = tls_context(credentials, offer.certificate, is_server=False)
        with contextlib.ExitStack() as undo:
            undo.callback(sock.close)
            tls = context.wrap_socket(sock)
            undo.callback(tls.close)
            if tls.recv(1) != READY:
                raise ConnectionError("not let in")
            undo.pop_all()
        tls.sendall(GO)
        return tls

    async def local(self) -> socket.socket:
        """An accepted lane over the local socket, up to and with GO."""
        offer = await self.ask()
        with contextlib.ExitStack() as undo:
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.settimeout(10)
            sock.connect(b"\0" + offer.socket_name.encode())
            sock.sendall(offer.local_token)
            assert await asyncio.to_thread(sock.recv, TOKEN_BYTES) == offer.proof
            sock.sendall(GO)
            undo.pop_all()
        return sock

    async def refused(self) -> ZoonetError:
        """Wait until the victim ended the hostile peer's lane; return why."""
        inbox = self.victim.inbox
        await inbox.until(lambda: any(peer == self.hostile_id for peer, _ in inbox.ends))
        ((_, error),) = [end for end in inbox.ends if end[0] == self.hostile_id]
        return error


def dial(offer: Offer) -> socket.socket:
    sock = socket.create_connection((offer.places[0].host, offer.places[0].port), timeout=10)
    sock.settimeout(10)
    return sock


Attack = Callable[[Scene], Awaitable[None]]


def under_attack(attack: Attack, config: LanesConfig = QUICK) -> None:
    """Run the attack; afterwards the honest peer's lane must still carry its messages."""

    async def story() -> None:
        async with scene(config) as stage:
            lane = await stage.honest.open(stage.victim)
            await attack(stage)
            lane.post(b"still", b"here")
            inbox, wanted = stage.victim.inbox, (stage.honest.peer_id, b"still", b"here")
            await inbox.until(lambda: wanted in inbox.messages)
            assert stage.honest.outbox.ends == []
            await lane.close()

    run(story())


@asynccontextmanager
async def scene(config: LanesConfig) -> AsyncIterator[Scene]:
    swarm = MemorySwarm()
    async with (
        lane_peer(swarm, "victim", config) as victim,
        lane_peer(swarm, "honest", config) as honest,
    ):
        hostile, _ = swarm.peer(identity_of("hostile"))
        yield Scene(victim, honest, hostile, make_credentials(time.time()))


# Strangers at the door.


async def is_cut_off(sock: socket.socket) -> bool:
    """Wait until the other side ends the connection."""
    with sock, contextlib.suppress(ConnectionError):
        while await asyncio.to_thread(sock.recv, 4096):
            pass
    return True


def test_a_wrong_token_is_cut_off() -> None:
    async def attack(stage: Scene) -> None:
        offer = await stage.ask()
        sock = dial(offer)
        sock.sendall(bytes(TOKEN_BYTES))
        assert await is_cut_off(sock)
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        local.settimeout(10)
        local.connect(b"\0" + offer.socket_name.encode())
        local.sendall(bytes(TOKEN_BYTES))
        assert await is_cut_off(local)

    under_attack(attack)


def test_whoever_says_nothing_is_cut_off_and_holds_up_nobody() -> None:
    async def attack(stage: Scene) -> None:
        offer = await stage.ask()
        strangers = [dial(offer) for _ in range(MAX_KNOCKING + 8)]
        lane = await stage.honest.open(stage.victim)  # waits for the first of them to be cut off
        await lane.close()
        for stranger in strangers:
            assert await is_cut_off(stranger)

    under_attack(
        attack, replace(HASTY, use_shm=False, direct_timeout_s=20.0, handshake_timeout_s=5.0)
    )


def test_a_token_that_comes_byte_by_byte_comes_too_late() -> None:
    async def attack(stage: Scene) -> None:
        offer = await stage.ask()
        with dial(offer) as sock:
            num_sent = 0
            with contextlib.suppress(OSError):
                for byte in offer.token:
                    sock.sendall(bytes([byte]))
                    num_sent += 1
                    await asyncio.sleep(0.05)
            assert num_sent < TOKEN_BYTES

    under_attack(attack, HASTY)


def test_a_handshake_that_never_ends_is_cut_off() -> None:
    async def attack(stage: Scene) -> None:
        offer = await stage.ask()
        sock = dial(offer)
        sock.sendall(offer.token + b"\x16\x03\x01")  # the begin of a ClientHello
        assert await is_cut_off(sock)

    under_attack(attack, HASTY)


def test_noise_instead_of_a_handshake_is_cut_off() -> None:
    async def attack(stage: Scene) -> None:
        offer = await stage.ask()
        sock = dial(offer)
        sock.sendall(offer.token + b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await is_cut_off(sock)

    under_attack(attack)


def test_a_stranger_that_resets_before_the_handshake_costs_no_descriptor() -> None:
    own = make_credentials(0.0)
    context = tls_context(own, own.certificate, is_server=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stranger = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stranger.close()  # with a reset
    select.select([accepted], [], [])
    descriptor = accepted.fileno()
    with pytest.raises(ConnectionResetError):
        secure(context, accepted, is_server=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_foreign_certificate_is_refused() -> None:
    async def attack(stage: Scene) -> None:
        offer = await stage.ask()
        thief = make_credentials(time.time())  # saw the token, which goes in clear
        with pytest.raises((OSError, ConnectionError)):
            await asyncio.to_thread(stage.shake_hands, offer, thief)

    under_attack(attack)


def test_no_certificate_at_all_is_refused() -> None:
    async def attack(stage: Scene) -> None:
        offer = await stage.ask()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE

        def shake_hands() -> bytes:
            with dial(offer) as sock:
                sock.sendall(offer.token)
                with context.wrap_socket(sock) as tls:
                    return tls.recv(1)

        with pytest.raises((OSError, ConnectionError)):
            assert await asyncio.to_thread(shake_hands) != READY

    under_attack(attack)


def test_older_versions_of_tls_are_refused() -> None:
    async def attack(stage: Scene) -> None:
        offer = await stage.ask()
        context = tls_context(stage.credentials, offer.certificate, is_server=False)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.maximum_version = ssl.TLSVersion.TLSv1_2

        def shake_hands() -> None:
            with dial(offer) as sock:
                sock.sendall(offer.token)
                context.wrap_socket(sock).close()

        with pytest.raises(OSError):
            await asyncio.to_thread(shake_hands)

    under_attack(attack)


def rsa_certificate() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    old = x509.load_der_x509_certificate(make_credentials(time.time()).certificate)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(old.not_valid_before_utc)
        .not_valid_after(old.not_valid_after_utc)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    ("certificate", "why"),
    [
        (lambda: make_credentials(time.time() - 10, lifetime_s=5).certificate, "expired"),
        (lambda: make_credentials(time.time() + 2 * CLOCK_SLACK_S).certificate, "not valid yet"),
        (lambda: b"\x30" * 100, "malformed"),
        (lambda: make_credentials(time.time()).certificate[:-20], "malformed"),
        (rsa_certificate, "another kind of key"),
    ],
    ids=["expired", "early", "noise", "cut", "rsa"],
)
def test_a_bad_certificate_gets_no_offer(certificate: Callable[[], bytes], why: str) -> None:
    async def attack(stage: Scene) -> None:
        with pytest.raises(Refused, match=why):
            await stage.ask(certificate())

    under_attack(attack)


def test_a_token_is_worth_nothing_to_whom_it_was_not_told() -> None:
    async def attack(stage: Scene) -> None:
        told = await stage.ask()
        await stage.victim.lanes.unserve("bulk")
        await stage.victim.lanes.serve("bulk", stage.victim.inbox)
        thief = make_credentials(time.time())
        for _ in range(3):
            with pytest.raises((OSError, ConnectionError)):
                await asyncio.to_thread(stage.shake_hands, told, thief)
        tls = await asyncio.to_thread(
            stage.shake_hands, told, stage.credentials
        )  # its own still is
        tls.close()

    async def story() -> None:
        async with scene(QUICK) as stage:
            await attack(stage)

    run(story())


def test_nobody_has_any_number_of_tokens() -> None:
    async def attack(stage: Scene) -> None:
        for _ in range(MAX_PER_PEER // 2):  # an offer has two
            await stage.ask()
        with pytest.raises(Refused, match="too many"):
            await stage.ask()

    under_attack(attack)


def test_a_lane_that_never_begins_is_cut_off() -> None:
    async def attack(stage: Scene) -> None:
        offer = await stage.ask()
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        local.settimeout(10)
        local.connect(b"\0" + offer.socket_name.encode())
        local.sendall(offer.local_token)
        assert await is_cut_off(local)

    under_attack(attack, HASTY)


def test_a_token_that_was_seen_on_the_wire_opens_nothing_on_the_machine_itself() -> None:
    async def attack(stage: Scene) -> None:
        offer = await stage.ask()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as local:
            local.settimeout(10)
            local.connect(b"\0" + offer.socket_name.encode())
            local.sendall(offer.token)
            assert await asyncio.to_thread(local.recv, TOKEN_BYTES) == b""
        remote = dial(offer)
        remote.sendall(offer.local_token)
        assert await is_cut_off(remote)

    under_attack(attack)


def test_whom_a_peer_dials_back_must_show_the_certificate_too() -> None:
    async def attack(stage: Scene) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            place = Place("127.0.0.1", server.getsockname()[1])
            token, other = bytes(range(TOKEN_BYTES)), make_credentials(time.time())
            request = DialBack(stage.credentials.certificate, "bulk", token, (place,))
            await call(
                stage.hostile, stage.victim.peer_id, DIAL_BACK, request, Dialling, timeout_s=10
            )

            def accept() -> None:
                server.settimeout(10)
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                with _pem(other) as path:
                    context.load_cert_chain(path)
                with server.accept()[0] as sock:
                    sock.settimeout(10)
                    assert sock.recv(TOKEN_BYTES) == token
                    context.wrap_socket(sock, server_side=True)

            with pytest.raises(ssl.SSLError, match=r"(?i)unknown.ca|bad.certificate"):
                await asyncio.to_thread(accept)
        assert all(peer != stage.hostile_id for peer, _ in stage.victim.inbox.ends)

    under_attack(attack)


@contextlib.contextmanager
def _pem(credentials: Credentials) -> Iterator[str]:
    fd = os.memfd_create("pem")
    try:
        os.write(fd, credentials.pem)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


# Peers that were let in.


def head(header_bytes: int, payload_bytes: int) -> bytes:
    return PREFIX.pack(header_bytes, payload_bytes).ljust(HEAD_BYTES, b"h")


@pytest.mark.parametrize(
    ("header_bytes", "payload_bytes"), [(1, 0xFFFFFFFF), (1, MAX_PAYLOAD_BYTES + 1), (0xFFFF, 1)]
)
def test_a_promise_of_too_much_is_refused_before_anything_is_read(
    header_bytes: int, payload_bytes: int
) -> None:
    async def attack(stage: Scene) -> None:
        with await stage.tls() as tls:
            tls.sendall(head(header_bytes, payload_bytes))
            error = await stage.refused()
        assert isinstance(error, ProtocolViolation)
        assert error.peer == stage.hostile_id
        assert str(payload_bytes) in str(error)
        assert stage.victim.inbox.places == {}

    under_attack(attack)


def test_a_message_that_stalls_is_cut_off_by_name() -> None:
    async def attack(stage: Scene) -> None:
        with await stage.tls() as tls:
            tls.sendall(head(1, 1000) + b"half")
            error = await stage.refused()
        assert isinstance(error, PeerTimeout)
        assert stage.hostile_id[-8:] in str(error)

    under_attack(attack)


def test_a_payload_at_a_byte_a_second_is_cut_off_by_name() -> None:
    async def attack(stage: Scene) -> None:
        with await stage.tls() as tls:
            tls.sendall(head(1, 1000))
            with contextlib.suppress(OSError):
                for _ in range(1000):
                    tls.sendall(b"x")
                    await asyncio.sleep(0.05)
            error = await stage.refused()
        assert isinstance(error, PeerTimeout)
        assert "slowly" in str(error)

    under_attack(attack)


def test_a_message_that_ends_in_the_middle_is_no_message() -> None:
    async def attack(stage: Scene) -> None:
        with await stage.tls() as tls:
            tls.sendall(head(1, 1000) + b"half")
        assert isinstance(await stage.refused(), StreamClosed)
        assert stage.victim.inbox.messages == []

    under_attack(attack)


def test_bytes_that_were_altered_on_the_way_end_the_lane() -> None:
    async def attack(stage: Scene) -> None:
        tls = await stage.tls()
        with socket.socket(fileno=os.dup(tls.fileno())) as raw:
            raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))  # a record of the wrong key
            assert isinstance(await stage.refused(), StreamClosed)
        tls.close()

    under_attack(attack)


def test_idle_lanes_are_bounded_for_each_peer() -> None:
    async def attack(stage: Scene) -> None:
        with contextlib.ExitStack() as open_lanes:
            lanes = []
            for _ in range(MAX_CONNECTIONS_PER_PEER + 5):
                with contextlib.suppress(OSError):
                    lanes.append(open_lanes.enter_context(await stage.local()))
            alive = len(lanes)
            while alive > MAX_CONNECTIONS_PER_PEER:
                await asyncio.sleep(0.01)
                alive = len(lanes) - len(select.select(lanes, [], [], 0)[0])
            assert alive == MAX_CONNECTIONS_PER_PEER

    under_attack(attack)


def test_whoever_takes_all_places_for_lanes_makes_room_for_others() -> None:
    async def attack(stage: Scene) -> None:
        with contextlib.ExitStack() as open_lanes:
            lanes = [open_lanes.enter_context(await stage.local()) for _ in range(3)]
            lane = await stage.honest.open(stage.victim)  # its second one
            lane.post(b"through", b"")
            inbox, wanted = stage.victim.inbox, (stage.honest.peer_id, b"through", b"")
            await inbox.until(lambda: wanted in inbox.messages)
            await lane.close()
            readable, _, _ = await asyncio.to_thread(select.select, lanes, [], [])
            assert len(readable) == 1

    under_attack(attack, replace(QUICK, max_connections=4))


# Peers that are sent something.


@asynccontextmanager
async def sent_to(stage: Scene) -> AsyncIterator[tuple[Lane, ssl.SSLSocket]]:
    """A lane of the victim to the hostile peer, and the hostile peer's end of it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        place, token = Place("127.0.0.1", server.getsockname()[1]), bytes(TOKEN_BYTES)

        async def offer(_: PeerId, ask: Ask) -> Offer:
            asked.set_result(ask)
            own = stage.credentials.certificate
            return Offer(own, token, (place,), token, bytes(TOKEN_BYTES), "")

        def accept(ask: Ask) -> ssl.SSLSocket:
            context = tls_context(stage.credentials, ask.certificate, is_server=True)
            sock, _ = server.accept()
            sock.settimeout(10)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            assert sock.recv(TOKEN_BYTES) == token
            tls = context.wrap_socket(sock, server_side=True)
            tls.sendall(READY)
            assert tls.recv(1) == GO
            return tls

        asked: asyncio.Future[Ask] = asyncio.get_running_loop().create_future()
        await serve_calls(stage.hostile, ASK, Ask, offer)
        opening = asyncio.create_task(
            stage.victim.lanes.open(stage.hostile_id, "bulk", stage.victim.outbox.on_end)
        )
        with await asyncio.to_thread(accept, await asked) as tls:
            yield await opening, tls


def test_a_peer_that_reads_at_a_byte_a_second_is_cut_off_by_name_and_holds_nothing() -> None:
    async def attack(stage: Scene) -> None:
        async with sent_to(stage) as (lane, tls):
            for number in range(8):
                lane.post(b"%d" % number, bytes(1 << 20))
            ended = asyncio.create_task(stage.victim.outbox.until_ended())
            with contextlib.suppress(OSError):
                while not ended.done():
                    await asyncio.to_thread(tls.recv, 1)
                    await asyncio.wait({ended}, timeout=0.05)
            error = await ended
            assert isinstance(error, PeerTimeout)
            assert stage.hostile_id[-8:] in str(error)
            assert lane.unsent_bytes == 0

    under_attack(attack)


# Shared memory.


async def attack_locally(stage: Scene, frames: bytes, *fds: int) -> ZoonetError:
    with await stage.local() as sock:
        if fds:
            socket.send_fds(sock, [frames], list(fds))
        else:
            sock.sendall(frames)
        return await stage.refused()


def frame(
    kind: int, header: int = 1, payload: int = 4096, segment: int = 1, offset: int = 0
) -> bytes:
    return FRAME.pack(kind, header, payload, segment, offset) + b"h" * header


@pytest.mark.parametrize(
    "frames",
    [
        frame(9),
        frame(REFERENCE, segment=7),
        frame(INLINE, payload=MAX_PAYLOAD_BYTES + 1),
        frame(INLINE, payload=MOST_BYTES),
        frame(REFERENCE, payload=MOST_BYTES),
        frame(SEGMENT, header=0),
    ],
    ids=[
        "unknown kind",
        "unknown segment",
        "too large",
        "as much as can be said",
        "as much memory",
        "no descriptor",
    ],
)
def test_malformed_frames_are_refused(frames: bytes) -> None:
    async def attack(stage: Scene) -> None:
        assert isinstance(await attack_locally(stage, frames), ProtocolViolation)

    under_attack(attack)


def sealed(num_bytes: int) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, num_bytes)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    return fd


@pytest.mark.parametrize("offset", [4097, 8192, 2**63, 2**64 - 1])
def test_a_payload_outside_of_its_segment_is_refused(offset: int) -> None:
    async def attack(stage: Scene) -> None:
        fd = sealed(8192)
        try:
            with await stage.local() as sock:
                socket.send_fds(sock, [frame(SEGMENT, header=0)], [fd])
                sock.sendall(frame(REFERENCE, offset=offset))
                error = await stage.refused()
        finally:
            os.close(fd)
        assert isinstance(error, ProtocolViolation)
        assert "outside" in str(error)

    under_attack(attack)


def test_memory_that_could_shrink_is_refused_and_so_is_a_pipe() -> None:
    async def attack(stage: Scene) -> None:
        loose = os.memfd_create("test", os.MFD_ALLOW_SEALING)
        os.ftruncate(loose, 8192)
        error = await attack_locally(stage, frame(SEGMENT, header=0), loose)
        os.close(loose)
        assert "shrink" in str(error)
        stage.victim.inbox.ends.clear()
        ends = os.pipe()
        error = await attack_locally(stage, frame(SEGMENT, header=0), ends[0])
        assert "no anonymous memory" in str(error)
        for fd in ends:
            os.close(fd)

    under_attack(attack)


def test_descriptors_in_the_wrong_place_are_refused_and_closed() -> None:
    async def attack(stage: Scene) -> None:
        fd = sealed(8192)
        before = len(os.listdir("/proc/self/fd"))
        with await stage.local() as sock:
            for _ in range(2):
                socket.send_fds(sock, [frame(INLINE, payload=0)], [fd])
            assert isinstance(await stage.refused(), ProtocolViolation)
        stage.victim.inbox.ends.clear()
        error = await attack_locally(stage, frame(SEGMENT, header=0), fd, fd)
        assert isinstance(error, ProtocolViolation)
        while len(os.listdir("/proc/self/fd")) > before:
            await asyncio.sleep(0.01)  # it is closed a moment after the sink was told
        os.close(fd)

    under_attack(attack)


def test_segments_are_bounded() -> None:
    async def attack(stage: Scene) -> None:
        fd = sealed(8192)
        with await stage.local() as sock:
            with contextlib.suppress(OSError):
                for number in range(1000):
                    socket.send_fds(sock, [frame(SEGMENT, header=0, segment=number)], [fd])
            error = await stage.refused()
        os.close(fd)
        assert "too many" in str(error)

    under_attack(attack)


def test_structures_have_the_size_that_the_wire_has() -> None:
    assert (PREFIX.size, FRAME.size) == (6, struct.calcsize(">BHIQQ"))
