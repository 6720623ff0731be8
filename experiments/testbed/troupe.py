"""The peers of a benchmark as processes: started where they belong, told what to do, ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from experiments.testbed.bed import PEER_INTERFACE, Bed, Loopback
from experiments.testbed.kernel import processes_in
from experiments.testbed.nursery import Newborn, Nursery

Message = dict[str, Any]

START_S: Final = 240.0  # two dozen processes that import torch on two cores
ROUND_S: Final = 240.0
GOODBYE_S: Final = 8.0
LEAD_S: Final = 0.05  # between the order to begin and the beginning, and 5 ms for each peer
MAX_LINE_BYTES: Final = 16 * 1024 * 1024


class ActorFailed(Exception):
    """A peer's process ended, stayed silent or reported an error."""


@dataclass(slots=True)
class Actor:
    """One peer's process."""

    peer: int
    pid: int
    log_path: Path
    _orders: asyncio.WriteTransport
    _answers: asyncio.StreamReader
    _gone: asyncio.Event

    @classmethod
    async def of(cls, peer: int, newborn: Newborn, log_path: Path) -> Self:
        """Take over a process that has just been forked."""
        loop = asyncio.get_running_loop()
        orders, _ = await loop.connect_write_pipe(
            asyncio.BaseProtocol, os.fdopen(newborn.orders, "wb", 0)
        )
        answers = asyncio.StreamReader(MAX_LINE_BYTES)
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(answers), os.fdopen(newborn.answers, "rb", 0)
        )
        gone = asyncio.Event()
        watched = os.pidfd_open(newborn.pid)

        def note() -> None:
            gone.set()
            loop.remove_reader(watched)
            os.close(watched)

        loop.add_reader(watched, note)
        return cls(peer, newborn.pid, log_path, orders, answers, gone)

    async def ask(self, order: Message, timeout_s: float) -> Message:
        """Send an order and return its answer. Raises ActorFailed where none comes."""
        self.tell(order)
        return await self.answer(timeout_s)

    def tell(self, order: Message) -> None:
        """Send an order."""
        if not self._orders.is_closing():
            self._orders.write(json.dumps(order).encode() + b"\n")

    async def answer(self, timeout_s: float) -> Message:
        """Wait for the answer to an order. Raises ActorFailed."""
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._answers.readline()
        except TimeoutError as error:
            raise ActorFailed(f"peer {self.peer} said nothing in {timeout_s:.0f} s") from error
        if not line:
            raise ActorFailed(f"peer {self.peer} ended; it said last:\n{self.log_tail()}")
        answer: Message = json.loads(line)
        return answer

    @property
    def is_gone(self) -> bool:
        """Tell whether the process has ended."""
        return self._gone.is_set()

    def log_tail(self) -> str:
        """The last lines it logged."""
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-12:]) or "(nothing)"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and to whatever it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    async def end(self) -> None:
        """Close its stdin, wait a moment, then end it and what it has started."""
        self.signal(signal.SIGCONT)
        self._orders.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_S):
                await self._gone.wait()
        self.signal(signal.SIGKILL)
        await self._gone.wait()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A round that can begin: its number, how long its preparation took, what peers told of it."""

    round_number: int
    seconds: float
    told: list[Message]

    @property
    def coordinator(self) -> int | None:
        """Who leads the round, where somebody does."""
        return next((told["coordinator"] for told in self.told if "coordinator" in told), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Performance:
    """One round of one contender, as its peers reported it. Seconds."""

    round_number: int
    began: float  # monotonic
    answers: dict[int, Message]  # by peer; of those who were waited for
    match_s: float

    @property
    def failures(self) -> dict[int, str]:
        """What went wrong, by peer."""
        found = {}
        for peer, answer in self.answers.items():
            if answer["is"] != "done":
                found[peer] = str(answer.get("error", answer["is"]))
        return found

    @property
    def seconds(self) -> float:
        """Until the last one had the mean."""
        return max(float(answer["ended"]) for answer in self.answers.values()) - self.began

    @property
    def cpu_s(self) -> float:
        """Processor time of all peers' own processes."""
        return sum(float(answer.get("cpu_s", 0.0)) for answer in self.answers.values())

    @property
    def num_wrong(self) -> int:
        """Peers whose mean is not that of whom they say."""
        return sum(not answer.get("is_right", True) for answer in self.answers.values())

    @property
    def num_digests(self) -> int:
        """How many different results there are; 1 where replicas are identical."""
        return len({answer["digest"] for answer in self.answers.values() if "digest" in answer})

    @property
    def contributors(self) -> list[int]:
        """Who is in the mean, as those who agree least say."""
        said = [set(a["contributors"]) for a in self.answers.values() if a["is"] == "done"]
        return sorted(set.intersection(*said)) if said else []


@dataclass(frozen=True, slots=True)
class Birth:
    """Where processes come from, and what each is told first."""

    nursery: Nursery
    folder: Path
    order: Message


