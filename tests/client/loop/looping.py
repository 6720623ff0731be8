"""A loop as a process of its own: `python -m tests.client.loop.looping ADDRESS SEED [STEPS]`."""

from __future__ import annotations

import hashlib
import json
import sys

import torch
from torch import nn

import zoonet
from zoonet.client.loop import Swarm

SIZE = 192


def main(bootstrap: str, seed: int, steps: int) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(SIZE, SIZE), nn.Tanh(), nn.Linear(SIZE, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    inputs = torch.randn(2048, SIZE, generator=torch.Generator().manual_seed(7))
    targets = inputs[:, :8].sum(1, keepdim=True)

    # Whoever is there first waits for another one, however long that takes to start.
    config = zoonet.SwarmConfig(inner_steps=40, min_peers=2)
    swarm = zoonet.Swarm.join(run="looping", bootstrap=bootstrap, config=config)
    with swarm:
        model, optimizer = swarm.prepare(model, optimizer)
        num_rounds = 0
        shard = swarm.shard(range(len(inputs)), batch_size=256, steps=steps, num_workers=1)
        for indices in shard:
            loss = nn.functional.mse_loss(model(inputs[indices]), targets[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if swarm.status().num_rounds > num_rounds:
                num_rounds = swarm.status().num_rounds
                with swarm.outer():
                    print(json.dumps({"round": num_rounds, "outer": fingerprint(model)}))
                print(swarm.status(), file=sys.stderr, flush=True)
        print(json.dumps({"final": fingerprint(model), "slots": certified(swarm)}), flush=True)


def fingerprint(model: nn.Module) -> str:
    parts = [value.numpy().tobytes() for _, value in sorted(model.state_dict().items())]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def certified(swarm: Swarm) -> list[int]:
    assert swarm._part is not None and swarm._part.chain is not None
    certificates = swarm._part.chain.certificates
    shares = [share for each in certificates for share in each.result.contributions]
    return sorted(s for share in shares for first, stop in share.slots for s in range(first, stop))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
