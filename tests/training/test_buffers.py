from __future__ import annotations

import os
import subprocess
import sys

import pytest

from zoonet.training.buffers import SharedBuffers, inner_size

CHILD = """
import sys
from zoonet.training.buffers import SharedBuffers
with SharedBuffers.attach(int(sys.argv[1]), 5) as buffers:
    buffers.local_P[:] = buffers.global_P * 2
    buffers.inner_N[-1] = 7
"""


def test_another_process_reads_and_writes_the_same_vectors() -> None:
    with SharedBuffers.create(5) as buffers:
        buffers.global_P[:] = [1, 2, 3, 4, 5]
        command = [sys.executable, "-c", CHILD, str(buffers.fd)]
        subprocess.run(command, pass_fds=[buffers.fd], check=True, timeout=240)
        assert buffers.local_P.tolist() == [2, 4, 6, 8, 10]
        assert buffers.inner_N.tolist() == [0] * 10 + [7]


def test_new_buffers_are_zero_and_apart() -> None:
    with SharedBuffers.create(100) as buffers:
        vectors = buffers.global_P, buffers.local_P, buffers.inner_N, buffers.momentum_P
        assert [vector.size for vector in vectors] == [100, 100, inner_size(100), 100]
        assert not any(vector.any() for vector in vectors)
        for number, vector in enumerate(vectors):
            vector[:] = number
        assert [set(vector.tolist()) for vector in vectors] == [{0.0}, {1.0}, {2.0}, {3.0}]


def test_closing_gives_the_memory_back() -> None:
    before = set(os.listdir("/proc/self/fd"))
    buffers = SharedBuffers.create(100)
    buffers.close()
    buffers.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_view_that_is_still_held_stays_readable() -> None:
    with SharedBuffers.create(3) as buffers:
        view = buffers.global_P
        view[:] = 5
    assert view.tolist() == [5, 5, 5]


def test_memory_of_another_model_is_refused() -> None:
    with SharedBuffers.create(1000) as buffers:
        for num_parameters in (0, 999_000, 10):
            with pytest.raises(ValueError, match="does not hold"):
                SharedBuffers.attach(buffers.fd, num_parameters)


def test_nobody_can_shorten_the_memory_under_a_reader() -> None:
    with SharedBuffers.create(1000) as buffers, pytest.raises(PermissionError):
        os.ftruncate(buffers.fd, 0)
