"""Four ways in which a peer is lost, and three places where it hurts."""

from __future__ import annotations

import signal
from typing import Any, Final, Literal, get_args

from experiments.testbed.bed import Bed
from experiments.testbed.layout import Layout
from experiments.testbed.troupe import Troupe

Fault = Literal["reset", "silent", "frozen", "slow"]
Role = Literal["leaf", "root", "gateway", "any", "coordinator"]
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)
ROLES: Final[tuple[Role, ...]] = get_args(Role)
SLOWNESS: Final = 20.0
LEAF_AT: Final = 0.1  # of a round: later on a leaf has sent everything, and its loss costs nothing
# What a round may take longer than an undisturbed one.
GOAL_S: Final[dict[Fault, float]] = {"reset": 0.5, "silent": 2.0, "frozen": 2.0, "slow": 2.0}


def victim_of(role: Role, layout: Layout, coordinator: int | None) -> int:
    """Who is lost: the first site's first peer is the root, the other sites' first are gateways.

    With "any" the plan is the planner's own, in which everyone has every role in some tree. But
    for the role of that name, the coordinator is spared where another peer has the same role.
    """
    if role == "root":
        return 0
    if role == "gateway":
        return layout.members(1).start
    if role == "coordinator" and coordinator is not None:
        return coordinator
    last = layout.members(len(layout.sites) - 1)
    return next(peer for peer in (*reversed(last), 0) if peer != coordinator)


def options_of(role: Role, layout: Layout) -> dict[str, Any]:
    """What the contender is told, so that the victim has its role in every tree."""
    # Its survivors may try again as a smaller group.
    rival = {"hivemind": {"min_group_size": 2}}
    if role in ("any", "coordinator"):
        return rival
    # The planner gives the work to who is fast: the first peers of the sites. The last is slow.
    firsts = {layout.members(site).start: 1.0 for site in range(1, len(layout.sites))}
    slow = dict.fromkeys(range(layout.num_peers), 0.01)
    return rival | {"speeds": slow | firsts | {0: 100.0}}


def inflict(fault: Fault, bed: Bed, troupe: Troupe, victim: int) -> None:
    """Lose the peer."""
    match fault:
        case "reset":  # its kernel tells the others
            troupe.actors[victim].signal(signal.SIGKILL)
            bed.signal(victim, signal.SIGKILL)
        case "silent":  # its packets vanish
            bed.cut(victim)
        case "frozen":  # its kernel still acknowledges what arrives
            bed.signal(victim, signal.SIGSTOP)
        case "slow":
            bed.slow(victim, bed.link.rate_bits_per_s / SLOWNESS)


def undo(fault: Fault, bed: Bed, troupe: Troupe, victim: int) -> None:
    """Take back what can be taken back: a killed peer stays dead."""
    if fault == "frozen":
        bed.signal(victim, signal.SIGCONT)
    bed.heal()
