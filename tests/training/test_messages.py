from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoonet.training import messages
from zoonet.training.messages import HEADER_BYTES, Command, Event

COMMANDS = (
    messages.Start(prepared=b"{}", train_path="t", heldout_path="h", tokenizer_path="k"),
    messages.Train(
        round=7,
        slots=((0, 25), (50, 51)),
        steps=26,
        num_carried=3,
        tokens_done=9,
        tokens_planned=8,
        is_fresh=False,
        has_inner_state=True,
    ),
    messages.Merge(is_merged=True),
    messages.Stop(is_discarded=True),
    messages.Evaluate(max_tokens=16384),
    messages.Sample(prompt="é", num_tokens=5, temperature=0.5, seed=2),
)
EVENTS = (
    messages.Ready(device="cuda:1", num_parameters=6, layout=(("head", (2, 3)),)),
    messages.StepDone(steps=3, of=25, loss=4.17, tokens_per_s=9000.0),
    messages.Trained(round=7, slots=((0, 25),), loss=1.5, tokens=4800, seconds=0.7),
    messages.Merged(),
    messages.Evaluated(loss=1.9, tokens=111_488),
    messages.Sampled(text="To be"),
    messages.Failed(kind="non-finite", message="the loss became nan"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_a_command_arrives_as_it_was_sent(command: Command) -> None:
    frame = messages.encode(command)
    assert messages.payload_size(frame[:HEADER_BYTES]) == len(frame) - HEADER_BYTES
    assert messages.decode_command(frame[HEADER_BYTES:]) == command


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_arrives_as_it_was_sent(event: Event) -> None:
    assert messages.decode_event(messages.encode(event)[HEADER_BYTES:]) == event


def test_every_message_is_tried() -> None:
    assert {type(message) for message in COMMANDS} == set(get_args(Command))
    assert {type(message) for message in EVENTS} == set(get_args(Event))


def test_an_oversized_message_is_refused_on_both_sides() -> None:
    with pytest.raises(ValueError, match="at most"):
        messages.encode(messages.Sampled(text="x" * (1 << 20)))
    with pytest.raises(ValueError, match="at most"):
        messages.payload_size(b"\xff\xff\xff\x7f")


@given(payload=st.binary(max_size=100))
def test_anything_else_is_a_value_error(payload: bytes) -> None:
    for decode in (messages.decode_command, messages.decode_event):
        with pytest.raises(ValueError):
            decode(payload)
