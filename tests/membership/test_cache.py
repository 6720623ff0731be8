"""Peers met before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.contracts.networks import identity_of
from zoonet.crypto import PeerId
from zoonet.errors import StorageError
from zoonet.membership import PeerCache


def peer(name: str) -> PeerId:
    return identity_of(name).peer_id


def address(name: str, port: int = 1) -> str:
    return f"/ip4/192.0.2.1/tcp/{port}/p2p/{peer(name)}"


def test_peers_are_remembered_over_a_restart_the_latest_first(tmp_path: Path) -> None:
    cache = PeerCache(tmp_path / "deep" / "peers.json")
    for met_at, name in enumerate("abc"):
        cache.remember(peer(name), [address(name)], met_at=float(met_at))
    cache.remember(peer("a"), [address("a", 2)], met_at=9.0)
    cache.save()
    again = PeerCache(tmp_path / "deep" / "peers.json")
    assert again.addresses() == (address("a", 2), address("c"), address("b"))
    assert again.addresses(limit=1) == (address("a", 2),)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["peers.json"]


def test_only_a_peers_own_direct_addresses_are_kept(tmp_path: Path) -> None:
    cache = PeerCache(tmp_path / "peers.json")
    cache.remember(
        peer("a"),
        [
            address("b"),
            f"{address('b')}/p2p-circuit/p2p/{peer('a')}",
            "/ip4/192.0.2.1/tcp/1",
            "/" + "x" * 300 + f"/p2p/{peer('a')}",
            address("a"),
        ],
        met_at=1.0,
    )
    cache.remember(PeerId("nobody"), ["/ip4/192.0.2.1/tcp/1/p2p/nobody"], met_at=1.0)
    assert cache.addresses() == (address("a"),)


def test_the_cache_is_bounded_and_forgets_who_was_met_longest_ago(tmp_path: Path) -> None:
    cache = PeerCache(tmp_path / "peers.json", capacity=2)
    for met_at, name in enumerate("abc"):
        cache.remember(peer(name), [address(name)], met_at=float(met_at))
    assert cache.addresses() == (address("c"), address("b"))
    cache.remember(peer("d"), [address("d", port) for port in range(1, 50)], met_at=9.0)
    assert len(cache) == 2
    assert len(cache.addresses(limit=100)) == 9


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not json",
        b"[" * 100_000,
        b'{"version": 2, "peers": []}',
        b'{"version": 1, "peers": [{"peer_id": 3}]}',
        b"\xff\xfe",
        b" " * (1024 * 1024 + 1),
    ],
)
def test_a_damaged_file_is_an_empty_cache_and_can_be_written_anew(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(content)
    cache = PeerCache(path)
    assert cache.addresses() == ()
    cache.remember(peer("a"), [address("a")], met_at=1.0)
    cache.save()
    assert json.loads(path.read_text())["version"] == 1
    assert PeerCache(path).addresses() == (address("a"),)


def test_a_disk_that_refuses_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    cache = PeerCache(path)
    cache.remember(peer("a"), [address("a")], met_at=1.0)
    cache.save()
    blocked = PeerCache(tmp_path / "peers.json" / "inside-a-file.json")
    blocked.remember(peer("b"), [address("b")], met_at=1.0)
    with pytest.raises(StorageError, match="cannot write the peer cache"):
        blocked.save()
    assert PeerCache(path).addresses() == (address("a"),)
