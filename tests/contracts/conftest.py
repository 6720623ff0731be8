"""Every contract runs on both networks."""

from __future__ import annotations

import pytest

from tests.contracts.networks import DaemonNetwork, MemoryNetwork, Network


@pytest.fixture(params=["memory", pytest.param("daemons", marks=pytest.mark.p2p)])
def network(request: pytest.FixtureRequest) -> Network:
    """The network under test, not yet running."""
    return MemoryNetwork() if request.param == "memory" else DaemonNetwork()