@dataclass(slots=True)
class Troupe:
    """All peers, each hosting the same contenders. Open it with `async with Troupe.open(...)`."""

    bed: Bed | Loopback
    contenders: tuple[str, ...]
    actors: dict[int, Actor] = field(default_factory=dict)
    _birth: Birth | None = None
    _hellos: dict[int, Message] = field(default_factory=dict)
    _round: int = 0

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        bed: Bed | Loopback,
        contenders: Sequence[str],
        nursery: Nursery,
        num_values: int,
        folder: Path,
        options: dict[str, Any] | None = None,
    ) -> AsyncIterator[Self]:
        """Start a process for each peer of the bed, and let each contender's peers meet.

        Raises ActorFailed where one does not come up.
        """
        order = {
            "do": "start",
            "contenders": list(contenders),
            "num_values": num_values,
            "sites": [list(bed.layout.members(site)) for site in range(len(bed.layout.sites))],
            "options": options or {},
        }
        troupe = cls(bed, tuple(contenders))
        troupe._birth = Birth(nursery, folder, order)
        try:
            for peer in range(bed.layout.num_peers):
                troupe.actors[peer] = await troupe._start(peer, nursery, folder)
            await troupe._meet(set(troupe.actors))
            yield troupe
        finally:
            await troupe._end()

    async def _meet(self, newcomers: Collection[int]) -> None:
        """Let newcomers start, and tell everybody where everybody is."""
        assert self._birth is not None
        self._hellos |= await self.ask_all(self._birth.order, START_S, newcomers)
        for name in self.contenders:
            known = [self._hellos[peer]["hellos"][name] for peer in sorted(self._hellos)]
            order = {"do": "connect", "contender": name, "hellos": known}
            await self.ask_all(order, START_S, self.living)

    @property
    def living(self) -> set[int]:
        """Peers whose processes have not ended."""
        return {peer for peer, actor in self.actors.items() if not actor.is_gone}

    async def revive(self, peer: int) -> None:
        """Start a new process for a peer whose process was killed. Raises ActorFailed."""
        assert self._birth is not None
        await self.actors[peer].end()
        self.actors[peer] = await self._start(peer, self._birth.nursery, self._birth.folder)
        await self._meet({peer})

    async def _start(self, peer: int, nursery: Nursery, folder: Path) -> Actor:
        # hivemind forks, and a loop of uvloop does not survive that
        use_uvloop = all(name.startswith(("zoonet", "rounds")) for name in self.contenders)
        log_path = folder / f"{self.contenders[0]}-{peer}.log"
        namespace = self.bed.namespace_of(peer)
        newborn = nursery.spawn(namespace, log_path, use_uvloop=use_uvloop)
        return await Actor.of(peer, newborn, log_path)

    def _place_of(self, peer: int) -> dict[str, Any]:
        """What only this peer is told of where it is."""
        folder = self.actors[peer].log_path.with_suffix("")
        if isinstance(self.bed, Loopback):
            return {"address": "127.0.0.1", "interface": "lo", "folder": str(folder)}
        address = self.bed.layout.address_of(peer)
        return {"address": address, "interface": PEER_INTERFACE, "folder": str(folder)}

    async def ask_all(
        self, order: Message, timeout_s: float, peers: Collection[int] | None = None
    ) -> dict[int, Message]:
        """Give everyone an order; return the answers by peer. Raises ActorFailed."""
        asked = sorted(self.actors if peers is None else peers)
        answers = await asyncio.gather(
            *(
                self.actors[peer].ask(order | {"peer": peer} | self._place_of(peer), timeout_s)
                for peer in asked
            )
        )
        for peer, answer in zip(asked, answers, strict=True):
            if answer["is"] == "failed" and order["do"] != "go":
                log = self.actors[peer].log_tail()
                raise ActorFailed(f"peer {peer}: {answer['error']}; it logged last:\n{log}")
        return dict(zip(asked, answers, strict=True))

    async def prepare(self, contender: str) -> Prepared:
        """Let everyone take up its vector and find the others. Raises ActorFailed."""
        self._round += 1
        order = {"do": "prepare", "contender": contender, "round": self._round}
        answers = await self.ask_all(order, ROUND_S)
        began = min(float(answer["began"]) for answer in answers.values())
        ended = max(float(answer["ended"]) for answer in answers.values())
        return Prepared(self._round, ended - began, [a["told"] for a in answers.values()])

    def go(self, contender: str, prepared: Prepared) -> float:
        """Order the beginning of a prepared round; return its instant."""
        at = time.monotonic() + LEAD_S + 0.005 * len(self.actors)
        for actor in self.actors.values():
            actor.tell({"do": "go", "contender": contender, "at": at, "told": prepared.told})
        return at

    async def finish(
        self,
        prepared: Prepared,
        began: float,
        awaited: Collection[int],
        timeout_s: float = ROUND_S,
    ) -> Performance:
        """Wait for these peers' results; who does not answer in time is reported as failed."""

        async def answer_of(peer: int) -> Message:
            try:
                return await self.actors[peer].answer(timeout_s)
            except ActorFailed as error:
                return {"is": "failed", "error": str(error), "ended": time.monotonic()}

        asked = sorted(awaited)
        answers = await asyncio.gather(*(answer_of(peer) for peer in asked))
        return Performance(
            round_number=prepared.round_number,
            began=began,
            answers=dict(zip(asked, answers, strict=True)),
            match_s=prepared.seconds,
        )

    async def perform(self, contender: str) -> Performance:
        """One round of a contender, in which nothing is done to anybody."""
        prepared = await self.prepare(contender)
        return await self.finish(prepared, self.go(contender, prepared), set(self.actors))

    async def _end(self) -> None:
        """Say goodbye by closing stdin, then end what is left, children and all."""
        await asyncio.gather(*(actor.end() for actor in self.actors.values()))
        if isinstance(self.bed, Bed):  # whoever has left a session is still in its namespace
            for peer in self.actors:
                for pid in processes_in(self.bed.namespace_of(peer)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
