"""Data slots that cannot be trained are skipped once two peers say so, and no others."""

from __future__ import annotations

import time

import msgspec
import pytest

from tests.averaging.makers import (
    certified,
    empty_chain,
    grow,
    peer,
    ready,
    result_after,
)
from tests.averaging.swarm import Swarm, contributed_slots, identity_of
from tests.averaging.test_leases import members
from zoonet.averaging import Chain, RoundsConfig
from zoonet.averaging.leases import lease
from zoonet.averaging.messages import Failure, report_failure
from zoonet.averaging.poison import Poison, most_skipped
from zoonet.errors import ProtocolViolation
from zoonet.ranges import Ranges, count, difference, overlaps
from zoonet.testing import run

NAMES = ("ada", "bob", "cyd", "dan")


async def founded(num_slots: int = 400, names: tuple[str, ...] = NAMES, **config: float) -> Swarm:
    swarm = Swarm(num_slots, RoundsConfig(inner_steps=10, min_founders=len(names), **config))
    for name in names:
        await swarm.add(name)
    return swarm


async def play(swarm: Swarm, bad: set[int], liars: tuple[str, ...] = ()) -> Swarm:
    """Everybody, or only the liars, fails on the bad slots."""
    for name in liars or tuple(swarm.peers):
        swarm.peers[name].replica.bad = bad
    swarm.start()
    await swarm.finish()
    return swarm


def failures_in(chain: Chain) -> list[tuple[int, Failure]]:
    links = chain.certificates
    return [(link.result.index, one) for link in links for one in link.result.failures]


def assert_all_but(swarm: Swarm, num_slots: int, skipped: set[int]) -> None:
    """Everybody has the same bits; the skipped slots count for nobody, all others once."""
    peers = list(swarm.peers.values())
    assert len({one.chain.head for one in peers}) == 1
    assert len({one.replica.theta_P.tobytes() for one in peers}) == 1
    chain = peers[0].chain
    assert contributed_slots(chain) == sorted(set(range(num_slots)) - skipped)
    assert chain.skipped == tuple((slot, slot + 1) for slot in sorted(skipped))


@pytest.mark.parametrize("ahead", [0.0, 1.0])
def test_a_poisoned_slot_is_skipped_after_two_peers_failed_and_no_other_is(ahead: float) -> None:
    async def main() -> Swarm:
        return await play(await founded(ahead=ahead), {57})

    swarm = run(main())
    assert_all_but(swarm, 400, {57})
    failures = failures_in(swarm.peers["ada"].chain)
    assert [one.slots for _, one in failures] == [((57, 58),), ((57, 58),)]
    assert len({one.peer for _, one in failures}) == 2
    for link in swarm.peers["ada"].chain.certificates[:10]:
        assert len(link.result.contributions) == 4  # nobody sat a round out for it


def test_whoever_fails_rolls_back_and_brings_the_rest_of_its_lease_in_the_same_round() -> None:
    async def main() -> Swarm:
        return await play(await founded(), {57})

    swarm = run(main())
    chain = swarm.peers["ada"].chain
    (index, failure), *_ = failures_in(chain)
    result = chain.certificates[index].result
    (share,) = [one for one in result.contributions if one.peer == failure.peer]
    assert count(share.slots) == 9
    assert not overlaps(share.slots, failure.slots)


def test_the_last_slot_of_a_job_may_be_the_poisoned_one() -> None:
    async def main() -> Swarm:
        return await play(await founded(200), {199})

    assert_all_but(run(main()), 200, {199})


def test_a_peer_alone_tries_a_slot_twice_before_it_skips_it() -> None:
    async def main() -> Swarm:
        return await play(await founded(100, ("ada",)), {7, 42, 99})

    swarm = run(main())
    assert_all_but(swarm, 100, {7, 42, 99})
    found = failures_in(swarm.peers["ada"].chain)
    assert len({index for index, one in found if overlaps(one.slots, ((42, 43),))}) == 2


def test_a_liar_skips_nothing() -> None:
    """It says of whatever it is leased that it cannot be trained."""

    async def main() -> Swarm:
        swarm = await founded()
        return await play(swarm, set(range(0, 400, 7)), ("dan",))

    swarm = run(main())
    assert_all_but(swarm, 400, set())
    assert {one.peer for _, one in failures_in(swarm.peers["ada"].chain)} == {peer("dan")}


