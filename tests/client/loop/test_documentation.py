"""The program that docs/bring_your_own_loop.md prints, with the change that it prints."""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.client.loop.test_real_loops import ROOT, Loop
from tests.peers.real import swarm_in

PAGE = (ROOT / "docs" / "bring_your_own_loop.md").read_text()


def changed(program: str, diff: str) -> str:
    """Apply a diff whose hunks are found by their contents."""
    for hunk in diff.split("@@\n")[1:]:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] != "+")
        after = "".join(line[1:] for line in lines if line[0] != "-")
        assert program.count(before) == 1, before
        program = program.replace(before, after)
    return program


def collaborative() -> str:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (diff,) = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
    return changed(program, diff)


def test_the_change_is_of_under_ten_lines() -> None:
    (diff,) = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)
    lines = diff.splitlines()
    added = [line for line in lines if line.startswith("+") and line != "+"]
    removed = [line for line in lines if line.startswith("-")]
    assert len(added) < 10 and len(removed) < 10
    compile(collaborative(), "train.py", "exec")


@pytest.mark.p2p
@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_program_of_the_page_ends_with_the_same_loss_everywhere(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(collaborative())
    (tmp_path / "swarm").mkdir()
    async with swarm_in(tmp_path / "swarm") as swarm:
        _, address = await swarm.bootstrap()
        with ExitStack() as stack:
            loops = [Loop([str(script), address], tmp_path / f"{n}.log") for n in range(2)]
            for loop in loops:
                stack.callback(loop.close)
            for loop in loops:
                assert await asyncio.to_thread(loop.process.wait) == 0, loop.errors
            said = [loop.log.read_text().splitlines() for loop in loops]
            assert not any("Traceback" in loop.errors for loop in loops), loops[0].errors
    assert said[0][-1] == said[1][-1]
    loss = float(said[0][-1].removeprefix("held-out loss "))
    assert loss < 3.0, said[0][-1]
    assert any("2 peers" in line for line in said[0]), said[0]
