"""How collective operations are made of transfers.

Every peer can reach every other, so a reduction takes two steps whatever the size of the group:
each part has an owner, who adds up what everybody sends it, in the order of ranks, and sends the
result, whose bits are therefore the same everywhere. A large tensor has many parts, which follow
each other without a barrier. Small tensors go to everybody at once, who all add up the same way.

N = values of a tensor, K = members of the group
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Final, NamedTuple

import torch

from zoonet.distributed.reduction import reduced
from zoonet.distributed.turn import Turn

SMALL_BYTES: Final = 16 * 1024  # of a tensor that is sent to everybody whole
PART_BYTES: Final = 2 * 1024 * 1024
MAX_PARTS_AT_ONCE: Final = 16


class Part(NamedTuple):
    """A range of values, and who adds it up."""

    number: int
    owner: int
    start: int
    stop: int


def parts_of(num_values: int, value_bytes: int, num_owners: int) -> list[Part]:
    """Cut a tensor: owners take turns, in parts that are as equal as whole values allow."""
    longest = max(1, PART_BYTES // value_bytes)
    rounds = max(1, -(-num_values // (longest * num_owners)))
    num_parts = rounds * num_owners
    bounds = [num_values * number // num_parts for number in range(num_parts + 1)]
    return [
        Part(number, number % num_owners, start, stop)
        for number, (start, stop) in enumerate(itertools.pairwise(bounds))
        if stop > start
    ]


async def in_turn(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run them in their order, a few at the same time.

    All members have the same ones first, so that none waits for what another has not begun.
    """
    gate = asyncio.Semaphore(MAX_PARTS_AT_ONCE)

    async def run(work: Coroutine[Any, Any, None]) -> None:
        async with gate:
            await work

    try:
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(run(work))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _reduced_here(
    turn: Turn, part: int, own_N: torch.Tensor, how: str, *, step: int = 0
) -> torch.Tensor:
    """Collect everybody's values for a part and return their reduction, in new memory."""
    terms = [own_N if rank == turn.rank else torch.empty_like(own_N) for rank in range(turn.size)]
    await turn.all([turn.receive(rank, step, part, terms[rank]) for rank in turn.others()])
    return reduced(terms, how)


async def all_reduce_(turn: Turn, values_N: torch.Tensor, how: str) -> None:
    """See `Group.all_reduce_`."""
    values_N = values_N.view(-1)
    if values_N.nbytes <= SMALL_BYTES or turn.size == 1:
        await _all_reduce_small_(turn, values_N, how)
        return

    async def reduce_part(part: Part) -> None:
        own_N = values_N[part.start : part.stop]
        if part.owner != turn.rank:
            sent = turn.send(part.owner, 0, part.number, own_N)
            # It cannot come before all of ours has left: it is made of it.
            result = turn.receive(part.owner, 1, part.number, own_N)
            await turn.all([sent, result])
            return
        own_N.copy_(await _reduced_here(turn, part.number, own_N, how))
        await turn.all([turn.send(rank, 1, part.number, own_N) for rank in turn.others()])

    parts = parts_of(values_N.numel(), values_N.element_size(), turn.size)
    await in_turn(map(reduce_part, parts))


async def _all_reduce_small_(turn: Turn, values_N: torch.Tensor, how: str) -> None:
    sent = [turn.send(rank, 0, 0, values_N) for rank in turn.others()]
    result_N = await _reduced_here(turn, 0, values_N, how)
    await turn.all(sent)
    values_N.copy_(result_N)


async def reduce_(turn: Turn, values_N: torch.Tensor, to: int, how: str) -> None:
    """See `Group.reduce_`. Parts are added up by all members and collected at one."""
    values_N = values_N.view(-1)

    async def reduce_part(part: Part) -> None:
        own_N = values_N[part.start : part.stop]
        transfers = []
        if part.owner != turn.rank:
            transfers.append(turn.send(part.owner, 0, part.number, own_N))
            if turn.rank == to:
                transfers.append(turn.receive(part.owner, 1, part.number, own_N))
        else:
            result_N = await _reduced_here(turn, part.number, own_N, how)
            if turn.rank == to:
                own_N.copy_(result_N)
            else:
                transfers.append(turn.send(to, 1, part.number, result_N))
        await turn.all(transfers)

    parts = parts_of(values_N.numel(), values_N.element_size(), turn.size)
    await in_turn(map(reduce_part, parts))


