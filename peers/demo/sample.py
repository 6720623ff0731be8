"""A sample of what a finished model writes."""

from __future__ import annotations

from typing import Final

import msgspec

from zoonet.client import JobOutput
from zoonet.config import ModelSpec

NUM_TOKENS: Final = 400
TEMPERATURE: Final = 0.7


def write_sample(output: JobOutput, prompt: str, *, seed: int) -> str:
    """Let the model continue the prompt, and return both. Blocks for seconds."""
    from zoonet.training.export import from_safetensors  # imports torch
    from zoonet.training.generate import generate
    from zoonet.training.models import build_model, layout_of, unflatten_
    from zoonet.training.tokenizers import load_tokenizer

    spec = msgspec.json.decode(output.config.read_bytes(), type=ModelSpec)
    model = build_model(spec)
    unflatten_(from_safetensors(layout_of(spec), output.model.read_bytes()), model)
    model.eval()
    tokenizer = load_tokenizer(output.tokenizer.read_bytes())
    ids_T = generate(
        model,
        tokenizer.encode(prompt),
        context=spec.context,
        num_tokens=NUM_TOKENS,
        temperature=TEMPERATURE,
        seed=seed,
    )
    return tokenizer.decode(ids_T[ids_T < tokenizer.vocab_size])
