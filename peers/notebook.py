"""Collaborative training from a notebook: each method is a cell, `await` and all.

::

    swarm = await notebook.join(bootstrap)       # or found one
    await swarm.run_peer()                       # this machine trains too, in the background
    job = await swarm.submit(ComputeJob(...))
    await swarm.show(job)                        # a live picture until the job has ended
    model = await swarm.fetch(job, "my-model")
    print(await swarm.sample(model, "import "))
    await swarm.close()

The notebook's kernel is a client that only looks, submits and fetches; the peer is an operating
system process of its own, so that a busy cell never stalls the training. It ends with `close`, or
with the kernel, however that ends.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import platform
import signal
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Self

from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from peers import runtime
from peers.bootstrap import by_reach
from peers.keys import identity_of
from peers.processes import READY_TIMEOUT_S, Child, ChildFailed, Family
from peers.sample import continue_text
from peers.ui.follow import Follower
from peers.ui.listing import contribution_table, job_row, job_table, peer_row, peer_table
from peers.ui.plot import save_loss_plot
from peers.ui.render import headline
from peers.ui.render import peer_table as participant_table
from peers.ui.view import SwarmView, printable
from zoonet.client import EntryConfig, JobOutput, Network
from zoonet.config import ComputeJob
from zoonet.errors import JobEnded
from zoonet.net.addresses import is_global, is_loopback

LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"
ANY_INTERFACE: Final = "/ip4/0.0.0.0/tcp/0"
LOOK_INTERVAL_S: Final = 0.5  # between two looks for a peer that is starting


async def join(
    bootstrap: Iterable[str] | str = (), *, folder: Path | str = "", listen: str = ""
) -> Session:
    """Enter the swarm of any of these peers, or found one where none is named.

    `bootstrap`: multiaddrs, each with its /p2p/<id>; in a string, separated by blanks or commas.
    `folder`: where the identity and the peers met are kept between sessions; by default in a
    temporary folder that goes with the session. `listen`: where a founded swarm is reached; by
    default on every interface of this machine.

    Raises ConfigError for malformed addresses, PeerUnreachable where nobody answers, ChildFailed
    where no swarm can be founded. Cancelled or failed it leaves nothing running.
    """
    texts = bootstrap.replace(",", " ").split() if isinstance(bootstrap, str) else bootstrap
    entrances = tuple(texts)
    async with AsyncExitStack() as stack:
        if folder:
            home = runtime.home(str(folder))
        else:
            temporary = tempfile.TemporaryDirectory(prefix="zoonet-", ignore_cleanup_errors=True)
            home = runtime.Home(Path(stack.enter_context(temporary)))
        family = await stack.enter_async_context(Family(home.path).keep())
        is_founder = not entrances
        if is_founder:
            entrances = await _found(family, home, listen or ANY_INTERFACE)
        is_local = all(is_loopback(text) for text in entrances)
        config = EntryConfig(
            folder=home.path / "client",
            listen=(LOOPBACK,) if is_local else EntryConfig().listen,
            is_lan_enabled=not is_local,
            name=f"{_machine()} notebook",
        )
        network = await Network.join(entrances, identity=identity_of(home), config=config)
        await stack.enter_async_context(network)
        session = Session(network, family, home, entrances, is_founder=is_founder)
        session._hold(stack.pop_all())
        return session


async def _found(family: Family, home: runtime.Home, listen: str) -> tuple[str, ...]:
    """Start a bootstrap and return its addresses, those that reach furthest first."""
    arguments = ["bootstrap", "--json", "--home", str(home.path / "bootstrap"), "--listen", listen]
    child = await family.start("bootstrap", arguments)
    ready = await family.first_line(child)
    return tuple(by_reach(ready["addresses"]))


class Session:
    """A notebook's place in the swarm, from `join` to `close`. Every coroutine may be cancelled."""

    def __init__(
        self,
        network: Network,
        family: Family,
        home: runtime.Home,
        entrances: tuple[str, ...],
        *,
        is_founder: bool,
    ) -> None:
        self.network = network  # for everything that has no method here
        self.is_founder = is_founder  # whether this notebook began the swarm
        self._family = family
        self._home = home
        self._entrances = entrances
        self._own_peers: list[Child] = []
        self._open = AsyncExitStack()

    def _hold(self, resources: AsyncExitStack) -> None:
        self._open = resources
        # Linux ends the children with the kernel; elsewhere this does.
        atexit.register(self._end_children)

    def _end_children(self) -> None:
        for child in self._family.children:
            if child.is_running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.process.pid, signal.SIGTERM)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave, and end every process of this session. What others hold goes on. Idempotent."""
        atexit.unregister(self._end_children)
        await self._open.aclose()

    @property
    def invitation(self) -> str:
        """The line by which others join, and from where it works."""
        return invitation_to(self._entrances[0])

    # --- this machine as a peer -----------------------------------------------------------------

    async def run_peer(
        self, name: str = "", *, device: str = "auto", threads: int = 1, client: bool | None = None
    ) -> Child:
        """Give this machine to the swarm: start `zoonet peer`, return when others can see it.

        It takes open jobs until the session ends. `client`: only dial out, and be reached through
        relays, as behind NAT (Colab); by default where the swarm was entered at a public address.
        Call it again for a further peer. Raises ChildFailed with the last lines of its log.
        """
        number = len(self._own_peers) + 1
        home = runtime.home(str(self._home.path / f"peer-{number}"))
        peer_id = identity_of(home).peer_id
        arguments = ["peer", "--home", str(home.path), "--name", name or f"{_machine()}-{number}"]
        arguments += ["--device", device, "--threads", str(threads)]
        arguments += entering_options(self._entrances, client=client)
        child = await self._family.start(f"peer-{number}", arguments)
        self._own_peers.append(child)
        await self._until_seen(child, peer_id)
        return child

    async def _until_seen(self, child: Child, peer_id: str) -> None:
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                while peer_id not in [record.author for record in await self.network.peers()]:
                    if not child.is_running:
                        raise ChildFailed(f"{child.name} ended; it said last:\n{child.log_tail()}")
                    await asyncio.sleep(LOOK_INTERVAL_S)
        except TimeoutError as error:
            raise ChildFailed(
                f"{child.name} was not seen in the swarm for {READY_TIMEOUT_S:.0f} s; "
                f"it said last:\n{child.log_tail()}"
            ) from error

    # --- looking around -------------------------------------------------------------------------

    async def peers(self) -> Table:
        """Who is in the swarm, this notebook left out."""
        paths = await self.network.paths()
        return peer_table(
            [
                peer_row(record, paths.get(record.author, ""))
                for record in await self.network.peers()
            ]
        )

    async def jobs(self) -> Table:
        """Every job that is neither cancelled nor expired."""
        return job_table([job_row(job) for job in await self.network.jobs()])

    # --- a job ----------------------------------------------------------------------------------

    async def submit(self, job: ComputeJob | Path | str) -> str:
        """Open a job, or the job of a YAML file, for every peer; return its id.

        Its data are served from here: keep the session open until others hold them, or to its end.
        Raises ConfigError, StorageError or TransportError.
        """
        return await self.network.submit(job)

    async def show(self, job_id: str) -> SwarmView:
        """Show who trains the job and its loss curve, redrawn in place until the job has ended.

        Returns what was shown last. Interrupt the cell to look away; the training goes on. Raises
        ConfigError where there is no such job, JobEnded where it ends without a model.
        """
        job_id = await self.network.find(job_id)
        picture = _Picture(self._home.path / "loss.png", job_id, self._own_peers)
        view = await Follower(picture.show).follow(self.network.watch(job_id))
        assert view.job is not None
        if view.job.phase != "finished":
            raise JobEnded(job_id, view.job.phase, view.job.note)
        return view

    async def fetch(self, job_id: str, out_dir: Path | str) -> JobOutput:
        """Fetch a finished job's model into a folder and check it; see `Network.result`."""
        return await self.network.result(await self.network.find(job_id), out_dir)

    async def sample(
        self,
        model: JobOutput,
        prompt: str,
        *,
        num_tokens: int = 300,
        temperature: float = 0.8,
        seed: int = 0,
    ) -> str:
        """Let a fetched language model continue the prompt, on this machine's CPU.

        Raises ConfigError for a prompt that its tokenizer cannot read, and for a model that is
        none of language.
        """
        return await asyncio.to_thread(
            continue_text,
            model,
            prompt,
            num_tokens=num_tokens,
            temperature=temperature,
            seed=seed,
        )


