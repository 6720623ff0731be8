"""The block store: names, bounds, damage, crashes, full disks."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import cid as reference
import multihash
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoonet.blocks import Blocks, BlockStore, MemoryBlockStore, check, cid_of, is_cid
from zoonet.blocks.store import MAX_BLOCK_BYTES, storage_error
from zoonet.errors import DigestMismatch, ShardUnavailable, StorageError


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Blocks:
    if request.param == "disk":
        return BlockStore(tmp_path / "blocks", max_bytes=1000)
    return MemoryBlockStore(max_bytes=1000)


@pytest.fixture
def small_files() -> Iterator[None]:
    """The kernel refuses writes beyond 4 KiB: a disk that fails in the middle of a block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@given(st.binary(max_size=300))
def test_names_are_those_of_the_reference_implementation(data: bytes) -> None:
    expected = reference.CIDv1("raw", multihash.digest(data, "sha2-256").encode())
    assert cid_of(data) == expected.encode("base32").decode()
    assert is_cid(cid_of(data))


@pytest.mark.parametrize("text", ["", "../../etc/passwd", "bafkrei", "BAFKREI" + "a" * 52])
def test_what_is_no_name_is_told_apart(text: str) -> None:
    assert not is_cid(text)


def test_wrong_bytes_name_the_peer_that_sent_them() -> None:
    with pytest.raises(DigestMismatch) as caught:
        check(cid_of(b"asked"), b"sent", peer="16Uiu2culprit")
    assert caught.value.peer == "16Uiu2culprit"


def test_a_block_comes_back_as_it_was(store: Blocks) -> None:
    cid = store.put(b"hello")
    assert cid == cid_of(b"hello")
    assert store.has(cid)
    assert store.get(cid) == b"hello"
    assert store.size_bytes == 5


def test_a_block_that_is_not_here_is_unavailable(store: Blocks) -> None:
    with pytest.raises(ShardUnavailable, match="not in the local store"):
        store.get(cid_of(b"absent"))


def test_storing_twice_takes_room_once(store: Blocks) -> None:
    store.put(b"x" * 400)
    store.put(b"x" * 400)
    assert store.size_bytes == 400


def test_a_deleted_block_is_gone(store: Blocks) -> None:
    cid = store.put(b"hello")
    store.delete(cid)
    store.delete(cid)
    assert not store.has(cid)
    assert store.size_bytes == 0


def test_the_least_recently_used_block_makes_room(store: Blocks) -> None:
    first, second = store.put(b"a" * 400), store.put(b"b" * 400)
    store.get(first)
    third = store.put(b"c" * 400)
    assert [store.has(cid) for cid in (first, second, third)] == [True, False, True]
    assert store.size_bytes == 800


def test_pinned_blocks_stay_and_a_store_full_of_them_says_so(store: Blocks) -> None:
    store.pin("job", [cid_of(b"a" * 600)])
    pinned = store.put(b"a" * 600)
    with pytest.raises(StorageError, match=r"the block store is full.*raise its limit"):
        store.put(b"b" * 600)
    assert store.has(pinned)
    store.unpin("job")
    store.put(b"b" * 600)
    assert not store.has(pinned)


def test_a_block_too_large_for_a_frame_is_a_callers_bug(store: Blocks) -> None:
    with pytest.raises(ValueError, match="at most"):
        store.put(bytes(MAX_BLOCK_BYTES + 1))


def test_damaged_bytes_are_found_on_read_and_removed(tmp_path: Path) -> None:
    store = BlockStore(tmp_path)
    cid = store.put(b"right bytes")
    (tmp_path / cid[-2:] / cid).write_bytes(b"wrong bytes")
    with pytest.raises(DigestMismatch):
        store.get(cid)
    assert not store.has(cid)
    assert not (tmp_path / cid[-2:] / cid).exists()


def test_a_name_that_points_outside_the_store_reads_nothing(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"key")
    with pytest.raises(ShardUnavailable):
        BlockStore(tmp_path / "blocks").get("../../secret")


def test_a_restart_finds_whole_blocks_and_sweeps_partial_ones(tmp_path: Path) -> None:
    cid = BlockStore(tmp_path).put(b"whole")
    partial = tmp_path / cid[-2:] / ".partial-crash"
    partial.write_bytes(b"half a blo")
    store = BlockStore(tmp_path)
    assert store.get(cid) == b"whole"
    assert store.size_bytes == 5
    assert not partial.exists()


def test_a_disk_that_fails_in_the_middle_leaves_no_trace(tmp_path: Path, small_files: None) -> None:
    store = BlockStore(tmp_path)
    with pytest.raises(StorageError, match="cannot store a block at"):
        store.put(os.urandom(100_000))
    assert store.size_bytes == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert store.get(store.put(b"small")) == b"small"


def test_a_full_disk_says_what_where_and_what_to_do() -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = str(storage_error("store a block", Path("/disk/blocks"), error))
    assert message == (
        "cannot store a block at /disk/blocks: No space left on device; "
        "the disk is full; free some space or choose a folder on another disk"
    )


def test_a_store_under_a_file_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot open the block store"):
        BlockStore(tmp_path / "file" / "blocks")
