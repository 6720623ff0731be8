"""The job as peers receive it, from strangers."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.prepared import model_spec, prepared_job
from zoonet.config import decode, encode, num_slots
from zoonet.errors import ConfigError

MODEL = model_spec()
JOB = prepared_job()


def altered(path: str, value: object) -> bytes:
    document: dict[str, Any] = json.loads(encode(JOB))
    *sections, key = path.split(".")
    place = document
    for section in sections:
        place = place[section]
    place[key] = value
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def test_a_job_comes_back_as_it_was_in_one_byte_form() -> None:
    assert decode(encode(JOB)) == JOB
    assert altered("name", "tiny") == encode(JOB)


def test_the_last_slot_may_be_partly_needed() -> None:
    assert num_slots(JOB) == 16  # 1000 tokens, 64 a slot


def test_whole_numbers_for_fractions_take_the_same_form() -> None:
    whole = msgspec.structs.replace(JOB, model=msgspec.structs.replace(MODEL, dropout=0))
    assert encode(whole) == encode(JOB)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("nonce", "xyz"),
        ("extra", 1),
        ("training.extra", 1),
        ("model.extra", 1),
        ("name", "x" * 101),
        ("parameters_cid", "../../etc/passwd"),
        ("num_parameters", 0),
        ("num_parameters", 10**13),
        ("num_parameters", 1.5),
        ("model.context", 1 << 40),
        ("model.context", 2000),  # more than the held-out text has
        ("model.vocab_size", 0),
        ("model.vocab_size", 257),  # does not fit into one byte
        ("model.width", -8),
        ("model.num_layers", 10**9),
        ("model.hf_config", {"model_type": "gpt2"}),
        ("model.kind", "pickle"),
        ("training.tokens", 10**18),
        ("training.batch_size", 0),
        ("training.inner_lr", -1.0),
        ("training.task", "embedding"),
        ("data.token_bytes", 3),
        ("data.num_train_tokens", 10**15),
        ("peers.max", 10**9),
        ("peers.allowed", ["someone"]),
        ("training", None),
    ],
)
def test_a_strangers_job_that_makes_no_sense_is_refused(path: str, value: object) -> None:
    with pytest.raises(ConfigError):
        decode(altered(path, value))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "gpt2", "auto_map": {"AutoModel": "x"}}, "'auto_map'"),
        ({"model_type": "gpt2", "a": [{"trust_remote_code": True}]}, "'trust_remote_code'"),
        ({"n_layer": 2}, "names no model_type"),
        ({"model_type": "gpt2", "pad": "x" * 70_000}, "at most 65536"),
        ({"model_type": "gpt2", "x": float("nan")}, "not JSON"),
    ],
)
def test_a_model_config_that_reaches_outside_the_job_is_refused(
    config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        msgspec.structs.replace(MODEL, kind="transformers", hf_config=config)


def test_a_model_config_nested_too_deep_is_refused() -> None:
    deep: dict[str, Any] = {"model_type": "gpt2"}
    inner = deep
    for _ in range(30):
        inner["x"] = {}
        inner = inner["x"]
    with pytest.raises(ConfigError, match="nested deeper"):
        decode(altered("model", {**json.loads(encode(JOB))["model"], "hf_config": deep}))


def test_another_byte_form_of_the_same_job_is_refused() -> None:
    with pytest.raises(ConfigError, match="not in canonical form"):
        decode(encode(JOB).replace(b",", b", ", 1))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[" * 100_000, b"\xff", b"{" * 300_000])
def test_what_is_no_job_is_refused(raw: bytes) -> None:
    with pytest.raises(ConfigError):
        decode(raw)


@given(st.integers(0, len(encode(JOB)) - 1), st.integers(0, 255))
def test_a_damaged_job_is_a_job_or_refused(position: int, byte: int) -> None:
    raw = bytearray(encode(JOB))
    raw[position] = byte
    with suppress(ConfigError):
        assert encode(decode(bytes(raw))) == bytes(raw)
