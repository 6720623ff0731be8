"""Every exception that the libraries below can raise becomes one of ours."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import pkgutil

import google.protobuf.message
import hivemind.dht
import hivemind.p2p
import multiaddr
import pytest

from zoonet.errors import (
    ConfigError,
    PeerTimeout,
    PeerUnreachable,
    ProtocolViolation,
    StreamClosed,
    TransportError,
    ZoonetError,
)
from zoonet.net.foreign import FOREIGN, foreign_errors, translate
from zoonet.net.substrate import ControlFailure


def exceptions_of(package: object) -> set[type[BaseException]]:
    """Every exception class that a package's modules define."""
    path, name = package.__path__, package.__name__  # type: ignore[attr-defined]
    modules = [importlib.import_module(name)]
    for found in pkgutil.walk_packages(path, f"{name}."):
        modules.append(importlib.import_module(found.name))
    return {
        value
        for module in modules
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, BaseException) and value.__module__.startswith(name.split(".")[0])
    }


# What hivemind defines but never raises on us.
NOT_OURS = {
    "MultiaddrError",  # name resolution, which the daemon does
    "ResolutionError",
    "RecursionLimitError",
}


@pytest.mark.parametrize("package", [hivemind.p2p, hivemind.dht, multiaddr])
def test_no_exception_of_the_libraries_is_unmapped(package: object) -> None:
    found = {kind for kind in exceptions_of(package) if kind.__name__ not in NOT_OURS}
    assert found, "the search found nothing, so it proves nothing"
    mapped = tuple(kind for kind, _ in FOREIGN)
    assert {kind for kind in found if not issubclass(kind, mapped)} == set()


def test_no_exception_of_protobuf_messages_is_unmapped() -> None:
    kinds = {google.protobuf.message.DecodeError, google.protobuf.message.EncodeError}
    assert all(issubclass(kind, tuple(kind for kind, _ in FOREIGN)) for kind in kinds)


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        (ControlFailure("dial failed"), PeerUnreachable),
        (TimeoutError(), PeerTimeout),
        (ConnectionRefusedError(111, "refused"), PeerUnreachable),
        (ConnectionResetError(104, "reset"), StreamClosed),
        (BrokenPipeError(32, "broken"), StreamClosed),
        (FileNotFoundError(2, "no socket"), TransportError),
        (asyncio.IncompleteReadError(b"", 4), StreamClosed),
        (google.protobuf.message.DecodeError("bad"), ProtocolViolation),
        (multiaddr.exceptions.StringParseError("bad", "/x"), ConfigError),
    ],
)
def test_each_becomes_what_the_caller_can_act_on(
    foreign: BaseException, ours: type[ZoonetError]
) -> None:
    with pytest.raises(ours) as caught, foreign_errors(peer_id="peer-12345678", doing="dialling"):
        raise foreign
    assert type(caught.value) is ours
    assert caught.value.__cause__ is foreign
    assert "dialling" in str(caught.value)


def test_a_bug_is_not_disguised_as_a_network_error() -> None:
    with pytest.raises(KeyError), foreign_errors():
        raise KeyError("ours")
    with pytest.raises(TypeError, match="unmapped"):
        translate(KeyError("ours"))


def test_our_own_exceptions_pass_unchanged() -> None:
    with pytest.raises(ProtocolViolation, match="mine"), foreign_errors():
        raise ProtocolViolation("", "mine")
