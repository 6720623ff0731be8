"""The outer step, bit-identical on every CPU (see `zoonet.exact`).

P = flat parameters
"""

from __future__ import annotations

import numpy as np

from zoonet.exact import BLOCK, Vector, require_exact_arithmetic, require_vector


def outer_step(
    theta_P: Vector,
    momentum_P: Vector,
    pseudo_gradient_P: Vector,
    *,
    lr: float,
    momentum: float,
    out: tuple[Vector, Vector] | None = None,
) -> tuple[Vector, Vector]:
    """Take one Nesterov step on CPU: return (theta_new_P, momentum_new_P).

    As `torch.optim.SGD(nesterov=True)` (DiLoCo, arXiv 2311.08105). The pseudo-gradient is
    theta_global - theta_local. `out` may be the inputs themselves.
    """
    theta_out_P, momentum_out_P = out or (np.empty_like(theta_P), np.empty_like(momentum_P))
    for vector_P in (theta_P, momentum_P, pseudo_gradient_P, theta_out_P, momentum_out_P):
        require_vector(vector_P, theta_P.size)
    require_exact_arithmetic()
    lr_, momentum_ = np.float32(lr), np.float32(momentum)
    scratch = np.empty(min(BLOCK, theta_P.size), np.float32)
    for start in range(0, theta_P.size, BLOCK):
        block = slice(start, start + BLOCK)
        gradient, velocity = pseudo_gradient_P[block], momentum_out_P[block]
        step = scratch[: gradient.size]
        np.multiply(momentum_P[block], momentum_, out=velocity)
        np.add(velocity, gradient, out=velocity)
        np.multiply(velocity, momentum_, out=step)
        np.add(step, gradient, out=step)
        np.multiply(step, lr_, out=step)
        np.subtract(theta_P[block], step, out=theta_out_P[block])
    return theta_out_P, momentum_out_P
