"""Who waits for whom, as peers of a round tell each other."""

from __future__ import annotations

import numpy as np
import pytest

from tests.averaging.forest import Forest
from tests.averaging.makers import peer
from zoonet.averaging.chunks import Header, Kind, decode_header, indices_of
from zoonet.averaging.landing import Buffers
from zoonet.averaging.reduction import Reduction
from zoonet.averaging.wire import Wire
from zoonet.codecs import codec
from zoonet.testing import run

SITES = (("ada",), ("bob",), ("cyd",))


def reduction_of(forest: Forest, name: str) -> Reduction:
    found = Reduction(
        forest.attempt,
        peer(name),
        None,
        np.zeros(forest.size, np.float32),
        Wire(codec("fp32")),
        Buffers(forest.size),
        lambda receiver, header, payload: None,
        lambda: None,
    )
    found.adopt(forest.attempt)
    return found


@pytest.mark.parametrize(
    ("named", "num_waits"), [((), 0), (("ada",), 0), (("ada", "cyd"), 1), (("cyd",), 1)]
)
def test_who_waits_for_this_peer_alone_is_not_held_up_by_others(
    named: tuple[str, ...], num_waits: int
) -> None:
    async def main() -> None:
        forest = Forest(*SITES)
        ada = reduction_of(forest, "ada")
        bits = sum(1 << forest.plan.peers.index(peer(name)) for name in named)
        header = Header(Kind.ALIVE, forest.attempt.round_key(), 0, bits=bits)
        assert ada.admit(peer("bob"), header, 0) is not None
        said = {one.num_waits for one in ada.awaited() if one.peer == peer("bob")}
        assert said == {num_waits}

    run(main())


def test_who_waits_names_all_of_whom_something_is_missing() -> None:
    async def main() -> None:
        forest = Forest(*SITES)
        header = decode_header(reduction_of(forest, "ada").alive())
        named = {forest.plan.peers[index] for index in indices_of(header.bits)}
        assert header.kind == Kind.ALIVE and named == {peer("bob"), peer("cyd")}

    run(main())
