"""The demo: its plan, what it checks, and one whole run as a user would see it."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from peers.demo.plan import SLOT_TOKENS, job, plan
from peers.demo.report import Contributor, DemoFailed, Report, closing


@given(
    training_s=st.floats(-100, 1000),
    startup_s=st.floats(1, 100),
    tokens_per_s=st.floats(1, 1e7),
    num_workers=st.integers(4, 16),
)
def test_every_plan_leaves_rounds_before_between_and_after_the_mishaps(
    training_s: float, startup_s: float, tokens_per_s: float, num_workers: int
) -> None:
    made = plan(
        training_s=training_s,
        startup_s=startup_s,
        tokens_per_s=tokens_per_s,
        num_workers=num_workers,
    )
    assert 1 <= made.late_after < made.num_rounds
    assert 3 < made.kill_after < made.num_rounds - 3
    assert made.tokens == made.num_rounds * made.inner_steps * num_workers * SLOT_TOKENS
    job(made, text="stdlib", num_workers=num_workers, seed=0)


def test_a_plan_fills_the_time_with_the_work_that_the_machine_can_do() -> None:
    made = plan(training_s=100.0, startup_s=9.0, tokens_per_s=30_000.0, num_workers=4)
    assert made.tokens == pytest.approx(3_000_000, rel=0.1)


def contributor(name: str, num_rounds: int, fate: str = "from the start") -> Contributor:
    return Contributor(
        peer_id=f"peer-of-{name}", name=name, num_rounds=num_rounds, num_tokens=1000, fate=fate
    )


REPORT = Report(
    job_id="0" * 32,
    seconds=99.0,
    num_parameters=1000,
    num_rounds=20,
    num_tokens=5000,
    loss_first=5.0,
    loss_before=3.0,
    loss_after=2.0,
    killed_after_round=6,
    late_in_round=9,
    contributors=(
        contributor("worker-1", 20),
        contributor("worker-2", 20),
        contributor("worker-3", 20),
        contributor("worker-4", 2, "killed"),
        contributor("worker-5", 11, "came late"),
    ),
    model_file="model.safetensors",
    plot_file="loss.png",
    sample_file="sample.txt",
)


def test_a_demo_with_four_contributors_and_a_falling_loss_is_a_success() -> None:
    REPORT.check()


def test_a_demo_with_three_contributors_has_failed() -> None:
    with pytest.raises(DemoFailed, match="3 workers took part"):
        replace(REPORT, contributors=REPORT.contributors[:4]).check()


def test_a_demo_whose_late_worker_came_too_late_has_failed() -> None:
    with pytest.raises(DemoFailed, match="started late did not contribute"):
        replace(REPORT, late_in_round=0).check()


def test_a_demo_whose_loss_did_not_fall_after_the_mishaps_has_failed() -> None:
    with pytest.raises(DemoFailed, match=r"held-out loss is 3\.000"):
        replace(REPORT, loss_after=3.0).check()


def test_the_closing_screen_shows_sample_table_and_what_to_do_next(tmp_path: Path) -> None:
    console = Console(width=100, file=io.StringIO())
    console.print(closing(REPORT, "def [bold]f(x):", tmp_path))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for expected in ("def [bold]f(x):", "worker-5", "came late", "2.000", "Next:", "zoonet peer"):
        assert expected in text


def demo_command(out: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "peers.cli", "demo", "--out", str(out), *arguments]


def traces(scratch: Path) -> list[Any]:
    """Processes and files that belong to a demo with this temporary directory."""
    processes = []
    for process in psutil.process_iter(["cmdline"]):
        if any(str(scratch) in part for part in process.info["cmdline"] or ()):
            processes.append(process)
    return [*processes, *scratch.glob("zoonet*")]


@pytest.mark.demo
@pytest.mark.slow
def test_a_short_demo_ends_by_itself_with_everything_it_promises(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="z-") as scratch:
        done = subprocess.run(
            demo_command(tmp_path / "out", "--seconds", "40", "--json"),
            capture_output=True,
            text=True,
            env=os.environ | {"TMPDIR": scratch},
        )
        assert done.returncode == 0, done.stderr
        assert traces(Path(scratch)) == []
    report = json.loads(done.stdout)
    assert report["loss_after"] < report["loss_before"]
    assert sum(one["num_rounds"] >= 3 for one in report["contributors"]) >= 4
    fates = [one["fate"] for one in report["contributors"]]
    assert sorted(fates) == ["came late", *["from the start"] * 3, "killed"]
    out = tmp_path / "out"
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "sample.txt").read_text().startswith("def ")
    assert (out / "model.safetensors").stat().st_size > 4 * report["num_parameters"]


@contextmanager
def demo_until(words: str, out: Path, scratch: str) -> Iterator[subprocess.Popen[str]]:
    """A demo that has just said these words."""
    with subprocess.Popen(
        demo_command(out),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": scratch},
    ) as demo:
        assert demo.stdout is not None
        said = ""
        for line in demo.stdout:
            said += line
            if words in line:
                yield demo
                return
        raise AssertionError(said)


@pytest.mark.demo
@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="z-") as scratch:
        with demo_until("submitted job", tmp_path / "out", scratch) as demo:
            demo.send_signal(signal.SIGINT)
            assert demo.wait(timeout=240) == 130
        assert traces(Path(scratch)) == []


@pytest.mark.demo
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells children on Linux alone")
def test_peers_do_not_outlive_a_demo_that_is_killed(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="z-") as scratch:
        with demo_until("all peers have found each other", tmp_path / "out", scratch) as demo:
            demo.kill()
        deadline = time.monotonic() + 30
        while any(isinstance(trace, psutil.Process) for trace in traces(Path(scratch))):
            assert time.monotonic() < deadline
            time.sleep(0.2)
