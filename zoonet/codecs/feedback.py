"""Error feedback: what a codec left out is sent later (Seide et al. 2014; arXiv 2508.15706).

N = values of a chunk
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zoonet.codecs.base import Buffer, Codec, require_chunk
from zoonet.exact import Vector, require_vector

_MINUS_ONE: Final = np.float32(-1)


def encode_with_feedback(
    codec: Codec, delta_N: Vector, feedback_N: Vector, out: memoryview, *, decay: float = 1.0
) -> int:
    """Encode delta + feedback; keep in `feedback_N` what that lost. Return the payload's length.

    sent = Q(delta + feedback), feedback = decay * (delta + feedback - sent): separate fp32
    operations, so whoever knows delta and the feedback before knows the feedback after, to the bit.
    `feedback_N` (zeros at first) is all the state there is. Raises ValueError as `Codec.encode`
    does; the feedback is then as it was.
    """
    require_chunk(delta_N)
    require_chunk(feedback_N, is_output=True)
    require_vector(feedback_N, delta_N.size)
    if not 0 <= decay <= 1:
        raise ValueError(f"a decay of {decay}")
    wanted_N = np.add(delta_N, feedback_N)
    num_bytes = codec.encode(wanted_N, out)
    _leave_out(codec, out[:num_bytes], wanted_N, feedback_N, decay)
    return num_bytes


def encode_into_feedback(codec: Codec, delta_N: Vector, feedback_N: Vector, out: memoryview) -> int:
    """`encode_with_feedback` without memory of its own: after a ValueError the feedback is lost."""
    require_chunk(delta_N)
    require_chunk(feedback_N, is_output=True)
    np.add(delta_N, feedback_N, out=feedback_N)
    num_bytes = codec.encode(feedback_N, out)
    codec.accumulate(out[:num_bytes], _MINUS_ONE, feedback_N, is_first=False)
    return num_bytes


def note_sent(
    codec: Codec, payload: Buffer, delta_N: Vector, feedback_N: Vector, *, decay: float = 1.0
) -> None:
    """Make the feedback before into that after, where delta + feedback was sent as `payload`.

    The bits are those that `encode_with_feedback` would have left. Raises ValueError for a
    malformed payload; the feedback is then as it was.
    """
    require_chunk(delta_N)
    require_chunk(feedback_N, is_output=True)
    _leave_out(codec, payload, np.add(delta_N, feedback_N), feedback_N, decay)


def _leave_out(
    codec: Codec, payload: Buffer, wanted_N: Vector, feedback_N: Vector, decay: float
) -> None:
    # Adding -1 * x is to subtract x, to the bit, and touches only what was sent.
    codec.accumulate(payload, _MINUS_ONE, wanted_N, is_first=False)
    np.multiply(wanted_N, np.float32(decay), out=feedback_N)
