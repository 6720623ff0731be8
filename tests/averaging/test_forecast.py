"""Predicted times against an all-reduce that is played event by event."""

from __future__ import annotations

import pytest

from tests.averaging.test_planner import MBIT, swarm
from tests.averaging.wire import Wire
from zoonet.averaging.links import PeerLinks
from zoonet.averaging.planner import Payload, make_plan, predict

SWARMS = [
    ((4, 4), 100, 0.05, 16, 4.0),
    ((4, 4), 100, 0.05, 64, 1.0),
    ((2, 2, 2, 2), 100, 0.05, 16, 4.0),
    ((6, 6, 6, 6), 100, 0.05, 64, 1.0),
    ((5, 2, 1), 100, 0.05, 64, 4.0),
    ((3, 1, 1, 2), 50, 0.05, 32, 4.0),
    ((1,) * 8, 20, 0.05, 16, 4.0),
    ((8,), 100, 0.05, 64, 4.0),
]


@pytest.mark.parametrize(("sizes", "mbit", "rtt_s", "megabytes", "wan"), SWARMS)
def test_predicted_and_simulated_times_agree_within_15_per_cent(
    sizes: tuple[int, ...], mbit: float, rtt_s: float, megabytes: int, wan: float
) -> None:
    peers, links = swarm(*sizes, line=mbit * MBIT)
    links = {
        peer: PeerLinks(
            near=said.near,
            up_bytes_per_s=said.up_bytes_per_s,
            down_bytes_per_s=said.down_bytes_per_s,
            lan_bytes_per_s=1000 * MBIT,
        )
        for peer, said in links.items()
    }
    payload = Payload(num_values=megabytes * 250_000, wan_bytes_per_value=wan)
    plan = make_plan(peers, (), links, payload.num_values, wan)
    forecast = predict(plan, peers, links, payload, wan_rtt_s=rtt_s, shares_lines=True)
    rates = {"wan": mbit * MBIT, "lan": 1000 * MBIT}
    taken_s = Wire(plan, peers, payload, rates, rtt_s / 2).run()
    assert taken_s == pytest.approx(forecast.total_s, rel=0.15)
    assert taken_s >= 0.99 * forecast.busy_s
