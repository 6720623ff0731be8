"""What a process pays for when it imports a part of training."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("zoonet.training.handle", "torch"),
        ("zoonet.training.outer", "torch"),
        ("zoonet.training.order", "torch"),
        ("zoonet.training.tokenizers", "tokenizers"),
        ("zoonet.training.trainer", "hivemind"),
        ("zoonet.training.trainer", "transformers"),
    ],
)
def test_importing_one_thing_does_not_import_another(module: str, unwanted: str) -> None:
    code = f"import sys, {module}; sys.exit({unwanted!r} in sys.modules)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=240)


def test_a_trainer_never_loads_the_compiler_stack() -> None:
    code = (
        "import sys, torch, zoonet.training.session as s\nassert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=240)
