"""Files as trees of blocks; trees of strangers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoonet.blocks import (
    Blocks,
    Codec,
    MemoryBlockStore,
    blocks_of,
    cid_of,
    manifest_of,
    put_bytes,
    put_file,
    read_bytes,
    write_car,
    write_file,
)
from zoonet.blocks.manifest import FILE_BLOCK_BYTES, nodes_below
from zoonet.blocks.unixfs import WIDTH, Child, leaf, node_of
from zoonet.errors import ProtocolViolation, ShardUnavailable, StorageError


@given(st.binary(max_size=200), st.integers(1, 64))
def test_any_bytes_survive_any_cut(content: bytes, block_bytes: int) -> None:
    store = MemoryBlockStore()
    cid = put_bytes(store, content, block_bytes=block_bytes)
    assert read_bytes(store, cid) == content
    assert manifest_of(store, cid).size == len(content)


def test_a_file_of_over_a_thousand_blocks_survives() -> None:
    store = MemoryBlockStore()
    content = b"".join(number.to_bytes(4, "big") for number in range(2 * WIDTH + 1))
    cid = put_bytes(store, content, block_bytes=4)
    assert read_bytes(store, cid) == content
    assert len(manifest_of(store, cid).nodes) == 3 + 1


def root_over(store: MemoryBlockStore, *parts: Child) -> str:
    """Store a node over these parts of a file, whether or not ours would do so."""
    return store.put(node_of(parts).block, Codec.DAG_PB)


def test_trees_that_ours_would_not_make_are_refused() -> None:
    store = MemoryBlockStore()
    small, even, large = (leaf(bytes(size)) for size in (1, 4, 2 * FILE_BLOCK_BYTES))
    assert store.put(bytes(4)) == even.cid
    below = node_of((even, even))
    store.put(below.block, Codec.DAG_PB)
    deep = node_of((below.child, below.child))
    store.put(deep.block, Codec.DAG_PB)
    liar = Child(below.child.cid, 9, below.child.dag_bytes)
    for parts, why in {
        (even, small, even): "uneven",
        (small, even): "last block is the largest",
        (large, large): "uneven",
        (even, below.child): "last block is the largest",  # on unequal levels
        (below.child, even): "not a node of a file",
        (below.child, below.child): "not laid out as ours",
        (liar, liar): "not laid out as ours",
        (deep.child, deep.child): "deeper than any",
        (even,): "not laid out as ours",  # a node above a single leaf
    }.items():
        with pytest.raises(ProtocolViolation, match=why):
            manifest_of(store, root_over(store, *parts))


def test_a_root_over_more_nodes_than_a_file_has_is_refused_before_they_are_asked_for() -> None:
    store = MemoryBlockStore()
    piece = node_of([leaf(b"x")] * WIDTH)  # stored nowhere
    root = root_over(store, *[piece.child] * 65)
    with pytest.raises(ProtocolViolation, match="a file of 65 nodes, at most 64"):
        manifest_of(store, root)
    with pytest.raises(ProtocolViolation, match="a file of 65 nodes, at most 64"):
        nodes_below(root, store.get(root))
    enough = root_over(store, *[piece.child] * 64)
    assert nodes_below(enough, store.get(enough)) == (piece.child.cid,) * 64


def test_a_file_goes_in_and_comes_out(tmp_path: Path) -> None:
    store = MemoryBlockStore()
    (tmp_path / "in").write_bytes(bytes(range(250)) * 10)
    cid = put_file(store, tmp_path / "in", block_bytes=1000)
    assert len(blocks_of(store, cid)) == 1 + 3
    write_file(store, cid, tmp_path / "new" / "out")
    assert (tmp_path / "new" / "out").read_bytes() == (tmp_path / "in").read_bytes()


@pytest.mark.parametrize("write", [write_file, write_car])
def test_a_file_with_a_missing_block_is_not_written_at_all(
    write: Callable[[Blocks, str, Path], None], tmp_path: Path
) -> None:
    store = MemoryBlockStore()
    cid = put_bytes(store, b"x" * 10, block_bytes=4)
    store.delete(cid_of(b"xx"))
    with pytest.raises(ShardUnavailable):
        write(store, cid, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_block_of_another_size_than_announced_is_refused(tmp_path: Path) -> None:
    store = MemoryBlockStore()
    promised = Child(store.put(b"12345678"), 4, 4)
    root = root_over(store, promised, leaf(b"1"))
    with pytest.raises(ProtocolViolation, match="not as announced"):
        read_bytes(store, root)
    with pytest.raises(ProtocolViolation, match="not as announced"):
        write_car(store, root, tmp_path / "out.car")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_vanished_says_where_it_was(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot read at .*gone\.txt: No such file"):
        put_file(MemoryBlockStore(), tmp_path / "gone.txt")
