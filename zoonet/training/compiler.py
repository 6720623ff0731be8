"""`torch.compile` for training steps: a peer's choice, which changes its speed and its last bits.

Importing this is free. The compiler stack, seconds and 100 MB, is loaded where it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn

from zoonet.errors import TrainingError

Loss = Callable[..., Any]  # of x_BT and y_BT: a Tensor ()
COMPILER: Final = "inductor"  # torch's own; needs a C++ compiler on a CPU, Triton on a GPU


def compiled(model: nn.Module, backend: str | Callable[..., object] = COMPILER) -> Loss:
    """Return a function that computes the loss of `model`, compiled when it is first called.

    Draws the same random numbers as the model itself. Raises whatever the compiler raises.
    """
    import torch._inductor.config as inductor

    inductor.compile_threads = 1  # no processes of its own, which could outlive this one
    inductor.fallback_random = True  # a slot's dropout is the one that others would draw
    loss: Loss = torch.compile(model, dynamic=False, backend=backend)
    return loss


def try_out(step: Callable[[], object]) -> str:
    """Take a first compiled step; return why the compiler cannot, or "".

    What it cannot compile later, such as a smaller micro-batch, runs uncompiled. Raises
    TrainingError where the step itself fails.
    """
    import torch._dynamo as dynamo

    try:
        step()
    except TrainingError:
        raise
    except Exception as error:  # compilers raise anything, OSError to AssertionError
        dynamo.reset()
        cause = getattr(error, "inner_exception", error)
        reason = str(cause).strip().partition("\n")[0][:200] or type(cause).__name__
        return f"no torch.compile here, training goes on without it: {reason}"
    dynamo.config.suppress_errors = True
    return ""
