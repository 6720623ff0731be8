"""Which jobs a peer takes, and the reason it gives for the others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.jobs.stories import ALICE, BOB, prepared
from tests.prepared import CID
from zoonet.config import PeersConfig, TrainingConfig
from zoonet.errors import ConfigError
from zoonet.jobs import ProviderPolicy, misfit, spec_misfit
from zoonet.records import Hardware, JobRecord, Signed, job_id_of, sign

GB = 1_000_000_000
LAPTOP = Hardware(num_cpus=2, memory_bytes=8 * GB)
WORKSTATION = Hardware(
    num_cpus=16, memory_bytes=64 * GB, num_gpus=1, gpu_name="any", gpu_memory_bytes=24 * GB
)


def job(**changes: Any) -> Signed[JobRecord]:
    fields: dict[str, Any] = {
        "job_id": job_id_of(ALICE.peer_id, CID),
        "name": "tiny",
        "task": "causal-lm",
        "spec_cid": CID,
        "num_parameters": 1234,
        "num_tokens": 1000,
        "min_peers": 2,
        "max_peers": 8,
        "budget_max": 0,
        "submitted_at": 0.0,
    }
    return sign(ALICE, JobRecord(**fields | changes), sequence=1, expires_at=2e9)


def test_a_small_job_fits_anyone_by_default() -> None:
    assert misfit(job(), LAPTOP, ProviderPolicy(), hour=3.0) == ""


@pytest.mark.parametrize(
    ("changes", "hardware", "policy", "reason"),
    [
        ({"is_cancelled": True}, LAPTOP, {}, "it was cancelled"),
        ({}, LAPTOP, {"submitters": (BOB.peer_id,)}, "is not among those whose jobs are taken"),
        ({}, LAPTOP, {"kinds": ("embedding",)}, "causal-lm jobs are not taken, only embedding"),
        ({}, LAPTOP, {"from_hour": 8, "until_hour": 12}, "from 8:00 until 12:00 only"),
        ({}, LAPTOP, {"max_parameters": 1000}, "1,234 parameters are more than 1,000"),
        ({"num_parameters": GB}, LAPTOP, {}, "it needs 49.1 GB of memory, 6.4 GB may be used"),
        (
            {"num_parameters": GB},
            WORKSTATION,
            {"gpu_share": 0.5},
            "it needs 16.5 GB of GPU memory, 12.0 GB may be used",
        ),
    ],
)
def test_a_misfit_names_its_reason(
    changes: dict[str, Any], hardware: Hardware, policy: dict[str, Any], reason: str
) -> None:
    found = misfit(job(**changes), hardware, ProviderPolicy(**policy), hour=13.5)
    assert reason in found


def test_a_gpu_takes_the_trainers_share_off_the_machines_memory() -> None:
    assert misfit(job(num_parameters=GB), WORKSTATION, ProviderPolicy(), hour=0.0) == ""


@pytest.mark.parametrize(
    ("hour", "is_open"), [(21.9, False), (22.0, True), (23.5, True), (0.0, True), (6.0, False)]
)
def test_hours_may_wrap_past_midnight(hour: float, is_open: bool) -> None:
    assert ProviderPolicy(from_hour=22, until_hour=6).is_open(hour) == is_open


@pytest.mark.parametrize(
    "wrong", [{"gpu_share": 0}, {"from_hour": 5, "until_hour": 5}, {"kinds": ("gpt",)}]
)
def test_a_policy_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="policy"):
        ProviderPolicy(**wrong)


def test_a_record_must_say_what_its_spec_says() -> None:
    assert spec_misfit(job(), prepared(), BOB.peer_id) == ""
    larger = prepared(num_parameters=10**9)
    assert spec_misfit(job(), larger, BOB.peer_id) == (
        "its record claims num_parameters 1234, its spec says 1000000000"
    )
    longer = prepared(training=TrainingConfig(tokens=10**12))
    assert "num_tokens" in spec_misfit(job(), longer, BOB.peer_id)


def test_a_job_for_chosen_peers_fits_them_alone() -> None:
    chosen = prepared(peers=PeersConfig(min=2, max=8, allowed=(BOB.peer_id,)))
    assert spec_misfit(job(), chosen, BOB.peer_id) == ""
    assert spec_misfit(job(), chosen, ALICE.peer_id) == "its submitter allows other peers only"
