"""What the other tests of this folder measure against: nobody attacks."""

from __future__ import annotations

from tests.attacks.hostile import Hostile, as_strangers, survive


async def do_nothing(hostile: Hostile) -> None:
    """A peer that is there, and answers nobody."""


def test_without_an_attack_the_job_takes_a_quarter_of_a_minute() -> None:
    outcome = as_strangers(do_nothing)
    assert outcome.took_s < 15.0
    assert outcome.most_tasks < 80
    assert {len(link.result.members) for link in outcome.chain.certificates} == {3}


def test_a_member_that_answers_nobody_is_soon_done_without() -> None:
    outcome = survive(do_nothing)
    assert outcome.took_s < 40.0
    assert len(outcome.chain.last.members) == 3
