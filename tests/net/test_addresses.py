"""Addresses that users type and peers claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contracts.networks import identity_of
from zoonet.errors import ConfigError
from zoonet.net import HostConfig, parse_peer_address
from zoonet.net.addresses import is_global, parse_believable, parse_listen_address
from zoonet.net.daemon import daemon_arguments

PEER = identity_of("peer").peer_id
OTHER = identity_of("other").peer_id
GOOD = f"/ip4/192.0.2.7/tcp/31337/p2p/{PEER}"


@pytest.mark.parametrize(
    "address",
    [
        GOOD,
        f"/ip6/::1/tcp/1/p2p/{PEER}",
        f"/dns4/bootstrap.example/tcp/31337/p2p/{PEER}",
        f"/ip4/192.0.2.7/udp/1/quic-v1/p2p/{PEER}",
        f"/ip4/192.0.2.7/tcp/1/p2p/{OTHER}/p2p-circuit/p2p/{PEER}",
    ],
)
def test_a_dialable_address_is_read(address: str) -> None:
    parsed = parse_peer_address(f"  {address}\n")
    assert (parsed.peer_id, parsed.text) == (PEER, address)
    assert parsed.is_relayed == ("p2p-circuit" in address)


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("", "begins with /"),
        ("192.0.2.7:31337", "begins with /"),
        ("/ip4/192.0.2.7/tcp/31337", "does not end in /p2p/"),
        ("/ip4/192.0.2.700/tcp/1/p2p/" + PEER, "not IPv4"),
        ("/ip4/192.0.2.7/tcp/99999/p2p/" + PEER, "range"),
        ("/ip4/192.0.2.7/tpc/1/p2p/" + PEER, "tpc"),
        ("/ip4/192.0.2.7/tcp/1/p2p/QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG", "secp256k1"),
        ("/p2p/" + PEER, "no place"),
        (GOOD + "x" * 300, "256 characters"),
    ],
)
def test_a_wrong_address_is_named_with_a_right_one_beside_it(address: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        parse_peer_address(address)
    assert "/ip4/203.0.113.7/tcp/31337/p2p/" in str(caught.value)


@pytest.mark.parametrize("address", ["tcp/1", "/ip4/1.2.3.4", "/ip4/1.2.3.4/tcp/x", GOOD])
def test_a_wrong_address_to_listen_on_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="cannot listen on or announce"):
        parse_listen_address(address)


def test_of_claimed_addresses_only_those_about_the_claimant_are_believed() -> None:
    claims = [GOOD, "/nonsense", "", GOOD.replace(PEER, OTHER), "/ip4/1.2.3.4/tcp/5"]
    assert [address.text for address in parse_believable(claims, PEER)] == [GOOD]


def test_public_addresses_are_told_from_private_ones() -> None:
    assert is_global("/ip4/1.1.1.1/tcp/1")
    assert is_global("/dns4/example.org/tcp/1")
    assert not is_global("/ip4/192.168.1.2/tcp/1")
    assert not is_global("/ip6/::1/tcp/1")


def test_contradictory_or_unusable_configurations_are_refused() -> None:
    for wrong in (
        {"is_public": True, "is_client": True},
        {"is_public": True, "listen": ()},
        {"announce": ("/ip4/192.0.2.7/tcp/0",)},
        {"bootstrap": ("/ip4/192.0.2.7/tcp/1",)},
        {"startup_timeout_s": 0.0},
        {"run_dir": Path("/tmp") / ("long" * 30)},
    ):
        with pytest.raises(ConfigError):
            HostConfig(**{"run_dir": Path("/tmp/z"), **wrong})  # type: ignore[arg-type]


def test_malformed_addresses_from_others_do_not_keep_a_peer_from_starting() -> None:
    known = ("/ip4/1.2.3.4/tcp/1", "nonsense", GOOD, GOOD.replace("/tcp/31337", "/tcp/31337/ws"))
    config = HostConfig(run_dir=Path("/tmp/z"), known_peers=known)
    assert len(config.join_addresses) == 2
    assert config.relays == (GOOD,)


def arguments(**options: object) -> list[str]:
    config = HostConfig(run_dir=Path("/tmp/z"), **options)  # type: ignore[arg-type]
    return daemon_arguments(config, config.run_dir)


def test_a_public_peer_relays_for_others_and_does_not_look_for_relays() -> None:
    public = arguments(is_public=True)
    assert "-forceReachabilityPublic=1" in public
    assert "-dhtServer=1" in public
    assert not any(argument.startswith("-autoRelay") for argument in public)


def test_a_client_asks_its_bootstraps_to_relay() -> None:
    client = arguments(is_client=True, listen=(), bootstrap=(GOOD,))
    for expected in (
        "-dhtClient=1",
        "-noListenAddrs=1",
        "-autoRelay=1",
        "-relayDiscovery=0",
        f"-trustedRelays={GOOD}",
        "-forceReachabilityPrivate=1",
    ):
        assert expected in client


def test_the_daemon_is_never_told_to_bootstrap_by_itself() -> None:
    for options in ({}, {"bootstrap": (GOOD,)}, {"is_client": True}):
        assert not any(
            argument.split("=")[0] in ("-b", "-bootstrapPeers") for argument in arguments(**options)
        )
