"""The program that docs/bring_your_own_loop.md prints for the Trainer of Hugging Face."""

from __future__ import annotations

import asyncio
import re
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.client.loop.test_documentation import PAGE
from tests.client.loop.test_real_loops import Loop
from tests.peers.real import swarm_in


@pytest.mark.p2p
@pytest.mark.slow
@pytest.mark.asyncio
async def test_two_trainers_of_hugging_face_end_with_the_same_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    (program,) = re.findall(r"```py\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)  # where the Trainer makes its folder
    script = tmp_path / "train.py"
    script.write_text(program)
    (tmp_path / "swarm").mkdir()
    async with swarm_in(tmp_path / "swarm") as swarm:
        _, address = await swarm.bootstrap()
        with ExitStack() as stack:
            loops = [Loop([str(script), address], tmp_path / f"{n}.log") for n in range(2)]
            for loop in loops:
                stack.callback(loop.close)
            for loop in loops:
                assert await asyncio.to_thread(loop.process.wait) == 0, loop.errors
            last = [loop.log.read_text().splitlines()[-1] for loop in loops]
    losses = [
        re.fullmatch(r"loss (\S+) hugging: .*2 peers, step 200 of 200 .*", line) for line in last
    ]
    assert losses[0] and losses[1], last
    assert losses[0][1] == losses[1][1]
    assert float(losses[0][1]) < 2.5, last
