"""A client's way into the swarm: its own daemon, whom it knows, its heartbeat, its blocks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from zoonet.blocks import Blocks, BlockStore
from zoonet.clock import Clock, SystemClock
from zoonet.crypto import Identity
from zoonet.errors import ConfigError, PeerUnreachable, StorageError
from zoonet.membership import LAN_SEARCH_S, Directory, Lan, LanConfig, PeerCache
from zoonet.membership.gossip import Registry, RegistryRecords
from zoonet.records import Hardware, PeerRecord, RecordStore, Signed, sign

if TYPE_CHECKING:
    from zoonet.net import Host

MAX_ADDRESSES: Final = 24
MAX_NAME_CHARACTERS: Final = 200  # what a record holds
BEACON_LIFETIME_S: Final = 60.0
LEFT_OVER_AFTER_S: Final = 3600.0
REGISTRY_PATIENCE_S: Final = 5.0  # for the table of all peers and jobs; then the DHT is asked
_TEMPORARY: Final = "zoonet-"

log = logging.getLogger(__name__)


def default_folder() -> Path:
    """Where a client remembers peers and keeps the blocks of its jobs."""
    import platformdirs

    return Path(platformdirs.user_data_dir("zoonet")) / "client"


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryConfig:
    """How a program enters the swarm."""

    # Peers met before, and the blocks of submitted jobs.
    folder: Path = field(default_factory=default_folder)
    # Where to listen; empty: only dial. Behind NAT others reach this peer through relays.
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0",)
    # Look for peers on the local network where no others are known.
    is_lan_enabled: bool = True
    # Where they are looked for.
    lan: LanConfig = field(default_factory=LanConfig)
    # What others see next to the peer id.
    name: str = ""

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME_CHARACTERS:
            raise ConfigError(
                f"a name of {len(self.name)} characters; others take at most {MAX_NAME_CHARACTERS}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Entered:
    """What an open way in consists of."""

    host: Host
    records: RecordStore
    directory: Directory
    store: Blocks


@asynccontextmanager
async def entered(
    identity: Identity, bootstrap: tuple[str, ...], config: EntryConfig
) -> AsyncIterator[Entered]:
    """Be in the swarm while the block runs.

    Raises ConfigError for malformed addresses, PeerUnreachable where nobody answers, StorageError.
    """
    from zoonet.net import Host, HostConfig  # imports torch, for seconds

    clock = SystemClock()
    store = await asyncio.to_thread(BlockStore, config.folder / "blocks")
    cache = PeerCache(config.folder / "peers.json")
    await asyncio.to_thread(sweep_left_over, Path(tempfile.gettempdir()), now=clock.now())
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY) as run_dir:
        host_config = HostConfig(
            run_dir=Path(run_dir) / "run",
            listen=config.listen,
            bootstrap=bootstrap,
            known_peers=cache.addresses(),
            is_client=True,
        )
        async with Host.open(identity, host_config) as host:
            if not await host.connected():
                await _meet_neighbours(host, bootstrap, config, clock)
            await _remember_entrances(host, bootstrap, cache, clock)
            # Without a record of its own: those who only look are not worth everyone's notice.
            registry = Registry(identity, host.transport, clock, learn=host.learn)
            records = RegistryRecords(registry, host.records)
            directory = Directory(
                identity,
                records,
                clock,
                describe=lambda: _describe(host, config.name, clock),
                on_peer=_acquaintance(host, cache, clock),
                registry=registry,
            )
            async with asyncio.TaskGroup() as tasks:
                gossip = tasks.create_task(registry.run(), name="registry")
                presence = tasks.create_task(directory.run(), name="directory")
                try:
                    for peer_id in await host.connected():
                        registry.meet(peer_id)
                    await registry.complete(REGISTRY_PATIENCE_S)
                    yield Entered(host=host, records=records, directory=directory, store=store)
                finally:
                    gossip.cancel()
                    presence.cancel()
                    _save(cache)


def sweep_left_over(temporary: Path, *, now: float) -> None:
    """Remove the run directories of this user's clients that were killed: nobody locks them."""
    from zoonet.net.daemon import RunDirectory

    for lock in temporary.glob(f"{_TEMPORARY}*/run/lock"):
        folder = lock.parent.parent
        with contextlib.suppress(OSError, ConfigError):  # another's, or in use
            found = folder.lstat()
            is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
            # One that is younger may be about to be locked.
            if is_own and found.st_mtime < now - LEFT_OVER_AFTER_S:
                with RunDirectory(lock.parent):
                    log.info("swept folder=%s", folder)
                folder.rmdir()


