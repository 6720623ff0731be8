"""Files as CAR archives, for IPFS: a file's root, then its blocks, each with its name.

https://ipld.io/specs/transport/car/carv1/
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Final

from zoonet.blocks.cid import bytes_of
from zoonet.blocks.manifest import manifest_of, read_blocks, writing
from zoonet.blocks.store import Blocks
from zoonet.blocks.unixfs import varint

# DAG-CBOR of {"roots": [root], "version": 1}, around the root's name.
_BEFORE_ROOT: Final = b"\xa2\x65roots\x81\xd8\x2a\x58\x25\x00"
_AFTER_ROOT: Final = b"\x67version\x01"


def write_car(store: Blocks, root_cid: str, path: Path) -> None:
    """Write a file that is here as an archive to `path`, whole or not at all.

    Up to 1,024 blocks, byte for byte what ipfs-car makes of the file; of larger ones, whose nodes
    that writes in no fixed order, the nodes come last. Raises ShardUnavailable, DigestMismatch,
    ProtocolViolation, and StorageError where the disk refuses.
    """
    manifest = manifest_of(store, root_cid)
    with writing(path) as file:
        header = _BEFORE_ROOT + bytes_of(root_cid) + _AFTER_ROOT
        file.write(varint(len(header)) + header)
        for cid, block in zip(manifest.cids, read_blocks(store, root_cid), strict=True):
            _write_block(file, cid, block)
        for cid in manifest.nodes:
            _write_block(file, cid, store.get(cid))


def _write_block(file: BinaryIO, cid: str, block: bytes) -> None:
    name = bytes_of(cid)
    file.write(varint(len(name) + len(block)) + name)
    file.write(block)
