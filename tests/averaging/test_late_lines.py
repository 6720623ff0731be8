"""Who is found late in all-reduces that are played event by event, over lines with rates."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from tests.averaging.test_planner import MBIT, swarm
from tests.averaging.wire import Line, Message, Wire
from zoonet.averaging.lateness import AGREE_S, FIRST_S, Lateness
from zoonet.averaging.links import PeerLinks
from zoonet.averaging.plan import Plan
from zoonet.averaging.planner import Payload, make_plan
from zoonet.averaging.reduction import Awaited
from zoonet.crypto import PeerId

TICK_S = 0.1
RTT_S = 0.05
Pair = tuple[int, int]  # who waits, and for whom


class Watched(Wire):
    """The same, with peers that look who is late, ten times a second."""

    def __init__(
        self, plan: Plan, payload: Payload, rates: dict[str, float], lateness: list[Lateness]
    ) -> None:
        super().__init__(plan, plan.peers, payload, rates, RTT_S / 2)
        self.found: dict[Pair, float] = {}  # who found whom late, and when first
        self.done_s: dict[int, float] = {}
        self.slow: tuple[float, float, frozenset[Line]] = (0.0, 1.0, frozenset())
        self._lateness = lateness
        self._all: Counter[tuple[int, int, bool]] = Counter()
        self._come: Counter[tuple[int, int, bool]] = Counter()
        self._num_waits: Counter[Pair] = Counter()
        self._looks = 0

    def expect(self, come: Counter[tuple[int, int, bool]]) -> None:
        """Look, while it is played, for these messages."""
        self._all = come
        for one in self._lateness:
            one.begin()
        self._after(0.0, self._look)

    @property
    def come(self) -> Counter[tuple[int, int, bool]]:
        """Messages by receiver, sender, and whether they are means."""
        return self._come

    def _seconds(self, line: Line, message: Message) -> float:
        at_s, factor, lines = self.slow
        is_slow = line in lines and self._now_s >= at_s
        return super()._seconds(line, message) * (factor if is_slow else 1.0)

    def _take(self, lane: Pair, message: Message) -> None:
        sender, receiver = lane
        self._come[receiver, sender, message[1]] += 1
        if not self._lacks(receiver):
            self.done_s.setdefault(receiver, self._now_s)
        super()._take(lane, message)

    def _lacks(self, me: int) -> set[int]:
        """Of whom something is missing there."""
        return {
            sender
            for (receiver, sender, _), num in self._all.items()
            if receiver == me and self._come[receiver, sender, _] < num
        }

    def _is_idle(self, lane: Pair) -> bool:
        return not self._queues[lane] and not self._on_the_way[lane]

    def _look(self) -> None:
        self._looks += 1
        lacks = {me: self._lacks(me) for me in self._active}
        for me in self._active:
            awaited = defaultdict(list)
            for (receiver, sender, is_mean), num_all in self._all.items():
                if receiver == me:
                    # every few looks who waits says so
                    says = self._looks % 3 == 0 and self._is_idle((sender, me))
                    if says and not is_mean:
                        self._num_waits[me, sender] += bool(lacks[sender] - {me})
                    come = self._come[receiver, sender, is_mean]
                    num_waits = self._num_waits[me, sender]
                    peer = PeerId(self._plan.peers[sender])
                    awaited[me].append(Awaited(peer, come, num_all, is_mean, num_waits))
            unserved = {
                PeerId(self._plan.peers[at]) for at in self._active if not self._is_idle((me, at))
            }
            for late in self._lateness[me].late(awaited[me], self._now_s, unserved=unserved):
                self.found.setdefault((me, self._plan.peers.index(late)), self._now_s)
        if any(lacks.values()) and self._now_s < 60.0:
            self._after(TICK_S, self._look)


class Lines:
    """A swarm behind such lines, that plays rounds by one plan."""

    def __init__(self, sizes: tuple[int, ...], mbit: float, mebibytes: int) -> None:
        peers, links = swarm(*sizes, line=mbit * MBIT)
        fast = {
            peer: PeerLinks(
                near=said.near,
                up_bytes_per_s=said.up_bytes_per_s,
                down_bytes_per_s=said.down_bytes_per_s,
                lan_bytes_per_s=1000 * MBIT,
            )
            for peer, said in links.items()
        }
        self._payload = Payload(num_values=mebibytes << 18)
        self.plan = make_plan(peers, (), fast, self._payload.num_values)
        self._rates = {"wan": mbit * MBIT, "lan": 1000 * MBIT}
        self._lateness = [Lateness(mebibytes << 20) for _ in peers]
        quiet = Watched(self.plan, self._payload, self._rates, self._lateness)
        self.calm_s = quiet.run()
        self._come = quiet.come

    def usually(self, share: float) -> None:
        """Let rounds usually take so much of what they take."""
        for one in self._lateness:
            one.lasted(share * self.calm_s, frozenset(map(PeerId, self.plan.peers)))

    def play(self, slow: tuple[float, float, frozenset[Line]] = (0.0, 1.0, frozenset())) -> Watched:
        """Play a round in which lines become slower at a time, by a factor."""
        played = Watched(self.plan, self._payload, self._rates, self._lateness)
        played.slow = slow
        played.expect(self._come)
        played.run()
        return played


SWARMS = [((1,) * 8, 20.0, 8), ((2, 2, 2, 2), 20.0, 8), ((3, 3), 100.0, 8), ((5, 2, 1), 20.0, 8)]


@pytest.mark.parametrize(("sizes", "mbit", "mebibytes"), SWARMS)
@pytest.mark.parametrize("share", [1.0, 0.75])
def test_nobody_is_late_where_nothing_happens_even_if_rounds_used_to_be_faster(
    sizes: tuple[int, ...], mbit: float, mebibytes: int, share: float
) -> None:
    lines = Lines(sizes, mbit, mebibytes)
    lines.usually(share)
    assert not lines.play().found


@pytest.mark.parametrize(("sizes", "mbit", "mebibytes"), SWARMS)
@pytest.mark.parametrize("factor", [1.2, 1.6])
def test_nor_where_all_lines_become_slower(
    sizes: tuple[int, ...], mbit: float, mebibytes: int, factor: float
) -> None:
    lines = Lines(sizes, mbit, mebibytes)
    lines.usually(1.0)
    everything = frozenset(("wan", site) for site in range(len(sizes)))
    assert not lines.play((0.3 * lines.calm_s, factor, everything)).found


@pytest.mark.parametrize("at_share", [0.1, 0.4, 0.6])
def test_of_eight_alone_the_one_whose_line_becomes_slow_is_found_and_nobody_else(
    at_share: float,
) -> None:
    lines = Lines((1,) * 8, 20.0, 8)
    lines.usually(1.0)
    victim = 3
    (site,) = (at for at, site in enumerate(lines.plan.sites) if victim in site)
    played = lines.play((at_share * lines.calm_s, 20.0, frozenset([("wan", site)])))
    first_s = min(played.found.values())
    soon = {pair for pair, at_s in played.found.items() if at_s < first_s + AGREE_S}
    assert {late for _, late in soon} == {victim} and len(soon) > 1
    assert first_s < max(lines.calm_s, at_share * lines.calm_s + FIRST_S) + AGREE_S
