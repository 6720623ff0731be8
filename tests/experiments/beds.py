"""Whether this machine can build the network of a benchmark."""

from __future__ import annotations

import pytest

from experiments.testbed import kernel


def why_no_bed() -> str:
    """Why this machine cannot build namespaces; empty where it can."""
    try:
        kernel.require_namespaces()
    except kernel.BedUnavailable as error:
        return str(error)
    return ""


needs_bed = pytest.mark.skipif(bool(why_no_bed()), reason=why_no_bed() or "it can")
