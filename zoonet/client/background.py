"""An event loop in a thread of its own, for callers that have none or a busy one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Runs coroutines for callers in other threads, until `close`."""

    def __init__(self) -> None:
        self._is_ready = threading.Event()
        self._stop: asyncio.Event
        self._loop: asyncio.AbstractEventLoop
        self._is_closed = False
        # A daemon thread: a script that forgets to close the client can still end.
        self._thread = threading.Thread(target=self._run, name="zoonet", daemon=True)
        self._thread.start()
        self._is_ready.wait()

    def _run(self) -> None:
        asyncio.run(self._until_stopped())

    async def _until_stopped(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._is_ready.set()
        await self._stop.wait()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Start a coroutine there. Cancelling the future cancels it."""
        if self._is_closed:
            work.close()
            raise RuntimeError("this client is closed; make a new one")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancel what still runs and end the thread. Idempotent."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
