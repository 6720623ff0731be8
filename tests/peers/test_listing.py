"""Listings: what a person sees of peers."""

from __future__ import annotations

import io

from rich.console import Console

from peers.ui.listing import peer_row, peer_table
from tests.contracts.networks import identity_of
from tests.contracts.test_record_store import peer_record


def test_a_peer_is_listed_with_the_path_by_which_it_is_connected() -> None:
    near = peer_row(peer_record(identity_of("a"), name="near"), "shm")
    unknown = peer_row(peer_record(identity_of("b"), name="unknown"))
    assert (near["path"], unknown["path"]) == ("shm", "")
    out = io.StringIO()
    Console(file=out, width=160).print(peer_table([near, unknown]))
    heading, first, second = out.getvalue().splitlines()
    assert "path" in heading.split()
    assert "shm" in first.split()
    assert "shm" not in second.split()
