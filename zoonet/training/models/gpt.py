"""A small GPT: pre-norm blocks, learned positions, GELU, tied head, no biases.

B = samples, T = tokens, D = width, H = heads, E = width of a head, V = vocabulary
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoonet.config import ModelSpec
from zoonet.training.models.base import TrainableModel

_INIT_STD = 0.02


class Norm(nn.Module):
    """Layer norm with a gain and no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return F.layer_norm(x_BTD, self.weight.shape, self.weight)


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, spec: ModelSpec, *, is_causal: bool) -> None:
        super().__init__()
        self.num_heads = spec.num_heads
        self.dropout = spec.dropout
        self.is_causal = is_causal
        self.qkv = nn.Linear(spec.width, 3 * spec.width, bias=False)
        self.out = nn.Linear(spec.width, spec.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        qkv_BTX = self.qkv(x_BTD)
        q_BHTE, k_BHTE, v_BHTE = qkv_BTX.view(B, T, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mixed_BHTE = F.scaled_dot_product_attention(
            q_BHTE,
            k_BHTE,
            v_BHTE,
            is_causal=self.is_causal,
            dropout_p=self.dropout if self.training else 0.0,
        )
        mixed_BTD = mixed_BHTE.transpose(1, 2).reshape(B, T, D)
        out_BTD: Tensor = self.out(mixed_BTD)
        return out_BTD


class Block(nn.Module):
    """Attention, then a two-layer perceptron of four times the width, each on a residual."""

    def __init__(self, spec: ModelSpec, *, is_causal: bool) -> None:
        super().__init__()
        self.attention_norm = Norm(spec.width)
        self.attention = Attention(spec, is_causal=is_causal)
        self.mlp_norm = Norm(spec.width)
        self.up = nn.Linear(spec.width, 4 * spec.width, bias=False)
        self.down = nn.Linear(4 * spec.width, spec.width, bias=False)
        self.dropout = nn.Dropout(spec.dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD)))
        hidden_BTF = F.gelu(self.up(self.mlp_norm(x_BTD)))
        out_BTD: Tensor = x_BTD + self.dropout(self.down(hidden_BTF))
        return out_BTD


class Backbone(nn.Module):
    """Embeddings and blocks: ids_BT -> normed x_BTD. T is at most `max_positions`."""

    is_checkpointing = False  # keep only what goes into a block for the backward pass

    def __init__(self, spec: ModelSpec, *, max_positions: int, is_causal: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(spec.vocab_size, spec.width)
        self.positions = nn.Embedding(max_positions, spec.width)
        self.dropout = nn.Dropout(spec.dropout)
        self.blocks = nn.ModuleList(
            Block(spec, is_causal=is_causal) for _ in range(spec.num_layers)
        )
        self.norm = Norm(spec.width)

    def forward(self, ids_BT: Tensor) -> Tensor:
        positions_TD = self.positions.weight[: ids_BT.shape[1]]
        x_BTD = self.dropout(self.tokens(ids_BT) + positions_TD)
        for block in self.blocks:
            if self.is_checkpointing and torch.is_grad_enabled():
                x_BTD = checkpoint(block, x_BTD, use_reentrant=False)
            else:
                x_BTD = block(x_BTD)
        normed_BTD: Tensor = self.norm(x_BTD)
        return normed_BTD

    @torch.no_grad()
    def initialise_(self) -> None:
        """Draw normal weights; those that end a residual branch smaller by sqrt(2 * layers).

        GPT-2 (Radford et al., 2019), section 2.3.
        """
        residual_std = _INIT_STD / math.sqrt(2 * len(self.blocks))
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                continue
            is_residual = name.endswith(("attention.out.weight", "down.weight"))
            parameter.normal_(0.0, residual_std if is_residual else _INIT_STD)


class GPT(TrainableModel):
    """A causal language model whose head shares the weights of its token embedding."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.backbone = Backbone(spec, max_positions=spec.context, is_causal=True)
        self.backbone.initialise_()
        self.is_random = spec.dropout > 0

    def checkpoint_activations(self) -> None:
        self.backbone.is_checkpointing = True

    def forward(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        logits_BTV = F.linear(self.backbone(x_BT), self.backbone.tokens.weight)
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), y_BT.flatten())

    def next_token_logits(self, x_BT: Tensor) -> Tensor:
        return F.linear(self.backbone(x_BT)[:, -1], self.backbone.tokens.weight)
