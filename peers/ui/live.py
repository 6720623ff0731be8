"""Shows a view that changes: redrawn in place on a terminal, as lines anywhere else."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from peers.ui.render import event_line, headline, screen
from peers.ui.view import SwarmView


class LiveView:
    """A context in which `show` may be called as often as one likes.

    On a terminal the last call's view stays on the screen. Elsewhere each new event and each new
    certified round becomes one line.
    """

    def __init__(self, console: Console, *, title: str) -> None:
        self._console = console
        self._title = title
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._num_events_shown = 0
        self._num_rounds_shown = 0

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line above the view."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, view: SwarmView) -> None:
        """Draw the view as it is now."""
        if self._live is None:
            self._print_news(view)
            return
        width, height = self._console.size
        drawn = screen(view, title=self._title, width=width, height=height)
        self._live.update(drawn, refresh=True)

    def _print_news(self, view: SwarmView) -> None:
        num_new = view.num_events - self._num_events_shown
        for event in view.events[-num_new:] if num_new else ():
            self.say(event_line(event))
        self._num_events_shown = view.num_events
        if view.num_rounds != self._num_rounds_shown:
            self._num_rounds_shown = view.num_rounds
            self.say(f"{view.seen_s:4.0f} s  {headline(view)}")
