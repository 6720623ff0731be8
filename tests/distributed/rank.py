"""One rank as a process of its own: python -m tests.distributed.rank FOLDER RANK SIZE STORY..."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.distributed import stories
from tests.distributed.sockets import SocketTransport, peer_of
from zoonet.client.background import Background
from zoonet.distributed import ExchangeConfig, World


def main(folder: Path, rank: int, num_peers: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    config = ExchangeConfig(run="test", join_timeout_s=60, operation_timeout_s=60)
    peers = [peer_of(other) for other in range(num_peers)]
    runner = Background()
    lanes = SocketTransport(folder, rank, num_peers).lanes()
    with World.open(runner, lanes, peers, config) as world:
        world.init_process_group()
        for name in names:
            getattr(stories, name)(world)
            print(f"{name} done", flush=True)
    runner.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
