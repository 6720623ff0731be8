"""Whom to expect at the door: one-time tokens, each told to one peer over a proven stream."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from zoonet.crypto import PeerId
from zoonet.errors import TransportError
from zoonet.net.lanes.certificates import Credentials
from zoonet.net.lanes.connection import Connection
from zoonet.net.lanes.messages import TOKEN_BYTES

LIFETIME_S: Final = 30.0
MAX_PER_PEER: Final = 64
MAX_TOKENS: Final = 8192
# A lane may be dialled at several addresses at once, and have several connections.
MAX_USES: Final = 32


@dataclass(slots=True)
class Visits:
    """How often somebody came with one of the tokens of an offer."""

    num: int = 0


@dataclass(slots=True)
class Expected:
    """A peer that may come with a certain token."""

    peer_id: PeerId
    own: Credentials  # what this peer shows
    certificate: bytes  # what the other one shall show (DER)
    welcome: Callable[[Connection], None]  # called in the connection's own thread
    proof: bytes = b""  # what the token is answered with at the local socket, its only place then
    visits: Visits = field(default_factory=Visits)
    expires_s: float = 0.0


class TokenBook:
    """All tokens that are worth something now. Thread-safe."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._expected: OrderedDict[bytes, Expected] = OrderedDict()  # in the order of expiry

    def issue(self, expected: Expected, token: bytes | None = None) -> bytes:
        """Make a token that is worth LIFETIME_S. Raises TransportError for too many of a peer."""
        with self._lock:
            self._forget_expired()
            self._make_room(expected.peer_id)
            token = token or secrets.token_bytes(TOKEN_BYTES)
            expected.expires_s = self._now() + LIFETIME_S
            self._expected[token] = expected
            return token

    def _make_room(self, peer_id: PeerId) -> None:
        same = [token for token, one in self._expected.items() if one.peer_id == peer_id]
        if len(same) < MAX_PER_PEER and len(self._expected) < MAX_TOKENS:
            return
        used = next((token for token in same if self._expected[token].visits.num), None)
        if used is None:
            raise TransportError("too many lanes are being opened at once")
        del self._expected[used]

    def take(self, token: bytes) -> Expected | None:
        """Who comes with that token; None for a wrong, expired or worn one."""
        with self._lock:
            self._forget_expired()
            expected = self._expected.get(token)
            if expected is None:
                return None
            expected.visits.num += 1
            if expected.visits.num >= MAX_USES:
                del self._expected[token]
            return expected

    def revoke(self, token: bytes) -> None:
        """Let the token be worth nothing."""
        with self._lock:
            self._expected.pop(token, None)

    def _forget_expired(self) -> None:
        now = self._now()
        while self._expected:
            token, first = next(iter(self._expected.items()))
            if first.expires_s > now:
                return
            del self._expected[token]
