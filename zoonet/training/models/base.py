"""What a model must offer to be trained here."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor, nn

from zoonet.errors import ConfigError


class TrainableModel(nn.Module):
    """A model that computes its own loss.

    B = samples, T = tokens of a window, V = vocabulary
    """

    # Whether the loss of a batch is the mean of the losses of its samples, so that it may be cut.
    is_batch_separable: bool = True
    # Whether a step in training draws random numbers (dropout), which are then keyed by the slot.
    is_random: bool = False

    def checkpoint_activations(self) -> None:
        """From now on compute each block's activations again in the backward pass.

        Gradients stay the same. Raises ConfigError where the architecture cannot.
        """
        raise ConfigError(
            f"training.activation_checkpointing: {type(self).__name__} cannot; leave it false"
        )

    @abstractmethod
    def forward(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        """Return the mean loss () of a batch; y is x one token later."""

    def next_token_logits(self, x_BT: Tensor) -> Tensor:
        """Return logits_BV of the token after the window. Only causal models can."""
        raise NotImplementedError(f"{type(self).__name__} does not generate text")
