"""One anonymous file of memory that the node and its trainer both see.

::

    global_P   outer parameters of the last certified round   node writes, trainer reads
    momentum_P outer momentum, where trainers move along it    the same; else untouched, no memory
    local_P    theta_local, as last told of; then what moves    both, one at a time
               the trainer's parameters on to the next round
    inner_N    mirror of the inner optimizer's state           trainer writes, node copies

P = flat parameters, N = 2P + 1: two moments and the number of steps taken (fp32, as torch counts)
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
from typing import Self

import numpy as np

from zoonet.errors import StorageError

_ALIGNMENT = 64  # bytes: one cache line


def inner_size(num_parameters: int) -> int:
    """Number of elements N of the inner state of P parameters."""
    return 2 * num_parameters + 1


class SharedBuffers:
    """The vectors that node and trainer share. Nameless: gone with its last owner."""

    def __init__(self, fd: int, num_parameters: int) -> None:
        sizes = _sizes(num_parameters)
        offsets, total = _layout(sizes)
        if num_parameters < 1 or os.fstat(fd).st_size != total:
            raise ValueError(
                f"this memory does not hold the buffers of {num_parameters} parameters"
            )
        self.fd = fd
        self.num_parameters = num_parameters
        self._map = mmap.mmap(fd, total)
        self.global_P, self.local_P, self.inner_N, self.momentum_P = (
            np.frombuffer(self._map, np.float32, size, offset)
            for size, offset in zip(sizes, offsets, strict=True)
        )

    @classmethod
    def create(cls, num_parameters: int) -> Self:
        """Reserve zeroed buffers. Raises StorageError where there is too little memory."""
        total = _layout(_sizes(num_parameters))[1]
        fd = _anonymous_file()
        try:
            os.ftruncate(fd, total)
            _seal_size(fd)
            return cls(fd, num_parameters)
        except OSError as error:
            os.close(fd)
            raise StorageError(
                f"cannot reserve {total >> 20} MiB for a model of {num_parameters} parameters: "
                f"{error.strerror}"
            ) from error

    @classmethod
    def attach(cls, fd: int, num_parameters: int) -> Self:
        """Map the buffers that another process created; takes over the descriptor."""
        return cls(fd, num_parameters)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap and close. Memory under a view that someone still holds goes with that view."""
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        empty = np.empty(0, np.float32)
        self.global_P = self.local_P = self.inner_N = self.momentum_P = empty
        with contextlib.suppress(BufferError):  # a view is still held: its reader would crash
            self._map.close()


def _sizes(num_parameters: int) -> tuple[int, ...]:
    return num_parameters, num_parameters, inner_size(num_parameters), num_parameters


def _layout(sizes: tuple[int, ...]) -> tuple[list[int], int]:
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size * 4 // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("zoonet", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    fd, path = tempfile.mkstemp(prefix="zoonet-")
    os.unlink(path)
    return fd


def _seal_size(fd: int) -> None:
    """Let nobody truncate the file under a mapping, where the system can promise that."""
    if hasattr(fcntl, "F_ADD_SEALS") and hasattr(os, "memfd_create"):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
