"""A swarm of real peers that plays rounds while some of them die, leave and come back."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from experiments.soak.watch import Sample, look
from peers.processes import Child, Family
from zoonet.client import EntryConfig, Network
from zoonet.config import ComputeJob, DataConfig, ModelConfig, PeersConfig, TrainingConfig
from zoonet.config.job import CodecName

LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"
WIDTH: Final = 128
VALUE_BYTES: Final = 4
ENDLESS_TOKENS: Final = 10**12
START_S: Final = 300.0  # until everyone has been in rounds
NUM_FIRST_ROUNDS: Final = 2

How = Literal["killed", "left", "came back"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How one swarm is soaked."""

    codec: CodecName
    size_mib: float = 16.0  # of the payload in fp32
    num_staying: int = 4  # peers that live through everything
    num_leaving: int = 2  # peers that go and come back, by turns
    shm: Literal["some", "all", "none"] = "some"  # "some": peers of even number
    period_s: float = 8.0  # from round to round
    churn_s: float = 60.0  # from one that goes to the next
    away_s: float = 20.0
    sample_s: float = 2.9  # no divisor of the period: it sees all phases of a round
    num_traced: int = 0  # of the peers, the first ones: they say which lines hold more and more

    @property
    def num_peers(self) -> int:
        """All of them."""
        return self.num_staying + self.num_leaving

    def uses_shm(self, number: int) -> bool:
        """Whether that peer has shared memory: two that have use it, all others have TLS."""
        return self.shm == "all" or (self.shm == "some" and number % 2 == 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Somebody went or came back."""

    at_s: float
    peer: int
    how: How


@dataclass(slots=True)
class Peer:
    """A peer and what was seen of it; its process may be another one after a while."""

    number: int
    child: Child
    told: dict[str, Any] = field(default_factory=dict)  # its last line
    samples: list[Sample] = field(default_factory=list)
    reader: asyncio.Task[None] | None = None


class Swarm:
    """One swarm and its job. `open` it inside a Family."""

    def __init__(self, family: Family, folder: Path, settings: Settings) -> None:
        self.settings = settings
        self.events: list[Event] = []
        self.peers: list[Peer] = []
        self.job_id = ""
        self.num_parameters = 0
        self._family = family
        self._folder = folder
        self._began = 0.0
        self._address = ""
        self._num_started = itertools.count()
        self._network: Network

    async def start(self, stack: contextlib.AsyncExitStack) -> None:
        """Start everyone, without a job yet."""
        home = self._folder / "door"
        home.mkdir(parents=True)
        arguments = ("bootstrap", "--json", "--home", str(home), "--listen", LOOPBACK)
        door = await self._family.start(f"{self._folder.name}-door", arguments)
        self._address = str((await self._family.first_line(door))["addresses"][0])
        for number in range(self.settings.num_peers):
            self.peers.append(Peer(number, await self._start(number)))
            self._read(self.peers[-1])
        config = EntryConfig(
            folder=self._folder / "client", listen=(LOOPBACK,), is_lan_enabled=False, name="soak"
        )
        self._network = await stack.enter_async_context(
            await Network.join([self._address], config=config)
        )
        async with asyncio.timeout(START_S):
            while len(await self._network.peers()) < self.settings.num_peers or not all(
                peer.told for peer in self.peers
            ):
                await asyncio.sleep(1.0)

    async def submit(self) -> None:
        """Give them the job, and wait until all have been in a few rounds. Raises TimeoutError."""
        text = self._folder / "text.txt"
        text.write_text("".join(f"{number} {number * number}\n" for number in range(2000)))
        self.job_id = await self._network.submit(job_of(self.settings, text))
        async with asyncio.timeout(START_S):
            while min(peer.told["num_trained"] for peer in self.peers) < NUM_FIRST_ROUNDS:
                await asyncio.sleep(1.0)

    async def soak(self, duration_s: float) -> None:
        """Sample, and let peers go and come back, for so long. Raises ChildFailed."""
        self._began = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            sampling = tasks.create_task(self._sample())
            churning = tasks.create_task(self._churn())
            await asyncio.sleep(duration_s)
            sampling.cancel()
            churning.cancel()

    async def num_rounds(self) -> int:
        """Certified rounds, as the job's participants say."""
        return (await self._network.job(self.job_id)).num_rounds

    def staying(self) -> list[Peer]:
        """Those who never go."""
        return self.peers[: self.settings.num_staying]

    # --- processes ----------------------------------------------------------------------------

    async def _start(self, number: int) -> Child:
        home = self._folder / f"{number}"
        settings = self.settings
        arguments = (
            *("--home", str(home), "--join", self._address, "--name", f"peer-{number}"),
            *("--period", str(settings.period_s)),
            "--shm" if settings.uses_shm(number) else "--no-shm",
            *(("--trace",) if number < settings.num_traced else ()),
        )
        name = f"{self._folder.name}-{number}-{next(self._num_started)}"
        return await self._family.start(name, arguments, module="experiments.soak.peer")

    def _read(self, peer: Peer) -> None:
        async def read() -> None:
            stdout = peer.child.process.stdout
            assert stdout is not None
            async for line in stdout:
                peer.told = json.loads(line)

        peer.reader = asyncio.create_task(read(), name=f"peer-{peer.number}")

    async def _sample(self) -> None:
        for number in itertools.count(1):
            for peer in self.peers:
                if not peer.child.is_running:
                    continue
                sample = await asyncio.to_thread(
                    look,
                    peer.child.process.pid,
                    at_s=time.monotonic() - self._began,
                    num_tasks=peer.told.get("num_tasks", 0),
                )
                if sample is not None:
                    peer.samples.append(sample)
                elif peer in self.staying():
                    raise RuntimeError(f"{peer.child.name} has gone: {peer.child.log_tail()}")
            due = self._began + number * self.settings.sample_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    async def _churn(self) -> None:
        leaving = self.peers[self.settings.num_staying :]
        if not leaving:
            return
        for number in itertools.count():
            due = self._began + (number + 0.5) * self.settings.churn_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            peer = leaving[number % len(leaving)]
            turn, place = divmod(number, len(leaving))
            # Each of them goes now this way, now the other.
            is_kill = (turn + place) % 2 == 0
            await (self._kill(peer) if is_kill else self._send_away(peer))
            await asyncio.sleep(self.settings.away_s)
            peer.child = await self._start(peer.number)
            peer.told = {}
            self._read(peer)
            self._note(peer, "came back")

    async def _kill(self, peer: Peer) -> None:
        self._note(peer, "killed")
        await self._family.kill(peer.child)

    async def _send_away(self, peer: Peer) -> None:
        self._note(peer, "left")
        os.kill(peer.child.process.pid, signal.SIGTERM)
        await peer.child.process.wait()

    def _note(self, peer: Peer, how: How) -> None:
        self.events.append(Event(at_s=time.monotonic() - self._began, peer=peer.number, how=how))

    def told_events(self) -> list[dict[str, Any]]:
        """Who went and came back when, for the result."""
        return [asdict(event) | {"at_s": round(event.at_s, 1)} for event in self.events]


def job_of(settings: Settings, text: Path) -> ComputeJob:
    """A job with a vector of about that size: nearly all of it a vocabulary nobody uses."""
    num_values = int(settings.size_mib * (1 << 20)) // VALUE_BYTES
    return ComputeJob(
        name=f"soak {settings.codec}",
        model_config=ModelConfig(
            num_layers=1,
            num_heads=1,
            width=WIDTH,
            context=8,
            vocab_size=max(256, num_values // WIDTH - 12 * WIDTH),
        ),
        data_config=DataConfig(text=str(text)),
        training_config=TrainingConfig(
            tokens=ENDLESS_TOKENS,
            batch_size=1,
            inner_steps=1,
            dynamic_steps=False,
            codec=settings.codec,
            eval_interval=1_000_000,
        ),
        peers_config=PeersConfig(min=settings.num_peers),
    )
