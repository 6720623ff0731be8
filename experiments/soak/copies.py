"""How many copies of its payload a peer holds at the peak of a round.

Two views. The averager alone: processes that only average, from before their first round, with
their resident memory (without the pages of libraries, which come in meanwhile) read every few
milliseconds until the mean is there. And whole peers: the
largest resident memory of rounds, next to what they had before they took the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from experiments.soak.swarm import Settings, Swarm
from experiments.soak.watch import look, own_bytes_of, rss_of
from experiments.testbed.bed import Loopback
from experiments.testbed.nursery import Nursery
from experiments.testbed.troupe import ActorFailed, Troupe
from peers.processes import Family

CASES: Final = (  # variants, and among how many peers: among two, more feedback is each one's
    *((variant, 4) for variant in ("tls", "shm", "fp16", "bf16", "int8", "e3m0")),
    ("fp16", 2),
    ("int8", 2),
)
MIB: Final = 1 << 20
POLL_S: Final = 0.002
NUM_ROUNDS: Final = 6
WHOLE_PEER_S: Final = 60.0


@dataclass(slots=True)
class _Trace:
    """Resident memory of some processes over a round."""

    pids: list[int]
    points: list[tuple[float, list[int]]] = field(default_factory=list)

    def peaks(self, until: dict[int, float]) -> list[int]:
        """The largest of each, up to the instant (monotonic) at which its round was over."""
        return [
            max(rss[place] for at, rss in self.points if at <= until[place])
            for place in range(len(self.pids))
        ]


@contextmanager
def _tracing(pids: list[int]) -> Iterator[_Trace]:
    trace = _Trace(pids)
    is_over = threading.Event()

    def poll() -> None:
        while not is_over.is_set():
            trace.points.append((time.monotonic(), [own_bytes_of(pid) for pid in pids]))
            is_over.wait(POLL_S)

    thread = threading.Thread(target=poll, name="resident memory")
    thread.start()
    try:
        yield trace
    finally:
        is_over.set()
        thread.join()


async def of_the_averager(
    variant: str, num_peers: int, size_mib: float, folder: Path
) -> dict[str, Any]:
    """Copies beside contribution and mean, in the first round and at most in later ones."""
    name = f"zoonet_job-{variant}"
    payload_bytes = size_mib * MIB
    folder = folder / f"copies-{variant}-{num_peers}"
    folder.mkdir()
    async with AsyncExitStack() as stack:
        bed = await stack.enter_async_context(Loopback.open(num_peers))
        nursery = await stack.enter_async_context(Nursery.open([name]))
        opened = Troupe.open(bed, [name], nursery, int(payload_bytes) // 4, folder)
        troupe = await stack.enter_async_context(opened)
        pids = [troupe.actors[peer].pid for peer in sorted(troupe.actors)]
        before = [
            own_bytes_of(pid) + payload_bytes for pid in pids
        ]  # and the contribution, to be filled
        rounds, between = [], []
        for _ in range(NUM_ROUNDS):
            with _tracing(pids) as trace:
                # With the committing of contributions, which some codecs fill memory with.
                prepared = await troupe.prepare(name)
                performance = await troupe.finish(
                    prepared, troupe.go(name, prepared), set(troupe.actors)
                )
            if performance.failures or performance.num_wrong:
                raise ActorFailed(f"a round failed: {performance.failures}")
            ended = {peer: float(told["ended"]) for peer, told in performance.answers.items()}
            rounds.append(trace.peaks(ended))
            await asyncio.sleep(0.5)
            between.append([own_bytes_of(pid) for pid in pids])

    def copies(found: list[int]) -> list[float]:
        """Beside contribution and mean, of each peer."""
        pairs = zip(found, before, strict=True)
        return [round((now - then) / payload_bytes - 1, 3) for now, then in pairs]

    return {
        "variant": variant,
        "num_peers": num_peers,
        "size_mib": size_mib,
        "first_round": copies(rounds[0]),
        "later_rounds": copies([max(peaks) for peaks in zip(*rounds[1:], strict=True)]),
        "between_rounds": copies(between[-1]),
    }


async def of_whole_peers(settings: Settings, folder: Path) -> dict[str, Any]:
    """Copies of the payload that the job costs a peer, all in all, at the peak of its rounds."""
    payload_bytes = settings.size_mib * MIB
    async with Family(folder).keep() as family, AsyncExitStack() as stack:
        swarm = Swarm(family, folder / f"whole-{settings.codec}", settings)
        await swarm.start(stack)
        pids = [peer.child.process.pid for peer in swarm.peers]
        before = [rss_of(pid) for pid in pids]
        await swarm.submit()
        for pid in pids:
            look(pid, at_s=0.0, num_tasks=0)  # the peaks from here on
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(WHOLE_PEER_S)
        after = [look(pid, at_s=0.0, num_tasks=0) for pid in pids]
    seen = [(sample, then) for sample, then in zip(after, before, strict=True) if sample]
    peaks = [(sample.peak_rss_bytes - then) / payload_bytes for sample, then in seen]
    return {
        "codec": settings.codec,
        "num_peers": settings.num_peers,
        "size_mib": settings.size_mib,
        "before_the_job_mib": round(statistics.median(before) / MIB, 1),
        "peak": [round(copies, 3) for copies in peaks],
    }
