"""A chain's certificates and heads, kept as bytes: a job of weeks has tens of thousands of them.

In memory by default; with a `FileLog` a round costs 48 bytes of memory and its certificate, a few
hundred bytes a member, lies in a file.
"""

from __future__ import annotations

import logging
import os
import tempfile
import weakref
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol, overload

import msgspec

from zoonet.averaging.messages import Certificate

HEAD_BYTES: Final = 32

log = logging.getLogger(__name__)

_decoder: Final = msgspec.msgpack.Decoder(Certificate)


class Log(Protocol):
    """Bytes that are written once, one after the other."""

    def write(self, raw: bytes) -> int:
        """Append, and return the place. Raises OSError where there is no room."""
        ...

    def read(self, place: int, num_bytes: int) -> bytes:
        """What was written there."""
        ...


class MemoryLog:
    """A `Log` in memory."""

    def __init__(self) -> None:
        self._raw = bytearray()

    def write(self, raw: bytes) -> int:
        place = len(self._raw)
        self._raw += raw
        return place

    def read(self, place: int, num_bytes: int) -> bytes:
        return bytes(self._raw[place : place + num_bytes])


class FileLog:
    """A `Log` in a file without a name, which is gone with this object or its process."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError where the folder cannot be written to."""
        self._file, path = tempfile.mkstemp(prefix="chain-", dir=folder)
        weakref.finalize(self, os.close, self._file)
        os.unlink(path)
        self._num_bytes = 0

    def write(self, raw: bytes) -> int:
        place = self._num_bytes
        if os.pwrite(self._file, raw, place) != len(raw):
            raise OSError("no room for all of a certificate")
        self._num_bytes += len(raw)
        return place

    def read(self, place: int, num_bytes: int) -> bytes:
        return os.pread(self._file, num_bytes, place)


class Certificates(Sequence[Certificate]):
    """The links of a chain, in order. Whoever reads one gets a fresh object.

    A beginning (`until`) shares the log and keeps what it goes on with in memory, until `keep`
    says that it is the chain to be followed.
    """

    def __init__(self, log: Log | None = None) -> None:
        self._log: Log = log or MemoryLog()
        self._places = array("Q")  # in the log
        self._sizes = array("Q")
        self._rest: list[bytes] = []  # what follows, and is not in the log
        self._is_kept = True
        self._last: Certificate | None = None

    def __len__(self) -> int:
        return len(self._places) + len(self._rest)

    def append(self, certificate: Certificate) -> None:
        """Add the next link."""
        raw = msgspec.msgpack.encode(certificate)
        self._rest.append(raw)
        self._last = certificate
        if self._is_kept:
            self.keep()

    def keep(self) -> None:
        """Write what follows, and all that is appended from now on, to the log.

        Where there is no room for it, it stays in memory.
        """
        self._is_kept = True
        num_written = len(self._places)
        try:
            for raw in self._rest:
                self._places.append(self._log.write(raw))
                self._sizes.append(len(raw))
        except OSError as error:
            log.warning("certificates stay in memory: %s", error)
        del self._rest[: len(self._places) - num_written]

    def until(self, length: int) -> Certificates:
        """The first ones, to go on with in another way."""
        beginning = Certificates(self._log)
        beginning._places = self._places[:length]
        beginning._sizes = self._sizes[:length]
        beginning._rest = self._rest[: max(0, length - len(self._places))]
        beginning._is_kept = False
        if length == len(self):
            beginning._last = self._last
        return beginning

    def encoded(self) -> bytes:
        """All of them as MessagePack, a list."""
        raws = [msgspec.Raw(self._raw(index)) for index in range(len(self))]
        return msgspec.msgpack.encode(raws)

    def _raw(self, index: int) -> bytes:
        if index < len(self._places):
            return self._log.read(self._places[index], self._sizes[index])
        return self._rest[index - len(self._places)]

    @overload
    def __getitem__(self, index: int) -> Certificate: ...

    @overload
    def __getitem__(self, index: slice) -> list[Certificate]: ...

    def __getitem__(self, index: int | slice) -> Certificate | list[Certificate]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(f"certificate {index} of {len(self)}")
        if at < len(self) - 1:
            return _decoder.decode(self._raw(at))
        if self._last is None:
            self._last = _decoder.decode(self._raw(at))
        return self._last

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Certificates) or len(self) != len(other):
            return NotImplemented if not isinstance(other, Certificates) else False
        return all(self._raw(index) == other._raw(index) for index in range(len(self)))

    __hash__ = None  # type: ignore[assignment]


class Heads(Sequence[bytes]):
    """The digests (32 bytes) of a chain's results, in order."""

    def __init__(self, raw: bytes | bytearray = b"") -> None:
        self._raw = bytearray(raw)

    def __len__(self) -> int:
        return len(self._raw) // HEAD_BYTES

    def append(self, head: bytes) -> None:
        """Add the next one."""
        self._raw += head

    def until(self, length: int) -> Heads:
        """The first ones."""
        return Heads(self._raw[: length * HEAD_BYTES])

    def __contains__(self, head: object) -> bool:
        if not isinstance(head, bytes) or len(head) != HEAD_BYTES:
            return False
        at = self._raw.find(head)
        while at >= 0 and at % HEAD_BYTES:
            at = self._raw.find(head, at + 1)
        return at >= 0

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        if not 0 <= at < len(self):
            raise IndexError(f"head {index} of {len(self)}")
        return bytes(self._raw[at * HEAD_BYTES : (at + 1) * HEAD_BYTES])

    def __iter__(self) -> Iterator[bytes]:
        return (self[index] for index in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Heads):
            return self._raw == other._raw
        return list(self) == other

    __hash__ = None  # type: ignore[assignment]
