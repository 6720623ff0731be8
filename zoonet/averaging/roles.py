"""What one peer does for each tree of an attempt, and to whom it sends."""

from __future__ import annotations

from dataclasses import dataclass

from zoonet.averaging.messages import Attempt
from zoonet.averaging.plan import (
    Plan,
    Tree,
    members_by_index,
    parent_of,
    receivers_of,
    sources_of,
)


@dataclass(frozen=True, slots=True)
class Role:
    """What this peer does for the chunks of one tree. Peers are indices into the plan's."""

    tree: Tree
    parent: int | None  # None for the root
    owner: int  # of this peer's site
    sources: tuple[int, ...]  # empty unless this peer owns the chunks in its site
    receivers: tuple[int, ...]


def role_in(plan: Plan, tree: Tree, me: int, contributors: frozenset[int]) -> Role:
    """This peer's role in one tree of a plan."""
    return Role(
        tree=tree,
        parent=parent_of(plan, tree, me),
        owner=tree.owners[plan.site_of(me)],
        sources=tuple(sources_of(plan, tree, me, contributors)),
        receivers=tuple(receivers_of(plan, tree, me)),
    )


def roles_in(attempt: Attempt, me: int) -> list[Role]:
    """This peer's role in every tree of an attempt, in the order of trees."""
    contributors = members_by_index(attempt.plan, attempt.contributors)
    return [role_in(attempt.plan, tree, me, contributors) for tree in attempt.plan.trees]


def partners_of(attempt: Attempt, me: int) -> set[int]:
    """Everyone to whom this peer sends in an attempt."""
    is_contributor = me in members_by_index(attempt.plan, attempt.contributors)
    found: set[int] = set()
    for role in roles_in(attempt, me):
        found.update(role.receivers)
        if role.parent is not None and (role.sources or is_contributor):
            found.add(role.parent)
    return found
