"""Renderings of the view: rich tables and panels for a terminal, plain lines for a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from peers.ui.chart import chart
from peers.ui.view import Event, PeerLine, SwarmView, printable

NUM_EVENTS: Final = 4  # the newest, below the chart
_PHASE_STYLES: Final = {
    "joining": "cyan",
    "waiting": "dim",
    "training": "green",
    "averaging": "yellow",
    "stalled": "red",
    "finished": "bold green",
    "failed": "bold red",
}


def in_bytes(num_bytes: float) -> str:
    """A number of bytes as people read it: 12.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def in_count(number: float) -> str:
    """A count as people read it: 512, 2.3k, 1.5M."""
    for unit in ("", "k", "M"):
        if number < 1000:
            return f"{number:.0f}" if not unit else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f}B"


def headline(view: SwarmView) -> str:
    """One line: where the job stands."""
    job = view.job
    if job is None:
        return "nothing is known of the job yet"
    if job.note and not job.num_rounds:
        return f"{job.phase} · {printable(job.note, max_chars=200)}"
    loss = f"held-out loss {job.eval_loss:.3f}" if job.eval_losses else "no held-out loss yet"
    return (
        f"{job.phase} · round {job.num_rounds} · {view.num_working} at work"
        f" · {in_count(job.num_tokens)} of {in_count(job.total_tokens)} tokens"
        f" · {in_count(view.tokens_per_s)} tokens/s · {loss}"
    )


def peer_table(lines: Sequence[PeerLine]) -> Table:
    """A row for each participant, those who left dimmed at the end."""
    table = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    for title in ("peer", "phase", "rounds", "tokens/s", "loss", "sent", "received", ""):
        is_text = title in ("peer", "phase", "")
        table.add_column(title, justify="left" if is_text else "right", no_wrap=True)
    for line in sorted(lines, key=lambda line: (line.has_left, line.first_heard_s, line.name)):
        table.add_row(*_cells(line), style="dim" if line.has_left else "")
    return table


def _cells(line: PeerLine) -> list[RenderableType]:
    report = line.said
    phase = "gone" if line.has_left else report.phase
    remarks = ["joined late"] if line.is_late else []
    if report.note:
        remarks.append(printable(report.note))
    return [
        Text(line.name),
        Text(phase, style=_PHASE_STYLES.get(phase, "red")),
        str(report.num_rounds),
        in_count(report.tokens_per_s) if line.is_working else "",
        f"{report.train_loss:.3f}" if report.train_loss else "",
        in_bytes(report.sent_bytes),
        in_bytes(report.received_bytes),
        Text(", ".join(remarks)),
    ]


def loss_chart(view: SwarmView, *, width: int, height: int) -> str:
    """Held-out loss by certified round, with a line where a peer left or came late."""
    points = [(float(num_rounds), loss) for num_rounds, loss in view.losses]
    return "\n".join(chart(points, width=width, height=height, marks=marked_rounds(view)))


def marked_rounds(view: SwarmView) -> list[float]:
    """The rounds in which someone left or came late."""
    return [float(e.num_rounds) for e in view.events if e.kind in ("left", "came late")]


def event_line(event: Event) -> str:
    """One event in words: `  12 s  worker-2 left (round 7)`."""
    return f"{event.at_s:4.0f} s  {event.name} {event.kind} (round {event.num_rounds})"


def screen(view: SwarmView, *, title: str, width: int, height: int) -> RenderableType:
    """The whole live view, for a terminal of `width` x `height` characters."""
    events = "\n".join(event_line(event) for event in view.events[-NUM_EVENTS:])
    chart_height = min(10, max(4, height - len(view.peers) - NUM_EVENTS - 9))
    return Group(
        Panel(
            Group(Text(headline(view)), "", _people(view)),
            title=Text(title),
            border_style="blue",
        ),
        Panel(
            Text(loss_chart(view, width=width - 4, height=chart_height), style="green"),
            title="held-out loss of the outer parameters, by certified round",
            border_style="dim",
        ),
        Text(events, style="dim"),
    )


def _people(view: SwarmView) -> RenderableType:
    if not view.peers:
        return Text("nobody trains this job yet", style="dim")
    return peer_table(list(view.peers.values()))
