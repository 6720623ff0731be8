"""The one way in for records: what it lets through, and the word by which it counts the rest."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.records.bodies import ADA, BOB, CID, HONEST, JOB_ID, NOW, signed
from zoonet.crypto import Identity, PeerId, sha256
from zoonet.errors import InvalidRecord
from zoonet.records import (
    MAX_RECORD_BYTES,
    REASONS,
    JobList,
    JobRecord,
    PeerRecord,
    Progress,
    ReplayGuard,
    canonical,
    job_key,
    peers_key,
    register,
    registered_kinds,
    sign,
    verify,
)
from zoonet.records.envelope import LEAST_GUARDED, MAX_CLOCK_SKEW_S, Body

every_kind = pytest.mark.parametrize("kind", sorted(HONEST))


def forge(
    kind: str,
    encoded: bytes,
    *,
    author: Identity = ADA,
    sequence: Any = 1,
    expires_at: Any = NOW + 60,
    signer: Identity | None = None,
) -> bytes:
    """A record with a body that `sign` would not take."""
    head = (kind, author.public_key, sequence, expires_at, encoded)
    digest = sha256(b"zoonet-record/1\x00", canonical(head))
    return canonical((*head, (signer or author).sign(digest)))


def refusal(raw: bytes, *, now: float = NOW) -> str:
    with pytest.raises(InvalidRecord) as caught:
        verify(raw, now=now)
    assert caught.value.reason in REASONS
    return caught.value.reason


def changed(kind: str, **fields: Any) -> bytes:
    """A well-signed record of that kind with some fields replaced or added."""
    body = msgspec.to_builtins(HONEST[kind], builtin_types=(bytes,))
    return forge(kind, canonical({**body, **fields}))


def test_every_registered_kind_is_tried_here() -> None:
    ours = [body for body in registered_kinds().values() if body.__module__.startswith("zoonet.")]
    assert {body.KIND for body in ours} == set(HONEST)


@every_kind
def test_a_record_comes_back_as_it_was_signed(kind: str) -> None:
    record = signed(HONEST[kind], sequence=7)
    back = verify(record.raw, now=NOW)
    assert back == record
    assert (back.author, back.sequence, back.expires_at) == (ADA.peer_id, 7, NOW + 60)
    assert back.key == HONEST[kind].key()


@every_kind
def test_a_record_of_each_kind_fits_its_own_limit(kind: str) -> None:
    assert len(signed(HONEST[kind]).raw) <= HONEST[kind].MAX_BYTES <= MAX_RECORD_BYTES


@every_kind
def test_an_unknown_field_is_refused(kind: str) -> None:
    assert refusal(changed(kind, surprise=1)) == "malformed"


@every_kind
def test_a_missing_field_is_refused(kind: str) -> None:
    body = msgspec.to_builtins(HONEST[kind], builtin_types=(bytes,))
    del body[next(iter(body))]
    assert refusal(forge(kind, canonical(body))) == "malformed"


@every_kind
def test_a_field_of_another_type_is_refused(kind: str) -> None:
    for name in msgspec.to_builtins(HONEST[kind], builtin_types=(bytes,)):
        assert refusal(changed(kind, **{name: {"x": 1}})) == "malformed", name


@every_kind
def test_one_kind_is_not_read_as_another(kind: str) -> None:
    other = next(name for name in sorted(HONEST) if name != kind)
    assert refusal(forge(other, canonical(HONEST[kind]))) == "malformed"


@every_kind
def test_another_peers_signature_is_forged(kind: str) -> None:
    raw = forge(kind, canonical(HONEST[kind]), author=ADA, signer=BOB)
    assert refusal(raw) == "forged"


@every_kind
def test_a_record_ends_at_its_time(kind: str) -> None:
    record = signed(HONEST[kind], after_s=60)
    assert verify(record.raw, now=NOW + 59.9) == record
    assert refusal(record.raw, now=NOW + 60) == "expired"


@every_kind
def test_a_record_that_would_outlive_its_kind_is_refused(kind: str) -> None:
    allowed_s = HONEST[kind].MAX_LIFETIME_S + MAX_CLOCK_SKEW_S
    assert verify(signed(HONEST[kind], after_s=allowed_s).raw, now=NOW)
    assert refusal(signed(HONEST[kind], after_s=allowed_s + 1).raw) == "long-lived"


@pytest.mark.parametrize("expires_at", [math.inf, -math.inf, math.nan])
def test_a_time_that_is_no_number_is_refused(expires_at: float) -> None:
    raw = forge("job-list/1", canonical(HONEST["job-list/1"]), expires_at=expires_at)
    assert refusal(raw) == "malformed"


def test_a_negative_sequence_is_refused() -> None:
    raw = forge("job-list/1", canonical(HONEST["job-list/1"]), sequence=-1)
    assert refusal(raw) == "malformed"


@pytest.mark.parametrize("kind", ["", "job-list/2", "job", "x" * 1000])
def test_a_kind_from_another_version_is_counted_as_such(kind: str) -> None:
    assert refusal(forge(kind, canonical(HONEST["job-list/1"]))) == "unknown-kind"


def test_more_bytes_than_any_record_may_have_are_not_even_parsed() -> None:
    assert refusal(bytes(MAX_RECORD_BYTES + 1)) == "oversized"


def test_more_bytes_than_its_kind_may_have_are_refused() -> None:
    body = canonical({"job_ids": ["0" * 32] * 400})
    assert len(body) < MAX_RECORD_BYTES
    assert refusal(forge("job-list/1", body)) == "oversized"


def test_nobody_can_sign_more_than_the_kind_may_have() -> None:
    body = JobList(job_ids=("0" * 32,) * 400)
    with pytest.raises(ValueError, match="at most 8192"):
        sign(ADA, body, sequence=1, expires_at=NOW + 60)


def test_another_order_of_fields_is_not_canonical() -> None:
    body = msgspec.to_builtins(HONEST["result/1"], builtin_types=(bytes,))
    backwards = dict(sorted(body.items(), reverse=True))
    raw = forge("result/1", msgspec.msgpack.encode(backwards))
    assert refusal(raw) == "malformed"


def test_a_longer_form_of_a_number_is_not_canonical() -> None:
    raw = signed(HONEST["job-list/1"], sequence=1).raw
    at = raw.index(ADA.public_key) + len(ADA.public_key)
    assert raw[at] == 1
    assert refusal(raw[:at] + b"\xcc\x01" + raw[at + 1 :]) == "malformed"


def test_trailing_bytes_are_refused() -> None:
    assert refusal(signed(HONEST["job-list/1"]).raw + b"\x00") == "malformed"


def test_a_body_nested_a_thousand_times_is_refused() -> None:
    assert refusal(forge("job-list/1", b"\x91" * 1000 + b"\x00")) == "malformed"
    assert refusal(b"\x96" + b"\x91" * 50_000) == "malformed"


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(raw: bytes) -> None:
    assert refusal(raw) in REASONS


@given(st.data())
def test_a_mutated_record_is_refused(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(HONEST)))
    raw = bytearray(signed(HONEST[kind]).raw)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert"])):
            case "flip":
                raw[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 9))]
            case "insert":
                raw[at:at] = data.draw(st.binary(min_size=1, max_size=9))
        if not raw:
            break
    if bytes(raw) != signed(HONEST[kind]).raw:
        assert refusal(bytes(raw)) in REASONS


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text()
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(sorted(HONEST)), json_like)
def test_a_well_signed_body_of_anything_at_all_is_refused(kind: str, body: Any) -> None:
    assert refusal(forge(kind, canonical(body))) in ("malformed", "oversized")


@given(st.data())
def test_a_field_of_anything_at_all_is_refused_or_well_formed(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(HONEST)))
    name = data.draw(
        st.sampled_from(sorted(msgspec.to_builtins(HONEST[kind], builtin_types=(bytes,))))
    )
    raw = changed(kind, **{name: data.draw(json_like)})
    try:
        record = verify(raw, now=NOW)
    except InvalidRecord:
        return
    assert canonical(record.body) in raw


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, -1.0, 1e300])
@pytest.mark.parametrize(
    ("kind", "field"),
    [
        ("peer/1", "started_at"),
        ("job/1", "submitted_at"),
        ("progress/1", "tokens_per_s"),
        ("progress/1", "train_loss"),
        ("progress/1", "eval_loss"),
        ("result/1", "eval_loss"),
    ],
)
def test_a_number_that_no_clock_or_loss_shows_is_refused(
    kind: str, field: str, value: float
) -> None:
    assert refusal(changed(kind, **{field: value})) == "malformed"


def test_a_peer_speaks_only_about_itself() -> None:
    raw = forge("peer/1", canonical(HONEST["peer/1"]), author=BOB)
    assert refusal(raw) == "malformed"


def test_a_jobs_id_cannot_be_taken_by_another_submitter_or_spec() -> None:
    assert refusal(forge("job/1", canonical(HONEST["job/1"]), author=BOB)) == "malformed"
    assert refusal(changed("job/1", spec_cid="b" + "c" * 58)) == "malformed"


def test_expecting_another_kind_blames_the_author() -> None:
    record = signed(HONEST["progress/1"])
    assert record.expect(Progress) is record
    with pytest.raises(InvalidRecord) as caught:
        record.expect(PeerRecord)
    assert (caught.value.reason, caught.value.peer) == ("misplaced", ADA.peer_id)


def test_two_types_cannot_share_a_kind() -> None:
    with pytest.raises(ValueError, match="two record types"):

        @register
        class Another(Body, frozen=True):
            KIND = JobRecord.KIND


def test_keys_say_where_a_record_stands() -> None:
    assert HONEST["job/1"].key() == job_key(JOB_ID) == f"job/{JOB_ID}"
    assert HONEST["peer/1"].key() == peers_key(ADA.peer_id)
    assert len({HONEST[kind].key() for kind in HONEST}) == len(HONEST)
    assert CID in HONEST["job/1"].spec_cid


# --- replays --------------------------------------------------------------------------------------


class Time:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


def progress(sequence: int, *, num_rounds: int = 0, after_s: float = 60) -> Any:
    body = msgspec.structs.replace(HONEST["progress/1"], num_rounds=num_rounds)
    return signed(body, sequence=sequence, after_s=after_s)


def test_the_newest_word_counts_and_may_be_repeated() -> None:
    guard = ReplayGuard(Time())
    for sequence in (1, 1, 2, 2, 5):
        guard.admit(progress(sequence))


def test_an_older_record_is_a_replay() -> None:
    guard = ReplayGuard(Time())
    guard.admit(progress(5))
    with pytest.raises(InvalidRecord) as caught:
        guard.admit(progress(4))
    assert (caught.value.reason, caught.value.peer) == ("replayed", ADA.peer_id)


def test_two_records_with_one_sequence_are_an_equivocation() -> None:
    guard = ReplayGuard(Time())
    guard.admit(progress(5))
    with pytest.raises(InvalidRecord) as caught:
        guard.admit(progress(5, num_rounds=9))
    assert (caught.value.reason, caught.value.peer) == ("equivocation", ADA.peer_id)


def test_after_the_newest_has_expired_another_may_begin_anew() -> None:
    time = Time()
    guard = ReplayGuard(time)
    guard.admit(progress(5, after_s=60))
    time.now += 61
    guard.admit(progress(1, after_s=120))


def test_other_authors_kinds_and_keys_are_apart() -> None:
    guard = ReplayGuard(Time())
    guard.admit(progress(5))
    guard.admit(signed(HONEST["progress/1"], author=BOB, sequence=1))
    guard.admit(signed(HONEST["result/1"], sequence=1))
    body = msgspec.structs.replace(HONEST["progress/1"], job_id="0" * 32)
    guard.admit(signed(body, sequence=1))


def test_of_peers_that_come_and_go_the_guard_forgets_what_has_expired() -> None:
    time = Time()
    guard = ReplayGuard(time)
    guard.admit(progress(5, after_s=10_000))
    for number in range(2000):
        author = Identity(sha256(f"passer-by {number}".encode()))
        time.now += 1
        guard.admit(signed(HONEST["progress/1"], author=author, after_s=time.now - NOW + 60))
        assert len(guard) <= 1 + LEAST_GUARDED
    with pytest.raises(InvalidRecord):
        guard.admit(progress(4, after_s=10_000))


def test_a_flood_of_authors_does_not_fill_the_memory() -> None:
    """What it forgets under a flood is what expires first: the shortest-lived."""
    guard = ReplayGuard(Time(), capacity=40)
    guard.admit(progress(5, after_s=500))
    for number in range(400):
        author = Identity(sha256(f"sybil {number}".encode()))
        guard.admit(signed(HONEST["progress/1"], author=author))
    assert len(guard) <= 40
    with pytest.raises(InvalidRecord):
        guard.admit(progress(4, after_s=500))


def test_peer_ids_of_records_are_those_of_their_keys() -> None:
    record = verify(signed(HONEST["peer/1"]).raw, now=NOW)
    assert record.author == PeerId(record.body.peer_id)
