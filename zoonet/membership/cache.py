"""Peers met before, on disk: a dead bootstrap does not keep an old acquaintance out."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from zoonet.crypto import PeerId, public_key_of, short
from zoonet.errors import StorageError

MAX_PEERS: Final = 200
MAX_ADDRESSES: Final = 8  # of one peer
MAX_ADDRESS_CHARACTERS: Final = 256
MAX_FILE_BYTES: Final = 1024 * 1024

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Entry:
    peer_id: str
    addresses: tuple[str, ...]
    met_at: float  # Unix time in seconds


class _File(msgspec.Struct):
    version: int
    peers: list[_Entry]


class PeerCache:
    """Addresses of peers met before, the latest first. Bounded; `save` replaces the file whole."""

    def __init__(self, path: Path, *, capacity: int = MAX_PEERS) -> None:
        """Read the file. One that is missing or damaged is an empty cache, not an error."""
        self._path = path
        self._capacity = capacity
        self._entries: dict[str, _Entry] = {}
        for entry in sorted(_read(path), key=lambda entry: entry.met_at):
            self.remember(PeerId(entry.peer_id), entry.addresses, met_at=entry.met_at)

    def __len__(self) -> int:
        return len(self._entries)

    def remember(self, peer_id: PeerId, addresses: Iterable[str], *, met_at: float) -> None:
        """Note where a peer was met at Unix time `met_at`. Addresses that are not its own or
        lead through another peer are passed over."""
        good = tuple(text for text in addresses if _is_own(text, peer_id))[:MAX_ADDRESSES]
        if not good or not _is_peer_id(peer_id):
            return
        self._entries.pop(peer_id, None)
        self._entries[peer_id] = _Entry(peer_id, good, met_at)
        if len(self._entries) > self._capacity:
            oldest = min(self._entries.values(), key=lambda entry: entry.met_at)
            del self._entries[oldest.peer_id]

    def addresses(self, limit: int = 32) -> tuple[str, ...]:
        """Addresses to try, those of the peers met last first; at most `limit`."""
        newest_first = sorted(self._entries.values(), key=lambda entry: -entry.met_at)
        found = [text for entry in newest_first for text in entry.addresses]
        return tuple(found[:limit])

    def save(self) -> None:
        """Write the file, whole or not at all. Raises StorageError where the disk refuses."""
        entries = [
            {"peer_id": entry.peer_id, "addresses": entry.addresses, "met_at": entry.met_at}
            for entry in self._entries.values()
        ]
        text = json.dumps({"version": 1, "peers": entries}, indent=1)
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text)
            partial.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            raise StorageError(
                f"cannot write the peer cache {self._path}: {error.strerror}"
            ) from error


def _is_peer_id(peer_id: str) -> bool:
    try:
        public_key_of(peer_id)
    except ValueError:
        return False
    return True


def _is_own(address: str, peer_id: str) -> bool:
    return (
        len(address) <= MAX_ADDRESS_CHARACTERS
        and address.startswith("/")
        and address.endswith(f"/p2p/{peer_id}")
        and "/p2p-circuit" not in address
    )


def _read(path: Path) -> list[_Entry]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
        found = msgspec.json.decode(path.read_bytes(), type=_File, strict=True)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, msgspec.DecodeError, RecursionError) as error:
        log.warning("starting without the peer cache %s: %s", path, error)
        return []
    if found.version != 1:
        log.warning("starting without the peer cache %s: version %d", path, found.version)
        return []
    for entry in found.peers:
        log.debug("cached peer=%s addresses=%d", short(entry.peer_id), len(entry.addresses))
    return found.peers
