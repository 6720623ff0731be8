"""Every benchmark starts, finishes and leaves a valid result; its figures are not looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from experiments.testbed import kernel
from tests.experiments.beds import needs_bed

ROOT = Path(__file__).parents[2]
NOBODY = 65_534
TIMEOUT_S = 180  # a laden machine takes a while to import torch a dozen times


@dataclass(frozen=True)
class Smoke:
    """How a benchmark ended, and the namespaces of its own that it left behind."""

    returncode: int
    stderr: str
    namespaces: list[str]


def smoke(name: str, folder: Path, *options: str) -> Smoke:
    out = folder / "result.json"
    with subprocess.Popen(
        [sys.executable, "-m", f"experiments.{name}", "--smoke", *options, "--out", str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "160"},
    ) as process:
        try:
            _, stderr = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    left = [name for name in kernel.namespace_names() if name.startswith(f"zt{process.pid}-")]
    return Smoke(process.returncode, stderr, left)


def result_of(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text())
    assert result["machine"]["num_cpus"] >= 1
    assert result["command"].startswith("python -m experiments.")
    assert path.with_suffix(".png").stat().st_size > 1000
    return result


def counted(result: dict[str, Any]) -> set[str]:
    return {run["contender"] for run in result["runs"] if not run["why_not"]}


@pytest.mark.p2p
@pytest.mark.slow
def test_the_all_reduce_benchmark_measures_everyone(tmp_path: Path) -> None:
    done = smoke("allreduce", tmp_path)
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "result.json")
    assert counted(result) == {"zoonet-tls", "zoonet-shm", "zoonet-int8", "floor", "gloo"}
    assert all(run["num_digests"] == 1 for run in result["runs"])
    (parts,) = result["cpu_s_by_part"].values()
    (ours,) = [
        run["cpu_s"]
        for run in result["runs"]
        if run["contender"] == "zoonet-tls" and not run["why_not"]
    ]
    assert sum(parts.values()) == pytest.approx(ours)
    assert min(parts[part] for part in ("the kernel's TCP", "hashes, one pass", "additions")) > 0


@pytest.mark.p2p
@pytest.mark.slow
def test_the_all_reduce_benchmark_measures_hivemind(tmp_path: Path) -> None:
    done = smoke("allreduce", tmp_path, "--contenders", "hivemind")
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "result.json")
    assert counted(result) == {"hivemind"}


@pytest.mark.p2p
@pytest.mark.slow
@needs_bed
def test_the_wan_benchmark_counts_bytes_and_uses_the_link(tmp_path: Path) -> None:
    done = smoke("wan", tmp_path)
    assert done.returncode == 0, done.stderr
    crossing = result_of(tmp_path / "result-crossing.json")
    assert counted(crossing) == {"zoonet", "zoonet-butterfly", "ring"}
    ring = next(run for run in crossing["runs"] if run["contender"] == "ring" and run["lap"] == 0)
    assert ring["crossing_bytes"] > 2 * 2 * 0.25 * (1 << 20) * 2 / 3
    assert counted(result_of(tmp_path / "result-use.json")) == {"zoonet", "raw-tcp"}
    assert not done.namespaces


@pytest.mark.p2p
@pytest.mark.slow
@needs_bed
def test_the_benchmark_of_deaths_loses_a_peer(tmp_path: Path) -> None:
    done = smoke("deaths", tmp_path)
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "result.json")
    (run,) = [run for run in result["runs"] if not run["why_not"]]
    assert run["num_wrong"] == 0


@pytest.mark.p2p
@pytest.mark.slow
@needs_bed
@pytest.mark.parametrize("question", ["utilisation", "goodput", "unequal"])
def test_the_benchmark_of_training_answers_each_question(question: str, tmp_path: Path) -> None:
    done = smoke("training", tmp_path, "--only", question)
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / f"result-{question}.json")
    (run,) = [run for run in result["runs"] if not run["why_not"]]
    assert run["more"]["num_rounds"] >= 2
    assert run["more"]["num_deaths"] == (question == "goodput")
    assert 0.1 < run["more"]["certified_share"] <= 1.1
    assert not done.namespaces


@needs_bed
@pytest.mark.p2p
@pytest.mark.slow
def test_the_joiner_benchmark_lets_everyone_fetch_the_state(tmp_path: Path) -> None:
    done = smoke("joiner", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.namespaces == []
    result = result_of(tmp_path / "result.json")
    assert counted(result) == {"zoonet_state", "raw_senders", "hivemind_state"}
    for run in result["runs"]:
        busy = [sent for sent in run["more"]["sent_by_donor"] if sent > 200_000]
        assert len(busy) == (1 if run["contender"] == "hivemind_state" else 5)


@pytest.mark.parametrize("name", ["wan", "deaths", "joiner", "training"])
def test_without_root_a_benchmark_says_what_to_do(name: str) -> None:
    code = (
        f"import os, sys, experiments.{name}.__main__ as benchmark\n"
        f"sys.argv = ['{name}', '--smoke']\n"
        f"os.geteuid() or os.seteuid({NOBODY})\n"
        "benchmark.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 2, done.stderr
    assert "sudo" in done.stderr
