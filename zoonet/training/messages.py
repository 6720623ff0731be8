"""What node and trainer say to each other: commands one way, events the other.

One frame is four bytes of length (little-endian) and a MessagePack map with its `type`. Tensors
do not travel here, they lie in `SharedBuffers`.
"""

from __future__ import annotations

import struct
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from zoonet.ranges import Ranges

MAX_MESSAGE_BYTES: Final = 1 << 20
HEADER_BYTES: Final = 4

FailureKind = Literal["non-finite", "unreadable", "out-of-memory", "config", "training"]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of commands and events."""


class Start(Message, frozen=True, kw_only=True, tag="start"):
    """Load the job. Answered by Ready or Failed. Sent once, first."""

    prepared: bytes  # of zoonet.config.encode
    train_path: str  # token files
    heldout_path: str
    tokenizer_path: str
    device: str = "auto"  # "auto", "cpu", "cuda:1", "mps", or one a rank: "cuda:0,cuda:1"
    micro_batch_size: Annotated[int, Meta(ge=0)] = 0  # samples at a time; 0: the batch, if it fits
    num_threads: int = 1  # of CPU arithmetic
    gpu_share: Annotated[float, Meta(gt=0, le=1)] = 1.0  # of the GPU's memory
    is_compiled: bool = False  # train through torch.compile, where there is a compiler


class Train(Message, frozen=True, kw_only=True, tag="train"):
    """Take one inner step on each slot, in order. Answered by Trained or Failed.

    The answer comes once `steps` slots of local work are trained, `num_carried` of which were told
    of before; then `local_P` holds theta_local and `inner_N` the inner optimizer's state. The
    trainer goes on with the other slots by itself until it is told otherwise; the answer to the
    next Train tells of them.
    """

    round: int
    slots: Ranges  # not those that were told of before
    steps: int
    num_carried: int
    tokens_done: int  # of the job, certified before this round
    tokens_planned: int  # of this round, by all its members: the learning rate moves on by them
    is_fresh: bool  # start from `global_P`, and from nothing trained before
    has_inner_state: bool  # whether `inner_N` holds a state to go on with, where that is fresh
    takes_local: bool = False  # else first go over to `local_P`, what a site has come to
    drift: float = 1.0  # share of the outer momentum to be spread by the last of `steps`


class Merge(Message, frozen=True, kw_only=True, tag="merge"):
    """A round is certified: add `local_P` to the parameters. Answered by Merged or Failed.

    `is_merged` tells whether the round holds the work of the last answer: where nothing was
    trained since, the parameters become `global_P`, to the bit.
    """

    is_merged: bool


class Stop(Message, frozen=True, kw_only=True, tag="stop"):
    """End the command under way after its current step. Ignored while there is none."""

    is_discarded: bool = False  # leave the buffers as they are: the answer is not wanted


class Evaluate(Message, frozen=True, kw_only=True, tag="evaluate"):
    """Measure `global_P` on held-out windows. Answered by Evaluated or Failed."""

    max_tokens: int = 0  # 0: all of them


class Sample(Message, frozen=True, kw_only=True, tag="sample"):
    """Continue a text with `global_P`. Answered by Sampled or Failed."""

    prompt: str
    num_tokens: int
    temperature: float = 0.8  # 0: always the likeliest token
    seed: int = 0


class Ready(Message, frozen=True, kw_only=True, tag="ready"):
    """The trainer holds the model on its device."""

    device: str
    num_parameters: int
    layout: tuple[tuple[str, tuple[int, ...]], ...]  # names and shapes within the flat vector
    warning: str = ""  # for the peer's owner


class StepDone(Message, frozen=True, kw_only=True, tag="step"):
    """Some steps of a round are done; about four a second."""

    steps: int
    of: int
    loss: float  # mean over the steps since the last report
    tokens_per_s: float


class Trained(Message, frozen=True, kw_only=True, tag="trained"):
    """The answer to Train: which slots were trained since the last answer."""

    round: int
    slots: Ranges
    loss: float  # mean over the steps; 0 where there were none
    tokens: int
    seconds: float  # that these steps took
    idle_s: float = 0.0  # since the last answer, without anything to train


class Merged(Message, frozen=True, kw_only=True, tag="merged"):
    """The answer to Merge."""


class Evaluated(Message, frozen=True, kw_only=True, tag="evaluated"):
    """The answer to Evaluate: mean loss in nats over so many tokens."""

    loss: float
    tokens: int


class Sampled(Message, frozen=True, kw_only=True, tag="sampled"):
    """The answer to Sample: prompt and continuation."""

    text: str


class Failed(Message, frozen=True, kw_only=True, tag="failed"):
    """The answer to any command that could not be done; the trainer waits for the next one."""

    kind: FailureKind
    message: str
    slots: Ranges = ()  # data slots that it failed on, where these are known


Command = Start | Train | Merge | Stop | Evaluate | Sample
Answer = Ready | Trained | Merged | Evaluated | Sampled | Failed
Event = Answer | StepDone

_ENCODER = msgspec.msgpack.Encoder()
_COMMANDS = msgspec.msgpack.Decoder(Command)
_EVENTS = msgspec.msgpack.Decoder(Event)
_HEADER = struct.Struct("<I")


def encode(message: Command | Event) -> bytes:
    """Return the frame of a message."""
    payload = _ENCODER.encode(message)
    if len(payload) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(payload)} bytes, at most {MAX_MESSAGE_BYTES}")
    return _HEADER.pack(len(payload)) + payload


def payload_size(header: bytes) -> int:
    """Return the number of bytes after the header. Raises ValueError for too many."""
    size: int = _HEADER.unpack(header)[0]
    if size > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {size} bytes, at most {MAX_MESSAGE_BYTES}")
    return size


def decode_command(payload: bytes) -> Command:
    """Read what the node says. Raises ValueError."""
    command: Command = _COMMANDS.decode(payload)
    return command


def decode_event(payload: bytes) -> Event:
    """Read what the trainer says. Raises ValueError."""
    event: Event = _EVENTS.decode(payload)
    return event
