"""Prints a fingerprint of this machine's means and outer steps: `python -m ...bit_identity`.

All peers must print the same 64 digits; a test compares CPU capabilities with it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zoonet.exact import weighted_mean
from zoonet.training.outer import outer_step
from zoonet.training.state import state_digest

_NUM_PARAMETERS = 300_001  # not a multiple of any vector width
_NUM_ROUNDS = 4
_WEIGHTS = (4800, 4608, 192, 7200)


def fingerprint() -> str:
    """Return the digest, in hexadecimal, of the state after a few rounds on made-up parts."""
    theta_P = _numbers(0)
    momentum_P = np.zeros_like(theta_P)
    for round_ in range(_NUM_ROUNDS):
        parts = [_numbers(1 + round_ * len(_WEIGHTS) + peer) for peer in range(len(_WEIGHTS))]
        mean_P = weighted_mean(parts, _WEIGHTS)
        outer_step(theta_P, momentum_P, mean_P, lr=0.7, momentum=0.9, out=(theta_P, momentum_P))
    return state_digest(theta_P, momentum_P).hex()


def _numbers(stream: int) -> NDArray[np.float32]:
    """Made-up fp32 values of many magnitudes, subnormal ones too, from integers alone."""
    words = np.arange(_NUM_PARAMETERS, dtype=np.uint64) + np.uint64(stream << 32)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = (words >> np.uint64(32)).astype(np.uint32)
    exponents = (bits >> 23) % np.uint32(130)  # below 2.0 ** 3, so that nothing overflows
    return ((bits & np.uint32(0x807FFFFF)) | (exponents << 23)).view(np.float32)


if __name__ == "__main__":
    print(fingerprint())
