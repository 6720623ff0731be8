from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zoonet.errors import ConfigError
from zoonet.training.export import from_config, to_config, to_safetensors
from zoonet.training.models import (
    FlatModel,
    build_model,
    count_parameters,
    flatten,
    initial_parameters,
    layout_of,
    unflatten_,
)

CPU = torch.device("cpu")
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}


def test_the_gpt_has_the_parameters_that_its_shape_says(make_job: Callable[..., Any]) -> None:
    shape = {"num_layers": 4, "num_heads": 4, "width": 128, "context": 64, "vocab_size": 65}
    spec = make_job(shape).spec
    embeddings, block, norms = (65 + 64) * 128, 12 * 128 * 128, (2 * 4 + 1) * 128
    assert count_parameters(spec) == embeddings + 4 * block + norms == 804_096


def test_a_fresh_gpt_knows_nothing(job: Any) -> None:
    model = build_model(job.spec)
    x_BT = torch.randint(job.spec.vocab_size, (4, 16), generator=torch.Generator().manual_seed(0))
    assert model(x_BT, x_BT.roll(-1, 1)).item() == pytest.approx(
        np.log(job.spec.vocab_size), abs=0.1
    )


def test_the_gpt_does_not_see_the_future(job: Any) -> None:
    model = build_model(job.spec)
    x_BT = torch.zeros(1, 16, dtype=torch.long)
    changed_BT = x_BT.clone()
    changed_BT[:, 9:] = 1
    for length, is_same in ((9, True), (10, False)):
        pair = [model.next_token_logits(ids_BT[:, :length]) for ids_BT in (x_BT, changed_BT)]
        assert torch.equal(*pair) is is_same


def test_initial_parameters_are_a_function_of_the_seed(job: Any) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (initial_parameters(job.spec, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_and_its_flat_vector_are_the_same_thing(job: Any) -> None:
    model = build_model(job.spec)
    theta_P = np.arange(job.num_parameters, dtype=np.float32)
    unflatten_(theta_P, model)
    assert np.array_equal(flatten(model), theta_P)
    with pytest.raises(ValueError, match="parameters"):
        unflatten_(theta_P[1:], model)


def test_parameters_and_gradients_of_a_flat_model_are_views_of_two_vectors(job: Any) -> None:
    flat = FlatModel(job.spec, job.num_parameters, CPU)
    flat.load_(job.initial_P)
    assert np.array_equal(flatten(flat.model), job.initial_P)
    x_BT = torch.zeros(2, 16, dtype=torch.long)
    flat.model(x_BT, x_BT).backward()
    gradients = [parameter.grad.flatten() for parameter in flat.model.parameters()]
    assert torch.equal(torch.cat(gradients), flat.grad_P)
    assert float(flat.grad_P.norm()) > 0


def test_a_model_larger_than_promised_is_refused_before_it_is_made(
    make_job: Callable[..., Any],
) -> None:
    spec = make_job().spec
    huge = type(spec)(**{**_fields(spec), "width": 1 << 16, "num_heads": 1})
    with pytest.raises(ConfigError, match="promises 1000 parameters"):
        FlatModel(huge, 1000, CPU)


def _fields(spec: Any) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in spec.__struct_fields__}


def test_the_encoder_learns_which_halves_belong_together(make_job: Callable[..., Any]) -> None:
    spec = make_job({"kind": "embedding"}, task="embedding").spec
    torch.manual_seed(0)
    model = build_model(spec)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    topics = torch.randint(spec.vocab_size, (64, 4))
    losses = []
    for _ in range(60):
        chosen = torch.randperm(64)[:8]
        x_BT = topics[chosen].repeat(1, 4).gather(1, torch.rand(8, 16).argsort(1))
        loss = model(x_BT, x_BT)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 1.0
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])


def test_embeddings_are_unit_vectors_of_the_size_asked_for(make_job: Callable[..., Any]) -> None:
    model = build_model(make_job({"kind": "embedding", "embedding_dim": 5}, task="embedding").spec)
    vectors_BE = model.embed(torch.zeros(3, 8, dtype=torch.long))  # type: ignore[operator]
    assert vectors_BE.shape == (3, 5)
    torch.testing.assert_close(vectors_BE.norm(dim=1), torch.ones(3))


def test_a_config_with_huge_buffers_is_refused_before_they_are_made(
    make_job: Callable[..., Any],
) -> None:
    pytest.importorskip("transformers")
    job = make_job({"kind": "transformers", "hf_config": GPT2})
    fields = _fields(job.spec)
    llama = {
        "model_type": "llama",
        "hidden_size": 1 << 22,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "num_hidden_layers": 0,
        "intermediate_size": 1,
        "head_dim": 1 << 32,
    }
    spec = type(job.spec)(**{**fields, "hf_config": llama})
    with pytest.raises(ConfigError, match="besides its parameters"):
        FlatModel(spec, count_parameters(spec), CPU)


def test_a_transformers_model_is_built_from_its_config(make_job: Callable[..., Any]) -> None:
    pytest.importorskip("transformers")
    job = make_job({"kind": "transformers", "hf_config": GPT2})
    flat = FlatModel(job.spec, job.num_parameters, CPU)
    flat.load_(job.initial_P)
    names = dict(flat.model.named_parameters())
    assert sum(name.endswith("wte.weight") for name in names) == 1
    assert not any("lm_head" in name for name in names), "tied weights count once"
    x_BT = torch.zeros(2, 16, dtype=torch.long)
    loss = flat.model(x_BT, x_BT)
    assert loss.item() == pytest.approx(np.log(job.spec.vocab_size), abs=0.3)
    assert flat.model.next_token_logits(x_BT).shape == (2, job.spec.vocab_size)


@pytest.mark.parametrize("hf_config", [GPT2, LLAMA], ids=["tied", "untied"])
def test_transformers_itself_reads_what_was_exported(
    make_job: Callable[..., Any], tmp_path: Path, hf_config: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    job = make_job({"kind": "transformers", "hf_config": hf_config})
    folder = tmp_path / "result"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(to_safetensors(layout_of(job.spec), job.initial_P))
    (folder / "config.json").write_bytes(to_config(job.spec))
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(told.values()), told
    ours = build_model(job.spec)
    unflatten_(job.initial_P, ours)
    x_BT = torch.arange(32).view(2, 16) % job.spec.vocab_size
    logits_BTV = theirs.eval()(input_ids=x_BT).logits
    torch.testing.assert_close(logits_BTV[:, -1], ours.eval().next_token_logits(x_BT))


@pytest.mark.parametrize("model", [{}, {"kind": "transformers", "hf_config": GPT2}])
def test_the_architecture_comes_back_from_its_file(
    make_job: Callable[..., Any], model: dict[str, Any]
) -> None:
    pytest.importorskip("transformers")
    spec = make_job(model).spec
    assert from_config(to_config(spec)) == spec
    with pytest.raises(ValueError, match="JSON"):
        from_config(b"not JSON")


@pytest.mark.parametrize(
    ("hf_config", "message"),
    [
        ({**GPT2, "n_positions": 8}, "positions for 8"),
        ({"model_type": "no-such-model"}, "cannot build"),
        ({**GPT2, "n_head": 7}, "cannot build"),
        ({"model_type": "vit"}, "cannot build"),
        ({**GPT2, "n_layer": 10**9}, "n_layer is 1000000000"),
    ],
)
def test_a_transformers_config_that_cannot_work_is_refused(
    make_job: Callable[..., Any], hf_config: dict[str, Any], message: str
) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match=message):
        make_job({"kind": "transformers", "hf_config": hf_config})
