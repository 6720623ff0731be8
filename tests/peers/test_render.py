"""What is drawn: charts, tables, lines and the picture of the loss."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from peers.ui import SwarmView, fold, leave
from peers.ui.chart import chart
from peers.ui.live import LiveView
from peers.ui.plot import save_loss_plot
from peers.ui.render import headline, in_bytes, in_count
from tests.peers.looks import job_view, peer_view
from zoonet.crypto import PeerId


def swarm_view() -> SwarmView:
    view = SwarmView(started_s=0.0)
    for second in range(1, 6):
        peers = [
            peer_view(
                PeerId(f"peer-{name}"),
                name=name,
                num_rounds=second,
                tokens_per_s=500.0,
                sent_bytes=1_234_567 + second,
                note="[red]not markup[/red]",
            )
            for name in ("ann", "bob")
        ]
        losses = tuple((index, 6.0 / index) for index in range(1, second + 1))
        job = job_view(*peers, num_rounds=second, num_tokens=1000 * second, eval_losses=losses)
        view = fold(view, job, float(second))
    return leave(view, [PeerId("peer-bob")], 6.0)


def console(*, is_terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=is_terminal, width=100, color_system=None)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_falling_line_starts_top_left_and_ends_bottom_right() -> None:
    lines = chart([(0, 4.0), (10, 2.0)], width=40, height=6)
    assert [len(line) for line in lines] == [40] * 6
    assert lines[0].startswith("   4.000│") and lines[0][9] != "\u2800"
    assert lines[4].startswith("   2.000│") and lines[4][-1] != "\u2800"
    assert lines[5].split() == ["0", "10"]


def test_a_mark_draws_a_column_and_one_outside_the_range_nothing() -> None:
    plain = chart([(0, 1.0), (10, 1.0)], width=40, height=6)
    marked = chart([(0, 1.0), (10, 1.0)], width=40, height=6, marks=[5])
    assert plain != marked
    assert chart([(0, 1.0), (10, 1.0)], width=40, height=6, marks=[11]) == plain


def test_a_chart_of_one_point_waits_in_full_size() -> None:
    assert len(chart([(1, 1.0)], width=40, height=6)) == 6


def test_numbers_read_like_numbers() -> None:
    assert [in_bytes(n) for n in (0, 999, 1500, 2.5e9)] == ["0 B", "999 B", "1.5 kB", "2.5 GB"]
    assert [in_count(n) for n in (512, 2300, 1.5e6, 2e9)] == ["512", "2.3k", "1.5M", "2.0B"]


def test_the_headline_names_the_round_the_tokens_and_the_loss() -> None:
    assert headline(swarm_view()) == (
        "training · round 5 · 1 at work · 5.0k of 10.0k tokens · 500 tokens/s · held-out loss 1.200"
    )


def test_a_job_that_waits_says_what_for() -> None:
    view = fold(
        SwarmView(started_s=0.0), job_view(phase="open", note="waits for 2 more peers"), 0.0
    )
    assert headline(view) == "open · waits for 2 more peers"


def test_without_a_terminal_every_event_and_round_is_one_line_once() -> None:
    out = console(is_terminal=False)
    with LiveView(out, title="a job") as live:
        live.show(swarm_view())
        live.show(swarm_view())
    assert shown(out).splitlines() == [
        "   1 s  ann came (round 1)",
        "   1 s  bob came (round 1)",
        "   6 s  bob left (round 5)",
        f"   5 s  {headline(swarm_view())}",
    ]


def test_on_a_terminal_the_table_shows_everyone_and_obeys_no_strangers_markup() -> None:
    out = console(is_terminal=True)
    with LiveView(out, title="a job [bold]x") as live:
        live.show(swarm_view())
    text = shown(out)
    for expected in ("ann", "bob", "gone", "1.2 MB", "[red]not markup[/red]", "a job [bold]x"):
        assert expected in text


def test_the_loss_plot_is_a_png(tmp_path: Path) -> None:
    save_loss_plot(swarm_view(), tmp_path / "loss.png", title="loss")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")
