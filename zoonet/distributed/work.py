"""An operation under way, as PyTorch knows it."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from zoonet.errors import PeerTimeout


class PendingWork(dist.Work):
    """A `torch.distributed.Work`: done when its operation is, or failed with what that raised.

    `wait` raises GroupFailed where Python waits; PyTorch's own C++ code, such as that of DDP, turns
    it into a RuntimeError with the same text.
    """

    def __init__(
        self,
        running: concurrent.futures.Future[int],
        what: str,
        outputs: Sequence[torch.Tensor] = (),
    ) -> None:
        super().__init__()
        self._running = running
        self._what = what
        self._outputs = list(outputs)
        ended: torch.futures.Future[Any] = torch.futures.Future()
        # An exception must come out of a callback for C++ to see a failure, not a value.
        self._future: torch.futures.Future[Any] = ended.then(self._outcome)
        running.add_done_callback(lambda _: ended.set_result(None))

    def _outcome(self, _: object) -> list[torch.Tensor]:
        self._running.result()
        return self._outputs

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Block until done. Raises what the operation failed with, PeerTimeout after `timeout`.

        A wait that timed out has changed nothing: the operation goes on.
        """
        timeout_s = timeout.total_seconds()
        try:
            self._running.result(timeout_s if timeout_s > 0 else None)
        except concurrent.futures.TimeoutError as error:
            raise PeerTimeout(f"{self._what} is not done after {timeout_s:.1f} s") from error
        return True

    def synchronize(self) -> None:
        """Results are in place once the operation is done: nothing is left to wait for."""
        self.wait()

    def block_current_stream(self) -> None:
        """As `wait`: there is no stream of ours to wait for instead."""
        self.wait()

    def is_completed(self) -> bool:
        return self._running.done()

    def is_success(self) -> bool:
        return self._running.done() and self.exception() is None

    def exception(self) -> BaseException | None:
        return self._running.exception() if self._running.done() else None

    def get_future(self) -> torch.futures.Future[Any]:
        return self._future

    def result(self) -> list[torch.Tensor]:
        return self._outputs

    def source_rank(self) -> int:
        """For a receive from anyone: who it was. Waits for it."""
        return self._running.result()

    def _source_rank(self) -> int:
        return self.source_rank()
