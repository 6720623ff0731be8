"""The benchmarks' own contenders average right: three peers of each, over loopback."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from experiments.testbed import vectors
from experiments.testbed.contenders import Contender, Stage, make

NUM_VALUES = 10_007  # does not divide evenly among three


def stage_of(peer: int, num_peers: int, folder: Path) -> Stage:
    return Stage(
        peer=peer,
        sites=(tuple(range(num_peers)),),
        num_values=NUM_VALUES,
        address="127.0.0.1",
        interface="lo",
        folder=folder,
    )


async def rounds_of(name: str, num_peers: int, folder: Path) -> list[bytes]:
    """Two rounds; every result is judged. Returns the last round's results."""
    peers = [make(name, stage_of(peer, num_peers, folder)) for peer in range(num_peers)]
    noise_P = vectors.noise(NUM_VALUES)
    try:
        hellos = [await contender.start() for contender in peers]
        await asyncio.gather(*(contender.connect(hellos) for contender in peers))
        for number in (1, 2):
            told: dict[int, dict[str, object]] = {}
            everyone = asyncio.Barrier(num_peers)
            await asyncio.gather(
                *(
                    one_round(who, peer, noise_P, number, told, everyone)
                    for peer, who in enumerate(peers)
                )
            )
        return [contender.result().tobytes() for contender in peers]
    finally:
        for contender in peers:
            await contender.close()


async def one_round(
    contender: Contender,
    peer: int,
    noise_P: np.ndarray,
    number: int,
    told: dict[int, dict[str, object]],
    everyone: asyncio.Barrier,
) -> None:
    contribution_P = np.empty_like(noise_P)
    vectors.fill_(contribution_P, noise_P, peer, number)
    told[peer] = await contender.prepare(number, contribution_P)
    await everyone.wait()
    contributors = await contender.run([told[each] for each in sorted(told)])
    tolerance = contender.value_tolerance
    assert vectors.judge(contender.result(), noise_P, contributors, number, tolerance).is_right


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "name", ["floor", "floor-plain", "ring", "zoonet", "zoonet-shm", "zoonet-butterfly", "rounds"]
)
async def test_every_peer_has_the_same_right_mean(name: str, tmp_path: Path) -> None:
    async with asyncio.timeout(180):
        results = await rounds_of(name, 3, tmp_path)
    assert len(set(results)) == 1


@pytest.mark.asyncio
async def test_a_bare_connection_brings_the_other_ones_vector(tmp_path: Path) -> None:
    async with asyncio.timeout(180):
        first, second = await rounds_of("raw-tcp", 2, tmp_path)
    assert first != second


def test_a_name_that_nobody_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        make("nobody", stage_of(0, 2, tmp_path))
