"""`zoonet doctor`: finds out why this machine does not connect, and names the cure."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from multiaddr import Multiaddr
from rich.console import Console
from rich.text import Text

from peers import runtime
from zoonet.crypto import Identity, public_key_of
from zoonet.errors import KeyFileError

CONNECT_TIMEOUT_S: Final = 10.0
MIN_FREE_BYTES: Final = 5 * 1000**3
_HELLO: Final = b"\x13/multistream/1.0.0\n"  # what every libp2p listener says over TCP


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `cure` says what to do where it is not well."""

    subject: str
    is_well: bool
    found: str
    cure: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a multiaddr over TCP leads."""

    host: str
    port: int
    peer_id: str  # "" where the address names none


def main(home: runtime.Home, *, join: Sequence[str], listen: Sequence[str], as_json: bool) -> None:
    """Print the findings; exit code 1 where one is not well."""
    findings = [check_disk(home), check_key(home), *map(check_listen, listen)]
    findings += runtime.run(check_addresses(join))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        _print(findings, was_asked_to_join=bool(join))
    if not all(finding.is_well for finding in findings):
        sys.exit(1)


def check_disk(home: runtime.Home) -> Finding:
    """Is there room for blocks and models?"""
    free_bytes = shutil.disk_usage(home.path).free
    found = f"{free_bytes / 1000**3:.1f} GB free in {home.path}"
    cure = f"free at least {MIN_FREE_BYTES / 1000**3:.0f} GB, or choose another place with --home"
    return Finding("disk", free_bytes >= MIN_FREE_BYTES, found, cure)


def check_key(home: runtime.Home) -> Finding:
    """Can the key be used?"""
    if not home.key_path.exists():
        return Finding("key", True, "none yet; the first run makes one")
    try:
        identity = Identity.load(home.key_path, passphrase=runtime.passphrase())
    except KeyFileError as error:
        cure = f"follow the message, or set {runtime.PASSPHRASE_VARIABLE} if the key has one"
        return Finding("key", False, str(error), cure)
    return Finding("key", True, f"peer id {identity.peer_id}")


def endpoint_of(address: str) -> Endpoint:
    """Read a multiaddr over TCP. Raises ValueError that says what is wrong with it."""
    try:
        parts = {protocol.name: value for protocol, value in Multiaddr(address).items()}
    except (ValueError, LookupError) as error:
        raise ValueError(f"not a multiaddr: {error}") from error
    host = next(
        (parts[name] for name in ("ip4", "ip6", "dns4", "dns6", "dns") if name in parts), ""
    )
    if not host or not parts.get("tcp"):
        raise ValueError("names no host and TCP port, as in /ip4/203.0.113.7/tcp/31330")
    peer_id = parts.get("p2p") or ""
    if peer_id:
        public_key_of(peer_id)
    return Endpoint(str(host), int(parts["tcp"] or 0), str(peer_id))


def check_listen(address: str) -> Finding:
    """Is the port to listen on free?"""
    subject = f"listen {address}"
    try:
        endpoint = endpoint_of(address)
    except ValueError as error:
        return Finding(subject, False, str(error), "write it like /ip4/0.0.0.0/tcp/31330")
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((endpoint.host, endpoint.port))
        except OSError as error:
            return Finding(subject, False, error.strerror or str(error), _bind_cure(error))
    return Finding(subject, True, "free")


def _bind_cure(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program has this port: stop it, or choose another port (0: any free one)"
    if error.errno == errno.EACCES:
        return "ports below 1024 are for root: choose a higher one"
    return "this machine has no such address: listen on /ip4/0.0.0.0/..., announce the public one"


async def check_addresses(addresses: Iterable[str]) -> list[Finding]:
    """Try every address at once."""
    return list(await asyncio.gather(*map(check_address, addresses)))


async def check_address(address: str) -> Finding:
    """Does a libp2p peer answer there?"""
    subject = f"join {address}"
    try:
        endpoint = endpoint_of(address)
    except ValueError as error:
        return Finding(subject, False, str(error), "copy the whole line that the bootstrap printed")
    if not endpoint.peer_id:
        return Finding(
            subject, False, "names no peer", "add /p2p/ and the peer id that the bootstrap printed"
        )
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            hello = await _hello_of(endpoint)
    except TimeoutError:
        found = f"no answer in {CONNECT_TIMEOUT_S:.0f} s"
        return Finding(subject, False, found, _SILENCE_CURE)
    except OSError as error:
        return Finding(subject, False, error.strerror or str(error), _connect_cure(error))
    if hello != _HELLO:
        cure = "another program has that port: ask the operator for the bootstrap's present address"
        return Finding(subject, False, "answers, but is not a peer", cure)
    return Finding(subject, True, "a peer answers")


_SILENCE_CURE: Final = (
    "a firewall drops the packets or the address is wrong: the operator must open the port "
    "(see docs/run_a_bootstrap.md), or this network forbids outgoing connections to it"
)


async def _hello_of(endpoint: Endpoint) -> bytes:
    reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
    try:
        writer.write(_HELLO)
        await writer.drain()
        return await reader.readexactly(len(_HELLO))
    except asyncio.IncompleteReadError as error:
        return error.partial
    finally:
        writer.close()


def _connect_cure(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "the name does not resolve: check its spelling and this machine's DNS"
    if error.errno == errno.ECONNREFUSED:
        return "the machine is there, the peer is not: it is down, or listens on another port"
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        return "no route: check this machine's network; an IPv6 address needs IPv6 here too"
    return _SILENCE_CURE


def _print(findings: Sequence[Finding], *, was_asked_to_join: bool) -> None:
    console = Console()
    for finding in findings:
        mark = Text("well ", "green") if finding.is_well else Text("ill  ", "bold red")
        console.print(mark + Text(f"{finding.subject}: {finding.found}"))
        if not finding.is_well:
            console.print(Text(f"     {finding.cure}", "yellow"))
    if not was_asked_to_join:
        console.print(Text("To try a connection: zoonet doctor --join MULTIADDR", "dim"))
