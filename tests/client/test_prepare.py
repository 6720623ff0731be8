"""What a submitter's job becomes: shards, parameters and a spec that hold together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoonet.blocks import MemoryBlockStore, cid_of, read_bytes
from zoonet.client import prepare
from zoonet.client.prepare import owner_of
from zoonet.config import ComputeJob, decode
from zoonet.errors import ConfigError, StorageError
from zoonet.training.tokenizers import load_tokenizer

torch.set_num_threads(1)

TEXT = "to be or not to be, that is the question " * 20
TINY = {"num_layers": 1, "num_heads": 1, "width": 8, "context": 8}


def job(folder: Path, **sections: Any) -> ComputeJob:
    (folder / "text.txt").write_text(TEXT)
    return ComputeJob(
        model_config=TINY | sections.pop("model", {}),
        data_config={"text": str(folder / "text.txt"), "tokenizer": "char"}
        | sections.pop("data", {}),
        training_config={"tokens": 1000},
        **sections,
    )


def test_the_text_is_cut_in_two_and_comes_back_from_its_tokens(tmp_path: Path) -> None:
    store = MemoryBlockStore()
    prepared = prepare(job(tmp_path), store)
    tokenizer = load_tokenizer(read_bytes(store, prepared.tokenizer_cid))
    train = np.frombuffer(read_bytes(store, prepared.data.train_cid), "u1")
    heldout = np.frombuffer(read_bytes(store, prepared.data.heldout_cid), "u1")
    assert tokenizer.decode(train) + tokenizer.decode(heldout) == TEXT
    assert len(train) == prepared.data.num_train_tokens == int(len(TEXT) * 0.9)
    assert len(heldout) == prepared.data.num_heldout_tokens


def test_the_parameters_are_as_many_as_promised_and_finite(tmp_path: Path) -> None:
    store = MemoryBlockStore()
    prepared = prepare(job(tmp_path), store)
    theta_P = np.frombuffer(read_bytes(store, prepared.parameters_cid), "<f4")
    assert theta_P.size == prepared.num_parameters
    assert np.isfinite(theta_P).all()


def test_the_spec_is_a_block_that_holds_no_local_path(tmp_path: Path) -> None:
    from zoonet.config import encode

    store = MemoryBlockStore()
    prepared = prepare(job(tmp_path), store)
    raw = store.get(cid_of(encode(prepared)))
    assert decode(raw) == prepared
    assert str(tmp_path) not in raw.decode()


def test_the_same_job_twice_is_two_jobs_of_the_same_data(tmp_path: Path) -> None:
    store = MemoryBlockStore()
    first, second = prepare(job(tmp_path), store), prepare(job(tmp_path), store)
    assert first.nonce != second.nonce
    assert first.data == second.data
    assert first.parameters_cid == second.parameters_cid


def test_all_blocks_stay_until_the_job_lets_go(tmp_path: Path) -> None:
    store = MemoryBlockStore(max_bytes=12_000)
    prepared = prepare(job(tmp_path), store)
    for number in range(20):
        store.put(bytes([number]) * 1000)
    assert read_bytes(store, prepared.parameters_cid)
    store.unpin(owner_of(prepared))
    for number in range(20, 40):
        store.put(bytes([number]) * 1000)
    assert not store.has(prepared.parameters_cid)


def test_a_store_without_room_says_so_and_keeps_nothing_pinned(tmp_path: Path) -> None:
    store = MemoryBlockStore(max_bytes=2000)
    with pytest.raises(StorageError, match="the block store is full"):
        prepare(job(tmp_path), store)
    for number in range(5):
        store.put(bytes([number]) * 1000)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"context": 200}}, "the held-out part of the text has 82 tokens, fewer than"),
        ({"model": {"context": 2000}}, "the training part of the text has 738 tokens, fewer than"),
        ({"model": {"vocab_size": 3}}, "model.vocab_size is 3, but the tokenizer has 14 tokens"),
        ({"data": {"tokenizer": "/nowhere/t.json"}}, "data.tokenizer is '/nowhere/t.json'"),
    ],
)
def test_what_the_submitter_must_change_is_said(
    tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(job(tmp_path, **sections), MemoryBlockStore())
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (None, "config.json', which cannot be read: No such file"),
        ("{", "config.json, is not JSON"),
        ("[]", "config.json, is not a JSON object"),
        ('{"n_layer": 2}', "model.hf_config names no model_type"),
        ('{"model_type": "gpt2", "auto_map": {}}', "has 'auto_map', which a job may not contain"),
    ],
)
def test_a_model_config_file_that_cannot_be_used_says_why(
    tmp_path: Path, contents: str | None, message: str
) -> None:
    if contents is not None:
        (tmp_path / "config.json").write_text(contents)
    model = {"kind": "transformers", "hf_config": str(tmp_path / "config.json")}
    with pytest.raises(ConfigError) as caught:
        prepare(job(tmp_path, model=model), MemoryBlockStore())
    assert message in str(caught.value)


def test_a_model_config_folder_is_read_without_what_is_local(tmp_path: Path) -> None:
    from zoonet.client.prepare import _hf_config

    contents = {"model_type": "gpt2", "_name_or_path": "/home/me/gpt2", "n_layer": 2}
    (tmp_path / "config.json").write_text(json.dumps(contents))
    assert _hf_config(str(tmp_path)) == {"model_type": "gpt2", "n_layer": 2}
