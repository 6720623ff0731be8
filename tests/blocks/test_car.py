"""Files as archives for IPFS."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from zoonet.blocks import MemoryBlockStore, put_bytes, write_car


def content_of(size: int) -> bytes:
    return bytes((at * 7 + (at >> 8)) & 255 for at in range(size))


# SHA-256 of what `ipfs-car pack FILE --no-wrap` (3.1.0, npm) writes for the same bytes.
@pytest.mark.parametrize(
    ("size", "digest"),
    [
        (0, "50e7408f2eeee58f0a305319619dcc4c89baa7b8425550b9e1b4fdecc020699e"),
        (5, "a34ae638057326c5368878752285e26a55a1f5ed46fc01fad05fed60419487b2"),
        ((1 << 20) + 1, "9b6b101f4eb3f88a2c2632d6a9cb3d785395b2ffeed16881abab2838570cc77b"),
        (3_000_000, "5db9e6b80a6f5c8d1a8f0c5bbdf6cb9e251c972cad5b79c9b7102a339922ff9f"),
    ],
)
def test_an_archive_has_the_bytes_that_ipfs_car_writes(
    size: int, digest: str, tmp_path: Path
) -> None:
    store = MemoryBlockStore()
    write_car(store, put_bytes(store, content_of(size)), tmp_path / "file.car")
    assert hashlib.sha256((tmp_path / "file.car").read_bytes()).hexdigest() == digest
