"""Keeps a view up to date while a job is watched, also while nobody says anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Final

from peers.ui.view import SwarmView, fold, leave
from zoonet.crypto import PeerId
from zoonet.jobs import JobView

TICK_S: Final = 1.0  # between two looks at who has fallen silent
FRAME_S: Final = 0.25  # between two drawings


class Follower:
    """Folds what is seen of a job and shows it."""

    def __init__(self, show: Callable[[SwarmView], None]) -> None:
        self._show = show
        self._loop = asyncio.get_running_loop()
        self._shown_s = -FRAME_S
        self.view = SwarmView(started_s=self._loop.time())

    def leave(self, peer_ids: Iterable[PeerId]) -> None:
        """Mark peers as gone that are known to be, before their silence tells."""
        self.view = leave(self.view, peer_ids, self._loop.time())

    async def follow(self, looks: AsyncGenerator[JobView, None]) -> SwarmView:
        """Show the view whenever it changes until `looks` ends; return the last one.

        Safe to cancel.
        """
        async with aclosing(looks):
            coming = asyncio.ensure_future(anext(looks, None))
            try:
                while True:
                    done, _ = await asyncio.wait({coming}, timeout=TICK_S)
                    job = coming.result() if done else self.view.job
                    if done and job is None:
                        break
                    if job is not None:
                        self.view = fold(self.view, job, self._loop.time())
                    if done:
                        coming = asyncio.ensure_future(anext(looks, None))
                    self._draw()
            finally:
                coming.cancel()
                await asyncio.wait({coming})
        self._show(self.view)
        return self.view

    def _draw(self) -> None:
        now_s = self._loop.time()
        if now_s - self._shown_s >= FRAME_S:
            self._shown_s = now_s
            self._show(self.view)
