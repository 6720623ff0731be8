"""The state machine of gossip, one event at a time: no clock, no network."""

from __future__ import annotations

from tests.contracts.networks import START, identity_of
from tests.membership.gossip_makers import gone, job, machine_of, member, people
from zoonet.crypto import Identity, PeerId
from zoonet.membership.gossip import Accuse, Ask, Call, Effect, GossipConfig, Machine, Renew, Told
from zoonet.membership.gossip.entries import NUM_BUCKETS
from zoonet.membership.gossip.messages import (
    ID_BYTES,
    MAX_IDS,
    MAX_NEWS_BYTES,
    MAX_PAGE_BYTES,
    MAX_WANT,
)
from zoonet.transport import MAX_CALL_BYTES

NOW = START


def carried_out(machine: Machine, others: dict[str, Machine], calls: list[Call]) -> None:
    """Make these calls, and those that follow from them, at once."""
    pending = list(calls)
    while pending:
        call = pending.pop(0)
        if call.peer_id not in others:
            more = machine.on_failure(call, NOW)
        else:
            told, _ = others[call.peer_id].on_ask(machine.peer_id, call.ask, NOW)
            more = machine.on_told(call, told, NOW)
        pending += [effect for effect in more if isinstance(effect, Call)]


def knowing(owner: Identity, others: list[Identity], config: GossipConfig | None = None) -> Machine:
    """A machine whose table has been filled."""
    machine = machine_of(owner, config)
    for identity in others:
        machine.table.add(member(identity), NOW)
    machine.is_complete = True
    return machine


def test_a_newcomer_is_complete_after_two_rounds_of_calls() -> None:
    everyone = people(400)
    contacts = [knowing(identity, everyone) for identity in everyone[:3]]
    newcomer = machine_of(identity_of("newcomer"))
    for contact in contacts:
        newcomer.meet(contact.peer_id)
    first = newcomer.join(NOW)
    assert len(first) == 3
    second = []
    for call in first:
        assert isinstance(call, Call)
        told, _ = (
            contacts[call.share].on_ask(newcomer.peer_id, call.ask, NOW)
            if (contacts[call.share].peer_id == call.peer_id)
            else next(c for c in contacts if c.peer_id == call.peer_id).on_ask(
                newcomer.peer_id, call.ask, NOW
            )
        )
        second += newcomer.on_told(call, told, NOW)
    assert not newcomer.is_complete
    for call in second:
        assert isinstance(call, Call) and not call.ask.is_exchange
        answerer = next(c for c in contacts if c.peer_id == call.peer_id)
        told, _ = answerer.on_ask(newcomer.peer_id, call.ask, NOW)
        more = newcomer.on_told(call, told, NOW)
        assert newcomer.is_complete or not more
    assert newcomer.is_complete
    for call in more:  # it introduces itself to its neighbours
        assert isinstance(call, Call) and not call.ask.want
        assert [item.author for item in call.ask.news] == [newcomer.peer_id]
    assert len(more) >= newcomer.config.num_partners
    assert newcomer.table.num_members == 401
    shares = [sum(len(c.ask.want) for c in second if c.peer_id == m.peer_id) for m in contacts]
    assert min(shares) > 90, "every contact gives a part"
    assert all(contact.table.member(newcomer.peer_id) for contact in contacts)


def test_a_newcomer_whose_contacts_are_gone_tries_again() -> None:
    newcomer = machine_of(identity_of("newcomer"))
    newcomer.meet(identity_of("nobody").peer_id)
    calls = [effect for effect in newcomer.tick(NOW) if isinstance(effect, Call)]
    assert calls
    for call in calls:
        newcomer.on_failure(call, NOW)
    assert not newcomer.is_complete
    assert [e for e in newcomer.tick(NOW + 4) if isinstance(e, Call) and e.share >= 0]


