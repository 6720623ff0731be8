"""What this machine brings, and the tier that amounts to."""

from __future__ import annotations

import logging
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from zoonet.records import Hardware

QUERY_TIMEOUT_S: Final = 10.0
_GIGABYTE: Final = 10**9
_CGROUP_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tier:
    """The least that a tier asks of a machine."""

    name: str
    num_gpus: int
    gpu_generation: int  # 1: A100 and its kin, 2: H100, 3: what came after
    gpu_memory_bytes: int  # of each GPU
    memory_bytes: int


# A little below the round figures: drivers and firmware keep some of the memory for themselves.
TIERS: Final = (
    Tier("gold", 8, 2, 79 * _GIGABYTE, 970 * _GIGABYTE),
    Tier("silver", 8, 1, 79 * _GIGABYTE, 495 * _GIGABYTE),
    Tier("bronze", 4, 1, 39 * _GIGABYTE, 245 * _GIGABYTE),
)
OPEN_TIER: Final = "open"

_GENERATIONS: Final = (
    (re.compile(r"\b(G?B[123]00|GB\d{3})\b"), 3),
    (re.compile(r"\b(G?H[128]00|H20|MI3\d\dX?)\b"), 2),
    (re.compile(r"\b(A100|A800|MI250X?)\b"), 1),
)


def tier_of(hardware: Hardware) -> str:
    """Name the best tier whose every demand the hardware meets, "open" for all other machines."""
    generation = _generation_of(hardware.gpu_name)
    for tier in TIERS:
        if (
            hardware.num_gpus >= tier.num_gpus
            and generation >= tier.gpu_generation
            and hardware.gpu_memory_bytes >= tier.gpu_memory_bytes
            and hardware.memory_bytes >= tier.memory_bytes
        ):
            return tier.name
    return OPEN_TIER


def _generation_of(gpu_name: str) -> int:
    for pattern, generation in _GENERATIONS:
        if pattern.search(gpu_name.upper()):
            return generation
    return 0


def probe() -> Hardware:
    """Look at this machine; takes up to a few seconds, so call it off the event loop.

    No CUDA context is made: the driver's own tool is asked. Where the GPUs differ, the smallest
    counts, since work is cut into equal parts.
    """
    gpus = _nvidia_gpus()
    smallest = min(gpus, key=lambda gpu: gpu[1]) if gpus else ("", 0)
    return Hardware(
        num_cpus=_num_cpus(),
        memory_bytes=_memory_bytes(),
        num_gpus=len(gpus),
        gpu_name=smallest[0][:200],
        gpu_memory_bytes=smallest[1],
    )


def _num_cpus() -> int:
    """CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    """Memory that this process may use: the machine's, or its container's if that is less."""
    total_bytes = int(psutil.virtual_memory().total)
    for path in _CGROUP_LIMITS:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdecimal():
            total_bytes = min(total_bytes, int(text))
    return total_bytes


def _nvidia_gpus() -> list[tuple[str, int]]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=True
        )
    except FileNotFoundError:
        return []
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("the GPUs cannot be seen: %s", error)
        return []
    return parse_gpus(answer.stdout)


def parse_gpus(listing: str) -> list[tuple[str, int]]:
    """Read `name, MiB` lines into names and bytes, passing over what is neither."""
    gpus = []
    for line in listing.splitlines():
        name, _, mebibytes = line.rpartition(",")
        if name and mebibytes.strip().isdecimal():
            gpus.append((name.strip(), int(mebibytes) * 1024 * 1024))
    return gpus
