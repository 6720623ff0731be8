"""One contender trains for a while, undisturbed or not; and what its peers' time went into."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from experiments.testbed.bed import Bed
from experiments.testbed.machine_load import Moment
from experiments.testbed.measuring import Rules, Run, tell
from experiments.testbed.nursery import Nursery
from experiments.testbed.troupe import ActorFailed, Troupe
from experiments.training import accounting
from experiments.training.accounting import CertifiedRound, Figures, Window
from experiments.training.job import Job

ANSWER_S: Final = 60.0
MAX_OVERRUN_SHARE: Final = 0.01  # of steps' time: beyond it the machine was too slow to pretend

Disturb = Callable[[Troupe, "Lives"], Awaitable[None]]


@dataclass(slots=True)
class Lives:
    """When each peer was alive: from the start of its process to its death, monotonic."""

    ended: dict[int, list[Window]] = field(default_factory=dict)
    since: dict[int, float] = field(default_factory=dict)
    num_deaths: int = 0

    def born(self, peer: int, at: float) -> None:
        """Its process begins."""
        self.since[peer] = at

    def died(self, peer: int, at: float) -> None:
        """It is killed."""
        self.num_deaths += 1
        self.ended.setdefault(peer, []).append((self.since.pop(peer), at))

    def spans(self) -> dict[int, list[Window]]:
        """Every peer's, up to now where it lives."""
        found = {peer: list(spans) for peer, spans in self.ended.items()}
        for peer, since in self.since.items():
            found.setdefault(peer, []).append((since, float("inf")))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What is to be run."""

    job: Job
    step_s: Sequence[float]  # of each peer
    seconds: float
    disturb: Disturb | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What peers have told, and when they lived."""

    told: dict[int, Figures]  # of who lives at the end
    lives: dict[int, list[Window]]
    num_deaths: int
    asked_at: float
    crossing_bytes: int

    @property
    def rounds(self) -> list[CertifiedRound]:
        """Those that count."""
        rounds = accounting.certified_rounds(self.told.values())
        return [entry for entry in rounds if entry.at <= self.asked_at]

    @property
    def window(self) -> Window:
        """From the first step of anybody, which follows the first plan, to the last certificate."""
        undisturbed = [f for f in self.told.values() if f["began"]]
        start = min((figures["began"][0] for figures in undisturbed), default=self.asked_at)
        stop = self.rounds[-1].at if self.rounds else self.asked_at
        return start, max(stop, start + 1e-6)  # where nothing was trained shares are 0

    @property
    def steady_window(self) -> Window:
        """From the second certificate on, where there are enough: speeds are known then."""
        rounds = self.rounds
        return (rounds[1].at, rounds[-1].at) if len(rounds) > 3 else self.window

    def steadily_alive(self) -> list[int]:
        """Peers that lived all the time."""
        return [peer for peer, spans in self.lives.items() if len(spans) == 1 and peer in self.told]


async def run_trial(
    bed: Bed, name: str, course: Course, folder: Path, rules: Rules, *, case: str, lap: int
) -> Run:
    """Start a contender's peers, let them train, take their accounts, end them."""
    why_not = await rules.link_complaint(bed)
    options = {"job": str(course.job.folder), "step_s": list(course.step_s)}
    num_values = course.job.prepared.num_parameters
    before = Moment.now()
    try:
        async with (
            Nursery.open([name]) as nursery,
            Troupe.open(bed, [name], nursery, num_values, folder, options) as troupe,
        ):
            before = Moment.now()
            await bed.line_figures()
            outcome = await _train(bed, troupe, name, course)
            others_cores = Moment.now().others_cores_since(before)
            line = await bed.line_figures()
    except ActorFailed as error:
        failed = Run(case=case, contender=name, lap=lap, seconds=0.0, why_not=f"failed: {error}")
        tell(failed)
        return failed
    more = figures_of(outcome, course.step_s) | {"delay_line": line}
    why_not = why_not or rules.line_complaint(line) or _complaint(more, others_cores, rules)
    run = Run(
        case=case,
        contender=name,
        lap=lap,
        seconds=more["seconds"],
        crossing_bytes=outcome.crossing_bytes,
        load_1_min=round(os.getloadavg()[0], 2),
        others_cores=round(others_cores, 3),
        why_not=why_not,
        more=more,
    )
    tell(run)
    return run


async def _train(bed: Bed, troupe: Troupe, name: str, course: Course) -> Outcome:
    lives = Lives()
    bytes_before = bed.crossing()
    began = time.monotonic()
    for peer in troupe.actors:
        lives.born(peer, began)
    await troupe.ask_all({"do": "train", "contender": name}, ANSWER_S)
    disturbing = asyncio.create_task(_disturb(troupe, lives, course))
    try:
        await asyncio.sleep(began + course.seconds - time.monotonic())
        asked_at = time.monotonic()
        if disturbing.done():
            disturbing.result()
    finally:
        disturbing.cancel()
        await asyncio.gather(disturbing, return_exceptions=True)
    crossed = bed.crossing() - bytes_before
    order = {"do": "figures", "contender": name}
    answers = await troupe.ask_all(order, ANSWER_S, troupe.living)
    return Outcome(
        told={peer: answer["figures"] for peer, answer in answers.items()},
        lives=lives.spans(),
        num_deaths=lives.num_deaths,
        asked_at=asked_at,
        crossing_bytes=crossed.sent_bytes,
    )


