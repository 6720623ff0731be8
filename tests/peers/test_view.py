"""The view of a swarm is a pure fold of what its members say."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from peers.ui import SwarmView, fold, leave, printable, tick
from zoonet.crypto import PeerId
from zoonet.records import Progress

JOB = "0" * 31 + "1"
ANN, BOB = PeerId("peer-ann"), PeerId("peer-bob")


def says(**fields: Any) -> Progress:
    defaults: dict[str, Any] = {
        "job_id": JOB,
        "phase": "training",
        "num_rounds": 0,
        "head": bytes(32),
        "num_tokens": 0,
    }
    return Progress(**(defaults | fields))


def view_of(*reports: tuple[PeerId, Progress], start_s: float = 0.0) -> SwarmView:
    view = SwarmView(job_id=JOB, started_s=0.0)
    for second, (author, progress) in enumerate(reports):
        view = fold(view, author, progress, start_s + second)
    return view


def test_an_empty_view_has_no_rounds_and_no_loss() -> None:
    view = view_of()
    assert (view.num_rounds, view.num_tokens, view.best_loss, view.last_round) == (0, 0, 0.0, None)


def test_the_longest_chain_speaks_for_the_job() -> None:
    view = view_of(
        (ANN, says(num_rounds=7, num_tokens=700, num_contributors=4)),
        (BOB, says(num_rounds=6, num_tokens=600)),
    )
    assert (view.num_rounds, view.num_tokens) == (7, 700)
    assert view.last_round is not None and view.last_round.num_contributors == 4


def test_a_report_about_another_job_changes_nothing() -> None:
    view = view_of((ANN, says()))
    assert fold(view, BOB, says(job_id="f" * 32), 5.0) is view


def test_a_peer_that_joins_while_rounds_are_certified_is_late() -> None:
    view = view_of(
        (ANN, says(phase="joining")), (ANN, says(num_rounds=3)), (BOB, says(phase="joining"))
    )
    assert not view.peers[ANN].is_late
    assert view.peers[BOB].is_late
    assert [(e.kind, e.name, e.num_rounds) for e in view.events] == [
        ("came", "peer-ann", 0),
        ("came late", "peer-bob", 3),
    ]


def test_a_peer_seen_at_work_first_is_not_late_however_long_the_chain() -> None:
    assert not view_of((ANN, says(num_rounds=9)), (BOB, says(num_rounds=9))).peers[BOB].is_late


def test_who_is_silent_for_longer_than_allowed_has_left_once() -> None:
    view = view_of((ANN, says(tokens_per_s=10.0)), (BOB, says(tokens_per_s=5.0)))
    view = fold(view, BOB, says(tokens_per_s=5.0), 30.0)
    view = tick(tick(view, 31.0, silent_s=20.0), 32.0, silent_s=20.0)
    assert view.peers[ANN].has_left and not view.peers[BOB].has_left
    assert [e.kind for e in view.events] == ["came", "came", "left"]
    assert view.tokens_per_s == 5.0


def test_silence_at_the_limit_is_not_yet_leaving() -> None:
    view = view_of((ANN, says()))
    assert tick(view, 20.0, silent_s=20.0) is view


def test_a_finished_peer_never_counts_as_gone() -> None:
    view = view_of((ANN, says(phase="finished")))
    assert tick(view, 1e6) is view
    assert view.is_finished


def test_who_speaks_again_has_returned() -> None:
    view = fold(leave(view_of((ANN, says())), [ANN], 5.0), ANN, says(), 6.0)
    assert not view.peers[ANN].has_left
    assert [e.kind for e in view.events] == ["came", "left", "returned"]


def test_leaving_of_a_stranger_changes_nothing() -> None:
    assert leave(view_of((ANN, says())), [BOB], 1.0) == view_of((ANN, says()))


def test_the_curve_has_one_point_a_round_in_order_whoever_reports_it() -> None:
    view = view_of(
        (ANN, says(eval_round=2, eval_loss=4.0)),
        (BOB, says(eval_round=1, eval_loss=5.0)),
        (BOB, says(eval_round=2, eval_loss=4.0)),
        (ANN, says(eval_round=3, eval_loss=0.0)),
    )
    assert [(p.num_rounds, p.loss) for p in view.curve] == [(1, 5.0), (2, 4.0)]
    assert view.best_loss == 4.0


def test_names_lose_what_a_terminal_would_obey() -> None:
    view = view_of((ANN, says(name="\x1b[2Jbox\r\n\u202e")))
    assert view.peers[ANN].name == "[2Jbox"


@given(st.text(max_size=300))
def test_printable_text_is_short_and_printable(text: str) -> None:
    shown = printable(text)
    assert len(shown) <= 60 and (shown.isprintable() or not shown)


@given(st.lists(st.sampled_from(["training", "left", "failed"]), max_size=300))
def test_events_are_bounded_but_all_counted(moves: list[Any]) -> None:
    view, num_events = view_of((ANN, says())), 1
    for second, move in enumerate(moves):
        before = view.num_events
        if move == "left":
            view = leave(view, [ANN], float(second))
        else:
            view = fold(view, ANN, says(phase=move), float(second))
        num_events += view.num_events - before
    assert len(view.events) == min(num_events, 200)
