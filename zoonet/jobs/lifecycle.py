"""The life of a job as a pure state machine: (state, event) -> state.

::

    open ──taken──> training ──finished──> finished
      │                │
      └────────────────┴──cancelled──> cancelled   by its submitter
                       ├──expired────> expired     its record's time has passed
                       └──failed─────> failed      every participant gave up
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, assert_never

from zoonet.errors import ConfigError

JobPhase = Literal["open", "training", "finished", "cancelled", "expired", "failed"]
FINAL_PHASES: Final = frozenset({"finished", "cancelled", "expired", "failed"})


@dataclass(frozen=True, slots=True)
class Taken:
    """A peer has begun to work on the job."""

    peer_id: str


@dataclass(frozen=True, slots=True)
class Progressed:
    """A chain of certified rounds, as long as this, exists."""

    num_rounds: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """Participants published the model."""

    model_cid: str


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The submitter withdrew the job."""


@dataclass(frozen=True, slots=True)
class Expired:
    """The job's record has run out."""


@dataclass(frozen=True, slots=True)
class Failed:
    """No participant can go on; in the words of one of them."""

    reason: str


Event: TypeAlias = Taken | Progressed | Finished | Cancelled | Expired | Failed


@dataclass(frozen=True, slots=True)
class JobState:
    """Where a job stands. A new one is open."""

    phase: JobPhase = "open"
    peer_ids: frozenset[str] = frozenset()
    num_rounds: int = 0
    num_tokens: int = 0
    model_cid: str = ""
    note: str = ""

    @property
    def is_final(self) -> bool:
        """Whether nothing can happen to the job any more."""
        return self.phase in FINAL_PHASES


class IllegalTransition(ConfigError):
    """The event cannot happen to a job in this phase."""


def advance(state: JobState, event: Event) -> JobState:
    """Return the state after the event. Raises IllegalTransition; `state` is never changed."""
    if state.is_final:
        raise IllegalTransition(f"the job is {state.phase}: it cannot be {_verb(event)} any more")
    match event:
        case Taken(peer_id):
            return replace(state, phase="training", peer_ids=state.peer_ids | {peer_id})
        case Progressed(num_rounds, num_tokens):
            _require_training(state, event)
            if num_tokens <= state.num_tokens:  # a shorter chain, or old news
                return state
            return replace(state, num_rounds=num_rounds, num_tokens=num_tokens)
        case Finished(model_cid):
            _require_training(state, event)
            return replace(state, phase="finished", model_cid=model_cid)
        case Cancelled():
            return replace(state, phase="cancelled", note="cancelled by its submitter")
        case Expired():
            return replace(state, phase="expired", note="its time has passed")
        case Failed(reason):
            _require_training(state, event)
            return replace(state, phase="failed", note=reason)
        case _:
            assert_never(event)


def _require_training(state: JobState, event: Event) -> None:
    if state.phase != "training":
        raise IllegalTransition(f"the job is {state.phase}: it cannot be {_verb(event)} yet")


def _verb(event: Event) -> str:
    return type(event).__name__.lower()