async def _disturb(troupe: Troupe, lives: Lives, course: Course) -> None:
    if course.disturb is not None:
        await course.disturb(troupe, lives)


def _complaint(more: Mapping[str, Any], others_cores: float, rules: Rules) -> str:
    if not more["num_rounds"]:
        return "failed: not a single round"
    if rules.is_smoke:
        return ""
    if others_cores > rules.max_others_cores:
        return f"busy machine: others used {others_cores:.2f} cores"
    if more["overrun_share"] > MAX_OVERRUN_SHARE:
        return f"busy machine: steps took {more['overrun_share']:.1%} longer than they should"
    return ""


def figures_of(outcome: Outcome, step_s: Sequence[float]) -> dict[str, Any]:
    """Every figure of a run; shares are of the peers' time in the window."""
    window, steady = outcome.window, outcome.steady_window
    rounds, speeds = outcome.rounds, dict(enumerate(step_s))
    whole = outcome.steadily_alive()
    told = [outcome.told[peer] for peer in whole]
    seconds = window[1] - window[0]
    busy = [accounting.busy_s(f["began"], f["step_s"], window) / seconds for f in told]
    num_steps = sum(len(f["began"]) * f["step_s"] for f in told)
    return {
        "seconds": seconds,
        "num_rounds": len(rounds),
        "utilisation": _utilisation(told, window),
        "utilisation_by_peer": busy,
        "certified_share": accounting.goodput(rounds, speeds, outcome.lives, window),
        "steady_certified_share": accounting.goodput(rounds, speeds, outcome.lives, steady),
        "speed_share": accounting.speed_share(rounds, speeds, window),
        "steady_speed_share": accounting.speed_share(rounds, speeds, steady),
        "steady_utilisation": _utilisation(told, steady),
        "idle_s_by_phase": _idle(told, window),
        "steady_idle_s_by_phase": _idle(told, steady),
        "overrun_share": sum(f["overrun_s"] for f in told) / max(1e-9, num_steps),
        "num_deaths": outcome.num_deaths,
        "back_at_work": back_at_work(outcome),
        "rounds": [
            {"at_s": entry.at - window[0], "slots": list(entry.slots.values())} for entry in rounds
        ],
        "trainers_say": _trainers_say(told),
        "sites": [figures["site"] for figures in told if figures.get("site")],
        "heads": sorted({figures.get("digest", "") for figures in told}),
    }


def _utilisation(told: Sequence[Figures], window: Window) -> float:
    shares = [accounting.busy_s(f["began"], f["step_s"], window) for f in told]
    return statistics.mean(shares) / (window[1] - window[0]) if shares else 0.0


def _idle(told: Sequence[Figures], window: Window) -> dict[str, float]:
    """Seconds without a step, of the mean peer, by what it was at."""
    idle: dict[str, float] = {}
    for figures in told:
        phases = [(at, name) for at, name in figures.get("phases", ())]
        found = accounting.idle_by_phase(figures["began"], figures["step_s"], phases, window)
        for name, seconds in found.items():
            idle[name] = idle.get(name, 0.0) + seconds / len(told)
    return idle


def back_at_work(outcome: Outcome) -> list[dict[str, Any]]:
    """Of each peer that has come back and lives: seconds from its new process to its first step,
    and what it was at until then.
    """
    found = []
    for peer, spans in outcome.lives.items():
        figures, (since, until) = outcome.told.get(peer), spans[-1]
        if len(spans) == 1 or figures is None or until < outcome.asked_at:
            continue
        began = figures["began"]
        window = (since, began[0] if began else outcome.asked_at)
        phases = [(at, name) for at, name in figures.get("phases", ())]
        idle = accounting.idle_by_phase((), figures["step_s"], phases, window)
        found.append({"peer": peer, "after_s": window[1] - window[0], "idle_s_by_phase": idle})
    return found


def _trainers_say(told: Sequence[Figures]) -> dict[str, float] | None:
    """The product's own account, as a cross-check: seconds of steps and of idling, up to the last
    answer, of all peers. The idling before the first plan is part of it.
    """
    answers = [answer for figures in told for answer in figures.get("trained", ())]
    if not answers:
        return None
    return {
        "slots": sum(answer["slots"] for answer in answers),
        "seconds": sum(answer["seconds"] for answer in answers),
        "idle_s": sum(answer["idle_s"] for answer in answers),
    }
