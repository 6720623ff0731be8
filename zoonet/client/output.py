"""A finished job's model on the user's disk, after its chain of certified rounds was checked."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from zoonet.averaging import Certificate, Chain, credits
from zoonet.blocks import BlockExchange, Blocks, call_store, read_bytes, write_car, write_file
from zoonet.blocks.store import storage_error, write_durably
from zoonet.config import PreparedJob, decode, num_slots, tokens_per_slot
from zoonet.config.prepared import MAX_SPEC_BYTES
from zoonet.crypto import PeerId
from zoonet.errors import ProtocolViolation
from zoonet.jobs import JobView, ResultView
from zoonet.training.export import from_safetensors, to_config

MAX_CHAIN_BYTES: Final = 1 << 30
MAX_TOKENIZER_BYTES: Final = 64 << 20
MAX_HEADER_BYTES: Final = 64 << 20  # of a safetensors file

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """What the certified rounds say that one peer did."""

    peer_id: PeerId
    name: str  # in the peer's own words; "" where it has left
    num_rounds: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutput:
    """The files of a finished job, and who made it."""

    folder: Path
    job_id: str
    eval_loss: float  # held-out, nats a token, of the outer parameters; 0.0 where unknown
    num_rounds: int
    num_tokens: int
    contributions: tuple[Contribution, ...]  # most tokens first

    @property
    def model(self) -> Path:
        """The weights."""
        return self.folder / "model.safetensors"

    @property
    def config(self) -> Path:
        """The architecture, as `zoonet.training.export.from_config` reads it."""
        return self.folder / "config.json"

    @property
    def tokenizer(self) -> Path:
        """What `zoonet.training.tokenizers.load_tokenizer` reads."""
        return self.folder / "tokenizer.json"

    @property
    def chain(self) -> Path:
        """The certified rounds: MessagePack, a list of certificates."""
        return self.folder / "chain.msgpack"

    @property
    def car(self) -> Path:
        """The weights as an archive for IPFS, where that was asked for."""
        return self.folder / "model.car"

    @property
    def report(self) -> Path:
        """The figures of this object as JSON."""
        return self.folder / "report.json"


class ResultFetcher:
    """Brings one job's result from the peers that hold it."""

    def __init__(self, exchange: BlockExchange, view: JobView) -> None:
        self._exchange = exchange
        self._store: Blocks = exchange.store
        self._view = view
        self._owner = f"result/{view.job_id}"

    async def fetch(self, result: ResultView, folder: Path, *, with_car: bool = False) -> JobOutput:
        """Fetch, check and write one of the results that participants published.

        Raises ProtocolViolation for a result that its own chain does not carry, ShardUnavailable
        where its holders are gone, StorageError where the disk refuses.
        """
        try:
            prepared = await self._fetch_spec(result.holders)
            chain = await self._fetch_chain(prepared, result)
            await self._fetch_files(prepared, result)
            await call_store(self._store, self._check_model, prepared, result)
            output = self._output(prepared, chain, result, folder)
            await call_store(self._store, self._write, output, prepared, result)
            if with_car:
                await call_store(self._store, write_car, self._store, result.model_cid, output.car)
        finally:
            self._store.unpin(self._owner)
        return output

    async def _fetch_spec(self, holders: Sequence[PeerId]) -> PreparedJob:
        everyone = (*holders, self._view.submitter)
        spec_cid = self._view.spec_cid
        return decode(await self._exchange.fetch(spec_cid, everyone, max_bytes=MAX_SPEC_BYTES))

    async def _fetch_chain(self, prepared: PreparedJob, result: ResultView) -> Chain:
        await self._exchange.fetch_file(
            result.chain_cid, result.holders, max_bytes=MAX_CHAIN_BYTES, owner=self._owner
        )
        raw = await call_store(self._store, read_bytes, self._store, result.chain_cid)
        try:
            links = msgspec.msgpack.decode(raw, type=list[Certificate], strict=True)
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise ProtocolViolation("", f"not a chain of certified rounds: {error}") from error
        chain = Chain(self._view.job_id, num_slots(prepared))
        for link in links:
            chain.extend(link)
        if not chain.is_over:
            raise ProtocolViolation("", f"a chain of {len(chain)} rounds that is not finished")
        return chain

    async def _fetch_files(self, prepared: PreparedJob, result: ResultView) -> None:
        max_bytes = prepared.parameter_bytes + MAX_HEADER_BYTES
        await self._exchange.fetch_file(
            result.model_cid, result.holders, max_bytes=max_bytes, owner=self._owner
        )
        await self._exchange.fetch_file(
            prepared.tokenizer_cid,
            (*result.holders, self._view.submitter),
            max_bytes=MAX_TOKENIZER_BYTES,
            owner=self._owner,
        )

    def _check_model(self, prepared: PreparedJob, result: ResultView) -> None:
        from zoonet.training.models import layout_of  # imports torch

        layout = layout_of(prepared.model)
        try:
            theta_P = from_safetensors(layout, read_bytes(self._store, result.model_cid))
        except ValueError as error:
            raise ProtocolViolation("", f"the model is not the job's: {error}") from error
        if not np.isfinite(theta_P).all():
            raise ProtocolViolation("", "the model has values that are not finite")

    def _output(
        self, prepared: PreparedJob, chain: Chain, result: ResultView, folder: Path
    ) -> JobOutput:
        names = {peer.peer_id: peer.name for peer in self._view.peers}
        slot_tokens = tokens_per_slot(prepared)
        return JobOutput(
            folder=folder,
            job_id=self._view.job_id,
            eval_loss=result.eval_loss,
            num_rounds=len(chain),
            num_tokens=chain.num_done * slot_tokens,
            contributions=tuple(
                Contribution(
                    peer_id=credit.peer,
                    name=names.get(credit.peer, ""),
                    num_rounds=credit.num_rounds,
                    num_tokens=credit.num_slots * slot_tokens,
                )
                for credit in credits(chain.certificates)
            ),
        )

    def _write(self, output: JobOutput, prepared: PreparedJob, result: ResultView) -> None:
        report = asdict(output) | {
            "folder": str(output.folder.absolute()),
            "name": prepared.name,
            "num_parameters": prepared.num_parameters,
            "eval_losses": self._view.eval_losses,
            "model_cid": result.model_cid,
            "chain_cid": result.chain_cid,
            "holders": result.holders,
        }
        write_file(self._store, result.model_cid, output.model)
        write_file(self._store, result.chain_cid, output.chain)
        write_file(self._store, prepared.tokenizer_cid, output.tokenizer)
        try:
            write_durably(output.config, to_config(prepared.model))
            write_durably(output.report, json.dumps(report, indent=2).encode())
        except OSError as error:
            raise storage_error("write", output.folder, error) from error
        log.info("wrote job=%s folder=%s", output.job_id, output.folder)
