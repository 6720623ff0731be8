"""Where this machine is reached, and what a connection's address tells of the other one."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Sequence

import psutil

from zoonet.net.addresses import host_of
from zoonet.net.lanes.messages import MAX_PLACES, Place
from zoonet.transport.lanes import Path


def machine_hosts() -> list[str]:
    """IP addresses of this machine's interfaces; loopback last, link-local ones left out."""
    hosts = []
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family in (socket.AF_INET, socket.AF_INET6) and "%" not in address.address:
                hosts.append(address.address)
    return sorted(hosts, key=lambda host: ipaddress.ip_address(host).is_loopback)


def places_to_tell(bound: Sequence[tuple[str, int]], announce: Sequence[str]) -> tuple[Place, ...]:
    """Where others may dial sockets that are bound like this (IP address and port)."""
    told: dict[Place, None] = {}
    for host in announce:
        told.update({Place(host, port): None for _, port in bound})
    for host, port in bound:
        address = ipaddress.ip_address(host)
        if not address.is_unspecified:
            told[Place(host, port)] = None
            continue
        for own in machine_hosts():
            if ipaddress.ip_address(own).version == address.version:
                told[Place(own, port)] = None
    return tuple(told)[:MAX_PLACES]


def is_relayed(routes: Sequence[str]) -> bool:
    """Whether a peer is connected through others alone."""
    return bool(routes) and all("/p2p-circuit" in route for route in routes)


def direct_hosts(routes: Iterable[str]) -> list[str]:
    """IP addresses at which a peer is connected, relays left out."""
    hosts = (host_of(route) for route in routes if "/p2p-circuit" not in route)
    return [host for host in dict.fromkeys(hosts) if host]


def is_near(routes: Sequence[str]) -> bool:
    """Whether a peer is connected from this very machine, by all that can be seen."""
    own = set(machine_hosts())
    return any(
        host in own or ipaddress.ip_address(host).is_loopback for host in direct_hosts(routes)
    )


def path_of(routes: Sequence[str]) -> Path:
    """How bulk bytes to a peer would travel that is connected like this, as far as one can see."""
    if is_relayed(routes):
        return "relayed"
    return "shm" if is_near(routes) else "direct"
