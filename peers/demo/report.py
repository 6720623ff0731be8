"""What a demo leaves behind: files, a table of contributors, and what to do next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from peers.ui.render import in_count
from zoonet.errors import StorageError, ZoonetError

MIN_CONTRIBUTORS: Final = 4
MIN_ROUNDS: Final = 3  # certified ones of at least MIN_MEMBERS, to count as a contributor
MIN_MEMBERS: Final = 3


class DemoFailed(ZoonetError):
    """The demo ended without showing what it is there to show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contributor:
    """What the certified chain says of one worker."""

    peer_id: str
    name: str
    num_rounds: int  # certified ones of at least MIN_MEMBERS members
    num_tokens: int
    fate: str  # "from the start", "killed", "came late"

    @property
    def counts(self) -> bool:
        """Tell whether it took part enough to be called a contributor."""
        return self.num_rounds >= MIN_ROUNDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A demo in numbers. Losses are nats a token, of the outer parameters, on held-out text."""

    job_id: str
    seconds: float
    num_parameters: int
    num_rounds: int
    num_tokens: int
    loss_first: float
    loss_before: float  # the last one before the first mishap
    loss_after: float  # the final one, after both
    killed_after_round: int
    late_in_round: int  # first certified round that the late worker contributed to
    contributors: tuple[Contributor, ...]
    model_file: str
    plot_file: str
    sample_file: str

    def check(self) -> None:
        """Raise DemoFailed where the demo did not show what it promises."""
        counting = sum(contributor.counts for contributor in self.contributors)
        if counting < MIN_CONTRIBUTORS:
            raise DemoFailed(
                f"{counting} workers took part in at least {MIN_ROUNDS} certified rounds of at "
                f"least {MIN_MEMBERS} members, expected {MIN_CONTRIBUTORS}; "
                "give it more time with --seconds"
            )
        if not self.late_in_round:
            raise DemoFailed(
                "the worker that was started late did not contribute before the job was finished; "
                "give it more time with --seconds"
            )
        if not self.loss_after < self.loss_before:
            raise DemoFailed(
                f"the held-out loss is {self.loss_after:.3f} at the end and was "
                f"{self.loss_before:.3f} before the mishaps; give it more time with --seconds"
            )

    def save(self, directory: Path) -> None:
        """Write report.json. Raises StorageError."""
        text = json.dumps(asdict(self), indent=2)
        try:
            (directory / "report.json").write_text(text + "\n")
        except OSError as error:
            raise StorageError(f"cannot write to {directory}: {error.strerror}") from error


def contributor_table(contributors: Sequence[Contributor]) -> Table:
    """Who contributed what, from the chain that they certified."""
    table = Table(title="who contributed what, from the certified rounds", title_justify="left")
    for title in ("worker", "peer id", "rounds", "tokens", "share", ""):
        table.add_column(title, justify="left" if title in ("worker", "peer id", "") else "right")
    total = sum(contributor.num_tokens for contributor in contributors) or 1
    for one in contributors:
        table.add_row(
            one.name,
            f"…{one.peer_id[-8:]}",
            str(one.num_rounds),
            in_count(one.num_tokens),
            f"{100 * one.num_tokens / total:.0f} %",
            one.fate,
        )
    return table


def closing(report: Report, sample: str, directory: Path) -> RenderableType:
    """The last screen: a sample, the table, the result in a line, and what to do next."""
    result = (
        f"held-out loss: {report.loss_first:.3f} at first, {report.loss_before:.3f} before the "
        f"two mishaps, {report.loss_after:.3f} at the end\n"
        f"{report.num_rounds} certified rounds, {in_count(report.num_tokens)} tokens, "
        f"{report.seconds:.0f} s in all"
    )
    following = (
        f"in {directory}: {report.model_file}, {report.plot_file}, {report.sample_file}, "
        "report.json\n\n"
        "Next:\n"
        "  zoonet bootstrap               open your own swarm; it prints how to join\n"
        "  zoonet peer --join MULTIADDR   give a machine to it\n"
        "  zoonet submit job.yaml         have a model trained: docs/submit_a_job.md"
    )
    return Group(
        Panel(Text(sample.strip()), title="a sample of what it writes", border_style="dim"),
        contributor_table(report.contributors),
        Text(result, style="bold"),
        Text(),
        Text(following),
    )
