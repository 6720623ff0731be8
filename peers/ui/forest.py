"""A plan of an all-reduce as people see it: its trees, its slices, and where the time goes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as Drawing

from peers.swarm_sketch import SwarmSketch
from peers.ui.render import in_bytes
from zoonet.averaging.ahead import Meanwhile
from zoonet.averaging.plan import Plan, Tree, chunk_bounds
from zoonet.averaging.planner import (
    Forecast,
    Load,
    Payload,
    loads,
    make_butterfly,
    make_plan,
    predict,
)

MAX_ROWS: Final = 32
MAX_NAMES: Final = 8

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Explained:
    """A plan, what it costs, and what the butterfly would cost in the same swarm."""

    plan: Plan
    payload: Payload
    carried: list[Load]
    forecast: Forecast
    butterfly: Forecast


def explained(sketch: SwarmSketch) -> Explained:
    """Plan for a swarm that is only described."""
    contributors, followers, links = sketch.contributors, sketch.followers, sketch.links
    payload, rtt_s = sketch.payload, sketch.rtt_ms / 1000
    plan = make_plan(
        contributors,
        followers,
        links,
        payload.num_values,
        payload.wan_bytes_per_value,
        payload.lan_bytes_per_value,
    )
    # Without sites there is one codec everywhere: a hop is not known to be a near one.
    flat = Payload(
        num_values=payload.num_values,
        wan_bytes_per_value=payload.wan_bytes_per_value,
        lan_bytes_per_value=payload.wan_bytes_per_value,
    )
    butterfly = make_butterfly(contributors, followers, links, flat)
    return Explained(
        plan,
        payload,
        loads(plan, contributors, payload),
        predict(plan, contributors, links, payload, wan_rtt_s=rtt_s, shares_lines=True),
        predict(
            butterfly,
            contributors,
            links,
            flat,
            sites=plan.sites,
            wan_rtt_s=rtt_s,
            shares_lines=True,
        ),
    )


def report(found: Explained) -> Row:
    """Everything, for JSON."""
    return {
        "num_peers": len(found.plan.peers),
        "num_values": found.payload.num_values,
        "sites": _site_rows(found),
        "trees": [_tree_row(found, tree) for tree in found.plan.trees],
        "wan_bytes": round(found.forecast.wan_bytes),
        "butterfly_wan_bytes": round(found.butterfly.wan_bytes),
        "predicted_s": found.forecast.total_s,
        "butterfly_s": found.butterfly.total_s,
        "bottleneck": {
            "peer": found.forecast.peer,
            "link": found.forecast.link,
            "bytes": round(found.forecast.link_bytes),
            "bytes_per_s": found.forecast.link_bytes_per_s,
            "busy_s": found.forecast.busy_s,
            "latency_s": found.forecast.latency_s,
        },
    }


def summary(found: Explained) -> str:
    """The plan in four lines."""
    plan, forecast, butterfly = found.plan, found.forecast, found.butterfly
    wan = in_bytes(forecast.wan_bytes)
    if forecast.wan_bytes:
        ratio = butterfly.wan_bytes / forecast.wan_bytes
        wan += f" (butterfly: {in_bytes(butterfly.wan_bytes)}, {ratio:.1f} times as much)"
    return "\n".join(
        [
            f"{len(plan.peers)} peers, {len(plan.sites)} sites, {len(plan.trees)} trees, "
            f"{in_bytes(4 * found.payload.num_values)} of parameters",
            f"between sites  {wan}",
            f"predicted      {forecast.total_s:.3f} s (butterfly: {butterfly.total_s:.3f} s)",
            f"bottleneck     {_link_name(forecast)}: "
            f"{in_bytes(forecast.link_bytes)} at {in_bytes(forecast.link_bytes_per_s)}/s, "
            f"busy for {forecast.busy_s:.3f} s",
        ]
    )


def told_meanwhile(decided: Meanwhile) -> str:
    """What a peer had best do while a round is averaged, in a line."""
    if decided.steps:
        return (
            f"meanwhile      {decided.steps} steps ahead: {decided.gain:.0%} more work in the time"
        )
    return (
        f"meanwhile      wait: going ahead would change the work in the time by {decided.gain:+.0%}"
    )


def _link_name(forecast: Forecast) -> str:
    direction = forecast.link.removeprefix("wan ").removeprefix("lan ")
    if forecast.link.startswith("wan"):
        return f"the line of the site of {forecast.peer}, {direction}"
    return f"the link of {forecast.peer} within its site, {direction}"


def forest(found: Explained) -> RenderableType:
    """A tree of each root's site, the slices, and what every site's line carries."""
    drawings: list[RenderableType] = []
    for site in range(len(found.plan.sites)):
        trees = [tree for tree in found.plan.trees if tree.root_site == site]
        if trees:
            drawings += [_drawing(found.plan, trees[0], len(trees)), Text()]
    return Group(*drawings, _slice_table(found), Text(), _line_table(found))


def _drawing(plan: Plan, tree: Tree, num_alike: int) -> Drawing:
    more = f", and {num_alike - 1} more with roots in this site" if num_alike > 1 else ""
    label = Text(plan.peers[tree.root], "bold green")
    label.append(f"  root of chunks {tree.first}-{tree.stop - 1}{more}", "dim")
    drawing = Drawing(label, guide_style="dim")
    _add_leaves(drawing, plan, tree.root_site, tree.root)
    for site, owner in enumerate(tree.owners):
        if site != tree.root_site:
            branch = drawing.add(Text(plan.peers[owner], "bold").append("  owner", "dim"))
            _add_leaves(branch, plan, site, owner)
    return drawing


def _add_leaves(drawing: Drawing, plan: Plan, site: int, owner: int) -> None:
    leaves = [plan.peers[peer] for peer in plan.sites[site] if peer != owner]
    if leaves:
        more = f" and {len(leaves) - MAX_NAMES} more" if len(leaves) > MAX_NAMES else ""
        drawing.add(Text(", ".join(leaves[:MAX_NAMES]) + more))


def _slice_table(found: Explained) -> Table:
    table = Table(title="slices", title_justify="left", box=None, header_style="dim")
    for title in ("chunks", "share", "size", "root", "owners"):
        table.add_column(title, justify="right" if title in ("share", "size") else "left")
    for tree in found.plan.trees[:MAX_ROWS]:
        row = _tree_row(found, tree)
        owners = [peer for peer in row["owners"] if peer != row["root"]]
        table.add_row(
            f"{tree.first}-{tree.stop - 1}",
            f"{row['share']:.1%}",
            in_bytes(4 * row["num_values"]),
            row["root"],
            ", ".join(owners[:MAX_NAMES]) + (", ..." if len(owners) > MAX_NAMES else ""),
        )
    if len(found.plan.trees) > MAX_ROWS:
        table.add_row(f"and {len(found.plan.trees) - MAX_ROWS} more; --json lists them all")
    return table


def _line_table(found: Explained) -> Table:
    table = Table(title="lines", title_justify="left", box=None, header_style="dim")
    for title in ("site", "peers", "roots", "sent to others", "received", "sent within"):
        table.add_column(title, justify="left" if title == "site" else "right")
    for row in _site_rows(found):
        is_slowest = found.forecast.peer in row["peers"]
        table.add_row(
            f"{row['peers'][0]} ..." if len(row["peers"]) > 1 else row["peers"][0],
            str(len(row["peers"])),
            f"{row['root_share']:.1%}",
            in_bytes(row["wan_up_bytes"]),
            in_bytes(row["wan_down_bytes"]),
            in_bytes(row["lan_bytes"]),
            style="yellow" if is_slowest else "",
        )
    return table


def _tree_row(found: Explained, tree: Tree) -> Row:
    total = found.payload.num_values
    num_values = chunk_bounds(total, tree.stop - 1)[1] - chunk_bounds(total, tree.first)[0]
    return {
        "first_chunk": tree.first,
        "stop_chunk": tree.stop,
        "num_values": num_values,
        "share": num_values / total,
        "root": found.plan.peers[tree.root],
        "owners": [found.plan.peers[owner] for owner in tree.owners],
    }


def _site_rows(found: Explained) -> Sequence[Row]:
    rooted: Counter[int] = Counter()
    for tree in found.plan.trees:
        rooted[tree.root_site] += _tree_row(found, tree)["num_values"]
    return [
        {
            "peers": [found.plan.peers[peer] for peer in site],
            "root_share": rooted[at] / found.payload.num_values,
            "wan_up_bytes": round(sum(found.carried[peer].wan_up for peer in site)),
            "wan_down_bytes": round(sum(found.carried[peer].wan_down for peer in site)),
            "lan_bytes": round(sum(found.carried[peer].lan_up for peer in site)),
        }
        for at, site in enumerate(found.plan.sites)
    ]
