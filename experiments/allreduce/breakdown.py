"""Where the processor's time of a round over TLS goes: what its parts cost by themselves.

Each part is done alone, in one process, and multiplied by how much of it a round needs. What is
left of the time that the peers' processes took is everything else: Python, locks, wake-ups, and
what the parts cost more where many processes do them at once.

V = 2(n-1) S: bytes that n peers with S bytes each send in a round
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray
from rich.table import Table

from experiments.testbed import sockets, vectors
from zoonet.averaging.wire import is_finite
from zoonet.exact import weighted_mean

REPEATS: Final = 5
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """Processor seconds for each MiB, at best: user and system."""

    kernel_s: float  # sent and received over loopback in the clear
    encryption_s: float  # what TLS adds to that, on both sides
    hash_s: float
    addition_s: float  # of output, for each part that is added
    check_s: float  # that all values are finite


def measure_units(folder: Path, num_mib: int = 64) -> UnitCosts:
    """Do each part alone. Takes a few seconds."""
    num_values = num_mib * MIB // 4
    payload_P = vectors.noise(num_values)
    out_P = np.empty_like(payload_P)
    plain_s = _transfer_s(payload_P, out_P, None)
    tls_s = _transfer_s(payload_P, out_P, sockets.tls_contexts(folder))
    parts = [payload_P, payload_P, payload_P, payload_P]
    sums_s = _best(lambda: weighted_mean(parts, [1] * len(parts), out=out_P))
    return UnitCosts(
        kernel_s=plain_s / num_mib,
        encryption_s=max(0.0, tls_s - plain_s) / num_mib,
        hash_s=_best(lambda: blake3(vectors.raw(payload_P)).digest()) / num_mib,
        addition_s=sums_s / len(parts) / num_mib,
        check_s=_best(lambda: is_finite(payload_P)) / num_mib,
    )


def breakdown(
    units: UnitCosts, num_peers: int, payload_mib: float, cpu_s: float
) -> dict[str, float]:
    """Processor seconds of one fp32 round of all peers, by part; they add up to `cpu_s`.

    Every contribution is hashed by its peer, and again where its chunks arrive; the floor hashes it
    once. The last part may be negative: then the others cost less than they do alone.
    """
    sent_mib = 2 * (num_peers - 1) * payload_mib
    parts = {
        "the kernel's TCP": sent_mib * units.kernel_s,
        "encryption": sent_mib * units.encryption_s,
        "hashes, one pass": num_peers * payload_mib * units.hash_s,
        "hashes on arrival": (num_peers - 1) * payload_mib * units.hash_s,
        "additions": num_peers * payload_mib * units.addition_s,
        "checks of means": (num_peers - 1) * payload_mib * units.check_s,
    }
    return parts | {"everything else": cpu_s - sum(parts.values())}


def table_of(found: dict[str, dict[str, float]]) -> Table:
    """What a person reads: one column for each number of peers."""
    table = Table(title="processor seconds of a round over TLS, fp32, all peers together")
    table.add_column("part")
    for case in found:
        table.add_column(case, justify="right")
    for part in next(iter(found.values())):
        cells = []
        for parts in found.values():
            share = parts[part] / sum(parts.values())
            cells.append(f"{parts[part]:.3f} s  {share:4.0%}")
        table.add_row(part, *cells)
    return table


def _transfer_s(
    payload_P: NDArray[np.float32],
    out_P: NDArray[np.float32],
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None,
) -> float:
    """Processor seconds of one transfer from a thread of this process to another."""
    with sockets.listen("127.0.0.1") as listener:
        place = {0: ("127.0.0.1", listener.getsockname()[1])}
        outgoing, incoming = sockets.exchange(listener, 0, place, 1, tls)
    try:
        with ThreadPoolExecutor(1) as receiver:

            def transfer() -> None:
                received = receiver.submit(sockets.receive_into, incoming[0], vectors.raw(out_P))
                sockets.send_all(outgoing[0], vectors.raw(payload_P))
                received.result()

            return _best(transfer)
    finally:
        sockets.close_all([outgoing[0], incoming[0]])


def _best(work: Callable[[], object]) -> float:
    """The least processor time of several times, after one to warm up."""
    work()
    least_s = float("inf")
    for _ in range(REPEATS):
        began_s = time.process_time()
        work()
        least_s = min(least_s, time.process_time() - began_s)
    return least_s