def test_news_are_given_to_who_lacks_them_and_offered_to_who_answers() -> None:
    alice, bob, carol = people(3)
    left, right = knowing(alice, [bob]), knowing(bob, [alice])
    for machine in (left, right):
        machine._cool(NOW + 100)  # the records that were there from the start are no news
        machine._reconcile_at = NOW + 1000
    news = member(carol)
    left.on_ask(bob.peer_id, Ask(news=(news,)), NOW + 100)
    told, _ = left.on_ask(bob.peer_id, Ask(), NOW + 101)
    assert news in told.news
    told, _ = left.on_ask(bob.peer_id, Ask(have=(news.id,)), NOW + 101)
    assert news not in told.news
    # A caller that has what we lack is called back for it.
    (offer,) = [e for e in left.tick(NOW + 102) if isinstance(e, Call)]
    assert offer.peer_id == bob.peer_id and news.id in offer.ask.have and not offer.ask.news
    right.on_ask(alice.peer_id, offer.ask, NOW + 102)
    (back,) = [e for e in right.tick(NOW + 103) if isinstance(e, Call)]
    assert (back.peer_id, back.ask.want) == (alice.peer_id, (news.id,))
    told, _ = left.on_ask(bob.peer_id, back.ask, NOW + 103)
    right.on_told(back, told, NOW + 103)
    assert right.table.member(carol.peer_id) is news
    left._cool(NOW + 200)
    told, _ = left.on_ask(bob.peer_id, Ask(), NOW + 200)
    assert news not in told.news, "it is news for half a minute"


def test_a_liar_that_offers_what_it_does_not_have_gets_every_other_call_at_most() -> None:
    alice, *others = people(30)
    machine = knowing(alice, others)
    liar = others[0].peer_id
    called = []
    for step in range(60):
        machine.on_ask(liar, Ask(have=(step,)), NOW + 4 * step)
        calls = [e for e in machine.tick(NOW + 4 * step) if isinstance(e, Call)]
        called += [call.peer_id for call in calls]
        for call in calls:
            machine.on_told(call, Told(), NOW + 4 * step)
    assert called.count(liar) <= 40


def test_the_keepers_of_a_key_hear_of_it_first_and_are_asked_first() -> None:
    alice, *others = people(60)
    machine = knowing(alice, others)
    machine.tick(NOW)
    record = job(alice)
    keepers = machine.neighbours.keepers(record.key)
    assert len(keepers) == 3
    told = [e.peer_id for e in machine.publish(record, NOW) if isinstance(e, Call)]
    assert set(keepers) <= set(told)
    elsewhere = knowing(others[0], [alice, *others[1:]])
    asked = elsewhere.neighbours.whom_to_ask(record.key, [])
    assert set(asked) >= set(keepers) - {others[0].peer_id}
    assert not set(elsewhere.neighbours.whom_to_ask(record.key, asked)) & set(asked)


def test_a_record_of_our_own_goes_to_every_neighbour_at_once() -> None:
    alice, *others = people(20)
    machine = knowing(alice, others)
    machine.tick(NOW)
    calls = machine.publish(job(alice), NOW + 1)
    assert len(calls) >= machine.config.num_partners
    assert all(
        isinstance(call, Call) and call.ask.news[-1].key.startswith("job/") for call in calls
    )


def test_reconciling_evens_out_two_tables_in_both_directions() -> None:
    everyone = people(60)
    left, right = knowing(everyone[0], everyone[:50]), knowing(everyone[1], everyone[10:])
    call = Call(right.peer_id, Ask(sums=left.table.sums()))
    carried_out(left, {right.peer_id: right}, [call])
    assert left.table.sums() == right.table.sums()
    assert left.table.num_members == right.table.num_members == 60


def test_a_watched_peer_that_misses_three_calls_is_accused_once() -> None:
    alice, *others = people(10)
    machine = knowing(alice, others)
    machine.tick(NOW)
    watched, *_, other = machine.neighbours.watched
    assert missed_while_another_answers(machine, watched, other) == []
    assert missed_while_another_answers(machine, watched, other) == []
    (accusation,) = missed_while_another_answers(machine, watched, other)
    assert isinstance(accusation, Accuse) and accusation.accused.author == watched
    for _ in range(5):
        assert missed_while_another_answers(machine, watched, other) == []


