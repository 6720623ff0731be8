"""Devices that an owner may name."""

from __future__ import annotations

import pytest
import torch

from zoonet.errors import ConfigError
from zoonet.training.devices import check_device


@pytest.mark.parametrize("name", ["auto", "cpu", "cpu,cpu"])
def test_what_every_machine_has_is_accepted(name: str) -> None:
    check_device(name)


@pytest.mark.parametrize(
    "name", ["gpu", "", "cuda:", "CPU", "cuda:-1", "meta", "cuda:4096", "cpu,", "cpu,auto"]
)
def test_what_this_machine_does_not_have_is_refused_with_what_it_has(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--device .*; take one of auto, cpu"):
        check_device(name)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_a_gpu_that_is_there_is_accepted(name: str) -> None:
    check_device(name)
