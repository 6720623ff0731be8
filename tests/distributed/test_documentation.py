"""The program that docs/distributed.md prints, run over real hosts."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from experiments.pipeline.__main__ import free_ports
from tests.distributed.processes import ROOT, Rank

PAGE = (ROOT / "docs" / "distributed.md").read_text()


@pytest.mark.p2p
def test_the_program_of_the_page_prints_what_the_page_says(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (printed,) = re.findall(r"The second one prints\n\n```\n(.*?)```", PAGE, re.DOTALL)
    script = tmp_path / "pipeline.py"
    assert "31700 + r" in program
    script.write_text(program.replace("31700 + r", f"{free_ports(2)}[r]"))
    with ExitStack() as stack:
        ranks = [Rank([str(script), str(rank)], tmp_path / f"{rank}.log") for rank in range(2)]
        for rank in ranks:
            stack.callback(rank.close)
        assert [rank.ended() for rank in ranks] == [0, 0], [rank.said for rank in ranks]
        losses = [line for line in ranks[1].said.splitlines() if line.startswith("step")]
    assert "\n".join(losses) + "\n" == printed
