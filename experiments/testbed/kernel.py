"""What a test bed asks of the kernel: namespaces, links, shaping, counters. Linux, root only."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

NAMESPACES: Final = Path("/var/run/netns")
TUN_DEVICE: Final = Path("/dev/net/tun")
_CLONE_NEWNET: Final = 0x40000000


class BedUnavailable(Exception):
    """This machine or this user cannot build a test bed; the message says what to do."""


class BedFailed(Exception):
    """The kernel refused a part of the test bed."""


def require_namespaces() -> None:
    """Raise BedUnavailable unless namespaces with delayed links can be made here."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        raise BedUnavailable(
            "this benchmark builds its own network out of namespaces, for which it must be root: "
            "run the same command with sudo (a bed without root, with the shaping inside the "
            "transport, does not exist yet)"
        )
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise BedUnavailable(f"{' and '.join(missing)} not found: install the package iproute2")
    if not TUN_DEVICE.exists():
        raise BedUnavailable(f"there is no {TUN_DEVICE}: load the kernel module `tun`")


def run_tool(*command: str, text: str = "") -> str:
    """Run `ip` or `tc`, and return what it printed. Raises BedFailed where it complains."""
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BedFailed(f"{' '.join(command)}: {done.stderr.strip()}\n{text}".strip())
    return done.stdout


def ip_batch(lines: Iterable[str], namespace: str = "") -> None:
    """Run several `ip` commands at once, inside a namespace where one is named."""
    where = ("-n", namespace) if namespace else ()
    run_tool("ip", *where, "-batch", "-", text="\n".join(lines) + "\n")


def shape(namespace: str, interface: str, bits_per_s: float, queue_bytes: int) -> None:
    """Let so many bits a second leave by the interface; 0 takes the limit away."""
    if not bits_per_s:
        run_tool("tc", "-n", namespace, "qdisc", "del", "dev", interface, "root")
        return
    burst_bytes = max(16_000, int(bits_per_s / 8 * 0.002))  # what two milliseconds carry
    run_tool(
        *("tc", "-n", namespace, "qdisc", "replace", "dev", interface, "root", "tbf"),
        *("rate", f"{bits_per_s:.0f}bit", "burst", str(burst_bytes), "limit", str(queue_bytes)),
    )


def num_dropped(namespace: str, interface: str) -> int:
    """How many packets the interface's shaper has dropped because its queue was full."""
    text = run_tool("tc", "-n", namespace, "-s", "-j", "qdisc", "show", "dev", interface)
    return sum(int(discipline.get("drops", 0)) for discipline in json.loads(text))


def inside(namespace: str, function: Callable[[], T]) -> T:
    """Call the function in a thread of its own that has entered the namespace.

    Sockets and processes that it makes belong there.
    """

    def enter_and_call() -> T:
        enter(namespace)
        return function()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(enter_and_call).result()


def enter(namespace: str) -> None:
    """Move this thread into the namespace; what `os.setns` does from Python 3.12 on."""
    with (NAMESPACES / namespace).open("rb") as handle:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(handle.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")


def set_network_options(namespace: str, options: dict[str, str]) -> None:
    """Write files below /proc/sys/net as the namespace sees them. Raises BedFailed."""

    def write() -> None:
        for name, value in options.items():
            try:
                Path("/proc/sys/net", name).write_text(value)
            except OSError as error:
                raise BedFailed(f"cannot set {name} to {value}: {error.strerror}") from error

    inside(namespace, write)


@dataclass(frozen=True, slots=True)
class Counters:
    """What an interface has sent and received, link and network headers included."""

    received_bytes: int = 0
    received_packets: int = 0
    sent_bytes: int = 0
    sent_packets: int = 0

    def __add__(self, other: Counters) -> Counters:
        return Counters(
            self.received_bytes + other.received_bytes,
            self.received_packets + other.received_packets,
            self.sent_bytes + other.sent_bytes,
            self.sent_packets + other.sent_packets,
        )

    def __sub__(self, other: Counters) -> Counters:
        return Counters(
            self.received_bytes - other.received_bytes,
            self.received_packets - other.received_packets,
            self.sent_bytes - other.sent_bytes,
            self.sent_packets - other.sent_packets,
        )


def counters(namespace: str, interface: str) -> Counters:
    """Read the kernel's counters of an interface. Raises BedFailed where there is none."""
    text = inside(namespace, lambda: Path("/proc/thread-self/net/dev").read_text())
    for line in text.splitlines():
        name, _, figures = line.partition(":")
        if name.strip() == interface:
            fields = [int(field) for field in figures.split()]
            return Counters(fields[0], fields[1], fields[8], fields[9])
    raise BedFailed(f"{namespace} has no interface {interface}")


def processes_in(namespace: str) -> list[int]:
    """Ids of the processes that run inside the namespace."""
    return [int(pid) for pid in run_tool("ip", "netns", "pids", namespace).split()]


def namespace_names() -> list[str]:
    """All named namespaces of this machine."""
    if not NAMESPACES.is_dir():
        return []
    return sorted(path.name for path in NAMESPACES.iterdir())
