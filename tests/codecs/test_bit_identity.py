"""The same bytes on every CPU, compiled or not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from zoonet.codecs import bit_identity

NUMPY_FEATURES = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
HAS_AVX2 = " avx2 " in Path("/proc/cpuinfo").read_text()
EXPECTED = "f6cd22693597770a094bdba59bcfa95739b683506ad21a40566b76cb7556ac9b"


def fingerprint(environment: dict[str, str]) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "zoonet.codecs.bit_identity"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return ran.stdout.strip()


def test_codecs_have_the_bytes_they_had_in_every_version() -> None:
    assert bit_identity.fingerprint() == EXPECTED


@pytest.mark.parametrize(
    "environment",
    [
        {"NPY_DISABLE_CPU_FEATURES": " ".join(NUMPY_FEATURES)},
        {"NUMBA_DISABLE_JIT": "1"},
    ],
    ids=["numpy-baseline", "interpreted"],
)
def test_codecs_have_the_same_bytes_under_every_capability(environment: dict[str, str]) -> None:
    assert fingerprint(environment) == EXPECTED


@pytest.mark.slow
@pytest.mark.parametrize("cpu", ["generic", "haswell"])
def test_kernels_compiled_for_another_processor_give_the_same_bytes(
    cpu: str, tmp_path: Path
) -> None:
    if cpu == "haswell" and not HAS_AVX2:
        pytest.skip("this processor has no AVX2")
    environment = {
        "NUMBA_CPU_NAME": cpu,
        "NUMBA_CPU_FEATURES": "+avx2,+fma" if cpu == "haswell" else "",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    assert fingerprint(environment) == EXPECTED


@pytest.mark.slow
def test_kernels_are_compiled_where_there_is_no_place_for_a_cache(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert fingerprint({"NUMBA_CACHE_DIR": str(tmp_path / "file" / "cache")}) == EXPECTED
