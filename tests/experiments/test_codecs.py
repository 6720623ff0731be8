"""The experiment on codecs starts, ends and writes a result."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_experiment_on_codecs_writes_a_result(tmp_path: Path) -> None:
    out = tmp_path / "codecs.json"
    small = ["--seeds", "1", "--rounds", "1", "--repeats", "2", "--values", "70000"]
    small += ["--no-compiling"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.codecs", "--width", "32", "--out", str(out), *small],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert json.loads(done.stdout.splitlines()[-1])["bytes_per_parameter_step"] > 0
    result = json.loads(out.read_text())
    assert set(result["rates"]["codecs"]) == {"fp32", "fp16", "bf16", "int8", "e3m0", "topk2"}
    for one in result["rates"]["codecs"].values():
        assert one["encode_gb_per_s"]["median"] > 0
    assert result["machine"]["num_cpus"] >= 1
