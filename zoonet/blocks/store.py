"""Where a peer keeps blocks: bounded, crash-safe, and checked again on every read."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import tempfile
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, ParamSpec, Protocol, TypeVar

from zoonet.blocks.cid import Codec, check, cid_of, is_cid
from zoonet.blocks.ledger import Ledger
from zoonet.errors import DigestMismatch, ShardUnavailable, StorageError
from zoonet.transport import MAX_FRAME_BYTES

P = ParamSpec("P")
R = TypeVar("R")

MAX_BLOCK_BYTES: Final = MAX_FRAME_BYTES - 1024  # a block travels in one frame
DEFAULT_STORE_BYTES: Final = 64 * 1024**3
_TEMPORARY: Final = ".partial-"

log = logging.getLogger(__name__)


class Blocks(Protocol):
    """A store of blocks by CID. Thread-safe. Its methods block where `is_blocking`."""

    @property
    def is_blocking(self) -> bool:
        """Whether calls wait for a disk and so belong into a thread."""
        ...

    @property
    def size_bytes(self) -> int:
        """Bytes of all stored blocks."""
        ...

    def put(self, block: bytes, codec: Codec = Codec.RAW) -> str:
        """Store a block and return its CID.

        Raises StorageError where the disk or the store's limit is full of pinned blocks.
        """
        ...

    def get(self, cid: str) -> bytes:
        """Return a block. Raises ShardUnavailable where it is not here, DigestMismatch where
        its bytes are damaged (the damaged block is removed).
        """
        ...

    def has(self, cid: str) -> bool:
        """Tell whether the block is here; does not read it."""
        ...

    def delete(self, cid: str) -> None:
        """Remove a block, pinned or not. Absent blocks are fine."""
        ...

    def pin(self, owner: str, cids: Iterable[str]) -> None:
        """Keep these blocks, stored now or later, until the owner unpins."""
        ...

    def unpin(self, owner: str) -> None:
        """Let go of everything the owner pinned."""
        ...


async def call_store(
    store: Blocks, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
) -> R:
    """Call one of the store's functions without blocking the event loop.

    A dropped call may still complete in its thread: puts and reads are harmless there.
    """
    if store.is_blocking:
        return await asyncio.to_thread(function, *args, **kwargs)
    return function(*args, **kwargs)


class MemoryBlockStore:
    """Blocks in memory: for tests, and for peers without a disk."""

    is_blocking = False

    def __init__(self, *, max_bytes: int = DEFAULT_STORE_BYTES) -> None:
        self._ledger = Ledger(max_bytes)
        self._blocks: dict[str, bytes] = {}
        self._lock = threading.RLock()

    @property
    def size_bytes(self) -> int:
        return self._ledger.size_bytes

    def put(self, block: bytes, codec: Codec = Codec.RAW) -> str:
        check_size(block)
        cid = cid_of(block, codec)
        with self._lock:
            if cid not in self._blocks:
                for victim in self._ledger.reserve(len(block)):
                    self.delete(victim)
                self._blocks[cid] = bytes(block)
                self._ledger.add(cid, len(block))
                self._ledger.release(len(block))
            self._ledger.touch(cid)
        return cid

    def get(self, cid: str) -> bytes:
        with self._lock:
            if cid not in self._blocks:
                raise ShardUnavailable(f"block {cid} is not in the local store")
            self._ledger.touch(cid)
            return self._blocks[cid]

    def has(self, cid: str) -> bool:
        return cid in self._blocks

    def delete(self, cid: str) -> None:
        with self._lock:
            self._blocks.pop(cid, None)
            self._ledger.remove(cid)

    def pin(self, owner: str, cids: Iterable[str]) -> None:
        with self._lock:
            self._ledger.pin(owner, cids)

    def unpin(self, owner: str) -> None:
        with self._lock:
            self._ledger.unpin(owner)


class BlockStore:
    """Blocks as files under `root`, one folder level deep.

    A block appears by a rename after its bytes are on the disk, so that a crash leaves whole
    blocks and temporary files, which the next start sweeps away. Pins last as long as the object.
    """

    is_blocking = True

    def __init__(self, root: Path, *, max_bytes: int = DEFAULT_STORE_BYTES) -> None:
        """Raises StorageError where the folder cannot be made or read."""
        self.root = root
        self._ledger = Ledger(max_bytes)
        self._lock = threading.RLock()
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._read_folder()
        except OSError as error:
            raise storage_error("open the block store", root, error) from error

    def _read_folder(self) -> None:
        found = []
        for path in self.root.glob("*/*"):
            if path.name.startswith(_TEMPORARY):
                path.unlink()
            elif is_cid(path.name):
                status = path.stat()
                found.append((status.st_mtime, path.name, status.st_size))
        for _, cid, num_bytes in sorted(found):
            self._ledger.add(cid, num_bytes)

    def _path(self, cid: str) -> Path:
        return self.root / cid[-2:] / cid

    @property
    def size_bytes(self) -> int:
        return self._ledger.size_bytes

    def put(self, block: bytes, codec: Codec = Codec.RAW) -> str:
        check_size(block)
        cid = cid_of(block, codec)
        with self._lock:
            if self.has(cid):
                self._ledger.touch(cid)
                return cid
            for victim in self._ledger.reserve(len(block)):
                self.delete(victim)
        try:
            write_durably(self._path(cid), block)
            with self._lock:
                self._ledger.add(cid, len(block))
        except OSError as error:
            raise storage_error("store a block", self.root, error) from error
        finally:
            with self._lock:
                self._ledger.release(len(block))
        return cid

    def get(self, cid: str) -> bytes:
        if not is_cid(cid):
            raise ShardUnavailable(f"{cid[:80]!r} is not the name of a block")
        path = self._path(cid)
        try:
            block = path.read_bytes()
            os.utime(path)
        except FileNotFoundError as error:
            with self._lock:
                self._ledger.remove(cid)
            raise ShardUnavailable(f"block {cid} is not in the local store") from error
        except OSError as error:
            raise storage_error("read a block", path, error) from error
        try:
            check(cid, block)
        except DigestMismatch:
            log.warning("removed a damaged block cid=%s path=%s", cid, path)
            self.delete(cid)
            raise
        with self._lock:
            self._ledger.add(cid, len(block))
        return block

    def has(self, cid: str) -> bool:
        return cid in self._ledger.sizes

    def delete(self, cid: str) -> None:
        with self._lock:
            self._ledger.remove(cid)
            try:
                self._path(cid).unlink(missing_ok=True)
            except OSError as error:
                raise storage_error("remove a block", self._path(cid), error) from error

    def pin(self, owner: str, cids: Iterable[str]) -> None:
        with self._lock:
            self._ledger.pin(owner, cids)

    def unpin(self, owner: str) -> None:
        with self._lock:
            self._ledger.unpin(owner)


def check_size(block: bytes) -> None:
    """Raise ValueError for a block that would not fit into one frame."""
    if len(block) > MAX_BLOCK_BYTES:
        raise ValueError(f"a block of {len(block)} bytes, at most {MAX_BLOCK_BYTES}")


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all, whatever happens. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # an interrupt, too, must leave no temporary file
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def storage_error(action: str, path: Path, error: OSError) -> StorageError:
    """Our error for the disk's: says what failed, where, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "the disk is full; free some space or choose a folder on another disk"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "check the folder's owner and permissions"
    else:
        advice = "check the disk"
    return StorageError(f"cannot {action} at {path}: {error.strerror or error}; {advice}")
