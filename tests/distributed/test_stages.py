"""Who takes over which blocks of a pipeline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoonet.crypto import PeerId
from zoonet.distributed.stages import Move, Stage, cut, keeper_of, moves, take_over
from zoonet.errors import ConfigError

A, B, C, D, E = map(PeerId, "abcde")


def test_blocks_are_shared_equally_and_each_peer_has_at_least_one() -> None:
    assert cut([A, B, C], 8) == (Stage(A, 0, 2), Stage(B, 2, 5), Stage(C, 5, 8))
    with pytest.raises(ConfigError, match="2 blocks cannot be shared by 3 peers"):
        cut([A, B, C], 2)


def test_a_spare_takes_a_lost_stage_as_it_is() -> None:
    stages = cut([A, B, C, D], 8)
    assert take_over(stages, {A, C, D, E}, [E]) == (
        Stage(A, 0, 2),
        Stage(E, 2, 4),
        Stage(C, 4, 6),
        Stage(D, 6, 8),
    )


@pytest.mark.parametrize(
    ("living", "bounds"),
    [
        ([A, B, C, D], [(0, 2), (2, 4), (4, 6), (6, 8)]),
        ([B, C, D], [(0, 4), (4, 6), (6, 8)]),
        ([A, C, D], [(0, 3), (3, 6), (6, 8)]),
        ([A, B, C], [(0, 2), (2, 4), (4, 8)]),
        ([A, D], [(0, 4), (4, 8)]),
        ([B, D], [(0, 5), (5, 8)]),
        ([C], [(0, 8)]),
    ],
)
def test_without_a_spare_the_neighbours_share_what_is_lost(
    living: list[PeerId], bounds: list[tuple[int, int]]
) -> None:
    stages = take_over(cut([A, B, C, D], 8), living)
    assert [stage.peer_id for stage in stages] == living
    assert [(stage.start, stage.stop) for stage in stages] == bounds


@given(
    num_peers=st.integers(1, 9),
    num_blocks=st.integers(9, 40),
    losses=st.lists(st.sets(st.integers(0, 8)), max_size=3),
    num_spares=st.integers(0, 2),
)
def test_whatever_is_lost_every_block_has_one_owner_and_nobody_moves_needlessly(
    num_peers: int, num_blocks: int, losses: list[set[int]], num_spares: int
) -> None:
    names = [PeerId(f"peer {number}") for number in range(num_peers + num_spares)]
    stages = cut(names[:num_peers], num_blocks)
    living = set(names)
    for loss in losses:
        living -= {names[number] for number in loss if number < len(names)}
        has_stage = {stage.peer_id for stage in stages}
        spares = [name for name in names if name in living and name not in has_stage]
        if not living & has_stage and not spares:
            with pytest.raises(ConfigError, match="no peer of the pipeline is left"):
                take_over(stages, living, spares)
            return
        after = take_over(stages, living, spares)
        assert [block for stage in after for block in stage.blocks] == list(range(num_blocks))
        assert {stage.peer_id for stage in after} <= living
        assert all(stage.blocks for stage in after)
        for stage in stages:
            if stage.peer_id in living:
                (now,) = [other for other in after if other.peer_id == stage.peer_id]
                assert set(stage.blocks) <= set(now.blocks)
        stages = after


def test_a_block_s_checkpoint_comes_from_its_owner_or_from_the_next_stage() -> None:
    before = cut([A, B, C], 6)
    assert (keeper_of(before, A), keeper_of(before, C)) == (B, A)
    living = {A, C}
    after = take_over(before, living)
    assert moves(before, after, living) == (
        Move(0, A, A),
        Move(1, A, A),
        Move(2, C, A),
        Move(3, C, C),
        Move(4, C, C),
        Move(5, C, C),
    )
    with pytest.raises(ConfigError, match="block 0 is lost with the peers a and b"):
        moves(before, take_over(before, {C}), {C})
