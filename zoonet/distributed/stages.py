"""Which peer has which part of a model that is trained as a pipeline, and what a loss changes.

A model is a row of blocks. A stage is some of them in a row, on one peer; a peer's checkpoint of
its stage is kept by the peer of the next stage, too (the last one's by the first). Pure rules:
every peer derives the same from the same list.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from zoonet.crypto import PeerId, short
from zoonet.errors import ConfigError


class Stage(NamedTuple):
    """Blocks `start` to before `stop`, and who has them."""

    peer_id: PeerId
    start: int
    stop: int

    @property
    def blocks(self) -> range:
        """The numbers of its blocks."""
        return range(self.start, self.stop)


class Move(NamedTuple):
    """A block's checkpoint and who needs it: `source` has it, which may be `target` itself."""

    block: int
    source: PeerId
    target: PeerId


def cut(peers: Sequence[PeerId], num_blocks: int) -> tuple[Stage, ...]:
    """Share the blocks as equally as whole ones allow. Raises ConfigError for too few of them."""
    if not 0 < len(peers) <= num_blocks:
        raise ConfigError(f"{num_blocks} blocks cannot be shared by {len(peers)} peers: one each")
    bounds = [num_blocks * rank // len(peers) for rank in range(len(peers) + 1)]
    return tuple(map(Stage, peers, bounds, bounds[1:]))


def take_over(
    stages: Sequence[Stage], living: Collection[PeerId], spares: Iterable[PeerId] = ()
) -> tuple[Stage, ...]:
    """The stages after the loss of every peer that is not among the living.

    A spare (living, without a stage) takes a lost stage as it is. Without one, the neighbours
    share its blocks, so that the larger of their two stages stays as small as can be. All other
    stages stay where they are. Raises ConfigError where nobody is left.
    """
    free = iter([peer_id for peer_id in spares if peer_id in living])
    filled = [
        stage if stage.peer_id in living else stage._replace(peer_id=next(free, PeerId("")))
        for stage in stages
    ]
    kept = [stage for stage in filled if stage.peer_id]
    if not kept:
        raise ConfigError("no peer of the pipeline is left")
    bounds = [filled[0].start]
    for left, right in itertools.pairwise(kept):
        middle = (left.start + right.stop + 1) // 2  # where both would be equal
        bounds.append(min(max(middle, left.stop), right.start))
    bounds.append(filled[-1].stop)
    return tuple(
        stage._replace(start=start, stop=stop)
        for stage, (start, stop) in zip(kept, itertools.pairwise(bounds), strict=True)
    )


def keeper_of(stages: Sequence[Stage], peer_id: PeerId) -> PeerId:
    """Who keeps a copy of that peer's checkpoint."""
    peers = [stage.peer_id for stage in stages]
    return peers[(peers.index(peer_id) + 1) % len(peers)]


def moves(
    before: Sequence[Stage], after: Sequence[Stage], living: Collection[PeerId]
) -> tuple[Move, ...]:
    """From whom each block's last checkpoint comes, and to whom it goes, in the order of blocks.

    `before`: the stages when it was taken. Raises ConfigError where both who had it are gone.
    """
    owners = {block: stage.peer_id for stage in before for block in stage.blocks}
    found = []
    for stage in after:
        for block in stage.blocks:
            owner = owners[block]
            holders = [peer for peer in (owner, keeper_of(before, owner)) if peer in living]
            if not holders:
                both = f"{short(owner)} and {short(keeper_of(before, owner))}"
                raise ConfigError(
                    f"block {block} is lost with the peers {both}, who had its checkpoint; "
                    "begin again from a checkpoint on disk"
                )
            source = stage.peer_id if stage.peer_id in holders else holders[0]
            found.append(Move(block, source, stage.peer_id))
    return tuple(found)
