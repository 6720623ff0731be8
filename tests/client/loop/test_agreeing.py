"""How peers agree on a run: its data, its settings, the parameters that it begins with."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.client.loop.loops import identity_of, model_of, place_of, spec_of
from zoonet.client.loop.data import Batches, Loader, SlotOrder
from zoonet.client.loop.founding import SETTLE_S, Founded, Founding
from zoonet.client.loop.spec import SwarmConfig, decode, differences, encode
from zoonet.errors import ConfigError, PeerTimeout
from zoonet.records import RecordStore, Signed
from zoonet.testing import MemorySwarm, run
from zoonet.training.vector import ModelVector


def founding_of(memory: MemorySwarm, name: str, seed: int) -> Founding:
    vector = ModelVector(model_of(seed))
    own_P = np.empty(vector.num_parameters, np.float32)
    vector.store(own_P)
    return Founding(place_of(memory, identity_of(name)), spec_of(vector), own_P)


def test_every_sample_comes_once_an_epoch_and_in_another_order_the_next_time() -> None:
    order = SlotOrder(10, 4, seed=3)
    epochs = np.concatenate([order.indices(slot) for slot in range(5)]).reshape(2, 10)
    assert [sorted(epoch) for epoch in epochs.tolist()] == [list(range(10))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    assert order.indices(2).tolist() == SlotOrder(10, 4, seed=3).indices(2).tolist()


def test_a_batch_is_what_collate_makes_of_the_items() -> None:
    batches = Batches([n * n for n in range(6)], SlotOrder(6, 3, seed=0), collate=sorted)
    assert sorted(batches.of(0) + batches.of(1)) == [0, 1, 4, 9, 16, 25]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_made_ahead_are_those_that_are_asked_for(num_workers: int) -> None:
    batches = Batches(range(60), SlotOrder(60, 3, seed=1), collate=list)
    loader = Loader(batches, num_workers)
    asked = [0, 1, 2, 9, 10, 3, 4]  # a lease that is taken back, another one, and the first again
    found = [loader.take(slot, range(slot + 1, slot + 4)) for slot in asked]
    loader.close()
    assert found == [batches.of(slot) for slot in asked]


def test_what_the_dataset_raises_in_a_worker_is_raised_in_the_loop() -> None:
    loader = Loader(Batches({}, SlotOrder(4, 2, seed=1), collate=list), num_workers=1)
    with pytest.raises(KeyError):
        loader.take(0, range(1, 2))
    loader.close()


def test_a_spec_survives_its_bytes_and_strange_bytes_are_refused() -> None:
    spec = spec_of(ModelVector(model_of(0)))
    assert decode(encode(spec)) == spec
    assert differences(spec, spec) == ""
    for raw in (b"", b"{}", encode(spec)[:-1], encode(spec).replace(b'"run"', b'"nur"')):
        with pytest.raises(ConfigError, match="not the settings of a run"):
            decode(raw)


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_peers is 3 and max_peers 2"):
        SwarmConfig(min_peers=3, max_peers=2)
    with pytest.raises(ConfigError, match="outer_lr"):
        spec_of(ModelVector(model_of(0)), outer_lr=-1.0).training()


def test_peers_who_come_in_the_same_instant_begin_with_the_same_parameters() -> None:
    async def story() -> list[Founded]:
        memory = MemorySwarm()
        foundings = [founding_of(memory, name, seed) for seed, name in enumerate("abcd")]
        for founding in foundings:
            await founding._access.exchange.serve()
        return await asyncio.gather(*(founding.settle() for founding in foundings))

    found = run(story())
    assert len({(each.job_id, each.initial_P.tobytes()) for each in found}) == 1


def test_who_comes_a_moment_later_than_the_first_takes_its_parameters() -> None:
    async def story() -> tuple[Founded, Founded]:
        memory = MemorySwarm()
        first, second = founding_of(memory, "a", 1), founding_of(memory, "b", 2)
        await first._access.exchange.serve()
        founding = asyncio.create_task(first.settle())
        await asyncio.sleep(SETTLE_S / 2)
        return await second.settle(), await founding

    later, earlier = run(story())
    assert later.job_id == earlier.job_id
    assert (later.initial_P == earlier.initial_P).all()


def test_a_run_whose_peers_have_all_gone_is_begun_again() -> None:
    async def story() -> tuple[Founded, Founded]:
        memory = MemorySwarm()
        first, second = founding_of(memory, "a", 1), founding_of(memory, "b", 2)
        await first._access.exchange.serve()
        gone = await first.settle()
        await memory.kill(identity_of("a").peer_id)
        return gone, await second.settle()

    gone, begun = run(story())
    assert gone.job_id != begun.job_id


class SlowToPublish:
    """A record store through which an offer takes long to get out."""

    def __init__(self, beneath: RecordStore, delay_s: float) -> None:
        self._beneath = beneath
        self._delay_s = delay_s

    def __getattr__(self, name: str) -> Any:
        return getattr(self._beneath, name)

    async def publish(self, record: Signed[Any]) -> None:
        await asyncio.sleep(self._delay_s)
        await self._beneath.publish(record)


def test_an_older_offer_that_is_seen_late_splits_nobody_off() -> None:
    async def story() -> list[Founded]:
        memory = MemorySwarm()
        slow, swift = founding_of(memory, "a", 1), founding_of(memory, "b", 2)
        records = SlowToPublish(slow._access.records, 5.0)
        slow._access = replace(slow._access, records=records)
        for founding in (slow, swift):
            await founding._access.exchange.serve()
        first = asyncio.create_task(slow.settle())
        await asyncio.sleep(0.5)
        return [await swift.settle(), await first]

    swift, slow = run(story())
    assert swift.job_id == slow.job_id
    assert (swift.initial_P == slow.initial_P).all()


def test_a_record_store_that_does_not_answer_is_asked_again() -> None:
    class Silent(SlowToPublish):
        num_asked = 0

        async def fetch(self, key: str, body_type: type[Any]) -> list[Signed[Any]]:
            self.num_asked += 1
            if self.num_asked < 4:
                raise PeerTimeout("nobody says anything")
            return await self._beneath.fetch(key, body_type)

    async def story() -> list[Founded]:
        memory = MemorySwarm()
        first, second = founding_of(memory, "a", 1), founding_of(memory, "b", 2)
        await first._access.exchange.serve()
        founded = await first.settle()
        second._access = replace(second._access, records=Silent(second._access.records, 0.0))
        return [founded, await second.settle()]

    assert len({each.job_id for each in run(story())}) == 1
