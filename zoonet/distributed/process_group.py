"""A torch.distributed.ProcessGroup over a group of peers.

PyTorch calls these methods by name, from Python and from C++; their names and arguments are its
own. Each stages its tensors in the caller's thread, runs on the world's loop, and returns at once.
"""

# The stubs describe overloads for callers; those who override are called in one way only.
# mypy: disable-error-code="override, assignment, call-arg"

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import Future
from datetime import timedelta
from typing import Any, Final, Protocol

import torch
import torch.distributed as dist

from zoonet.distributed.group import Group
from zoonet.distributed.memory import Staged
from zoonet.distributed.work import PendingWork
from zoonet.errors import ConfigError

Tensors = Sequence[torch.Tensor]

_HOW: Final = {
    dist.ReduceOp.SUM: "sum",
    dist.ReduceOp.AVG: "avg",
    dist.ReduceOp.PRODUCT: "product",
    dist.ReduceOp.MIN: "min",
    dist.ReduceOp.MAX: "max",
    dist.ReduceOp.BAND: "band",
    dist.ReduceOp.BOR: "bor",
    dist.ReduceOp.BXOR: "bxor",
}


class Submit(Protocol):
    """Starts a coroutine on the loop that the group lives on; any thread may call it."""

    def __call__(self, work: Coroutine[Any, Any, int], /) -> Future[int]: ...


