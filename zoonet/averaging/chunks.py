"""How chunks are named on the data plane: one fixed-size header before each payload.

A header carries no weight: it follows from the contributors and what each of them trained, which
the attempt says. It names who has been added up so far, so a missing peer lowers the weight of a
chunk and never hides in it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

import numpy as np
from blake3 import blake3

from zoonet.averaging.messages import Attempt
from zoonet.averaging.plan import MAX_MEMBERS, chunk_bounds
from zoonet.exact import Vector

ROUND_KEY_BYTES: Final = 16
DIGEST_BYTES: Final = 32
_BITS_BYTES: Final = MAX_MEMBERS // 8
_LAYOUT: Final = struct.Struct(f">B{ROUND_KEY_BYTES}sHIB{_BITS_BYTES}s")


class Kind(IntEnum):
    """What a message carries."""

    COMMITMENT = 1  # the digests of all chunks that this contributor will send
    PART = 2  # a chunk of one contribution, climbing to its site's owner
    SUM = 3  # a chunk of a site's mean, climbing to the root
    MEAN = 4  # a chunk of the mean, on its way down
    ALIVE = 5  # nothing: the sender waits for those in the set


@dataclass(frozen=True, slots=True)
class Header:
    """What a payload is. Indices are into the plan's peers."""

    kind: Kind
    round_key: bytes
    number: int  # of the attempt in which it was sent
    chunk: int = 0
    maker: int = 0  # who averaged a MEAN; otherwise unused
    bits: int = 0  # set of the contributors that are in it, or that are waited for

    def encode(self) -> bytes:
        """The header's bytes."""
        bits = self.bits.to_bytes(_BITS_BYTES, "little")
        return _LAYOUT.pack(self.kind, self.round_key, self.number, self.chunk, self.maker, bits)


@lru_cache(maxsize=256)  # each is looked at when its payload begins and when it has come
def decode_header(raw: bytes) -> Header:
    """Read a header. Raises ValueError for anything that is none."""
    if len(raw) != _LAYOUT.size:
        raise ValueError(f"a header of {len(raw)} bytes")
    kind, round_key, number, chunk, maker, bits = _LAYOUT.unpack(raw)
    return Header(Kind(kind), round_key, number, chunk, maker, int.from_bytes(bits, "little"))


def bits_of(indices: frozenset[int]) -> int:
    """The set as a number with those bits."""
    return sum(1 << index for index in indices)


def indices_of(bits: int) -> list[int]:
    """The set that `bits_of` made, in order."""
    return [index for index in range(bits.bit_length()) if bits >> index & 1]


def root_of(digests: bytes) -> bytes:
    """What a contributor commits to: the digest (32 bytes) of its chunks' digests, in order."""
    return blake3(b"zoonet-contribution/1\x00" + digests).digest()


def slice_digests(attempt: Attempt, mean_P: Vector) -> tuple[bytes, ...]:
    """Digests of the means that the attempt's trees have brought, in their order.

    By tree, not by maker: a slice that came in two forms may have been changed by who passed it on.
    """
    digests = []
    for tree in attempt.plan.trees:
        start, _ = chunk_bounds(mean_P.size, tree.first)
        _, stop = chunk_bounds(mean_P.size, tree.stop - 1)
        hasher = blake3(b"zoonet-slice/1\x00")
        digests.append(hasher.update(mean_P[start:stop].view(np.uint8).data).digest())
    return tuple(digests)
