"""Several contenders on one bed: those of a group share their peers' processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from experiments.testbed.bed import Bed, Loopback
from experiments.testbed.nursery import Nursery
from experiments.testbed.troupe import Troupe


@asynccontextmanager
async def open_cast(
    bed: Bed | Loopback,
    groups: Iterable[Sequence[str]],
    names: Collection[str],
    num_values: int,
    folder: Path,
) -> AsyncIterator[dict[str, Troupe]]:
    """Start the processes of every group that has one of `names`: each name's troupe.

    All are up at once, and idle but for whose turn it is. Raises NurseryFailed and ActorFailed.
    """
    troupes: dict[str, Troupe] = {}
    async with AsyncExitStack() as stack:
        for group in groups:
            if hosted := [name for name in group if name in names]:
                nursery = await stack.enter_async_context(Nursery.open(hosted))
                opened = Troupe.open(bed, hosted, nursery, num_values, folder)
                troupes |= dict.fromkeys(hosted, await stack.enter_async_context(opened))
        yield troupes
