"""Files as lists of blocks. A file's name is the CID of its manifest, itself a block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from zoonet.blocks.cid import is_cid
from zoonet.blocks.store import MAX_BLOCK_BYTES, Blocks, storage_error
from zoonet.errors import ProtocolViolation
from zoonet.transport import Buffer

FILE_BLOCK_BYTES: Final = 1024 * 1024
MAX_BLOCKS: Final = 65_536  # a manifest is one block: about 61 bytes an entry
MAX_FILE_BYTES: Final = MAX_BLOCKS * FILE_BLOCK_BYTES


class Manifest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of `size` bytes, cut into blocks of `block_bytes`; the last one may be shorter."""

    kind: Literal["manifest/1"] = "manifest/1"
    size: Annotated[int, Meta(ge=0, le=MAX_FILE_BYTES)]
    block_bytes: Annotated[int, Meta(ge=1, le=FILE_BLOCK_BYTES)]
    cids: Annotated[tuple[str, ...], Meta(max_length=MAX_BLOCKS)]

    def __post_init__(self) -> None:
        num_blocks = -(-self.size // self.block_bytes)
        if len(self.cids) != num_blocks:
            raise ValueError(f"{len(self.cids)} blocks for {self.size} bytes, not {num_blocks}")
        for cid in self.cids:
            if not is_cid(cid):
                raise ValueError(f"{cid[:80]!r} is not the name of a block")

    def size_of(self, index: int) -> int:
        """Bytes of the block at that place."""
        return min(self.block_bytes, self.size - index * self.block_bytes)


def encode(manifest: Manifest) -> bytes:
    """The one byte form of a manifest."""
    return msgspec.msgpack.encode(manifest, order="sorted")


def decode(raw: bytes, *, peer: str = "") -> Manifest:
    """Read a manifest. Raises ProtocolViolation, which names the peer it came from."""
    if len(raw) > MAX_BLOCK_BYTES:
        raise ProtocolViolation(peer, f"a manifest of {len(raw)} bytes")
    try:
        return msgspec.msgpack.decode(raw, type=Manifest, strict=True)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise ProtocolViolation(peer, f"not a manifest: {error}") from error


def put_bytes(
    store: Blocks, content: Buffer, *, block_bytes: int = FILE_BLOCK_BYTES, owner: str = ""
) -> str:
    """Store bytes as a file and return its manifest's CID.

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

    def put(block: bytes) -> str:
        cid = store.put(block)
        if owner:
            store.pin(owner, (cid,))
        return cid

    cids = tuple(put(piece) for piece in pieces)
    return put(encode(Manifest(size=size, block_bytes=block_bytes, cids=cids)))


def manifest_of(store: Blocks, manifest_cid: str) -> Manifest:
    """Read a manifest that is here. Raises ShardUnavailable or ProtocolViolation."""
    return decode(store.get(manifest_cid))


def blocks_of(store: Blocks, manifest_cid: str) -> tuple[str, ...]:
    """The CIDs of a file's blocks, its manifest's first: what to pin. Raises ShardUnavailable."""
    return (manifest_cid, *manifest_of(store, manifest_cid).cids)


def read_blocks(store: Blocks, manifest_cid: str) -> Iterator[bytes]:
    """Yield a file's blocks in order.

    Raises ShardUnavailable, DigestMismatch, or ProtocolViolation for a block of a wrong size.
    """
    manifest = manifest_of(store, manifest_cid)
    for index, cid in enumerate(manifest.cids):
        block = store.get(cid)
        if len(block) != manifest.size_of(index):
            raise ProtocolViolation("", f"block {cid} has {len(block)} bytes, not as announced")
        yield block


def read_bytes(store: Blocks, manifest_cid: str) -> bytes:
    """Return a whole file that is here. Raises as `read_blocks`."""
    return b"".join(read_blocks(store, manifest_cid))


def write_file(store: Blocks, manifest_cid: str, path: Path) -> None:
    """Write a file that is here to `path`, whole or not at all.

    Raises as `read_blocks`, and StorageError where the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            for block in read_blocks(store, manifest_cid):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise storage_error("write", path, error) from error
    finally:
        temporary.unlink(missing_ok=True)
