"""A training loop of one's own, made collaborative.

::

    swarm = zoonet.Swarm.join(run="my-run", bootstrap=["/ip4/…/p2p/…"])
    model, optimizer = swarm.prepare(model, optimizer)
    for x, y in swarm.shard(dataset, batch_size=32):
        ...  # forward, backward, optimizer.step(), as ever
"""

from __future__ import annotations

import atexit
import functools
import math
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from torch import nn
from torch.optim import Optimizer

from zoonet.client.background import Background
from zoonet.client.loop.data import Batches, Collate, Dataset, Loader, SlotOrder, default_collate
from zoonet.client.loop.network import NetworkThread
from zoonet.client.loop.place import Place, place_in_swarm
from zoonet.client.loop.run import LoopRun
from zoonet.client.loop.spec import MAX_RUN_CHARS, RunSpec, SwarmConfig
from zoonet.client.loop.status import SwarmStatus
from zoonet.crypto import Identity
from zoonet.errors import ConfigError
from zoonet.ranges import count
from zoonet.training.own_loop import OwnLoop
from zoonet.training.vector import ModelVector

M = TypeVar("M", bound=nn.Module)


class Swarm:
    """This program's place among the peers of a run. Its methods belong to one thread."""

    def __init__(
        self, run: str, place: AbstractAsyncContextManager[Place], config: SwarmConfig, *, name: str
    ) -> None:
        """Enter by `place`; users call `join` instead."""
        if not 1 <= len(run) <= MAX_RUN_CHARS:
            raise ConfigError(f"a run's name has 1 to {MAX_RUN_CHARS} characters")
        self.run = run
        self.config = config
        self._name = name
        self._vector: ModelVector | None = None
        self._optimizers: tuple[Optimizer, ...] = ()
        self._hooks: list[Any] = []
        self._loop: OwnLoop | None = None
        self._spec: RunSpec | None = None
        self._part: LoopRun | None = None
        self._is_closed = False
        self._background = Background()
        self._network = NetworkThread(place)
        try:
            self._place = self._background.submit(self._network.enter()).result()
        except BaseException:
            self._background.close()
            raise
        # At the interpreter's end the daemon has to be told goodbye, too.
        _before_exit(functools.partial(_close, weakref.WeakMethod(self.close)))

    @classmethod
    def join(
        cls,
        run: str,
        bootstrap: Iterable[str] | str = (),
        *,
        config: SwarmConfig | None = None,
        key: Identity | Path | str | None = None,
        listen: Iterable[str] = (),
        name: str = "",
    ) -> Self:
        """Enter the swarm of any of these peers, to take part in the run of that name.

        `bootstrap`: multiaddrs, each with its /p2p/<id>. `key`: this peer's, or its key file; by
        default a new one. `listen`: where others reach this peer, by default on every interface.
        Blocks for seconds. Raises ConfigError for malformed addresses, PeerUnreachable where
        nobody answers.
        """
        entrances = (bootstrap,) if isinstance(bootstrap, str) else tuple(bootstrap)
        identity = _identity(key)
        place = place_in_swarm(identity, entrances, tuple(listen), name)
        return cls(run, place, config or SwarmConfig(), name=name)

    # --- the three lines ----------------------------------------------------------------------

    def prepare(self, model: M, *optimizers: Optimizer) -> Any:
        """Return model and optimizers, the same objects, whose steps count from now on.

        What the peers share are the parameters that require a gradient, in the order of their
        names. Frozen parameters and buffers stay local. Of several optimizers the last one's step
        ends a step. Raises ConfigError for what cannot be trained together.
        """
        if self._vector is not None:
            raise ConfigError("this swarm has a model already; a run has one")
        vector = ModelVector(model)
        if not optimizers:
            raise ConfigError("prepare(model, optimizer) needs the optimizer that will step")
        shared = {id(parameter) for parameter in vector.parameters}
        for optimizer in optimizers:
            groups = optimizer.param_groups
            if not any(id(each) in shared for group in groups for each in group["params"]):
                raise ConfigError(
                    f"{type(optimizer).__name__} holds no trainable parameter of the model"
                )
        self._vector, self._optimizers = vector, optimizers
        self._hooks.append(optimizers[-1].register_step_post_hook(self._stepped))
        return (model, *optimizers)

    def shard(
        self,
        dataset: Dataset,
        *,
        batch_size: int = 1,
        epochs: float = 1.0,
        steps: int = 0,
        collate_fn: Collate | None = None,
        num_workers: int = 0,
    ) -> Iterator[Any]:
        """Yield this peer's batches until the run is finished by all its peers together.

        `dataset`: anything with a length and items by index. `epochs`: how often all peers
        together go through it; `steps`, above 0, is their number of batches instead. `collate_fn`:
        from a list of items to a batch, as of a `DataLoader`. `num_workers`: threads that make
        batches ahead of time; the dataset must bear several of them. Each batch is one peer's
        alone; it counts once the optimizer has stepped. At the end the model holds the final
        parameters.

        Raises ConfigError where peers of the run differ in model or settings, and whatever ends
        this peer's part in it.
        """
        if self._vector is None:
            raise ConfigError("call prepare(model, optimizer) before shard(dataset)")
        spec = self._spec_of(len(dataset), batch_size, epochs, steps)
        if self._spec is not None and spec != self._spec:
            raise ConfigError(
                "a run has one dataset, batch size and length: shard differs from "
                "what it was called with before"
            )
        order = SlotOrder(spec.num_samples, spec.batch_size, self.config.seed)
        if num_workers < 0:
            raise ConfigError(f"num_workers is {num_workers}; it is 0 or more")
        batches = Batches(dataset, order, collate_fn or default_collate())
        return self._batches(spec, batches, num_workers)

    def _spec_of(self, num_samples: int, batch_size: int, epochs: float, steps: int) -> RunSpec:
        assert self._vector is not None
        if num_samples < 1 or batch_size < 1 or steps < 0 or (not steps and epochs <= 0):
            raise ConfigError(
                f"{num_samples} samples in batches of {batch_size} for {steps or epochs}: "
                "each must be above 0"
            )
        num_slots = steps or math.ceil(epochs * num_samples / batch_size)
        spec = RunSpec(
            run=self.run,
            num_slots=num_slots,
            batch_size=batch_size,
            num_samples=num_samples,
            config=self.config,
            layout=self._vector.layout,
        )
        spec.training()  # says what cannot work
        return spec

    def _batches(self, spec: RunSpec, batches: Batches, num_workers: int) -> Iterator[Any]:
        loop = self._begin(spec)
        loader = Loader(batches, num_workers)
        try:
            while (slot := loop.next_slot()) is not None:
                yield loader.take(slot, loop.upcoming)
        finally:
            loop.put_back()
            loader.close()

    def _stepped(self, *_: object) -> None:
        if self._loop is not None:
            self._loop.stepped()

    def _begin(self, spec: RunSpec) -> OwnLoop:
        """Start to take part, with the first batch that is asked for."""
        if self._is_closed:
            raise ConfigError("this swarm is closed; join again")
        if self._loop is not None:
            return self._loop
        assert self._vector is not None
        own_P = np.empty(self._vector.num_parameters, np.float32)
        self._vector.store(own_P)
        if not np.isfinite(own_P).all():
            raise ConfigError("the model has parameters that are infinite or NaN")
        loop = OwnLoop(self._vector, spec.batch_size, forget_moments=self._forget_moments)
        self._part = LoopRun(self._place, spec, loop, own_P, name=self._name)
        self._spec, self._loop = spec, loop
        self._network.watch(loop)
        self._background.submit(self._network.play(self._part)).result()
        return loop

    def _forget_moments(self) -> None:
        for optimizer in self._optimizers:
            optimizer.state.clear()

    # --- looking around -----------------------------------------------------------------------

    def status(self) -> SwarmStatus:
        """Where the run stands, as this peer knows it."""
        part = self._part
        chain = part.chain if part is not None else None
        me = self._place.identity.peer_id
        own = [
            share
            for certificate in (chain.certificates if chain is not None else ())
            for share in certificate.result.contributions
            if share.peer == me
        ]
        return SwarmStatus(
            run=self.run,
            phase=part.status.phase if part is not None else "joining",
            num_rounds=len(chain) if chain is not None else 0,
            num_peers=part.status.num_members if part is not None else 0,
            num_done=chain.num_done if chain is not None else 0,
            num_steps=self._spec.num_slots if self._spec is not None else 0,
            own_steps=sum(count(share.slots) for share in own),
            samples_per_s=part.status.tokens_per_s if part is not None else 0.0,
        )

    @contextmanager
    def outer(self) -> Iterator[None]:
        """Have the model hold the outer parameters, which all peers agree on, in the block.

        For evaluating and saving, between two steps: afterwards training goes on where it was.
        Raises ConfigError before the first batch.
        """
        if self._loop is None or self._part is None or self._vector is None:
            raise ConfigError("the run begins with the first batch; before, the model is your own")
        if self._loop.is_concluded:
            self._loop.poll_slot()  # the model may not hold the end yet
            yield
            return
        copying = self._background.submit(self._part.outer_parameters())
        outer_P = self._loop.wait_for(copying)
        kept_P = np.empty_like(outer_P)
        self._vector.store(kept_P)
        self._vector.load_(outer_P)
        try:
            yield
        finally:
            self._vector.load_(kept_P)

    # --- the end ------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave. Where the run goes on others do what was not certified. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        for hook in self._hooks:
            hook.remove()
        try:
            self._background.submit(self._network.leave()).result()
        finally:
            self._background.close()


def _identity(key: Identity | Path | str | None) -> Identity:
    if key is None:
        return Identity.generate()
    return key if isinstance(key, Identity) else Identity.load_or_create(Path(key))


def _before_exit(call: Callable[[], None]) -> None:
    """Have it called while threads can still be used, which `atexit` is too late for."""
    import concurrent.futures.thread  # noqa: F401  whose own end must come after ours

    register = getattr(threading, "_register_atexit", atexit.register)
    register(call)


def _close(method: weakref.WeakMethod[Callable[[], None]]) -> None:
    close = method()
    if close is not None:
        close()