async def _meet_neighbours(
    host: Host, bootstrap: tuple[str, ...], config: EntryConfig, clock: Clock
) -> None:
    if config.is_lan_enabled and await host.connect(await _neighbours(host, config, clock)):
        return
    if bootstrap:
        raise PeerUnreachable(
            f"none of the peers to join answers: {', '.join(bootstrap)}; "
            "check that one of them runs and that its address and port are right"
        )
    raise PeerUnreachable(
        "no peer is known here and none was found on the local network; give the address of one: "
        "Network.join(bootstrap=[...]), Client(api_key=..., bootstrap=[...]) or --join"
    )


async def _neighbours(host: Host, config: EntryConfig, clock: Clock) -> list[str]:
    """Addresses of peers on the local network. They answer a beacon, not silence."""
    from zoonet.net.addresses import parse_believable

    now = clock.now()
    beacon = sign(
        host.identity,
        await _describe(host, config.name, clock),
        sequence=int(now * 1000),
        expires_at=now + BEACON_LIFETIME_S,
    )
    async with Lan.open(host.peer_id, config.lan, clock) as lan:
        lan.present(beacon)
        found = await lan.search(LAN_SEARCH_S)
    return [
        address.text
        for record in found
        if "client" not in record.body.roles  # it may be looking for the swarm itself
        for address in parse_believable(record.body.addresses, record.author)
    ]


async def _remember_entrances(
    host: Host, named: Iterable[str], cache: PeerCache, clock: Clock
) -> None:
    """Note the named peers that answered: a bootstrap has no record of its own."""
    from zoonet.net.addresses import parse_peer_address

    connected = await host.connected()
    for address in map(parse_peer_address, named):
        if address.peer_id in connected:
            cache.remember(address.peer_id, [address.text], met_at=clock.now())


async def _describe(host: Host, name: str, clock: Clock) -> PeerRecord:
    return PeerRecord(
        peer_id=host.peer_id,
        name=name,
        roles=("client",),
        addresses=(await host.addresses())[:MAX_ADDRESSES],
        reachability=await host.reachability(),
        hardware=Hardware(num_cpus=0, memory_bytes=0),  # a client lends none
        version=_version(),
        started_at=clock.now(),
    )


def _version() -> str:
    try:
        return version("zoo-compute")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"


def _acquaintance(
    host: Host, cache: PeerCache, clock: Clock
) -> Callable[[Signed[PeerRecord]], None]:
    def meet(record: Signed[PeerRecord]) -> None:
        host.learn(record.author, record.body.addresses)
        if "client" not in record.body.roles:
            cache.remember(record.author, record.body.addresses, met_at=clock.now())

    return meet


def _save(cache: PeerCache) -> None:
    try:
        cache.save()
    except StorageError as error:
        log.warning("peers met today will not be remembered: %s", error)


class Entry:
    """A way into the swarm that outlives the call that made it, until `close`.

    One task holds everything open, so that it may be closed from another task than opened it
    (two cells of a notebook, say).
    """

    def __init__(self, inside: Entered, leave: asyncio.Event, holder: asyncio.Task[None]) -> None:
        self.host = inside.host
        self.identity = inside.host.identity
        self.transport = inside.host.transport
        self.records = inside.records
        self.directory = inside.directory
        self.store = inside.store
        self._leave = leave
        self._holder = holder

    @classmethod
    async def open(
        cls, identity: Identity, bootstrap: tuple[str, ...], config: EntryConfig
    ) -> Self:
        """Enter. Raises as `entered`. Where it is cancelled nothing stays open."""
        inside: asyncio.Future[Entered] = asyncio.get_running_loop().create_future()
        leave = asyncio.Event()

        async def hold() -> None:
            async with entered(identity, bootstrap, config) as found:
                inside.set_result(found)
                await leave.wait()

        holder = asyncio.create_task(hold(), name="entry")
        try:
            either: set[asyncio.Future[Any]] = {holder, inside}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            holder.cancel()
            await asyncio.wait({holder})
            raise
        if not inside.done():
            await holder  # raises why it could not enter
        return cls(inside.result(), leave, holder)

    async def close(self) -> None:
        """Leave. Raises what broke the connection meanwhile. Idempotent."""
        self._leave.set()
        await asyncio.shield(self._holder)
