"""The bootstrap: a peer with a stable address that others enter through. It trains nothing."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import platform
import socket
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from peers import runtime
from peers.keys import identity_of
from zoonet import __version__
from zoonet.clock import SystemClock
from zoonet.crypto import PeerId, short
from zoonet.errors import ConfigError, TransportError
from zoonet.membership import Directory, PeerCache, probe, tier_of
from zoonet.membership.gossip import Registry, RegistryRecords
from zoonet.net import Host, HostConfig
from zoonet.records import PeerRecord, Signed

DEFAULT_LISTEN: Final = ("/ip4/0.0.0.0/tcp/31330",)
MAX_ADDRESSES: Final = 24  # what a record holds
LOOK_INTERVAL_S: Final = 2.0  # between two looks at who is connected
_FAMILIES: Final = {"ip4": socket.AF_INET, "ip6": socket.AF_INET6}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootstrapOptions:
    """What `zoonet bootstrap` was told."""

    home: Path  # state directory; the key in it is the stable identity
    listen: tuple[str, ...] = ()  # empty: DEFAULT_LISTEN
    announce: tuple[str, ...] = ()
    join: tuple[str, ...] = ()  # other bootstraps
    public: bool = False  # this machine has a public address: relay for others
    name: str = ""
    as_json: bool = False  # one JSON line when ready, in place of words


def main(options: BootstrapOptions) -> None:
    """Run until SIGINT or SIGTERM; both are the normal end."""
    runtime.run_role(run_bootstrap(options))


async def run_bootstrap(options: BootstrapOptions) -> None:
    """Serve until cancelled. Raises ConfigError and TransportError as `Host.open` does."""
    home = runtime.Home(options.home)
    cache = PeerCache(home.path / "peers.json")
    config = HostConfig(
        run_dir=home.run_dir,
        listen=options.listen or DEFAULT_LISTEN,
        announce=options.announce,
        bootstrap=options.join,
        known_peers=cache.addresses(),
        is_public=options.public,
    )
    require_free_ports(config.listen)
    async with Host.open(identity_of(home), config) as host:
        addresses = by_reach(await host.addresses())
        if options.as_json:
            ready = {"ready": True, "peer_id": host.peer_id, "addresses": addresses}
            print(json.dumps(ready), flush=True)
        else:
            print(invitation(addresses), flush=True)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_be_listed(host, options.name, cache))
            tasks.create_task(_tell_who_is_connected(host))


async def _be_listed(host: Host, name: str, cache: PeerCache) -> None:
    """Say what this peer is, learn who the others are, and remember them for the next start."""
    clock = SystemClock()
    hardware = await asyncio.to_thread(probe)
    started_at = clock.now()

    async def describe() -> PeerRecord:
        return PeerRecord(
            peer_id=host.peer_id,
            name=name or platform.node()[:40],
            roles=("bootstrap",),
            addresses=tuple(by_reach(await host.addresses()))[:MAX_ADDRESSES],
            reachability=await host.reachability(),
            hardware=hardware,
            tier=tier_of(hardware),
            version=__version__,
            started_at=started_at,
        )

    def meet(record: Signed[PeerRecord]) -> None:
        host.learn(record.author, record.body.addresses)
        if "client" not in record.body.roles:  # those who look around are gone tomorrow
            cache.remember(record.author, record.body.addresses, met_at=clock.now())
            registry.meet(record.author)

    registry = Registry(host.identity, host.transport, clock, describe=describe, learn=host.learn)
    directory = Directory(
        host.identity,
        RegistryRecords(registry, host.records),
        clock,
        describe=describe,
        on_peer=meet,
        registry=registry,
    )
    with contextlib.suppress(TransportError):  # a laden machine: they will call us
        for peer_id in await host.connected():
            registry.meet(peer_id)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(registry.run())
            tasks.create_task(directory.run())
    finally:
        cache.save()


def require_free_ports(addresses: Iterable[str]) -> None:
    """Raise ConfigError where another program listens on the TCP port of one of the addresses.

    The daemon itself shares a port with other daemons without a word (SO_REUSEPORT), and each then
    gets visitors that look for the other.
    """
    for address in addresses:
        _, family, host, transport, port, *_ = [*address.split("/"), "", "", "", "", ""]
        if transport != "tcp" or family not in _FAMILIES:
            continue
        try:
            with socket.socket(_FAMILIES[family], socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == "ip6":
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((host, int(port)))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:  # the daemon explains everything else
                raise ConfigError(
                    f"cannot listen on {address}: the port is in use by another program; "
                    "choose another port, or 0 for any free one"
                ) from error


def by_reach(addresses: Sequence[str]) -> list[str]:
    """Addresses in the order in which others should try them: this machine's own come last."""

    def rank(address: str) -> int:
        host = address.split("/")[2] if address.count("/") > 2 else ""
        is_local = host.startswith("127.") or host == "::1"
        return 2 if is_local else 1 if ":" in host else 0

    return sorted(addresses, key=rank)


def invitation(addresses: Sequence[str]) -> str:
    """What to copy and send to others."""
    if not addresses:
        return "no address yet: nobody can join through this peer"
    first, *others = addresses
    lines = ["others join with:", "", f"  zoonet peer --join {first}", ""]
    if others:
        lines += ["or by another address of this machine:", ""]
        lines += [f"  {address}" for address in others]
        lines += [""]
    return "\n".join(lines)


async def _tell_who_is_connected(host: Host) -> None:
    known: set[PeerId] = set()
    while True:
        try:
            connected = await host.connected()
        except TransportError as error:  # a laden machine; a daemon that died ends the host
            log.debug("connections not known: %s", error)
        else:
            _log_changes(known, connected.keys())
            known = set(connected)
        await asyncio.sleep(LOOK_INTERVAL_S)


def _log_changes(known: Set[PeerId], connected: Set[PeerId]) -> None:
    for peer_id in sorted(connected - known):
        log.info("connected peer=%s num_peers=%d", short(peer_id), len(connected))
    for peer_id in sorted(known - connected):
        log.info("disconnected peer=%s num_peers=%d", short(peer_id), len(connected))
