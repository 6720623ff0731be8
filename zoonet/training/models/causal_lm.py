"""Any causal language model of the `transformers` library, from the shape in a job's spec.

Nothing is downloaded and no code of the job runs: only architectures inside the installed
library can be named. B = samples, T = tokens, V = vocabulary
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoonet.config import ModelSpec
from zoonet.errors import ConfigError
from zoonet.training.memory import is_memory_error
from zoonet.training.models.base import TrainableModel

_MAX_COUNT = 1024  # layers, as in `ModelConfig`
_COUNTS = re.compile("layer|block|expert|depth")


class CausalLM(TrainableModel):
    """Wraps a `transformers` model. Raises ConfigError for a config it cannot be made from."""

    is_random = True  # many architectures drop out by default

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.model = _from_config(spec)

    def checkpoint_activations(self) -> None:
        old_name = self.model.gradient_checkpointing_enable  # newer versions warn of it
        try:
            getattr(self.model, "activation_checkpointing_enable", old_name)(
                {"use_reentrant": False}
            )
        except ValueError:  # the library's word for an architecture that is not made for it
            super().checkpoint_activations()

    def forward(self, x_BT: Tensor, y_BT: Tensor) -> Tensor:
        logits_BTV = self.model(input_ids=x_BT, use_cache=False).logits
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), y_BT.flatten())

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As `transformers` names them, so that it can read the exported file."""
        named: Iterator[tuple[str, nn.Parameter]] = self.model.named_parameters(
            prefix, recurse, remove_duplicate
        )
        return named

    def next_token_logits(self, x_BT: Tensor) -> Tensor:
        logits_BTV: Tensor = self.model(input_ids=x_BT, use_cache=False).logits
        return logits_BTV[:, -1]


def library_config(spec: ModelSpec) -> dict[str, Any]:
    """The fields of the config.json that `transformers` writes for this model."""
    with torch.device("meta"):
        model = _from_config(spec)
    fields: dict[str, Any] = json.loads(model.config.to_json_string())
    return fields | {"architectures": [type(model).__name__]}


def _check_counts(fields: dict[str, Any]) -> None:
    """Refuse counts of modules that would take all memory before the parameters are counted."""
    for key, value in fields.items():
        if isinstance(value, dict):
            _check_counts(value)
        if isinstance(value, int) and value > _MAX_COUNT and _COUNTS.search(key):
            raise ConfigError(f"model.hf_config.{key} is {value}, at most {_MAX_COUNT}")


def _from_config(spec: ModelSpec) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "this job's model needs the transformers library; "
            'install it with: pip install "zoo-compute[hf]"'
        ) from error
    _check_counts(spec.hf_config)
    fields = dict(spec.hf_config)
    model_type = fields.pop("model_type", "")
    fields["vocab_size"] = spec.vocab_size
    try:
        config = transformers.AutoConfig.for_model(model_type, **fields)
        limit = getattr(config, "max_position_embeddings", spec.context)
        if isinstance(limit, int) and limit < spec.context:
            raise ConfigError(
                f"model.context is {spec.context}, but model.hf_config has positions for {limit}"
            )
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ConfigError:
        raise
    except Exception as error:  # foreign constructors raise whatever the values lead to
        if is_memory_error(error):
            raise
        raise ConfigError(
            f"transformers cannot build a causal LM of type {model_type!r} from "
            f"model.hf_config: {str(error)[:200]}"
        ) from error
    return model.to(torch.float32)
