"""Tokens: worth something to one peer, for a while."""

from __future__ import annotations

import pytest

from tests.contracts.networks import identity_of
from zoonet.errors import TransportError
from zoonet.net.lanes.certificates import Credentials
from zoonet.net.lanes.connection import Connection
from zoonet.net.lanes.tokens import LIFETIME_S, MAX_PER_PEER, MAX_USES, Expected, TokenBook


def nobody(connection: Connection) -> None:
    raise AssertionError("nobody comes in")


def expected(name: str = "a") -> Expected:
    return Expected(identity_of(name).peer_id, Credentials(b"", b"", 0.0), b"", nobody)


class Stopwatch:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def test_a_token_expires() -> None:
    now = Stopwatch()
    book = TokenBook(now)
    who = expected()
    token = book.issue(who)
    now.time = LIFETIME_S - 1
    assert book.take(token) is who
    now.time = LIFETIME_S
    assert book.take(token) is None


def test_a_token_wears_out() -> None:
    book = TokenBook()
    token = book.issue(expected())
    assert [book.take(token) is not None for _ in range(MAX_USES + 1)] == [True] * MAX_USES + [
        False
    ]


def test_a_token_can_be_revoked_and_others_were_never_worth_anything() -> None:
    book = TokenBook()
    token = book.issue(expected())
    book.revoke(token)
    assert book.take(token) is None
    assert book.take(bytes(32)) is None


def test_a_peer_has_so_many_unused_tokens_and_others_are_not_affected() -> None:
    book = TokenBook()
    first = book.issue(expected())
    for _ in range(MAX_PER_PEER - 1):
        book.issue(expected())
    with pytest.raises(TransportError, match="too many"):
        book.issue(expected())
    book.issue(expected("b"))
    assert book.take(first) is not None
    book.issue(expected())  # in place of the one that was used
    assert book.take(first) is None
