"""The losses of a job: whose word counts, and how many are told."""

from __future__ import annotations

from peers.evaluations import MAX_TOLD, Evaluations, evaluator_of
from tests.averaging.makers import empty_chain, grow, peer, peers
from zoonet.averaging import Chain

NAMES = ("ada", "bob", "cyd")


def chain_of(num_rounds: int) -> Chain:
    return grow(empty_chain(10_000), *NAMES, rounds=num_rounds)


def test_contributors_take_turns_to_measure() -> None:
    chain = chain_of(6)
    turns = [evaluator_of(link.result) for link in chain.certificates]
    assert turns == [*peers(*NAMES), *peers(*NAMES)]


def test_only_the_word_of_the_one_whose_turn_it_was_counts() -> None:
    chain, evaluations = chain_of(4), Evaluations()
    for name in (*NAMES, "mallory"):
        evaluations.note(chain, peer(name), 3, 1.0 if peer(name) == peers(*NAMES)[2] else 9.0)
    assert evaluations.told() == ((3, 1.0),)


def test_rounds_that_are_not_certified_here_have_no_loss() -> None:
    chain, evaluations = chain_of(2), Evaluations()
    for num_rounds in (0, 3, 10**18):
        for name in NAMES:
            evaluations.note(chain, peer(name), num_rounds, 1.0)
    evaluations.note(chain, peers(*NAMES)[0], 1, 0.0)
    assert evaluations.told() == ()


def test_a_long_history_is_thinned_out_and_keeps_its_ends() -> None:
    chain, evaluations = chain_of(MAX_TOLD + 72), Evaluations()
    for at, link in enumerate(chain.certificates):
        evaluations.note(chain, evaluator_of(link.result), at + 1, float(at + 1))
    told = evaluations.told()
    assert len(told) == MAX_TOLD
    assert told[0] == (1, 1.0) and told[-1] == (len(chain), float(len(chain)))
    assert list(told) == sorted(set(told))
