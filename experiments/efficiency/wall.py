"""From tokens to time: with what real peers needed for a round on a link. Pure but for reading.

A line is one link of one result of `experiments.training`: there all contenders were measured in
the same run, with a virtual accelerator of the same speed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from experiments.efficiency import table
from experiments.efficiency.contenders import Contender, contenders_of
from experiments.testbed.measuring import middle

# Who of experiments.training stands for whom, the preferred first.
WAITING: Final = ("zoonet_training-int8", "zoonet_training")
AHEAD: Final = ("zoonet_training-ahead2-int8", "zoonet_training-ahead2")
IN_SITES: Final = ("zoonet_training-site5-int8", "zoonet_training-site5")
OPEN_DILOCO: Final = ("hivemind_diloco", "hivemind_diloco-int8")
SYNCHRONOUS: Final = "hivemind_optimizer-sync"
DELAYED: Final = "hivemind_optimizer-delayed"
GOALS: Final = {"hivemind.Optimizer": 8.0, "OpenDiLoCo-style": 1.3}


@dataclass(frozen=True, slots=True)
class Measured:
    """One contender's peers on a link: medians over the runs that count."""

    round_s: float  # from one certificate to the next
    utilisation: float
    goodput: float  # certified steps, as a share of those that were taken
    num_runs: int


@dataclass(frozen=True, slots=True)
class Line:
    """A link, and what contenders needed on it."""

    source: str
    link: str
    step_s: float
    inner_steps: int
    measured: Mapping[str, Measured]

    def of(self, names: Iterable[str]) -> tuple[str, Measured] | None:
        """The first of these that was measured here."""
        return next(((name, self.measured[name]) for name in names if name in self.measured), None)


def lines_of(paths: Iterable[Path]) -> list[Line]:
    """Read results of experiments.training; those without a run that counts say nothing."""
    found = []
    for path in paths:
        result = json.loads(path.read_text())
        settings = result["settings"]
        for link in dict.fromkeys(run["case"] for run in result["runs"]):
            measured = _measured([run for run in result["runs"] if run["case"] == link])
            if measured:
                step_s, inner_steps = settings["step_s"], settings["inner_steps"]
                found.append(Line(path.name, link, step_s, inner_steps, measured))
    return found


def _measured(runs: Sequence[Mapping[str, Any]]) -> dict[str, Measured]:
    found = {}
    for name in dict.fromkeys(run["contender"] for run in runs):
        counted = [
            run["more"]
            for run in runs
            if run["contender"] == name and not run["why_not"] and run["more"]["num_rounds"]
        ]
        if counted:
            found[name] = Measured(
                statistics.median(round_s(more) for more in counted),
                statistics.median(more["utilisation"] for more in counted),
                statistics.median(goodput(more) for more in counted),
                len(counted),
            )
    return found


def round_s(more: Mapping[str, Any]) -> float:
    """Seconds of a round: from the first certificate to the last, where there are two.

    The first round is left out: it has no predecessor to go ahead in, and opens connections.
    """
    at = [entry["at_s"] for entry in more["rounds"]]
    return (at[-1] - at[0]) / (len(at) - 1) if len(at) > 1 else float(at[0])


def goodput(more: Mapping[str, Any]) -> float:
    """Certified steps over steps taken: in the steady part of a run, where it has one.

    In a short one the steps under way at its end are a large share, and none is lost.
    """
    if more["num_rounds"] > 3 and more.get("steady_utilisation"):
        return float(min(1.0, more["steady_certified_share"] / more["steady_utilisation"]))
    return float(min(1.0, more["certified_share"] / more["utilisation"]))


# --- P5: E ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Efficiency:
    """E of a contender on a link, in its parts."""

    contender: str
    link: str
    source: str
    measured_as: str
    token_efficiency: float
    utilisation: float
    goodput: float
    num_seeds: int
    num_runs: int

    @property
    def whole(self) -> float:
        """E."""
        return self.token_efficiency * self.utilisation * self.goodput


def stands_for(contender: Contender) -> tuple[str, ...]:
    """Whose round a contender's lasts as long as."""
    if contender.site_steps:
        return IN_SITES if contender.site_steps > 1 else ()
    return AHEAD if contender.early else WAITING


def efficiencies(
    entries: Sequence[table.Entry], num_peers: int, lines: Sequence[Line]
) -> list[Efficiency]:
    """E of each of this project's contenders on each link on which its peers were measured."""
    ours = {c.name: c for c in contenders_of(num_peers) if c.is_ours}
    found = []
    for worth in table.worths(entries, num_peers):
        tokens = middle(worth.tokens)
        if worth.contender not in ours or tokens is None:
            continue
        for line in lines:
            known = line.of(stands_for(ours[worth.contender]))
            if known is not None:
                name, one = known
                found.append(
                    Efficiency(
                        contender=worth.contender,
                        link=line.link,
                        source=line.source,
                        measured_as=name,
                        token_efficiency=tokens,
                        utilisation=one.utilisation,
                        goodput=one.goodput,
                        num_seeds=len(worth.losses),
                        num_runs=one.num_runs,
                    )
                )
    return found


