"""The decoder of what other DHT nodes send, under attack."""

from __future__ import annotations

import contextlib
import random
import struct
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoonet.errors import ProtocolViolation
from zoonet.net.decoder import (
    MAX_DICTIONARY_BYTES,
    StrictSerializer,
    decode_bytes,
    decode_entries,
    decode_text,
    encode,
    encode_entries,
)

ENTRY = st.tuples(
    st.text(max_size=60), st.binary(max_size=200), st.floats(allow_nan=False, allow_infinity=False)
)


@given(st.lists(ENTRY, max_size=20))
def test_entries_survive_the_wire(entries: list[tuple[str, bytes, float]]) -> None:
    assert decode_entries(encode_entries(entries)) == entries


@given(st.binary(max_size=400))
def test_random_bytes_are_read_or_refused_and_nothing_else(raw: bytes) -> None:
    for decode in (decode_text, decode_bytes, decode_entries, StrictSerializer.loads):
        try:
            decode(raw)
        except ProtocolViolation:
            continue


@settings(max_examples=300)
@given(st.lists(ENTRY, min_size=1, max_size=5), st.integers(0), st.integers(0, 255))
def test_damaged_entries_are_read_or_refused_and_nothing_else(
    entries: list[tuple[str, bytes, float]], place: int, value: int
) -> None:
    raw = bytearray(encode_entries(entries))
    raw[place % len(raw)] = value
    with contextlib.suppress(ProtocolViolation):
        decode_entries(bytes(raw))


def test_a_text_is_not_bytes_and_bytes_are_not_a_text() -> None:
    with pytest.raises(ProtocolViolation):
        decode_text(encode(b"x"))
    with pytest.raises(ProtocolViolation):
        decode_bytes(encode("x"))


def test_a_dictionary_beyond_the_limit_is_refused_unread() -> None:
    with pytest.raises(ProtocolViolation, match="bytes"):
        decode_entries(bytes(MAX_DICTIONARY_BYTES + 1))
    many = [("", b"", 0.0)] * 5000
    with pytest.raises(ProtocolViolation, match="5000 entries"):
        decode_entries(encode_entries(many))


def test_other_extensions_and_shapes_are_refused() -> None:
    payload = msgspec.msgpack.encode((None, 0.0, []))
    for raw in (
        msgspec.msgpack.encode(msgspec.msgpack.Ext(0x40, payload)),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(0x50, b"")),
        msgspec.msgpack.encode(msgspec.msgpack.Ext(0x50, msgspec.msgpack.encode([1, 2]))),
        payload,
    ):
        with pytest.raises(ProtocolViolation):
            decode_entries(raw)


ATTACK = """
import sys
from zoonet.errors import ProtocolViolation
from zoonet.net.decoder import StrictSerializer, decode_bytes, decode_entries, decode_text

refused = 0
data = sys.stdin.buffer.read()
while data:
    size = int.from_bytes(data[:4], "big")
    raw, data = data[4 : 4 + size], data[4 + size :]
    for decode in (decode_text, decode_bytes, decode_entries, StrictSerializer.loads):
        try:
            decode(raw)
        except ProtocolViolation:
            refused += 1
print(refused)
"""


def nested(depth: int, code: int) -> bytes:
    """Extensions inside extensions, as deep as asked."""
    raw = b"\xc0"
    for _ in range(depth):
        raw = b"\xc9" + struct.pack(">Ib", len(raw), code) + raw
    return raw


def test_deep_nesting_does_not_end_the_process() -> None:
    rng = random.Random(7)
    attacks = [nested(depth, code) for depth in (10, 1000, 60_000) for code in (0x40, 0x50)]
    attacks += [b"\x91" * depth + b"\xc0" for depth in (10, 1000, 200_000)]
    attacks += [b"\x81\xa0" * depth + b"\xc0" for depth in (1000, 200_000)]
    inner = nested(60_000, 0x40)
    attacks.append(b"\xc9" + struct.pack(">Ib", len(inner), 0x50) + inner)
    attacks += [b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"]
    attacks += [rng.randbytes(rng.randrange(1, 200)) for _ in range(300)]
    attacks = [raw for raw in attacks if raw]
    stdin = b"".join(len(raw).to_bytes(4, "big") + raw for raw in attacks)
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ATTACK],
        input=stdin,
        capture_output=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr.decode()[-2000:]
    assert int(process.stdout) >= 4 * 15
