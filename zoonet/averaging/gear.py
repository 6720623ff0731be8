"""What a participant plays rounds with, and the tasks that outlive what began them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from zoonet.averaging.allreduce import Averager
from zoonet.averaging.config import RoundsConfig
from zoonet.averaging.messages import Certificate
from zoonet.averaging.replica import Replica
from zoonet.averaging.site_mean import SiteMean
from zoonet.clock import Clock
from zoonet.crypto import Identity, PeerId
from zoonet.errors import ZoonetError
from zoonet.transport import Transport

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ParticipantEvents:
    """What the role that runs a participant wants to know, or must tell it."""

    founders: Callable[[], set[PeerId]]  # peers known to want this job, this one included
    on_phase: Callable[[str], None]
    on_round: Callable[[Certificate], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gear:
    """Everything that a participant was given; its parts share it."""

    identity: Identity
    clock: Clock
    transport: Transport
    replica: Replica
    averager: Averager
    config: RoundsConfig
    events: ParticipantEvents
    errands: Errands
    site: SiteMean | None = None  # where the job has means within sites

    @property
    def me(self) -> PeerId:
        """This peer."""
        return self.identity.peer_id


class Errands:
    """Tasks that must not end with the round that began them, such as votes on their way."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run it beside everything else, until `close`."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settle(self, timeout_s: float) -> None:
        """Wait until all are done, or the time is over."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    async def close(self) -> None:
        """Cancel those that still run."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error that a group of failed tasks is about; bugs come before faults."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.append(first_error(error) if isinstance(error, BaseExceptionGroup) else error)
    return min(leaves, key=lambda error: isinstance(error, ZoonetError | TimeoutError))
