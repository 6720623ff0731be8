"""What a machine brings, and the tier that amounts to."""

from __future__ import annotations

import pytest

from zoonet.membership import probe, tier_of
from zoonet.membership.hardware import parse_gpus
from zoonet.records import Hardware

GB = 10**9


def machine(gpu: str, num: int, gpu_gb: int, memory_gb: int) -> Hardware:
    return Hardware(
        num_cpus=64,
        memory_bytes=memory_gb * GB,
        num_gpus=num,
        gpu_name=gpu,
        gpu_memory_bytes=gpu_gb * GB,
    )


@pytest.mark.parametrize(
    ("hardware", "tier"),
    [
        (machine("NVIDIA H100 80GB HBM3", 8, 85, 1080), "gold"),
        (machine("NVIDIA H200", 8, 150, 2000), "gold"),
        (machine("NVIDIA B200", 8, 190, 2000), "gold"),
        (machine("NVIDIA H100 80GB HBM3", 8, 85, 540), "silver"),
        (machine("NVIDIA A100-SXM4-80GB", 8, 85, 1080), "silver"),
        (machine("NVIDIA A100-SXM4-40GB", 8, 42, 1080), "bronze"),
        (machine("NVIDIA A100-PCIE-40GB", 4, 42, 270), "bronze"),
        (machine("NVIDIA H100 80GB HBM3", 4, 85, 270), "bronze"),
        (machine("NVIDIA A100-PCIE-40GB", 4, 42, 128), "open"),
        (machine("NVIDIA A100-PCIE-40GB", 3, 42, 512), "open"),
        (machine("NVIDIA RTX A6000", 8, 51, 1080), "open"),
        (machine("NVIDIA GeForce RTX 4090", 1, 25, 64), "open"),
        (machine("", 0, 0, 8), "open"),
    ],
)
def test_a_tier_is_the_best_whose_every_demand_is_met(hardware: Hardware, tier: str) -> None:
    assert tier_of(hardware) == tier


def test_a_listing_of_gpus_is_read_and_noise_in_it_passed_over() -> None:
    listing = (
        "NVIDIA A100-SXM4-40GB, 40960\nNVIDIA A100, v2, 40536\n\nNo devices were found\nx, ?\n"
    )
    assert parse_gpus(listing) == [
        ("NVIDIA A100-SXM4-40GB", 40960 * 1024**2),
        ("NVIDIA A100, v2", 40536 * 1024**2),
    ]


def test_this_machine_has_a_processor_and_memory() -> None:
    hardware = probe()
    assert hardware.num_cpus >= 1
    assert hardware.memory_bytes > 0
    assert (hardware.num_gpus == 0) == (hardware.gpu_memory_bytes == 0)
