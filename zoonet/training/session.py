"""One job on one device: the recipe that trainer processes and in-process trainers both run.

No pipe, no loop, no clock. P = flat parameters, N = 2P + 1 (inner state), B = samples, T = tokens
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from zoonet import config
from zoonet.errors import (
    ConfigError,
    NonFiniteLoss,
    OutOfDeviceMemory,
    TrainingError,
    UnreadableSlot,
)
from zoonet.ranges import Ranges
from zoonet.training.compiler import compiled, try_out
from zoonet.training.drift import Drift, known_scale
from zoonet.training.export import Layout
from zoonet.training.generate import generate
from zoonet.training.gradient import BatchGradient, BatchLoss
from zoonet.training.inner import InnerOptimizer, learning_rate
from zoonet.training.memory import is_memory_error, memory_errors_told
from zoonet.training.messages import Sample, Start, Train
from zoonet.training.models import FlatModel, PlacedModel, ShardedModel, hidden_matrices
from zoonet.training.order import SampleOrder
from zoonet.training.ranks import ALONE, Group, Ranks
from zoonet.training.tokenizers import MAX_TOKENIZER_BYTES, load_tokenizer
from zoonet.training.tokens import Batch, TokenFile

_EVAL_TOKENS_PER_BATCH = 4096

Vector = NDArray[np.float32]


class TrainingSession:
    """Holds model, optimizer and data of a job. Raises ConfigError, OutOfDeviceMemory.

    Training is `begin`, then `step` for each slot; `finish_round` writes down where it stands.
    """

    def __init__(self, start: Start, ranks: Ranks = ALONE) -> None:
        prepared = config.decode(start.prepared)
        self.spec = prepared.training
        self.model_spec = prepared.model
        self._ranks = ranks
        self.device = pick_device(rank_devices(start.device)[ranks.rank])
        if self.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(start.gpu_share, self.device)
        self._tokenizer_path = Path(start.tokenizer_path)
        context, vocab_size = prepared.model.context, prepared.model.vocab_size
        token_bytes = prepared.data.token_bytes
        self._train_tokens = TokenFile(Path(start.train_path), vocab_size, token_bytes)
        self._heldout_tokens = TokenFile(Path(start.heldout_path), vocab_size, token_bytes)
        self._order = SampleOrder(len(self._train_tokens), context, self.spec.seed)
        self._size = f"{prepared.num_parameters} parameters"
        with memory_errors_told(self._size):
            self._flat = self._place(prepared)
            if self.spec.activation_checkpointing:
                self._flat.model.checkpoint_activations()
            hidden = hidden_matrices(self._flat.model, vocab_size)
            self._optimizer = InnerOptimizer(self._flat, self.spec, hidden)
            self._drift: Drift | None = None
            if self.spec.outer_momentum_spread:
                scale = known_scale(self.spec.outer_lr, self.spec.outer_momentum)
                self._drift = Drift(self._flat, scale)
        model = self._flat.model
        self._gradient = BatchGradient(model, self._flat.grad_P, self.spec, ranks)
        self._gradient.micro_batch_size = start.micro_batch_size or self.spec.batch_size
        most_samples = self._gradient.micro_batch_size if ranks.size > 1 else 0
        self._loss = BatchLoss(model, self.device, self.spec, ranks, most_samples)
        self._losses: list[tuple[int, torch.Tensor]] = []  # of each slot since they were taken
        self.warning = self._compile() if start.is_compiled else ""  # for the peer's owner
        if ranks.size > 1:
            self._rehearse()  # memory has to run out now or never

    def _place(self, prepared: config.PreparedJob) -> PlacedModel:
        size = prepared.num_parameters
        if isinstance(self._ranks, Group):
            return ShardedModel(prepared.model, size, self.device, self._ranks)
        return FlatModel(prepared.model, size, self.device)

    @property
    def num_parameters(self) -> int:
        """P."""
        return self._flat.num_parameters

    @property
    def layout(self) -> Layout:
        """Names and shapes of the tensors within the flat vector, in order."""
        return self._flat.layout

    @property
    def micro_batch_size(self) -> int:
        """Samples that are computed at a time: fewer than a batch where memory asks for it."""
        return self._gradient.micro_batch_size

    @property
    def tokens_per_step(self) -> int:
        """Training tokens of one slot."""
        return self.spec.batch_size * self.model_spec.context

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the token files."""
        self._train_tokens.close()
        self._heldout_tokens.close()

    def begin(
        self, theta_P: Vector, inner_N: Vector | None, momentum_P: Vector | None = None
    ) -> None:
        """Start from these parameters, this inner state or none, and this outer momentum.

        The last one matters only with `outer_momentum_spread`; None: of a job's first round.
        """
        self._start_from(theta_P, momentum_P)
        if inner_N is None:
            self._optimizer.reset_()
        else:
            self._optimizer.load_(inner_N)
        self._flat.model.train()
        self._forget_loss()

    @property
    def drift(self) -> float:
        """Share of the outer momentum that the parameters have moved on by; 0 unless spread."""
        return self._drift.share if self._drift else 0.0

    def step(self, slot: int, progress: float, drift: float = 0.0) -> None:
        """Take the inner step of a slot at a position in [0, 1] of the job's tokens.

        Afterwards `drift` is the share of the outer momentum that the parameters have moved on by.
        Raises OutOfDeviceMemory where even one sample at a time does not fit, and UnreadableSlot.
        """
        with memory_errors_told(f"the samples of data slot {slot}"):
            batch = self.read(slot)
        loss = self._gradient.backward(batch, slot)
        with memory_errors_told(f"a step of {self._size}"):
            norm = self._optimizer.step_(learning_rate(progress, self.spec))
            if self._drift:
                self._drift.go_to(drift)
            self._losses.append((slot, loss + 0.0 * norm))  # no number where either is none

    def read(self, slot: int) -> Batch:
        """Return the batch of a slot. Raises UnreadableSlot."""
        starts_B = self._order.slot_starts(slot, self.spec.batch_size)
        try:
            return self._train_tokens.batch(starts_B, self.model_spec.context)
        except UnreadableSlot as error:
            raise UnreadableSlot(f"data slot {slot}: {error}", slots=((slot, slot + 1),)) from error

    def _compile(self) -> str:
        """Train through the compiler from now on, or return why not."""
        self._gradient.loss_of = compiled(self._flat.model)
        reason = try_out(self._rehearse)
        if reason:
            self._gradient.loss_of = self._flat.model
        return reason

    def _rehearse(self) -> None:
        """Compute a gradient for nothing."""
        self._flat.model.train()
        tokens_BT = np.zeros((self.spec.batch_size, self.model_spec.context), np.int64)
        self._gradient.backward((tokens_BT, tokens_BT), 0)

    def take_loss(self) -> float:
        """Return the mean loss of the steps since the last call (0 where there were none).

        Waits for the device. Raises NonFiniteLoss, which names the first slot that was to blame.
        """
        if not self._losses:
            return 0.0
        parts = torch.stack([loss for _, loss in self._losses])
        losses: list[float] = (self._ranks.total(parts) / self._ranks.size).tolist()
        slots = [slot for slot, _ in self._losses]
        self._forget_loss()
        for slot, loss in zip(slots, losses, strict=True):
            if not math.isfinite(loss):
                raise NonFiniteLoss(
                    f"the training loss or its gradient became {loss} on data slot {slot}; "
                    "where that happens again and again, lower training.inner_lr",
                    slots=((slot, slot + 1),),
                )
        return sum(losses) / len(losses)

    def shift(self, by_P: Vector, momentum_P: Vector | None = None) -> None:
        """Move the parameters, as a round asks for; the inner state stays.

        What they had moved on by the last momentum is undone: the shift holds it.
        """
        with memory_errors_told(f"a shift of {self._size}"):
            if self._drift:
                self._drift.go_to(0.0)
            self._flat.shift_(by_P)
            if self._drift:
                self._drift.renew(momentum_P)

    def reload(self, theta_P: Vector, momentum_P: Vector | None = None) -> None:
        """Replace the parameters, as a round asks for; the inner state stays."""
        self._start_from(theta_P, momentum_P)

    def _start_from(self, theta_P: Vector, momentum_P: Vector | None) -> None:
        self._flat.load_(theta_P)
        if self._drift:
            self._drift.renew(momentum_P)

    def go_over(self, theta_P: Vector) -> None:
        """Take over theta_local of a site in the middle of a round."""
        self._flat.load_(theta_P)
        if self._drift:
            self._drift.placed_anew()

    def finish_round(self, theta_P: Vector, inner_N: Vector) -> None:
        """Write theta_local and the inner state; more steps may follow.

        Raises NonFiniteLoss or OutOfDeviceMemory, and then writes nothing.
        """
        with memory_errors_told(f"a look at {self._size}"):
            is_finite = self._flat.is_finite()
        if not is_finite:
            raise NonFiniteLoss("a step made parameters infinite; lower training.inner_lr")
        if self._drift:
            self._drift.store(theta_P)
        else:
            self._flat.store(theta_P)
        self._optimizer.store(inner_N)

    def evaluate(
        self, theta_P: Vector, *, max_tokens: int, is_stopped: Callable[[], bool]
    ) -> tuple[float, int]:
        """Return the mean held-out loss in nats and the number of tokens it is over.

        `is_stopped` is asked between batches; then only what was seen so far counts. Training
        goes on afterwards as if nothing had been.
        Raises NonFiniteLoss, and OutOfDeviceMemory where even one window does not fit.
        """
        with self._looking_at(theta_P):
            return self._evaluate(max_tokens, is_stopped)

    def agreed(self, is_stopped: Callable[[], bool]) -> Callable[[], bool]:
        """Turn a question into one that all ranks ask together: yes, where one of them says so."""

        def ask() -> bool:
            answer = torch.tensor(float(is_stopped()), device=self.device)
            return self._ranks.total(answer).item() > 0

        return ask

    @contextmanager
    def _looking_at(self, theta_P: Vector) -> Iterator[None]:
        """Put other parameters into the model for a while, not to train them."""
        kept_P = np.empty_like(theta_P)
        self._flat.store(kept_P)
        self._flat.load_(theta_P)
        self._flat.model.eval()
        try:
            yield
        finally:
            self._flat.load_(kept_P)
            self._flat.model.train()

    def _evaluate(self, max_tokens: int, is_stopped: Callable[[], bool]) -> tuple[float, int]:
        context = self.model_spec.context
        size = max(self.spec.batch_size, _EVAL_TOKENS_PER_BATCH // context)
        if not self._flat.model.is_batch_separable:
            size = self.spec.batch_size
        total, num_windows = 0.0, 0
        for batch in self._heldout_tokens.heldout_windows(context, size, max_tokens=max_tokens):
            if is_stopped():
                break
            if len(batch[0]) > 1 or self._flat.model.is_batch_separable:
                total += self._loss.of(batch) * len(batch[0])
                num_windows += len(batch[0])
        if not num_windows:
            raise TrainingError("there is no whole held-out window to evaluate on")
        if not np.isfinite(total):
            raise NonFiniteLoss(f"the held-out loss is {total}")
        return total / num_windows, num_windows * context

    def sample(self, theta_P: Vector, request: Sample) -> str:
        """Return the prompt and its continuation. Raises ConfigError, OutOfDeviceMemory."""
        if self.model_spec.kind == "embedding":
            raise ConfigError("an embedding model does not generate text")
        if self._tokenizer_path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise ConfigError(f"the tokenizer is larger than {MAX_TOKENIZER_BYTES} bytes")
        tokenizer = load_tokenizer(self._tokenizer_path.read_bytes())
        prompt_T = tokenizer.encode(request.prompt or "\n")
        with self._looking_at(theta_P), memory_errors_told("a sample"):
            ids_T = generate(
                self._flat.model,
                prompt_T,
                context=self.model_spec.context,
                num_tokens=request.num_tokens,
                temperature=request.temperature,
                seed=request.seed,
            )
        return tokenizer.decode(ids_T[ids_T < tokenizer.vocab_size])

    def _forget_loss(self) -> None:
        self._losses.clear()


def each(slots: Ranges) -> Iterator[int]:
    """Yield every slot of the ranges in order."""
    for start, stop in slots:
        yield from range(start, stop)


def position(command: Train, step: int, total_tokens: int) -> float:
    """Return how far in [0, 1] the job is, in the middle of a step of a peer's local work.

    `step` counts from the first one that no certified round holds; those beyond the command's
    `steps` will be the next round's.
    """
    planned = command.tokens_planned * (step + 0.5) / max(1, command.steps)
    return min(1.0, (command.tokens_done + planned) / total_tokens)


def rank_devices(names: str) -> list[str]:
    """The device of each rank, from names such as "cuda:0,cuda:1": several share one model."""
    return names.split(",")


def pick_device(name: str) -> torch.device:
    """Return the device of that name; "auto" takes the best there is.

    Raises ConfigError where it is not there, OutOfDeviceMemory where it has no room at all.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # With its number: some functions of torch refuse a "cuda" that names none.
        return torch.empty(1, device=torch.device(name)).device
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        if is_memory_error(error):
            raise OutOfDeviceMemory(
                f"the device {name!r} has no memory left; end what else runs on it"
            ) from error
        raise ConfigError(f"this machine has no device {name!r}: {str(error)[:200]}") from error
