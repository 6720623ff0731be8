"""The membership experiment starts, ends and writes a valid result."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path

import pytest

from experiments.membership import __main__ as experiment
from experiments.membership.real_peer import RealPeer
from experiments.membership.simulate import Simulation
from experiments.membership.world import World
from zoonet.membership.gossip import GossipConfig


def test_the_smoke_run_writes_a_result_and_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "membership.json"
    monkeypatch.setattr(sys, "argv", ["experiment", "--smoke", "--out", str(out)])
    experiment.main()
    result = json.loads(out.read_text())
    (run,) = result["simulated"]
    assert run["num_peers"] == 60
    assert run["found_share"] >= 0.999
    assert run["bytes_per_s_mean"] < 2000
    assert out.with_suffix(".png").stat().st_size > 1000
    assert "round trips p99" in capsys.readouterr().out


def test_a_seed_names_one_run() -> None:
    world = World(num_peers=40, num_jobs=4, warmup_s=20, duration_s=60, churn_per_h=6.0, seed=3)
    first, second = Simulation(world).run(), Simulation(world).run()
    for name in ("bytes_per_s_mean", "num_lookups", "found_share", "calls_per_peer_s"):
        assert first[name] == second[name]
    assert first["found_share"] > 0.98


@pytest.mark.p2p
def test_a_killed_peer_says_no_goodbye_and_takes_nobody_along() -> None:
    async def story(scratch: Path) -> None:
        peers = [RealPeer(scratch / str(number), GossipConfig()) for number in range(3)]
        try:
            for number, peer in enumerate(peers):
                await peer.start(())
                await peer.gossip(peers[:number])
                assert not number or await peer.registry.complete(30)
            *others, victim = peers
            await victim.kill()
            assert all(peer.knows(victim.peer_id) for peer in others)
            assert not any(peer.registry.is_known_gone(victim.peer_id) for peer in others)
            assert await others[0].registry.find(f"member/{others[1].peer_id}")
        finally:
            for peer in reversed(peers):
                await peer.close()

    with tempfile.TemporaryDirectory(prefix="zn-") as folder:  # short: sockets lie in it
        asyncio.run(story(Path(folder)))