def test_more_than_a_hundredth_of_the_job_is_not_skipped_and_the_job_ends_early(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> Swarm:
        return await play(await founded(100), set(range(10, 19)))

    swarm = run(main())
    peers = list(swarm.peers.values())
    assert len({one.chain.head for one in peers}) == 1
    assert all(one.replica.state_digest == one.chain.last.state for one in peers if one.chain.last)
    assert "ended early: 5 data slots" in caplog.text
    chain = peers[0].chain
    assert chain.is_stuck and chain.is_over
    assert count(chain.skipped) == most_skipped(100) == 4
    assert contributed_slots(chain) == [*range(10), *range(19, 100)]


def test_two_halves_that_meet_agree_on_what_is_skipped() -> None:
    async def main() -> Swarm:
        swarm = await founded(1500)
        pairs = [(peer(one), peer(other)) for one in ("ada",) for other in ("bob", "cyd", "dan")]
        for one in swarm.peers.values():
            one.replica.bad = {50, 600}
        swarm.start()
        await swarm.until(lambda: len(swarm.peers["ada"].chain) == 1)
        for pair in pairs:
            swarm.memory.faults.cut(*pair)
        await swarm.until(lambda: bool(swarm.peers["ada"].chain.skipped))
        for pair in pairs:
            swarm.memory.faults.heal(*pair)
        await swarm.finish()
        return swarm

    assert_all_but(run(main()), 1500, {50, 600})


# --- what the chain believes --------------------------------------------------------------------


def failure_of(name: str, chain: Chain, slots: Ranges) -> Failure:
    return report_failure(identity_of(name), chain.job_id, chain.head, slots)


def with_failures(chain: Chain, *failures: Failure, names: tuple[str, ...] = NAMES[:3]) -> Chain:
    result = msgspec.structs.replace(
        result_after(chain, names), failures=tuple(sorted(failures, key=lambda one: one.peer))
    )
    chain.extend(certified(result, names))
    return chain


SLOT = ((500, 501),)


def test_one_word_skips_nothing_and_a_second_peers_word_does() -> None:
    chain = with_failures(empty_chain(), failure_of("ada", empty_chain(), SLOT))
    assert chain.skipped == () and chain.poison.by_peer == {peer("ada"): SLOT}
    with_failures(chain, failure_of("ada", chain, SLOT))
    assert chain.skipped == ()
    with_failures(chain, failure_of("bob", chain, SLOT))
    assert chain.skipped == SLOT and not overlaps(chain.free, SLOT)
    with pytest.raises(ProtocolViolation, match="skipped"):
        grow(chain, "ada", slots={"ada": SLOT})


def test_a_chain_cut_short_knows_only_what_was_said_until_then() -> None:
    chain = grow(empty_chain(), *NAMES[:3])
    with_failures(chain, failure_of("ada", chain, SLOT))
    with_failures(chain, failure_of("bob", chain, SLOT))
    assert chain.copy_until(3).skipped == SLOT
    assert chain.copy_until(2).skipped == ()
    assert chain.copy_until(2).poison.by_peer == {peer("ada"): SLOT}
    assert chain.copy_until(1).poison.by_peer == {}


def test_a_slot_that_another_peer_could_train_is_done_and_not_suspect_any_more() -> None:
    chain = with_failures(empty_chain(), failure_of("ada", empty_chain(), SLOT))
    grow(chain, "bob", slots={"bob": SLOT})
    assert chain.poison.by_peer == {} and not overlaps(chain.free, SLOT)


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (lambda one: Failure(peer("bob"), one.slots, one.signature), "not signed"),
        (lambda one: Failure(one.peer, ((501, 502),), one.signature), "not signed"),
        (lambda one: Failure(one.peer, ((500, 500),), one.signature), "malformed"),
        (lambda one: Failure(one.peer, ((0, 1),), one.signature), "two shares"),
        (lambda one: Failure(peer("eve"), one.slots, one.signature), "members"),
    ],
)
def test_nobody_fails_in_anothers_name(forge: object, message: str) -> None:
    chain = empty_chain()
    with pytest.raises(ProtocolViolation, match=message):
        with_failures(chain, forge(failure_of("ada", chain, SLOT)))


MANY = ((500, 510),)  # more than may be skipped


def full_chain(names: tuple[str, ...] = NAMES) -> Chain:
    """Ada and bob have failed on more than a small job may skip, beside others."""
    chain = empty_chain(600)
    for name in ("ada", "bob"):
        with_failures(chain, failure_of(name, chain, MANY), names=names)
    return chain


