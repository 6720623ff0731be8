"""Whole runs of people's own loops, in memory and virtual time."""

from __future__ import annotations

import asyncio

import pytest
import torch

from tests.client.loop.loops import LoopStory, certified, loss_of, model_of
from zoonet.client.loop.founding import SETTLE_S
from zoonet.errors import ConfigError
from zoonet.records import RunRecord
from zoonet.testing import run

torch.set_num_threads(1)


def test_loops_that_begin_with_different_models_end_with_the_same_one() -> None:
    async def story() -> None:
        told = LoopStory()
        loopers = [await told.add(name, seed=seed) for seed, name in enumerate("abc")]
        before = loss_of(model_of(0))
        await told.finish()
        assert len({looper.theta() for looper in loopers}) == 1
        assert len({looper.part.job_id for looper in loopers}) == 1
        for looper in loopers:
            assert certified(looper) == list(range(48))
            assert len(looper.slots) >= 8
        assert sorted(slot for looper in loopers for slot in looper.slots) == list(range(48))
        assert loss_of(loopers[0].model) < 0.5 * before

    run(story())


def test_no_slot_is_lost_and_none_counts_twice_when_a_peer_dies() -> None:
    async def story() -> None:
        told = LoopStory()
        loopers = [await told.add(name, seed=seed) for seed, name in enumerate("abc")]
        first = loopers[0]
        await told.until(lambda: len(first.slots) >= 7)
        await told.kill("c")
        await told.finish()
        assert first.theta() == loopers[1].theta()
        assert certified(first) == list(range(48))

    run(story())


def test_a_latecomer_takes_over_the_parameters_of_those_who_train() -> None:
    async def story() -> None:
        told = LoopStory()
        first = await told.add("a", num_slots=200)
        await told.until(lambda: first.part.status.num_rounds >= 2)
        late = await told.add("late", seed=9, num_slots=200)
        await told.finish()
        assert late.slots
        assert first.theta() == late.theta()
        assert certified(late) == list(range(200))

    run(story())


def test_who_founds_a_run_does_not_begin_without_others_of_whom_it_hears_late() -> None:
    """As on a busy machine: they come in about the same moment, and a first word takes seconds."""

    async def story() -> None:
        told = LoopStory()
        first = await told.add("a", hears_after_s=9.0)
        await asyncio.sleep(SETTLE_S / 2)
        second = await told.add("b")
        await told.finish()
        for looper in (first, second):
            assert looper.part.chain is not None
            begun = looper.part.chain.certificates[0].result
            assert len(begun.members) == 2
            assert certified(looper) == list(range(48))

    run(story())


def test_two_who_begin_apart_go_on_together_while_nothing_is_certified() -> None:
    """The network keeps them apart for a while, and each one founds a run that two must come to."""

    async def story() -> None:
        told = LoopStory()
        for seed, name in enumerate("ab"):
            await told.add(name, seed=seed, hears_after_s=30.0, unheard=RunRecord, min_peers=2)
        loopers = list(told.loopers.values())
        await told.until(lambda: all(looper.part.chain is not None for looper in loopers))
        assert len({looper.part.job_id for looper in loopers}) == 2
        await told.finish()
        assert len({looper.part.job_id for looper in loopers}) == 1
        assert len({looper.theta() for looper in loopers}) == 1
        assert certified(loopers[0]) == list(range(48))
        assert all(looper.slots for looper in loopers)

    run(story())


def test_who_has_certified_work_stays_with_it_and_says_that_there_is_another_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def story() -> None:
        told = LoopStory()
        for seed, name in enumerate("ab"):
            await told.add(name, seed=seed, hears_after_s=20.0, unheard=RunRecord, num_slots=600)
        loopers = list(told.loopers.values())
        await told.finish()
        assert len({looper.part.job_id for looper in loopers}) == 2
        assert all(certified(looper) == list(range(600)) for looper in loopers)

    run(story())
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert sum("another run=squares is under way, begun earlier" in text for text in warned) == 1


def test_another_model_or_other_settings_are_refused_in_words() -> None:
    async def story() -> None:
        told = LoopStory()
        first = await told.add("a", num_slots=400)
        await told.until(lambda: first.part.status.num_rounds >= 1)
        other = await told.add("b", width=5, batch_size=8, outer_lr=0.5)
        with pytest.raises(ConfigError) as refusal:
            await other.tasks[0]
        for difference in (
            "'squares'",
            "batch_size is 4 there and 8 here",
            "outer_lr is 0.7 there and 0.5 here",
            "the parameter 0.weight is of shape (8, 3) there and (5, 3) here",
        ):
            assert difference in str(refusal.value)
        await told.kill("a")
        await told.kill("b")

    run(story())


def test_training_ahead_ends_with_the_same_parameters_everywhere() -> None:
    async def story() -> None:
        told = LoopStory()
        loopers = [await told.add(name, ahead=1.0) for name in "ab"]
        await told.finish()
        assert loopers[0].theta() == loopers[1].theta()
        assert certified(loopers[0]) == list(range(48))

    run(story())


def test_steps_to_infinity_are_taken_back() -> None:
    async def story() -> None:
        told = LoopStory()
        first = await told.add("a")
        bad = await told.add("b")

        def explode() -> None:
            if len(bad.slots) == 6:
                with torch.no_grad():
                    next(bad.model.parameters()).fill_(float("nan"))

        bad.on_step = explode
        await told.finish()
        assert first.theta() == bad.theta()
        assert certified(first) == list(range(48))

    run(story())


def test_who_is_cancelled_in_the_middle_leaves_nothing_running() -> None:
    async def story() -> None:
        told = LoopStory()
        first = await told.add("a")
        await told.until(lambda: len(first.slots) >= 3)
        transport = first.place.transport
        await told.kill("a")
        await transport.close()
        assert len(asyncio.all_tasks()) == 1

    run(story())
