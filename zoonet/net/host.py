"""A host: one libp2p daemon that serves streams, records and topics to this process's loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self

from zoonet.clock import Clock, SystemClock
from zoonet.crypto import Identity, PeerId, short
from zoonet.errors import PeerUnreachable, TransportError
from zoonet.net.addresses import (
    PeerAddress,
    host_of,
    is_global,
    parse_believable,
    parse_peer_address,
)
from zoonet.net.config import HostConfig
from zoonet.net.control import Control
from zoonet.net.daemon import CONTROL_SOCKET, STREAM_SOCKET, RunDirectory
from zoonet.net.dht import RecordDHT
from zoonet.net.foreign import foreign_errors
from zoonet.net.gate import Gate
from zoonet.net.lanes import HostLanes, LanesConfig
from zoonet.net.lanes.places import path_of
from zoonet.net.pubsub import Gossip
from zoonet.net.relay import running_daemon
from zoonet.net.scope import Scope
from zoonet.net.streams import DIAL_TIMEOUT_S, HostTransport
from zoonet.net.substrate import P2P, socket_address
from zoonet.records import Signed
from zoonet.records.envelope import B
from zoonet.records.kinds import Reachability
from zoonet.transport.lanes import Path as LanePath

GRACE_S: Final = 2.0  # for the others of a race, once one has answered
MAX_LEARNED_PEERS: Final = 4096
STRANGER_PAUSE_S: Final = 120.0  # before a peer that is no DHT node is asked again
EXPLORE_EVERY: Final = 4  # upkeep rounds between two searches for DHT neighbours

log = logging.getLogger(__name__)


class HostRecords:
    """The RecordStore of a host; see `zoonet.records.RecordStore`."""

    def __init__(self, gate: Gate, dht: RecordDHT, gossip: Gossip) -> None:
        self._gate = gate
        self._dht = dht
        self._gossip = gossip

    @property
    def refusals(self) -> dict[str, int]:
        return dict(self._gate.refusals)

    async def publish(self, record: Signed[Any]) -> None:
        await self._dht.publish(record)

    async def fetch(self, key: str, body_type: type[B]) -> list[Signed[B]]:
        return await self._dht.fetch(key, body_type)

    async def announce(self, topic: str, record: Signed[Any]) -> None:
        await self._gossip.announce(topic, record)

    def listen(self, topic: str) -> AbstractAsyncContextManager[AsyncIterator[Signed[Any]]]:
        return self._gossip.listen(topic)

    async def listeners(self, topic: str) -> tuple[PeerId, ...]:
        """Connected peers that listen to the topic."""
        return await self._gossip.subscribers(topic)


class Host:
    """This peer on the network. Open it with `async with Host.open(identity, config)`."""

    def __init__(self, identity: Identity, config: HostConfig, control: Control) -> None:
        self.identity = identity
        self.config = config
        self._control = control
        self._learned: OrderedDict[PeerId, tuple[PeerAddress, ...]] = OrderedDict()
        self._ask_again_at: dict[PeerId, float] = {}  # loop time, of peers that are no DHT nodes
        self.transport: HostTransport
        self.lanes: HostLanes
        self.records: HostRecords
        self._dht: RecordDHT

    @property
    def peer_id(self) -> PeerId:
        """This peer's id."""
        return self.identity.peer_id

    @classmethod
    @asynccontextmanager
    async def open(
        cls, identity: Identity, config: HostConfig, clock: Clock | None = None
    ) -> AsyncIterator[Self]:
        """Start the daemon, join the peers named in `config`, and leave with the block.

        Raises ConfigError for what the user must change, TransportError where the daemon fails,
        also later, in the middle of the block. That none of the named peers answers is no error
        unless `config.require_peers` says so: they are tried again in the background.
        """
        async with AsyncExitStack() as stack:
            run_dir = stack.enter_context(RunDirectory(config.run_dir)).path
            daemon = await stack.enter_async_context(running_daemon(identity, config, run_dir))
            scope = await stack.enter_async_context(Scope())
            scope.spawn(daemon.watch(), name="daemon")
            control = Control(run_dir / CONTROL_SOCKET)
            host = cls(identity, config, control)
            gate = Gate(clock or SystemClock())
            host.transport = HostTransport(
                host.peer_id, control, run_dir / STREAM_SOCKET, host._addresses_of
            )
            await stack.enter_async_context(host.transport.listening())
            host.lanes = HostLanes(host.transport, lanes_config(config), host.routes_to)
            await stack.enter_async_context(host.lanes.listening())
            p2p = await stack.enter_async_context(_bindings(run_dir / CONTROL_SOCKET))
            host._dht = await RecordDHT.start(p2p, gate, is_client=config.is_client)
            stack.push_async_callback(host._dht.stop)
            # The daemon ends by itself once the bindings close, before anyone has told it to.
            stack.callback(scope.let_go)
            host.records = HostRecords(gate, host._dht, Gossip(control, gate, host.peer_id))
            await host._join_named_peers()
            scope.spawn(host._keep_up(), name="upkeep")
            log.info("open peer=%s listen=%s", short(host.peer_id), ",".join(config.listen))
            yield host

    async def addresses(self) -> tuple[str, ...]:
        """Addresses at which this peer can be dialled, each with its /p2p/<id>."""
        _, routes = await self._control.identify()
        if self.config.is_client:
            # The daemon has a place at each of these, but names only those on public addresses.
            relays = await self._connected_relays()
            routes += tuple(f"{relay}/p2p-circuit" for relay in relays)
        return tuple(f"{route}/p2p/{self.peer_id}" for route in dict.fromkeys(routes))

    async def _connected_relays(self) -> tuple[str, ...]:
        connections = {peer_id for peer_id, _ in await self._control.connections()}
        relays = self.config.relays
        return tuple(text for text in relays if parse_peer_address(text).peer_id in connections)

    async def reachability(self) -> Reachability:
        """How others reach this peer, as far as the daemon has found out.

        "direct": at a public address. "relayed": through another peer. "private": from the same
        network only. "unknown": it has no address yet.
        """
        if self.config.is_public:
            return "direct"
        addresses = await self.addresses()
        if any("/p2p-circuit" in address for address in addresses):
            return "relayed"
        if any(is_global(address) for address in addresses):
            return "direct"
        return "private" if addresses else "unknown"

    async def connected(self) -> dict[PeerId, tuple[str, ...]]:
        """Peers with an open connection, and the addresses that it runs over."""
        routes: defaultdict[PeerId, list[str]] = defaultdict(list)
        for peer_id, route in await self._control.connections():
            routes[peer_id].append(route)
        return {peer_id: tuple(found) for peer_id, found in sorted(routes.items())}

    async def paths(self) -> dict[PeerId, LanePath]:
        """How bulk bytes travel to each connected peer, or would."""
        used = {peer_id: link.path for peer_id, link in self.lanes.links().items()}
        connected = await self.connected()
        return {peer_id: used.get(peer_id) or path_of(connected[peer_id]) for peer_id in connected}

    async def routes_to(self, peer_id: PeerId) -> tuple[str, ...]:
        """Addresses that open connections to a peer run over."""
        return tuple(
            route for other, route in await self._control.connections() if other == peer_id
        )

    def learn(self, peer_id: PeerId, addresses: Iterable[str]) -> None:
        """Remember where a peer says that it is, so that it can be dialled by its id.

        Addresses that are malformed or about another peer are passed over.
        """
        believable = parse_believable(addresses, peer_id)[:24]
        if not believable or peer_id == self.peer_id:
            return
        self._learned[peer_id] = believable
        self._learned.move_to_end(peer_id)
        if len(self._learned) > MAX_LEARNED_PEERS:
            self._learned.popitem(last=False)

    def _addresses_of(self, peer_id: PeerId) -> tuple[PeerAddress, ...]:
        return self._learned.get(peer_id, ())

    async def connect(self, multiaddrs: Iterable[str]) -> tuple[PeerId, ...]:
        """Dial all of them at once and join the swarm of those who answer.

        Returns who answered: once one has, the others get two more seconds. Empty where nobody
        did. Raises ConfigError for a malformed address. Safe to cancel.
        """
        addresses = [parse_peer_address(text) for text in multiaddrs]
        answered, _ = await self._race(addresses)
        if answered:
            await self._dht.join(answered)
        return answered

    async def _race(
        self, addresses: Iterable[PeerAddress]
    ) -> tuple[tuple[PeerId, ...], dict[PeerId, str]]:
        """Return who answered, and why each of the others did not."""
        by_peer: defaultdict[PeerId, list[PeerAddress]] = defaultdict(list)
        for address in addresses:
            if address.peer_id != self.peer_id:
                by_peer[address.peer_id].append(address)
        dials = {
            asyncio.create_task(
                self._control.connect(peer_id, routes, timeout_s=DIAL_TIMEOUT_S)
            ): peer_id
            for peer_id, routes in by_peer.items()
        }
        try:
            pending = set(dials)
            has_winner = False
            while pending:
                done, pending = await asyncio.wait(
                    pending,
                    timeout=GRACE_S if has_winner else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if has_winner and not done:
                    break
                has_winner = has_winner or any(dial.exception() is None for dial in done)
        finally:
            for dial in dials:
                dial.cancel()
            await asyncio.gather(*dials, return_exceptions=True)
        return _outcome(dials)

    async def _join_named_peers(self) -> None:
        addresses = self.config.join_addresses
        for address in addresses:
            self.learn(address.peer_id, [address.text])
        if not addresses:
            return
        answered, failures = await self._race(addresses)
        for peer_id, why in failures.items():
            log.warning("peer=%s does not answer, trying again later: %s", short(peer_id), why)
        if answered:
            await self._dht.join(answered)
        elif self.config.require_peers:
            tried = "\n".join(f"  {address.text}" for address in addresses)
            whys = "; ".join(f"{short(peer_id)}: {why}" for peer_id, why in failures.items())
            raise PeerUnreachable(
                f"none of the peers to join answers:\n{tried}\n{whys}\n"
                "check that one of them runs and that its address and port are right"
            )

    async def _keep_up(self) -> None:
        """Come back to lost bootstraps, meet new DHT nodes, store our records again."""
        named = [parse_peer_address(text) for text in self.config.bootstrap]
        for round_number in itertools.count(1):
            await asyncio.sleep(self.config.upkeep_interval_s)
            try:
                connections = {peer_id for peer_id, _ in await self._control.connections()}
                lost = [address for address in named if address.peer_id not in connections]
                answered, _ = await self._race(lost)
                for peer_id in answered:
                    log.info("joined peer=%s", short(peer_id))
                await self._meet_strangers(connections | set(answered))
                if round_number % EXPLORE_EVERY == 0:
                    await self._dht.explore()
                await self._dht.republish()
                self._dht.tidy()
            except TransportError as error:
                log.debug("upkeep failed, next time: %s", error)

    async def _meet_strangers(self, connections: set[PeerId]) -> None:
        """Ask connected peers that are not in our routing table whether they are DHT nodes.

        Whoever is connected at all ends up in one DHT, so two halves of a swarm grow together.
        """
        now = asyncio.get_running_loop().time()
        unknown = {peer_id for peer_id in connections if not self._dht.knows(peer_id)}
        strangers = {peer_id for peer_id in unknown if self._ask_again_at.get(peer_id, 0) <= now}
        met = await self._dht.join(strangers)
        later = dict.fromkeys(strangers.difference(met), now + STRANGER_PAUSE_S)
        waiting = {p: at for p, at in self._ask_again_at.items() if p in unknown}
        self._ask_again_at = {**waiting, **later}


def lanes_config(config: HostConfig) -> LanesConfig:
    """How the lanes of a host with that configuration are accepted."""
    lanes = LanesConfig(
        hosts=tuple(dict.fromkeys(filter(None, map(host_of, config.listen)))),
        port=config.bulk_port,
        announce=tuple(dict.fromkeys(filter(None, map(host_of, config.announce)))),
    )
    return lanes if config.use_shm else replace(lanes, use_shm=False)


def _outcome(
    dials: dict[asyncio.Task[None], PeerId],
) -> tuple[tuple[PeerId, ...], dict[PeerId, str]]:
    answered = []
    failures = {}
    for dial, peer_id in dials.items():
        if dial.cancelled():
            failures[peer_id] = "slower than the others"
            continue
        error = dial.exception()
        if error is None:
            answered.append(peer_id)
        elif isinstance(error, TransportError):
            failures[peer_id] = str(error)
        else:
            raise error
    return tuple(answered), failures


@asynccontextmanager
async def _bindings(control_socket: Path) -> AsyncIterator[P2P]:
    """hivemind's own handle of the running daemon, for the DHT's RPCs."""
    # Its client socket lies where this class attribute says: each host needs a class of its own.
    prefix = f"/unix{control_socket.parent}/"
    host_class: Any = type("HostP2P", (P2P,), {"_UNIX_SOCKET_PREFIX": prefix})
    with foreign_errors(doing="connecting to the daemon"):
        p2p = await host_class.replicate(socket_address(control_socket))
    try:
        yield p2p
    finally:
        handlers = list(p2p._client.control._handler_tasks.values())
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)
        await p2p.shutdown()
