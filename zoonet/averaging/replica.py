"""What rounds need of the training side: the seam between agreement and arithmetic."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from zoonet.exact import Vector
from zoonet.ranges import Ranges

STATE_CHUNK_BYTES = 256 * 1024  # small: the last ones to come hold a joiner up

Mix = Callable[[int, Vector], Awaitable[bool]]


class Replica(Protocol):
    """One peer's copy of the job's outer state, and its local work on top of it.

    The state is the outer parameters and momentum, 2P fp32 values; `state_digest` names it.
    Local work is whatever the peer has trained since, as a difference to the parameters.
    """

    @property
    def num_parameters(self) -> int:
        """P."""
        ...

    @property
    def state_digest(self) -> bytes:
        """Digest (32 bytes) of the current state."""
        ...

    @property
    def slots_per_s(self) -> float:
        """Measured training speed, 0 while unknown."""
        ...

    @property
    def num_trained(self) -> int:
        """Slots of local work trained so far."""
        ...

    @property
    def carried(self) -> Ranges:
        """Slots of local work: trained, and in no certified round yet, as last told of."""
        ...

    async def train(
        self,
        slots: Ranges,
        *,
        steps: int,
        num_done: int,
        num_planned: int,
        stops: Sequence[int] = (),
        mix: Mix | None = None,
    ) -> Ranges:
        """Return `carried` once it holds `steps` slots; the pseudo-gradient is the work of these.

        `slots`, which hold all of `carried`, are what may be trained, in order. Those beyond
        `steps` are trained in the background afterwards. `num_done` slots are certified,
        `num_planned` steps are asked of all members of this round: together they give the position
        on the learning-rate schedule.

        After each of these numbers of steps (`stops`, ascending) `mix` is awaited with that number
        and theta_local (P,), and may change it in place, which it then says: training goes on from
        there. `stop` cancels it. Raises WorkLost where the local work is gone, with the slots that
        are to blame, if any; TrainingError where the job cannot go on here. Do not cancel it: call
        `stop` and wait.
        """
        ...

    def stop(self) -> None:
        """Let `train` return early, with what it has. Does nothing while it does not run."""
        ...

    async def pseudo_gradient(self) -> Vector:
        """Return theta_outer - theta_local (P,), finite, as the last call of `train` left it."""
        ...

    async def stage(self, mean_P: Vector) -> bytes:
        """Take the outer step into a spare copy and return the digest of what it would be."""
        ...

    async def commit(self, state: bytes, *, is_merged: bool) -> bool:
        """Make the staged copy the state, and tell whether it was the copy of that digest.

        `is_merged` tells whether what `train` has returned is part of it; if not, it is carried
        along on top of the new state, as what was trained since is in any case.
        """
        ...

    async def drop_local(self) -> None:
        """Forget the local work: it was refused, or it stood on another chain."""
        ...

    def chunk_digests(self, state: bytes) -> list[bytes] | None:
        """Digests of the chunks of a state that this replica holds, else None."""
        ...

    def read_chunk(self, state: bytes, index: int) -> bytes | None:
        """A chunk of at most STATE_CHUNK_BYTES of that state, or None."""
        ...

    async def adopt(self, state: bytes, digests: list[bytes], chunks: list[bytes]) -> None:
        """Replace the state by one that was fetched; the local work is dropped.

        Raises DigestMismatch where the chunks do not make up that state.
        """
        ...
