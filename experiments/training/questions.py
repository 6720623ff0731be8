"""The three questions: who trains under which conditions, and what is made of the figures."""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.table import Table

from experiments.testbed import measuring
from experiments.testbed.bed import Bed
from experiments.testbed.layout import Layout, Link
from experiments.testbed.measuring import Rules, Run, middle, spread
from experiments.testbed.results import Bars, Goal
from experiments.testbed.troupe import Troupe
from experiments.training.job import Job
from experiments.training.trial import Course, Disturb, Lives, run_trial

SPREAD: Final = 4.0  # how many times slower half of the peers are
FIRST_DEATH_AT: Final = 0.25  # of the time between two deaths


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, of whom, and which figure answers it."""

    text: str
    contenders: tuple[str, ...]
    rates_mbit: tuple[float, ...]
    figure: str  # of `Run.more`
    goals: dict[float, float]  # at least so much, by rate
    seconds: float
    smoke_seconds: float
    inner_steps: int = 25


QUESTIONS: Final = {
    "utilisation": Question(
        text="How much of its time does an accelerator train, where links are slow?",
        contenders=(
            "zoonet_training",
            "zoonet_training-ahead2",
            "zoonet_training-int8",
            "zoonet_training-ahead2-int8",
            "hivemind_optimizer-sync",
            "hivemind_optimizer-delayed",
            "hivemind_diloco",
            "hivemind_diloco-int8",
        ),
        rates_mbit=(100.0, 20.0),
        figure="utilisation",
        goals={100.0: 0.99, 20.0: 0.97},
        seconds=75.0,
        smoke_seconds=7.0,
    ),
    "goodput": Question(
        text="How much of live peers' time becomes certified work, where peers die and come back?",
        contenders=("zoonet_training-ahead2-int8", "zoonet_training-int8"),
        rates_mbit=(100.0,),
        figure="certified_share",
        goals={100.0: 0.95},
        seconds=215.0,
        smoke_seconds=12.0,
    ),
    "unequal": Question(
        text="How much of their summed speed do peers have together, half of them 4 times slower?",
        contenders=(
            "zoonet_training-ahead2-int8",
            "zoonet_training-int8",
            "zoonet_training-even-int8",
            "hivemind_diloco",
        ),
        rates_mbit=(100.0,),
        figure="steady_speed_share",
        goals={100.0: 0.95},
        seconds=150.0,
        smoke_seconds=7.0,
    ),
}


def case_of(rate_mbit: float) -> str:
    """How results call a link."""
    return f"{rate_mbit:g} Mbit/s"


def speeds_of(question: str, options: argparse.Namespace, num_peers: int) -> list[float]:
    """How long a step of each peer takes, in seconds."""
    step_s: float = options.step_s
    if question != "unequal":
        return [step_s] * num_peers
    return [step_s * (SPREAD if peer % 2 else 1.0) for peer in range(num_peers)]


def deaths(name: str, options: argparse.Namespace, bed: Bed) -> Disturb:
    """One peer is killed every so often, and comes back later. The seed names whom."""
    chooser = random.Random(options.seed)

    async def disturb(troupe: Troupe, lives: Lives) -> None:
        began = time.monotonic()
        at = FIRST_DEATH_AT * options.death_every_s
        while True:
            await asyncio.sleep(began + at - time.monotonic())
            victim = chooser.choice(sorted(troupe.living))
            lives.died(victim, time.monotonic())
            troupe.actors[victim].signal(signal.SIGKILL)
            bed.signal(victim, signal.SIGKILL)
            await asyncio.sleep(began + at + options.back_after_s - time.monotonic())
            lives.born(victim, time.monotonic())
            await troupe.revive(victim)
            await troupe.ask_all({"do": "train", "contender": name}, 60.0, [victim])
            at += options.death_every_s

    return disturb


async def answer(
    name: str,
    options: argparse.Namespace,
    contenders: Sequence[str],
    keep: Callable[[list[Run]], object],
    folder: Path,
) -> list[Run]:
    """Run every contender on every link. `keep` is given all runs so far after each of them."""
    question, layout = QUESTIONS[name], Layout.parse(options.layout)
    rules = Rules(options.smoke, options.others_cores)
    job = await asyncio.to_thread(
        lambda: Job.make(
            folder / "job",
            text=str(options.text or ""),
            inner_steps=options.inner_steps or question.inner_steps,
            num_peers=layout.num_peers,
            is_small=options.smoke,
        )
    )
    runs: list[Run] = []
    for rate in options.rates:
        link = Link(rate_bits_per_s=rate * 1e6, rtt_s=options.rtt_ms / 1e3)
        async with Bed.open(layout, link) as bed:

            async def measure_one(
                contender: str, lap: int, bed: Bed = bed, rate: float = rate
            ) -> Run:
                course = Course(
                    job=job,
                    step_s=speeds_of(name, options, layout.num_peers),
                    seconds=options.seconds,
                    disturb=deaths(contender, options, bed) if name == "goodput" else None,
                )
                lap_folder = folder / f"{rate:g}-{lap}"
                lap_folder.mkdir(exist_ok=True)
                runs.append(
                    await run_trial(
                        bed, contender, course, lap_folder, rules, case=case_of(rate), lap=lap
                    )
                )
                keep(runs)
                return runs[-1]

            await measuring.by_turns(contenders, options.repeats, measure_one, is_cold=True)
    return runs


def goals_of(name: str, runs: Sequence[Run], options: argparse.Namespace) -> list[Goal]:
    """What was promised, of each of this project's settings."""
    question = QUESTIONS[name]
    ours = [c for c in dict.fromkeys(run.contender for run in runs) if c.startswith("zoonet")]
    return [
        Goal(
            f"{case_of(rate)}: {contender}",
            middle(
                spread(
                    r.more[question.figure] for r in measuring.of(runs, case_of(rate), contender)
                )
            ),
            question.goals.get(rate, max(question.goals.values())),
            at_most=False,
        )
        for rate in options.rates
        for contender in ours
    ]


