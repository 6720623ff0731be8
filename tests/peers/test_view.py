"""The view of a swarm over time is a pure fold of what the job looked like."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from peers.ui import SwarmView, fold, leave, printable
from tests.peers.looks import job_view, peer_view
from zoonet.crypto import PeerId

ANN, BOB = PeerId("peer-ann"), PeerId("peer-bob")


def view_of(*looks: Any) -> SwarmView:
    view = SwarmView(started_s=0.0)
    for second, look in enumerate(looks):
        view = fold(view, look, float(second))
    return view


def kinds(view: SwarmView) -> list[tuple[str, str, int]]:
    return [(event.kind, event.name, event.num_rounds) for event in view.events]


def test_an_empty_view_has_no_rounds_and_no_loss() -> None:
    view = view_of()
    assert (view.num_rounds, view.losses, view.tokens_per_s) == (0, (), 0)


def test_a_peer_that_joins_while_rounds_are_certified_is_late() -> None:
    view = view_of(
        job_view(peer_view(ANN, phase="joining")),
        job_view(peer_view(ANN), num_rounds=3),
        job_view(peer_view(ANN), peer_view(BOB, phase="joining"), num_rounds=3),
    )
    assert not view.peers[ANN].is_late
    assert view.peers[BOB].is_late
    assert kinds(view) == [("came", "peer-ann", 0), ("came late", "peer-bob", 3)]


def test_a_peer_seen_at_work_first_is_not_late_however_long_the_chain() -> None:
    view = view_of(job_view(num_rounds=9), job_view(peer_view(BOB), num_rounds=9))
    assert not view.peers[BOB].is_late


def test_who_says_nothing_new_for_longer_than_allowed_has_left_once() -> None:
    ann, bob = peer_view(ANN, tokens_per_s=10.0), peer_view(BOB, tokens_per_s=5.0)
    view = view_of(job_view(ann, bob))
    for second in (10.0, 20.0, 21.0, 22.0):
        bob = peer_view(BOB, tokens_per_s=5.0, sent_bytes=int(second))
        view = fold(view, job_view(ann, bob), second, silent_s=20.0)
    assert view.peers[ANN].has_left and not view.peers[BOB].has_left
    assert [event.kind for event in view.events] == ["came", "came", "left"]
    assert view.events[-1].at_s == 21.0
    assert (view.tokens_per_s, view.num_working) == (5.0, 1)


def test_a_finished_peer_never_counts_as_gone() -> None:
    job = job_view(peer_view(ANN, phase="finished"))
    view = fold(view_of(job), job, 1e6)
    assert not view.peers[ANN].has_left
    assert [event.kind for event in view.events] == ["came", "finished"]


def test_who_speaks_again_has_returned() -> None:
    view = leave(view_of(job_view(peer_view(ANN))), [ANN], 5.0)
    view = fold(view, job_view(peer_view(ANN)), 6.0)
    assert view.peers[ANN].has_left  # its old word is no sign of life
    view = fold(view, job_view(peer_view(ANN, sent_bytes=1)), 7.0)
    assert not view.peers[ANN].has_left
    assert [event.kind for event in view.events] == ["came", "left", "returned"]


def test_who_is_gone_stays_listed_when_its_record_expires() -> None:
    view = fold(view_of(job_view(peer_view(ANN))), job_view(), 1.0)
    assert view.peers[ANN].name == "peer-ann"


def test_leaving_of_a_stranger_changes_nothing() -> None:
    view = view_of(job_view(peer_view(ANN)))
    assert leave(view, [BOB], 1.0) == view


def test_names_lose_what_a_terminal_would_obey() -> None:
    view = view_of(job_view(peer_view(ANN, name="\x1b[2Jbox\r\n\u202e")))
    assert view.peers[ANN].name == "[2Jbox"


@given(st.text(max_size=300))
def test_printable_text_is_short_and_printable(text: str) -> None:
    shown = printable(text)
    assert len(shown) <= 60
    assert shown.isprintable()


@given(st.lists(st.sampled_from(["training", "left", "failed"]), max_size=300))
def test_events_are_bounded_but_all_counted(moves: list[Any]) -> None:
    view = view_of(job_view(peer_view(ANN)))
    for second, move in enumerate(moves):
        if move == "left":
            view = leave(view, [ANN], float(second))
        else:
            view = fold(view, job_view(peer_view(ANN, phase=move, sent_bytes=second)), 0.0)
    assert len(view.events) == min(view.num_events, 200)
