"""`hivemind.Optimizer`, as well tuned as its options allow: "sync", or "delayed".

It averages gradients that peers have accumulated over as many samples as a round of the others has
(its target batch), and its own parameters every few epochs. Delayed, it does so in the background
and takes the optimizer's step there, too. Its tracker counts everybody's samples through the DHT.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, Final

import hivemind
import torch
from hivemind import DHT
from hivemind.optim.grad_averager import GradientAverager

from experiments.training.hivemind_peer import HivemindPeer
from zoonet.training.models import build_model, unflatten_
from zoonet.training.order import SampleOrder
from zoonet.training.tokens import TokenFile

MATCHMAKING_S: Final = 1.0  # with less, groups of eight often fail to form
STATE_EVERY: Final = 5  # epochs; gradients are the same for all, so parameters hardly part
TRACKER: Final = {
    "min_refresh_period": 0.1,
    "default_refresh_period": 0.5,
    "max_refresh_period": 1.0,
}

log = logging.getLogger(__name__)


class _Optimizer(hivemind.Optimizer):  # type: ignore[misc]
    """Counts how often the peer had to start over from others' state."""

    num_reloads = 0

    def load_state_from_peers(self, **kwargs: Any) -> None:
        self.num_reloads += 1
        super().load_state_from_peers(**kwargs)


class HivemindOptimizer(HivemindPeer):
    """See `Trainee`."""

    def build(self, dht: DHT) -> None:
        prepared, everyone = self.job.prepared, self.stage.num_peers
        self._model = build_model(prepared.model)
        unflatten_(self.job.initial_P().copy(), self._model)
        training, is_delayed = prepared.training, self.variant == "delayed"
        sizes = {"target_group_size": everyone, "min_group_size": 2, "request_timeout": 0.5}
        self._optimizer = _Optimizer(
            dht=dht,
            run_id="benchmark",
            target_batch_size=everyone * training.inner_steps * training.batch_size,
            batch_size_per_step=training.batch_size,
            params=list(self._model.parameters()),
            optimizer=lambda params: torch.optim.AdamW(
                params, lr=training.inner_lr, betas=training.betas
            ),
            matchmaking_time=MATCHMAKING_S,
            averaging_timeout=30.0,
            next_chunk_timeout=10.0,
            offload_optimizer=True,
            delay_optimizer_step=is_delayed,
            delay_grad_averaging=is_delayed,
            delay_state_averaging=True,
            average_state_every=STATE_EVERY,
            grad_averager_factory=partial(GradientAverager, **sizes),
            averager_opts=sizes,
            tracker_opts=dict(TRACKER),
            shutdown_timeout=2.0,
        )

    def loop(self) -> None:
        prepared = self.job.prepared
        training, context = prepared.training, prepared.model.context
        vocab_size, token_bytes = prepared.model.vocab_size, prepared.data.token_bytes
        tokens = TokenFile(self.job.folder / "train", vocab_size, token_bytes)
        order = SampleOrder(len(tokens), context, training.seed)
        optimizer, num_steps = self._optimizer, 0
        for slot in self.slots():
            epoch, num_reloads = optimizer.local_epoch, optimizer.num_reloads
            self.note("training")
            with self.accelerator.step():
                batch = tokens.batch(order.slot_starts(slot, training.batch_size), context)
                x_BT, y_BT = (torch.from_numpy(part) for part in batch)
                self._model(x_BT, y_BT).backward()
            self.note("in its step()")
            optimizer.step()
            optimizer.zero_grad()
            num_steps += 1
            if optimizer.num_reloads != num_reloads:
                num_steps, self.num_failed = 0, self.num_failed + 1
            elif optimizer.local_epoch != epoch:
                self.note_round(epoch, num_steps)
                num_steps = 0

    def shut_down(self) -> None:
        self._optimizer.shutdown()
