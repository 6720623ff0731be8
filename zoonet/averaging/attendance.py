"""Attending one round: the stream to its coordinator, and the member's part over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from zoonet.averaging.chair import Chair
from zoonet.averaging.gear import Gear, first_error
from zoonet.averaging.growth import PLAN_S, Growth
from zoonet.averaging.member import Member, MemberEvents
from zoonet.averaging.messages import Ready, Round, RoundResult
from zoonet.averaging.turns import Turns
from zoonet.averaging.votes import Votes
from zoonet.crypto import PeerId, short
from zoonet.errors import PeerTimeout, RoundFailed
from zoonet.transport import MAX_FRAME_BYTES, Buffer, Stream, local_pair

FOUNDING_S: Final = 1.0  # without a plan, beyond what a gathering takes: look again who is there


class Attendance:
    """Goes to a coordinator, which may be this peer itself, and plays its round there."""

    def __init__(
        self, gear: Gear, growth: Growth, votes: Votes, turns: Turns, chair: Chair
    ) -> None:
        self.ready_at = 0.0  # when this peer last set out for a coordinator
        self._has_planned = False  # and whether that one had a plan for it
        self._has_spoken = False  # and whether it has said anything
        self._gear = gear
        self._growth = growth
        self._votes = votes
        self._turns = turns
        self._chair = chair
        self.protocol = f"/zoonet/{growth.chain.job_id}/round/1"

    async def follow(self, coordinator: PeerId, head: bytes) -> None:
        """Follow the coordinator until the chain has grown. Raises what ended it before."""
        member = Member(
            self._gear.identity,
            self._gear.clock,
            self._gear.config,
            self._gear.replica,
            self._gear.averager,
            MemberEvents(
                partial(self._on_plan, coordinator),
                self._on_phase,
                self._on_staged,
                self._growth.note_failed,
            ),
            self._gear.site,
            self._growth.failed,
        )
        chain = self._growth.chain
        if not chain.roster:  # the first plan should know who is near whom
            await self._gear.averager.meet(self._gear.events.founders())
        links = self._gear.averager.own_links()
        ready = Ready(
            job_id=chain.job_id,
            length=len(chain),
            head=head,
            view=self._turns.view,
            slots_per_s=self._gear.replica.slots_per_s,
            leased=self._growth.claim(),
            near=links.near,
            up_bytes_per_s=links.up_bytes_per_s,
            down_bytes_per_s=links.down_bytes_per_s,
            lan_bytes_per_s=links.lan_bytes_per_s,
        )
        timeout_s = PLAN_S if chain.roster else self._gear.config.applicant_s + FOUNDING_S
        self.ready_at = self._now()
        self._has_planned = self._has_spoken = False
        try:
            async with self._stream_to(coordinator, ready) as stream:
                heard = _Heard(stream, self._note_word)
                following = asyncio.create_task(
                    member.follow(heard, ready, chain, plan_timeout_s=timeout_s)
                )
                await self._until_grown(following, head, coordinator)
        except BaseExceptionGroup as group:
            raise first_error(group) from group

    @property
    def is_waiting(self) -> bool:
        """Tell whether the coordinator was there when last followed, and had no plan yet."""
        return self._has_spoken and not self._has_planned

    async def _until_grown(
        self, following: asyncio.Task[None], head: bytes, coordinator: PeerId
    ) -> None:
        patience_s = self._growth.patience_s
        growing = asyncio.create_task(self._growth.wait(head, patience_s))
        try:
            await asyncio.wait({following, growing}, return_when=asyncio.FIRST_COMPLETED)
            if self._growth.chain.head == head:
                if growing.done():
                    reason = f"a round without an end in {patience_s:.0f} s"
                    self._turns.suspect(coordinator, reason, self._now())
                    raise RoundFailed(f"the round has taken more than {patience_s:.0f} s")
                await following
        finally:
            for task in (following, growing):
                task.cancel()
            await asyncio.gather(following, growing, return_exceptions=True)

    # --- the stream ---------------------------------------------------------------------------

    @asynccontextmanager
    async def _stream_to(self, coordinator: PeerId, ready: Ready) -> AsyncIterator[Stream]:
        if coordinator != self._gear.me:
            stream = await self._open(coordinator)
            try:
                yield stream
            finally:
                await stream.close()
            return
        near, far = local_pair(self._gear.me)
        attending = asyncio.create_task(self._chair.attend(far, ready))
        attending.add_done_callback(lambda _: self._gear.errands.spawn(far.close()))
        try:
            yield near
        finally:
            await near.close()
            await far.close()
            attending.cancel()
            await asyncio.gather(attending, return_exceptions=True)

    async def _open(self, coordinator: PeerId) -> Stream:
        try:
            async with asyncio.timeout(self._gear.config.silence_s):
                return await self._gear.transport.open(coordinator, self.protocol)
        except TimeoutError as error:
            raise PeerTimeout(f"peer={short(coordinator)} cannot be reached in time") from error

    # --- what happens in the round ------------------------------------------------------------

    async def _on_plan(self, coordinator: PeerId, plan: Round, record: bytes) -> None:
        self._has_planned = True
        self._chair.saw_plan(plan, record, coordinator)
        if self._growth.chain.roster:
            self._turns.view = plan.view
        self._growth.enter_round(plan)
        self._votes.admit(plan)
        self._gear.errands.spawn(
            self._gear.averager.meet({*plan.members, *map(PeerId, plan.joiners)})
        )
        await self._growth.bring_up_to_date(plan.members)

    def _note_word(self) -> None:
        self._has_spoken = True

    def _on_phase(self, phase: str) -> None:
        self._growth.is_averaging = phase == "averaging"
        self._gear.events.on_phase(phase)

    async def _on_staged(self, result: RoundResult) -> None:
        await self._growth.note_staged(result.state)
        await self._votes.cast(result)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


class _Heard:
    """A stream to a coordinator that tells when it says anything."""

    def __init__(self, stream: Stream, on_heard: Callable[[], None]) -> None:
        self._stream = stream
        self._on_heard = on_heard

    @property
    def peer_id(self) -> PeerId:
        return self._stream.peer_id

    async def send(self, frame: Buffer) -> None:
        await self._stream.send(frame)

    async def receive(self, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
        frame = await self._stream.receive(max_bytes)
        self._on_heard()
        return frame

    async def close(self) -> None:
        await self._stream.close()
