"""Error feedback: what a codec left out is sent later (Seide et al. 2014; arXiv 2508.15706).

N = values of a chunk
"""

from __future__ import annotations

from typing import Final

import numpy as np

from zoonet.codecs.base import Codec, require_chunk
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
    # Adding -1 * x is to subtract x, to the bit, and touches only what was sent.
    codec.accumulate(out[:num_bytes], _MINUS_ONE, wanted_N, is_first=False)
    np.multiply(wanted_N, np.float32(decay), out=feedback_N)
    return num_bytes
