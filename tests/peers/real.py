"""Real processes for tests: `zoonet` commands in a scratch directory, on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from peers.processes import Child, Family

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
NOBODY = "/ip4/127.0.0.1/tcp/1/p2p/16Uiu2HAmPLe7Mzm8TsYUubgCAW1aJoeFScxrLj8ppHFivPo97bUZ"
ENDLESS = 10**9  # tokens

JOB = """\
name: squares
model:
  num_layers: 1
  num_heads: 2
  width: 32
  context: 32
data:
  text: squares.txt
training:
  tokens: {tokens}
  batch_size: 2
  inner_steps: 20
  eval_tokens: 512
  eval_interval: 10
  site_steps: {site_steps}
peers:
  min: {min_peers}
"""


@dataclass(frozen=True)
class Ended:
    """A command that has run to its end."""

    code: int
    output: str
    errors: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.errors
        return json.loads(self.output)


class Swarm:
    """Starts roles and commands, each with a state directory of its own."""

    def __init__(self, family: Family, scratch: Path) -> None:
        self._family = family
        self.scratch = scratch
        self._num_started = 0

    def home(self, name: str) -> Path:
        return self.scratch / name

    async def bootstrap(self, *options: str) -> tuple[Child, str]:
        """Start a bootstrap; return it and its address."""
        where = ("--home", str(self.home("door")), "--listen", LOOPBACK)
        door = await self._start("door", "bootstrap", "--json", *where, *options)
        return door, str((await self._family.first_line(door))["addresses"][0])

    async def peer(self, name: str, *options: str, listen: str = LOOPBACK) -> Child:
        """Start a peer, or start it again."""
        where = ("--home", str(self.home(name)), "--no-lan", "--name", name)
        listening = ("--listen", listen) if listen else ()
        return await self._start(name, "peer", *where, *listening, *options)

    async def run(self, name: str, command: str, *arguments: str) -> Ended:
        """Run a command with the state directory `name` to its end."""
        child = await self._start(name, command, *arguments, "--home", str(self.home(name)))
        output, _ = await child.process.communicate()
        code = child.process.returncode
        assert code is not None
        return Ended(code, output.decode(), child.log_path.read_text())

    def write_job(self, *, tokens: int, min_peers: int, site_steps: int = 0) -> Path:
        (self.scratch / "squares.txt").write_text("".join(f"{n} {n * n}\n" for n in range(5000)))
        job = self.scratch / "job.yaml"
        job.write_text(JOB.format(tokens=tokens, min_peers=min_peers, site_steps=site_steps))
        return job

    async def submit(
        self, address: str, *, tokens: int, min_peers: int, site_steps: int = 0
    ) -> str:
        """Submit a job, wait until another peer holds it and the submitter is gone."""
        job = self.write_job(tokens=tokens, min_peers=min_peers, site_steps=site_steps)
        arguments = (str(job), "--detach", "--json", "--join", address)
        submitted = await self.run("submitter", "submit", *arguments)
        return str(submitted.json["job_id"])

    async def kill(self, child: Child) -> None:
        """End a process as a power cut would."""
        await self._family.kill(child)

    async def _start(self, name: str, *arguments: str) -> Child:
        self._num_started += 1
        return await self._family.start(f"{self._num_started:02}-{name}", arguments)


@asynccontextmanager
async def swarm_in(scratch: Path, *, timeout_s: float = 400) -> AsyncIterator[Swarm]:
    """A swarm whose processes end with the block, and a deadline for what hangs."""
    async with Family(scratch).keep() as family, asyncio.timeout(timeout_s):
        yield Swarm(family, scratch)


async def said(child: Child, *texts: str) -> None:
    """Return once the process has logged each of the texts. Raises where it ends before."""
    while True:
        is_running = child.is_running
        log = child.log_path.read_text()
        if all(text in log for text in texts):
            return
        assert is_running, f"{child.name} ended without saying {texts}: {child.log_tail()}"
        await asyncio.sleep(0.05)


async def invitation_of(child: Child) -> str:
    """The address in the line that a founder prints for others."""
    assert child.process.stdout is not None
    async for line in child.process.stdout:
        words = line.decode().split()
        if words[:3] == ["zoonet", "peer", "--join"]:
            return words[3]
    raise AssertionError(f"{child.name} printed no invitation: {child.log_tail()}")


def descendants(child: Child) -> dict[str, psutil.Process]:
    """A peer's own child processes: its daemon and, while it has a job, its trainer's ranks."""
    found = {}
    for process in psutil.Process(child.process.pid).children(recursive=True):
        roles = {"zoonet.training.trainer": "trainer", "zoonet.training.crew": "rank"}
        role = next((roles[word] for word in process.cmdline() if word in roles), process.name())
        found[role] = process
    return found


async def gone(*processes: psutil.Process) -> bool:
    """Tell whether all of them have ended within a minute."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout=240)
    return not alive


def files_of(home: Path) -> set[str]:
    return {path.name for path in home.iterdir()}