# --- P6: time to a loss ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast somebody trains on a link; `learns_as` is the contender with its losses."""

    name: str
    family: str
    learns_as: str
    measured_as: str
    tokens_per_s: float  # that count, of all peers


@dataclass(frozen=True, slots=True)
class Race:
    """How long one of this project's contenders takes to its own last loss, and a rival to it."""

    contender: str
    link: str
    source: str
    target: float  # held-out loss
    seconds: float
    family: str  # of the rival, whose quickest setting this is
    rival: str
    rival_s: float
    bound: str  # "at least": the rival does not come there; "at most": is there at its first look
    num_seeds: int

    @property
    def ratio(self) -> float:
        """How many times faster."""
        return self.rival_s / self.seconds


def step_time_s(multiple: float, step_s: float, averaging_s: float, *, is_delayed: bool) -> float:
    """Seconds of one optimizer step of so many inner steps' tokens.

    Delayed, the next step's gradients are computed meanwhile, so the longer of both counts.
    """
    computing_s = multiple * step_s
    return max(computing_s, averaging_s) if is_delayed else computing_s + averaging_s


def averaging_s(line: Line) -> tuple[str, float] | None:
    """What one all-reduce of hivemind.Optimizer takes, and of whom that was measured.

    Of the synchronous one it is what a round takes beyond its steps. Else that of DiLoCo over
    hivemind's averager in fp32: the same bytes, without the optimizer's own upkeep.
    """
    for name in (SYNCHRONOUS, *OPEN_DILOCO[:1]):
        if name in line.measured:
            extra_s = line.measured[name].round_s - line.inner_steps * line.step_s
            return name, max(0.0, extra_s)
    return None


def paces_of(num_peers: int, line: Line, step_tokens: int) -> list[Pace]:
    """Everybody whose time on a link is known. `step_tokens`: of a step of all peers."""
    found = []
    round_tokens = line.inner_steps * step_tokens
    averaging = averaging_s(line)
    for one in contenders_of(num_peers):
        name = one.name
        if one.is_ours:
            known = line.of(stands_for(one))
            if known is not None:
                speed = round_tokens * known[1].goodput / known[1].round_s
                found.append(Pace(name, "ours", name, known[0], speed))
            continue
        if one.is_twin:
            found.append(Pace(name, "centralised", name, "no network", step_tokens / line.step_s))
        if averaging is not None and one.batch >= 1:
            multiple, kind = float(one.batch), "delayed" if one.is_delayed else "synchronous"
            took_s = step_time_s(multiple, line.step_s, averaging[1], is_delayed=one.is_delayed)
            label = f"hivemind.Optimizer, {kind}, batch x{multiple:g}"
            speed = multiple * step_tokens / took_s
            found.append(Pace(label, "hivemind.Optimizer", name, averaging[0], speed))
    for name in OPEN_DILOCO:
        if rival := line.measured.get(name):
            speed = round_tokens * rival.goodput / rival.round_s
            found.append(Pace(name, "OpenDiLoCo-style", "diloco", name, speed))
    return found


def race(
    entries: Sequence[table.Entry], num_peers: int, line: Line, ours: Pace, of: Pace
) -> Race | None:
    """One of this project's settings against a rival: medians of the seeds that both have."""
    ends = table.ends_of(entries, ours.learns_as, num_peers)
    needed, bounds, targets, tokens = [], set(), [], []
    for seed, end in ends.items():
        points, target = table.points_of(entries, of.learns_as, num_peers, seed), table.loss_of(end)
        if not points:
            continue
        reached = table.tokens_to(points, target)
        if of.learns_as == ours.learns_as:
            reached = table.Reached(end["tokens"])
        needed.append(reached.tokens if reached else max(points)[0])
        bounds |= {"at least"} if reached is None else {"at most"} if reached.is_bound else set()
        targets.append(target)
        tokens.append(end["tokens"])
    if not needed:
        return None
    return Race(
        contender=ours.name,
        link=line.link,
        source=line.source,
        target=statistics.median(targets),
        seconds=statistics.median(tokens) / ours.tokens_per_s,
        family=of.family,
        rival=of.name,
        rival_s=statistics.median(needed) / of.tokens_per_s,
        bound=min(bounds, default=""),
        num_seeds=len(needed),
    )


def races(
    entries: Sequence[table.Entry], num_peers: int, lines: Sequence[Line], step_tokens: int
) -> list[Race]:
    """Each of this project's settings against the quickest setting of each family of rivals.

    A setting that does not reach the loss counts only where none of its family does.
    """
    ready = {worth.contender for worth in table.worths(entries, num_peers)}
    found: list[Race] = []
    for line in lines:
        paces = [p for p in paces_of(num_peers, line, step_tokens) if p.learns_as in ready]
        for ours in (pace for pace in paces if pace.family == "ours"):
            for family in dict.fromkeys(pace.family for pace in paces if pace.family != "ours"):
                all_of = [
                    race(entries, num_peers, line, ours, rival)
                    for rival in paces
                    if rival.family == family
                ]
                run = [one for one in all_of if one is not None]
                if run:
                    found.append(min(run, key=lambda one: (one.bound == "at least", one.rival_s)))
    return found
