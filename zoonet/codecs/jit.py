"""Compiles kernels: functions over arrays, by numba, ahead of their first call.

Only the modules of kernels import this, and only codecs that lose bits import those: a job in fp32
never loads numba. Compiled code is kept in a cache on disk, beside the sources or where the user's
caches are, so a machine compiles once. No fast maths: LLVM may then neither reorder nor fuse what
a kernel says, so its bits are everybody's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

import numba
from numba.core import types

_log = logging.getLogger(__name__)

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

_OPTIONS: Final = {
    "nopython": True,
    "nogil": True,
    "fastmath": False,
    "error_model": "numpy",
}
_SCALARS: Final = {
    "i64": types.int64,
    "f32": types.float32,
    "bool": types.boolean,
}
_ITEMS: Final = {
    "f32": types.float32,
    "i32": types.int32,
    "i64": types.int64,
    "i16": types.int16,
    "i8": types.int8,
    "u8": types.uint8,
}


def kernel(returns: str, *arguments: str) -> Callable[[Kernel], Kernel]:
    """Compile a function at once, for these types.

    "i64" is a scalar, "in f32" a contiguous array that is read, "out f32" one that is written.
    """
    signature = _type_of(returns)(*map(_type_of, arguments))

    def compile_(function: Kernel) -> Kernel:
        compiled: Kernel
        try:
            compiled = numba.jit(signature, cache=True, **_OPTIONS)(function)
        except (RuntimeError, OSError) as error:  # there is no place for a cache
            _log.debug("compiling without a cache kernel=%s error=%r", function.__name__, error)
            compiled = numba.jit(signature, **_OPTIONS)(function)
        return compiled

    return compile_


def inlined(function: Kernel) -> Kernel:
    """Compile a function for use inside kernels of the same module."""
    compiled: Kernel = numba.jit(**_OPTIONS)(function)
    return compiled


def _type_of(name: str) -> Any:
    direction, _, item = name.rpartition(" ")
    if not direction:
        return _SCALARS[item]
    return types.Array(_ITEMS[item], 1, "C", readonly=direction == "in")