def test_beyond_the_cap_two_words_leave_a_slot_to_the_others() -> None:
    chain = full_chain()
    assert count(chain.skipped) == most_skipped(600)
    assert chain.hopeless == () and not difference(((506, 510),), chain.trainable)
    with_failures(chain, failure_of("cyd", chain, ((508, 510),)), names=NAMES)
    assert chain.hopeless == ((508, 510),) and not overlaps(chain.trainable, chain.hopeless)
    assert chain.copy_until(2).hopeless == () and chain.copy_until(3).hopeless == chain.hopeless
    grow(chain, "dan", slots={"dan": ((508, 510),)})
    assert not overlaps(chain.free, ((508, 510),))


def test_nobody_fails_again_on_what_is_given_up() -> None:
    chain = full_chain(("ada", "bob"))
    assert chain.hopeless == ((506, 510),)
    with pytest.raises(ProtocolViolation, match="given up"):
        with_failures(chain, failure_of("ada", chain, ((509, 510),)), names=("ada", "bob"))


def test_a_peer_alone_has_one_word_beyond_the_cap() -> None:
    chain = full_chain(("ada", "bob"))
    with_failures(chain, failure_of("ada", chain, ((520, 521),)), names=("ada",))
    with pytest.raises(ProtocolViolation, match="given up"):
        with_failures(chain, failure_of("ada", chain, ((520, 521),)), names=("ada",))


def test_what_is_trained_is_forgotten_however_it_is_looked_up() -> None:
    chain = empty_chain()
    words = [failure_of("ada", chain, ((2, 4), (8, 10)))]
    for done in (((3, 4),), ((3, 9), (20, 30)), ((0, 2), (3, 4), (9, 40))):
        poison = Poison(1000)
        poison.note(0, words, num_members=2)
        poison.forget(done)
        assert poison.by_peer == {peer("ada"): difference(words[0].slots, done)}


def test_a_round_costs_no_look_at_all_that_ever_failed() -> None:
    poison = Poison(10**6)
    poison.note(0, [failure_of("ada", empty_chain(), ((0, 20_000),))], num_members=2)
    began_s = time.process_time()
    for start in range(300):
        poison.forget(())
        poison.forget(((start + 30_000, start + 30_002),))
    assert time.process_time() - began_s < 2.0  # more than ten times that, one slot by one


def test_a_word_is_good_for_its_own_round_only() -> None:
    old = failure_of("bob", empty_chain(), SLOT)
    chain = with_failures(empty_chain(), failure_of("ada", empty_chain(), SLOT))
    with pytest.raises(ProtocolViolation, match="not signed"):
        with_failures(chain, old)


def test_a_round_of_nothing_but_failures_keeps_the_state() -> None:
    chain = grow(empty_chain(), *NAMES[:3], state=b"s" * 32)
    result = msgspec.structs.replace(
        result_after(chain, NAMES[:3], slots={}),
        failures=(failure_of("ada", chain, SLOT),),
        state=b"t" * 32,
    )
    with pytest.raises(ProtocolViolation, match="nobody has contributed"):
        chain.check_result(result)
    chain.check_result(msgspec.structs.replace(result, state=b"s" * 32))
    with pytest.raises(ProtocolViolation, match="not those of members"):
        chain.check_result(msgspec.structs.replace(result, state=b"s" * 32, failures=()))


def test_what_a_member_failed_on_is_leased_to_another() -> None:
    failed = {peer("ada"): ((0, 3),), peer("bob"): ((3, 4),)}
    pair = members(ada=ready(leased=((0, 5),)), bob=ready())
    leases = {one.peer: one.slots for one in lease(((0, 100),), pair, 10, failed=failed)}
    assert not overlaps(leases[peer("ada")], ((0, 3),))
    assert not difference(((0, 3),), leases[peer("bob")])
    (only,) = lease(((0, 100),), members(ada=ready()), 10, failed=failed)
    assert only.slots == ((0, 10),)
    for left in (((0, 1),), ((0, 4),)):
        leases = lease(left, pair, 10, failed=failed)
        assert any(one.slots for one in leases)


def test_what_all_members_have_failed_on_is_leased_to_them_once_more() -> None:
    """Others may have been there, and be gone: without a round the chain would never say so."""
    pair = members(ada=ready(), bob=ready())
    both = dict.fromkeys((peer("ada"), peer("bob")), ((0, 3),))
    assert any(one.slots for one in lease(((0, 3),), pair, 10, failed=both))
