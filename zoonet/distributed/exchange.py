"""Lanes to all peers of a list, and how it is noticed that one of them is gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from zoonet.crypto import PeerId, sha256, short
from zoonet.distributed.agreement import Agreement
from zoonet.distributed.mailbox import Mailbox
from zoonet.distributed.wire import MAX_NOTE_CHARACTERS, MAX_RANKS, Kind, Message
from zoonet.distributed.wording import peer_words
from zoonet.errors import (
    ConfigError,
    GroupFailed,
    PeerTimeout,
    PeerUnreachable,
    ProtocolViolation,
    StreamClosed,
    TransportError,
    ZoonetError,
)
from zoonet.transport import Buffer, Lane, Lanes

GRACE_S: Final = 0.5  # for a goodbye to arrive
LINGER_S: Final = 5.0  # for what was sent to leave, when this peer does
LOOK_S: Final = 0.02
AGAIN_S: Final = 0.2  # before a peer that is not there yet is tried again
MAX_EARLY_FAILURES: Final = 256
MAX_PEERS: Final = MAX_RANKS

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeConfig:
    """How patient the peers of a list are with each other. Raises ConfigError."""

    # What they do together; peers with another run do not meet.
    run: str = "default"
    # For all peers to be there.
    join_timeout_s: float = 300.0
    # For one operation, from its call to its end.
    operation_timeout_s: float = 1800.0
    # Without a byte from a peer, it counts as dead. Peers that die are noticed at once.
    silence_s: float = 20.0
    # Between two signs of life.
    beat_s: float = 1.0

    def __post_init__(self) -> None:
        if not self.run or len(self.run) > 100:
            raise ConfigError("the name of a run has 1 to 100 characters")
        if min(self.join_timeout_s, self.operation_timeout_s, self.beat_s) <= 0:
            raise ConfigError("timeouts and intervals are seconds above 0")
        if self.silence_s < 3 * self.beat_s:
            raise ConfigError("silence_s is too short: at least three beats")


class Exchange:
    """This peer among the peers of a list: rank r is the r-th of them.

    Made by `Exchange.open`. Used on the event loop, except where it says otherwise.
    """

    def __init__(self, lanes: Lanes, peers: Sequence[PeerId], config: ExchangeConfig) -> None:
        self.peers = check_peers(peers, lanes.peer_id)
        self.rank = self.peers.index(lanes.peer_id)
        self.config = config
        self._lanes = lanes
        self._others = tuple(peer for peer in self.peers if peer != lanes.peer_id)
        self._channel = "group/" + sha256(config.run.encode()).hex()[:16]
        self._digest = sha256("\n".join(self.peers).encode()).hex()[:32]
        self.mailbox = Mailbox(self._others, self.post, self._on_notice, self._on_end)
        self._loop = asyncio.get_running_loop()
        self._outgoing: dict[PeerId, Lane] = {}
        self._greeted: set[PeerId] = set()
        self._leaving: set[PeerId] = set()
        self._gone: dict[PeerId, asyncio.Event] = {}
        self._changed = asyncio.Event()
        self._is_meeting = True
        self._has_met = False
        self._is_closing = False
        self.lost: dict[PeerId, ZoonetError] = {}  # peers that are gone, and why
        self._listeners: dict[bytes, Callable[[GroupFailed], None]] = {}
        self._members_of: dict[bytes, frozenset[PeerId]] = {}
        # Groups that failed before they began here, by who said so.
        self._early: dict[bytes, tuple[PeerId, GroupFailed]] = {}
        self.num_opened: Counter[tuple[str, ...]] = Counter()  # groups, by name and members
        self._agreement = Agreement(self)

    @property
    def peer_id(self) -> PeerId:
        """This peer."""
        return self._lanes.peer_id

    @classmethod
    @asynccontextmanager
    async def open(
        cls, lanes: Lanes, peers: Sequence[PeerId], config: ExchangeConfig | None = None
    ) -> AsyncIterator[Exchange]:
        """Meet all peers of the list, and leave them at the end of the block.

        Raises PeerTimeout where some of them do not come, ConfigError for a list without this
        peer, ProtocolViolation for a peer that has another list.
        """
        exchange = cls(lanes, peers, config or ExchangeConfig())
        await lanes.serve(exchange._channel, exchange.mailbox)
        beating: asyncio.Task[None] | None = None
        try:
            await exchange._meet()
            beating = asyncio.create_task(exchange._beat(), name="beat")
            yield exchange
        finally:
            if beating is not None:
                beating.cancel()
                await asyncio.wait({beating})
            await exchange._leave()

    async def _meet(self) -> None:
        timeout_s = self.config.join_timeout_s
        reaching = [
            asyncio.create_task(self._reach(peer_id), name=f"reach {short(peer_id)}")
            for peer_id in self._others
        ]
        try:
            async with asyncio.timeout(timeout_s):
                while self._absent():
                    await self._changed.wait()
                    self._changed.clear()
                    for error in filter(_is_to_blame, self.lost.values()):
                        raise error
            self._has_met = True
        except TimeoutError as error:
            raise PeerTimeout(
                f"not all peers of the run {self.config.run!r} came in {timeout_s:.0f} s; missing: "
                + "; ".join(map(self._absence, self._absent()))
                + ". Start the missing ones with the same run and the same list of peers, "
                "or wait longer (join_timeout_s)"
            ) from error
        finally:
            self._is_meeting = False
            for task in reaching:
                task.cancel()
            await asyncio.gather(*reaching, return_exceptions=True)
        log.info("met run=%s rank=%d of %d", self.config.run, self.rank, len(self.peers))

    def _absent(self) -> list[PeerId]:
        there = self._greeted & self._outgoing.keys() | self.lost.keys()
        return [peer_id for peer_id in self._others if peer_id not in there]

    def _absence(self, peer_id: PeerId) -> str:
        is_reached = peer_id in self._outgoing
        return f"{self.name(peer_id)}, {'it said nothing' if is_reached else 'not reached'}"

    def name(self, peer_id: PeerId) -> str:
        """A peer as a user knows it."""
        return peer_words(self.peers.index(peer_id), peer_id)

    async def _reach(self, peer_id: PeerId) -> None:
        """Open a lane to a peer, again where that peer goes and comes back before all have met."""
        hello = Message(Kind.HELLO, note=self._digest).encode()
        while True:
            try:
                lane = await self._lanes.open(peer_id, self._channel, self._on_lane_end)
            except (PeerUnreachable, PeerTimeout, StreamClosed) as error:
                log.debug("peer=%s is not there yet: %s", short(peer_id), error)
                await asyncio.sleep(AGAIN_S)
                continue
            self._outgoing[peer_id] = lane
            lane.post(hello, b"")
            self._changed.set()
            gone = self._gone[peer_id] = asyncio.Event()
            await gone.wait()

    def post(self, peer_id: PeerId, header: bytes, payload: Buffer) -> None:
        """Send soon. Thread-safe; nothing happens where the peer is gone."""
        lane = self._outgoing.get(peer_id)
        if lane is not None:
            lane.post(header, payload)

    # What the lanes say, in any thread.

    def _on_notice(self, peer_id: PeerId, message: Message) -> None:
        if message.kind == Kind.BYE:
            self._leaving.add(peer_id)
        elif message.kind == Kind.HELLO:
            if message.note != self._digest:
                raise ProtocolViolation(peer_id, "has another list of peers, or another order")
            self._call(self._greet, peer_id)
        elif message.kind == Kind.FAIL:
            self._call(self._hear_failure, peer_id, message)
        elif message.kind == Kind.LOST:
            if not all(rank < len(self.peers) for rank in message.ranks):
                raise ProtocolViolation(peer_id, f"speaks of ranks {message.ranks}")
            self._call(self._hear_view, peer_id, message)

    def _on_lane_end(self, lane: Lane, error: ZoonetError) -> None:
        # Its goodbye may still be on the way, on the lane in the other direction.
        self._call(self._look_later, lane, error)

    def _on_end(self, peer_id: PeerId, error: ZoonetError) -> None:
        self._call(self._lose, peer_id, error)

    def _call(self, callback: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # a loop that has closed
            self._loop.call_soon_threadsafe(callback, *args)

    # On the loop.

    def _greet(self, peer_id: PeerId) -> None:
        self._greeted.add(peer_id)
        self._changed.set()

    def _look_later(self, lane: Lane, error: ZoonetError) -> None:
        self._loop.call_later(GRACE_S, self._lose_with, lane, error)

    def _lose_with(self, lane: Lane, error: ZoonetError) -> None:
        if self._outgoing.get(lane.peer_id) is lane:  # else the peer has come again meanwhile
            self._lose(lane.peer_id, error)

    def _lose(self, peer_id: PeerId, error: ZoonetError) -> None:
        if self._is_closing or peer_id in self.lost:
            return
        self._changed.set()
        is_done = peer_id in self._leaving  # it has met everybody, this peer too
        if self._is_meeting and not is_done and not _is_to_blame(error):
            self._greeted.discard(peer_id)
            self._outgoing.pop(peer_id, None)
            if (gone := self._gone.pop(peer_id, None)) is not None:
                gone.set()
            return
        self.lost[peer_id] = error
        failure = self.absence_of(peer_id)
        log.info("%s", failure)
        self.mailbox.lose(peer_id, failure)
        self._agreement.look()
        if peer_id in self._leaving:
            return  # only who needs it from here on will fail
        for group in [group for group, who in self._members_of.items() if peer_id in who]:
            self._fail(group, failure)

    def absence_of(self, peer_id: PeerId) -> GroupFailed:
        """Why nothing can be done together with a peer that is lost."""
        error = self.lost[peer_id]
        if peer_id in self._leaving:
            what = "has left the run"
        elif _is_to_blame(error):
            what = f"broke the protocol ({error})"
        else:
            what = f"is lost ({error})"
        return GroupFailed(f"{self.name(peer_id)} {what}", missing=frozenset({peer_id}))

    def _hear_failure(self, peer_id: PeerId, message: Message) -> None:
        note = "".join(char if char.isprintable() else "?" for char in message.note)
        failure = GroupFailed(f"{self.name(peer_id)} gave up: {note}")
        if peer_id in self._members_of.get(message.group, ()):
            self._fail(message.group, failure)
        else:
            self._early[message.group] = (peer_id, failure)
            if len(self._early) > MAX_EARLY_FAILURES:
                del self._early[next(iter(self._early))]

    def _hear_view(self, peer_id: PeerId, message: Message) -> None:
        try:
            self._agreement.hear(peer_id, message)
        except ProtocolViolation as error:
            self._lose(peer_id, error)

    async def agree(self, timeout_s: float) -> tuple[PeerId, ...]:
        """Agree with the others on who is left, in the order of their ranks.

        All who are left call it, after a group has failed. Raises PeerTimeout where some do not,
        GroupFailed where the others have given this peer up.
        """
        return await self._agreement.reach(timeout_s)

    def give_up(self, peer_id: PeerId) -> None:
        """Others have lost the peer: do without it."""
        self._lose(peer_id, PeerTimeout("others have lost it"))

    def say(self, message: Message) -> None:
        """Tell everybody, also those given up, who may live."""
        header = message.encode()
        for peer_id in self._others:
            self.post(peer_id, header, b"")

    def _fail(self, group: bytes, failure: GroupFailed) -> None:
        listener = self._listeners.get(group)
        if listener is not None:
            listener(failure)

    def join_group(
        self,
        group: bytes,
        members: frozenset[PeerId],
        on_offer: Callable[[], None],
        on_failure: Callable[[GroupFailed], None],
    ) -> None:
        """Begin a group; `on_failure` is called, on the loop, when it cannot go on."""
        self.mailbox.open_group(group, on_offer)
        self._listeners[group] = on_failure
        self._members_of[group] = members
        said_by, failure = self._early.pop(group, (self.peer_id, None))
        if failure is not None and said_by in members:
            on_failure(failure)
        for peer_id in self.lost.keys() & members - self._leaving:
            on_failure(self.absence_of(peer_id))

    def leave_group(self, group: bytes, failure: GroupFailed, *, tell: bool) -> None:
        """End a group here; `tell` its members that it failed, and why."""
        members = self._members_of.pop(group, frozenset())
        self._listeners.pop(group, None)
        self.mailbox.close_group(group, failure)
        if tell and not self._is_closing:
            note = str(failure).encode("ascii", "replace")[:MAX_NOTE_CHARACTERS].decode()
            header = Message(Kind.FAIL, group, note=note).encode()
            for peer_id in members - {self.peer_id}:
                self.post(peer_id, header, b"")

    async def _beat(self) -> None:
        header = Message(Kind.BEAT).encode()
        silent_since: dict[PeerId, float] = {}
        while True:
            await asyncio.sleep(self.config.beat_s)
            now = self._loop.time()
            for peer_id, lane in list(self._outgoing.items()):
                if peer_id in self.lost:
                    continue
                if not lane.unsent_bytes:
                    lane.post(header, b"")
                silent_s = self._lanes.silent_s(peer_id)
                if math.isinf(silent_s):
                    silent_s = now - silent_since.setdefault(peer_id, now)
                if silent_s > self.config.silence_s:
                    error = PeerTimeout(f"peer={short(peer_id)} silent for {silent_s:.0f} s")
                    self._lose(peer_id, error)

    async def _leave(self) -> None:
        self._is_closing = True
        for group in list(self._members_of):
            self._fail(group, GroupFailed("this peer has left the run"))
        lanes = list(self._outgoing.values())
        for lane in lanes if self._has_met else ():
            lane.post(Message(Kind.BYE).encode(), b"")
        until = self._loop.time() + LINGER_S
        while any(lane.unsent_bytes for lane in lanes) and self._loop.time() < until:
            await asyncio.sleep(LOOK_S)
        await asyncio.gather(*(lane.close() for lane in lanes), return_exceptions=True)
        self._outgoing.clear()
        with contextlib.suppress(TransportError):
            await self._lanes.unserve(self._channel)


def _is_to_blame(error: ZoonetError) -> bool:
    return isinstance(error, ProtocolViolation)


def check_peers(peers: Sequence[PeerId], own: PeerId) -> tuple[PeerId, ...]:
    """The list as a tuple. Raises ConfigError where no group can come of it."""
    if len(set(peers)) != len(peers):
        twice = next(peer for peer in peers if list(peers).count(peer) > 1)
        raise ConfigError(f"the list of peers names {twice} twice; each peer has one rank")
    if len(peers) > MAX_PEERS:
        raise ConfigError(f"a run of {len(peers)} peers; everyone has lanes to all: {MAX_PEERS}")
    if own not in peers:
        raise ConfigError(
            f"this peer, {own}, is not in the list of peers; add it, or use the key of one that is"
        )
    return tuple(peers)
