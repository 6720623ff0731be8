"""Torch's ways to say that a device's memory ran out, and our one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from zoonet.errors import OutOfDeviceMemory

# CUDA and MPS; the CPU; what cuBLAS, cuDNN and oneDNN say when they find no room of their own.
_MEMORY_WORDS: Final = (
    "out of memory",
    "can't allocate memory",
    "STATUS_ALLOC_FAILED",
    "could not create a primitive",
    "could not create a memory",
)


def memory_error(error: RuntimeError | MemoryError, what: str) -> OutOfDeviceMemory:
    """Map torch's ways to say that memory ran out; re-raise anything else."""
    if not is_memory_error(error):
        raise error
    return OutOfDeviceMemory(f"the device has too little memory for {what}")


def is_memory_error(error: BaseException) -> bool:
    """Whether torch says that memory ran out; its libraries have words of their own for it."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True  # numpy's, and what C++ says where it finds no room, are MemoryErrors
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _MEMORY_WORDS)


@contextmanager
def memory_errors_told(what: str) -> Iterator[None]:
    """Raise OutOfDeviceMemory where memory runs out in the block."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        raise memory_error(error, what) from error
