"""Fixtures for tests that start real processes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory with a name that is short enough for sockets, and in it all temporary files."""
    with tempfile.TemporaryDirectory(prefix="zn-") as folder:
        temporary = Path(folder) / "tmp"
        temporary.mkdir()
        monkeypatch.setenv("TMPDIR", str(temporary))
        yield Path(folder)
