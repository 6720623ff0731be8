"""Folding what strangers say about a job into one view."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.jobs.stories import ALICE, BOB, CAROL, DAVE, OTHER_CID, progress, result
from tests.prepared import CID
from zoonet.jobs import JobRecords, JobView, fold
from zoonet.records import JobRecord, JobResult, Progress, Signed, job_id_of, sign

NOW = 1_800_000_000.0
JOB_ID = job_id_of(ALICE.peer_id, CID)
PEERS = (BOB, CAROL, DAVE)


def job(*, is_cancelled: bool = False, lifetime_s: float = 100.0) -> Signed[JobRecord]:
    body = JobRecord(
        job_id=JOB_ID,
        name="tiny",
        task="causal-lm",
        spec_cid=CID,
        num_parameters=1,
        num_tokens=1000,
        min_peers=2,
        max_peers=8,
        budget_max=0,
        submitted_at=NOW,
        is_cancelled=is_cancelled,
    )
    return sign(ALICE, body, sequence=1 + is_cancelled, expires_at=NOW + lifetime_s)


PHASES = st.sampled_from(["joining", "training", "averaging", "finished", "failed"])
SAID = st.fixed_dictionaries(
    {"phase": PHASES, "num_rounds": st.integers(0, 9), "num_tokens": st.integers(0, 1000)}
)


@given(
    st.dictionaries(st.sampled_from(PEERS), SAID),
    st.dictionaries(st.sampled_from(PEERS), st.sampled_from([CID, OTHER_CID])),
    st.booleans(),
    st.sampled_from([-1.0, 100.0]),
)
def test_any_records_fold_into_a_view(
    said: dict[object, dict[str, object]],
    named: dict[object, str],
    is_cancelled: bool,
    lifetime_s: float,
) -> None:
    reports = [
        progress(peer, JOB_ID, now=NOW, **said[peer])  # type: ignore[arg-type]
        for peer in PEERS
        if peer in said
    ]
    results = [
        result(peer, JOB_ID, now=NOW, model_cid=named[peer])  # type: ignore[index]
        for peer in PEERS
        if peer in named
    ]
    record = job(is_cancelled=is_cancelled, lifetime_s=lifetime_s)
    view = fold(record, reports, results, now=NOW)
    assert view == fold(record, reports[::-1], results[::-1], now=NOW)
    assert (view.phase == "finished") == bool(results)
    assert (view.result is None) == (not results)
    if results:
        assert view.result is not None
        assert len(view.result.holders) == max(
            list(named.values()).count(c) for c in named.values()
        )
    elif is_cancelled:
        assert view.phase == "cancelled"


def records_of(*more: Signed[Progress] | Signed[JobResult]) -> JobRecords:
    records = JobRecords(job())
    for record in more:
        records.take(record)
    return records


def test_older_words_of_a_peer_do_not_replace_newer_ones() -> None:
    new = progress(BOB, JOB_ID, now=NOW, sequence=2, num_rounds=5, num_tokens=500)
    old = progress(BOB, JOB_ID, now=NOW, sequence=1)
    assert records_of(new, old).view(NOW).num_rounds == 5


def test_words_about_another_job_are_passed_over() -> None:
    assert records_of(progress(BOB, "0" * 32, now=NOW)).view(NOW).peers == ()


def test_a_peer_that_fell_silent_leaves_the_view_but_its_losses_stay() -> None:
    records = records_of(progress(BOB, JOB_ID, now=NOW, eval_loss=2.5, eval_round=4))
    assert records.view(NOW).eval_losses == ((4, 2.5),)
    later: JobView = records.view(NOW + 70.0)
    assert later.peers == ()
    assert later.eval_losses == ((4, 2.5),)


def test_results_tell_the_losses_to_who_has_not_watched() -> None:
    history = ((2, 3.0), (4, 2.5))
    results = [
        result(BOB, JOB_ID, now=NOW, eval_losses=history),
        result(CAROL, JOB_ID, now=NOW, eval_losses=history),
        result(DAVE, JOB_ID, now=NOW, eval_losses=((2, 0.1),)),
    ]
    assert records_of(*results).view(NOW).eval_losses == (*history, (5, 1.5))


def test_one_liar_does_not_change_the_loss_that_others_agree_on() -> None:
    reports = [
        progress(peer, JOB_ID, now=NOW, eval_loss=loss, eval_round=4)
        for peer, loss in ((BOB, 2.5), (CAROL, 0.1), (DAVE, 2.5))
    ]
    assert records_of(*reports).view(NOW).eval_loss == 2.5