class PeerProcessGroup(dist.ProcessGroup):
    """The backend "zoonet". Operations of one group start in the order of their calls."""

    def __init__(self, group: Group, submit: Submit) -> None:
        super().__init__(group.rank, group.size)
        self._group = group
        self._submit = submit
        self._name = group.name
        self._description = ""

    def getBackendName(self) -> str:
        return "zoonet"

    # PyTorch keeps these with a group's C++ backends, of which there are none here.

    def setGroupName(self, name: str) -> None:
        self._name = name

    def getGroupName(self) -> str:
        return self._name

    def setGroupDesc(self, description: str) -> None:
        self._description = description

    def getGroupDesc(self) -> str:
        return self._description

    def _run(
        self,
        what: str,
        outputs: Sequence[Staged],
        operation: Callable[[], Awaitable[object]],
        results: Tensors = (),
    ) -> PendingWork:
        async def run() -> int:
            source = await operation()
            for staged in outputs:
                staged.write_back()
            return source if isinstance(source, int) else -1

        return PendingWork(self._submit(run()), what, results)

    def broadcast(self, tensors: Tensors, opts: Any) -> PendingWork:
        staged = Staged(only(tensors), reads=opts.rootRank == self._group.rank)
        return self._run(
            "broadcast",
            [staged],
            lambda: self._group.broadcast_(staged.values_N, opts.rootRank),
            tensors,
        )

    def allreduce(self, tensors: Tensors, opts: Any) -> PendingWork:
        return self.allreduce_coalesced([only(tensors)], opts)

    def allreduce_coalesced(self, tensors: Tensors, opts: Any) -> PendingWork:
        how = how_of(opts.reduceOp)
        staged = [Staged(tensor) for tensor in tensors]

        async def reduce_all() -> None:
            for each in staged:
                await self._group.all_reduce_(each.values_N, how)

        return self._run("all_reduce", staged, reduce_all, tensors)

    def reduce(self, tensors: Tensors, opts: Any) -> PendingWork:
        staged, how = Staged(only(tensors)), how_of(opts.reduceOp)
        outputs = [staged] if opts.rootRank == self._group.rank else []
        return self._run(
            "reduce",
            outputs,
            lambda: self._group.reduce_(staged.values_N, opts.rootRank, how),
            tensors,
        )

    def allgather(
        self, output_lists: Sequence[Tensors], inputs: Tensors, opts: Any = None
    ) -> PendingWork:
        return self.allgather_coalesced(
            [[tensor] for tensor in only(output_lists)], [only(inputs)], opts
        )

    def allgather_coalesced(
        self, output_lists: Sequence[Tensors], inputs: Tensors, opts: Any = None
    ) -> PendingWork:
        """`output_lists[r][i]` becomes input i of rank r."""
        sources = [Staged(tensor) for tensor in inputs]
        outputs = [[Staged(tensor, reads=False) for tensor in row] for row in output_lists]

        async def gather_all() -> None:
            for number, source in enumerate(sources):
                column = [row[number].values_N for row in outputs]
                await self._group.all_gather(column, source.values_N)

        every = [staged for row in outputs for staged in row]
        results = [tensor for row in output_lists for tensor in row]
        return self._run("all_gather", every, gather_all, results)

    def all_gather_single(
        self, output: torch.Tensor, input: torch.Tensor, opts: Any = None
    ) -> PendingWork:
        return self.all_gather_single_coalesced([output], [input], opts)

    def all_gather_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any = None
    ) -> PendingWork:
        sources = [Staged(tensor) for tensor in inputs]
        targets = [Staged(tensor, reads=False) for tensor in outputs]

        async def gather_all() -> None:
            for source, target in zip(sources, targets, strict=True):
                rows = even_rows(target.values_N, self._group.size)
                await self._group.all_gather(rows, source.values_N)

        return self._run("all_gather", targets, gather_all, outputs)

    def reduce_scatter(
        self, outputs: Tensors, input_lists: Sequence[Tensors], opts: Any
    ) -> PendingWork:
        how, output = how_of(opts.reduceOp), Staged(only(outputs), reads=False)
        inputs = [Staged(tensor).values_N for tensor in only(input_lists)]
        return self._run(
            "reduce_scatter",
            [output],
            lambda: self._group.reduce_scatter(output.values_N, inputs, how),
            outputs,
        )

    def reduce_scatter_single(
        self, output: torch.Tensor, input: torch.Tensor, opts: Any
    ) -> PendingWork:
        return self.reduce_scatter_single_coalesced([output], [input], opts)

    def reduce_scatter_single_coalesced(
        self, outputs: Tensors, inputs: Tensors, opts: Any
    ) -> PendingWork:
        how = how_of(opts.reduceOp)
        sources = [Staged(tensor) for tensor in inputs]
        targets = [Staged(tensor, reads=False) for tensor in outputs]

        async def reduce_all() -> None:
            for source, target in zip(sources, targets, strict=True):
                rows = even_rows(source.values_N, self._group.size)
                await self._group.reduce_scatter(target.values_N, rows, how)

        return self._run("reduce_scatter", targets, reduce_all, outputs)

    def alltoall(self, outputs: Tensors, inputs: Tensors, opts: Any = None) -> PendingWork:
        targets = [Staged(tensor, reads=False) for tensor in outputs]
        sources = [Staged(tensor) for tensor in inputs]
        return self._run(
            "all_to_all",
            targets,
            lambda: self._group.all_to_all(
                [target.values_N for target in targets], [source.values_N for source in sources]
            ),
            outputs,
        )

    def all_to_all_single(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_sizes: Sequence[int],
        input_sizes: Sequence[int],
        opts: Any = None,
    ) -> PendingWork:
        target, source = Staged(output, reads=False), Staged(input)
        outputs = split_rows(target.values_N, output, output_sizes, self._group.size)
        inputs = split_rows(source.values_N, input, input_sizes, self._group.size)
        return self._run(
            "all_to_all", [target], lambda: self._group.all_to_all(outputs, inputs), [output]
        )

    def gather(self, output_lists: Sequence[Tensors], inputs: Tensors, opts: Any) -> PendingWork:
        is_root = opts.rootRank == self._group.rank
        results = list(only(output_lists)) if is_root else []
        outputs = [Staged(tensor, reads=False) for tensor in results]
        source = Staged(only(inputs))
        return self._run(
            "gather",
            outputs,
            lambda: self._group.gather(
                [staged.values_N for staged in outputs], source.values_N, opts.rootRank
            ),
            results,
        )

    def scatter(self, outputs: Tensors, input_lists: Sequence[Tensors], opts: Any) -> PendingWork:
        is_root = opts.rootRank == self._group.rank
        inputs = [Staged(tensor).values_N for tensor in only(input_lists)] if is_root else []
        output = Staged(only(outputs), reads=False)
        return self._run(
            "scatter",
            [output],
            lambda: self._group.scatter(output.values_N, inputs, opts.rootRank),
            outputs,
        )

    def barrier(self, opts: Any = None) -> PendingWork:
        return self._run("barrier", [], self._group.barrier)

    def send(self, tensors: Tensors, to: int, tag: int = 0) -> PendingWork:
        tensor = only(tensors)
        values = Staged(tensor).values_N.view(tensor.shape)
        return self._run(f"send to rank {to}", [], lambda: self._group.send(values, to, tag))

    def recv(self, tensors: Tensors, source: int, tag: int = 0) -> PendingWork:
        staged = Staged(only(tensors), reads=False)
        values = staged.values_N.view(tensors[0].shape)
        return self._run(
            f"recv from rank {source}",
            [staged],
            lambda: self._group.receive(values, source, tag),
            tensors,
        )

    def recv_anysource(self, tensors: Tensors, tag: int = 0) -> PendingWork:
        staged = Staged(only(tensors), reads=False)
        values = staged.values_N.view(tensors[0].shape)
        return self._run(
            "recv from any rank", [staged], lambda: self._group.receive_any(values, tag), tensors
        )

    def set_timeout(self, timeout: timedelta) -> None:
        """For every operation from now on."""
        self._group.timeout_s = timeout.total_seconds()

    def shutdown(self) -> None:
        """Leave the group in good order."""

        async def close() -> int:
            self._group.close()
            return 0

        self._submit(close()).result()

    def abort(self) -> None:
        self.shutdown()

    # The same under names of PyTorch before 2.13.
    _allgather_base = all_gather_single
    _reduce_scatter_base = reduce_scatter_single
    alltoall_base = all_to_all_single
    allgather_into_tensor_coalesced = all_gather_single_coalesced
    reduce_scatter_tensor_coalesced = reduce_scatter_single_coalesced


