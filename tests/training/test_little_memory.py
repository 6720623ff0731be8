"""A machine with too little memory for a whole batch: real allocations that are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

# Runs in a process of its own, for its limit is for ever. Prints what each step came to.
SCRIPT = """
import json, resource, sys
import msgspec, numpy as np, torch
from zoonet.errors import OutOfDeviceMemory
from zoonet.training.messages import Start
from zoonet.training.session import TrainingSession

torch.set_num_threads(1)
start = msgspec.msgpack.decode(open(sys.argv[1], "rb").read(), type=Start)
initial_P = np.load(sys.argv[2])
room_mb = int(sys.argv[3])
with TrainingSession(start) as session:
    session.begin(initial_P, None)
    if room_mb:
        pages = int(open("/proc/self/statm").read().split()[0])
        most = pages * resource.getpagesize() + (room_mb << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    losses = []
    try:
        for slot in range(6):
            session.step(slot, 0.5)
            losses.append(session.take_loss())
        error = ""
    except OutOfDeviceMemory as failure:
        error = str(failure)
    size = session.micro_batch_size
print(json.dumps({"losses": losses, "error": error, "micro_batch_size": size}))
"""


@pytest.fixture
def trained(tmp_path: Path, make_job: Callable[..., Any]) -> Callable[[int], Any]:
    """Train six steps with so many MiB of room beside what stands there; 0: without a limit."""
    job = make_job({"width": 128, "context": 128}, batch_size=64, tokens=64 * 128 * 100)
    start, initial = tmp_path / "start", tmp_path / "initial.npy"
    start.write_bytes(msgspec.msgpack.encode(job.start))
    with initial.open("wb") as file:
        np.save(file, job.initial_P)

    def train(room_mb: int) -> Any:
        ended = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(start), str(initial), str(room_mb)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stderr[-2000:]
        return json.loads(ended.stdout)

    return train


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's address space")
def test_where_memory_runs_out_the_micro_batch_shrinks_and_the_losses_stay(
    trained: Callable[[int], Any],
) -> None:
    whole, cut = trained(0), trained(150)
    assert whole["micro_batch_size"] == 64
    assert 1 <= cut["micro_batch_size"] < 64
    assert cut["error"] == ""
    assert cut["losses"] == pytest.approx(whole["losses"], rel=1e-4)
    assert whole["losses"][-1] < whole["losses"][0] - 0.1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's address space")
def test_where_not_even_a_sample_fits_it_is_said_so(trained: Callable[[int], Any]) -> None:
    assert "too little memory" in trained(2)["error"]
