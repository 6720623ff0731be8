"""The demo's course: peers start, a job is submitted, one dies, one comes late, a model is left."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import msgspec
from rich.console import Console

from peers import runtime
from peers.demo import plan as planning
from peers.demo.report import MIN_MEMBERS, Contributor, DemoFailed, Report, closing
from peers.processes import Child, ChildFailed, Family
from peers.sample import continue_text
from peers.ui import SwarmView
from peers.ui.follow import Follower
from peers.ui.live import LiveView
from peers.ui.plot import save_loss_plot
from zoonet.averaging import Certificate, credits
from zoonet.client import EntryConfig, JobOutput, Network
from zoonet.crypto import Identity, PeerId
from zoonet.errors import StorageError

LOOPBACK: Final = "/ip4/127.0.0.1/tcp/0"
PATIENCE_S: Final = 120.0  # beyond the promised seconds, on a machine that is busy elsewhere
LOOK_INTERVAL_S: Final = 0.25
MODEL_FILE, PLOT_FILE, SAMPLE_FILE = "model.safetensors", "loss.png", "sample.txt"
SAMPLE_TOKENS: Final = 400
SAMPLE_TEMPERATURE: Final = 0.7
STDLIB_PROMPT, TEXT_PROMPT = "def ", "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What `zoonet demo` was told."""

    seconds: int = 120
    text: Path | None = None  # None: Python's standard library
    workers: int = 4
    out: Path = Path("zoonet-demo")
    as_json: bool = False
    keep_logs: bool = False  # copy what every process logged to `out`/logs


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One of the demo's workers."""

    name: str
    peer_id: PeerId
    child: Child


def main(options: DemoOptions) -> None:
    """Run the demo and print what it left. Raises DemoFailed where it shows too little."""
    console = Console(stderr=options.as_json)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write to {options.out}: {error.strerror}") from error
    started_s = time.monotonic()
    report, sample = runtime.run(Story(options, console).run())
    report = replace(report, seconds=round(time.monotonic() - started_s, 1))
    report.save(options.out)
    if options.as_json:
        print(json.dumps(asdict(report), indent=2))
    else:
        console.print(closing(report, sample, options.out))
    report.check()


