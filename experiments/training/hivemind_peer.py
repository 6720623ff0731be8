"""What rivals on hivemind have in common: a DHT of their own, a loop in a thread, a diary."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from hivemind import DHT

from experiments.testbed.contenders.base import Hello, Stage
from experiments.testbed.contenders.hivemind_dht import HivemindDht
from experiments.training.accelerator import Accelerator
from experiments.training.job import Job

LOOK_AGAIN_S: Final = 0.005


class HivemindPeer:
    """See `Trainee`. A rival makes its parts in `build` and trains in `loop`."""

    def __init__(self, stage: Stage, variant: str) -> None:
        self.stage = stage
        self.variant = variant
        self.job = Job.read(Path(stage.options["job"]))
        self.accelerator = Accelerator(stage.options["step_s"][stage.peer])
        self.dht = HivemindDht(stage)
        self.num_failed = 0  # rounds whose averaging did not work here
        self._phases: list[tuple[float, str]] = []
        self._rounds: list[dict[str, Any]] = []
        self._is_built = False
        self._failure: BaseException | None = None

    async def start(self) -> Hello:
        return self.dht.start()

    async def connect(self, hellos: list[Hello]) -> None:
        if self._is_built:
            return
        self.build(self.dht.join(hellos))
        self._is_built = True

    def build(self, dht: DHT) -> None:
        """Make what forks first, and then the rest."""
        raise NotImplementedError

    async def train(self) -> None:
        def run() -> None:
            try:
                self.loop()
            except BaseException as error:  # told when the driver asks for the figures
                self._failure = error
                raise

        threading.Thread(target=run, name="training", daemon=True).start()

    def loop(self) -> None:
        """Train for ever."""
        raise NotImplementedError

    @property
    def inner_steps(self) -> int:
        """H."""
        return self.job.prepared.training.inner_steps

    def slots(self) -> Iterator[int]:
        """Data slots of this peer, which are nobody else's."""
        slot = self.stage.peer
        while True:
            yield slot
            slot += self.stage.num_peers

    def note(self, phase: str) -> None:
        """From now on this peer is at this."""
        self._phases.append((time.monotonic(), phase))

    def note_round(self, index: int, num_slots: int) -> None:
        """So many steps of this peer went into the round of that number."""
        slots = {self.stage.peer: num_slots}
        self._rounds.append({"index": index, "at": time.monotonic(), "slots": slots})

    def figures(self) -> dict[str, Any]:
        if self._failure is not None:
            raise self._failure
        return self.accelerator.figures() | {
            "phases": list(self._phases),
            "rounds": list(self._rounds),
            "num_failed": self.num_failed,
        }

    def shut_down(self) -> None:
        """End what has been built."""
        raise NotImplementedError

    async def close(self) -> None:
        if self._is_built:
            await asyncio.to_thread(self.shut_down)
        self.dht.close()
