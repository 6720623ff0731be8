"""DiLoCo over hivemind's averager, as OpenDiLoCo does it, tuned.

The inner loop, the outer step and the number of inner steps are this project's. The group of the
next all-reduce is looked for in the background, from `LEAD_S` before the end of the inner steps
on; who has its group and is done with its steps waits for the mean. Everybody waits for everybody.
The variant "int8" sends 8 bits a value, without error feedback.

P = flat parameters
"""

from __future__ import annotations

import itertools
import logging
import time
from typing import Any, Final

import numpy as np
import torch
from hivemind import DHT, DecentralizedAverager
from hivemind.averaging.control import AveragingStage
from hivemind.compression import NoCompression, Uniform8BitQuantization
from hivemind.utils import get_dht_time

from experiments.testbed.contenders.hivemind_averager import TUNED
from experiments.training.hivemind_peer import LOOK_AGAIN_S, HivemindPeer
from experiments.training.paced import PacedSession
from zoonet.exact import Vector
from zoonet.training.buffers import inner_size
from zoonet.training.outer import outer_step

LEAD_S: Final = 4.0
ROUND_S: Final = 60.0

log = logging.getLogger(__name__)


class HivemindDiloco(HivemindPeer):
    """See `Trainee`."""

    def build(self, dht: DHT) -> None:
        everyone = self.stage.num_peers
        sizes = {"target_group_size": everyone, "min_group_size": everyone}
        patience = {"sender_timeout": 30.0, "reducer_timeout": 60.0}  # links are slow here
        self._averager = DecentralizedAverager(
            [torch.zeros(self.stage.num_values)],
            dht,
            start=True,
            prefix="diloco",
            shutdown_timeout=2.0,
            compression=Uniform8BitQuantization() if self.variant == "int8" else NoCompression(),
            **(TUNED | sizes | patience),
        )
        self._session = PacedSession(self.job.start(), self.accelerator)

    def loop(self) -> None:
        training = self.job.prepared.training
        theta_P = self.job.initial_P().copy()
        momentum_P, local_P = np.zeros_like(theta_P), np.empty_like(theta_P)
        inner_N = np.empty(inner_size(theta_P.size), np.float32)
        slots = self.slots()
        self._session.begin(theta_P, None)
        for index in itertools.count():
            control: Any = None
            self.note("training")
            for step in range(self.inner_steps):
                left_s = (self.inner_steps - step) * self.accelerator.step_s
                if control is None and left_s <= LEAD_S:
                    control = self._look_for_group(left_s)
                self._session.step(next(slots), 0.5)
            self.note("own arithmetic")
            self._session.take_loss()
            self._session.finish_round(local_P, inner_N)
            mean_P = self._average(control, theta_P - local_P)
            if mean_P is None:
                self.num_failed += 1
                mean_P = theta_P - local_P
            else:
                self.note_round(index, self.inner_steps)
            self.note("own arithmetic")
            lr, momentum = training.outer_lr, training.outer_momentum
            outer_step(
                theta_P, momentum_P, mean_P, lr=lr, momentum=momentum, out=(theta_P, momentum_P)
            )
            self._session.reload(theta_P)

    def _look_for_group(self, left_s: float) -> Any:
        return self._averager.step(
            gather=self.stage.peer,
            scheduled_time=get_dht_time() + left_s,
            timeout=ROUND_S,
            allow_retries=True,
            wait=False,
            require_trigger=True,
        )

    def _average(self, control: Any, delta_P: Vector) -> Vector | None:
        with self._averager.get_tensors() as tensors:
            tensors[0].copy_(torch.from_numpy(delta_P))
        self.note("matchmaking")
        while control.stage != AveragingStage.AWAITING_TRIGGER and not control.done():
            time.sleep(LOOK_AGAIN_S)
        self.note("transferring")
        try:
            control.allow_allreduce()
            gathered = control.result(ROUND_S)
        except Exception as error:  # of many kinds; a round that fails is counted
            log.warning("not averaged: %r", error)
            return None
        if len(gathered) < self.stage.num_peers:
            return None
        with self._averager.get_tensors() as tensors:
            mean_P: Vector = tensors[0].numpy().copy()
        return mean_P

    def shut_down(self) -> None:
        self._averager.shutdown()
