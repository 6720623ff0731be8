"""The two processes of the measurement: each sends or receives when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

from experiments.testbed.bare_transport import BareTransport
from zoonet.crypto import Identity, PeerId
from zoonet.errors import ZoonetError
from zoonet.net.lanes import HostLanes, LanesConfig
from zoonet.net.lanes.certificates import Credentials, make_credentials, tls_context
from zoonet.net.lanes.connection import tune
from zoonet.transport import Lane

HOST: Final = "127.0.0.1"
CONTENDERS: Final = ("sockets", "direct", "shm")
CHANNEL: Final = "measured"


@dataclass(frozen=True, slots=True)
class Order:
    """Send or receive so many bytes in messages of so many, in one of the ways."""

    contender: str
    message_bytes: int
    total_bytes: int

    @property
    def num_messages(self) -> int:
        """How many messages that is."""
        return self.total_bytes // self.message_bytes


@dataclass(frozen=True, slots=True)
class Spent:
    """What one side spent. `wall_s` counts from the first message to the last."""

    wall_s: float
    cpu_s: float


class Ground:
    """A sink that overwrites one buffer again and again."""

    def __init__(self, order: Order) -> None:
        self._place = memoryview(bytearray(order.message_bytes))
        self._num_left = order.num_messages
        self.began_s = self.ended_s = 0.0
        self.is_full = threading.Event()

    def admit(self, peer_id: PeerId, header: bytes, num_bytes: int) -> memoryview:
        self.began_s = self.began_s or time.perf_counter()
        return self._place

    def arrived(self, peer_id: PeerId, header: bytes) -> None:
        self._num_left -= 1
        if not self._num_left:
            self.ended_s = time.perf_counter()
            self.is_full.set()

    def ended(self, peer_id: PeerId, error: ZoonetError) -> None:
        self.is_full.set()


def identity_of(role: str) -> Identity:
    """The key of the "sender" or the "receiver"."""
    return Identity(hashlib.sha256(role.encode()).digest())


@asynccontextmanager
async def open_lanes(
    role: str, config: LanesConfig
) -> AsyncIterator[tuple[BareTransport, HostLanes]]:
    """Lanes of one kind, over a transport of their own."""
    transport = BareTransport(identity_of(role).peer_id, HOST)
    lanes = HostLanes(transport, config, transport.routes_of)
    async with transport.listening(), lanes.listening():
        yield transport, lanes


def play(role: str, told: Connection) -> None:
    """Obey orders until None comes."""
    asyncio.run(_play(role, told))


async def _play(role: str, told: Connection) -> None:
    own, other = make_credentials(time.time()), "receiver" if role == "sender" else "sender"
    peer_id = identity_of(other).peer_id
    async with (
        open_lanes(role, LanesConfig(hosts=(HOST,), use_shm=False)) as (tls, direct),
        open_lanes(role, LanesConfig(hosts=(), use_direct=False)) as (local, shm),
    ):
        with socket.create_server((HOST, 0)) as server:
            ports = (tls.port, local.port, server.getsockname()[1])
            told.send((own.certificate, ports))
            certificate, (tls_port, local_port, port) = told.recv()
            tls.learn(peer_id, HOST, tls_port)
            local.learn(peer_id, HOST, local_port)
            ways: dict[str, HostLanes] = {"direct": direct, "shm": shm}
            while (order := await asyncio.to_thread(told.recv)) is not None:
                lanes = ways.get(order.contender)
                if role == "sender" and lanes is not None:
                    spent = await _send(lanes, peer_id, order, told)
                elif role == "sender":
                    context = tls_context(own, certificate, is_server=False)
                    spent = await asyncio.to_thread(_send_bare, context, port, order, told)
                elif lanes is not None:
                    spent = await _receive(lanes, order, told)
                else:
                    spent = await asyncio.to_thread(
                        _receive_bare, own, certificate, server, order, told
                    )
                told.send(spent)


async def _receive(lanes: HostLanes, order: Order, told: Connection) -> Spent:
    ground, cpu_s = Ground(order), time.process_time()
    await lanes.serve(CHANNEL, ground)
    told.send("ready")
    await asyncio.to_thread(ground.is_full.wait)
    return Spent(ground.ended_s - ground.began_s, time.process_time() - cpu_s)


async def _send(lanes: HostLanes, peer_id: PeerId, order: Order, told: Connection) -> Spent:
    def ignore(lane: Lane, error: ZoonetError) -> None:
        """The receiver notices."""

    lane = await lanes.open(peer_id, CHANNEL, ignore)  # lanes stay open for many rounds
    cpu_s, started = time.process_time(), time.perf_counter()
    memory = lanes.allocate(order.message_bytes)
    for number in range(order.num_messages):
        lane.post(number.to_bytes(24, "big"), memory)
    while lane.unsent_bytes:
        await asyncio.sleep(0.02)
    await lane.close()
    return Spent(time.perf_counter() - started, time.process_time() - cpu_s)


def _send_bare(context: ssl.SSLContext, port: int, order: Order, told: Connection) -> Spent:
    cpu_s, started = time.process_time(), time.perf_counter()
    payload = memoryview(bytearray(order.message_bytes))
    with socket.create_connection((HOST, port)) as sock:
        tune(sock)
        with context.wrap_socket(sock) as connection:
            for _ in range(order.num_messages):
                connection.sendall(payload)
            connection.recv(1)
    return Spent(time.perf_counter() - started, time.process_time() - cpu_s)


def _receive_bare(
    own: Credentials, certificate: bytes, server: socket.socket, order: Order, told: Connection
) -> Spent:
    cpu_s, place = time.process_time(), memoryview(bytearray(order.message_bytes))
    told.send("ready")
    with server.accept()[0] as sock:
        tune(sock)
        context = tls_context(own, certificate, is_server=True)
        with context.wrap_socket(sock, server_side=True) as connection:
            started = time.perf_counter()
            for _ in range(order.num_messages):
                num_bytes = 0
                while num_bytes < order.message_bytes:
                    num_bytes += connection.recv_into(place[num_bytes:])
            wall_s = time.perf_counter() - started
            with contextlib.suppress(OSError):
                connection.sendall(b"\0")
    return Spent(wall_s, time.process_time() - cpu_s)
