"""Who may send what in a round: by the attempt's trees, in its turn, and once."""

from __future__ import annotations

import pytest

from tests.averaging.forest import sited
from tests.averaging.makers import peer
from zoonet.averaging.admission import Admission
from zoonet.averaging.chunks import Header, Kind
from zoonet.averaging.held import Chunk, Part
from zoonet.averaging.roles import role_in
from zoonet.errors import InvalidPart, ProtocolViolation

PLAN = sited(10, ("ada", "bob"), ("cyd", "dan"))
EVERYONE = frozenset(range(4))
ROOT = PLAN.trees[0].root
SITE = next(site for site in PLAN.sites if ROOT in site)
NEIGHBOUR = next(index for index in SITE if index != ROOT)
OTHER_OWNER = PLAN.trees[0].owners[1 - PLAN.sites.index(SITE)]


def admission_of(me: int, number: int = 1) -> Admission:
    site = frozenset(PLAN.sites[PLAN.site_of(me)])
    peers = tuple(sorted(peer(name) for name in ("ada", "bob", "cyd", "dan")))
    return Admission(peers, me, site, number, needed_bits=0b1111)


def chunk_at(me: int) -> Chunk:
    return Chunk(role_in(PLAN, PLAN.trees[0], me, EVERYONE))


def header(kind: Kind, number: int = 1, maker: int = ROOT, bits: int = 0b1111) -> Header:
    return Header(kind, bytes(16), number, 0, maker, bits)


def test_a_root_wants_parts_of_its_site_and_sums_of_others_once() -> None:
    admission, chunk = admission_of(ROOT), chunk_at(ROOT)
    assert admission.is_wanted(chunk, NEIGHBOUR, header(Kind.PART))
    assert admission.is_wanted(chunk, OTHER_OWNER, header(Kind.SUM))
    chunk.parts[NEIGHBOUR] = Part(memoryview(b""), 1 << NEIGHBOUR)
    assert not admission.is_wanted(chunk, NEIGHBOUR, header(Kind.PART))
    chunk.mean_maker, chunk.mean_bits = ROOT, 0b1111
    assert not admission.is_wanted(chunk, OTHER_OWNER, header(Kind.SUM))


@pytest.mark.parametrize(("sender", "kind"), [(NEIGHBOUR, Kind.SUM), (OTHER_OWNER, Kind.PART)])
def test_a_sum_for_a_part_is_refused_and_the_other_way_round(sender: int, kind: Kind) -> None:
    with pytest.raises(ProtocolViolation, match="a part for a sum"):
        admission_of(ROOT).is_wanted(chunk_at(ROOT), sender, header(kind))


def test_what_is_not_for_this_peer_is_refused_unless_it_is_of_an_attempt_before() -> None:
    admission, chunk = admission_of(NEIGHBOUR), chunk_at(NEIGHBOUR)
    with pytest.raises(ProtocolViolation, match="for another peer"):
        admission.is_wanted(chunk, ROOT, header(Kind.PART))
    assert not admission.is_wanted(chunk, ROOT, header(Kind.PART, number=0))
    with pytest.raises(ProtocolViolation, match="does not hand out"):
        admission.is_wanted(chunk, OTHER_OWNER, header(Kind.MEAN))
    assert not admission.is_wanted(chunk, OTHER_OWNER, header(Kind.MEAN, number=0))


def test_a_mean_has_to_be_the_roots_and_of_all_contributors() -> None:
    admission, chunk = admission_of(NEIGHBOUR), chunk_at(NEIGHBOUR)
    assert admission.is_wanted(chunk, ROOT, header(Kind.MEAN))
    for lacking in (header(Kind.MEAN, bits=0b0111), header(Kind.MEAN, maker=NEIGHBOUR)):
        with pytest.raises(ProtocolViolation, match="without some contributor"):
            admission.is_wanted(chunk, ROOT, lacking)
    assert not admission.is_wanted(chunk, ROOT, header(Kind.MEAN, number=0, bits=0b0111))


def test_a_sum_is_of_all_of_its_site_and_of_nobody_else() -> None:
    admission = admission_of(ROOT)
    site = frozenset(PLAN.sites[PLAN.site_of(OTHER_OWNER)])
    bits = sum(1 << index for index in site)
    admission.check_sum(PLAN, OTHER_OWNER, bits, EVERYONE, EVERYONE)
    for wrong in (1 << OTHER_OWNER, 0b1111):
        with pytest.raises(InvalidPart, match="not of all of its site alone"):
            admission.check_sum(PLAN, OTHER_OWNER, wrong, EVERYONE, EVERYONE)
