"""Tensors as the bytes that lanes carry: dtypes by number, and memory that both sides share.

N = values of a tensor, flat
"""

from __future__ import annotations

from typing import Final

import torch

from zoonet.errors import ConfigError

# The place in this list is what travels: only ever add to its end.
DTYPES: Final = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.bool,
    torch.complex64,
    torch.complex128,
)
_NUMBERS: Final = {dtype: number for number, dtype in enumerate(DTYPES)}
ACCUMULATED_AS: Final = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


def dtype_number(dtype: torch.dtype) -> int:
    """What stands for the dtype on the wire. Raises ConfigError for one that does not travel."""
    number = _NUMBERS.get(dtype)
    if number is None:
        raise ConfigError(f"tensors of {dtype} cannot be sent; convert to one of {_names()}")
    return number


def dtype_name(number: int) -> str:
    """For messages to the user."""
    known = number < len(DTYPES)
    return str(DTYPES[number]).removeprefix("torch.") if known else f"dtype {number}"


def _names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a contiguous CPU tensor, as a view of one dimension, outside autograd."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ValueError("only contiguous tensors on the CPU have bytes that lanes can use")
    return tensor.detach().view(-1)


def bytes_of(values_N: torch.Tensor) -> memoryview:
    """The memory of a flat tensor. It lives for as long as the view does."""
    if not values_N.numel():
        return memoryview(bytearray())
    return values_N.view(torch.uint8).numpy().data


class Staged:
    """A tensor's values in contiguous CPU memory, and the way back.

    Where the tensor lies there already, `values_N` is its own memory. Else it is a copy: pinned
    where the tensor is on a CUDA device. Make it on the thread that computed the tensor.
    """

    def __init__(self, tensor: torch.Tensor, *, reads: bool = True) -> None:
        """`reads`: the present values matter."""
        tensor = tensor.detach()
        self._tensor = tensor
        dtype_number(tensor.dtype)
        if tensor.device.type == "cpu" and tensor.is_contiguous() and not tensor.is_conj():
            self.values_N = flat(tensor)
            self._is_copy = False
            return
        self._is_copy = True
        copy = torch.empty(
            tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda"
        )
        if reads:
            copy.copy_(tensor)  # waits for the device's current stream
        self.values_N = flat(copy)

    def write_back(self) -> None:
        """Let the tensor have the values; on a device, wait until it has."""
        if not self._is_copy:
            return
        self._tensor.copy_(self.values_N.view(self._tensor.shape))
        if self._tensor.device.type == "cuda":
            torch.cuda.current_stream(self._tensor.device).synchronize()
