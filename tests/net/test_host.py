"""A host with a real daemon: its life, its messages to the user, its swarm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

from tests.contracts.networks import LOOPBACK, identity_of
from tests.contracts.test_record_store import peer_record
from zoonet.clock import SystemClock
from zoonet.errors import ConfigError, PeerUnreachable, StreamClosed, TransportError
from zoonet.net import Host, HostConfig
from zoonet.net.daemon import Daemon, RunDirectory
from zoonet.net.substrate import daemon_binary
from zoonet.records import PEERS_TOPIC, PeerRecord, Signed, peers_key, sign
from zoonet.transport import Stream

pytestmark = pytest.mark.p2p


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory with a short name, for sockets."""
    path = Path(tempfile.mkdtemp(prefix="zoonet-test-"))
    yield path
    shutil.rmtree(path)


def run(story: Coroutine[Any, Any, None], timeout_s: float = 240) -> None:
    async def main() -> None:
        async with asyncio.timeout(timeout_s):
            await story

    uvloop.run(main())


def open_host(base: Path, name: str, **options: Any) -> Any:
    options = {"listen": LOOPBACK, "upkeep_interval_s": 0.3, **options}
    return Host.open(identity_of(name), HostConfig(run_dir=base / name, **options))


@asynccontextmanager
async def swarm(base: Path, *names: str) -> AsyncIterator[list[Host]]:
    """Hosts that all joined through the first one."""
    async with AsyncExitStack() as stack:
        hosts: list[Host] = []
        for name in names:
            known = await hosts[0].addresses() if hosts else ()
            host = await stack.enter_async_context(open_host(base, name, bootstrap=known))
            hosts.append(host)
        yield hosts


def daemons_in(base: Path) -> list[psutil.Process]:
    """Running daemons whose sockets lie in this test's directory."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(argument.startswith(f"-listen=/unix{base}") for argument in process.cmdline()):
                found.append(process)
    return found


def live_record(name: str, lifetime_s: float = 300) -> Any:
    """A peer's record that is valid by the machine's own clock."""
    identity, now = identity_of(name), SystemClock().now()
    body = peer_record(identity).body
    return sign(identity, body, sequence=int(now * 1000), expires_at=now + lifetime_s)


# Life and death.


def test_nothing_is_left_after_a_host_closes(base: Path) -> None:
    async def story() -> None:
        async with open_host(base, "a") as host:
            files = {path.name for path in (base / "a").iterdir()}
            assert files >= {"p2pd.sock", "streams.sock", "lock"}
            assert "identity" not in files, "the key lies on disk only while the daemon starts"
            assert stat.S_IMODE((base / "a").stat().st_mode) == 0o700
            assert len(daemons_in(base)) == 1
            (address,) = await host.addresses()
            assert address.startswith("/ip4/127.0.0.1/tcp/")
            assert address.endswith(f"/p2p/{host.peer_id}")
            assert await host.reachability() == "private"
        assert daemons_in(base) == []
        assert not (base / "a").exists()

    run(story())


def test_an_exception_in_the_block_passes_unchanged_and_leaves_nothing(base: Path) -> None:
    async def story() -> None:
        async with open_host(base, "a"):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(story())
    assert daemons_in(base) == []


def test_a_daemon_that_dies_ends_the_block_with_the_reason(base: Path) -> None:
    async def story() -> None:
        async with open_host(base, "a"):
            daemons_in(base)[0].kill()
            await asyncio.Event().wait()

    with pytest.raises(TransportError, match="ended unexpectedly"):
        run(story())
    assert not (base / "a").exists()


NODE = """
import asyncio, sys
from pathlib import Path
from zoonet.crypto import Identity
from zoonet.net import Host, HostConfig
from zoonet.transport import Stream

async def keep_open(stream: Stream) -> None:
    await asyncio.Event().wait()

