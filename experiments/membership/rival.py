"""hivemind's DHT with as many nodes: what a look-up and a heartbeat cost there.

python -m experiments.membership.rival 32
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any, Final

LOOPBACK: Final = ("/ip4/127.0.0.1/tcp/0",)
NUM_GETS: Final = 100


def interface_bytes() -> int:
    """Bytes that the loopback interface has carried. Each was sent once and received once."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "lo":
            return int(counters.split()[0])
    return 0


async def measure_hivemind(num_peers: int) -> dict[str, Any]:
    """hivemind's own DHT with as many peers: every peer stores its record, random peers look up."""
    # Not above: it takes seconds, and a few readers of this module need none of it.
    from hivemind.dht.node import DHTNode
    from hivemind.utils import get_dht_time

    # Patient, so that a laden machine does not count against it.
    patience: dict[str, Any] = {"wait_timeout": 15.0, "bootstrap_timeout": 60.0}
    first = await DHTNode.create(host_maddrs=list(LOOPBACK), **patience)
    nodes = [first]
    try:
        known = await first.get_visible_maddrs()
        for _ in range(num_peers - 1):
            options = {"initial_peers": known, "host_maddrs": list(LOOPBACK), **patience}
            nodes.append(await DHTNode.create(**options))
        before = interface_bytes()
        value, end = os.urandom(600), get_dht_time() + 600
        for number, node in enumerate(nodes):
            await node.store(f"peer-{number}", value, end)
        store_bytes = (interface_bytes() - before) / num_peers
        before = interface_bytes()
        times_ms, num_found = [], 0
        for _ in range(NUM_GETS):
            key = f"peer-{random.randrange(num_peers)}"
            began = time.perf_counter()
            found = await random.choice(nodes).get(key, latest=True)
            times_ms.append(1000 * (time.perf_counter() - began))
            num_found += found is not None
        get_bytes = (interface_bytes() - before) / NUM_GETS
    finally:
        for node in reversed(nodes):
            await node.shutdown()
            await node.p2p.shutdown()
    return {
        "num_peers": num_peers,
        "get_ms_p50": sorted(times_ms)[NUM_GETS // 2],
        "get_ms_p99": sorted(times_ms)[NUM_GETS * 99 // 100],
        "found_share": num_found / NUM_GETS,
        "store_interface_bytes": store_bytes,
        "get_interface_bytes": get_bytes,
        # What liveness by heartbeats every 20 s costs, in and out, before anyone reads anything.
        "heartbeat_bytes_per_s": 2 * store_bytes / 20,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure_hivemind(int(sys.argv[1])))))
