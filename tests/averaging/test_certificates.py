"""Certificates and heads as bytes: what a chain holds of them, in memory and in a file."""

from __future__ import annotations

import contextlib
import gc
import os
import tracemalloc
from pathlib import Path

import msgspec
import pytest

from tests.averaging.makers import empty_chain, grow
from zoonet.averaging.certificates import Certificates, FileLog, Heads, Log, MemoryLog
from zoonet.averaging.chain import Chain
from zoonet.averaging.messages import Certificate


class FullLog:
    """A disk without room."""

    def write(self, raw: bytes) -> int:
        raise OSError("no space left on device")

    def read(self, place: int, num_bytes: int) -> bytes:
        raise AssertionError


@pytest.fixture(params=["memory", "file", "full"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    logs = {"memory": MemoryLog, "file": lambda: FileLog(tmp_path), "full": FullLog}
    found: Log = logs[request.param]()
    return found


LINKS = list(grow(empty_chain(), "ada", "bob", "cyd", rounds=5).certificates)


def filled(log: Log, num: int = 5) -> Certificates:
    certificates = Certificates(log)
    for link in LINKS[:num]:
        certificates.append(link)
    return certificates


def test_what_was_appended_is_read_in_order(log: Log) -> None:
    certificates = filled(log)
    assert list(certificates) == LINKS
    assert (certificates[-1], certificates[1:3]) == (LINKS[4], LINKS[1:3])
    with pytest.raises(IndexError):
        certificates[5]


def test_as_one_message_they_are_what_a_list_of_them_is(log: Log) -> None:
    raw = filled(log).encoded()
    assert raw == msgspec.msgpack.encode(LINKS)
    assert msgspec.msgpack.decode(raw, type=list[Certificate]) == LINKS


def test_a_beginning_goes_on_in_another_way_and_leaves_the_whole_as_it_was(log: Log) -> None:
    whole = filled(log)
    beginning = whole.until(2)
    beginning.append(LINKS[4])
    assert list(beginning) == [*LINKS[:2], LINKS[4]] and list(whole) == LINKS
    beginning.keep()
    beginning.append(LINKS[3])
    assert list(beginning) == [*LINKS[:2], LINKS[4], LINKS[3]] and list(whole) == LINKS
    assert beginning != whole and whole.until(5) == whole and whole.until(4) != whole


def test_only_what_is_to_be_kept_is_written_to_the_log() -> None:
    class Counted(MemoryLog):
        num_written = 0

        def write(self, raw: bytes) -> int:
            self.num_written += 1
            return super().write(raw)

    log = Counted()
    beginning = filled(log, 3).until(3)
    beginning.append(LINKS[3])
    assert log.num_written == 3
    beginning.keep()
    assert log.num_written == 4


def open_in(folder: Path) -> list[str]:
    """Files of a folder that this process has open, those without a name among them."""
    targets = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            targets.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [target for target in targets if target.startswith(str(folder))]


def test_a_file_leaves_no_name_behind_and_no_descriptor(tmp_path: Path) -> None:
    certificates = filled(FileLog(tmp_path))
    assert os.listdir(tmp_path) == [] and list(certificates) == LINKS
    assert len(open_in(tmp_path)) == 1
    del certificates
    gc.collect()
    assert open_in(tmp_path) == []


def test_with_a_file_a_round_costs_less_than_a_hundred_bytes_of_memory(tmp_path: Path) -> None:
    chain = Chain(LINKS[0].result.job_id, 10**6, Certificates(FileLog(tmp_path)))
    num_rounds = 1000
    tracemalloc.start()
    for index in range(num_rounds):
        chain.certificates.append(LINKS[index % 5])
        chain.heads.append(index.to_bytes(32, "big"))
    size_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size_bytes < 100 * num_rounds


def test_heads_are_found_where_they_begin_and_nowhere_else() -> None:
    heads = Heads()
    heads.append(bytes(range(32)))
    heads.append(bytes(range(32, 64)))
    assert bytes(range(32, 64)) in heads and heads[-1] == bytes(range(32, 64))
    assert bytes(range(16, 48)) not in heads and b"" not in heads
    assert heads == [bytes(range(32)), bytes(range(32, 64))] and heads.until(1) == [heads[0]]
