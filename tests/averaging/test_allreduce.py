"""The all-reduce over trees: everyone gets the same bits, and a loss costs one contribution."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.averaging.forest import Forest
from tests.averaging.makers import peer, peers
from zoonet.averaging.allreduce import AttemptFailed, Mean
from zoonet.exact import weighted_mean
from zoonet.testing import run

FLAT = (("ada", "bob", "cyd", "dan"),)
TWO_BY_TWO = (("ada", "bob"), ("cyd", "dan"))
LONE = (("ada",), ("bob",), ("cyd",))
UNEVEN = (("ada", "bob", "cyd"), ("dan", "eve"), ("fay",))
SHAPES = [(("ada",),), FLAT, TWO_BY_TWO, LONE, UNEVEN]


def means(found: dict[str, Mean | AttemptFailed]) -> dict[str, np.ndarray]:
    for name, mean in found.items():
        assert isinstance(mean, Mean), f"{name}: {mean}"
    return {name: mean.mean_P for name, mean in found.items() if isinstance(mean, Mean)}


def only_one_of(found: dict[str, Mean | AttemptFailed]) -> np.ndarray:
    """The mean, which has to be the same bits for everyone."""
    by_name = means(found)
    assert len({mean_P.tobytes() for mean_P in by_name.values()}) == 1
    assert len({mean.slices for mean in found.values() if isinstance(mean, Mean)}) == 1
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

        async def late() -> Mean | AttemptFailed:
            await asyncio.sleep(3.0)
            return await forest.average("dan")

        found = await asyncio.gather(late(), *(forest.average(n) for n in ("ada", "bob", "cyd")))
        only_one_of(dict(enumerate(found)))  # type: ignore[arg-type]
        await forest.close()

    run(main())


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
        first = {
            name: asyncio.create_task(forest.average(name)) for name in forest.reducers
        }
        await asyncio.sleep(after_s)
        await forest.kill(victim)
        survivors = [name for name in forest.names if name != victim]
        before = {name: await first[name] for name in survivors}
        for name, result in before.items():
            if isinstance(result, AttemptFailed):
                assert result.missing == {peer(victim)}, name
        first[victim].cancel()
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
        await forest.serve("ada", "bob", "cyd")  # dan takes what is sent and says nothing

        class Deaf:
            def admit(self, peer_id: str, header: bytes, num_bytes: int) -> memoryview:
                return memoryview(bytearray(num_bytes))

            def arrived(self, peer_id: str, header: bytes) -> None: ...

            def ended(self, peer_id: str, error: Exception) -> None: ...

        from tests.averaging.swarm import JOB_ID
        from zoonet.transport import StreamLanes

        await StreamLanes(forest.transport("dan")).serve(f"{JOB_ID}/reduce/1", Deaf())
        began = asyncio.get_running_loop().time()
        found = await forest.average_all()
        took_s = asyncio.get_running_loop().time() - began
        for name in ("ada", "bob", "cyd"):
            assert isinstance(found[name], AttemptFailed)
        named = [f.missing for f in found.values() if isinstance(f, AttemptFailed)]
        assert frozenset(peers("dan")) in named
        assert all(missing <= set(peers("dan", "cyd")) for missing in named)
        survivors = ("ada", "bob", "cyd")
        second = forest.without("dan")
        again = await asyncio.gather(*(forest.average(name, second) for name in survivors))
        mean_P = only_one_of(dict(zip(survivors, again, strict=True)))
        assert np.allclose(mean_P, forest.exact_mean(survivors), rtol=1e-4, atol=1e-5)
        await forest.close()
        return took_s

    assert run(main()) < 12.0
