"""The measure: loss over every non-overlapping window of the held-out tenth of the text.

B = windows of one batch, T = context
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import torch

from zoonet.config.prepared import ModelSpec
from zoonet.training.export import from_safetensors
from zoonet.training.models import build_model, layout_of, unflatten_
from zoonet.training.tokenizers import load_tokenizer

WINDOWS_PER_BATCH = 64


@torch.no_grad()
def held_out_loss(folder: Path, text_path: Path) -> tuple[float, int]:
    """Return (mean nats a token, number of tokens) of a fetched model on the last 10 % of a file.

    Reads the files that `zoonet result` wrote. Independent of what the swarm says of itself.
    """
    spec = msgspec.convert(json.loads((folder / "config.json").read_text()), ModelSpec)
    model = build_model(spec)
    raw = (folder / "model.safetensors").read_bytes()
    unflatten_(from_safetensors(layout_of(spec), raw), model)
    model.eval()
    text = text_path.read_text()
    tokenizer = load_tokenizer((folder / "tokenizer.json").read_bytes())
    ids = tokenizer.encode(text[int(len(text) * 0.9) :]).astype(np.int64)
    num_windows = (len(ids) - 1) // spec.context
    num_tokens = num_windows * spec.context
    x_BT = torch.from_numpy(ids[:num_tokens]).view(num_windows, spec.context)
    y_BT = torch.from_numpy(ids[1 : num_tokens + 1]).view(num_windows, spec.context)
    total = 0.0
    for start in range(0, num_windows, WINDOWS_PER_BATCH):
        batch = slice(start, start + WINDOWS_PER_BATCH)
        total += float(model(x_BT[batch], y_BT[batch])) * y_BT[batch].numel()
    return total / num_tokens, num_tokens
