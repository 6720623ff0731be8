"""A public peer's relay, checked before it is trusted to carry data.

The daemon starts two relay services at once, one with generous limits and one with libp2p's
defaults (128 KiB and 2 minutes a circuit), and the later one to register serves: in every third
start or so the wrong one. So a public peer asks its own relay for a reservation, which names the
limit, and starts its daemon again where the limit is the small one. On one thread the right one
is later more often (12 of 14 starts against 18 of 28), so that is how the later attempts run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from zoonet.crypto import Identity, PeerId
from zoonet.errors import ProtocolViolation, TransportError
from zoonet.net.addresses import PeerAddress, parse_peer_address
from zoonet.net.config import HostConfig
from zoonet.net.control import Control, Reader
from zoonet.net.daemon import CONTROL_SOCKET, Daemon, RunDirectory
from zoonet.net.foreign import foreign_errors

HOP_PROTOCOL: Final = "/libp2p/circuit/relay/0.2.0/hop"
RESERVE: Final = b"\x02\x08\x00"  # length 2, HopMessage { type: RESERVE }
LEAST_CIRCUIT_BYTES: Final = 1024**3
MAX_STARTS: Final = 12
NUM_FREE_STARTS: Final = 3  # the starts after these run on one thread
PROBE_TIMEOUT_S: Final = 10.0

log = logging.getLogger(__name__)


@asynccontextmanager
async def running_daemon(
    identity: Identity, config: HostConfig, run_dir: Path
) -> AsyncIterator[Daemon]:
    """Run the daemon; a public one is started again until its relay carries bulk data."""
    async with AsyncExitStack() as kept:
        for start in range(1, MAX_STARTS + 1):
            num_threads = 0 if start <= NUM_FREE_STARTS else 1
            async with AsyncExitStack() as trial:
                daemon = await trial.enter_async_context(
                    Daemon.run(identity, config, run_dir, num_threads=num_threads)
                )
                is_good = not config.is_public or await _carries_bulk(
                    identity.peer_id, config, run_dir
                )
                if is_good or start == MAX_STARTS:
                    await kept.enter_async_context(trial.pop_all())
                    break
                log.debug("start=%d gave a relay with small limits", start)
        if not is_good:
            log.warning("this relay carries small messages only: others cannot train through it")
        yield daemon


async def _carries_bulk(peer_id: PeerId, config: HostConfig, run_dir: Path) -> bool:
    """Whether the relay of the daemon in `run_dir` passes at least LEAST_CIRCUIT_BYTES.

    True where it cannot be asked: then there is no reason to start it again.
    """
    _, routes = await Control(run_dir / CONTROL_SOCKET).identify()
    addresses = local_addresses((*config.listen, *routes), peer_id)
    probe = HostConfig(run_dir=config.run_dir, listen=(), is_client=True)
    try:
        with RunDirectory(run_dir / "probe") as directory:
            async with Daemon.run(Identity.generate(), probe, directory.path):
                control = Control(directory.path / CONTROL_SOCKET)
                await control.connect(peer_id, addresses, timeout_s=PROBE_TIMEOUT_S)
                limit_bytes = await circuit_limit_bytes(control, peer_id)
    except (TransportError, ProtocolViolation) as error:
        log.warning("cannot ask this peer's own relay for its limits: %s", error)
        return True
    log.debug("relay carries %d bytes a circuit", limit_bytes)
    return limit_bytes == 0 or limit_bytes >= LEAST_CIRCUIT_BYTES


def local_addresses(routes: tuple[str, ...], peer_id: PeerId) -> list[PeerAddress]:
    """Where this machine itself reaches a daemon that listens at these addresses."""
    texts = []
    for route in routes:
        route = route.replace("/ip4/0.0.0.0/", "/ip4/127.0.0.1/").replace("/ip6/::/", "/ip6/::1/")
        if "/p2p-circuit" not in route and not route.endswith("/0") and "/0/" not in route:
            texts.append(f"{route}/p2p/{peer_id}")
    return [parse_peer_address(text) for text in dict.fromkeys(texts)]


async def circuit_limit_bytes(control: Control, relay: PeerId) -> int:
    """Ask a connected relay for a reservation; return the bytes that a circuit may carry each
    way, 0 for no limit (https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md).

    Raises TransportError, or ProtocolViolation where the answer makes no sense.
    """
    reader, writer = await control.open_stream(relay, HOP_PROTOCOL, timeout_s=PROBE_TIMEOUT_S)
    try:
        with foreign_errors(peer_id=relay, doing="asking for a relay reservation"):
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                writer.write(RESERVE)
                await writer.drain()
                answer = await _read_delimited(reader, relay)
    finally:
        writer.close()
    limit = parse_fields(answer, relay).get(4, b"")
    data = parse_fields(limit, relay).get(2, 0) if isinstance(limit, bytes) else 0
    return data if isinstance(data, int) else 0


async def _read_delimited(reader: Reader, relay: PeerId) -> bytes:
    head = await reader.readexactly(2)
    size = head[0] & 0x7F
    if head[0] < 0x80:
        return head[1:] + await reader.readexactly(size - 1) if size else b""
    if head[1] >= 0x80:
        raise ProtocolViolation(relay, "a reservation of more than 16 KiB")
    return await reader.readexactly(size | head[1] << 7)


def parse_fields(raw: bytes, relay: PeerId) -> dict[int, int | bytes]:
    """Read a protobuf's varint and length-delimited fields; the last of a number counts."""
    fields: dict[int, int | bytes] = {}
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            if place >= len(raw) or shift > 63:
                raise ProtocolViolation(relay, "a reservation that ends in the middle")
            byte = raw[place]
            place += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while place < len(raw):
        tag = varint()
        if tag & 7 == 0:
            fields[tag >> 3] = varint()
        elif tag & 7 == 2:
            size = varint()
            fields[tag >> 3] = raw[place : place + size]
            place += size
        else:
            raise ProtocolViolation(relay, "a reservation with an unknown field")
    return fields
