"""Codecs: chunks of a vector as fewer bytes. The same values give the same bytes everywhere.

fp32, fp16 and bf16 need numpy alone. int8, e3m0 and topk2 are compiled at their first use; call
`prepare` before a round does. `on_device` has the same codecs for torch tensors.
"""

from zoonet.codecs.base import MAX_MAGNITUDE, Buffer, Codec
from zoonet.codecs.feedback import encode_into_feedback, encode_with_feedback, note_sent
from zoonet.codecs.registry import NAMES, codec

__all__ = [
    "MAX_MAGNITUDE",
    "NAMES",
    "Buffer",
    "Codec",
    "codec",
    "encode_into_feedback",
    "encode_with_feedback",
    "note_sent",
]
