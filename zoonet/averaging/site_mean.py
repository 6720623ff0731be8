"""Means among the members of a site, within a round: the asynchronous edge of `SiteTable`.

They are no part of the chain. Who does not come, or too late, is done without: each goes on with
what it has, and the round averages everybody's work as it would have anyway.

P = flat parameters
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np

from zoonet.averaging.chunks import Header, decode_header
from zoonet.averaging.config import RoundsConfig
from zoonet.averaging.deadlines import LearnedTimeout
from zoonet.averaging.meetings import Meeting, Meetings
from zoonet.averaging.messages import Round
from zoonet.averaging.outlets import Outlets
from zoonet.averaging.plan import chunk_values
from zoonet.averaging.site_table import SiteTable
from zoonet.crypto import PeerId, short
from zoonet.errors import ProtocolViolation, ZoonetError
from zoonet.exact import Vector
from zoonet.transport import Lanes

FLOOR_S: Final = 0.25  # a machine's own hiccups
CEILING_S: Final = 30.0
NUM_TABLES: Final = 2  # others may be one meeting further
INLINE_BYTES: Final = 1024 * 1024  # arithmetic on less than this stays on the event loop

T = TypeVar("T")

log = logging.getLogger(__name__)


class SiteMean:
    """Averages theta_local with neighbours. `serve` it before use, `close` it after.

    A round's plan says who they are (`begin`, until `leave`). Beside theta_local it holds three
    vectors of its size: what is sent, the means that it makes, and what others send.
    """

    def __init__(
        self, lanes: Lanes, job_id: str, num_parameters: int, config: RoundsConfig
    ) -> None:
        self.mixed_with: frozenset[PeerId] = frozenset()  # whose work may be in theta_local
        self.waited_s = 0.0  # in all meetings so far, until what was awaited was there
        self.num_met = 0  # meetings that brought others' work
        self._lanes = lanes
        self._channel = f"{job_id}/site/1"
        self._num_parameters = num_parameters
        self._config = config
        self._outlets = Outlets(lanes, self._channel, self._note_gone)
        self._lock = threading.Lock()
        self._key = b""  # of the round under way
        self._upcoming: list[Meeting] = []
        self._tables: dict[int, SiteTable] = {}
        self._absent: set[PeerId] = set()  # not waited for, until they come in time
        self._missed: set[PeerId] = set()  # that were absent without a reason in this round
        self._barred: set[PeerId] = set()  # not waited for in this round, come what may
        self._meetings: dict[int, Meeting] = {}
        self._of_round: Meetings | None = None
        self._began_with = (0, 0.0)  # meetings and waiting, when the round began
        self._left_at = 0.0  # the last meeting, or the plan
        self._patience = LearnedTimeout(first_s=CEILING_S, floor_s=FLOOR_S, ceiling_s=CEILING_S)
        self._sent_P: Vector | None = None
        self._made_P: Vector | None = None
        self._nowhere = memoryview(bytearray(4 * chunk_values(num_parameters)))
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Begin to accept chunks."""
        await self._lanes.serve(self._channel, self)

    async def close(self) -> None:
        """Stop, and end all lanes."""
        self.leave()
        await self._lanes.unserve(self._channel)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._outlets.close()

    # --- a round ------------------------------------------------------------------------------

    def begin(self, plan: Round, near: Collection[PeerId], *, is_carrying: bool) -> Sequence[int]:
        """Take part in the meetings of a round: return after how many steps they are.

        `near` are those whom this peer itself finds near: it waits for nobody else. `is_carrying`
        tells whether theta_local holds work of before.
        """
        of_round = Meetings(
            plan, self._lanes.peer_id, self._config.inner_steps, self._config.site_steps
        )
        self._of_round, self._meetings = of_round, of_round.at_steps
        with self._lock:
            self._key = of_round.key
            self._upcoming = list(self._meetings.values())
            self._tables = {}
            peers = {peer for meeting in self._upcoming for peer in meeting.peers}
            self._absent = peers - set(near) - {self._lanes.peer_id}
            self._missed, self._barred = set(), set()
        if not is_carrying:
            self.mixed_with = frozenset()
        for peer in sorted(peers - {self._lanes.peer_id}):
            self._expect(peer)
        self._left_at = self._loop.time()
        self._began_with = self.num_met, self.waited_s
        return tuple(self._meetings)

    def leave(self) -> None:
        """The round is over, or this peer has trained what it had to."""
        if self._meetings:
            num_met, waited_s = self._began_with
            log.info(
                "site met=%d of=%d waited_s=%.2f",
                self.num_met - num_met,
                len(self._meetings),
                self.waited_s - waited_s,
            )
        self._meetings = {}
        with self._lock:
            self._key = b""
            self._upcoming, self._tables = [], {}

    def _expect(self, peer: PeerId) -> None:
        if self._outlets.expect(peer):
            self._spawn(self._outlets.open(peer))

    # --- a meeting ----------------------------------------------------------------------------

    async def mix(self, num_steps: int, theta_P: Vector) -> bool:
        """Average theta_local (P,) in place with neighbours after so many steps.

        Tells whether it has changed. Waits for others twice as long as it has learned that they
        need, and no longer than this peer itself took since it left the last meeting (or
        `FLOOR_S`). Where it is cancelled, what `theta_P` holds means nothing.
        """
        meeting = self._meetings.get(num_steps)
        if meeting is None:
            return False  # this peer has left the round meanwhile
        table = self._take_seat(meeting)
        began = self._loop.time()
        interval_s = max(FLOOR_S, began - self._left_at)
        try:
            await self._bring(table, theta_P)
            await self._wait(table, interval_s)
            mixed = await self._compute(lambda: table.end(theta_P))
        finally:
            self._left_at = self._loop.time()
            self.waited_s += self._left_at - began
            self._rise(table)
        if mixed and self._of_round is not None:
            # They bring what they have mixed before, with whomever.
            others = self._of_round.expected_by(meeting.number) - {self._lanes.peer_id}
            self.mixed_with |= mixed | others
        self.num_met += bool(mixed)
        log.debug("site meeting=%d with=%d", table.meeting.number, len(mixed))
        return bool(mixed)

    def _take_seat(self, meeting: Meeting) -> SiteTable:
        with self._lock:
            while self._upcoming and self._upcoming[0] is not meeting:
                self._tables.pop(self._upcoming.pop(0).number, None)
            return self._table_of(meeting)

    def _table_of(self, meeting: Meeting) -> SiteTable:
        table = self._tables.get(meeting.number)
        if table is None:
            me = self._lanes.peer_id
            table = SiteTable(meeting, self._key, me, self._num_parameters, self._outlets.post)
            self._tables[meeting.number] = table
        return table

    def _rise(self, table: SiteTable) -> None:
        with self._lock:
            self._tables.pop(table.meeting.number, None)
            self._upcoming = [one for one in self._upcoming if one is not table.meeting]

    async def _bring(self, table: SiteTable, theta_P: Vector) -> None:
        sent_P, made_P = self._buffers()
        for peer in table.meeting.peers:
            if peer != self._lanes.peer_id:
                self._expect(peer)  # again, where its lane has ended

        def bring() -> None:
            np.copyto(sent_P, theta_P)
            table.expect_no_more(self._gone())
            table.arrive(sent_P, made_P)

        await self._compute(bring)

    async def _compute(self, function: Callable[[], T]) -> T:
        """Run arithmetic to its end, in a thread where there is much of it.

        Cancellation waits for the thread: the vector belongs to others afterwards.
        """
        if 4 * self._num_parameters < INLINE_BYTES:
            return function()
        working = asyncio.ensure_future(asyncio.to_thread(function))
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            await asyncio.wait({working})
            raise

    async def _wait(self, table: SiteTable, longest_s: float) -> None:
        """Until all is here, or who is late can be done without: half of it for parts."""
        began = self._loop.time()
        half_s = min(longest_s / 2, self._patience.timeout_s)
        await self._settled(table, began + half_s)
        if not table.owing():
            self._patience.observe(self._loop.time() - began)
            return
        mute = await self._compute(table.hurry)
        self._miss(mute)
        await self._settled(table, began + 2 * half_s)
        owing = table.owing()
        self._bar(owing)
        missed = sorted(map(short, mute | owing))
        log.info("site meeting=%d without=%s", table.meeting.number, missed)
        self._patience.observe(2 * max(half_s, FLOOR_S))  # it may have been too short

    async def _settled(self, table: SiteTable, deadline: float) -> None:
        told: frozenset[PeerId] = frozenset()
        try:
            async with asyncio.timeout_at(deadline):
                while table.owing():
                    self._changed.clear()
                    gone = self._gone()
                    if gone - told:
                        await self._compute(partial(table.expect_no_more, gone))
                        told |= gone
                    if table.owing():
                        await self._changed.wait()
        except TimeoutError:
            return

    def _miss(self, mute: frozenset[PeerId]) -> None:
        """They have sent nothing in time: waited for again if they come, but once a round."""
        with self._lock:
            self._absent |= mute
            self._barred |= mute & self._missed
            self._missed |= mute

    def _bar(self, owing: frozenset[PeerId]) -> None:
        """They have begun and not gone on."""
        with self._lock:
            self._absent |= owing
            self._barred |= owing

    def _gone(self) -> frozenset[PeerId]:
        with self._lock:
            return frozenset(self._absent)

    def _buffers(self) -> tuple[Vector, Vector]:
        """Memory to send from and to make means in: others', where somebody still reads from it."""
        if self._sent_P is None or self._made_P is None or self._outlets.unsent_bytes:
            self._outlets.drop()
            self._sent_P, self._made_P = (
                np.frombuffer(self._lanes.allocate(4 * self._num_parameters), np.float32)
                for _ in range(2)
            )
        return self._sent_P, self._made_P

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="site-mean")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _note_gone(self, peer_id: PeerId, why: str) -> None:
        """Called from any thread."""
        with self._lock:
            self._absent.add(peer_id)
        log.debug("gone peer=%s: %s", short(peer_id), why)
        self._wake()

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._changed.set)

    # --- a sink of lanes ----------------------------------------------------------------------

    def _table_for(self, header: Header) -> SiteTable | None:
        with self._lock:
            if header.round_key != self._key:
                return None
            for meeting in self._upcoming[:NUM_TABLES]:
                if meeting.number == header.number:
                    return self._table_of(meeting)
        return None

    def admit(self, peer_id: PeerId, header: bytes, num_bytes: int) -> memoryview:
        """See `zoonet.transport.Sink`. What is not needed goes where nobody looks."""
        parsed = _parse(peer_id, header)
        if num_bytes > len(self._nowhere):
            raise ProtocolViolation(peer_id, f"a chunk of {num_bytes} bytes")
        table = self._table_for(parsed)
        place = table.admit(peer_id, parsed, num_bytes) if table is not None else None
        return self._nowhere[:num_bytes] if place is None else place

    def arrived(self, peer_id: PeerId, header: bytes) -> None:
        """See `zoonet.transport.Sink`."""
        parsed = _parse(peer_id, header)
        table = self._table_for(parsed)
        if table is not None:
            table.arrived(peer_id, parsed)
            with self._lock:
                if peer_id not in self._barred:
                    self._absent.discard(peer_id)
            self._wake()

    def ended(self, peer_id: PeerId, error: ZoonetError) -> None:
        """See `zoonet.transport.Sink`."""
        self._note_gone(peer_id, str(error))


def _parse(peer_id: PeerId, header: bytes) -> Header:
    try:
        return decode_header(header)
    except ValueError as error:
        raise ProtocolViolation(peer_id, f"no chunk header: {error}") from error
