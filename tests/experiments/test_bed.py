"""The network of a benchmark: it delays, shapes and counts; and nothing of it is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from experiments.testbed import kernel, probes
from experiments.testbed.bed import Bed, sweep
from experiments.testbed.layout import Layout, Link
from tests.experiments.beds import needs_bed

pytestmark = [needs_bed, pytest.mark.slow]

LINK = Link(rate_bits_per_s=40e6, rtt_s=0.03)


def ours() -> list[str]:
    return [name for name in kernel.namespace_names() if name.startswith(f"zt{os.getpid()}-")]


@pytest.mark.asyncio
async def test_a_link_has_the_rate_and_the_delay_that_it_should() -> None:
    async with Bed.open(Layout((1, 1)), LINK) as bed:
        looked = await probes.look(bed)
    assert looked.rtt_s == pytest.approx(LINK.rtt_s, rel=0.3)  # a shared machine is late at times
    assert looked.rate_bits_per_s == pytest.approx(LINK.rate_bits_per_s, rel=0.2)
    assert not ours()


@pytest.mark.asyncio
async def test_what_crosses_is_counted_with_its_headers_and_once() -> None:
    async with Bed.open(Layout((1, 1)), LINK) as bed:
        here = kernel.inside(bed.namespace_of(0), probes.udp_socket)
        there = kernel.inside(bed.namespace_of(1), probes.udp_socket)
        with here, there:
            there.bind((bed.layout.address_of(1), 0))
            before = bed.crossing()
            for _ in range(10):
                here.sendto(bytes(1000), there.getsockname())
                there.recv(2000)
            crossed = bed.crossing() - before
    assert crossed.sent_bytes == crossed.received_bytes == 10 * (1000 + 28)
    assert crossed.sent_packets == 10


@pytest.mark.asyncio
async def test_a_peer_that_is_cut_off_hears_nothing_until_it_is_healed() -> None:
    async with Bed.open(Layout((2,)), LINK) as bed:
        here = kernel.inside(bed.namespace_of(0), probes.udp_socket)
        there = kernel.inside(bed.namespace_of(1), probes.udp_socket)
        with here, there:
            there.bind((bed.layout.address_of(1), 0))
            here.sendto(b"first", there.getsockname())  # neighbours get to know each other
            assert there.recv(16) == b"first"
            there.settimeout(0.2)
            bed.cut(1)
            here.sendto(b"lost", there.getsockname())
            with pytest.raises(TimeoutError):
                there.recv(16)
            bed.heal()
            there.settimeout(5.0)
            here.sendto(b"found", there.getsockname())
            assert there.recv(16) == b"found"


def test_what_a_killed_benchmark_leaves_is_swept() -> None:
    code = (
        "import asyncio\n"
        "from experiments.testbed.bed import Bed\n"
        "from experiments.testbed.layout import Layout, Link\n"
        "async def main():\n"
        "    async with Bed.open(Layout((1, 1)), Link()):\n"
        "        print('open', flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert killed.stdout is not None
    assert killed.stdout.readline() == "open\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    left = [name for name in kernel.namespace_names() if name.startswith(f"zt{killed.pid}-")]
    assert len(left) == 4
    sweep()
    assert not set(left) & set(kernel.namespace_names())
