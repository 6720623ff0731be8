"""Work, as PyTorch waits for it, and tensors that are not where lanes can read them."""

from __future__ import annotations

from concurrent.futures import Future
from datetime import timedelta

import pytest
import torch

from zoonet.distributed.memory import Staged, bytes_of, dtype_number
from zoonet.distributed.reduction import reduced
from zoonet.distributed.work import PendingWork
from zoonet.errors import ConfigError, GroupFailed, PeerTimeout

torch.set_num_threads(1)


def test_work_is_done_when_its_operation_is() -> None:
    running: Future[int] = Future()
    output = torch.ones(3)
    work = PendingWork(running, "recv from rank 7", [output])
    future = work.get_future()
    assert not work.is_completed()
    assert not work.is_success()
    assert not future.done()
    with pytest.raises(PeerTimeout, match=r"recv from rank 7 is not done after 0\.0 s"):
        work.wait(timedelta(milliseconds=1))
    running.set_result(7)
    assert work.wait(timedelta(seconds=1))
    work.synchronize()
    work.block_current_stream()
    assert work.is_completed()
    assert work.is_success()
    assert work.exception() is None
    assert work.source_rank() == work._source_rank() == 7
    assert work.result()[0] is output
    assert future.wait()[0] is output


def test_work_fails_with_what_its_operation_failed_with() -> None:
    running: Future[int] = Future()
    work = PendingWork(running, "barrier")
    chained = work.get_future().then(lambda future: future.value())
    running.set_exception(GroupFailed("rank 2 is lost", missing=frozenset({"two"})))
    with pytest.raises(GroupFailed, match="rank 2 is lost") as caught:
        work.wait()
    assert caught.value.missing == {"two"}
    assert work.is_completed()
    assert not work.is_success()
    assert work.exception() is caught.value
    with pytest.raises(RuntimeError, match="rank 2 is lost"):
        chained.wait()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
def test_a_contiguous_tensor_is_its_own_memory_and_another_one_a_copy(dtype: torch.dtype) -> None:
    whole = torch.zeros(4, 6, dtype=dtype, requires_grad=dtype.is_floating_point)
    near = Staged(whole)
    assert near.values_N.data_ptr() == whole.data_ptr()
    assert len(bytes_of(near.values_N)) == whole.nbytes
    far = Staged(whole.detach().t())
    bytes_of(far.values_N)[:] = bytes_of(torch.ones(24, dtype=dtype))
    assert not whole.any()
    far.write_back()
    assert torch.equal(whole.detach(), torch.ones(4, 6, dtype=dtype))


def test_a_dtype_that_does_not_travel_is_named() -> None:
    with pytest.raises(ConfigError, match=r"torch\.float8_e5m2 cannot be sent; convert to one of"):
        dtype_number(torch.float8_e5m2)


def test_halves_are_accumulated_in_fp32_and_rounded_once() -> None:
    terms = [torch.tensor([2048.0]).half(), *(torch.tensor([0.5]).half() for _ in range(4))]
    assert reduced(terms, "sum").item() == 2050.0
    assert sum(terms).item() == 2048.0  # type: ignore[union-attr]
    assert terms[0].item() == 2048.0  # as it was
