"""Prints a fingerprint of what this machine's codecs write: `python -m ...bit_identity`.

All peers must print the same 64 digits; a test compares CPU capabilities with it, and compiled
kernels with the same functions run by the interpreter.
"""

from __future__ import annotations

import hashlib

import numpy as np

from zoonet.codecs.feedback import encode_with_feedback
from zoonet.codecs.registry import NAMES, codec
from zoonet.exact import Vector

_NUM_VALUES = 3 * 4096 + 777  # the last block of every codec is short
_NUM_ROUNDS = 3


def fingerprint(num_values: int = _NUM_VALUES) -> str:
    """Return the digest, in hexadecimal, of payloads, sums and feedback of a few made-up rounds."""
    digest = hashlib.sha256()
    for name in NAMES:
        one = codec(name)
        out = memoryview(bytearray(one.max_bytes(num_values)))
        acc_N = np.zeros(num_values, np.float32)
        feedback_N = np.zeros(num_values, np.float32)
        for round_ in range(_NUM_ROUNDS):
            delta_N = made_up_values(num_values, round_)
            num_bytes = encode_with_feedback(one, delta_N, feedback_N, out, decay=0.95)
            one.accumulate(out[:num_bytes], np.float32(0.3), acc_N, is_first=round_ == 0)
            digest.update(out[:num_bytes])
        digest.update(acc_N.tobytes())
        digest.update(feedback_N.tobytes())
    return digest.hexdigest()


def made_up_values(num_values: int, stream: int) -> Vector:
    """fp32 values of many magnitudes, subnormal ones too, from integers alone."""
    words = np.arange(num_values, dtype=np.uint64) + np.uint64(stream << 32)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = (words >> np.uint64(32)).astype(np.uint32)
    blocks = np.arange(num_values, dtype=np.uint32) // np.uint32(1000)
    spread = (bits >> np.uint32(23)) % np.uint32(12)
    exponents = np.where(blocks % 5 == 4, spread, np.uint32(110) + spread)  # under 2.0 ** -5
    return ((bits & np.uint32(0x807FFFFF)) | (exponents.astype(np.uint32) << 23)).view(np.float32)


if __name__ == "__main__":
    print(fingerprint())
