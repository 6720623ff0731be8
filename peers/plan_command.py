"""`zoonet plan`: shows how a swarm would average, without having one. Imports nothing heavy."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click


@click.argument(
    "file", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--sites",
    default="4+4",
    show_default=True,
    help="Peers of each site: 5+2+1; 6x4 is four sites of six.",
)
@click.option(
    "--wan",
    default="100",
    show_default=True,
    metavar="MBIT/S",
    help="Line of each site: 100, or 20/100 up and down; several with commas, one for each site.",
)
@click.option(
    "--lan",
    type=float,
    default=1000.0,
    show_default=True,
    metavar="MBIT/S",
    help="Of each peer, within its site.",
)
@click.option(
    "--rtt", type=float, default=50.0, show_default=True, metavar="MS", help="Between sites."
)
@click.option(
    "--size", default="64MB", show_default=True, help="Of the parameters, at 4 bytes each."
)
@click.option(
    "--codec",
    default="fp32",
    show_default=True,
    help="Between sites: fp32, fp16, bf16, int8, e3m0 or topk2.",
)
@click.option(
    "--steps", type=click.IntRange(1), default=25, show_default=True, help="Inner steps of a round."
)
@click.option(
    "--step-ms",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MS",
    help="Of an inner step: tells whether to wait for a round or to train ahead.",
)
@click.option(
    "--momentum",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.9,
    show_default=True,
    help="Outer momentum.",
)
@click.option("--lan-codec", default="fp32", show_default=True, help="Within sites.")
@click.option("--explain", is_flag=True, help="Draw the trees, list the slices and the lines.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def plan(
    *,
    file: Path | None,
    sites: str,
    wan: str,
    lan: float,
    rtt: float,
    size: str,
    codec: str,
    lan_codec: str,
    steps: int,
    step_ms: float | None,
    momentum: float,
    explain: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Show how a swarm would average: its trees, their bytes and their predicted time.

    FILE describes the swarm in YAML or JSON; without it the options do.

    \b
    Examples:
      zoonet plan --explain
      zoonet plan --explain --sites 6x4 --wan 100 --rtt 50 --size 64MB --codec int8
      zoonet plan --sites 4+1 --wan 100,5/50 --json
      zoonet plan --explain swarm.yaml
      zoonet plan --sites 4+4 --codec int8 --steps 100 --step-ms 200 --momentum 0.6

    \b
    swarm.yaml, for example; rates are those of a whole site:
      size: 500MB
      codec: int8
      rtt_ms: 30
      sites:
        - {peers: 4, up_mbit_per_s: 200, down_mbit_per_s: 500}
        - {peers: 1, followers: 1, up_mbit_per_s: 20, down_mbit_per_s: 100}
    """
    from rich.console import Console

    from peers.swarm_sketch import SwarmSketch, checked, load_sketch, parse_sites
    from peers.ui.forest import explained, forest, report, summary, told_meanwhile
    from zoonet.averaging.ahead import meanwhile

    if file is not None:
        sketch = load_sketch(file)
    else:
        sketch = checked(
            SwarmSketch(
                sites=parse_sites(sites, wan, lan),
                size=size,
                rtt_ms=rtt,
                codec=codec,
                lan_codec=lan_codec,
            )
        )
    found = explained(sketch)
    decided = None
    if step_ms is not None:
        step_s, averaging_s = step_ms / 1000, found.forecast.total_s
        decided = meanwhile(steps, step_s=step_s, averaging_s=averaging_s, momentum=momentum)
    if as_json:
        row = report(found) | ({"meanwhile": asdict(decided)} if decided else {})
        print(json.dumps(row, indent=2))
        return
    if explain:
        Console().print(forest(found), highlight=False)
        print()
    print(summary(found))
    if decided:
        print(told_meanwhile(decided))
