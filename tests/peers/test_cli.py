"""The command line: help, options, and errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from peers.cli import cli
from peers.cli.options import Command, first_known, local, spread_join
from zoonet.errors import ConfigError, PeerUnreachable

ADDRESS = "/ip4/127.0.0.1/tcp/1/p2p/16Uiu2HAmPLe7Mzm8TsYUubgCAW1aJoeFScxrLj8ppHFivPo97bUZ"


def zoonet(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def command_names() -> list[str]:
    return sorted(cli.commands)


def test_the_commands_are_those_announced() -> None:
    assert command_names() == [
        "bootstrap",
        "cancel",
        "demo",
        "doctor",
        "jobs",
        "key",
        "peer",
        "peers",
        "plan",
        "result",
        "submit",
        "watch",
    ]


@pytest.mark.parametrize("name", [name for name in command_names() if name != "key"])
def test_every_command_shows_an_example_in_its_help(name: str) -> None:
    result = zoonet(name, "--help")
    assert result.exit_code == 0
    assert f"zoonet {name}" in result.output


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys, peers.cli\n"
        "heavy = {'torch', 'hivemind', 'rich', 'matplotlib', 'uvloop', 'numpy', 'asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() in ("[]", "['asyncio']")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--join", "/ip4/a", "/ip4/b"], ["--join", "/ip4/a", "--join", "/ip4/b"]),
        (["--join", "/ip4/a", "--join", "/ip4/b"], ["--join", "/ip4/a", "--join", "/ip4/b"]),
        (["--join=/ip4/a", "/dns4/b", "-v"], ["--join=/ip4/a", "--join", "/dns4/b", "-v"]),
        (["--join", "/ip4/a", "/home/job.yaml"], ["--join", "/ip4/a", "/home/job.yaml"]),
        (["--join", "/ip4/a", "x", "/ip4/b"], ["--join", "/ip4/a", "x", "/ip4/b"]),
        (["/ip4/a"], ["/ip4/a"]),
        ([], []),
    ],
)
def test_join_takes_several_addresses(given: list[str], expected: list[str]) -> None:
    assert spread_join(given) == expected


def run_failing(error: Exception, *arguments: str) -> Result:
    @click.command(cls=Command)
    @local
    def failing(**options: Any) -> None:
        raise error

    return CliRunner().invoke(failing, arguments)


def test_an_expected_error_is_one_line_and_exit_code_1() -> None:
    result = run_failing(ConfigError("line 3: unknown key 'modle'; did you mean 'model'?"))
    assert result.exit_code == 1
    assert result.output == "error: line 3: unknown key 'modle'; did you mean 'model'?\n"


def test_with_debug_an_expected_error_keeps_its_traceback() -> None:
    error = ConfigError("wrong")
    assert run_failing(error, "--debug").exception is error


def test_an_expected_error_from_a_task_group_is_one_line_too() -> None:
    group = ExceptionGroup("tasks", [ExceptionGroup("tasks", [PeerUnreachable("nobody there")])])
    assert run_failing(group).output == "error: nobody there\n"


def test_a_bug_is_never_hidden() -> None:
    bug = ZeroDivisionError()
    assert run_failing(bug).exception is bug
    assert first_known(ExceptionGroup("tasks", [ConfigError("a"), bug])) is None


def test_wrong_usage_is_exit_code_2() -> None:
    assert zoonet("demo", "--seconds", "soon").exit_code == 2
    assert zoonet("submit", "no-such-file.yaml").exit_code == 2
    assert zoonet("frobnicate").exit_code == 2


def test_the_key_is_made_on_the_first_run_and_shown_after(tmp_path: Path) -> None:
    first = zoonet("key", "show", "--json", "--home", str(tmp_path / "home"))
    again = zoonet("key", "show", "--json", "--home", str(tmp_path / "home"))
    assert json.loads(first.output) == json.loads(again.output)
    assert json.loads(first.output)["peer_id"].startswith("16Uiu2")


def test_the_exported_key_is_that_of_the_peer_id(tmp_path: Path) -> None:
    from zoonet.crypto import Identity

    shown = json.loads(zoonet("key", "show", "--json", "--home", str(tmp_path)).output)
    exported = zoonet("key", "export", "--home", str(tmp_path))
    assert Identity.from_api_key(exported.stdout).peer_id == shown["peer_id"]


def test_a_key_that_others_can_read_is_refused_with_the_cure(tmp_path: Path) -> None:
    zoonet("key", "show", "--home", str(tmp_path))
    (tmp_path / "identity.pem").chmod(0o644)
    result = zoonet("key", "show", "--home", str(tmp_path))
    assert result.exit_code == 1
    assert "chmod 600" in result.output


def test_a_state_directory_that_cannot_be_made_is_an_error_with_the_cure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = zoonet("key", "show", "--home", str(tmp_path / "file" / "home"))
    assert result.exit_code == 1
    assert "--home" in result.output


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--only-from", "alice", "error: --only-from 'alice' is no peer id"),
        ("--device", "gpu", "error: --device 'gpu' names no device; take one of auto, cpu"),
        ("--device", "cuda:4096", "error: --device 'cuda:4096' is not in this machine"),
    ],
)
def test_what_an_owner_names_wrongly_is_told_before_anything_starts(
    tmp_path: Path, option: str, value: str, message: str
) -> None:
    result = zoonet("peer", option, value, "--home", str(tmp_path))
    assert result.exit_code == 1
    assert message in result.output
