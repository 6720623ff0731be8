"""Lanes between real hosts in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.networks import identity_of
from tests.net.lane_peers import Box
from tests.net.test_host import base, open_host, run
from zoonet.errors import ConfigError, PeerUnreachable, StreamClosed
from zoonet.net import HostConfig

__all__ = ["base"]  # a fixture

pytestmark = pytest.mark.p2p

MEGABYTE = bytes(range(256)) * 4096

NODE = """
import asyncio, sys
from pathlib import Path
from zoonet.crypto import Identity
from zoonet.net import Host, HostConfig

class Echo:
    def __init__(self, host):
        self.host, self.places = host, {}

    def admit(self, peer_id, header, num_bytes):
        self.places[header] = bytearray(num_bytes)
        return memoryview(self.places[header])

    def arrived(self, peer_id, header):
        self.lane.post(header, self.places.pop(header))

    def ended(self, peer_id, error):
        pass

async def main():
    config = HostConfig(run_dir=Path(sys.argv[1]), listen=("/ip4/127.0.0.1/tcp/0",))
    async with Host.open(Identity(bytes.fromhex(sys.argv[2])), config) as host:
        echo = Echo(host)
        await host.lanes.serve("there", echo)
        print((await host.addresses())[0], flush=True)
        friend = await asyncio.to_thread(sys.stdin.readline)
        echo.lane = await host.lanes.open(friend.strip(), "back", lambda lane, error: None)
        print(echo.lane.path, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def echo_process(base: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    """A node that sends back whatever it receives."""
    command = [sys.executable, "-W", "ignore", "-c", NODE, str(base / name)]
    command.append(identity_of(name).api_key)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return (await asyncio.to_thread(process.stdout.readline)).strip()


def test_bytes_go_to_another_process_and_back_and_its_death_is_noticed_at_once(base: Path) -> None:
    async def story() -> None:
        with echo_process(base, "victim") as process:
            address = await line_of(process)
            async with open_host(base, "a", bootstrap=(address,)) as host:
                inbox, outbox, victim = Box(), Box(), identity_of("victim").peer_id
                await host.lanes.serve("back", inbox)
                assert process.stdin is not None
                process.stdin.write(host.peer_id + "\n")
                process.stdin.flush()
                assert await line_of(process) == "shm"
                lane = await host.lanes.open(victim, "there", outbox.on_end)
                assert (await host.paths())[victim] == lane.path == "shm"
                for number in range(8):
                    lane.post(b"%d" % number, MEGABYTE)
                arrived = await inbox.until_arrived(8)
                assert arrived == {b"%d" % number: MEGABYTE for number in range(8)}
                process.kill()
                killed_at = time.monotonic()
                assert isinstance(await outbox.until_ended(), StreamClosed)
                assert isinstance(await inbox.until_ended(), StreamClosed)
                assert time.monotonic() - killed_at < 5
                with pytest.raises(PeerUnreachable):
                    await host.lanes.open(victim, "there", outbox.on_end)

    run(story())


def test_a_port_for_bulk_data_that_is_taken_is_said_to_be(base: Path) -> None:
    async def story() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(ConfigError, match=f"port {port}.*choose another port"):
                async with open_host(base, "a", bulk_port=port):
                    pass

    run(story())


def test_a_port_for_bulk_data_that_is_none_is_refused(base: Path) -> None:
    with pytest.raises(ConfigError, match="port"):
        HostConfig(run_dir=base / "a", bulk_port=65536)
