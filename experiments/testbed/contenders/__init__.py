"""Whoever can average or train: each a `Contender` or a `Trainee`, chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from experiments.testbed.contenders.base import Contender, Stage, Trainee

# Modules are imported when they are asked for: torch or hivemind take seconds.
_WHERE = {
    "floor": "floor:Floor",
    "gloo": "gloo:Gloo",
    "hivemind": "hivemind_averager:Hivemind",
    "raw-tcp": "raw_tcp:RawTcp",
    "ring": "ring:Ring",
    "rounds": "zoonet_rounds:ZoonetRounds",
    "zoonet": "zoonet_averager:Zoonet",
    "zoonet_job": "zoonet_job:ZoonetJob",
    "hivemind_diloco": "experiments.training.hivemind_diloco:HivemindDiloco",
    "hivemind_state": "experiments.joiner.hivemind_state:HivemindState",
    "raw_senders": "experiments.joiner.raw_senders:RawSenders",
    "zoonet_state": "experiments.joiner.zoonet_state:ZoonetState",
    "hivemind_optimizer": "experiments.training.hivemind_optimizer:HivemindOptimizer",
    "zoonet_training": "experiments.training.zoonet_trainee:ZoonetTraining",
}

__all__ = ["Contender", "Stage", "Trainee", "load", "make"]


def load(name: str) -> tuple[Callable[[Stage, str], Contender | Trainee], str]:
    """Import a contender by its name: (its maker, its variant, which follows a hyphen).

    Raises KeyError for a name that nobody has.
    """
    known = name if name in _WHERE else name.split("-", 1)[0]
    module_name, _, class_name = _WHERE[known].partition(":")
    place = "" if "." in module_name else "experiments.testbed.contenders."
    module = import_module(place + module_name)
    maker: Callable[[Stage, str], Contender | Trainee] = getattr(module, class_name)
    return maker, name.removeprefix(known).removeprefix("-")


def make(name: str, stage: Stage) -> Contender | Trainee:
    """Return a contender by its name. Raises KeyError for a name that nobody has."""
    maker, variant = load(name)
    return maker(stage, variant)
