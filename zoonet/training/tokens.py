"""A text as a file of token ids: little-endian unsigned integers, nothing else.

B = samples of a batch, T = tokens of a window (the context)
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from zoonet.errors import ConfigError, UnreadableSlot

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """Return the narrowest type that holds every id: uint8, uint16 or uint32."""
    if not 1 <= vocab_size <= 1 << 32:
        raise ValueError(f"a vocabulary of {vocab_size} tokens")
    width = 1 if vocab_size <= 1 << 8 else 2 if vocab_size <= 1 << 16 else 4
    return np.dtype(f"<u{width}")


class TokenFile:
    """A token file; what a batch needs is read when it needs it.

    It is not mapped into memory: a disk that fails would end the process without a word.
    Raises ConfigError where the file is missing or not whole.
    """

    def __init__(self, path: Path, vocab_size: int, token_bytes: int) -> None:
        dtype = np.dtype(f"<u{token_bytes}")
        self._path = path
        self._vocab_size = vocab_size
        self._dtype = dtype
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._close = weakref.finalize(self, os.close, self._file)
            num_bytes = os.fstat(self._file).st_size
        except OSError as error:
            raise ConfigError(f"cannot read the tokens in {path}: {error.strerror}") from error
        self._num_tokens, rest = divmod(num_bytes, dtype.itemsize)
        if rest or not num_bytes:
            problem = f"has {num_bytes} bytes, not a multiple of {dtype.itemsize}"
            raise ConfigError(f"the token file {path} {problem if rest else 'is empty'}")

    def __len__(self) -> int:
        return self._num_tokens

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Batches that were handed out stay valid."""
        self._close()

    def batch(self, starts_B: NDArray[np.int64], context: int) -> Batch:
        """Return inputs x_BT and targets y_BT, the same windows one token later.

        Raises UnreadableSlot where the disk fails, and for a token outside the vocabulary (the
        data is the submitter's).
        """
        windows_BT = np.empty((len(starts_B), context + 1), np.int64)
        for row_T, start in zip(windows_BT, starts_B, strict=True):
            row_T[:] = self._window(int(start), context + 1)
        return windows_BT[:, :-1], windows_BT[:, 1:]

    def _window(self, start: int, num: int) -> NDArray[np.unsignedinteger]:
        place, num_bytes = start * self._dtype.itemsize, num * self._dtype.itemsize
        try:
            raw = os.pread(self._file, num_bytes, place)
        except OSError as error:
            raise UnreadableSlot(
                f"cannot read {self._path} at byte {place}: {error.strerror}"
            ) from error
        if len(raw) != num_bytes:
            raise UnreadableSlot(f"{self._path} ends within the window at byte {place}")
        window_T = np.frombuffer(raw, self._dtype)
        if int(window_T.max()) >= self._vocab_size:
            at = int(window_T.argmax())
            raise UnreadableSlot(
                f"token {int(window_T[at])} at byte {place + at * self._dtype.itemsize} of "
                f"{self._path} is outside the vocabulary of {self._vocab_size}"
            )
        return window_T

    def num_windows(self, context: int) -> int:
        """Number of non-overlapping windows that have a target for every token."""
        return max(0, (len(self) - 1) // context)

    def heldout_windows(
        self, context: int, batch_size: int, *, max_tokens: int = 0
    ) -> Iterator[Batch]:
        """Yield every non-overlapping window in order, `batch_size` at a time.

        `max_tokens` > 0 keeps only evenly spread windows of about that many tokens.
        """
        num = self.num_windows(context)
        wanted = min(num, -(-max_tokens // context)) if max_tokens else num
        windows = np.arange(wanted, dtype=np.int64) * num // max(1, wanted)
        for first in range(0, wanted, batch_size):
            yield self.batch(windows[first : first + batch_size] * context, context)
