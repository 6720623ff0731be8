"""The doctor names the cause and the cure."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from peers.doctor import check_address, check_key, check_listen, endpoint_of
from peers.runtime import Home
from zoonet.crypto import Identity

PEER_ID = Identity(bytes(31) + b"\x01").peer_id


async def answering(reply: bytes) -> tuple[asyncio.Server, int]:
    async def handle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


@pytest.mark.asyncio
async def test_a_peer_that_answers_is_well() -> None:
    server, port = await answering(b"\x13/multistream/1.0.0\n")
    async with server:
        finding = await check_address(f"/ip4/127.0.0.1/tcp/{port}/p2p/{PEER_ID}")
    assert finding.is_well


@pytest.mark.asyncio
async def test_another_program_on_the_port_is_no_peer() -> None:
    server, port = await answering(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    async with server:
        finding = await check_address(f"/ip4/127.0.0.1/tcp/{port}/p2p/{PEER_ID}")
    assert not finding.is_well
    assert "not a peer" in finding.found


@pytest.mark.asyncio
async def test_a_peer_that_is_down_is_told_from_a_machine_that_is_away() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        port = taken.getsockname()[1]
        finding = await check_address(f"/ip4/127.0.0.1/tcp/{port}/p2p/{PEER_ID}")
    assert not finding.is_well
    assert "the machine is there, the peer is not" in finding.cure


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("hello", "not a multiaddr"),
        ("/ip4/127.0.0.1/tcp/99999", "not a multiaddr"),
        ("/ip4/127.0.0.1", "names no host and TCP port"),
        ("/ip4/127.0.0.1/tcp/1", "names no peer"),
        ("/ip4/127.0.0.1/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "not a peer"),
    ],
)
async def test_a_malformed_address_is_named_with_what_is_wrong(address: str, found: str) -> None:
    finding = await check_address(address)
    assert not finding.is_well
    assert found in finding.found


def test_an_endpoint_is_read_from_names_and_numbers() -> None:
    assert endpoint_of(f"/dns4/boot.example/tcp/31330/p2p/{PEER_ID}").host == "boot.example"
    assert endpoint_of("/ip6/::1/tcp/31330").port == 31330


def test_a_port_in_use_is_found() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        finding = check_listen(f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}")
    assert not finding.is_well
    assert "another program has this port" in finding.cure
    assert check_listen("/ip4/127.0.0.1/tcp/0").is_well


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    finding = check_listen("/ip4/203.0.113.7/tcp/0")
    assert not finding.is_well
    assert "announce the public one" in finding.cure


def test_a_damaged_key_is_found(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert check_key(home).is_well
    Identity.generate().save(home.key_path)
    assert check_key(home).is_well
    home.key_path.write_bytes(b"no key")
    assert not check_key(home).is_well
