"""Content-addressed blocks: names, a local store, files made of them, exchange between peers."""

from zoonet.blocks.car import write_car
from zoonet.blocks.cid import Codec, check, cid_of, is_cid
from zoonet.blocks.exchange import BlockExchange
from zoonet.blocks.manifest import (
    MAX_FILE_BYTES,
    Manifest,
    blocks_of,
    manifest_of,
    put_bytes,
    put_file,
    read_blocks,
    read_bytes,
    write_file,
)
from zoonet.blocks.store import (
    MAX_BLOCK_BYTES,
    Blocks,
    BlockStore,
    MemoryBlockStore,
    call_store,
)

__all__ = [
    "MAX_BLOCK_BYTES",
    "MAX_FILE_BYTES",
    "BlockExchange",
    "BlockStore",
    "Blocks",
    "Codec",
    "Manifest",
    "MemoryBlockStore",
    "blocks_of",
    "call_store",
    "check",
    "cid_of",
    "is_cid",
    "manifest_of",
    "put_bytes",
    "put_file",
    "read_blocks",
    "read_bytes",
    "write_car",
    "write_file",
]