def missed_while_another_answers(machine: Machine, silent: PeerId, other: PeerId) -> list[Effect]:
    effects = machine.on_failure(Call(silent, Ask()), NOW)
    machine.on_told(Call(other, Ask()), Told(), NOW)
    return effects


def test_a_peer_whose_own_calls_all_fail_accuses_nobody_until_another_answers() -> None:
    alice, *others = people(10)
    machine = knowing(alice, others)
    machine.tick(NOW)
    silent, *_, other = machine.neighbours.watched
    for _ in range(10):
        for identity in others:
            assert machine.on_failure(Call(identity.peer_id, Ask()), NOW) == []
        machine.on_ask(other, Ask(), NOW)  # being called shows nothing about our own calls
    assert machine.table.num_members == 10
    # It is back: what it missed while it was cut off counts once, not ten times.
    machine.on_told(Call(other, Ask()), Told(), NOW)
    assert missed_while_another_answers(machine, silent, other) == []
    (accusation,) = missed_while_another_answers(machine, silent, other)
    assert isinstance(accusation, Accuse) and accusation.accused.author == silent


def test_of_two_peers_one_needs_no_third_to_miss_the_other() -> None:
    alice, bob = people(2)
    machine = knowing(alice, [alice, bob])
    machine.tick(NOW)
    call = Call(bob.peer_id, Ask())
    assert machine.on_failure(call, NOW) == machine.on_failure(call, NOW) == []
    assert [type(effect) for effect in machine.on_failure(call, NOW)] == [Accuse]


def test_a_peer_that_nobody_answers_for_minutes_joins_anew_and_keeps_the_jobs() -> None:
    alice, *others = people(10)
    machine = knowing(alice, others)
    machine.table.add(job(others[0]), NOW)
    for step in range(0, 300, 4):
        for effect in machine.tick(NOW + step):
            if isinstance(effect, Call):
                machine.on_failure(effect, NOW + step)
    assert machine.is_complete
    effects = machine.tick(NOW + 304)
    assert not machine.is_complete
    assert machine.table.num_members == 0
    assert [item.author for item in machine.table.jobs()] == [others[0].peer_id]
    assert [effect for effect in effects if isinstance(effect, Call) and effect.share >= 0]


def test_the_last_of_a_swarm_takes_whoever_comes_later_as_they_come() -> None:
    alice, bob, carol = people(3)
    machine = knowing(alice, [alice, carol])
    machine.tick(NOW)
    machine.on_failure(Call(carol.peer_id, Ask()), NOW)
    machine.table.add(gone(carol, carol.peer_id), NOW)
    for step in range(4, 1000, 4):
        machine.tick(NOW + step)
    machine.on_ask(bob.peer_id, Ask(news=(member(bob),)), NOW + 1000)
    machine.tick(NOW + 1000)
    assert machine.is_complete
    assert machine.table.member(bob.peer_id) is not None


def test_a_peer_alone_for_long_takes_whoever_comes_as_they_come() -> None:
    alice, bob, carol = people(3)
    machine = knowing(alice, [alice])
    machine.meet(carol.peer_id)
    for step in range(0, 1000, 4):
        machine.on_failure(Call(carol.peer_id, Ask()), NOW + step)
        machine.tick(NOW + step)
    machine.on_ask(bob.peer_id, Ask(news=(member(bob),)), NOW + 1000)
    machine.tick(NOW + 1000)
    assert machine.is_complete
    assert machine.table.member(bob.peer_id) is not None


def test_an_answer_in_between_clears_a_watched_peer() -> None:
    alice, *others = people(10)
    machine = knowing(alice, others)
    machine.tick(NOW)
    call = Call(machine.neighbours.watched[0], Ask())
    for _ in range(3):
        machine.on_failure(call, NOW)
        machine.on_failure(call, NOW)
        machine.on_told(call, Told(), NOW)
    assert machine.on_failure(call, NOW) == []


