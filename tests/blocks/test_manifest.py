"""Files as manifests of blocks; strangers' manifests."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoonet.blocks import (
    MemoryBlockStore,
    blocks_of,
    cid_of,
    manifest_of,
    put_bytes,
    put_file,
    read_bytes,
    write_file,
)
from zoonet.blocks.manifest import decode, encode
from zoonet.errors import ProtocolViolation, ShardUnavailable, StorageError


@given(st.binary(max_size=200), st.integers(1, 64))
def test_any_bytes_survive_any_cut(content: bytes, block_bytes: int) -> None:
    store = MemoryBlockStore()
    cid = put_bytes(store, content, block_bytes=block_bytes)
    assert read_bytes(store, cid) == content
    assert decode(encode(manifest_of(store, cid))) == manifest_of(store, cid)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_manifest_or_refused(raw: bytes) -> None:
    with suppress(ProtocolViolation):
        decode(raw)


def test_a_refused_manifest_names_the_peer() -> None:
    with pytest.raises(ProtocolViolation) as caught:
        decode(b"junk", peer="culprit")
    assert caught.value.peer == "culprit"


def wire(**changes: object) -> bytes:
    fields = {
        "kind": "manifest/1",
        "size": 5,
        "block_bytes": 4,
        "cids": [cid_of(b"a"), cid_of(b"b")],
    }
    return msgspec.msgpack.encode(fields | changes)


def test_the_unchanged_wire_form_is_accepted() -> None:
    assert decode(wire()).size == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"size": -1},
        {"size": 9},
        {"size": 1 << 60},
        {"block_bytes": 0},
        {"block_bytes": 1 << 40},
        {"cids": [cid_of(b"a")]},
        {"cids": ["../../etc/passwd", cid_of(b"b")]},
        {"kind": "manifest/2"},
        {"extra": 1},
        {"size": "5"},
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ProtocolViolation, match="not a manifest"):
        decode(wire(**changes))


def test_a_file_goes_in_and_comes_out(tmp_path: Path) -> None:
    store = MemoryBlockStore()
    (tmp_path / "in").write_bytes(bytes(range(250)) * 10)
    cid = put_file(store, tmp_path / "in", block_bytes=1000)
    assert len(blocks_of(store, cid)) == 1 + 3
    write_file(store, cid, tmp_path / "new" / "out")
    assert (tmp_path / "new" / "out").read_bytes() == (tmp_path / "in").read_bytes()


def test_a_file_with_a_missing_block_is_not_written_at_all(tmp_path: Path) -> None:
    store = MemoryBlockStore()
    cid = put_bytes(store, b"x" * 10, block_bytes=4)
    store.delete(cid_of(b"xx"))
    with pytest.raises(ShardUnavailable):
        write_file(store, cid, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_block_of_another_size_than_announced_is_refused() -> None:
    store = MemoryBlockStore()
    raw = wire(cids=[store.put(b"12345678"), store.put(b"1")])
    with pytest.raises(ProtocolViolation, match="not as announced"):
        read_bytes(store, store.put(raw))


def test_a_file_that_vanished_says_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read at .*gone\.txt: No such file"):
        put_file(MemoryBlockStore(), tmp_path / "gone.txt")
