"""A text encoder trained with a contrastive loss: adjacent pieces of a text belong together.

B = samples, T = tokens, D = width, E = size of an embedding
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoonet.config import ModelSpec
from zoonet.training.models.base import TrainableModel
from zoonet.training.models.gpt import Backbone

_TEMPERATURE = 0.05  # of the softmax over cosine similarities (SimCSE, arXiv 2104.08821)


class TextEncoder(TrainableModel):
    """Embeds texts of up to context / 2 tokens as unit vectors.

    The two halves of a window are a positive pair; the other windows of the batch are its
    negatives (InfoNCE, arXiv 1807.03748, in both directions).
    """

    is_batch_separable = False

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.piece = spec.context // 2
        self.backbone = Backbone(spec, max_positions=self.piece, is_causal=False)
        self.backbone.initialise_()
        self.is_random = spec.dropout > 0
        self.projection = nn.Linear(spec.width, spec.embedding_dim, bias=False)

    def checkpoint_activations(self) -> None:
        self.backbone.is_checkpointing = True

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Return unit vectors_BE of texts that are equally long: the mean over their tokens."""
        pooled_BD = self.backbone(ids_BT).mean(1)
        return F.normalize(self.projection(pooled_BD).float(), dim=-1)

    def forward(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        halves_BT = torch.cat((x_BT[:, : self.piece], x_BT[:, self.piece : 2 * self.piece]))
        left_BE, right_BE = self.embed(halves_BT).chunk(2)
        similarity_BB = left_BE @ right_BE.T / _TEMPERATURE
        target_B = torch.arange(len(x_BT), device=x_BT.device)
        there = F.cross_entropy(similarity_BB, target_B)
        back = F.cross_entropy(similarity_BB.T, target_B)
        return (there + back) / 2