def test_a_suspected_peer_is_called_at_every_tick_and_another_beside_it() -> None:
    alice, *others = people(10)
    machine = knowing(alice, others)
    machine.tick(NOW)
    machine.neighbours._waiting.clear()
    suspect = machine.neighbours.watched[-1]
    machine.on_failure(Call(suspect, Ask()), NOW)
    calls = [effect for effect in machine.tick(NOW + 4) if isinstance(effect, Call)]
    first, second = [call.peer_id for call in calls]
    assert first == suspect != second
    assert suspect not in [e.peer_id for e in machine.tick(NOW + 8) if isinstance(e, Call)], (
        "it has not failed to answer yet"
    )


def test_who_is_accused_says_that_it_lives_but_not_at_every_shout() -> None:
    alice, bob, carol = people(3)
    machine = knowing(alice, [bob, carol])
    _, effects = machine.on_ask(bob.peer_id, Ask(news=(gone(bob, alice.peer_id),)), NOW)
    assert effects == [Renew()]
    _, effects = machine.on_ask(carol.peer_id, Ask(news=(gone(carol, alice.peer_id),)), NOW + 1)
    assert effects == []
    assert machine.table.member(alice.peer_id) is not None


def test_our_own_record_is_renewed_before_it_runs_out() -> None:
    alice = identity_of("alice")
    config = GossipConfig(lifetime_s=3600.0)
    machine = machine_of(alice, config)
    assert Renew() not in machine.tick(NOW + 1200)
    machine._ticked_at = NOW + 3000
    assert Renew() in machine.tick(NOW + 3000)


def test_partners_are_drawn_from_the_whole_table_not_from_those_who_call() -> None:
    alice, *others = people(200)
    machine = knowing(alice, others)
    loud = others[0].peer_id
    for step in range(300):
        machine.on_ask(loud, Ask(), NOW + step)
    chosen: set[str] = set()
    for step in range(0, 3000, 30):
        machine.tick(NOW + 300 + step)
        chosen.update(machine.neighbours.partners)
    assert len(chosen) > 12
    assert len(machine.neighbours.partners) == machine.config.num_partners


def test_after_a_long_sleep_a_peer_joins_anew_and_brings_nobody_back() -> None:
    alice, *others = people(30)
    machine = knowing(alice, others)
    machine.tick(NOW)
    effects = machine.tick(NOW + 1000)
    assert not machine.is_complete
    assert machine.table.num_members == 0
    assert Renew() in effects
    assert [e for e in effects if isinstance(e, Call) and e.share >= 0]


def test_two_halves_that_took_each_other_for_dead_find_each_other() -> None:
    left_people, right_people = people(12)[:6], people(12)[6:]
    left, right = knowing(left_people[0], people(12)), knowing(right_people[0], people(12))
    for accused in right_people:
        for accuser in left_people:
            left.table.add(gone(accuser, accused.peer_id), NOW)
    assert len(left.table.lost) > 0
    lost = {item.author for item in left.table.lost}
    others = {identity.peer_id: right for identity in people(12)}
    tried = set()
    for step in range(120):
        calls = [e for e in left.tick(NOW + 4 * step) if isinstance(e, Call)]
        tried.update(call.peer_id for call in calls)
        carried_out(left, others, calls)
    assert lost & tried


def test_the_same_seed_gives_the_same_calls() -> None:
    alice, *others = people(40)

    def story() -> list[object]:
        machine = knowing(alice, others)
        return [
            effect.peer_id
            for step in range(100)
            for effect in machine.tick(NOW + 4 * step)
            if isinstance(effect, Call)
        ]

    assert story() == story()


def test_the_longest_answer_fits_into_a_call() -> None:
    longest = MAX_IDS * ID_BYTES + NUM_BUCKETS + MAX_NEWS_BYTES
    page = MAX_PAGE_BYTES + 3 * MAX_WANT + MAX_PAGE_BYTES // 200 * 3
    assert max(longest, page) < 0.95 * MAX_CALL_BYTES
