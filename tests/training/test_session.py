from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from zoonet import config
from zoonet.errors import ConfigError, NonFiniteLoss, UnreadableSlot
from zoonet.training.inner import learning_rate
from zoonet.training.messages import Sample, Train
from zoonet.training.session import TrainingSession, each, pick_device, position


def never() -> bool:
    return False


def round_of(session: TrainingSession, job: Any, slots: range) -> tuple[np.ndarray, np.ndarray]:
    theta_P = job.initial_P.copy()
    inner_N = np.zeros(2 * job.num_parameters + 1, np.float32)
    session.begin(theta_P, None)
    for slot in slots:
        session.step(slot, 0.5)
    session.finish_round(theta_P, inner_N)
    return theta_P, inner_N


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_lowers_the_held_out_loss(make_job: Callable[..., Any], optimizer: str) -> None:
    job = make_job(optimizer=optimizer)
    with TrainingSession(job.start) as session:
        before, num_tokens = session.evaluate(job.initial_P, max_tokens=0, is_stopped=never)
        theta_P, inner_N = round_of(session, job, range(60))
        after, _ = session.evaluate(theta_P, max_tokens=0, is_stopped=never)
    assert num_tokens == (job.prepared.data.num_heldout_tokens - 1) // 16 * 16
    assert before == pytest.approx(np.log(job.spec.vocab_size), abs=0.2)
    assert after < before - 0.8
    assert inner_N[-1] == 60


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_same_slots_give_the_same_parameters_anywhere(
    make_job: Callable[..., Any], dropout: float, optimizer: str
) -> None:
    job = make_job({"dropout": dropout}, optimizer=optimizer)
    with TrainingSession(job.start) as one, TrainingSession(job.start) as other:
        round_of(other, job, range(7, 9))  # leaves nothing behind
        first, again = round_of(one, job, range(4)), round_of(other, job, range(4))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])


def test_an_embedding_job_trains_and_generates_no_text(make_job: Callable[..., Any]) -> None:
    job = make_job({"kind": "embedding"}, task="embedding")
    with TrainingSession(job.start) as session:
        before, _ = session.evaluate(job.initial_P, max_tokens=0, is_stopped=never)
        theta_P, _ = round_of(session, job, range(60))
        after, _ = session.evaluate(theta_P, max_tokens=0, is_stopped=never)
        with pytest.raises(ConfigError, match="does not generate"):
            session.sample(theta_P, Sample(prompt="the", num_tokens=3))
    assert after < before


def test_a_sample_goes_on_from_the_prompt_and_repeats_with_its_seed(job: Any) -> None:
    with TrainingSession(job.start) as session:
        theta_P, _ = round_of(session, job, range(100))
        texts = [
            session.sample(theta_P, Sample(prompt="the ", num_tokens=40, seed=seed))
            for seed in (1, 1, 2)
        ]
        likeliest = session.sample(theta_P, Sample(prompt="the", num_tokens=1, temperature=0))
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("the ") and len(text) == 44 for text in texts)
    assert likeliest == "the "


@pytest.mark.parametrize(
    "request_",
    [
        Sample(prompt="the", num_tokens=-1),
        Sample(prompt="the", num_tokens=10**9),
        Sample(prompt="the", num_tokens=1, temperature=-1.0),
        Sample(prompt="the", num_tokens=1, temperature=float("nan")),
        Sample(prompt="THE", num_tokens=1),
    ],
)
def test_an_impossible_sample_is_refused(job: Any, request_: Sample) -> None:
    with TrainingSession(job.start) as session, pytest.raises(ConfigError):
        session.sample(job.initial_P, request_)


def test_parameters_that_are_no_numbers_are_an_error_and_are_not_written(job: Any) -> None:
    theta_P = np.full_like(job.initial_P, np.inf)
    inner_N = np.zeros(2 * job.num_parameters + 1, np.float32)
    with TrainingSession(job.start) as session:
        session.begin(theta_P, None)
        session.step(0, 0.5)
        with pytest.raises(NonFiniteLoss):
            session.take_loss()
        with pytest.raises(NonFiniteLoss):
            session.finish_round(theta_P, inner_N)
        with pytest.raises(NonFiniteLoss):
            session.evaluate(theta_P, max_tokens=0, is_stopped=never)
        assert not inner_N.any()
        round_of(session, job, range(2))  # a later round is not poisoned


