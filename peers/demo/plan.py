"""How much work fits into the time of a demo. Pure, but for the measurement of this machine."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from typing import Final

from zoonet.config import (
    ComputeJob,
    DataConfig,
    ModelConfig,
    ModelSpec,
    PeersConfig,
    TrainingConfig,
)

FINISH_S: Final = 10.0  # after training: fetch and check the model, sample, draw, say goodbye
START_TRAINING_S: Final = 12.0  # from submitting to the first step: fetch the data, start trainers
MIN_TRAINING_S: Final = 15.0
EFFICIENCY: Final = 0.6  # of the cores' speed; the rest is evaluation, averaging and all else
MIN_ROUNDS: Final = 12
ROUND_S: Final = (0.8, 1.5)  # shortest and longest round to aim for
CALIBRATION_S: Final = 1.0
EVAL_TOKENS: Final = 8192
TEXT_BYTES: Final = 6_000_000

# Of the sizes tried on two cores this one falls furthest within the time.
MODEL: Final = ModelConfig(num_layers=2, num_heads=4, width=64, context=64)
BATCH_SIZE: Final = 4
OPTIMIZER: Final = "muon"
INNER_LR: Final = 8e-3
NUM_BYTE_VALUES: Final = 256
SLOT_TOKENS: Final = BATCH_SIZE * MODEL.context


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The size of the job, and after which certified rounds its two mishaps happen."""

    tokens: int
    inner_steps: int
    num_rounds: int  # expected, with everyone at work
    late_after: int  # then one more worker is started
    kill_after: int  # then one of the first workers is killed


def plan(*, training_s: float, startup_s: float, tokens_per_s: float, num_workers: int) -> Plan:
    """Cut a training time into rounds, for workers that make `tokens_per_s` all together.

    Where they took `startup_s` to start, one that comes late needs about as long before it
    contributes, and more if the machine gets busier meanwhile: the training takes twice that.
    """
    training_s = max(training_s, MIN_TRAINING_S, 2 * startup_s)
    round_s = min(max(training_s / MIN_ROUNDS, ROUND_S[0]), ROUND_S[1])
    slots_per_round = tokens_per_s * round_s / SLOT_TOKENS
    inner_steps = max(1, round(slots_per_round / num_workers))
    num_rounds = max(MIN_ROUNDS, math.floor(training_s / round_s))
    return Plan(
        tokens=num_rounds * num_workers * inner_steps * SLOT_TOKENS,
        inner_steps=inner_steps,
        num_rounds=num_rounds,
        late_after=max(1, num_rounds // 8),
        kill_after=max(4, num_rounds // 3),
    )


def job(plan: Plan, *, text: str, num_workers: int, seed: int) -> ComputeJob:
    """The demo's job as anyone could submit it. `text` is a path or "stdlib"."""
    return ComputeJob(
        name="demo: a GPT on a text",
        model_config=MODEL,
        data_config=DataConfig(text=text, max_bytes=TEXT_BYTES, heldout_fraction=0.05),
        training_config=TrainingConfig(
            tokens=plan.tokens,
            batch_size=BATCH_SIZE,
            inner_steps=plan.inner_steps,
            optimizer=OPTIMIZER,
            inner_lr=INNER_LR,
            eval_tokens=EVAL_TOKENS,
            seed=seed,
        ),
        peers_config=PeersConfig(min=num_workers),
    )


def machine_tokens_per_s(num_workers: int) -> float:
    """Tokens a second that the workers will train on this machine, from a short measurement.

    Measured in wall time, so that a machine that is busy elsewhere gets less to do. Blocks for
    about a second; run it in a thread.
    """
    import torch

    from zoonet.training.inner import InnerOptimizer
    from zoonet.training.models import FlatModel, count_parameters, hidden_matrices

    spec = ModelSpec(
        kind=MODEL.kind,
        num_layers=MODEL.num_layers,
        num_heads=MODEL.num_heads,
        width=MODEL.width,
        context=MODEL.context,
        dropout=0.0,
        vocab_size=NUM_BYTE_VALUES,
        hf_config={},
        embedding_dim=MODEL.embedding_dim,
    )
    training = TrainingConfig(tokens=1, optimizer=OPTIMIZER, inner_lr=INNER_LR)
    torch.set_num_threads(1)
    flat = FlatModel(spec, count_parameters(spec), torch.device("cpu"))
    optimizer = InnerOptimizer(flat, training, hidden_matrices(flat.model, NUM_BYTE_VALUES))
    ids_BT = torch.zeros((BATCH_SIZE, MODEL.context), dtype=torch.int64)

    def step() -> None:
        flat.grad_P.zero_()
        flat.model(ids_BT, ids_BT).backward()
        optimizer.step_(INNER_LR)

    step()  # the first one allocates
    started_s, num_steps = time.monotonic(), 0
    while time.monotonic() - started_s < CALIBRATION_S:
        step()
        num_steps += 1
    per_core = num_steps * SLOT_TOKENS / (time.monotonic() - started_s)
    return per_core * min(usable_cores(), num_workers) * EFFICIENCY


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