class Story:
    """One run of the demo."""

    def __init__(self, options: DemoOptions, console: Console) -> None:
        self._options = options
        self._console = console
        self._started_s = 0.0
        self._workers: list[Worker] = []
        self._victim: Worker | None = None
        self._killed_after_round = 0
        self._late: Worker | None = None

    async def run(self) -> tuple[Report, str]:
        """Run to the end; leaves no process and no file but those in `out`. Safe to cancel."""
        self._started_s = asyncio.get_running_loop().time()
        limit_s = self._options.seconds + PATIENCE_S
        try:
            async with asyncio.timeout(limit_s):
                with tempfile.TemporaryDirectory(prefix="zoonet-demo-") as scratch:
                    try:
                        async with Family(Path(scratch)).keep() as family:
                            return await self._run(family, Path(scratch))
                    finally:
                        if self._options.keep_logs:
                            self._copy_logs(Path(scratch))
        except TimeoutError as error:
            raise DemoFailed(f"not finished after {limit_s:.0f} s") from error

    def _elapsed_s(self) -> float:
        return asyncio.get_running_loop().time() - self._started_s

    async def _run(self, family: Family, scratch: Path) -> tuple[Report, str]:
        self._say(f"starting a bootstrap and {self._options.workers} workers, each a process")
        address = await self._start_bootstrap(family, scratch)
        for number in range(1, self._options.workers + 1):
            self._workers.append(await self._start_worker(family, scratch, address, number))
        config = EntryConfig(
            folder=scratch / "client", listen=(LOOPBACK,), is_lan_enabled=False, name="demo"
        )
        async with await Network.join([address], config=config) as network:
            rate = await asyncio.to_thread(planning.machine_tokens_per_s, self._options.workers)
            async with self._guarded(family):
                await self._wait_for_workers(network)
                rate = await asyncio.to_thread(planning.machine_tokens_per_s, self._options.workers)
                plan = self._plan(rate)
                job_id = await self._submit(network, plan)
                view = await self._train(network, family, scratch, address, job_id, plan)
                return await self._finish(network, scratch, job_id, view)

    # --- processes ----------------------------------------------------------------------------

    async def _start_bootstrap(self, family: Family, scratch: Path) -> str:
        home = str(scratch / "bootstrap")
        bootstrap = await family.start(
            "bootstrap", ["bootstrap", "--json", "--home", home, "--listen", LOOPBACK]
        )
        return str((await family.first_line(bootstrap))["addresses"][0])

    async def _start_worker(
        self, family: Family, scratch: Path, address: str, number: int
    ) -> Worker:
        name = f"worker-{number}"
        home = runtime.home(str(scratch / name))
        identity = Identity.load_or_create(home.key_path)
        arguments = ["peer", "--join", address, "--home", str(home.path), "--listen", LOOPBACK]
        child = await family.start(name, [*arguments, "--no-lan", "--name", name])
        return Worker(name=name, peer_id=identity.peer_id, child=child)

    @asynccontextmanager
    async def _guarded(self, family: Family) -> AsyncIterator[None]:
        """Fail at once, with what it said last, where a child ends that was not killed."""

        async def watch() -> None:
            while True:
                for child in family.children:
                    is_victim = self._victim is not None and child is self._victim.child
                    if not child.is_running and not is_victim:
                        raise ChildFailed(
                            f"{child.name} ended with exit code {child.process.returncode}; "
                            f"it said last:\n{child.log_tail()}"
                        )
                await asyncio.sleep(LOOK_INTERVAL_S)

        async with asyncio.TaskGroup() as tasks:
            guard = tasks.create_task(watch())
            yield
            guard.cancel()

    async def _wait_for_workers(self, network: Network) -> None:
        missing = {worker.peer_id for worker in self._workers}
        while missing:
            await asyncio.sleep(LOOK_INTERVAL_S)
            missing -= {record.author for record in await network.peers()}
        self._say(f"all peers have found each other after {self._elapsed_s():.0f} s")

    # --- the job ------------------------------------------------------------------------------

    def _plan(self, tokens_per_s: float) -> planning.Plan:
        left_s = self._options.seconds - self._elapsed_s()
        training_s = left_s - planning.START_TRAINING_S - planning.FINISH_S
        return planning.plan(
            training_s=training_s,
            startup_s=self._elapsed_s(),
            tokens_per_s=tokens_per_s,
            num_workers=self._options.workers,
        )

    async def _submit(self, network: Network, plan: planning.Plan) -> str:
        text = str(self._options.text.absolute()) if self._options.text else "stdlib"
        job = planning.job(plan, text=text, num_workers=self._options.workers, seed=0)
        job_id = await network.submit(job)
        self._say(f"submitted job {job_id[:8]}: {plan.tokens:,} tokens of {text}")
        return job_id

    async def _train(
        self,
        network: Network,
        family: Family,
        scratch: Path,
        address: str,
        job_id: str,
        plan: planning.Plan,
    ) -> SwarmView:
        title = f"zoonet demo · job {job_id[:8]}"
        with LiveView(self._console, title=title) as live:
            follower = Follower(live.show)

            async def mishaps() -> None:
                await _until_round(follower, plan.late_after)
                number = self._options.workers + 1
                self._late = await self._start_worker(family, scratch, address, number)
                live.say(f"{self._late.name} is started late, by design")
                await _until_round(follower, plan.kill_after)
                self._victim = self._workers[-1]
                await family.kill(self._victim.child)
                self._killed_after_round = follower.view.num_rounds
                follower.leave([self._victim.peer_id])
                live.say(f"{self._victim.name} is killed (SIGKILL), by design")

            async with asyncio.TaskGroup() as tasks:
                mischief = tasks.create_task(mishaps())
                view = await follower.follow(network.watch(job_id))
                mischief.cancel()
        if view.job is None or view.job.phase != "finished":
            raise DemoFailed(f"the job ended as {view.job.phase if view.job else 'unknown'}")
        return view

    # --- what is left -------------------------------------------------------------------------

    async def _finish(
        self, network: Network, scratch: Path, job_id: str, view: SwarmView
    ) -> tuple[Report, str]:
        output = await network.result(job_id, scratch / "result")
        prompt = TEXT_PROMPT if self._options.text else STDLIB_PROMPT
        sample = await asyncio.to_thread(
            continue_text,
            output,
            prompt,
            num_tokens=SAMPLE_TOKENS,
            temperature=SAMPLE_TEMPERATURE,
            seed=0,
        )
        report = self._report(output, view)
        await asyncio.to_thread(self._write, output, sample, view)
        return report, sample

    def _report(self, output: JobOutput, view: SwarmView) -> Report:
        assert view.job is not None
        chain = msgspec.msgpack.decode(output.chain.read_bytes(), type=list[Certificate])
        late_id = self._late.peer_id if self._late else ""
        late_in_round = next(
            (
                index
                for index, link in enumerate(chain, start=1)
                if late_id in {share.peer for share in link.result.contributions}
            ),
            0,
        )
        first_mishap = min(self._killed_after_round, late_in_round or len(chain))
        before = [loss for num_rounds, loss in view.losses if num_rounds <= first_mishap]
        return Report(
            job_id=output.job_id,
            seconds=0.0,  # known at the very end
            num_parameters=view.job.num_parameters,
            num_rounds=output.num_rounds,
            num_tokens=output.num_tokens,
            loss_first=view.losses[0][1] if view.losses else 0.0,
            loss_before=before[-1] if before else 0.0,
            loss_after=output.eval_loss,
            killed_after_round=self._killed_after_round,
            late_in_round=late_in_round,
            contributors=self._contributors(chain),
            model_file=MODEL_FILE,
            plot_file=PLOT_FILE,
            sample_file=SAMPLE_FILE,
        )

    def _contributors(self, chain: list[Certificate]) -> tuple[Contributor, ...]:
        found = {credit.peer: credit for credit in credits(chain, min_members=MIN_MEMBERS)}
        everyone = [*self._workers, *([self._late] if self._late else [])]
        fates = {
            **dict.fromkeys((worker.name for worker in self._workers), "from the start"),
            **({self._victim.name: "killed"} if self._victim else {}),
            **({self._late.name: "came late"} if self._late else {}),
        }
        return tuple(
            Contributor(
                peer_id=worker.peer_id,
                name=worker.name,
                num_rounds=found[worker.peer_id].num_rounds if worker.peer_id in found else 0,
                num_tokens=(
                    found[worker.peer_id].num_slots * planning.SLOT_TOKENS
                    if worker.peer_id in found
                    else 0
                ),
                fate=fates[worker.name],
            )
            for worker in everyone
        )

    def _write(self, output: JobOutput, sample: str, view: SwarmView) -> None:
        out = self._options.out
        try:
            for file in (output.model, output.config, output.tokenizer, output.chain):
                shutil.copyfile(file, out / file.name)
            (out / SAMPLE_FILE).write_text(sample, encoding="utf-8")
            save_loss_plot(view, out / PLOT_FILE, title="zoonet demo")
        except OSError as error:
            raise StorageError(f"cannot write to {out}: {error.strerror}") from error

    def _copy_logs(self, scratch: Path) -> None:
        folder = self._options.out / "logs"
        folder.mkdir(exist_ok=True)
        for log_file in scratch.glob("*.log"):
            shutil.copyfile(log_file, folder / log_file.name)

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


async def _until_round(follower: Follower, num_rounds: int) -> None:
    while follower.view.num_rounds < num_rounds:
        await asyncio.sleep(LOOK_INTERVAL_S)
