"""An all-reduce event by event, over lines with rates and delays: what a prediction is held to.

Chunks queue in lanes (one for each ordered pair of peers), a line serves its lanes by turns, a
lane has a few chunks on the way at most. Nothing here knows how predictions are made.
"""

from __future__ import annotations

import heapq
import itertools
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping

from zoonet.averaging.plan import (
    Plan,
    Tree,
    chunk_bounds,
    members_by_index,
    parent_of,
    receivers_of,
    sources_of,
)
from zoonet.averaging.planner import Payload

Line = tuple[str, int]  # "wan" and a site, or "lan" and a peer; each way apart
Lane = tuple[int, int]  # sender and receiver
Message = tuple[int, bool, float]  # chunk, whether it is a mean, bytes

WINDOW = 8  # chunks of a lane on the way
LAN_DELAY_S = 1e-4


class Wire:
    """Runs one all-reduce among contributors only; sites share their lines."""

    def __init__(
        self,
        plan: Plan,
        contributors: Collection[str],
        payload: Payload,
        rates: Mapping[str, float],
        wan_delay_s: float,
    ) -> None:
        self._plan = plan
        self._payload = payload
        self._rates = rates  # bytes a second of "wan" and "lan"
        self._wan_delay_s = wan_delay_s
        self._active = members_by_index(plan, contributors)
        self._site = {peer: at for at, site in enumerate(plan.sites) for peer in site}
        self._tree = {chunk: tree for tree in plan.trees for chunk in range(tree.first, tree.stop)}
        self._missing = {
            (chunk, owner): len(sources_of(plan, tree, owner, self._active))
            for chunk, tree in self._tree.items()
            for owner in tree.owners
        }
        self._num_means = 0
        self._now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ticks = itertools.count()
        self._queues: dict[Lane, deque[Message]] = defaultdict(deque)
        self._on_the_way: dict[Lane, int] = defaultdict(int)
        self._waiting: dict[Line, deque[Lane]] = defaultdict(deque)
        self._arriving: dict[Line, deque[tuple[Lane, Message]]] = defaultdict(deque)
        self._is_sending: dict[Line, bool] = defaultdict(bool)
        self._is_receiving: dict[Line, bool] = defaultdict(bool)

    def run(self) -> float:
        """Return the seconds until everybody has every mean."""
        for chunk, tree in self._tree.items():
            for peer in self._active:
                self._give(peer, chunk, tree)
        while self._events:
            self._now_s, _, event = heapq.heappop(self._events)
            event()
        assert self._num_means == len(self._tree) * len(self._plan.peers)
        return self._now_s

    def _after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now_s + seconds, next(self._ticks), event))

    # --- the reduction --------------------------------------------------------------------------

    def _give(self, peer: int, chunk: int, tree: Tree) -> None:
        if peer in tree.owners:
            self._add(peer, chunk)
        else:
            parent = parent_of(self._plan, tree, peer)
            assert parent is not None
            self._post(peer, parent, chunk, is_mean=False)

    def _add(self, peer: int, chunk: int) -> None:
        self._missing[chunk, peer] -= 1
        if not self._missing[chunk, peer]:
            root = self._tree[chunk].root
            if peer == root:
                self._pass_on(peer, chunk)
            else:
                self._post(peer, root, chunk, is_mean=False)

    def _pass_on(self, peer: int, chunk: int) -> None:
        self._num_means += 1
        for receiver in receivers_of(self._plan, self._tree[chunk], peer):
            self._post(peer, receiver, chunk, is_mean=True)

    def _take(self, lane: Lane, message: Message) -> None:
        chunk, is_mean, _ = message
        (self._pass_on if is_mean else self._add)(lane[1], chunk)

    # --- the lines ------------------------------------------------------------------------------

    def _line(self, peer: int, lane: Lane) -> Line:
        is_far = self._site[lane[0]] != self._site[lane[1]]
        return ("wan", self._site[peer]) if is_far else ("lan", peer)

    def _seconds(self, line: Line, message: Message) -> float:
        return message[2] / self._rates[line[0]]

    def _post(self, sender: int, receiver: int, chunk: int, *, is_mean: bool) -> None:
        lane = (sender, receiver)
        line = self._line(sender, lane)
        start, stop = chunk_bounds(self._payload.num_values, chunk)
        is_dear = line[0] == "wan" or (is_mean and len(self._plan.sites) > 1)
        size = self._payload.wan_bytes_per_value if is_dear else self._payload.lan_bytes_per_value
        self._queues[lane].append((chunk, is_mean, (stop - start) * size))
        if lane not in self._waiting[line]:
            self._waiting[line].append(lane)
        self._send(line)

    def _send(self, line: Line) -> None:
        waiting = self._waiting[line]
        for _ in range(0 if self._is_sending[line] else len(waiting)):
            lane = waiting.popleft()
            is_open = self._on_the_way[lane] < WINDOW
            message = self._queues[lane].popleft() if is_open else None
            if self._queues[lane]:
                waiting.append(lane)
            if message is not None:
                self._on_the_way[lane] += 1
                self._is_sending[line] = True
                self._after(self._seconds(line, message), self._sent(line, lane, message))
                return

    def _sent(self, line: Line, lane: Lane, message: Message) -> Callable[[], None]:
        def event() -> None:
            self._is_sending[line] = False
            self._send(line)
            delay_s = self._wan_delay_s if line[0] == "wan" else LAN_DELAY_S
            self._after(delay_s, self._landed(lane, message))

        return event

    def _landed(self, lane: Lane, message: Message) -> Callable[[], None]:
        def event() -> None:
            line = self._line(lane[1], lane)
            self._arriving[line].append((lane, message))
            self._receive(line)

        return event

    def _receive(self, line: Line) -> None:
        if not self._is_receiving[line] and self._arriving[line]:
            lane, message = self._arriving[line].popleft()
            self._is_receiving[line] = True
            self._after(self._seconds(line, message), self._received(line, lane, message))

    def _received(self, line: Line, lane: Lane, message: Message) -> Callable[[], None]:
        def event() -> None:
            self._is_receiving[line] = False
            self._on_the_way[lane] -= 1
            self._take(lane, message)
            self._receive(line)
            self._send(self._line(lane[0], lane))

        return event
