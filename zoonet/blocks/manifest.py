"""Files as lists of blocks. A file's name is the CID of the root of its tree: see `unixfs`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from zoonet.blocks.cid import Codec
from zoonet.blocks.store import Blocks, storage_error
from zoonet.blocks.unixfs import WIDTH, Child, children_of, is_leaf, leaf, nodes_above
from zoonet.errors import ProtocolViolation
from zoonet.transport import Buffer

FILE_BLOCK_BYTES: Final = 1024 * 1024
MAX_BLOCKS: Final = 65_536
MAX_FILE_BYTES: Final = MAX_BLOCKS * FILE_BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Manifest:
    """A file of `size` bytes, cut into blocks of `block_bytes`; the last one may be shorter."""

    size: int
    block_bytes: int
    cids: tuple[str, ...]
    nodes: tuple[str, ...]  # what joins the blocks, the root last; none above a single block

    def size_of(self, index: int) -> int:
        """Bytes of the block at that place."""
        return min(self.block_bytes, self.size - index * self.block_bytes)


def nodes_below(root_cid: str, root: bytes) -> tuple[str, ...]:
    """Names of the nodes right below a file's root. Raises ProtocolViolation."""
    if is_leaf(root_cid):
        return ()
    return tuple(part.cid for part in _parts(root) if not is_leaf(part.cid))


def manifest_of(store: Blocks, root_cid: str) -> Manifest:
    """Read the tree of a file whose nodes are here.

    Raises ShardUnavailable, or ProtocolViolation for a tree that `put_bytes` would not make.
    """
    if is_leaf(root_cid):
        size = len(store.get(root_cid))
        return _manifest(root_cid, [Child(root_cid, size, size)])
    level = _parts(store.get(root_cid))
    if not is_leaf(level[0].cid):
        level = [part for child in level for part in _children(store.get(child.cid))]
    return _manifest(root_cid, level)


def _parts(root: bytes) -> list[Child]:
    """What is right below a root: no more nodes than a file has, before any of them is read."""
    parts = _children(root)
    num_nodes = sum(not is_leaf(part.cid) for part in parts)
    if num_nodes > MAX_BLOCKS // WIDTH:
        raise ProtocolViolation("", f"a file of {num_nodes} nodes, at most {MAX_BLOCKS // WIDTH}")
    return parts


def _children(block: bytes) -> list[Child]:
    try:
        return children_of(block)
    except ValueError as error:
        raise ProtocolViolation("", f"not a node of a file: {error}") from error


def _manifest(root_cid: str, leaves: list[Child]) -> Manifest:
    """Check that the leaves make a file of that name, laid out as ours are."""
    size, block_bytes = sum(part.content_bytes for part in leaves), leaves[0].content_bytes
    has_even_cut = all(part.content_bytes == block_bytes for part in leaves[:-1])
    if len(leaves) > MAX_BLOCKS or block_bytes > FILE_BLOCK_BYTES or not has_even_cut:
        raise ProtocolViolation("", f"a file of {size} bytes in {len(leaves)} uneven blocks")
    if leaves[-1].content_bytes > block_bytes or not all(is_leaf(part.cid) for part in leaves):
        raise ProtocolViolation("", "a file whose last block is the largest, or deeper than any")
    nodes = tuple(node.child.cid for node in nodes_above(leaves))
    if (nodes[-1] if nodes else leaves[0].cid) != root_cid:
        raise ProtocolViolation("", "a file that is not laid out as ours are")
    return Manifest(size, max(1, block_bytes), tuple(part.cid for part in leaves), nodes)


def put_bytes(
    store: Blocks, content: Buffer, *, block_bytes: int = FILE_BLOCK_BYTES, owner: str = ""
) -> str:
    """Store bytes as a file and return the CID of its root.

    With `owner` every block is pinned for it. Raises StorageError.
    """
    view = memoryview(content).cast("B")
    pieces = (view[start : start + block_bytes] for start in range(0, len(view), block_bytes))
    return _put(store, (bytes(piece) for piece in pieces), len(view), block_bytes, owner)


def put_file(
    store: Blocks, path: Path, *, block_bytes: int = FILE_BLOCK_BYTES, owner: str = ""
) -> str:
    """Store a file's contents as `put_bytes` does. Raises StorageError."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            pieces = iter(lambda: file.read(block_bytes), b"")
            return _put(store, pieces, size, block_bytes, owner)
    except OSError as error:
        raise storage_error("read", path, error) from error


def _put(store: Blocks, pieces: Iterator[bytes], size: int, block_bytes: int, owner: str) -> str:
    if size > MAX_BLOCKS * block_bytes:
        raise ValueError(f"{size} bytes in blocks of {block_bytes}: more than {MAX_BLOCKS} blocks")

    def put(block: bytes, codec: Codec = Codec.RAW) -> str:
        cid = store.put(block, codec)
        if owner:
            store.pin(owner, (cid,))
        return cid

    leaves = []
    for piece in pieces:
        put(piece)
        leaves.append(leaf(piece))
    root = put(b"") if not leaves else leaves[0].cid
    for node in nodes_above(leaves):
        root = put(node.block, Codec.DAG_PB)
    return root


def blocks_of(store: Blocks, root_cid: str) -> tuple[str, ...]:
    """The CIDs of a file's nodes and blocks: what to pin. Raises ShardUnavailable."""
    manifest = manifest_of(store, root_cid)
    return (*manifest.nodes, *manifest.cids)


def read_blocks(store: Blocks, root_cid: str) -> Iterator[bytes]:
    """Yield a file's blocks in order.

    Raises ShardUnavailable, DigestMismatch, or ProtocolViolation for a block of a wrong size.
    """
    manifest = manifest_of(store, root_cid)
    for index, cid in enumerate(manifest.cids):
        block = store.get(cid)
        if len(block) != manifest.size_of(index):
            raise ProtocolViolation("", f"block {cid} has {len(block)} bytes, not as announced")
        yield block


def read_bytes(store: Blocks, root_cid: str) -> bytes:
    """Return a whole file that is here. Raises as `read_blocks`."""
    return b"".join(read_blocks(store, root_cid))


def write_file(store: Blocks, root_cid: str, path: Path) -> None:
    """Write a file that is here to `path`, whole or not at all.

    Raises as `read_blocks`, and StorageError where the disk refuses.
    """
    with writing(path) as file:
        for block in read_blocks(store, root_cid):
            file.write(block)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` when the block ends well. Raises StorageError."""
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise storage_error("write", path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
