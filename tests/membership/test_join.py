"""In which order a peer looks for the swarm."""

from __future__ import annotations

from zoonet.membership import (
    Dial,
    FoundSwarm,
    Joined,
    Joining,
    SearchLan,
    Source,
    Step,
    after_dial,
    after_search,
    next_step,
)


def walk(state: Joining, *, on_lan: tuple[str, ...] = (), answers: set[str]) -> list[Step]:
    """Follow the steps to the end in a world where only `answers` answer."""
    steps = []
    while True:
        step = next_step(state)
        steps.append(step)
        match step:
            case Dial(source, addresses):
                num_answered = len(answers.intersection(addresses))
                state = after_dial(state, source, num_answered=num_answered)
            case SearchLan():
                state = after_search(state, on_lan)
            case Joined() | FoundSwarm():
                return steps


def kinds(steps: list[Step]) -> list[str]:
    return [step.source.value if isinstance(step, Dial) else type(step).__name__ for step in steps]


def test_given_peers_come_first_and_an_answer_ends_the_search() -> None:
    steps = walk(Joining(given=("g",), cached=("c",)), answers={"g", "c"})
    assert steps == [Dial(Source.GIVEN, ("g",)), Joined(Source.GIVEN)]


def test_everything_is_tried_in_order_before_a_swarm_is_founded() -> None:
    steps = walk(Joining(given=("g",), cached=("c",)), on_lan=("l",), answers=set())
    assert kinds(steps) == ["given", "cache", "SearchLan", "lan", "FoundSwarm"]
    assert steps[-1] == FoundSwarm(is_expected=False)


def test_a_dead_bootstrap_does_not_matter_to_who_met_others_before() -> None:
    steps = walk(Joining(given=("g",), cached=("g", "c", "c")), answers={"c"})
    assert steps[1:] == [Dial(Source.CACHE, ("c",)), Joined(Source.CACHE)]


def test_neighbours_are_found_without_any_address() -> None:
    steps = walk(Joining(), on_lan=("l",), answers={"l"})
    assert kinds(steps) == ["SearchLan", "lan", "Joined"]


def test_the_first_peer_of_all_founds_a_swarm_as_expected() -> None:
    assert kinds(walk(Joining(), answers=set())) == ["SearchLan", "FoundSwarm"]
    alone = walk(Joining(is_lan_enabled=False), answers=set())
    assert alone == [FoundSwarm(is_expected=True)]
