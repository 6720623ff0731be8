"""One peer of the pipeline: python -m experiments.pipeline.worker RANK NUM_STEPS PORT..."""

from __future__ import annotations

import hashlib
import sys

import torch

import zoonet
from experiments.pipeline.train import PipelinePeer, Plan
from zoonet.crypto import Identity


def main(rank: int, num_steps: int, ports: list[int]) -> None:
    torch.set_num_threads(1)
    keys = [Identity(hashlib.sha256(b"pipeline %d" % r).digest()) for r in range(len(ports))]
    peers = [
        f"/ip4/127.0.0.1/tcp/{port}/p2p/{key.peer_id}"
        for port, key in zip(ports, keys, strict=True)
    ]
    with zoonet.join_world(peers, key=keys[rank]) as world:
        world.init_process_group()
        PipelinePeer(world, Plan(num_steps=num_steps), say).train()


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), list(map(int, sys.argv[3:])))
