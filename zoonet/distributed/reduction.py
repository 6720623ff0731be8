"""Adding up, and the other reductions: in the order of ranks, so that all get the same bits.

Halves are accumulated in fp32 and rounded once, at the end.

N = values of a part
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch

from zoonet.distributed.memory import ACCUMULATED_AS
from zoonet.errors import ConfigError

Combine = Callable[[torch.Tensor, torch.Tensor], object]


def _add(total_N: torch.Tensor, term_N: torch.Tensor) -> None:
    total_N.add_(term_N)


def _multiply(total_N: torch.Tensor, term_N: torch.Tensor) -> None:
    total_N.mul_(term_N)


def _least(total_N: torch.Tensor, term_N: torch.Tensor) -> None:
    torch.minimum(total_N, term_N, out=total_N)


def _most(total_N: torch.Tensor, term_N: torch.Tensor) -> None:
    torch.maximum(total_N, term_N, out=total_N)


_COMBINE: Final[dict[str, Combine]] = {
    "sum": _add,
    "avg": _add,
    "product": _multiply,
    "min": _least,
    "max": _most,
    "band": torch.Tensor.bitwise_and_,
    "bor": torch.Tensor.bitwise_or_,
    "bxor": torch.Tensor.bitwise_xor_,
}


def check(how: str, dtype: torch.dtype) -> None:
    """Raise ConfigError where the dtype cannot be reduced so."""
    if how not in _COMBINE:
        raise ConfigError(f"no reduction {how!r}; there are {', '.join(_COMBINE)}")
    is_exact = not (dtype.is_floating_point or dtype.is_complex)
    if how.startswith("b") and not is_exact:
        raise ConfigError(f"{how} combines the bits of integers and bools, not of {dtype}")
    if how == "avg" and is_exact:
        raise ConfigError(f"the mean of {dtype} is none of that dtype; use sum, and divide")
    if how in ("min", "max") and dtype.is_complex:
        raise ConfigError("complex numbers have no order; reduce real and imaginary parts")


def reduced(terms: Sequence[torch.Tensor], how: str) -> torch.Tensor:
    """The terms, one a rank and in their order, as one new tensor of the same dtype (N)."""
    dtype = terms[0].dtype
    wide = ACCUMULATED_AS.get(dtype, dtype)
    total_N = terms[0].to(wide, copy=True)
    combine = _COMBINE[how]
    for term_N in terms[1:]:
        combine(total_N, term_N.to(wide))
    if how == "avg":
        total_N.div_(len(terms))
    return total_N.to(dtype)
