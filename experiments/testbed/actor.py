"""One peer of a benchmark: a process of its own, told by JSON lines what to do and when.

It hosts one or more contenders at once, so that they can be measured by turns. Each line on stdin
is answered by one line on stdout; everything else that is printed goes to stderr. Round times are
instants of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

import numpy as np
import uvloop
from blake3 import blake3

from experiments.testbed import vectors
from experiments.testbed.contenders import Contender, Stage, Trainee, make

Message = dict[str, Any]
MAX_LINE_BYTES = 16 * 1024 * 1024


class Actor:
    """The contenders of one peer, and what they contribute."""

    def __init__(self) -> None:
        self._contenders: dict[str, Contender | Trainee] = {}
        self._stage: Stage
        self._noise_P = np.zeros(0, np.float32)
        self._contribution_P = np.zeros(0, np.float32)
        self._round = 0

    async def obey(self, order: Message) -> Message:
        """Do what one line says; return the answer. An error becomes an answer, too."""
        try:
            match order["do"]:
                case "start":
                    return await self._start(order)
                case "connect":
                    return await self._connect(order)
                case "prepare":
                    return await self._prepare(order)
                case "go":
                    return await self._go(order)
                case "train":
                    await self._trainee(order).train()
                    return {"is": "training"}
                case "figures":
                    figures = self._trainee(order).figures()
                    return {"is": "figures", "figures": figures, "at": time.monotonic()}
                case unknown:
                    return {"is": "failed", "error": f"an unknown order {unknown!r}"}
        except Exception as error:  # a contender may raise anything; the driver counts it
            return {"is": "failed", "error": repr(error)[:2000], "ended": time.monotonic()}

    async def _start(self, order: Message) -> Message:
        self._stage = Stage(
            peer=order["peer"],
            sites=tuple(tuple(site) for site in order["sites"]),
            num_values=order["num_values"],
            address=order["address"],
            interface=order["interface"],
            folder=Path(order["folder"]),
            options=order["options"],
        )
        self._stage.folder.mkdir(parents=True, exist_ok=True)
        hellos = {}
        for name in order["contenders"]:
            self._contenders[name] = make(name, self._stage)
            hellos[name] = await self._contenders[name].start()
        self._noise_P = vectors.noise(self._stage.num_values)
        self._contribution_P = np.empty_like(self._noise_P)
        return {"is": "started", "hellos": hellos}

    async def _connect(self, order: Message) -> Message:
        name: str = order["contender"]
        await self._contenders[name].connect(order["hellos"])
        return {"is": "connected"}

    async def _prepare(self, order: Message) -> Message:
        self._round = order["round"]
        vectors.fill_(self._contribution_P, self._noise_P, self._stage.peer, self._round)
        began = time.monotonic()
        contender = self._contender(order)
        told = await contender.prepare(self._round, self._contribution_P)
        return {"is": "prepared", "began": began, "ended": time.monotonic(), "told": told}

    async def _go(self, order: Message) -> Message:
        """Run a round at the instant `at`; judge its result when the time has been taken."""
        contender = self._contender(order)
        await asyncio.sleep(max(0.0, order["at"] - time.monotonic()))
        cpu_s = time.process_time()
        contributors = await contender.run(order["told"])
        ended = time.monotonic()
        mean_P = contender.result()
        cpu_s = time.process_time() - cpu_s
        judgement = vectors.judge(
            mean_P,
            self._noise_P,
            contributors,
            self._round,
            contender.value_tolerance,
            contender.also_allowed,
        )
        return {
            "is": "done",
            "ended": ended,
            "cpu_s": cpu_s,
            "contributors": contributors,
            "digest": blake3(vectors.raw(mean_P)).hexdigest(),
            "is_right": judgement.is_right,
            "num_wrong_windows": judgement.num_wrong_windows,
            "num_wrong_values": judgement.num_wrong_values,
            "num_fuller_windows": judgement.num_fuller_windows,
        }

    def _contender(self, order: Message) -> Contender:
        found = self._contenders[order["contender"]]
        if not isinstance(found, Contender):
            raise TypeError(f"{order['contender']} does not average by itself")
        return found

    def _trainee(self, order: Message) -> Trainee:
        found = self._contenders[order["contender"]]
        if not isinstance(found, Trainee):
            raise TypeError(f"{order['contender']} does not train")
        return found

    async def close(self) -> None:
        """End all contenders."""
        for contender in self._contenders.values():
            await contender.close()


async def obey_all(answers: IO[str]) -> None:
    """Obey line by line until stdin ends."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(MAX_LINE_BYTES)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    actor = Actor()
    try:
        while line := await orders.readline():
            print(json.dumps(await actor.obey(json.loads(line))), file=answers, flush=True)
    finally:
        await actor.close()


def main(*, use_uvloop: bool) -> None:
    """Keep stdout for answers, and obey. Does not return."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print do not disturb the conversation
    if use_uvloop:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(obey_all(answers))
    else:
        asyncio.run(obey_all(answers))
    sys.stderr.flush()
    os._exit(0)  # threads of contenders that still wait for a peer do not hold this up
