"""Are archives of random files byte for byte what an IPFS implementation makes of them?

Needs Node.js 20 and npm, which brings ipfs-car into a folder that is removed afterwards.

    python -m experiments.ipfs
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from experiments import machine
from experiments.testbed.results import RESULTS
from zoonet.blocks import MemoryBlockStore, put_file, write_car

IPFS_CAR: Final = "ipfs-car@3.1.0"
MAX_BYTES: Final = 3 << 20
PACK: Final = Path(__file__).with_name("pack.mjs")


def make_files(folder: Path, num_files: int, seed: int) -> list[Path]:
    """Random bytes, of sizes that are even in their logarithm, an empty file among them."""
    source = random.Random(seed)
    paths = []
    for number in range(num_files):
        size = int(MAX_BYTES ** source.random()) if number else 0
        paths.append(folder / f"{number:05}.bin")
        paths[-1].write_bytes(source.randbytes(size))
    return paths


def pack_theirs(folder: Path) -> None:
    """Let ipfs-car pack every file of the folder."""
    npm = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder)]
    subprocess.run([*npm, IPFS_CAR], check=True)
    shutil.copy(PACK, folder)
    subprocess.run(["node", PACK.name, str(folder)], cwd=folder, check=True)


def different(paths: list[Path]) -> list[str]:
    """Names of the files of which the two archives differ."""
    found = []
    for path in paths:
        store, ours = MemoryBlockStore(), path.with_suffix(".ours")
        write_car(store, put_file(store, path), ours)
        if ours.read_bytes() != path.with_suffix(".car").read_bytes():
            found.append(path.name)
        ours.unlink()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "ipfs.json")
    arguments = parser.parse_args()
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is missing; it comes with Node.js 20 or later")
    with tempfile.TemporaryDirectory(prefix="zoonet-ipfs-") as name:
        folder = Path(name)
        paths = make_files(folder, arguments.files, arguments.seed)
        num_bytes = sum(path.stat().st_size for path in paths)
        print(f"packing {len(paths)} files, {num_bytes / 1e6:.0f} MB", file=sys.stderr)
        pack_theirs(folder)
        wrong = different(paths)
    result = {
        "question": "Are archives of random files byte for byte what ipfs-car makes of them?",
        "num_files": len(paths),
        "num_bytes": num_bytes,
        "num_different": len(wrong),
        "different": wrong[:20],
        "settings": {"seed": arguments.seed, "rival": IPFS_CAR, "largest_bytes": MAX_BYTES},
        "machine": machine.facts(),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"{len(wrong)} of {len(paths)} archives differ; wrote {arguments.out}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
