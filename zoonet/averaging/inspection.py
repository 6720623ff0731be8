"""What is made of a payload that has arrived: is it what was promised, and what does it say?

N = values of one chunk
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from blake3 import blake3

from zoonet.averaging.chunks import DIGEST_BYTES, Header, Kind, root_of
from zoonet.averaging.landing import Buffers
from zoonet.averaging.wire import Values, Wire, is_finite
from zoonet.crypto import PeerId
from zoonet.errors import InvalidPart


@dataclass(frozen=True, slots=True)
class Inspection:
    """Looks at payloads of one round, without a lock. Peers are indices into the plan's."""

    peers: tuple[PeerId, ...]
    roots: Mapping[int, bytes]  # what contributors have committed to
    wire: Wire
    buffers: Buffers
    commitments: dict[int, bytes] = field(default_factory=dict)  # digests of all their chunks

    def check(self, sender: int, header: Header, landed: memoryview) -> None:
        """Raise InvalidPart for what its sender has not committed to."""
        peer = self.peers[sender]
        if header.kind == Kind.COMMITMENT:
            if root_of(bytes(landed)) != self.roots.get(sender):
                raise InvalidPart(peer, "digests that are not what it has committed to")
        elif header.kind == Kind.PART:
            at = DIGEST_BYTES * header.chunk
            expected = self.commitments[sender][at : at + DIGEST_BYTES]
            if blake3(landed).digest() != expected:
                raise InvalidPart(peer, "a chunk that is not what it has committed to")

    def values_in(self, sender: int, header: Header, landed: memoryview, size: int) -> Values:
        """What a payload of `size` values says: a mean's values, others as they are sent.

        Raises InvalidPart for one that is malformed.
        """
        if header.kind == Kind.COMMITMENT:
            return landed
        if self.wire.is_exact:
            values_N = np.frombuffer(landed, np.float32)
            # A part that is not finite shows in the sum.
            if header.kind != Kind.PART and not is_finite(values_N):
                raise InvalidPart(self.peers[sender], "non-finite values")
            return values_N
        values_N = self.buffers.take(size)
        try:
            self.wire.codec.decode(landed, values_N)
        except ValueError as error:
            self.buffers.give_back(values_N)
            raise InvalidPart(self.peers[sender], f"a malformed payload: {error}") from error
        if header.kind == Kind.MEAN:
            return values_N
        self.buffers.give_back(values_N)  # decoded once more where it is added up
        return landed
