"""The names under which users find things."""

from __future__ import annotations

import subprocess
import sys

import zoonet
from zoonet import alias


def test_the_announced_names_are_where_they_were_announced() -> None:
    from zoonet.client import Client, Network
    from zoonet.config import CheckpointConfig, ComputeJob

    assert zoonet.Network is Network
    assert zoonet.ComputeJob is ComputeJob
    assert zoonet.CheckpointConfig is CheckpointConfig
    assert alias.Client is Client
    assert alias.__version__ == zoonet.__version__
    assert set(alias.__all__) <= set(dir(alias))
    assert {"Client", "Network", "ComputeJob"} <= set(dir(zoonet))


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(zoonet, "Swarmm")


def test_importing_the_interface_imports_nothing_heavy() -> None:
    program = (
        "import sys, zoonet.client, zoonet.alias\n"
        "print(*sorted({'torch', 'hivemind', 'matplotlib'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == ""
