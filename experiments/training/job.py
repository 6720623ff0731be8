"""The job that all contenders train: a small GPT on real text, prepared once, read by all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import numpy as np

from zoonet.blocks import MemoryBlockStore, read_bytes, write_file
from zoonet.client.prepare import prepare
from zoonet.config import ComputeJob, PreparedJob, decode, encode
from zoonet.config.job import STDLIB
from zoonet.exact import Vector
from zoonet.training.messages import Start

MODEL: Final = {"kind": "gpt", "num_layers": 3, "num_heads": 4, "width": 128, "context": 64}
SMALL_MODEL: Final = {"kind": "gpt", "num_layers": 1, "num_heads": 2, "width": 32, "context": 32}
TEXT_BYTES: Final = 1_000_000
NUM_STEPS: Final = 1_000_000  # of all peers: no run comes to the end of its job
_FILES: Final = ("train", "heldout", "tokenizer")


@dataclass(frozen=True, slots=True)
class Job:
    """A prepared job in a folder."""

    folder: Path
    prepared: PreparedJob

    @classmethod
    def make(
        cls, folder: Path, *, text: str, inner_steps: int, num_peers: int, is_small: bool
    ) -> Self:
        """Prepare the text (a path, or "stdlib") and the initial parameters. Takes seconds."""
        model: dict[str, Any] = dict(SMALL_MODEL if is_small else MODEL)
        store = MemoryBlockStore()
        prepared = prepare(
            ComputeJob(
                name="benchmark",
                model_config=model,
                data_config={"text": text or STDLIB, "max_bytes": TEXT_BYTES},
                training_config={
                    "tokens": NUM_STEPS * model["context"],
                    "batch_size": 1,
                    "inner_steps": inner_steps,
                    "warmup_fraction": 0.0,
                },
                peers_config={"min": num_peers},
            ),
            store,
        )
        folder.mkdir(parents=True, exist_ok=True)
        for name, cid in zip(
            _FILES,
            (prepared.data.train_cid, prepared.data.heldout_cid, prepared.tokenizer_cid),
            strict=True,
        ):
            write_file(store, cid, folder / name)
        (folder / "parameters").write_bytes(read_bytes(store, prepared.parameters_cid))
        (folder / "job").write_bytes(encode(prepared))
        return cls(folder, prepared)

    @classmethod
    def read(cls, folder: Path, **training: Any) -> Self:
        """Read what was prepared; `training` changes its settings."""
        prepared = decode((folder / "job").read_bytes())
        changed = replace(prepared.training, **training)
        return cls(folder, msgspec.structs.replace(prepared, training=changed))

    def start(self) -> Start:
        """What a trainer is told."""
        train, heldout, tokenizer = (str(self.folder / name) for name in _FILES)
        return Start(
            prepared=encode(self.prepared),
            train_path=train,
            heldout_path=heldout,
            tokenizer_path=tokenizer,
            device="cpu",
        )

    def initial_P(self) -> Vector:
        """The initial parameters (P,)."""
        return np.frombuffer((self.folder / "parameters").read_bytes(), "<f4")
