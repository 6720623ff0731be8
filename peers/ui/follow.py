"""Keeps a view up to date while a job is watched, also while nobody says anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from peers.ui.view import SwarmView, fold
from zoonet.jobs import JobView

TICK_S: Final = 1.0  # between two looks at who has fallen silent
FRAME_S: Final = 0.25  # between two drawings


async def follow(
    looks: AsyncGenerator[JobView, None], show: Callable[[SwarmView], None]
) -> SwarmView:
    """Call `show` with the view whenever it changes, and return the last one.

    Ends when `looks` does. Safe to cancel.
    """
    loop = asyncio.get_running_loop()
    view = SwarmView(started_s=loop.time())
    drawn_s = 0.0
    async with aclosing(looks):
        coming = asyncio.ensure_future(anext(looks, None))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=TICK_S)
                job = coming.result() if done else view.job
                if job is None and done:
                    break
                if job is not None:
                    view = fold(view, job, loop.time())
                if done:
                    coming = asyncio.ensure_future(anext(looks, None))
                if loop.time() - drawn_s >= FRAME_S:
                    drawn_s = loop.time()
                    show(view)
        finally:
            coming.cancel()
            await asyncio.wait({coming})
    show(view)
    return view
