"""How much of peers' time goes into training that counts?

Three questions. utilisation: 8 peers behind links of their own (100 and 20 Mbit/s, 50 ms); goodput:
one of them is killed every minute and comes back after 30 s; unequal: half of them are four times
slower. Every peer really trains a small GPT on real text; each of its steps is made to last as long
as on an accelerator of a given speed (see `accelerator`).

    sudo python -m experiments.training --only utilisation
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any, Final

from experiments.testbed import command, kernel, results
from experiments.testbed.machine_load import MAX_OTHERS_CORES
from experiments.testbed.measuring import Run
from experiments.training import questions
from experiments.training.questions import QUESTIONS
from experiments.training.trial import MAX_OVERRUN_SHARE

NAME: Final = "training"
IN_SITES: Final = ("zoonet_training-site1", "zoonet_training-site5")  # for layouts such as 2x4
EVERYBODY: Final = tuple(
    dict.fromkeys((*(c for q in QUESTIONS.values() for c in q.contenders), *IN_SITES))
)
CAVEATS: Final = (
    "A step is virtual: it computes some milliseconds on this machine's cores, then waits until "
    "its time is over. A gap of up to 5 ms between two steps is taken for a device's queue.",
    "Control messages go over plain TCP between namespaces, not through a libp2p daemon; bulk "
    "bytes as in the product. Nothing is evaluated or published meanwhile.",
    "A peer that comes back is forked from a process that has imported everything: it is back "
    "some seconds earlier than a real one.",
)


def parse() -> argparse.Namespace:
    """The command's options."""
    parser = command.parser(NAME, __doc__)
    parser.add_argument("--only", choices=tuple(QUESTIONS), help="one of the questions")
    parser.add_argument("--layout", default="1x8", help="peers of each site (default 1x8)")
    parser.add_argument("--rates-mbit", help="by comma; default as the question has it")
    parser.add_argument("--rtt-ms", type=float, default=50)
    parser.add_argument("--step-s", type=float, default=0.4, help="of a fast peer (default 0.4)")
    parser.add_argument("--inner-steps", type=int, default=0, help="H; 0: the question's own")
    parser.add_argument("--seconds", type=float, default=0, help="of each run; 0: its own")
    parser.add_argument("--death-every-s", type=float, default=60)
    parser.add_argument("--back-after-s", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of who dies")
    parser.add_argument("--text", type=Path, help="default: Python's own library")
    options = parser.parse_args()
    if options.smoke:
        options.layout, options.rates_mbit, options.rtt_ms = "1x3", "50", 10.0
        options.step_s, options.inner_steps, options.repeats = 0.05, 12, 1
        options.death_every_s, options.back_after_s = 20.0, 2.0  # one death, after 5 s
    return options


def settings_of(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """What a repetition needs to know."""
    return {
        "layout": options.layout,
        "rates_mbit_of_each_way_of_a_site": options.rates,
        "rtt_s": options.rtt_ms / 1e3,
        "step_s": options.step_s,
        "slow_peers_factor": questions.SPREAD if name == "unequal" else 1.0,
        "inner_steps": options.inner_steps or QUESTIONS[name].inner_steps,
        "seconds": options.seconds,
        "death_every_s": options.death_every_s if name == "goodput" else 0,
        "back_after_s": options.back_after_s if name == "goodput" else 0,
        "seed": options.seed,
        "repeats": options.repeats,
        "others_cores_allowed": options.others_cores,
        "overrun_share_allowed": MAX_OVERRUN_SHARE,
    }


def settle(options: argparse.Namespace, name: str) -> None:
    """Fill in what depends on the question."""
    question = QUESTIONS[name]
    given = [float(rate) for rate in (options.rates_mbit or "").split(",") if rate]
    options.rates = given or list(question.rates_mbit)
    usual = question.smoke_seconds if options.smoke else question.seconds
    options.seconds = options.given_seconds or usual


def caveats(options: argparse.Namespace, runs: list[Run]) -> tuple[str, ...]:
    """What a reader of the figures must know."""
    if options.others_cores <= MAX_OTHERS_CORES:
        return CAVEATS
    most = max((run.others_cores for run in runs if run.counts), default=0.0)
    busy = f"The machine was busy: other programs used up to {most:.1f} cores in runs that count."
    return (*CAVEATS, busy)


def write(options: argparse.Namespace, name: str, runs: list[Run]) -> Path:
    """Write what there is so far: a benchmark that is cut short keeps it."""
    return results.write(
        NAME,
        QUESTIONS[name].text,
        runs,
        questions.goals_of(name, runs, options),
        settings=settings_of(options, name),
        is_smoke=options.smoke,
        out=results.beside(options.out, NAME, name, is_smoke=options.smoke),
        more={"caveats": caveats(options, runs)},
    )


def main() -> None:
    """Run, print tables, write a JSON and a plot for each question."""
    options = parse()
    command.require(kernel.require_namespaces)
    options.given_seconds = options.seconds
    for name, question in QUESTIONS.items():
        if options.only not in (None, name):
            continue
        settle(options, name)
        usual = question.contenders[:1] if options.smoke else question.contenders
        names = command.chosen(options, EVERYBODY, usual)
        keep = partial(write, options, name)
        runs = command.run(partial(questions.answer, name, options, names, keep))
        path, goals = keep(runs), questions.goals_of(name, runs, options)
        bars = questions.bars_of(name, runs, options)
        results.plot(path.with_suffix(".png"), f"Training: {name}", question.figure, bars)
        results.show(questions.table_of(name, runs, options), results.goals_table(goals))


if __name__ == "__main__":
    main()
