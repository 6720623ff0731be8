"""The loss curve as a PNG file."""

from __future__ import annotations

from pathlib import Path

from peers.ui.view import SwarmView


def save_loss_plot(view: SwarmView, path: Path, *, title: str) -> None:
    """Draw held-out loss over certified rounds, with the moments when peers left and came.

    Raises OSError where the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([point[0] for point in view.losses], [point[1] for point in view.losses], marker=".")
    for event in view.events:
        if event.kind not in ("left", "came late"):
            continue
        colour = "tab:red" if event.kind == "left" else "tab:green"
        axes.axvline(event.num_rounds, color=colour, linestyle="--", linewidth=1)
        axes.annotate(
            f" {event.name} {event.kind}",
            (event.num_rounds, 0.98),
            xycoords=("data", "axes fraction"),
            rotation=90,
            verticalalignment="top",
            fontsize="small",
            color=colour,
        )
    axes.set_xlabel("certified rounds")
    axes.set_ylabel("held-out loss, nats a token")
    axes.set_title(title)
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=120)
