"""Whether a job fits a peer and its owner's wishes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from zoonet.config import PreparedJob
from zoonet.config.job import Task
from zoonet.config.schema import Section
from zoonet.crypto import PeerId, short
from zoonet.records import Hardware, JobRecord, Signed

# Outer parameters and momentum, a spare of each, local work, the mirror of two Adam moments, what
# is sent: fp32.
NODE_BYTES_PER_PARAMETER: Final = 32
TRAINER_BYTES_PER_PARAMETER: Final = 16  # parameters, gradients, two Adam moments: fp32
WORKING_BYTES: Final = 512 * 1024**2  # the programs themselves and small activations


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderPolicy(Section):
    """What a peer's owner lets it take. The defaults allow everything."""

    SECTION: ClassVar[str] = "policy"

    submitters: tuple[str, ...] = ()  # peer ids whose jobs are taken; empty: anyone's
    kinds: tuple[Task, ...] = ()  # tasks that are taken; empty: all
    from_hour: int = 0  # local time; training starts at this hour ...
    until_hour: int = 24  # ... and no job is taken from this hour on; may wrap past midnight
    gpu_share: float = 1.0  # of each GPU's memory
    memory_share: float = 0.8  # of the machine's memory
    max_parameters: int = 0  # 0: as large as memory allows
    num_devices: int = 1  # that hold one model together, an equal part each

    def check(self) -> None:
        self.require_between(0, 23, "from_hour")
        self.require_between(1, 24, "until_hour")
        self.require("until_hour", self.until_hour != self.from_hour, "another than from_hour")
        self.require("gpu_share", 0 < self.gpu_share <= 1, "more than 0 and at most 1")
        self.require("memory_share", 0 < self.memory_share <= 1, "more than 0 and at most 1")
        self.require("max_parameters", self.max_parameters >= 0, "0 or more")
        self.require_between(1, 1024, "num_devices")

    def is_open(self, hour: float) -> bool:
        """Tell whether jobs are taken at this local hour (0 up to 24)."""
        if self.from_hour < self.until_hour:
            return self.from_hour <= hour < self.until_hour
        return hour >= self.from_hour or hour < self.until_hour


def misfit(
    job: Signed[JobRecord], hardware: Hardware, policy: ProviderPolicy, *, hour: float
) -> str:
    """Return why this peer should not take the job, or "" where it fits.

    `hour` is local time, 0 up to 24. Judges by the record alone, before anything is fetched.
    """
    spec = job.body
    if spec.is_cancelled:
        return "it was cancelled"
    if not policy.is_open(hour):
        return f"jobs are taken from {policy.from_hour}:00 until {policy.until_hour}:00 only"
    if policy.submitters and job.author not in policy.submitters:
        return f"submitter {short(job.author)} is not among those whose jobs are taken"
    if policy.kinds and spec.task not in policy.kinds:
        return f"{spec.task} jobs are not taken, only {', '.join(policy.kinds)}"
    if policy.max_parameters and spec.num_parameters > policy.max_parameters:
        return f"{spec.num_parameters:,} parameters are more than {policy.max_parameters:,}"
    return _memory_misfit(spec.num_parameters, hardware, policy)


def _memory_misfit(num_parameters: int, hardware: Hardware, policy: ProviderPolicy) -> str:
    part_bytes = num_parameters * TRAINER_BYTES_PER_PARAMETER // policy.num_devices
    trainer_bytes = part_bytes + WORKING_BYTES  # of each device
    host_bytes = num_parameters * NODE_BYTES_PER_PARAMETER + WORKING_BYTES
    if hardware.num_gpus:
        share_bytes = int(policy.gpu_share * hardware.gpu_memory_bytes)
        if trainer_bytes > share_bytes:
            return f"it needs {_gb(trainer_bytes)} of GPU memory, {_gb(share_bytes)} may be used"
    else:
        host_bytes += trainer_bytes * policy.num_devices
    share_bytes = int(policy.memory_share * hardware.memory_bytes)
    if host_bytes > share_bytes:
        return f"it needs {_gb(host_bytes)} of memory, {_gb(share_bytes)} may be used"
    return ""


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"


def spec_misfit(job: Signed[JobRecord], prepared: PreparedJob, peer_id: PeerId) -> str:
    """Return why a job whose spec has been fetched is not for this peer, or "".

    The record is what peers judged the job by, so it has to say the same as the spec.
    """
    claims = (
        ("num_parameters", job.body.num_parameters, prepared.num_parameters),
        ("num_tokens", job.body.num_tokens, prepared.training.tokens),
        ("task", job.body.task, prepared.training.task),
        ("min_peers", job.body.min_peers, prepared.peers.min),
        ("max_peers", job.body.max_peers, prepared.peers.max),
    )
    for name, claimed, actual in claims:
        if claimed != actual:
            return f"its record claims {name} {claimed}, its spec says {actual}"
    if prepared.peers.allowed and peer_id not in prepared.peers.allowed:
        return "its submitter allows other peers only"
    return ""
