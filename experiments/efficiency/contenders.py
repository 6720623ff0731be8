"""Who trains: this project's settings, the centralised twin, and what hivemind.Optimizer computes.

All contenders of a number of peers train on equally many tokens, `share` times `STEPS` steps of
each peer, and have their learning rate swept. The learning rate falls to a tenth by then, so that
a shorter run is one that was planned to be short.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final

from experiments.shakespeare.__main__ import MODEL, TRAINING
from zoonet.config import ComputeJob

INNER_STEPS: Final = 25
RATES: Final = (1e-3, 2e-3, 4e-3, 8e-3)  # swept by every contender, and beyond where one end wins
TWIN_SHARES: Final = (0.15, 0.3, 0.5, 0.7)  # beside the whole: how its loss falls with tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The model and the length of a run; the same for all contenders of a table."""

    steps: int = 600  # of each peer, at share 1
    batch_size: int = 3  # of each peer's step
    num_layers: int = 2
    width: int = 64
    context: int = 64
    max_bytes: int = 0  # of the text; 0: all


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to train. `batch` is a share of what peers train on in a step: of each one's, or,
    in one process, of all of theirs. Rounds hold equally many tokens.
    """

    name: str
    sites: tuple[int, ...] = ()  # sizes; empty: one process in place of peers
    site_steps: int = 0
    early: int = 0  # steps of a round that come before the last mean is there
    outer: dict[str, float | bool] = field(default_factory=dict)  # other settings of `training`
    batch: Fraction = Fraction(1)
    is_delayed: bool = False  # each gradient is applied a step late
    shares: tuple[float, ...] = ()  # lengths beside the whole

    @property
    def is_ours(self) -> bool:
        """Whether it is a setting of this project."""
        return bool(self.sites)

    @property
    def is_twin(self) -> bool:
        """Whether it is centralised training, at a batch size that one may choose freely."""
        return not self.is_ours and not self.is_delayed and self.batch <= 1


def contenders_of(num_peers: int) -> tuple[Contender, ...]:
    """All that compete with so many peers, the most telling first."""
    sites = {8: (4, 4), 24: (6, 6, 6, 6)}[num_peers]
    alone = (1,) * num_peers
    twin = Contender(name="twin", shares=TWIN_SHARES)
    small = Contender(name="twin, batch/4", batch=Fraction(1, 4), shares=TWIN_SHARES)
    diloco = Contender(name="diloco", sites=alone, shares=(0.5, 1.5))
    often = Contender(name="two levels, every step", sites=sites, site_steps=1)
    every = Contender(name="two levels, every 5", sites=sites, site_steps=5)
    if num_peers == 24:
        return twin, often, diloco, small, every
    gentle: dict[str, float | bool] = {"outer_lr": 1.0, "outer_momentum": 0.6}
    in_parts: dict[str, float | bool] = {"outer_momentum_spread": True}
    longer = (0.3, 2.0)
    return (
        twin,
        diloco,
        often,
        small,
        Contender(name="diloco, batch/3", sites=alone, batch=Fraction(1, 3)),
        Contender(name="diloco, 2 early", sites=alone, early=2),
        Contender(
            name="diloco, momentum in equal parts, 8 early", sites=alone, early=8, outer=in_parts
        ),
        Contender(name="diloco, momentum 0.6", sites=alone, outer=gentle),
        Contender(name="diloco, momentum 0.6, 8 early", sites=alone, early=8, outer=gentle),
        every,
        Contender(name="synchronous, batch x5", batch=Fraction(5), shares=longer),
        Contender(name="delayed, batch x1", is_delayed=True, shares=(0.3,)),
        Contender(name="delayed, batch x5", batch=Fraction(5), is_delayed=True, shares=longer),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One training: an entry of the table."""

    contender: str
    num_peers: int
    inner_lr: float
    share: float = 1.0
    seed: int = 1

    def find(self) -> Contender:
        """The contender of that name."""
        return next(c for c in contenders_of(self.num_peers) if c.name == self.contender)


def job_of(setting: Setting, scale: Scale, text: str) -> ComputeJob:
    """What a setting trains."""
    return recipe(setting.find(), setting, scale, text)


def recipe(contender: Contender, setting: Setting, scale: Scale, text: str) -> ComputeJob:
    """The recipe of experiments.shakespeare with these changes."""
    samples_a_step = scale.batch_size * setting.num_peers
    num_rounds = max(1, round(setting.share * scale.steps / INNER_STEPS))
    own_batch = max(1, round(contender.batch * scale.batch_size))
    one_batch = max(1, round(contender.batch * samples_a_step))
    tokens = num_rounds * INNER_STEPS * samples_a_step * scale.context
    if not contender.is_ours:  # whole steps
        tokens = max(1, round(tokens / (one_batch * scale.context))) * one_batch * scale.context
    changed: dict[str, Any] = {
        "tokens": tokens,
        "batch_size": own_batch if contender.is_ours else one_batch,
        "inner_steps": round(INNER_STEPS * scale.batch_size / own_batch),
        "inner_lr": setting.inner_lr,
        "seed": setting.seed,
        "ahead": float(contender.early > 0),
        "site_steps": contender.site_steps,
        "eval_tokens": 0,
        **contender.outer,
    }
    model = {"num_layers": scale.num_layers, "width": scale.width, "context": scale.context}
    return ComputeJob(
        name="efficiency",
        model_config={**MODEL, **model},
        data_config={"text": text, "tokenizer": "char", "max_bytes": scale.max_bytes},
        training_config={**TRAINING, **changed},
    )
