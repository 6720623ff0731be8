"""Background tasks with an owner: when one fails, the owner's block is cancelled and learns why."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

log = logging.getLogger(__name__)


class Scope:
    """Owns tasks for the time of an `async with` block.

    Like `asyncio.TaskGroup`, but the block's own exceptions pass unchanged, the tasks are
    cancelled when the block ends, and the first task to fail raises its very exception there.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._owner: asyncio.Task[Any] | None = None
        self._failure: BaseException | None = None
        self._is_closing = False

    async def __aenter__(self) -> Self:
        self._owner = asyncio.current_task()
        return self

    def spawn(self, work: Coroutine[Any, Any, None], *, name: str) -> asyncio.Task[None]:
        """Start a task that ends at the latest when the block does."""
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def let_go(self) -> None:
        """From here on a task may fail: what it watches over is being taken down."""
        self._is_closing = True

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            return
        error = task.exception()
        if self._is_closing or self._failure is not None:
            log.debug("task=%s failed while closing: %r", task.get_name(), error)
            return
        self._failure = error
        if self._owner is not None:
            self._owner.cancel()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_closing = True
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._failure is None or self._owner is None:
            return
        if kind is asyncio.CancelledError and self._owner.uncancel() > 0:
            return  # someone else cancelled the owner too: that goes first
        raise self._failure
