"""The all-reduce over trees: everyone gets the same bits, and a loss costs one contribution."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.averaging.forest import Forest
from tests.averaging.makers import peer
from tests.averaging.swarm import JOB_ID
from zoonet.averaging.allreduce import AttemptFailed
from zoonet.averaging.chunks import Header, Kind
from zoonet.averaging.plan import chunk_bounds
from zoonet.crypto import PeerId
from zoonet.errors import WorkLost, ZoonetError
from zoonet.exact import weighted_mean
from zoonet.testing import run
from zoonet.transport import StreamLanes

FLAT = (("ada", "bob", "cyd", "dan"),)
TWO_BY_TWO = (("ada", "bob"), ("cyd", "dan"))
LONE = (("ada",), ("bob",), ("cyd",))
UNEVEN = (("ada", "bob", "cyd"), ("dan", "eve"), ("fay",))
SHAPES = [(("ada",),), FLAT, TWO_BY_TWO, LONE, UNEVEN]


def means(found: dict[str, np.ndarray | AttemptFailed]) -> dict[str, np.ndarray]:
    for name, mean in found.items():
        assert isinstance(mean, np.ndarray), f"{name}: {mean}"
    return {name: mean for name, mean in found.items() if isinstance(mean, np.ndarray)}


def only_one_of(found: dict[str, np.ndarray | AttemptFailed]) -> np.ndarray:
    """The mean, which has to be the same bits for everyone."""
    by_name = means(found)
    assert len({mean_P.tobytes() for mean_P in by_name.values()}) == 1
    return next(iter(by_name.values()))


@pytest.mark.parametrize("sites", SHAPES)
@pytest.mark.parametrize("size", [1, 5, 1000, 200_003])
def test_everybody_gets_the_same_bits_which_are_the_mean(
    sites: Sequence[Sequence[str]], size: int
) -> None:
    async def main() -> None:
        forest = Forest(*sites, size=size)
        await forest.serve()
        mean_P = only_one_of(await forest.average_all())
        assert np.allclose(mean_P, forest.exact_mean(), rtol=1e-5, atol=1e-6)
        await forest.close()

    run(main())


def test_in_one_site_the_bits_are_those_of_a_weighted_mean_in_the_order_of_peer_ids() -> None:
    async def main() -> None:
        forest = Forest(*FLAT)
        await forest.serve()
        mean_P = only_one_of(await forest.average_all())
        names = sorted(forest.names, key=peer)
        weights = [2 + forest.names.index(name) for name in names]
        expected_P = weighted_mean([forest.vectors[name] for name in names], weights)
        assert mean_P.tobytes() == expected_P.tobytes()
        await forest.close()

    run(main())


@settings(max_examples=15)
@given(st.lists(st.floats(0.0, 0.5), min_size=6, max_size=6))
def test_the_order_of_arrival_does_not_change_a_bit(delays_s: list[float]) -> None:
    async def main(delays_s: list[float]) -> bytes:
        forest = Forest(*UNEVEN, size=97)
        await forest.serve()
        for name, delay_s in zip(forest.names, delays_s, strict=True):
            forest.memory.faults.extra_delay_s[peer(name)] = delay_s / 10
        mean_P = only_one_of(await forest.average_all())
        await forest.close()
        return mean_P.tobytes()

    assert run(main(delays_s)) == run(main([0.0] * 6))


def test_followers_get_the_mean_and_give_nothing() -> None:
    async def main() -> None:
        forest = Forest(("ada", "bob", "zoe"), ("yve", "xen"), followers=("zoe", "yve", "xen"))
        await forest.serve()
        found = await forest.average_all()
        assert set(found) == {"ada", "bob", "zoe", "yve", "xen"}
        assert np.allclose(only_one_of(found), forest.exact_mean(), rtol=1e-5, atol=1e-6)
        await forest.close()

    run(main())


def test_one_round_follows_the_other() -> None:
    async def main() -> None:
        forest = Forest(*TWO_BY_TWO)
        await forest.serve()
        for index in range(3):
            forest.index = index
            for name in forest.names:
                forest.vectors[name] = forest.vectors[name] + np.float32(index)
                await forest.reducers[name].commit(forest.vectors[name])
            mean_P = only_one_of(await forest.average_all(forest.attempt_of(forest.names)))
            assert np.allclose(mean_P, forest.exact_mean(), rtol=1e-5, atol=1e-5)
        await forest.close()

    run(main())


def test_one_that_comes_late_is_waited_for() -> None:
    async def main() -> None:
        forest = Forest(*FLAT)
        await forest.serve()

        async def late() -> np.ndarray | AttemptFailed:
            await asyncio.sleep(3.0)
            return await forest.average("dan")

        found = await asyncio.gather(late(), *(forest.average(n) for n in ("ada", "bob", "cyd")))
        only_one_of(dict(enumerate(found)))  # type: ignore[arg-type]
        await forest.close()

    run(main())


class Deaf:
    """Takes whatever is sent and does nothing with it."""

    def admit(self, peer_id: PeerId, header: bytes, num_bytes: int) -> memoryview:
        return memoryview(bytearray(num_bytes))

    def arrived(self, peer_id: PeerId, header: bytes) -> None: ...

    def ended(self, peer_id: PeerId, error: ZoonetError) -> None: ...


async def first_failure(
    running: dict[str, asyncio.Task[np.ndarray | AttemptFailed]],
) -> AttemptFailed | None:
    """Wait until one fails, as a coordinator does, or until all are done; end the others."""
    pending = set(running.values())
    failure: AttemptFailed | None = None
    while pending and failure is None:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        results = [task.result() for task in done]
        failure = next((one for one in results if isinstance(one, AttemptFailed)), None)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return failure


# --- losses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sites", [FLAT, TWO_BY_TWO, UNEVEN])
@pytest.mark.parametrize("after_s", [0.0, 0.03, 0.05, 0.07, 0.09, 0.2])
@pytest.mark.parametrize("victim", ["ada", "dan"])
def test_after_a_death_the_others_end_the_same_round_with_the_same_bits(
    sites: Sequence[Sequence[str]], after_s: float, victim: str
) -> None:
    """Whatever the dead peer was: it contributed, owned chunks of its site, was root of others."""

    async def main() -> None:
        forest = Forest(*sites)
        await forest.serve()
        first = {name: asyncio.create_task(forest.average(name)) for name in forest.names}
        await asyncio.sleep(after_s)
        await forest.kill(victim)
        first.pop(victim).cancel()
        survivors = list(first)
        if failure := await first_failure(first):
            assert failure.missing == {peer(victim)}, failure
        second = forest.without(victim)
        found = await asyncio.gather(*(forest.average(name, second) for name in survivors))
        mean_P = only_one_of(dict(zip(survivors, found, strict=True)))
        with_it, without_it = forest.exact_mean(), forest.exact_mean(survivors)
        is_mean = np.isclose(mean_P, with_it, rtol=1e-4, atol=1e-5)
        is_mean |= np.isclose(mean_P, without_it, rtol=1e-4, atol=1e-5)
        assert is_mean.all()
        if after_s == 0.0:
            assert np.allclose(mean_P, without_it, rtol=1e-4, atol=1e-5)
        await forest.close()

    run(main())


@pytest.mark.parametrize("sites", [FLAT, TWO_BY_TWO])
def test_a_peer_that_falls_silent_is_named_by_all_who_wait_for_it(
    sites: Sequence[Sequence[str]],
) -> None:
    async def main() -> float:
        forest = Forest(*sites)
        survivors = ("ada", "bob", "cyd")
        await forest.serve(*survivors)  # dan takes what is sent and says nothing
        await StreamLanes(forest.transport("dan")).serve(f"{JOB_ID}/reduce/1", Deaf())
        began = asyncio.get_running_loop().time()
        first = {name: asyncio.create_task(forest.average(name)) for name in survivors}
        failure = await first_failure(first)
        took_s = asyncio.get_running_loop().time() - began
        assert failure is not None and failure.missing == {peer("dan")}
        second = forest.without("dan")
        again = await asyncio.gather(*(forest.average(name, second) for name in survivors))
        mean_P = only_one_of(dict(zip(survivors, again, strict=True)))
        assert np.allclose(mean_P, forest.exact_mean(survivors), rtol=1e-4, atol=1e-5)
        await forest.close()
        return took_s

    assert run(main()) < 6.0


LINES = [FLAT, TWO_BY_TWO, (("ada",), ("bob",), ("cyd",), ("dan",))]


async def some_rounds(forest: Forest) -> float:
    """Play rounds, from which all learn what is usual; return how long the last one took."""
    took_s = 0.0
    for index in range(3):
        forest.index = index
        for name in forest.names:
            await forest.reducers[name].commit(forest.vectors[name])
        began = asyncio.get_running_loop().time()
        only_one_of(await forest.average_all(forest.attempt_of(forest.names)))
        took_s = asyncio.get_running_loop().time() - began
    return took_s


@pytest.mark.parametrize("sites", LINES)
@pytest.mark.parametrize("slow_s", [0.6, 1.0])
def test_a_peer_that_becomes_slow_in_a_round_is_named_by_others_and_nobody_else_is(
    sites: Sequence[Sequence[str]], slow_s: float
) -> None:
    """Each message to or from it takes so much longer, but it never falls silent."""

    async def main() -> None:
        forest = Forest(*sites)
        await forest.serve()
        await some_rounds(forest)
        forest.index += 1
        for name in forest.names:
            await forest.reducers[name].commit(forest.vectors[name])
        attempt = forest.attempt = forest.attempt_of(forest.names)
        running = {n: asyncio.create_task(forest.average(n, attempt)) for n in forest.names}
        await asyncio.sleep(0.015)
        forest.memory.faults.extra_delay_s[peer("dan")] = slow_s
        await asyncio.sleep(2.5)
        survivors = [name for name in forest.names if name != "dan"]
        found = [running[name].result() for name in survivors if running[name].done()]
        assert len(found) > 1 and not running["dan"].done()
        for failure in found:
            assert isinstance(failure, AttemptFailed) and failure.missing == {peer("dan")}
        for task in running.values():
            task.cancel()
        second = forest.without("dan")
        means_P = await asyncio.gather(*(forest.average(name, second) for name in survivors))
        only_one_of(dict(zip(survivors, means_P, strict=True)))
        await forest.close()

    run(main())


def test_a_round_whose_first_attempt_failed_says_what_is_usual_too() -> None:
    """Without it nobody would be late in the first ten seconds of the next round."""

    async def main() -> None:
        forest = Forest(("ada",), ("bob",), ("cyd",), ("dan",), ("eve",))
        await forest.serve()
        left = ["ada", "bob", "cyd", "dan"]
        first = {name: asyncio.create_task(forest.average(name)) for name in left}
        await forest.kill("eve")
        await first_failure(first)
        second = forest.without("eve")
        await asyncio.gather(*(forest.average(name, second) for name in left))
        forest.index, forest.number = 1, 0
        for name in left:
            await forest.reducers[name].commit(forest.vectors[name])
        attempt = forest.attempt_of(left, plan=second.plan)
        running = {name: asyncio.create_task(forest.average(name, attempt)) for name in left}
        await asyncio.sleep(0.015)
        forest.memory.faults.extra_delay_s[peer("dan")] = 1.0
        failure = await asyncio.wait_for(first_failure(running), 8.0)
        assert failure is not None and failure.missing == {peer("dan")}
        await forest.close()

    run(main())


@pytest.mark.parametrize("sites", LINES)
@pytest.mark.parametrize("slow_s", [0.1, 0.5, 1.0])
def test_a_peer_that_has_been_slow_from_the_first_round_on_is_waited_for(
    sites: Sequence[Sequence[str]], slow_s: float
) -> None:
    async def main() -> None:
        forest = Forest(*sites)
        forest.memory.faults.extra_delay_s[peer("dan")] = slow_s
        await forest.serve()
        assert await some_rounds(forest) > slow_s
        await forest.close()

    run(main())


@pytest.mark.parametrize("victims", [("ada",), ("bob",), ("ada", "bob"), ("cyd", "ada")])
@pytest.mark.parametrize("after_s", [0.02, 0.05, 0.06, 0.07, 0.1])
def test_an_owner_that_has_added_up_its_site_may_become_the_root_of_it(
    victims: tuple[str, ...], after_s: float
) -> None:
    """All alone in their sites, as peers are that know nothing of their links yet."""

    async def main() -> None:
        forest = Forest(("ada",), ("bob",), ("cyd",), ("dan",))
        await forest.serve()
        running = {name: asyncio.create_task(forest.average(name)) for name in forest.names}
        await asyncio.sleep(after_s)
        for victim in victims:
            await forest.kill(victim)
            running.pop(victim).cancel()
        await first_failure(running)
        survivors = [name for name in forest.names if name not in victims]
        second = forest.without(*victims)
        found = await asyncio.gather(*(forest.average(name, second) for name in survivors))
        only_one_of(dict(zip(survivors, found, strict=True)))
        await forest.close()

    run(main())


def test_digests_of_slices_are_the_same_for_everyone_and_differ_where_a_mean_does() -> None:
    async def main() -> None:
        forest = Forest(*TWO_BY_TWO)
        await forest.serve()
        mean_P = only_one_of(await forest.average_all())
        reducers = [forest.reducers[name] for name in forest.names]
        digests = [await reducer.slice_digests(0) for reducer in reducers]
        assert len(set(digests)) == 1 and len(digests[0]) == len(forest.plan.trees)
        assert await reducers[0].slice_digests(1) == ()
        mean_P[0] += 1.0  # of the first peer's buffer
        changed = await forest.reducers["ada"].slice_digests(0)
        assert sum(a != b for a, b in zip(changed, digests[0], strict=True)) == 1
        await forest.close()

    run(main())


@pytest.mark.parametrize("codec", ["fp32", "int8"])
def test_once_a_round_is_certified_nothing_is_held_but_its_mean(codec: str) -> None:
    """Sums of sites are up to one more payload, now of this peer and now of that, by the plan."""

    async def main() -> None:
        forest = Forest(*TWO_BY_TWO, codec=codec, followers=("bob",))
        await forest.serve()
        await forest.average_all()
        reductions = [reducer._reduction for reducer in forest.reducers.values()]
        chunks = [chunk for reduction in reductions if reduction for chunk in reduction._chunks]
        assert any(chunk.sum is not None for chunk in chunks)
        for reducer in forest.reducers.values():
            reducer.settle(is_certified=True, is_merged=True)
        assert not any(chunk.sum or chunk.sum_raw or chunk.parts for chunk in chunks)
        assert all(chunk.mean_N is not None for chunk in chunks)
        await forest.close()

    run(main())


def test_what_still_lands_of_a_round_that_was_given_up_does_not_touch_the_next_mean() -> None:
    async def main() -> None:
        forest = Forest(("ada", "bob"))
        await forest.serve("ada")
        ada, bob = forest.reducers["ada"], forest.plan.peers.index(peer("bob"))
        chunk = next(tree.first for tree in forest.plan.trees if tree.root == bob)
        start, stop = chunk_bounds(forest.size, chunk)
        landings = []
        for forest.index in (0, 1):
            attempt = forest.attempt_of(forest.names)
            given_up = asyncio.create_task(forest.average("ada", attempt))
            await asyncio.sleep(0)
            header = Header(Kind.MEAN, attempt.round_key(), 0, chunk, bob, bits=0b11)
            landings.append(ada.admit(peer("bob"), header.encode(), 4 * (stop - start)))
            given_up.cancel()
        assert None not in landings
        assert not np.shares_memory(*map(np.asarray, landings))
        await forest.close()

    run(main())


# --- codecs -------------------------------------------------------------------------------------

ROUGHNESS = {"fp32": 1e-6, "fp16": 2e-3, "bf16": 2e-2, "int8": 4e-2, "e3m0": 2.5}


@pytest.mark.parametrize("codec", ["fp16", "bf16", "int8", "e3m0", "topk2"])
@pytest.mark.parametrize("sites", [FLAT, TWO_BY_TWO, UNEVEN])
def test_with_every_codec_everybody_gets_the_same_bits(
    codec: str, sites: Sequence[Sequence[str]]
) -> None:
    async def main() -> None:
        forest = Forest(*sites, size=50_000, codec=codec)
        await forest.serve()
        mean_P = only_one_of(await forest.average_all())
        if codec in ROUGHNESS:
            assert np.abs(mean_P - forest.exact_mean()).max() < ROUGHNESS[codec]
        await forest.close()

    run(main())


@pytest.mark.parametrize(("codec", "at_most"), [("int8", 0.6), ("e3m0", 0.6), ("topk2", 0.95)])
def test_what_a_codec_leaves_out_of_one_round_comes_in_later_ones(
    codec: str, at_most: float
) -> None:
    """The same contributions again and again: the sum of the means approaches the true one."""

    async def main(settles: bool) -> float:
        forest = Forest(*TWO_BY_TWO, size=20_000, codec=codec)
        await forest.serve()
        total_P = np.zeros(forest.size)
        for index in range(12):
            forest.index = index
            roots = {n: await forest.reducers[n].commit(forest.vectors[n]) for n in forest.names}
            total_P += only_one_of(await forest.average_all(forest.attempt_of(forest.names, roots)))
            for reducer in forest.reducers.values():
                reducer.settle(is_certified=settles, is_merged=settles)
        await forest.close()
        return float(np.abs(total_P / 12 - forest.exact_mean()).mean())

    assert run(main(True)) < at_most * run(main(False))


def test_a_contribution_that_cannot_be_encoded_is_lost_work() -> None:
    async def main() -> None:
        forest = Forest(*FLAT, codec="int8")
        await forest.serve()
        forest.vectors["ada"][5] = np.nan
        with pytest.raises(WorkLost, match="cannot be encoded"):
            await forest.reducers["ada"].commit(forest.vectors["ada"])
        await forest.close()

    run(main())


@pytest.mark.parametrize("codec", ["int8", "fp16"])
@pytest.mark.parametrize("victim", ["ada", "cyd"])
def test_a_death_costs_one_contribution_with_a_lossy_codec_too(victim: str, codec: str) -> None:
    async def main() -> None:
        forest = Forest(*UNEVEN, size=20_000, codec=codec)
        await forest.serve()
        running = {name: asyncio.create_task(forest.average(name)) for name in forest.names}
        await asyncio.sleep(0.06)
        await forest.kill(victim)
        running.pop(victim).cancel()
        await first_failure(running)
        survivors = list(running)
        second = forest.without(victim)
        found = await asyncio.gather(*(forest.average(name, second) for name in survivors))
        only_one_of(dict(zip(survivors, found, strict=True)))
        await forest.close()

    run(main())


@pytest.mark.parametrize("victim", ["ada", "cyd", "bob"])
@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.05, 0.08])
@pytest.mark.parametrize("codec", ["fp32", "fp16", "int8"])
def test_who_becomes_an_owner_had_nobodys_commitment_before(
    victim: str, after_s: float, codec: str
) -> None:
    """Ada and cyd own every chunk in their sites, until one of them is lost."""

    async def main() -> None:
        forest = Forest(("ada", "bob"), ("cyd", "dan", "eve"), owners=("ada", "cyd"), codec=codec)
        await forest.serve()
        running = {name: asyncio.create_task(forest.average(name)) for name in forest.names}
        await asyncio.sleep(after_s)
        await forest.kill(victim)
        running.pop(victim).cancel()
        failure = await first_failure(running)
        assert failure is not None and failure.missing == {peer(victim)}
        began = asyncio.get_running_loop().time()
        second = forest.without(victim)
        found = await asyncio.gather(*(forest.average(name, second) for name in running))
        only_one_of(dict(zip(running, found, strict=True)))
        assert asyncio.get_running_loop().time() - began < 1.0
        await forest.close()

    run(main())
