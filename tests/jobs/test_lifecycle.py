"""The life of a job: which events may follow which."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoonet.jobs.lifecycle import (
    Cancelled,
    Event,
    Expired,
    Failed,
    Finished,
    IllegalTransition,
    JobState,
    Progressed,
    Taken,
    advance,
)

EVENTS = st.one_of(
    st.builds(Taken, st.sampled_from("abc")),
    st.builds(Progressed, st.integers(0, 9), st.integers(0, 900)),
    st.just(Finished("cid")),
    st.just(Cancelled()),
    st.just(Expired()),
    st.just(Failed("NaN")),
)


def after(*events: Event) -> JobState:
    state = JobState()
    for event in events:
        state = advance(state, event)
    return state


def test_a_job_is_taken_trained_and_finished() -> None:
    state = after(Taken("a"), Taken("b"), Progressed(3, 300), Finished("cid"))
    assert state == JobState("finished", frozenset("ab"), 3, 300, "cid")


def test_an_open_job_can_be_cancelled_or_expire() -> None:
    assert after(Cancelled()).phase == "cancelled"
    assert after(Expired()).phase == "expired"


def test_old_news_of_a_shorter_chain_change_nothing() -> None:
    assert after(Taken("a"), Progressed(3, 300), Progressed(2, 200)).num_rounds == 3


@pytest.mark.parametrize("event", [Progressed(1, 1), Finished("cid"), Failed("why")])
def test_nothing_is_achieved_before_anyone_took_the_job(event: Event) -> None:
    with pytest.raises(IllegalTransition, match="the job is open"):
        after(event)


@pytest.mark.parametrize("end", [Finished("cid"), Cancelled(), Expired(), Failed("why")])
def test_an_end_is_final(end: Event) -> None:
    ended = after(Taken("a"), end)
    assert ended.is_final
    with pytest.raises(IllegalTransition, match="it cannot be cancelled any more"):
        advance(ended, Cancelled())


@given(st.lists(EVENTS, max_size=12))
def test_progress_never_goes_back_and_ends_never_change(events: list[Event]) -> None:
    states = [JobState()]
    for event in events:
        try:
            states.append(advance(states[-1], event))
        except IllegalTransition:
            continue
    for before, later in pairwise(states):
        assert later.num_tokens >= before.num_tokens
        assert later.peer_ids >= before.peer_ids
        assert not before.is_final
