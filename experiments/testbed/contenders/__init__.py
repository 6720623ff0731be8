"""Whoever can average: each a `Contender`, chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from experiments.testbed.contenders.base import Contender, Stage

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
}

__all__ = ["Contender", "Stage", "load", "make"]


def load(name: str) -> tuple[Callable[[Stage, str], Contender], str]:
    """Import a contender by its name: (its maker, its variant, which follows a hyphen).

    Raises KeyError for a name that nobody has.
    """
    known = name if name in _WHERE else name.split("-", 1)[0]
    module_name, _, class_name = _WHERE[known].partition(":")
    module = import_module(f"experiments.testbed.contenders.{module_name}")
    maker: Callable[[Stage, str], Contender] = getattr(module, class_name)
    return maker, name.removeprefix(known).removeprefix("-")


def make(name: str, stage: Stage) -> Contender:
    """Return a contender by its name. Raises KeyError for a name that nobody has."""
    maker, variant = load(name)
    return maker(stage, variant)
