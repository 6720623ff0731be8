"""torch.compile is tried once, and done without where it cannot."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from zoonet.errors import OutOfDeviceMemory
from zoonet.training.compiler import compiled, try_out
from zoonet.training.gradient import BatchGradient
from zoonet.training.models import FlatModel
from zoonet.training.session import TrainingSession

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore")  # the compiler's own imports warn


@pytest.fixture(autouse=True)
def _unchanged_compiler() -> Iterator[None]:
    import torch._dynamo as dynamo
    import torch._inductor.config as inductor

    kept = {"compile_threads": 1, "fallback_random": True}
    with dynamo.config.patch(suppress_errors=False), inductor.patch(kept):
        yield
    dynamo.reset()


def gradient_of(job: Any, backend: Any) -> tuple[BatchGradient, Callable[[], Any], FlatModel]:
    flat = FlatModel(job.spec, job.num_parameters, CPU)
    flat.load_(job.initial_P)
    gradient = BatchGradient(flat.model, flat.grad_P, job.training)
    if backend is not None:
        gradient.loss_of = compiled(flat.model, backend)
    ids = np.random.default_rng(0).integers(0, job.spec.vocab_size, (2, 4, 16))
    return gradient, lambda: gradient.backward((ids[0], ids[1]), slot=3), flat


def test_a_compiled_step_gives_the_gradient_of_a_plain_one_with_the_same_dropout(
    make_job: Callable[..., Any],
) -> None:
    job = make_job({"dropout": 0.2})
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    _, plain, plain_flat = gradient_of(job, None)
    _, step, flat = gradient_of(job, backend)
    assert try_out(step) == ""
    torch.testing.assert_close(step(), plain())
    torch.testing.assert_close(flat.grad_P, plain_flat.grad_P)
    assert graphs, "it was the compiler that computed it"


@pytest.mark.parametrize("error", [OSError("no g++"), AssertionError(), RuntimeError("a\nb")])
def test_where_the_compiler_fails_one_line_says_so(job: Any, error: Exception) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        raise error

    _, step, _ = gradient_of(job, backend)
    reason = try_out(step)
    said = str(error).partition("\n")[0] or "AssertionError"
    assert reason == f"no torch.compile here, training goes on without it: {said}"


def test_a_lack_of_memory_is_no_fault_of_the_compiler() -> None:
    def step() -> None:
        raise OutOfDeviceMemory("too little for 1 sample")

    with pytest.raises(OutOfDeviceMemory):
        try_out(step)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_peer_that_compiles_trains_what_others_train(make_job: Callable[..., Any]) -> None:
    job = make_job({"num_layers": 1})
    thetas = []
    for is_compiled in (False, True):
        theta_P, inner_N = job.initial_P.copy(), np.empty(2 * job.num_parameters + 1, np.float32)
        start = msgspec.structs.replace(job.start, is_compiled=is_compiled)
        with TrainingSession(start) as session:
            assert session.warning == ""
            session.begin(theta_P, None)
            for slot in range(3):
                session.step(slot, 0.1)
            session.finish_round(theta_P, inner_N)
        thetas.append(theta_P)
    assert not np.array_equal(thetas[0], job.initial_P)
    np.testing.assert_allclose(*thetas, atol=1e-4)


@pytest.mark.slow
def test_without_a_compiler_the_session_goes_on_and_says_why(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("/nowhere/g++",))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    with TrainingSession(msgspec.structs.replace(job.start, is_compiled=True)) as session:
        assert "training goes on without it" in session.warning
        session.begin(job.initial_P, None)
        session.step(0, 0.1)
        assert session.take_loss() > 1.0
