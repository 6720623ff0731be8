"""The bookkeeping of a block store."""

from __future__ import annotations

import pytest

from zoonet.blocks.ledger import Ledger
from zoonet.errors import StorageError


def test_room_set_aside_is_not_given_away_twice() -> None:
    ledger = Ledger(100)
    assert ledger.reserve(60) == []
    with pytest.raises(StorageError, match="the block store is full"):
        ledger.reserve(60)
    ledger.release(60)
    assert ledger.reserve(60) == []


def test_only_as_many_blocks_go_as_must() -> None:
    ledger = Ledger(100)
    for cid in ("old", "older", "new"):
        ledger.add(cid, 30)
    ledger.touch("old")
    ledger.pin("job", ["older"])
    assert ledger.reserve(15) == ["new"]


def test_a_block_pinned_twice_stays_until_both_let_go() -> None:
    ledger = Ledger(10)
    ledger.add("cid", 10)
    ledger.pin("a", ["cid"])
    ledger.pin("b", ["cid"])
    ledger.unpin("a")
    with pytest.raises(StorageError):
        ledger.reserve(1)
    ledger.unpin("b")
    assert ledger.reserve(1) == ["cid"]