def test_a_job_whose_model_is_not_what_it_promises_is_refused(job: Any) -> None:
    lying = msgspec.structs.replace(job.prepared, num_parameters=job.num_parameters + 1)
    start = msgspec.structs.replace(job.start, prepared=config.encode(lying))
    with pytest.raises(ConfigError, match="promises"):
        TrainingSession(start)


def test_tokens_outside_the_vocabulary_make_a_slot_unreadable(job: Any) -> None:
    Path(job.start.train_path).write_bytes(b"\xff" * 1000)
    with TrainingSession(job.start) as session:
        session.begin(job.initial_P, None)
        with pytest.raises(
            UnreadableSlot, match=r"data slot 3: .*outside the vocabulary"
        ) as caught:
            session.step(3, 0.0)
    assert caught.value.slots == ((3, 4),)


def test_a_file_that_was_cut_short_makes_a_slot_unreadable_and_is_no_crash(job: Any) -> None:
    path = Path(job.start.train_path)
    with TrainingSession(job.start) as session:
        session.begin(job.initial_P, None)
        os.truncate(path, 100)
        with pytest.raises(UnreadableSlot, match="ends within"):
            session.step(0, 0.0)


def test_a_loss_that_is_no_number_names_the_first_slot_that_gave_none(job: Any) -> None:
    with TrainingSession(job.start) as session:
        session.begin(job.initial_P, None)
        for slot in range(8):
            if slot == 5:
                session.shift(np.full_like(job.initial_P, 1e30))
            session.step(slot, 0.5)
        with pytest.raises(NonFiniteLoss, match="data slot 5") as caught:
            session.take_loss()
        assert caught.value.slots == ((5, 6),)
        round_of(session, job, range(2))  # a later round is not poisoned


def test_an_unknown_device_is_named() -> None:
    assert pick_device("cpu").type == "cpu"
    for name in ("gpu9", "cuda:99"):
        with pytest.raises(ConfigError, match=name):
            pick_device(name)


def test_the_learning_rate_follows_the_tokens_of_the_whole_job() -> None:
    command = Train(
        round=3,
        slots=(),
        steps=2,
        num_carried=0,
        tokens_done=500,
        tokens_planned=100,
        is_fresh=False,
        has_inner_state=True,
    )
    assert position(command, 0, 1000) == pytest.approx(0.525)
    assert position(command, 1, 1000) == pytest.approx(0.575)
    assert position(command, 2, 1000) == pytest.approx(0.625)  # ahead: the next round's
    assert position(command, 1, 100) == 1.0


def test_the_learning_rate_reaches_the_optimizer(make_job: Callable[..., Any]) -> None:
    job = make_job(weight_decay=0.0, grad_clip=0.0)
    moved = []
    with TrainingSession(job.start) as session:
        for progress in (0.1, 0.9):
            theta_P = job.initial_P.copy()
            session.begin(theta_P, None)
            session.step(0, progress)
            session.finish_round(theta_P, np.zeros(2 * job.num_parameters + 1, np.float32))
            moved.append(float(np.abs(theta_P - job.initial_P).max()))
    expected = [learning_rate(progress, job.training) for progress in (0.1, 0.9)]
    assert moved == pytest.approx(expected, rel=1e-2)


def test_slots_are_taken_in_order() -> None:
    assert list(each(((1, 3), (7, 9)))) == [1, 2, 7, 8]


def test_a_seed_of_its_own_gives_another_order(make_job: Callable[..., Any]) -> None:
    job = make_job()
    other = msgspec.structs.replace(job.prepared, training=replace(job.training, seed=5))
    start = msgspec.structs.replace(job.start, prepared=config.encode(other))
    with TrainingSession(job.start) as one, TrainingSession(start) as two:
        assert not np.array_equal(round_of(one, job, range(2))[0], round_of(two, job, range(2))[0])
