"""Text from a causal language model. B = 1, T = tokens so far, V = vocabulary"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from zoonet.errors import ConfigError
from zoonet.training.models.base import TrainableModel

MAX_TOKENS = 100_000


@torch.no_grad()
def generate(
    model: TrainableModel,
    prompt_T: NDArray[np.integer],
    *,
    context: int,
    num_tokens: int,
    temperature: float,
    seed: int,
) -> NDArray[np.int64]:
    """Return the prompt and `num_tokens` more ids. The same seed gives the same text.

    Runs the whole window for every token: plain, and fast enough for samples. Raises ConfigError
    for an empty prompt or impossible numbers.
    """
    if not len(prompt_T) or not 0 <= num_tokens <= MAX_TOKENS or not temperature >= 0:
        raise ConfigError(
            f"cannot sample {num_tokens} tokens (0 to {MAX_TOKENS}) at a temperature of "
            f"{temperature} (0 or more) after {len(prompt_T)} tokens (1 or more)"
        )
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.from_numpy(prompt_T.astype(np.int64))[None].to(device)
    for _ in range(num_tokens):
        logits_V = model.next_token_logits(ids_BT[:, -context:])[0].float().cpu()
        if temperature == 0:
            chosen = logits_V.argmax(keepdim=True)
        else:
            probabilities_V = torch.softmax(logits_V / temperature, dim=-1)
            chosen = torch.multinomial(probabilities_V, 1, generator=generator)
        ids_BT = torch.cat((ids_BT, chosen[None].to(device)), dim=1)
    return ids_BT[0].cpu().numpy()
