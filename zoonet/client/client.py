"""The published interface: `Client(api_key=...).train(...)`, from scripts and notebooks alike."""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import functools
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self, TypeVar

from zoonet.client.background import Background
from zoonet.client.network import Network
from zoonet.client.output import JobOutput
from zoonet.config import ComputeJob, load_job
from zoonet.crypto import Identity
from zoonet.jobs import JobView

T = TypeVar("T")

Connect = Callable[[Identity], Awaitable[Network]]


class Client:
    """Submits jobs under a user's own key.

    `api_key` is the exported secret of that key (`zoonet key export`): no server issues it. The
    network runs in a background thread, so every method may be called with or without a running
    event loop. It is entered with the first job.
    """

    def __init__(
        self,
        api_key: str,
        *,
        bootstrap: Iterable[str] = (),
        connect: Connect | None = None,
    ) -> None:
        """`bootstrap` names peers by multiaddr; `connect` replaces how the network is entered.

        Raises KeyFileError for a malformed key.
        """
        identity = Identity.from_api_key(api_key)
        peers = tuple(bootstrap)

        async def join() -> Network:
            if connect is not None:
                return await connect(identity)
            return await Network.join(peers, identity=identity)

        self._join = join
        self._background = Background()
        self._entering: asyncio.Task[Network] | None = None  # lives in the background loop
        # At the interpreter's end the daemon has to be told goodbye, too.
        self._at_exit = functools.partial(_close, weakref.WeakMethod(self.close))
        atexit.register(self._at_exit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the network. Jobs whose blocks other peers hold go on. Idempotent."""
        atexit.unregister(self._at_exit)
        if self._entering is not None:
            self._background.submit(self._leave()).result()
        self._background.close()

    async def _leave(self) -> None:
        assert self._entering is not None
        entering, self._entering = self._entering, None
        entering.cancel()
        await asyncio.wait({entering})
        if not entering.cancelled() and entering.exception() is None:
            await entering.result().close()

    def train(self, config: ComputeJob | Path | str, *, max_budget: float = 0) -> Job:
        """Submit a job, given as such or as the path of its YAML file, and return at once.

        `max_budget` above 0 replaces the job's own. The work goes on in the background: keep the
        program running until the job is handed over or finished (`wait`). Raises ConfigError for
        a wrong job; what fails later is raised by the methods of the returned job.
        """
        job = config if isinstance(config, ComputeJob) else load_job(config)
        if max_budget:
            job = dataclasses.replace(job, budget_max=max_budget)
        return Job(self, self._background.submit(self._submit(job)))

    async def _submit(self, job: ComputeJob) -> str:
        network = await self._network()
        return await network.submit(job)

    async def _network(self) -> Network:
        entering = self._entering
        if entering is None or (entering.done() and entering.exception() is not None):
            entering = self._entering = asyncio.create_task(self._join())
        return await asyncio.shield(entering)

    def _call(self, work: Callable[[Network], Coroutine[Any, Any, T]]) -> Future[T]:
        async def call() -> T:
            return await work(await self._network())

        return self._background.submit(call())


def _close(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    close = method()
    if close is not None:
        close()


class Job:
    """A submitted job. Coroutines may be awaited on any loop; `..._sync` block the caller."""

    def __init__(self, client: Client, submitting: Future[str]) -> None:
        self._client = client
        self._submitting = submitting

    def __repr__(self) -> str:
        is_known = self._submitting.done() and self._submitting.exception() is None
        return f"Job({self._submitting.result() if is_known else 'being submitted'})"

    @property
    def job_id(self) -> str:
        """The job's id; blocks until the job is submitted, and raises why it was not."""
        return self._submitting.result()

    async def submitted(self) -> str:
        """Return the job's id once the job is open for others. Raises why it could not be."""
        return await asyncio.shield(asyncio.wrap_future(self._submitting))

    async def wait(self) -> JobView:
        """Return the last view once the job is finished. Raises JobEnded where it is not to be."""
        return await asyncio.wrap_future(self._started(Network.wait))

    def wait_sync(self) -> JobView:
        """Do as `wait` does and block."""
        return self._started(Network.wait).result()

    async def handed_over(self) -> None:
        """Return once another peer holds the job's blocks, so that this program may end."""
        await asyncio.wrap_future(self._started(Network.handed_over))

    def handed_over_sync(self) -> None:
        """Do as `handed_over` does and block."""
        self._started(Network.handed_over).result()

    async def result(self, out_dir: Path | str = ".") -> JobOutput:
        """Fetch the finished model into a folder; see `Network.result`."""
        return await asyncio.wrap_future(self._started(Network.result, out_dir))

    def result_sync(self, out_dir: Path | str = ".") -> JobOutput:
        """Do as `result` does and block."""
        return self._started(Network.result, out_dir).result()

    async def cancel(self) -> None:
        """Withdraw the job; its peers stop at the next round."""
        await asyncio.wrap_future(self._started(Network.cancel))

    def cancel_sync(self) -> None:
        """Do as `cancel` does and block."""
        self._started(Network.cancel).result()

    async def progress(self) -> AsyncGenerator[JobView, None]:
        """Yield the job's view, and again whenever it changes, until it has ended."""
        loop = asyncio.get_running_loop()
        views: asyncio.Queue[JobView | None] = asyncio.Queue()

        async def pump(network: Network, job_id: str) -> None:
            async with aclosing(network.watch(job_id)) as changes:
                async for view in changes:
                    loop.call_soon_threadsafe(views.put_nowait, view)

        pumping = self._started(pump)
        ended = asyncio.wrap_future(pumping)
        ended.add_done_callback(lambda _: views.put_nowait(None))
        try:
            while (view := await views.get()) is not None:
                yield view
            await ended
        finally:
            ended.cancel()

    def _started(
        self, work: Callable[..., Coroutine[Any, Any, T]], *arguments: object
    ) -> Future[T]:
        """Call a coroutine function with the network and the job's id, once that is known."""

        async def call(network: Network) -> T:
            job_id = await asyncio.shield(asyncio.wrap_future(self._submitting))
            return await work(network, job_id, *arguments)

        return self._client._call(call)