def entering_options(entrances: Sequence[str], *, client: bool | None = None) -> list[str]:
    """Options of `zoonet peer` for a swarm that was entered at these addresses.

    On this machine alone where they are loopback; as a client where one of them is public, since
    notebooks run behind NAT. `client` decides otherwise.
    """
    options = ["--join", *entrances]
    if all(is_loopback(address) for address in entrances):
        options += ["--listen", LOOPBACK]
    if client or (client is None and any(is_global(address) for address in entrances)):
        options += ["--client"]
    return options


def invitation_to(address: str) -> str:
    """The line by which others join at an address, and from where it works."""
    scope = "from anywhere" if is_global(address) else "from the same network"
    scope = "on this machine" if is_loopback(address) else scope
    return f"zoonet peer --join {address}   # {scope}"


def credits(model: JobOutput) -> Table:
    """Who made a model, as its certified rounds tell."""
    return contribution_table(model.contributions)


class _Picture:
    """The display of a job: a table of its participants and its loss curve, changed in place."""

    def __init__(self, plot_path: Path, job_id: str, own_peers: Iterable[Child]) -> None:
        self._plot_path = plot_path
        self._title = f"job {job_id}"
        self._own_peers = own_peers
        self._table: Any = None
        self._curve: Any = None
        self._shown: Any = None
        self._drawn: Any = None

    def show(self, view: SwarmView) -> None:
        """Show the view as it is now, as far as it has changed."""
        state = (view.job, dict(view.peers), self._ended_peers())
        if state != self._shown:
            self._shown = state
            self._table = _display(self._panel(view), self._table)
        if len(view.losses) > 1 and (view.losses, view.num_events) != self._drawn:
            from IPython.display import Image

            self._drawn = (view.losses, view.num_events)
            save_loss_plot(view, self._plot_path, title=self._title)
            image = Image(data=self._plot_path.read_bytes(), format="png", width=640)
            self._curve = _display(image, self._curve)

    def _panel(self, view: SwarmView) -> Panel:
        note = view.job.note if view.job is not None else ""
        lines = [headline(view), *([printable(note, max_chars=200)] if note else [])]
        lines += [f"{child.name} of this notebook has ended" for child in self._ended_peers()]
        people = participant_table(list(view.peers.values()))
        return Panel(Group(Text("\n".join(lines)), "", people), title=Text(self._title))

    def _ended_peers(self) -> list[Child]:
        return [child for child in self._own_peers if not child.is_running]


def _display(shown: Any, handle: Any) -> Any:
    """Show something below the cell, in the place of what the handle showed before, if any."""
    from IPython.display import display

    if handle is None:
        return display(shown, display_id=True)
    handle.update(shown)
    return handle


def _machine() -> str:
    return platform.node()[:30] or "notebook"
