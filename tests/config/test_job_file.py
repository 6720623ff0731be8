"""The strict loader of job files: what it accepts, and the line it names for what it refuses."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoonet.config import ComputeJob, load_job, parse_job
from zoonet.errors import ConfigError, SpecError

HERE = Path("/folder")

WHOLE = """\
name: tiny
model:
  kind: gpt
  num_layers: 2
  width: 64
data:
  text: corpus/shakespeare.txt
  tokenizer: char
training:
  tokens: 1_536_000
  inner_lr: 2e-3
  betas: [0.9, 0.99]
  dynamic_steps: false
checkpoint: {interval: 1000, storage: ipfs, redundancy: 3}
verification:
  sample_rate: 0.1
peers:
  min: 2
  max: 8
budget:
  max: 5000
"""


def test_a_whole_file_becomes_a_job() -> None:
    assert parse_job(WHOLE, folder=HERE) == ComputeJob(
        name="tiny",
        model_config={"kind": "gpt", "num_layers": 2, "width": 64},
        data_config={"text": "/folder/corpus/shakespeare.txt", "tokenizer": "char"},
        training_config={
            "tokens": 1_536_000,
            "inner_lr": 0.002,
            "betas": (0.9, 0.99),
            "dynamic_steps": False,
        },
        checkpoint_config={"interval": 1000, "storage": "ipfs", "redundancy": 3},
        verification_config={"sample_rate": 0.1},
        peers_config={"min": 2, "max": 8},
        budget_max=5000,
    )


def test_the_file_on_disk_is_read_and_its_folder_is_where_paths_start(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("training: {tokens: 10}\ndata: {text: a.txt}\n")
    assert load_job(tmp_path / "job.yaml").data_config.text == str(tmp_path / "a.txt")


@pytest.mark.parametrize("text", ["stdlib", "'stdlib'"])
def test_the_standard_library_is_not_a_path(text: str) -> None:
    job = parse_job(f"training: {{tokens: 10}}\ndata: {{text: {text}}}", folder=HERE)
    assert job.data_config.text == "stdlib"
    assert job.data_config.tokenizer == "byte"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainning:\n  tokens: 5\n", "line 1: unknown key 'trainning'; did you mean 'training'?"),
        (
            "training:\n  tokens: 5\n  iner_steps: 3\n",
            "line 3: unknown key 'iner_steps' in training; did you mean 'inner_steps'?",
        ),
        (
            "training: {tokens: 5}\nmodel:\n  zzz: 1\n",
            "line 3: unknown key 'zzz' in model; valid keys: context, dropout, embedding_dim, "
            "hf_config, kind, num_heads, num_layers, vocab_size, width",
        ),
        (
            "training:\n  tokens: many\n",
            "line 2: training.tokens is 'many', expected a whole number",
        ),
        (
            "training:\n  tokens: 1.5\n",
            "line 2: training.tokens is 1.5, expected a whole number",
        ),
        (
            "training:\n  tokens: 5\n  dynamic_steps: yes\n",
            "line 3: training.dynamic_steps is 'yes', expected true or false",
        ),
        (
            "training:\n  tokens: 5\n  optimizer: sgd\n",
            "line 3: training.optimizer is 'sgd', expected one of adamw, muon",
        ),
        (
            "training:\n  tokens: -5\n",
            "line 2: training.tokens is -5, expected 1 to 1,000,000,000,000,000",
        ),
        (
            "training:\n  tokens: 5\n  betas: [1, 2, 3]\n",
            "line 3: training.betas is [1, 2, 3], expected 2 values, each a number",
        ),
        (
            "training:\n  tokens: 5\n  tokens: 6\n",
            "line 3: the key 'tokens' stands twice, first in line 2",
        ),
        ("name: x\ntraining:\n", "line 2: training is empty"),
        ("name: x\ntraining:\n  seed: 1\n", "line 2: training.tokens is missing"),
        ("name: x\n", "training.tokens is missing"),
        ("training: 5\n", "line 1: training is 5, expected a mapping or TrainingConfig"),
        ("", "the job file is empty"),
        ("- a\n- b\n", "line 1: a job file is a mapping: name, model, data, training, ..."),
        ("training: {tokens: 5}\nbudget: 7\n", "line 2: budget is 7, expected a mapping"),
        (
            "training: {tokens: 5}\nbudget:\n  maximum: 7\n",
            "line 3: unknown key 'maximum' in budget; did you mean 'max'?",
        ),
        ("training: {tokens: 5\n", "line 2: not YAML: expected ',' or '}'"),
        ("name: a\n\tname: b\n", "line 2: not YAML: "),
        ("name: &a x\ntraining: {tokens: 5}\n", "line 1: anchors and aliases are not used"),
        ("training: {tokens: 5}\nname: *a\n", "line 2: anchors and aliases are not used"),
        ("name: !!python/object:os.system x\n", "line 1: the tag 'tag:yaml.org,2002:python/ob"),
        ("name: " + "[" * 50, "line 1: nested deeper than 20 levels"),
        ("? [a]\n: b\n", "line 1: a key is a list or a mapping, expected a word"),
        (
            "training: {tokens: 5}\nmodel:\n  width: 30\n  num_heads: 4\n",
            "line 3: model.width is 30, expected a multiple of num_heads 4",
        ),
        (
            "training:\n  tokens: 5\n  task: embedding\n",
            "line 3: training.task is embedding, which a model of the kind gpt cannot do",
        ),
        (
            "training: {tokens: 5}\npeers:\n  min: 5\n  max: 2\n",
            "line 4: peers.max is 2, expected at least peers.min, which is 5",
        ),
        (
            "training: {tokens: 5}\npeers:\n  allowed: [someone]\n",
            "line 3: peers.allowed has an entry: 'someone' is not a peer id",
        ),
        ("name: a\x00b\n", "line 1: not YAML: special characters are not allowed"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_job(text, folder=HERE)
    assert str(caught.value).startswith(message)


def test_a_file_that_is_missing_says_where() -> None:
    with pytest.raises(ConfigError, match=r"cannot read the job file .*gone\.yaml: No such file"):
        load_job("/nowhere/gone.yaml")


def test_a_file_that_is_not_text_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"name: a\n\xff\xfe\n")
    with pytest.raises(SpecError, match="line 2: not UTF-8"):
        load_job(tmp_path / "job.yaml")


def test_a_file_too_large_for_a_job_is_refused(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_bytes(b"#" * 300_000)
    with pytest.raises(ConfigError, match="larger than"):
        load_job(tmp_path / "job.yaml")


@given(st.text(max_size=200))
def test_any_text_is_a_job_or_a_spec_error(text: str) -> None:
    with suppress(SpecError):
        parse_job(text, folder=HERE)


@given(st.integers(0, len(WHOLE) - 1), st.characters(codec="utf-8"))
def test_a_damaged_file_is_a_job_or_a_spec_error(position: int, character: str) -> None:
    with suppress(SpecError):
        parse_job(WHOLE[:position] + character + WHOLE[position + 1 :], folder=HERE)