async def reduce_scatter(
    turn: Turn, output_N: torch.Tensor, inputs: Sequence[torch.Tensor], how: str
) -> None:
    """See `Group.reduce_scatter`."""
    output_N = output_N.view(-1)

    async def send_part(to: int, part: Part) -> None:
        values_N = inputs[to].view(-1)[part.start : part.stop]
        await turn.all([turn.send(to, 0, part.number, values_N)])

    async def reduce_part(part: Part) -> None:
        own_N = inputs[turn.rank].view(-1)[part.start : part.stop]
        output_N[part.start : part.stop] = await _reduced_here(turn, part.number, own_N, how)

    def works() -> Iterable[Coroutine[Any, Any, None]]:
        sizes = [values_N.numel() for values_N in inputs]
        cuts = [parts_of(size, output_N.element_size(), 1) for size in sizes]
        for number in range(max(map(len, cuts))):
            for rank, cut in enumerate(cuts):
                if number < len(cut):
                    part = cut[number]
                    is_own = rank == turn.rank
                    yield reduce_part(part) if is_own else send_part(rank, part)

    await in_turn(works())


async def broadcast_(turn: Turn, values_N: torch.Tensor, source: int) -> None:
    """See `Group.broadcast_`. Small ones down a binary tree, large ones along a chain.

    In the chain every member's uplink carries the tensor once, part after part.
    """
    values_N = values_N.view(-1)
    place = (turn.rank - source) % turn.size
    if values_N.nbytes <= PART_BYTES:
        parent, children = (place - 1) // 2, [2 * place + 1, 2 * place + 2]
    else:
        parent, children = place - 1, [place + 1]
    ranks = [(source + child) % turn.size for child in children if child < turn.size]

    async def pass_on(part: Part) -> None:
        own_N = values_N[part.start : part.stop]
        if place:
            above = (source + parent) % turn.size
            await turn.all([turn.receive(above, 0, part.number, own_N)])
        await turn.all([turn.send(rank, 0, part.number, own_N) for rank in ranks])

    await in_turn(map(pass_on, parts_of(values_N.numel(), values_N.element_size(), 1)))


async def all_to_all(
    turn: Turn, outputs: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
) -> None:
    """See `Group.all_to_all`."""
    transfers = [turn.receive(rank, 0, 0, outputs[rank]) for rank in turn.others()]
    transfers += [turn.send(rank, 0, 0, inputs[rank]) for rank in turn.others()]
    _copy(outputs[turn.rank], inputs[turn.rank])
    await turn.all(transfers)


async def gather(
    turn: Turn, outputs: Sequence[torch.Tensor], input_N: torch.Tensor, to: int
) -> None:
    """See `Group.gather`."""
    if turn.rank != to:
        await turn.all([turn.send(to, 0, 0, input_N)])
        return
    transfers = [turn.receive(rank, 0, 0, outputs[rank]) for rank in turn.others()]
    _copy(outputs[to], input_N)
    await turn.all(transfers)


async def scatter(
    turn: Turn, output_N: torch.Tensor, inputs: Sequence[torch.Tensor], source: int
) -> None:
    """See `Group.scatter`."""
    if turn.rank != source:
        await turn.all([turn.receive(source, 0, 0, output_N)])
        return
    transfers = [turn.send(rank, 0, 0, inputs[rank]) for rank in turn.others()]
    _copy(output_N, inputs[source])
    await turn.all(transfers)


def _copy(output_N: torch.Tensor, input_N: torch.Tensor) -> None:
    if output_N.data_ptr() != input_N.data_ptr():
        output_N.view(-1).copy_(input_N.view(-1))
