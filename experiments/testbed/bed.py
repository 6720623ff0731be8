"""Several hosts on one machine: a namespace for every peer, a bridge for every site.

::

    peer 0 --.                                       .-- peer 4
    peer 1 --+- lan [site 0] wan -- delay -- wan [site 1] lan -+-- peer 5
    peer 2 --'        tbf: way up          tbf: way down       '-- peer 6

A site's router is a namespace too. The kernel's token bucket on its `wan` is the site's way up,
the one on its `lan` bridge (which peers of the site do not pass when they talk to each other) its
way down. Between the sites lies `delay_line`. All of it is gone when the context is left, and what
a killed benchmark left behind is swept when the next one begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from experiments.testbed import kernel
from experiments.testbed.delay_line import INTERFACE as WAN
from experiments.testbed.kernel import BedFailed, Counters
from experiments.testbed.layout import FIRST_NET, Layout, Link
from peers.runtime import die_with_parent

LAN: Final = "lan"
PEER_INTERFACE: Final = "eth0"
_OURS: Final = re.compile(r"zt(\d+)-[a-z]\d*")
_ETHERNET_HEADER_BYTES: Final = 14
READY_S: Final = 30.0


@dataclass(slots=True)
class Bed:
    """A running test bed. Open it with `async with Bed.open(layout, link)`. Root only."""

    layout: Layout
    link: Link
    _line: asyncio.subprocess.Process | None = None
    _slowed: set[int] = field(default_factory=set)

    @classmethod
    @asynccontextmanager
    async def open(cls, layout: Layout, link: Link) -> AsyncIterator[Self]:
        """Build the bed, and take it down with the block, whatever ends it.

        Raises BedUnavailable for who is not root, BedFailed where the kernel refuses.
        """
        kernel.require_namespaces()
        sweep()
        bed = cls(layout, link)
        try:
            bed._build_sites()
            if len(layout.sites) > 1:
                await bed._join_sites()
            bed._set_options()
            yield bed
        finally:
            await bed._take_down()

    # --- names ----------------------------------------------------------------------------------

    def namespace_of(self, peer: int) -> str:
        """The namespace that a peer lives in."""
        return f"zt{os.getpid()}-p{peer}"

    def router_of(self, site: int) -> str:
        """The namespace of a site's router."""
        return f"zt{os.getpid()}-s{site}"

    @property
    def _namespaces(self) -> list[str]:
        routers = [self.router_of(site) for site in range(len(self.layout.sites))]
        return routers + [self.namespace_of(peer) for peer in range(self.layout.num_peers)]

    # --- building -------------------------------------------------------------------------------

    def _build_sites(self) -> None:
        kernel.ip_batch(f"netns add {name}" for name in self._namespaces)
        for site in range(len(self.layout.sites)):
            router = self.router_of(site)
            peers, mtu = self.layout.members(site), self.link.mtu_bytes
            kernel.ip_batch(
                [
                    "link set lo up",
                    f"link add {LAN} mtu {mtu} type bridge",
                    f"address add {self.layout.gateway_of(site)}/16 dev {LAN}",
                    f"link set {LAN} up",
                    *(self._veth_of(peer) for peer in peers),
                    *(f"link set p{peer} mtu {mtu} master {LAN} up" for peer in peers),
                ],
                router,
            )
            for peer in peers:
                self._address_peer(peer, self.layout.gateway_of(site))

    def _veth_of(self, peer: int) -> str:
        namespace = self.namespace_of(peer)
        return f"link add p{peer} type veth peer name {PEER_INTERFACE} netns {namespace}"

    def _address_peer(self, peer: int, gateway: str) -> None:
        address = self.layout.address_of(peer)

        kernel.ip_batch(
            [
                "link set lo up",
                f"link set {PEER_INTERFACE} mtu {self.link.mtu_bytes} up",
                f"address add {address}/16 dev {PEER_INTERFACE}",
                f"route add default via {gateway}",
            ],
            self.namespace_of(peer),
        )

    async def _join_sites(self) -> None:
        num_sites = len(self.layout.sites)
        one_way_s = self.link.rtt_s / 2
        self._line = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "experiments.testbed.delay_line"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        await self._ask_line(
            {
                "namespaces": [self.router_of(site) for site in range(num_sites)],
                "delays_s": [[one_way_s] * num_sites for _ in range(num_sites)],
                "mtu_bytes": self.link.mtu_bytes,
            }
        )
        for site in range(num_sites):
            kernel.ip_batch(
                [
                    f"link set {WAN} mtu {self.link.mtu_bytes} txqueuelen 5000 up",
                    *(
                        f"route add 10.{FIRST_NET + other}.0.0/16 dev {WAN}"
                        for other in range(num_sites)
                        if other != site
                    ),
                ],
                self.router_of(site),
            )
            self.set_rate(site, self.link.rate_bits_per_s)

    async def _ask_line(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._line is not None and self._line.stdin and self._line.stdout
        self._line.stdin.write(json.dumps(question).encode() + b"\n")
        async with asyncio.timeout(READY_S):
            answer = await self._line.stdout.readline()
        if not answer:
            raise BedFailed("the delay line ended; what it said is above")
        return dict(json.loads(answer))

    def set_rate(self, site: int, bits_per_s: float) -> None:
        """Shape both ways of a site; 0 for no limit that it has set before."""
        mtu = self.link.mtu_bytes
        in_frames = bits_per_s * (mtu + _ETHERNET_HEADER_BYTES) / mtu  # a bridge counts frames
        for interface, rate in ((WAN, bits_per_s), (LAN, in_frames)):
            if rate:
                kernel.shape(self.router_of(site), interface, rate, self.link.queue_bytes)

    def _set_options(self) -> None:
        everywhere = {
            "ipv6/conf/all/disable_ipv6": "1",  # it would chat over what is counted
            "ipv4/tcp_slow_start_after_idle": "0",
            "ipv4/tcp_no_metrics_save": "1",  # nobody learns from who was measured before
            "ipv4/tcp_congestion_control": self.link.congestion_control,
        }
        if not Path("/proc/sys/net/ipv6").exists():
            del everywhere["ipv6/conf/all/disable_ipv6"]
        for namespace in self._namespaces:
            kernel.set_network_options(namespace, everywhere)
        for site in range(len(self.layout.sites)):
            kernel.set_network_options(self.router_of(site), {"ipv4/ip_forward": "1"})

    async def _take_down(self) -> None:
        if self._line is not None and self._line.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._line.kill()
            await self._line.wait()
        remove(set(self._namespaces) & set(kernel.namespace_names()))

    # --- looking --------------------------------------------------------------------------------

    def crossing(self) -> Counters:
        """What all sites together have sent to others (every byte once) and got from others."""
        total = Counters()
        if len(self.layout.sites) > 1:
            for site in range(len(self.layout.sites)):
                total += kernel.counters(self.router_of(site), WAN)
        return total

    def num_dropped(self) -> int:
        """Packets that sites' shapers have dropped so far: what was lost and sent again."""
        if len(self.layout.sites) < 2 or not self.link.rate_bits_per_s:
            return 0
        routers = [self.router_of(site) for site in range(len(self.layout.sites))]
        return sum(kernel.num_dropped(name, way) for name in routers for way in (WAN, LAN))

    async def line_figures(self) -> dict[str, Any]:
        """What the delay line has done since it was last asked; empty where there is none."""
        return await self._ask_line({"is": "asked"}) if self._line is not None else {}

    # --- faults ---------------------------------------------------------------------------------

    def signal(self, peer: int, number: signal.Signals) -> None:
        """Send a signal to every process of a peer."""
        for pid in kernel.processes_in(self.namespace_of(peer)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def cut(self, peer: int) -> None:
        """Drop everything to and from a peer, without a word to anybody."""
        router = self.router_of(self.layout.site_of(peer))
        kernel.run_tool("ip", "-n", router, "link", "set", "dev", f"p{peer}", "down")

    def slow(self, peer: int, bits_per_s: float) -> None:
        """Let a peer send and receive at that rate at most."""
        router = self.router_of(self.layout.site_of(peer))
        kernel.shape(self.namespace_of(peer), PEER_INTERFACE, bits_per_s, self.link.queue_bytes)
        kernel.shape(router, f"p{peer}", bits_per_s, self.link.queue_bytes)
        self._slowed.add(peer)

    def heal(self) -> None:
        """Take back every cut and every slowing."""
        for peer in range(self.layout.num_peers):
            router = self.router_of(self.layout.site_of(peer))
            kernel.run_tool("ip", "-n", router, "link", "set", "dev", f"p{peer}", "up")
            if peer in self._slowed:
                kernel.shape(self.namespace_of(peer), PEER_INTERFACE, 0, 0)
                kernel.shape(router, f"p{peer}", 0, 0)
        self._slowed.clear()


@dataclass(slots=True)
class Loopback:
    """All peers on one host, over its loopback. As root in a namespace, where bytes are counted."""

    layout: Layout
    namespace: str = ""

    @classmethod
    @asynccontextmanager
    async def open(cls, num_peers: int) -> AsyncIterator[Self]:
        """Open a host for so many peers. Without root it is the machine's own loopback."""
        bed = cls(Layout((num_peers,)))
        try:
            kernel.require_namespaces()
        except kernel.BedUnavailable:
            yield bed
            return
        sweep()
        bed.namespace = f"zt{os.getpid()}-h"
        try:
            kernel.ip_batch([f"netns add {bed.namespace}"])
            kernel.ip_batch(["link set lo up"], bed.namespace)
            yield bed
        finally:
            remove({bed.namespace} & set(kernel.namespace_names()))

    def namespace_of(self, peer: int) -> str:
        """The namespace of all peers; empty where it is the machine's own."""
        return self.namespace

    def crossing(self) -> Counters:
        """What went over the loopback; zeros where others share it."""
        return kernel.counters(self.namespace, "lo") if self.namespace else Counters()

    def num_dropped(self) -> int:
        """Nothing is shaped."""
        return 0

    async def line_figures(self) -> dict[str, Any]:
        """There is no delay line."""
        return {}


def sweep() -> None:
    """Remove what benchmarks that were killed have left."""
    remove(
        name
        for name in kernel.namespace_names()
        if (match := _OURS.fullmatch(name)) and not _is_running(int(match[1]))
    )


def remove(namespaces: Iterable[str]) -> None:
    """End the processes in these namespaces, then the namespaces."""
    for name in namespaces:
        for pid in kernel.processes_in(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        kernel.run_tool("ip", "netns", "delete", name)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