def only(items: Sequence[Any]) -> Any:
    """The one item: PyTorch's lists are for several devices of one process, which is history."""
    if len(items) != 1:
        raise ConfigError(f"one tensor a process and call, not {len(items)}")
    return items[0]


def how_of(reduce_op: Any) -> str:
    """The name of a reduction. Raises ConfigError for one that does not exist here."""
    how = _HOW.get(getattr(reduce_op, "op", reduce_op))
    if how is None:
        raise ConfigError(f"{reduce_op} is not done here; there are {', '.join(_HOW.values())}")
    return how


def even_rows(values_N: torch.Tensor, num_rows: int) -> list[torch.Tensor]:
    """Equal parts, one a member. Raises ConfigError where they would not be equal."""
    if values_N.numel() % num_rows:
        raise ConfigError(f"{values_N.numel()} values cannot be shared by {num_rows} ranks equally")
    return list(values_N.view(num_rows, -1).unbind())


def split_rows(
    values_N: torch.Tensor, tensor: torch.Tensor, sizes: Sequence[int], num_rows: int
) -> list[torch.Tensor]:
    """Parts of a tensor along its first dimension, of those sizes; equal ones where not given."""
    if not sizes:
        return even_rows(values_N, num_rows)
    num_first = tensor.shape[0] if tensor.dim() else 0
    if sum(sizes) != num_first or len(sizes) != num_rows or min(sizes) < 0:
        raise ConfigError(f"sizes {list(sizes)} do not divide {num_first} rows by {num_rows} ranks")
    row = values_N.numel() // num_first if num_first else 0
    return list(torch.split(values_N, [size * row for size in sizes]))
