"""Runs by turns, and what is thrown away."""

from __future__ import annotations

import pytest

from experiments.testbed import measuring, results
from experiments.testbed.measuring import Rules, Run
from experiments.testbed.troupe import Performance


def run(contender: str, lap: int, seconds: float = 1.0, why_not: str = "") -> Run:
    return Run(case="c", contender=contender, lap=lap, seconds=seconds, why_not=why_not)


@pytest.mark.asyncio
async def test_contenders_take_turns_forwards_and_backwards() -> None:
    order = []

    async def measure_one(name: str, lap: int) -> Run:
        order.append(name)
        return run(name, lap, why_not="warm-up" if lap < 0 else "")

    await measuring.by_turns(("a", "b", "c"), 2, measure_one)
    assert "".join(order) == "abc" + "abc" + "cba"


@pytest.mark.asyncio
async def test_a_run_that_does_not_count_is_repeated_and_counted() -> None:
    async def measure_one(name: str, lap: int) -> Run:
        is_bad = lap == 0 and name == "a"
        return run(name, lap, why_not="link: slow" if is_bad else "warm-up" if lap < 0 else "")

    runs = await measuring.by_turns(("a", "b"), 2, measure_one)
    assert len(measuring.of(runs, "c", "a")) == len(measuring.of(runs, "c", "b")) == 2
    assert measuring.discarded(runs) == {"warm-up": 2, "link": 1}


@pytest.mark.asyncio
async def test_a_benchmark_whose_runs_never_count_comes_to_an_end() -> None:
    async def measure_one(name: str, lap: int) -> Run:
        return run(name, lap, why_not="busy machine: yes")

    runs = await measuring.by_turns(("a",), 2, measure_one)
    assert len(runs) == 1 + 2 * 2 + measuring.SPARE_LAPS
    assert measuring.ratio(runs, "c", "a", "a") is None


def test_ratios_are_taken_lap_by_lap() -> None:
    runs = [run("a", 0, 2.0), run("b", 0, 1.0), run("b", 1, 10.0), run("a", 1, 30.0)]
    found = measuring.ratio(runs, "c", "a", "b")
    assert found is not None
    assert (found.least, found.median, found.largest) == (2.0, 2.5, 3.0)


def performance(**answers: dict[str, object]) -> Performance:
    return Performance(
        round_number=1,
        began=10.0,
        match_s=0.0,
        answers={int(peer[1:]): answer for peer, answer in answers.items()},
    )


def done(ended: float, digest: str = "d", is_right: bool = True) -> dict[str, object]:
    fields = {"is": "done", "ended": ended, "digest": digest, "is_right": is_right}
    return fields | {"contributors": [0, 1]}


def test_a_round_lasts_until_the_last_one_has_the_mean() -> None:
    found = performance(p0=done(11.0), p1=done(12.5, digest="e"))
    assert found.seconds == 2.5
    assert found.num_digests == 2
    assert found.contributors == [0, 1]


def test_a_wrong_mean_does_not_count_whatever_its_time() -> None:
    rules = Rules()
    assert rules.complaint(performance(p0=done(11.0)), 0.0) == ""
    assert "wrong" in rules.complaint(performance(p0=done(11.0, is_right=False)), 0.0)
    failed = performance(p0={"is": "failed", "error": "lost", "ended": 11.0})
    assert "lost" in rules.complaint(failed, 0.0)


def test_a_busy_machine_or_a_late_link_does_not_count_except_in_a_smoke_run() -> None:
    late = {"num_packets": 100, "num_late": 5, "largest_lateness_s": 0.1}
    assert "busy" in Rules().complaint(performance(p0=done(11.0)), 1.0)
    assert "late" in Rules().line_complaint(late)
    assert Rules(is_smoke=True).complaint(performance(p0=done(11.0)), 1.0) == ""
    assert Rules(is_smoke=True).line_complaint(late) == ""


def test_a_result_tells_how_to_repeat_it_and_not_where_it_lay() -> None:
    arguments = ["--only", "use", "--out", "/somewhere/use.json", "--repeats", "5"]
    expected = "python -m experiments.wan --only use --repeats 5"
    assert results.command_line("wan", arguments) == expected
    assert results.command_line("wan", ["--out=/somewhere/use.json", *arguments[:2]]) == (
        "python -m experiments.wan --only use"
    )
