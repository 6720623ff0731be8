"""What the soak makes of its samples, its trainer without a model, and that it runs at all."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.soak.peer import PacedTrainer
from experiments.soak.swarm import Settings, job_of
from experiments.soak.watch import Sample, Window, deviation, growth, look, rss_of, windows
from tests.experiments.test_benchmarks import result_of, smoke
from zoonet.config import ComputeJob
from zoonet.training.buffers import SharedBuffers
from zoonet.training.messages import Train

MIB = 1 << 20


def sample(at_s: float, rss_bytes: int) -> Sample:
    return Sample(
        at_s=at_s,
        rss_bytes=rss_bytes,
        peak_rss_bytes=rss_bytes,
        pss_bytes=rss_bytes,
        own_bytes=rss_bytes,
        daemon_rss_bytes=0,
        num_threads=4,
        num_descriptors=20,
        num_tasks=9,
        cpu_s=at_s,
    )


def window(minute: int, median: float) -> Window:
    return Window(minute=minute, median=median, least=median, largest=median)


def test_a_window_has_the_median_of_its_minute() -> None:
    found = windows([sample(1, 10), sample(30, 90), sample(59, 20), sample(61, 5)], "rss_bytes", 60)
    assert found == [
        Window(minute=0, median=20, least=10, largest=90),
        Window(minute=1, median=5, least=5, largest=5),
    ]


def test_what_happens_before_the_end_of_the_warm_up_is_no_deviation() -> None:
    found = [window(0, 500), window(1, 100), window(2, 103), window(3, 99)]
    assert deviation(found, warm_up=1) == pytest.approx(0.03)


@pytest.mark.parametrize("leak", [-6.0, 6.0])
def test_memory_that_creeps_away_in_either_direction_deviates(leak: float) -> None:
    found = [window(minute, 100 + leak * minute / 10) for minute in range(11)]
    assert deviation(found, warm_up=0) == pytest.approx(0.06)


def test_without_anything_after_the_warm_up_nothing_is_claimed() -> None:
    assert deviation([window(0, 100), window(1, 100)], warm_up=1) is None
    assert deviation([window(0, 100), window(1, 100)], warm_up=7) is None
    assert growth([window(0, 4), window(1, 4)], warm_up=0) is None


def test_a_thread_more_each_minute_is_growth_and_one_that_comes_and_goes_is_not() -> None:
    assert growth([window(minute, 10 + minute) for minute in range(9)], warm_up=0) == 6
    assert growth([window(minute, 10 + minute % 2) for minute in range(12)], warm_up=0) == 0


def test_a_look_at_a_process_sees_its_memory_and_the_peak_since_the_last_look() -> None:
    me = os.getpid()
    before = look(me, at_s=0.0, num_tasks=3)
    assert before is not None
    held = mmap.mmap(-1, 32 * MIB)  # an array may lie in memory that the heap has kept
    held.write(b"\1" * (32 * MIB))
    within = look(me, at_s=1.0, num_tasks=3)
    held.close()
    after = look(me, at_s=2.0, num_tasks=3)
    calm = look(me, at_s=3.0, num_tasks=3)
    assert within is not None and after is not None and calm is not None
    assert within.rss_bytes - before.rss_bytes > 24 * MIB
    assert after.peak_rss_bytes - after.rss_bytes > 24 * MIB
    assert calm.peak_rss_bytes - calm.rss_bytes < 8 * MIB
    assert after.own_bytes <= after.pss_bytes <= after.rss_bytes
    assert after.num_threads >= threading.active_count()
    assert abs(rss_of(me) - calm.rss_bytes) < 8 * MIB


def test_a_process_that_has_gone_is_not_seen() -> None:
    assert look(2**22 + 1, at_s=0.0, num_tasks=0) is None


@pytest.mark.parametrize("size_mib", [1.0, 16.0, 64.0])
def test_the_job_has_a_vector_of_the_wanted_size(size_mib: float, tmp_path: Path) -> None:
    settings = Settings(codec="fp32", size_mib=size_mib)
    job: ComputeJob = job_of(settings, tmp_path / "text.txt")
    model = job.model_config
    num_values = (model.vocab_size + model.context + 12 * model.width) * model.width
    assert num_values * 4 / MIB == pytest.approx(size_mib, rel=0.02)


def test_half_of_the_peers_have_shared_memory_and_half_have_none() -> None:
    settings = Settings(codec="fp32")
    users = [settings.uses_shm(number) for number in range(settings.num_peers)]
    assert users.count(True) == users.count(False)


@pytest.mark.asyncio
async def test_the_paced_trainer_moves_all_parameters_at_the_end_of_a_period() -> None:
    with SharedBuffers.create(200_000) as buffers:
        trainer = PacedTrainer(buffers, period_s=0.05, seed=1)
        began = time.time()
        trained = await trainer.train(command((3, 5)))
        assert int(time.time() / 0.05) > int(began / 0.05)
        assert trained.slots == ((3, 5),)
        assert np.count_nonzero(buffers.local_P) > 199_900


@pytest.mark.asyncio
async def test_the_paced_trainer_that_is_stopped_has_done_nothing() -> None:
    with SharedBuffers.create(1000) as buffers:
        trainer = PacedTrainer(buffers, period_s=3600.0, seed=1)

        async def on_time() -> tuple[tuple[int, int], ...]:
            return (await trainer.train(command((0, 1)))).slots

        training = asyncio.create_task(on_time())
        await asyncio.sleep(0)
        await trainer.stop()
        assert await training == ()
        assert not buffers.local_P.any()


def command(slots: tuple[int, int]) -> Train:
    return Train(
        round=0,
        slots=(slots,),
        steps=slots[1] - slots[0],
        num_carried=0,
        tokens_done=0,
        tokens_planned=8,
        is_fresh=True,
        has_inner_state=False,
    )


@pytest.mark.p2p
@pytest.mark.slow
def test_the_soak_runs_kills_and_judges(tmp_path: Path) -> None:
    done = smoke("soak", tmp_path)
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "result.json")
    (swarm,) = result["swarms"]
    assert swarm["num_rounds"] > 2
    assert {event["how"] for event in swarm["events"]} >= {"killed", "came back"}
    (stayed,) = [peer for peer in swarm["peers"] if peer["is_staying"]]
    assert stayed["rss_bytes_deviation"] is not None
    assert len(stayed["trace"]) > 10
    told = json.loads((tmp_path / "result-copies.json").read_text())
    assert [each["variant"] for each in told["averagers"]] == ["tls"]
    assert told["goals"]