def table_of(name: str, runs: Sequence[Run], options: argparse.Namespace) -> Table:
    """One line for each contender on each link."""
    figure = QUESTIONS[name].figure
    table = Table(title=QUESTIONS[name].text)
    left = ("link", "contender", "idle, s a round and peer")
    for column in (*left[:2], figure, "certified", "s a round", left[2], "MB", "runs"):
        table.add_column(column, justify="left" if column in left else "right")
    for rate in options.rates:
        for contender in dict.fromkeys(run.contender for run in runs):
            counted = measuring.of(runs, case_of(rate), contender)
            table.add_row(case_of(rate), contender, *_cells(counted, figure))
    return table


def _cells(counted: Sequence[Run], figure: str) -> list[str]:
    if not counted:
        return ["-"] * 5 + ["0"]
    idle = {
        phase: middle(spread(_idle_a_round(run).get(phase, 0.0) for run in counted)) or 0.0
        for phase in dict.fromkeys(phase for run in counted for phase in _idle_a_round(run))
    }
    return [
        str(spread(run.more[figure] for run in counted)),
        str(spread(run.more["certified_share"] for run in counted)),
        str(spread(run.seconds / run.more["num_rounds"] for run in counted)),
        ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in idle.items() if seconds > 0.005),
        str(spread(run.crossing_bytes / 1e6 for run in counted)),
        str(len(counted)),
    ]


def _idle_a_round(run: Run) -> dict[str, float]:
    rounds = run.more["num_rounds"]
    return {phase: seconds / rounds for phase, seconds in run.more["idle_s_by_phase"].items()}


def bars_of(name: str, runs: Sequence[Run], options: argparse.Namespace) -> list[Bars]:
    """One panel for each link."""
    question = QUESTIONS[name]
    return [
        Bars(
            case_of(rate),
            {
                contender: spread(
                    run.more[question.figure]
                    for run in measuring.of(runs, case_of(rate), contender)
                )
                for contender in dict.fromkeys(run.contender for run in runs)
            },
            question.goals.get(rate),
            "goal",
        )
        for rate in options.rates
    ]
