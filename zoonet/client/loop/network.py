"""What runs in the network's thread, and how its failures reach the loop's."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from zoonet.averaging.gear import first_error
from zoonet.client.loop.place import Place
from zoonet.client.loop.run import LoopRun
from zoonet.errors import ConfigError, ZoonetError
from zoonet.training.own_loop import OwnLoop

CLOSE_S: Final = 15.0  # for the network to say goodbye

log = logging.getLogger(__name__)


class NetworkThread:
    """One task that holds the place open, one that plays rounds; all coroutines run there."""

    def __init__(self, place: AbstractAsyncContextManager[Place]) -> None:
        self._place = place
        self._leave: asyncio.Event
        self._holder: asyncio.Task[None] | None = None
        self._playing: asyncio.Task[None] | None = None
        self._part: LoopRun | None = None
        self._loop: OwnLoop | None = None

    def watch(self, loop: OwnLoop) -> None:
        """Tell this loop where anything fails."""
        self._loop = loop

    async def enter(self) -> Place:
        """Open the place. Raises why that cannot be."""
        inside: asyncio.Future[Place] = asyncio.get_running_loop().create_future()
        self._leave = asyncio.Event()
        self._holder = asyncio.create_task(self._hold(inside), name="swarm")
        either: set[asyncio.Future[Any]] = {self._holder, inside}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not inside.done():
            await self._holder  # raises why it could not enter
        return inside.result()

    async def _hold(self, inside: asyncio.Future[Place]) -> None:
        try:
            async with self._place as place:
                inside.set_result(place)
                await self._leave.wait()
        except BaseException as error:
            self._tell(error)
            raise

    async def play(self, part: LoopRun) -> None:
        """Begin to take part; what ends it is raised in the loop's thread."""
        self._part = part
        self._playing = asyncio.create_task(self._play(part), name="run")

    async def _play(self, part: LoopRun) -> None:
        try:
            await part.run()
        except asyncio.CancelledError as error:
            self._tell(error)
            raise
        except Exception as error:  # a boundary: it is raised again in the loop's thread
            self._tell(error)
            log.debug("run ended", exc_info=True)

    def _tell(self, error: BaseException) -> None:
        if isinstance(error, BaseExceptionGroup):
            error = first_error(error)
        if isinstance(error, asyncio.CancelledError):
            error = ConfigError("this swarm is closed; join again")
        if self._loop is not None:
            self._loop.fail(error)

    async def leave(self) -> None:
        """End everything; where the run is finished, after others have had its end."""
        if self._playing is not None:
            if self._part is None or not self._part.is_finished.is_set():
                self._tell(ConfigError("this swarm is closed; join again"))
                self._playing.cancel()
            await asyncio.wait({self._playing}, timeout=CLOSE_S)
        self._leave.set()
        assert self._holder is not None
        try:
            await self._holder
        except ZoonetError as error:
            log.info("the network was lost before it was left: %s", error)
