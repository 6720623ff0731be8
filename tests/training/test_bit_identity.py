"""The same bytes in, the same bits out, whatever the CPU can do."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from zoonet.training import bit_identity

NUMPY_FEATURES = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
EXPECTED = "25b486ed7b9cf6bbddff0c7c5c11670a733fb0a164546f2a7851e90590b133ba"


@pytest.mark.parametrize(
    "capability",
    [
        {"ATEN_CPU_CAPABILITY": "default"},
        {"ATEN_CPU_CAPABILITY": "avx2"},
        {"NPY_DISABLE_CPU_FEATURES": " ".join(NUMPY_FEATURES)},
    ],
    ids=["torch-default", "torch-avx2", "numpy-baseline"],
)
def test_mean_and_outer_step_have_the_same_bits_under_every_cpu_capability(
    capability: dict[str, str],
) -> None:
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "zoonet.training.bit_identity"],
        env=os.environ | capability,
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert ran.stdout.strip() == EXPECTED


def test_mean_and_outer_step_have_the_bits_they_had_in_every_version() -> None:
    assert bit_identity.fingerprint() == EXPECTED
