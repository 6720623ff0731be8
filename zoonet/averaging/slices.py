"""How much of the vector each peer averages, and how much of its site's it adds up.

For each contributor i, of a site with m peers of which n contribute, look for

    x_i   share of the vector of which i is the root
    o_i   share that i owns in its site; so of o_i - x_i it is an owner, but not the root

With s sites, w bytes a value across them and from a root's mean, l bytes a value from a leaf to
its owner, and all of it pipelined (both phases, both directions at once), a peer carries for
each value of the vector:

    WAN up     w [(s - 1) x_i + (o_i - x_i)]     means to the other sites, its site's sums
    WAN down   w [(a - 1) x_i + (o_i - x_i)]     sums of the a sites that contribute, means
    LAN up     l (1 - o_i) + w (m - 1) o_i       its part to other owners, means to its site
    LAN down   l (n - 1) o_i + w (1 - o_i)       its site's parts, others' means

Each over its rate is a time, and the round takes the longest of them. That minimax is a linear
program: minimise T with "load <= T rate" for every one, sum of x = 1, sum of o in each site = 1,
x_i <= o_i. With a site for every peer it is o_i = 1 and (s - 2) x_i + 1 <= T rate_i, the
butterfly weighted by links; with one site no WAN is left, and it is the butterfly as well.

T alone leaves freedom: any root will do where another link is the bottleneck. So, far behind T
(weight `TASTE`), the shares are to be in proportion to the rates: with r_i the peer's part of all
rates, minimise q with x_i <= q r_i, and the same for o_i in each site. Equal peers then get equal
shares, and whoever is lost takes little with it.

N = 2 * contributors + 2 + sites: columns of the program (x, o, T, q, one q for each site)
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from zoonet.averaging.links import Rates

TASTE: Final = 1e-4
LIMIT_S: Final = 0.5  # for the solver; it needs milliseconds

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Crew:
    """The peers of one site, by index."""

    contributors: tuple[int, ...]
    followers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Slices:
    """Shares of the vector, by index of the contributor."""

    roots: dict[int, float]
    owned: dict[int, float]


@functools.cache
def preload() -> tuple[Any, Any]:
    """Import the solver, which takes some tenths of a second; returns linprog and csr_array."""
    from scipy.optimize import linprog
    from scipy.sparse import csr_array

    return linprog, csr_array


def equal(crews: Sequence[Crew]) -> Slices:
    """Shares that ask for no solver and know no links."""
    num = sum(len(crew.contributors) for crew in crews)
    every = [(peer, len(crew.contributors)) for crew in crews for peer in crew.contributors]
    return Slices({peer: 1 / num for peer, _ in every}, {peer: 1 / size for peer, size in every})


def solve(crews: Sequence[Crew], rates: Sequence[Rates], wan: float, lan: float) -> Slices:
    """Return the best shares; equal ones where the solver fails.

    `rates` are by index, `wan` and `lan` bytes a value across sites and within them.
    """
    program = _Program(crews, rates, wan, lan)
    try:
        found = program.solved()
    except ValueError as error:
        log.warning("no solution for the sizes of slices, taking equal ones: %s", error)
        return equal(crews)
    num = len(program.peers)
    return Slices(
        dict(zip(program.peers, found[:num], strict=True)),
        dict(zip(program.peers, found[num : 2 * num], strict=True)),
    )


class _Program:
    """The linear program, row by row. Rates are in units of an average site's."""

    def __init__(
        self, crews: Sequence[Crew], rates: Sequence[Rates], wan: float, lan: float
    ) -> None:
        self._crews = [crew for crew in crews if crew.contributors]
        self.peers = [peer for crew in self._crews for peer in crew.contributors]
        self._num_sites = len(crews)
        capable = [rates[p].lan if len(crews) == 1 else _wan_rate(rates[p]) for p in self.peers]
        unit = sum(capable) / len(self._crews)
        self._parts = [rate / unit for rate in capable]
        self._rates = [
            Rates(rates[p].up / unit, rates[p].down / unit, rates[p].lan / unit) for p in self.peers
        ]
        self._lan = lan / wan  # bytes in units of those across sites
        self._at_most: list[tuple[dict[int, float], float]] = []
        self._exactly: list[tuple[dict[int, float], float]] = []
        num = len(self.peers)
        self._owned, self._time, self._taste = num, 2 * num, 2 * num + 1
        self._num_columns = 2 * num + 2 + len(self._crews)
        self._write()

    def _write(self) -> None:
        num, start = len(self.peers), 0
        self._exactly.append((dict.fromkeys(range(num), 1.0), 1.0))
        for number, crew in enumerate(self._crews):
            stop = start + len(crew.contributors)
            self._write_site(crew, range(start, stop), self._taste + 1 + number)
            start = stop

    def _write_site(self, crew: Crew, columns: range, taste: int) -> None:
        site_part = sum(self._parts[x] for x in columns)
        num_peers = len(crew.contributors) + len(crew.followers)
        self._exactly.append((dict.fromkeys((self._owned + x for x in columns), 1.0), 1.0))
        for x in columns:
            o, part = self._owned + x, self._parts[x]
            self._at_most.append(({x: 1.0, o: -1.0}, 0.0))
            self._at_most.append(({x: 1.0, self._taste: -part / len(self._crews)}, 0.0))
            self._at_most.append(({o: 1.0, taste: -part / site_part}, 0.0))
            if self._num_sites > 1:
                up, down = self._rates[x].up, self._rates[x].down
                self._at_most.append(({x: self._num_sites - 2, o: 1.0, self._time: -up}, 0.0))
                self._at_most.append(({x: len(self._crews) - 2, o: 1.0, self._time: -down}, 0.0))
            if num_peers > 1:
                self._write_lan(len(crew.contributors), num_peers, o, self._rates[x].lan)

    def _write_lan(self, num_contributors: int, num_peers: int, o: int, rate: float) -> None:
        mean = 1.0 if self._num_sites > 1 else self._lan  # bytes of a value of the mean
        up = mean * (num_peers - 1) - self._lan
        down = self._lan * (num_contributors - 1) - mean
        self._at_most.append(({o: up, self._time: -rate}, -self._lan))
        self._at_most.append(({o: down, self._time: -rate}, -mean))

    def solved(self) -> list[float]:
        """Values of the columns. Raises ValueError where there are none."""
        linprog, _ = preload()
        costs = [0.0] * self._num_columns
        costs[self._time], costs[self._taste] = 1.0, TASTE
        for column in range(self._taste + 1, self._num_columns):
            costs[column] = TASTE / len(self._crews)
        result = linprog(
            costs,
            A_ub=self._matrix(self._at_most),
            b_ub=[bound for _, bound in self._at_most],
            A_eq=self._matrix(self._exactly),
            b_eq=[bound for _, bound in self._exactly],
            bounds=(0, None),
            method="highs",
            options={"time_limit": LIMIT_S},
        )
        if not result.success:
            raise ValueError(result.message)
        return [max(0.0, float(value)) for value in result.x]

    def _matrix(self, rows: Sequence[tuple[Mapping[int, float], float]]) -> Any:
        _, csr_array = preload()
        values = [value for row, _ in rows for value in row.values()]
        columns = [column for row, _ in rows for column in row]
        starts = [0]
        for row, _ in rows:
            starts.append(starts[-1] + len(row))
        return csr_array((values, columns, starts), shape=(len(rows), self._num_columns))


def _wan_rate(rates: Rates) -> float:
    return min(rates.up, rates.down)