async def main() -> None:
    config = HostConfig(run_dir=Path(sys.argv[1]), listen=("/ip4/127.0.0.1/tcp/0",))
    async with Host.open(Identity(bytes.fromhex(sys.argv[2])), config) as host:
        await host.transport.serve("keep", keep_open)
        print((await host.addresses())[0], flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def node_process(base: Path, name: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A node in a process of its own, and its address."""
    command = [sys.executable, "-W", "ignore", "-c", NODE, str(base / name)]
    command.append(identity_of(name).api_key)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_a_killed_node_takes_its_daemon_along_and_its_streams_break_soon(base: Path) -> None:
    async def story() -> None:
        with node_process(base, "victim") as (process, address):
            daemons = daemons_in(base)
            assert len(daemons) == 1
            async with open_host(base, "a", bootstrap=(address,)) as host:
                stream = await host.transport.open(identity_of("victim").peer_id, "keep")
                await stream.send(b"hello")
                process.send_signal(signal.SIGKILL)
                with pytest.raises(StreamClosed):
                    async with asyncio.timeout(60):
                        await stream.receive()
            _, alive = psutil.wait_procs(daemons, timeout=240)
            assert alive == []
        async with open_host(base, "victim"):
            assert len(daemons_in(base)) == 1
        assert not (base / "victim").exists()

    run(story())


def test_ctrl_c_reaches_the_node_alone(base: Path) -> None:
    with node_process(base, "a") as (process, _):
        (daemon,) = daemons_in(base)
        assert os.getpgid(daemon.pid) != os.getpgid(process.pid)
        assert os.getsid(daemon.pid) != os.getsid(process.pid)


def test_a_daemon_that_an_earlier_run_left_is_ended_and_its_sockets_removed(base: Path) -> None:
    (base / "a").mkdir()
    (base / "a" / "stale.sock").touch()
    orphan = f"{daemon_binary()} -listen=/unix{base}/a/p2pd.sock -hostAddrs={LOOPBACK[0]}"
    subprocess.run(["sh", "-c", f"{orphan} >/dev/null 2>&1 &"], check=True)

    async def story() -> None:
        while not (left := daemons_in(base)) or not (base / "a" / "p2pd.sock").exists():
            await asyncio.sleep(0.05)
        async with open_host(base, "a") as host:
            assert left[0].pid not in [process.pid for process in daemons_in(base)]
            assert len(await host.addresses()) == 1
            assert not (base / "a" / "stale.sock").exists()
        assert daemons_in(base) == []

    run(story())


# What the user is told.


def test_a_port_in_use_is_named(base: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"

        async def story() -> None:
            async with open_host(base, "a", listen=(address,)):
                pass

        with pytest.raises(ConfigError, match=f"{address}.*in use.*another port"):
            run(story())
    assert daemons_in(base) == []
    assert not (base / "a").exists()


def test_an_address_that_is_not_this_machines_is_named(base: Path) -> None:
    async def story() -> None:
        async with open_host(base, "a", listen=("/ip4/203.0.113.9/tcp/0",)):
            pass

    with pytest.raises(ConfigError, match=r"203\.0\.113\.9.*no such address"):
        run(story())


def test_a_missing_daemon_says_how_to_get_it(base: Path) -> None:
    async def story() -> None:
        config = HostConfig(run_dir=base / "a", listen=LOOPBACK)
        with RunDirectory(config.run_dir) as directory:
            missing = base / "p2pd"
            async with Daemon.run(identity_of("a"), config, directory.path, binary=missing):
                pass

    with pytest.raises(ConfigError, match=r"missing at .*p2pd.*pip install"):
        run(story())


def test_a_daemon_that_hangs_is_given_up(base: Path) -> None:
    hanging = base / "hanging"
    hanging.write_text(f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
    hanging.chmod(0o700)

    async def story() -> None:
        config = HostConfig(run_dir=base / "a", listen=LOOPBACK, startup_timeout_s=0.5)
        with RunDirectory(config.run_dir) as directory:
            async with Daemon.run(identity_of("a"), config, directory.path, binary=hanging):
                pass

    with pytest.raises(TransportError, match="did not start in"):
        run(story())
    assert not any(str(hanging) in process.cmdline() for process in psutil.Process().children())


def test_a_second_node_in_the_same_directory_is_refused(base: Path) -> None:
    async def story() -> None:
        async with open_host(base, "a") as first:
            with pytest.raises(ConfigError, match="another node already runs"):
                async with open_host(base, "a"):
                    pass
            assert len(await first.addresses()) == 1

    run(story())


def test_a_run_directory_that_cannot_be_made_is_named(base: Path) -> None:
    (base / "a").write_text("a file")

    async def story() -> None:
        async with open_host(base, "a"):
            pass

    with pytest.raises(ConfigError, match="cannot use the run directory"):
        run(story())


def dead_address(name: str) -> str:
    """Where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return f"/ip4/127.0.0.1/tcp/{port}/p2p/{identity_of(name).peer_id}"


def test_dead_bootstraps_stop_nobody_unless_asked_to(base: Path) -> None:
    async def story() -> None:
        dead = (dead_address("dead 1"), dead_address("dead 2"))
        async with open_host(base, "a", bootstrap=dead) as host:
            assert await host.connected() == {}
            assert await host.connect(dead) == ()
            with pytest.raises(ConfigError, match="right one looks like"):
                await host.connect(["127.0.0.1:1234"])
        with pytest.raises(PeerUnreachable, match="none of the peers to join answers") as caught:
            async with open_host(base, "a", bootstrap=dead, require_peers=True):
                pass
        assert dead[0] in str(caught.value)

    run(story())


def test_a_bootstrap_that_comes_up_late_is_joined_in_the_background(base: Path) -> None:
    async def story() -> None:
        address = dead_address("late")
        async with open_host(base, "a", bootstrap=(address,)) as host:
            listen = (address.split("/p2p/")[0],)
            async with open_host(base, "late", listen=listen) as late:
                while late.peer_id not in await host.connected() or not host._dht.num_neighbours:
                    await asyncio.sleep(0.1)
                record = live_record("late")
                await late.records.publish(record)
                assert len(await host.records.fetch(record.key, PeerRecord)) == 1

    run(story())


# The swarm.


def test_of_several_bootstraps_the_living_one_is_enough(base: Path) -> None:
    async def story() -> None:
        async with open_host(base, "a") as first:
            bootstrap = (dead_address("dead"), *await first.addresses())
            async with open_host(base, "b", bootstrap=bootstrap, require_peers=True) as second:
                assert set(await second.connected()) == {first.peer_id}

    run(story())


async def announce_again(host: Host, record: Signed[PeerRecord]) -> None:
    """Say it every second: who has just subscribed may not be in the topic's mesh yet."""
    while True:
        await host.records.announce(PEERS_TOPIC, record)
        await asyncio.sleep(1.0)


def test_five_daemons_exchange_megabytes_announcements_and_records(base: Path) -> None:
    async def sum_up(stream: Stream) -> None:
        total = 0
        while frame := await stream.receive():
            total += len(frame)
        await stream.send(total.to_bytes(8, "big"))

    async def send_megabytes(source: Host, target: Host) -> int:
        stream = await source.transport.open(target.peer_id, "sum")
        for _ in range(4):
            await stream.send(os.urandom(1 << 20))
        await stream.send(b"")
        total = int.from_bytes(await stream.receive(), "big")
        await stream.close()
        return total

    async def story() -> None:
        names = ("a", "b", "c", "d", "e")
        async with swarm(base, *names) as hosts:
            for host, name in zip(hosts, names, strict=True):
                await host.transport.serve("sum", sum_up)
                await host.records.publish(live_record(name))
            # Nobody dialled anybody but the first: peer ids alone are enough.
            totals = await asyncio.gather(
                *(send_megabytes(hosts[n], hosts[(n + 2) % 5]) for n in range(5))
            )
            assert totals == [4 << 20] * 5
            for host in hosts:
                for name in names:
                    peer_id = identity_of(name).peer_id
                    found = await host.records.fetch(peers_key(peer_id), PeerRecord)
                    assert peer_id in [record.author for record in found]
            async with AsyncExitStack() as stack:
                heard = [
                    await stack.enter_async_context(host.records.listen(PEERS_TOPIC))
                    for host in hosts
                ]
                while len(await hosts[0].records.listeners(PEERS_TOPIC)) < 4:
                    await asyncio.sleep(0.05)
                record = live_record("a")
                announcing = asyncio.create_task(announce_again(hosts[0], record))
                for announcements in heard:
                    assert (await anext(announcements)).raw == record.raw
                announcing.cancel()

    run(story())


def test_dropping_a_stream_does_not_wait_for_a_peer_that_reads_nothing(base: Path) -> None:
    async def story() -> None:
        reading = asyncio.Event()

        async def read_nothing(stream: Stream) -> None:
            await reading.wait()

        async with swarm(base, "a", "b") as (a, b):
            await b.transport.serve("deaf", read_nothing)
            stream = await a.transport.open(b.peer_id, "deaf")
            sending = asyncio.create_task(_send_for_ever(stream))
            sent, before = 0, -1
            while sent != before:  # until every buffer on the way is full
                await asyncio.sleep(1.0)
                sent, before = a.transport.sent_bytes, sent
            sending.cancel()
            await asyncio.wait({sending})
            stream.abort()
            async with asyncio.timeout(5):
                with contextlib.suppress(OSError):
                    await stream._writer.wait_closed()
            reading.set()

    run(story())


async def _send_for_ever(stream: Stream) -> None:
    while True:
        await stream.send(bytes(1 << 20))


def test_a_record_outlives_its_publisher_and_reaches_later_nodes(base: Path) -> None:
    async def story() -> None:
        async with open_host(base, "keeper") as keeper:
            known = await keeper.addresses()
            async with open_host(base, "author", bootstrap=known) as author:
                record = live_record("author")
                await author.records.publish(record)
            async with open_host(base, "late", bootstrap=known) as late:
                found = await late.records.fetch(record.key, PeerRecord)
                assert [one.raw for one in found] == [record.raw]
                while not len(late._dht.shelf):
                    await asyncio.sleep(0.05)

    run(story())


def test_a_client_without_neighbours_says_that_nothing_was_stored(base: Path) -> None:
    async def story() -> None:
        async with open_host(base, "a", is_client=True) as client:
            with pytest.raises(PeerUnreachable, match="no peer could be reached to store"):
                await client.records.publish(live_record("a"))

    run(story())


def test_a_client_that_does_not_listen_is_reached_through_a_relay(base: Path) -> None:
    async def echo(stream: Stream) -> None:
        while True:
            await stream.send(await stream.receive())

    async def story() -> None:
        async with open_host(base, "relay", is_public=True) as relay:
            known = await relay.addresses()
            client_options = {"is_client": True, "listen": (), "bootstrap": known}
            async with (
                open_host(base, "client", **client_options) as client,
                open_host(base, "friend", bootstrap=known) as friend,
            ):
                await client.transport.serve("echo", echo)
                while await client.reachability() != "relayed":
                    await asyncio.sleep(0.1)
                addresses = await client.addresses()
                assert all("/p2p-circuit/" in address for address in addresses)
                friend.learn(client.peer_id, addresses)
                stream = await friend.transport.open(client.peer_id, "echo")
                for _ in range(4):
                    frame = os.urandom(1 << 20)
                    await stream.send(frame)
                    assert await stream.receive() == frame
                await stream.close()

    run(story())
