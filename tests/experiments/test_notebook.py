"""The notebook, run without a screen: it trains with others, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

import peers
from peers.notebook import LOOPBACK, entering_options, invitation_to
from peers.processes import Family

nbformat = pytest.importorskip("nbformat", reason="the extra `notebook` is not installed")
nbclient = pytest.importorskip("nbclient", reason="the extra `notebook` is not installed")

NOTEBOOK = Path(__file__).parents[2] / "experiments" / "notebooks" / "collaborative_training.ipynb"
CELL_TIMEOUT_S = 150
MARK = "JUPYTER_RUNTIME_DIR"  # every process that a test starts has it in its environment

Running = Callable[[], list[psutil.Process]]


@pytest.fixture
def scratch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the test's processes put their temporary files; short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="nb-") as folder:
        monkeypatch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def running(tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> Running:
    """Processes that this test has started, from everywhere on the machine."""
    mark = str(tmp_path / "jupyter")
    monkeypatch.setenv(MARK, mark)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("JUPYTER_NO_CONFIG", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(peers.__file__).parents[1]))
    monkeypatch.delenv("ZOONET_BOOTSTRAP", raising=False)

    def look() -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == mark and process.pid != os.getpid():
                    found.append(process)
        return found

    return look


def client_of(cells: Any, folder: Path, *, shutdown: str = "graceful") -> Any:
    return nbclient.NotebookClient(
        cells,
        timeout=CELL_TIMEOUT_S,
        kernel_name="python3",
        shutdown_kernel=shutdown,
        resources={"metadata": {"path": str(folder)}},
    )


def notebook_with(**settings: object) -> Any:
    """The notebook with some of its settings filled in."""
    cells = nbformat.read(NOTEBOOK, as_version=4)
    lines = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    where = next(i for i, cell in enumerate(cells.cells) if cell.id == "settings")
    assert all(f"\n{name} = " in cells.cells[where].source for name in settings)
    cells.cells.insert(where + 1, nbformat.v4.new_code_cell(lines))
    return cells


def outputs_of(cells: Any, source: str) -> list[Any]:
    [cell] = [cell for cell in cells.cells if source in cell.source and cell.cell_type == "code"]
    return list(cell.outputs)


def test_the_notebook_is_kept_without_outputs() -> None:
    code = [c for c in nbformat.read(NOTEBOOK, as_version=4).cells if c.cell_type == "code"]
    assert code
    assert [cell for cell in code if cell.outputs or cell.execution_count is not None] == []


LOCAL = "/ip4/127.0.0.1/tcp/31330/p2p/16Uiu2"
NEAR = "/ip4/10.1.2.3/tcp/31330/p2p/16Uiu2"
PUBLIC = "/dns4/door.example.org/tcp/31330/p2p/16Uiu2"


def test_a_peer_that_enters_at_a_public_address_counts_as_behind_nat() -> None:
    assert entering_options([NEAR, PUBLIC]) == ["--join", NEAR, PUBLIC, "--client"]
    assert entering_options([PUBLIC], client=False) == ["--join", PUBLIC]
    assert entering_options([NEAR]) == ["--join", NEAR]


def test_a_swarm_on_loopback_stays_on_this_machine() -> None:
    assert entering_options([LOCAL]) == ["--join", LOCAL, "--listen", LOOPBACK]
    assert "--listen" not in entering_options([LOCAL, NEAR])


def test_the_invitation_says_from_where_it_works() -> None:
    scopes = [invitation_to(address).split("# ")[1] for address in (LOCAL, NEAR, PUBLIC)]
    assert scopes == ["on this machine", "from the same network", "from anywhere"]


@pytest.mark.demo
@pytest.mark.p2p
@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_notebook_trains_a_model_with_another_peer(
    tmp_path: Path, scratch: Path, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "model"
    async with Family(tmp_path).keep() as others:
        where = ["--home", str(tmp_path / "door"), "--listen", LOOPBACK]
        door = await others.start("door", ["bootstrap", "--json", *where])
        address = (await others.first_line(door))["addresses"][0]
        where = ["--home", str(tmp_path / "ada"), "--listen", LOOPBACK]
        await others.start("ada", ["peer", "--name", "ada", "--join", address, *where])
        monkeypatch.setenv("ZOONET_BOOTSTRAP", address)

        cells = notebook_with(TOKENS=60_000, OUT=str(out))
        await client_of(cells, tmp_path).async_execute()

        theirs = {child.process.pid for child in others.children}
        for child in others.children:
            family = psutil.Process(child.process.pid).children(recursive=True)
            theirs |= {process.pid for process in family}
        assert theirs
        assert [process for process in running() if process.pid not in theirs] == []
    assert running() == []
    assert [name for name in os.listdir(scratch) if name.startswith("zoonet")] == []

    assert "zoonet peer --join " + address in outputs_of(cells, "swarm.invitation")[0].text
    *picture, printed = outputs_of(cells, "swarm.show")
    losses = [float(loss) for loss in re.findall(r"\d+\.\d+", printed.text)]
    assert len(losses) > 2 and losses[-1] < losses[0]
    assert ["text/html" in one.data for one in picture] == [True, False]  # redrawn in place
    assert "image/png" in picture[1].data
    assert "finished" in picture[0].data["text/html"]
    sample = outputs_of(cells, "swarm.sample")[0].text
    assert sample.startswith("import ") and len(sample) > 100

    report = json.loads((out / "report.json").read_text())
    assert report["eval_loss"] < 4.0 < np.log(256)  # which is to guess among the 256 bytes
    assert len(report["contributions"]) == 2
    assert all(one["num_rounds"] >= 3 for one in report["contributions"])
    weights = load_file(out / "model.safetensors")
    assert sum(weight.size for weight in weights.values()) == report["num_parameters"]
    assert all(np.isfinite(weight).all() for weight in weights.values())


@pytest.mark.p2p
@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_kernel_that_is_killed_takes_the_swarm_it_founded_along(
    tmp_path: Path, running: Running
) -> None:
    cells = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_code_cell(
                "from peers import notebook\n"
                "swarm = await notebook.join(listen=notebook.LOOPBACK)\n"
                "await swarm.run_peer()\n"
                "roles = [role for p in await swarm.network.peers() for role in p.body.roles]\n"
                "print(swarm.is_founder, 'worker' in roles)"
            )
        ]
    )
    client = client_of(cells, tmp_path, shutdown="immediate")
    async with client.async_setup_kernel():
        await client.async_execute_cell(cells.cells[0], 0)
        assert cells.cells[0].outputs[-1].text.split() == ["True", "True"]
        started = running()
        assert len([one for one in started if "p2pd" in one.name()]) == 3  # of kernel, door, peer
    await asyncio.to_thread(psutil.wait_procs, started, timeout=30)
    assert running() == []
