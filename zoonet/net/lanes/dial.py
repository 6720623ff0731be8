"""Knocking at another peer's door, at all of its addresses at once."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from zoonet.crypto import PeerId, short
from zoonet.errors import PeerUnreachable, ProtocolViolation, TransportError, ZoonetError
from zoonet.net.lanes.certificates import Credentials, check_presented, tls_context
from zoonet.net.lanes.config import LanesConfig
from zoonet.net.lanes.connection import Connection, tune
from zoonet.net.lanes.door import NUM_READY_BYTES, READY, secure
from zoonet.net.lanes.messages import TOKEN_BYTES, Place

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Knock:
    """Whom to find behind a door, and what to show there."""

    peer_id: PeerId
    own: Credentials
    certificate: bytes  # which the other side shall show (DER)
    token: bytes


async def in_thread(work: Callable[[], T], undo: Callable[[T], None]) -> T:
    """Run blocking work in a thread of its own, so that no pool can be filled by slow strangers.

    Safe to cancel: a result that nobody waits for any more is undone.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T) -> None:
        if future.done():
            undo(result)
        else:
            future.set_result(result)

    def fail(error: BaseException) -> None:
        if not future.done():
            future.set_exception(error)

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # it is raised to whoever waits
            with contextlib.suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(fail, error)
            return
        try:
            loop.call_soon_threadsafe(settle, result)
        except RuntimeError:
            undo(result)

    threading.Thread(target=run, name="lane-dial", daemon=True).start()
    try:
        return await future
    except asyncio.CancelledError:
        if future.done() and not future.cancelled() and future.exception() is None:
            undo(future.result())
        raise


async def race(attempts: Sequence[Coroutine[Any, Any, T]], undo: Callable[[T], None]) -> T:
    """Run all at once and return the first result; the others are cancelled or undone.

    Raises PeerUnreachable with every attempt's error where all fail. Safe to cancel.
    """
    tasks = [asyncio.create_task(attempt) for attempt in attempts]
    winner: asyncio.Task[T] | None = None
    try:
        pending = set(tasks)
        while pending and winner is None:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            winner = next((task for task in done if task.exception() is None), None)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if task is not winner and not task.cancelled() and task.exception() is None:
                undo(task.result())
    if winner is not None:
        return winner.result()
    errors = [error for task in tasks if (error := task.exception()) is not None]
    for error in errors:
        if not isinstance(error, ZoonetError):
            raise error
    raise PeerUnreachable("; ".join(str(error) for error in errors) or "no address to dial")


async def dial(place: Place, knock: Knock, config: LanesConfig) -> Connection:
    """Connect and finish the handshake. Raises TransportError or ProtocolViolation.

    Safe to cancel.
    """
    where = f"peer={short(knock.peer_id)} at {place.host} port {place.port}"
    family = socket.AF_INET6 if ":" in place.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        tune(sock)
        async with asyncio.timeout(config.direct_timeout_s):
            await asyncio.get_running_loop().sock_connect(sock, (place.host, place.port))
    except TimeoutError as error:
        sock.close()
        raise PeerUnreachable(f"{where}: no answer") from error
    except OSError as error:
        sock.close()
        raise PeerUnreachable(f"{where}: {error.strerror or error}") from error
    except BaseException:  # cancelled: nobody else knows the socket
        sock.close()
        raise
    return await in_thread(lambda: _introduce(sock, knock, config, where), Connection.close)


def _introduce(sock: socket.socket, knock: Knock, config: LanesConfig, where: str) -> Connection:
    """Show the token and shake hands, blocking. Closes the socket where it fails."""
    current = sock
    try:
        sock.settimeout(config.handshake_timeout_s)
        sock.sendall(knock.token)
        context = tls_context(knock.own, knock.certificate, is_server=False)
        current = tls = secure(context, sock, is_server=False)
        tls.do_handshake()
        check_presented(knock.peer_id, tls, knock.certificate)
        if tls.recv(NUM_READY_BYTES) != READY:
            raise ProtocolViolation(knock.peer_id, "did not let the lane in")
    except TimeoutError as error:
        current.close()
        raise PeerUnreachable(f"{where}: the handshake takes too long") from error
    except (OSError, ValueError) as error:
        current.close()
        raise TransportError(f"{where}: no handshake: {error}") from error
    except BaseException:  # a refusal, too: nobody else knows the socket
        current.close()
        raise
    return Connection(current, knock.peer_id, stall_timeout_s=config.stall_timeout_s)


def knock_locally(
    peer_id: PeerId, name: str, token: bytes, proof: bytes, config: LanesConfig
) -> Connection:
    """Connect to a peer of this machine at its abstract socket, blocking.

    Raises TransportError where it is on another machine, ProtocolViolation where it is another.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    answer = bytearray(TOKEN_BYTES)
    try:
        sock.settimeout(config.token_timeout_s)
        sock.connect(b"\0" + name.encode())
        connection = Connection(sock, peer_id, stall_timeout_s=config.stall_timeout_s)
        connection.write(token)
        connection.read(memoryview(answer), time.monotonic() + config.token_timeout_s)
        if answer != proof:
            raise ProtocolViolation(peer_id, "another process answers at its local socket")
    except OSError as error:
        sock.close()
        raise PeerUnreachable(f"peer={short(peer_id)} is not on this machine: {error}") from error
    except BaseException:  # a refusal, too: nobody else knows the socket
        sock.close()
        raise
    return connection


def dialable(places: Sequence[Place], *, is_near: bool) -> list[Place]:
    """Places worth dialling, each once. Loopback ones only of a peer that `is_near`."""
    good: dict[Place, None] = {}
    for place in places:
        try:
            address = ipaddress.ip_address(place.host)
        except ValueError:
            continue
        if address.is_unspecified or address.is_multicast or address.is_link_local:
            continue
        if is_near or not address.is_loopback:
            good[place] = None
    return list(good)
