"""Multiaddrs: how users, records and the daemon name the places where a peer can be reached."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

import multiaddr.exceptions

from zoonet.crypto import PeerId, public_key_of
from zoonet.errors import ConfigError
from zoonet.net.substrate import Multiaddr

EXAMPLE = "/ip4/203.0.113.7/tcp/31337/p2p/16Uiu2HAm…"
MAX_ADDRESS_CHARACTERS = 256


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """A dialable address of a peer: `text` with, `route` without its final `/p2p/<id>`."""

    peer_id: PeerId
    text: str
    route: bytes  # binary multiaddr, as the daemon takes it

    @property
    def is_relayed(self) -> bool:
        """Whether it leads through another peer."""
        return "/p2p-circuit" in self.text


def _multiaddr(text: str) -> Multiaddr:
    if not text.startswith("/") or len(text) > MAX_ADDRESS_CHARACTERS:
        raise ValueError("an address begins with / and has at most 256 characters")
    return Multiaddr(text)


def parse_peer_address(text: str) -> PeerAddress:
    """Read an address that ends in `/p2p/<peer id>`.

    Raises ConfigError that says what is wrong and shows a right one.
    """
    try:
        parsed = _multiaddr(text.strip())
        parts = str(parsed).rsplit("/p2p/", 1)
        if len(parts) != 2 or "/" in parts[1]:
            raise ValueError("it does not end in /p2p/<peer id>, so nobody can prove to be it")
        route_text, peer_id = parts
        public_key_of(peer_id)
        if not route_text:
            raise ValueError("it names a peer but no place, such as /ip4/…/tcp/…")
        return PeerAddress(PeerId(peer_id), str(parsed), Multiaddr(route_text).to_bytes())
    except (multiaddr.exceptions.Error, ValueError) as error:
        raise ConfigError(
            f"the address {text[:120]!r} is not usable: {error}; a right one looks like {EXAMPLE}"
            " (the bootstrap prints its own when it starts)"
        ) from error


def parse_listen_address(text: str) -> str:
    """Check an address to listen on or to announce, without a peer id. Raises ConfigError."""
    try:
        parsed = _multiaddr(text.strip())
        names = [protocol.name for protocol in parsed.protocols()]
        if "p2p" in names or not {"tcp", "udp"} & set(names):
            raise ValueError("it must name a host and a port, and no peer id")
        return str(parsed)
    except (multiaddr.exceptions.Error, ValueError) as error:
        raise ConfigError(
            f"cannot listen on or announce {text[:120]!r}: {error}; a right one looks like "
            "/ip4/0.0.0.0/tcp/31337 (port 0: any free one)"
        ) from error


def parse_believable(addresses: Iterable[str], peer_id: PeerId) -> tuple[PeerAddress, ...]:
    """Those of a peer's claimed addresses that can be dialled and are about that peer."""
    good = []
    for text in addresses:
        try:
            address = parse_peer_address(text)
        except ConfigError:
            continue
        if address.peer_id == peer_id:
            good.append(address)
    return tuple(good)


def text_of(route: bytes) -> str:
    """The text of a binary multiaddr from the daemon, "" where this program does not know it."""
    try:
        return str(Multiaddr(route))
    except (multiaddr.exceptions.Error, ValueError, KeyError):
        return ""


def host_of(text: str) -> str:
    """The IP address that an address begins with, "" for a name or anything else."""
    parts = text.split("/")
    return parts[2] if len(parts) > 2 and parts[1] in ("ip4", "ip6") else ""


def is_loopback(text: str) -> bool:
    """Whether the address can be reached from this machine alone."""
    host = host_of(text)
    return bool(host) and ipaddress.ip_address(host).is_loopback


def is_global(text: str) -> bool:
    """Whether the address is a public one of the internet (a name counts as public)."""
    host = host_of(text)
    return ipaddress.ip_address(host).is_global if host else text.startswith("/dns")
