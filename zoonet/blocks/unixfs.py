"""Files as IPFS lays them out: raw leaves under a balanced tree of nodes (UnixFS in dag-pb). Pure.

The same bytes so get the same name here and there. A file of one leaf is that leaf. Sources:
https://ipld.io/specs/codecs/dag-pb/spec/ and https://github.com/ipfs/specs (UNIXFS.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from zoonet.blocks.cid import CID_BYTES, Codec, bytes_of, cid_of, codec_of, text_of

WIDTH: Final = 1024  # children of a node
MAX_NODE_BYTES: Final = 80 * 1024  # of which 1,024 children need 64 KiB at most
_FILE: Final = 2  # UnixFS' type


@dataclass(frozen=True, slots=True)
class Child:
    """A part of a file: the block on top of it, its bytes of content, and its bytes in blocks."""

    cid: str
    content_bytes: int
    dag_bytes: int


@dataclass(frozen=True, slots=True)
class Node:
    """An inner block and what it stands for."""

    child: Child
    block: bytes


def leaf(block: bytes) -> Child:
    """A piece of content."""
    return Child(cid_of(block), len(block), len(block))


def nodes_above(leaves: Sequence[Child]) -> Iterator[Node]:
    """Yield the nodes that join a file's leaves, the root last; none above a single leaf.

    The order is that in which they are complete, level by level.
    """
    level = list(leaves)
    while len(level) > 1:
        nodes = [node_of(level[first : first + WIDTH]) for first in range(0, len(level), WIDTH)]
        yield from nodes
        level = [node.child for node in nodes]


def node_of(children: Sequence[Child]) -> Node:
    """The block that joins these parts of a file."""
    links = b"".join(
        _field(
            2,
            _field(1, bytes_of(child.cid)) + _field(2, b"") + b"\x18" + varint(child.dag_bytes),
        )
        for child in children
    )
    num_bytes = sum(child.content_bytes for child in children)
    sizes = b"".join(b"\x20" + varint(child.content_bytes) for child in children)
    about = b"\x08" + varint(_FILE) + b"\x18" + varint(num_bytes) + sizes
    block = links + _field(1, about)
    dag_bytes = len(block) + sum(child.dag_bytes for child in children)
    return Node(Child(cid_of(block, Codec.DAG_PB), num_bytes, dag_bytes), block)


def children_of(block: bytes) -> list[Child]:
    """Read a node. Raises ValueError for bytes that `node_of` does not make."""
    if len(block) > MAX_NODE_BYTES:
        raise ValueError(f"{len(block)} bytes, at most {MAX_NODE_BYTES}")
    reader = _Reader(block)
    links: list[tuple[str, int]] = []
    while reader.skip(b"\x12"):
        if len(links) == WIDTH:
            raise ValueError(f"more than {WIDTH} links")
        link = _Reader(reader.bytes())
        link.expect(b"\x0a" + varint(CID_BYTES))
        cid = text_of(link.take(CID_BYTES))
        link.expect(b"\x12\x00\x18")
        links.append((cid, link.varint()))
        link.end()
    reader.expect(b"\x0a")
    about = _Reader(reader.bytes())
    about.expect(b"\x08" + varint(_FILE) + b"\x18")
    about.varint()  # the sum of the sizes, or the check below fails
    children = []
    for cid, dag_bytes in links:
        about.expect(b"\x20")
        children.append(Child(cid, about.varint(), dag_bytes))
    if not children or node_of(children).block != block:
        raise ValueError("not in the one form of a node")
    return children


def is_leaf(cid: str) -> bool:
    """Tell whether the block of that name is content, not a node."""
    return codec_of(cid) is Codec.RAW


def varint(value: int) -> bytes:
    """An unsigned number, seven bits a byte, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def _field(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + varint(len(content)) + content


class _Reader:
    """Reads a stranger's bytes from front to end. Raises ValueError where they are others."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def skip(self, expected: bytes) -> bool:
        if not self._raw.startswith(expected, self._at):
            return False
        self._at += len(expected)
        return True

    def expect(self, expected: bytes) -> None:
        if not self.skip(expected):
            raise ValueError(f"no {expected.hex()} at byte {self._at}")

    def take(self, num_bytes: int) -> bytes:
        found = self._raw[self._at : self._at + num_bytes]
        if len(found) != num_bytes:
            raise ValueError(f"ends within {num_bytes} bytes from byte {self._at}")
        self._at += num_bytes
        return found

    def bytes(self) -> bytes:
        return self.take(self.varint())

    def varint(self) -> int:
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
            if shift > 56:
                raise ValueError(f"an endless number before byte {self._at}")

    def end(self) -> None:
        if self._at != len(self._raw):
            raise ValueError(f"{len(self._raw) - self._at} bytes too many")
