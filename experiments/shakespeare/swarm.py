"""Four real peers on this machine's loopback, and a network to submit jobs to them."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from peers.processes import Family
from zoonet.client import EntryConfig, JobOutput, Network

LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"
NUM_PEERS: Final = 4


@asynccontextmanager
async def peers_on_loopback() -> AsyncIterator[tuple[Network, Path]]:
    """Start a bootstrap and the peers; yield the network and a folder. All ends with the block."""
    with tempfile.TemporaryDirectory(prefix="zoonet-experiment-") as folder:
        scratch = Path(folder)
        async with Family(scratch).keep() as family:
            address = await _start(family, scratch)
            config = EntryConfig(
                folder=scratch / "client", listen=(LOOPBACK,), is_lan_enabled=False
            )
            async with await Network.join([address], config=config) as network:
                yield network, scratch


async def _start(family: Family, scratch: Path) -> str:
    """Start a bootstrap and the peers; return the bootstrap's address."""
    bootstrap = await family.start(
        "bootstrap",
        ["bootstrap", "--json", "--home", str(scratch / "bootstrap"), "--listen", LOOPBACK],
    )
    address = str((await family.first_line(bootstrap))["addresses"][0])
    for number in range(1, NUM_PEERS + 1):
        name = f"peer-{number}"
        home = str(scratch / name)
        where = ["--join", address, "--home", home, "--listen", LOOPBACK, "--no-lan"]
        await family.start(name, ["peer", *where, "--name", name])
    return address


def shares(output: JobOutput) -> dict[str, float]:
    """Each peer's part of the certified tokens."""
    return {
        contribution.name or contribution.peer_id: contribution.num_tokens / output.num_tokens
        for contribution in output.contributions
    }
