"""In which order a peer looks for the swarm: a pure rule, told of outcomes step by step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

LAN_SEARCH_S: Final = 3.0


class Source(Enum):
    """Where addresses came from."""

    GIVEN = "given"  # --join
    CACHE = "cache"  # peers met before
    LAN = "lan"


@dataclass(frozen=True, slots=True)
class Dial:
    """Dial all of these at once; then go on with `after_dial`."""

    source: Source
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SearchLan:
    """Listen for neighbours for this long, then go on with `after_search`."""

    timeout_s: float


@dataclass(frozen=True, slots=True)
class Joined:
    """Somebody answered: nothing is left to do."""

    source: Source


@dataclass(frozen=True, slots=True)
class FoundSwarm:
    """Nobody answered: be the first, and tell the user what others type to join.

    `is_expected` is False where the user named peers, all of which are silent.
    """

    is_expected: bool


Step = Dial | SearchLan | Joined | FoundSwarm


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """What is known while joining. `next_step` says what to do, `after_…` what is known then."""

    given: tuple[str, ...] = ()
    cached: tuple[str, ...] = ()
    is_lan_enabled: bool = True
    on_lan: tuple[str, ...] | None = None  # None: not searched yet
    tried: frozenset[Source] = frozenset()
    joined_by: Source | None = None


def next_step(state: Joining) -> Step:
    """Given peers, then the cache, then the LAN, then a swarm of one's own."""
    if state.joined_by is not None:
        return Joined(state.joined_by)
    if state.given and Source.GIVEN not in state.tried:
        return Dial(Source.GIVEN, state.given)
    cached = _without(state.cached, state.given)
    if cached and Source.CACHE not in state.tried:
        return Dial(Source.CACHE, cached)
    if state.is_lan_enabled and state.on_lan is None:
        return SearchLan(LAN_SEARCH_S)
    if state.on_lan and Source.LAN not in state.tried:
        return Dial(Source.LAN, state.on_lan)
    return FoundSwarm(is_expected=not state.given)


def after_dial(state: Joining, source: Source, *, num_answered: int) -> Joining:
    """The state once a source's addresses have been dialled."""
    joined_by = source if num_answered else None
    return replace(state, tried=state.tried | {source}, joined_by=joined_by)


def after_search(state: Joining, addresses: tuple[str, ...]) -> Joining:
    """The state once the LAN has been searched."""
    return replace(state, on_lan=addresses)


def _without(addresses: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    known = set(others)
    return tuple(dict.fromkeys(text for text in addresses if text not in known))
