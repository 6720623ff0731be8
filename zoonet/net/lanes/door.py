"""Where lanes knock: the listening sockets, and what a stranger must show to come in.

Nothing of what a stranger says is believed: 32 bytes of token within a few seconds, then a TLS
handshake with the certificate that belongs to the token. So many may try at a time and no more;
the others wait in the kernel's queue.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from typing import Final

from zoonet.crypto import short
from zoonet.errors import ConfigError, ProtocolViolation, ZoonetError
from zoonet.net.lanes.certificates import check_presented, tls_context
from zoonet.net.lanes.config import LanesConfig
from zoonet.net.lanes.connection import Connection, Doorbell, tune
from zoonet.net.lanes.messages import TOKEN_BYTES
from zoonet.net.lanes.tokens import Expected, TokenBook

MAX_KNOCKING: Final = 64  # strangers between connecting and the end of their handshake
BACKLOG: Final = 128
BREATH_S: Final = 0.2  # between looks whether there is room, and after a failed accept
READY: Final = b"\x01"  # from whoever accepted: the handshake is done on this side too
NUM_READY_BYTES: Final = len(READY)

log = logging.getLogger(__name__)


class Door:
    """Accepts TLS connections at TCP ports, and local ones at an abstract socket."""

    def __init__(self, config: LanesConfig, book: TokenBook) -> None:
        self._config = config
        self._book = book
        self._selector: selectors.BaseSelector
        self._bell: Doorbell
        self._is_closed = False
        self._room = threading.BoundedSemaphore(MAX_KNOCKING)
        self._knocking_lock = threading.Lock()
        self._knocking: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._run, name="lane-door", daemon=True)
        self.places: list[tuple[str, int]] = []  # IP address and port, as bound
        self.socket_name = ""

    def open(self) -> None:
        """Bind and listen. Raises ConfigError where an address or port cannot be had."""
        self._selector, self._bell = selectors.DefaultSelector(), Doorbell()
        try:
            self._listen()
        except BaseException:  # an interrupt, too, must leave no port bound
            self._release()
            raise
        self._selector.register(self._bell, selectors.EVENT_READ)
        self._thread.start()

    def _listen(self) -> None:
        if self._config.use_direct:
            for host in self._config.hosts:
                self._listen_tcp(host)
        if self._config.use_shm:
            name = f"zoonet-lanes-{secrets.token_hex(16)}"
            local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._selector.register(local, selectors.EVENT_READ)
            local.bind(b"\0" + name.encode())
            local.listen(BACKLOG)
            local.setblocking(False)
            self.socket_name = name

    def _listen_tcp(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        self._selector.register(listener, selectors.EVENT_READ)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((host, self._config.port))
            listener.listen(BACKLOG)
        except OSError as error:
            raise ConfigError(
                f"cannot listen for bulk data on {host} port {self._config.port}:"
                f" {error.strerror}; choose another port"
            ) from error
        listener.setblocking(False)
        self.places.append((host, listener.getsockname()[1]))

    def close(self) -> None:
        """Stop listening and break off those who have not come in yet. Blocks for a moment."""
        self._is_closed = True
        if self._thread.is_alive():
            self._bell.ring()
            self._thread.join()
        self._release()
        with self._knocking_lock:
            for stranger in self._knocking:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(stranger, socket.SHUT_RDWR)

    def _release(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        self._bell.close()

    def _run(self) -> None:
        while not self._is_closed:
            for key, _ in self._selector.select():
                if isinstance(key.fileobj, socket.socket):
                    self._accept(key.fileobj)

    def _accept(self, listener: socket.socket) -> None:
        while not self._room.acquire(timeout=BREATH_S):
            if self._is_closed:
                return
        try:
            stranger, _ = listener.accept()
        except OSError as error:
            self._room.release()
            if not isinstance(error, BlockingIOError):  # such as too many open files
                log.debug("cannot accept a lane: %s", error)
                time.sleep(BREATH_S)
            return
        thread = threading.Thread(
            target=self._receive, args=(stranger,), name="lane-in", daemon=True
        )
        try:
            thread.start()
        except RuntimeError as error:  # as many threads as the system allows
            log.warning("cannot take in lanes: %s", error)
            stranger.close()
            self._room.release()
            time.sleep(BREATH_S)

    def _receive(self, stranger: socket.socket) -> None:
        """The thread of a connection: let it in, then serve it."""
        expected: Expected | None = None
        try:
            with self._noted(stranger):
                expected = self._expected(stranger)
            connection = self._let_in(stranger, expected)
        except (OSError, ValueError, ZoonetError) as error:
            who = short(expected.peer_id) if expected is not None else "?"
            log.debug("a lane was not let in, peer=%s: %s", who, error)
            stranger.close()
            return
        finally:
            self._room.release()
        expected.welcome(connection)

    @contextlib.contextmanager
    def _noted(self, sock: socket.socket) -> Iterator[None]:
        """Let `close` break off whatever is done with the socket."""
        with self._knocking_lock:
            self._knocking.add(sock)
        try:
            yield
        finally:
            with self._knocking_lock:
                self._knocking.discard(sock)

    def _expected(self, stranger: socket.socket) -> Expected:
        deadline = time.monotonic() + self._config.token_timeout_s
        token = bytearray()
        while len(token) < TOKEN_BYTES:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise ProtocolViolation("", "a lane that does not say whose it is")
            stranger.settimeout(left_s)
            part = stranger.recv(TOKEN_BYTES - len(token))
            if not part:
                raise ProtocolViolation("", "a lane that ended before it said whose it is")
            token += part
        expected = self._book.take(bytes(token))
        if expected is None or bool(expected.proof) != (stranger.family == socket.AF_UNIX):
            raise ProtocolViolation("", "a lane with a wrong token")
        return expected

    def _let_in(self, stranger: socket.socket, expected: Expected) -> Connection:
        stall_timeout_s = self._config.stall_timeout_s
        if stranger.family == socket.AF_UNIX:
            stranger.sendall(expected.proof)
            return Connection(stranger, expected.peer_id, stall_timeout_s=stall_timeout_s)
        tune(stranger)
        context = tls_context(expected.own, expected.certificate, is_server=True)
        stranger.settimeout(self._config.handshake_timeout_s)
        tls = secure(context, stranger, is_server=True)
        try:
            with self._noted(tls):
                tls.do_handshake()
            check_presented(expected.peer_id, tls, expected.certificate)
            tls.sendall(READY)
        except BaseException:  # a refusal, too: nobody else knows the socket
            tls.close()
            raise
        return Connection(tls, expected.peer_id, stall_timeout_s=stall_timeout_s)


class _TlsSocket(ssl.SSLSocket):
    """Closes itself where it cannot be made: Python 3.11 forgets it if the peer has reset."""

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        try:
            return super().recv(buflen, flags)
        except OSError:
            if self.version() is None:  # no handshake yet
                self.close()
            raise


def secure(context: ssl.SSLContext, sock: socket.socket, *, is_server: bool) -> ssl.SSLSocket:
    """Wrap a connected socket; the handshake comes later. Closes the socket where it fails."""
    context.sslsocket_class = _TlsSocket
    try:
        return context.wrap_socket(sock, server_side=is_server, do_handshake_on_connect=False)
    except BaseException:  # whatever it is, the socket is ours to close
        sock.close()
        raise
