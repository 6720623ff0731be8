"""The figures of the experiment about lanes."""

from __future__ import annotations

from experiments.lanes.__main__ import rows_of


def test_ratios_are_taken_lap_by_lap() -> None:
    spent = {
        ("sockets", 1024): [(1.0, 2.0), (2.0, 4.0), (1.0, 2.0)],
        ("direct", 1024): [(1.0, 3.0), (2.0, 6.0), (1.0, 4.0)],
    }
    direct, sockets = rows_of(spent, 1_000_000_000)
    assert (direct["contender"], direct["cpu_to_sockets"]) == ("direct", 1.5)
    assert direct["mb_per_s"] == [1000, 500, 1000]
    assert direct["cpu_s_per_gb"] == [4.0, 3.0, 6.0]
    assert sockets["cpu_to_sockets"] == 1
