"""How fast each codec is on one core, beside a copy of the same memory.

Times are the thread's own (processor time), since a core is rarely free of other work.

N = values of a vector, 64 MiB of fp32 at full size
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from zoonet.codecs import Codec, codec, encode_with_feedback
from zoonet.exact import Vector

CHUNK_VALUES = 64 * 1024  # 256 KiB of fp32
WEIGHT = np.float32(0.25)


@dataclass
class Times:
    """Seconds for the whole vector, one entry a repeat."""

    encode: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    accumulate: list[float] = field(default_factory=list)
    feedback: list[float] = field(default_factory=list)


class Contender:
    """One codec over one vector, chunk by chunk, with a buffer for every chunk's payload."""

    def __init__(self, name: str, values_N: Vector, out_N: Vector) -> None:
        self.codec: Codec = codec(name)
        self.codec.prepare()
        self.times = Times()
        self._values_N = values_N
        self._out_N = out_N
        self._feedback_N = np.zeros(CHUNK_VALUES, np.float32)
        chunks = range(-(-values_N.size // CHUNK_VALUES))
        room = self.codec.max_bytes(CHUNK_VALUES)
        self._buffers = [memoryview(bytearray(room)) for _ in chunks]
        self._payloads: list[memoryview] = []

    @property
    def num_bytes(self) -> int:
        """Bytes of all payloads."""
        return sum(payload.nbytes for payload in self._payloads)

    def measure(self) -> None:
        """Encode, decode and accumulate the vector once each, and encode it with feedback."""
        self.times.encode.append(seconds(self._encode))
        self.times.decode.append(seconds(self._decode))
        self.times.accumulate.append(seconds(self._accumulate))
        self.times.feedback.append(seconds(self._feed_back))

    def _encode(self) -> None:
        self._payloads = [
            buffer[: self.codec.encode(chunk, buffer)]
            for chunk, buffer in zip(chunks_of(self._values_N), self._buffers, strict=True)
        ]

    def _decode(self) -> None:
        for payload, chunk in zip(self._payloads, chunks_of(self._out_N), strict=True):
            self.codec.decode(payload, chunk)

    def _accumulate(self) -> None:
        for payload, chunk in zip(self._payloads, chunks_of(self._out_N), strict=True):
            self.codec.accumulate(payload, WEIGHT, chunk, is_first=False)

    def _feed_back(self) -> None:
        for chunk, buffer in zip(chunks_of(self._values_N), self._buffers, strict=True):
            encode_with_feedback(self.codec, chunk, self._feedback_N[: chunk.size], buffer)


def measure(names: list[str], values_N: Vector, repeats: int) -> dict[str, Any]:
    """Rates of every codec, and of memcpy, in turns: forwards, then backwards, and so on."""
    with one_core():
        return _measure(names, values_N, repeats)


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread on one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _measure(names: list[str], values_N: Vector, repeats: int) -> dict[str, Any]:
    out_N = np.zeros_like(values_N)
    contenders = [Contender(name, values_N, out_N) for name in names]
    for contender in contenders:
        contender.measure()
        contender.times = Times()
    copies: list[float] = []
    for repeat in range(repeats):
        copies.append(seconds(lambda: np.copyto(out_N, values_N)))
        for contender in contenders[:: -1 if repeat % 2 else 1]:
            contender.measure()
    return {
        "memcpy_gb_per_s": rate(copies, values_N.nbytes),
        "codecs": {one.codec.name: summary(one, values_N) for one in contenders},
    }


def summary(contender: Contender, values_N: Vector) -> dict[str, Any]:
    """The figures of one codec. Rates are of fp32 memory, so 4 bytes a value."""
    times = contender.times
    wire_bytes = contender.num_bytes
    slowest = max(statistics.median(t) for t in (times.encode, times.decode, times.accumulate))
    return {
        "bytes_per_value": wire_bytes / values_N.size,
        "encode_gb_per_s": rate(times.encode, values_N.nbytes),
        "decode_gb_per_s": rate(times.decode, values_N.nbytes),
        "accumulate_gb_per_s": rate(times.accumulate, values_N.nbytes),
        "encode_with_feedback_gb_per_s": rate(times.feedback, values_N.nbytes),
        "saturates_gbit_per_s": 8 * wire_bytes / slowest / 1e9,
    }


def rate(times: list[float], num_bytes: int) -> dict[str, float]:
    """Median, smallest and largest rate in GB/s."""
    return {
        "median": num_bytes / statistics.median(times) / 1e9,
        "min": num_bytes / max(times) / 1e9,
        "max": num_bytes / min(times) / 1e9,
    }


def chunks_of(values_N: Vector) -> Iterator[Vector]:
    """The chunks of a vector, in order."""
    for start in range(0, values_N.size, CHUNK_VALUES):
        yield values_N[start : start + CHUNK_VALUES]


def seconds(work: Callable[[], None]) -> float:
    """How long this thread computed: other programs may take the core in between."""
    started = time.thread_time()
    work()
    return time.thread_time() - started
