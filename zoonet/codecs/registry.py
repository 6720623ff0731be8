"""Codecs by name."""

from __future__ import annotations

import difflib
from typing import Final

from zoonet.codecs.base import Codec
from zoonet.codecs.blockwise import E3M0, Int8
from zoonet.codecs.dense import Bf16, Fp16, Fp32
from zoonet.codecs.sparse import TopK2
from zoonet.errors import ConfigError

_ALL: Final[tuple[Codec, ...]] = (Fp32(), Fp16(), Bf16(), Int8(), E3M0(), TopK2())
_BY_NAME: Final = {codec.name: codec for codec in _ALL}

NAMES: Final = tuple(_BY_NAME)  # from the most bytes to the fewest


def codec(name: str) -> Codec:
    """Return the codec of that name. Raises ConfigError, which says what is nearest to it."""
    found = _BY_NAME.get(name)
    if found is None:
        nearest = difflib.get_close_matches(name, NAMES, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(NAMES)}"
        raise ConfigError(f"there is no codec {name!r}; {hint}")
    return found
