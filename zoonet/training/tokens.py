"""A text as a file of token ids: little-endian unsigned integers, nothing else.

B = samples of a batch, T = tokens of a window (the context)
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from zoonet.errors import ConfigError, TrainingError

Batch = tuple[NDArray[np.int64], NDArray[np.int64]]


def token_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """Return the narrowest type that holds every id: uint8, uint16 or uint32."""
    if not 1 <= vocab_size <= 1 << 32:
        raise ValueError(f"a vocabulary of {vocab_size} tokens")
    width = 1 if vocab_size <= 1 << 8 else 2 if vocab_size <= 1 << 16 else 4
    return np.dtype(f"<u{width}")


class TokenFile:
    """A token file mapped into memory; pages are read when a batch needs them.

    Raises ConfigError where the file is missing or not whole.
    """

    def __init__(self, path: Path, vocab_size: int, token_bytes: int) -> None:
        dtype = np.dtype(f"<u{token_bytes}")
        self._path = path
        self._vocab_size = vocab_size
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ConfigError(f"cannot read the tokens in {path}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"the token file {path} is empty") from error
        if len(self._map) % dtype.itemsize:
            raise ConfigError(
                f"the token file {path} has {len(self._map)} bytes, "
                f"not a multiple of {dtype.itemsize}"
            )
        self._tokens = np.frombuffer(self._map, dtype)

    def __len__(self) -> int:
        return self._tokens.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file. Batches that were handed out are copies and stay valid."""
        del self._tokens
        self._map.close()

    def batch(self, starts_B: NDArray[np.int64], context: int) -> Batch:
        """Return inputs x_BT and targets y_BT, the same windows one token later.

        Raises TrainingError for a token outside the vocabulary (the data is the submitter's).
        """
        positions = starts_B[:, None] + np.arange(context + 1)
        windows = self._tokens[positions]
        if windows.size and int(windows.max()) >= self._vocab_size:
            raise TrainingError(
                f"token {int(windows.max())} in {self._path} is outside the vocabulary "
                f"of {self._vocab_size}"
            )
        wide = windows.astype(np.int64)
        return wide[:, :-1], wide[:, 1:]

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
