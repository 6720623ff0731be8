"""Let a fetched language model continue a text, on this machine's CPU."""

from __future__ import annotations

from zoonet.client import JobOutput
from zoonet.errors import ConfigError


def continue_text(
    output: JobOutput, prompt: str, *, num_tokens: int, temperature: float, seed: int
) -> str:
    """Return the prompt and how the model goes on. Blocks for seconds.

    Raises ConfigError for a prompt that its tokenizer cannot read, and for a model that is none
    of language.
    """
    from zoonet.training.export import from_config, from_safetensors  # imports torch
    from zoonet.training.generate import generate
    from zoonet.training.models import build_model, layout_of, unflatten_
    from zoonet.training.tokenizers import load_tokenizer

    spec = from_config(output.config.read_bytes())
    if spec.kind == "embedding":
        raise ConfigError("an embedding model makes vectors of texts; it cannot continue one")
    model = build_model(spec)
    unflatten_(from_safetensors(layout_of(spec), output.model.read_bytes()), model)
    tokenizer = load_tokenizer(output.tokenizer.read_bytes())
    ids_T = generate(
        model.eval(),
        tokenizer.encode(prompt),
        context=spec.context,
        num_tokens=num_tokens,
        temperature=temperature,
        seed=seed,
    )
    return tokenizer.decode(ids_T[ids_T < tokenizer.vocab_size])  # a model may know more ids
