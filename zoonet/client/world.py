"""A process of a distributed PyTorch program: from a list of peers to ranks that reach each other.

::

    import zoonet

    with zoonet.join_world(peers, key="rank0.key") as world:
        world.init_process_group()
        ...  # torch.distributed as ever
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zoonet.client.background import Background
from zoonet.client.entry import Entry, EntryConfig
from zoonet.crypto import Identity, PeerId, is_peer_id
from zoonet.errors import ConfigError
from zoonet.transport import Lanes

if TYPE_CHECKING:
    from zoonet.distributed import ExchangeConfig, World
    from zoonet.net import PeerAddress

ANY_PORT: Final = "/ip4/0.0.0.0/tcp/0"


def join_world(
    peers: Sequence[str],
    *,
    key: Identity | Path | str,
    bootstrap: Sequence[str] = (),
    listen: Sequence[str] = (),
    config: ExchangeConfig | None = None,
) -> World:
    """Meet the other peers of the list, each of which calls this with the same list.

    `peers`: rank r is the r-th. Each is an address that ends in `/p2p/<id>`, or a bare peer id,
    which is looked for in the swarm of `bootstrap`. `key`: this peer's, or its key file. `listen`:
    by default at the port of its own address in the list, else at any. Blocks until all are there.

    Raises ConfigError for a list that cannot work, PeerTimeout where peers do not come.
    """
    from zoonet.distributed import World  # imports torch, for seconds
    from zoonet.distributed.exchange import check_peers

    identity = key if isinstance(key, Identity) else Identity.load(Path(key))
    places = [_parse(peer) for peer in peers]
    check_peers([peer_id for peer_id, _ in places], identity.peer_id)
    runner = Background()
    try:
        lanes = _lanes(identity, dict(places), tuple(bootstrap), tuple(listen))
        world = World.open(runner, lanes, [peer_id for peer_id, _ in places], config)
    except BaseException:
        runner.close()
        raise
    world.on_close(runner.close)
    return world


def _parse(peer: str) -> tuple[PeerId, PeerAddress | None]:
    from zoonet.net import parse_peer_address  # imports torch, for seconds

    if is_peer_id(peer):
        return PeerId(peer), None
    address = parse_peer_address(peer)
    return address.peer_id, address


@asynccontextmanager
async def _lanes(
    identity: Identity,
    places: dict[PeerId, PeerAddress | None],
    bootstrap: tuple[str, ...],
    listen: tuple[str, ...],
) -> AsyncIterator[Lanes]:
    """The lanes of a host that knows where the others are, while the block runs."""
    own = places.get(identity.peer_id)
    known = [place for place in places.values() if place is not None and place is not own]
    nowhere = [peer_id for peer_id, place in places.items() if place is None]
    if not bootstrap and set(nowhere) - {identity.peer_id}:
        raise ConfigError(
            f"peer {nowhere[0]} is named without an address; "
            "give its address, /ip4/…/tcp/…/p2p/…, or bootstrap= to look for it"
        )
    async with AsyncExitStack() as stack:
        listen = listen or (_listen_at(own),)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zoonet-")))
        if bootstrap:
            entry_config = EntryConfig(folder=folder, listen=listen, is_lan_enabled=False)
            entry = await Entry.open(identity, bootstrap, entry_config)
            stack.push_async_callback(entry.close)
            host = entry.host
        else:
            from zoonet.net import Host, HostConfig

            config = HostConfig(run_dir=folder / "run", listen=listen)
            host = await stack.enter_async_context(Host.open(identity, config))
        for place in known:
            host.learn(place.peer_id, [place.text])
        yield host.lanes


def _listen_at(own: PeerAddress | None) -> str:
    """Where to listen so that the others find this peer at its address in the list."""
    from zoonet.net.addresses import is_loopback

    parts = own.text.split("/") if own is not None else []
    if own is None or "tcp" not in parts or own.is_relayed:
        return ANY_PORT
    port = parts[parts.index("tcp") + 1]
    return f"/ip4/{'127.0.0.1' if is_loopback(own.text) else '0.0.0.0'}/tcp/{port}"
