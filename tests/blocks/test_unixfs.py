"""Files as IPFS lays them out, and nodes that strangers send."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoonet.blocks import MemoryBlockStore, put_bytes
from zoonet.blocks.unixfs import WIDTH, Child, Node, children_of, leaf, node_of, nodes_above

LEAVES = [leaf(b"a" * 4), leaf(b"b" * 4), leaf(b"c" * 3)]
NODE = node_of(LEAVES)


# What ipfs-car 3.1.0 (npm) names the same bytes, cut at 1 MiB as it does.
@pytest.mark.parametrize(
    ("size", "cid"),
    [
        (0, "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"),
        (1, "bafkreidogqfzz75tpkmjzjke425xqcrmpcib2p5tg44hnbirumdbpl5adu"),
        (5, "bafkreibgvdglonyr2jmmemhmimq5r5usftifdmvyapadbngpatpaimezwy"),
        (1 << 20, "bafkreia7qzd5jtjpowkmgxcbhzmc4aiitqajfhoueopn3vo62pka6ms5km"),
        ((1 << 20) + 1, "bafybeieofemmtv5mcmqqgckmrzjctyofxv4h2exgvbfjpg3ddjkxwpyln4"),
        (3_000_000, "bafybeidwl2adi2oaw4q6gremvvvxrarvncwenqjc7ygxvrovx6l2cjkznu"),
    ],
)
def test_a_file_has_the_name_that_ipfs_gives_it(size: int, cid: str) -> None:
    content = bytes((at * 7 + (at >> 8)) & 255 for at in range(size))
    assert put_bytes(MemoryBlockStore(), content) == cid


# What @ipld/unixfs 3.0.0 (npm) names them, with leaves of 16 bytes and 1,024 children a node.
@pytest.mark.parametrize(
    ("size", "cid"),
    [
        (WIDTH * 16, "bafybeiaayago6vhtfpyxlisfjkvyoav2v2dbnzrtdgcgd3nea645vydsbi"),
        (WIDTH * 16 + 1, "bafybeidw4faizqyempmaxmz4lsit2nanitzjliliz7yhzyvbyfaoql2oya"),
        (2100 * 16 + 3, "bafybeiac5kuehsg7slpqqlf55fau67ipdlef7mtwd25lkcmldjihqnosry"),
    ],
)
def test_a_file_of_many_blocks_has_that_name_too(size: int, cid: str) -> None:
    content = bytes((at * 7 + (at >> 8) + (at >> 4)) & 255 for at in range(size))
    assert put_bytes(MemoryBlockStore(), content, block_bytes=16) == cid


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=20))
def test_a_node_says_what_it_was_made_of(pieces: list[bytes]) -> None:
    children = [leaf(piece) for piece in pieces]
    assert children_of(node_of(children).block) == children


def test_a_node_stands_for_all_below_it() -> None:
    assert NODE.child == Child(NODE.child.cid, 11, 11 + len(NODE.block))
    assert list(nodes_above(LEAVES)) == [NODE]
    assert list(nodes_above(LEAVES[:1])) == []


@given(st.binary(max_size=300))
def test_any_bytes_are_a_node_or_refused(raw: bytes) -> None:
    with suppress(ValueError):
        assert node_of(children_of(raw)).block == raw


@given(st.integers(0, len(NODE.block) - 1), st.integers(1, 255))
def test_a_node_with_one_other_byte_is_another_node_or_refused(at: int, change: int) -> None:
    raw = bytearray(NODE.block)
    raw[at] ^= change
    with suppress(ValueError):
        assert children_of(bytes(raw)) != LEAVES


def flat(block: bytes, *replacements: tuple[bytes, bytes]) -> bytes:
    for old, new in replacements:
        assert old in block
        block = block.replace(old, new)
    return block


@pytest.mark.parametrize(
    ("block", "why"),
    [
        (b"", "no 0a"),
        (NODE.block[:-1], "ends within"),
        (NODE.block + b"\0", "one form"),
        (b"\x12" + b"\xff" * 12, "endless number"),
        (flat(NODE.block, (b"\x08\x02", b"\x08\x01")), "no 080218"),  # a directory
        (flat(NODE.block, (b"\x01\x55", b"\x01\x71")), "not the name of a block"),  # dag-cbor
        (flat(NODE.block, (b"\x18\x0b", b"\x18\x0c")), "one form"),  # a sum that is none
        (bytes(1 << 20), "at most"),
        (b"\x0a\x04\x08\x02\x18\x00", "one form"),  # without any child
        (NODE.block[: 2 + NODE.block[1]] * (WIDTH + 1), "more than 1024 links"),
    ],
)
def test_what_is_no_node_is_refused_in_words(block: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        children_of(block)


def test_numbers_are_in_their_shortest_form() -> None:
    node: Node = node_of([leaf(b"abcd")])
    longer = flat(node.block, (b"\x18\x04\x20\x04", b"\x18\x04\x20\x84\x00"))
    with pytest.raises(ValueError):
        children_of(longer.replace(b"\x0a\x06\x08\x02", b"\x0a\x07\x08\x02"))
