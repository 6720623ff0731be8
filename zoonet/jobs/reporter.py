"""What one peer says about its part in a job, and what it hears from the others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from zoonet.clock import Clock
from zoonet.crypto import Identity, PeerId
from zoonet.errors import TransportError
from zoonet.records import Progress, RecordStore, Signed, job_topic, progress_key, sign
from zoonet.records.envelope import MAX_CLOCK_SKEW_S
from zoonet.records.kinds import Phase
from zoonet.transport import Transport

SILENT_S: Final = 90.0  # without a word, before a participant is no longer counted on
LIFETIME_S: Final = SILENT_S + MAX_CLOCK_SKEW_S  # by clocks that are that much ahead, too
PUBLISH_INTERVAL_S: Final = 5.0  # to the record store; live events go out at once
READ_INTERVAL_S: Final = 5.0
MAX_OTHERS: Final = 1024
MAX_FIGURE: Final = 1e15  # more than records may say; a loss gets there on its way to infinity

log = logging.getLogger(__name__)


class Speaker(Protocol):
    """What a participant speaks with."""

    @property
    def identity(self) -> Identity: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def records(self) -> RecordStore: ...

    @property
    def transport(self) -> Transport: ...


@dataclass(slots=True)
class Status:
    """This peer's figures, changed in place; `Reporter` sends them out."""

    name: str
    phase: Phase = "joining"
    num_rounds: int = 0
    head: bytes = bytes(32)
    num_tokens: int = 0
    num_members: int = 0
    num_contributors: int = 0
    tokens_per_s: float = 0.0
    train_loss: float = 0.0
    eval_loss: float = 0.0
    eval_round: int = 0
    note: str = ""


@dataclass(slots=True)
class Reporter:
    """Sends one job's status, and remembers the newest word of each other participant."""

    node: Speaker
    job_id: str
    status: Status
    on_heard: Callable[[Signed[Any]], None]
    others: dict[PeerId, Signed[Progress]] = field(default_factory=dict)
    _heard_at: dict[PeerId, float] = field(default_factory=dict)  # by this loop's own clock
    _sequence: int = 0
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, phase: Phase | None = None) -> None:
        """Send the status out soon; several changes at once become one message."""
        if phase is not None:
            self.status.phase = phase
        self._changed.set()

    def founders(self) -> set[PeerId]:
        """Others who say that they are ready for rounds, and have said so lately."""
        now = asyncio.get_running_loop().time()
        for peer in list(self.others):
            if now - self._heard_at[peer] > SILENT_S:
                del self.others[peer]
        ready = ("waiting", "training", "averaging")
        return {peer for peer, record in self.others.items() if record.body.phase in ready}

    def holders(self) -> tuple[PeerId, ...]:
        """Others who hold the job's data: everyone who has begun with it."""
        return tuple(peer for peer, record in self.others.items() if record.body.phase != "failed")

    async def run(self) -> None:
        """Speak and listen until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._speak())
            tasks.create_task(self._listen())
            tasks.create_task(self._read_often())

    async def _speak(self) -> None:
        loop = asyncio.get_running_loop()
        publish_at = 0.0
        while True:
            record = self._record()
            await self._send(record, is_stored=loop.time() >= publish_at)
            if loop.time() >= publish_at:
                publish_at = loop.time() + PUBLISH_INTERVAL_S
            try:
                async with asyncio.timeout(PUBLISH_INTERVAL_S):
                    await self._changed.wait()
                self._changed.clear()
            except TimeoutError:
                continue

    async def say_now(self, phase: Phase) -> None:
        """Send the status at once, to the record store too: the last word of a participant."""
        self.status.phase = phase
        await self._send(self._record(), is_stored=True)

    async def _send(self, record: Signed[Progress], *, is_stored: bool) -> None:
        try:
            await self.node.records.announce(job_topic(self.job_id), record)
            if is_stored:
                await self.node.records.publish(record)
        except TransportError as error:
            log.info("progress not sent: %s", error)

    def _record(self) -> Signed[Progress]:
        now = self.node.clock.now()
        self._sequence = max(self._sequence + 1, int(now * 1000))
        status = self.status
        body = Progress(
            job_id=self.job_id,
            name=status.name,
            phase=status.phase,
            num_rounds=status.num_rounds,
            head=status.head,
            num_tokens=status.num_tokens,
            num_members=status.num_members,
            num_contributors=status.num_contributors,
            tokens_per_s=min(status.tokens_per_s, MAX_FIGURE),
            train_loss=min(status.train_loss, MAX_FIGURE),
            eval_loss=min(status.eval_loss, MAX_FIGURE),
            eval_round=status.eval_round,
            sent_bytes=self.node.transport.sent_bytes,
            received_bytes=self.node.transport.received_bytes,
            note=status.note[:200],
        )
        return sign(self.node.identity, body, sequence=self._sequence, expires_at=now + LIFETIME_S)

    async def _listen(self) -> None:
        async with self.node.records.listen(job_topic(self.job_id)) as events:
            async for record in events:
                self._hear(record)

    async def _read_often(self) -> None:
        while True:
            await self.read()
            await asyncio.sleep(READ_INTERVAL_S)

    async def read(self) -> None:
        """Look at the record store once: it also knows those whose live events were missed."""
        try:
            records = await self.node.records.fetch(progress_key(self.job_id), Progress)
        except TransportError as error:
            log.info("progress not read: %s", error)
            return
        for record in records:
            self._hear(record)

    def _hear(self, record: Signed[Any]) -> None:
        if record.author == self.node.identity.peer_id:
            return
        if isinstance(record.body, Progress) and record.body.job_id == self.job_id:
            known = self.others.get(record.author)
            if known is not None and not record.is_newer_than(known):
                return
            self.others.pop(record.author, None)
            self.others[record.author] = record
            self._heard_at[record.author] = asyncio.get_running_loop().time()
            if len(self.others) > MAX_OTHERS:  # a crowd of keys: who spoke longest ago goes first
                del self.others[next(iter(self.others))]
            self._heard_at = {peer: self._heard_at[peer] for peer in self.others}
        self.on_heard(record)
