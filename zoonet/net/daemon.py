"""The life of p2pd, the libp2p daemon: one process per peer, started, watched and swept.

It runs in a session of its own, so that Ctrl-C reaches the node alone and the node says goodbye
first. It dies with the node: the kernel signals it when its parent dies (Linux), it ends itself
when the node's connection to it breaks, and the next start sweeps whatever is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Self

import psutil

from zoonet.crypto import Identity
from zoonet.errors import ConfigError, TransportError
from zoonet.net.config import HostConfig
from zoonet.net.substrate import daemon_binary

CONTROL_SOCKET: Final = "p2pd.sock"
STREAM_SOCKET: Final = "streams.sock"
IDENTITY_FILE: Final = "identity"
LOCK_FILE: Final = "lock"
STOP_TIMEOUT_S: Final = 5.0

# Replaces itself by the daemon, which the kernel then ends together with its parent.
_TIED_TO_PARENT: Final = """
import ctypes, os, signal, sys
parent = int(sys.argv[1])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != parent:
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""

log = logging.getLogger(__name__)


def daemon_arguments(config: HostConfig, run_dir: Path) -> list[str]:
    """The daemon's command-line arguments for a configuration."""
    options: dict[str, str] = {
        "listen": f"/unix{run_dir / CONTROL_SOCKET}",
        "id": str(run_dir / IDENTITY_FILE),
        "pubsub": "1",
        "connManager": "1",
        "connLo": "768",
        "connHi": "1024",
        "autonat": "1",
        "relay": "1",
        "tls": "1",
        "natPortMap": "0" if config.is_local or not config.listen else "1",
        "idleTimeout": f"{config.startup_timeout_s:.0f}s",
        "dhtClient" if config.is_client else "dhtServer": "1",
    }
    if config.listen:
        options["hostAddrs"] = ",".join(config.listen)
    else:
        options["noListenAddrs"] = "1"
    if config.announce:
        options["announceAddrs"] = ",".join(config.announce)
    if config.is_public:
        options["forceReachabilityPublic"] = "1"
    else:
        options["autoRelay"] = "1"
        # Named relays are used at once; a search waits minutes for enough candidates.
        options["relayDiscovery"] = "0" if config.relays else "1"
        if config.relays:
            options["trustedRelays"] = ",".join(config.relays)
    if config.is_client:
        options["forceReachabilityPrivate"] = "1"
    return [f"-{name}={value}" for name, value in options.items()]


class RunDirectory:
    """The directory that holds a peer's sockets: locked by one node at a time, swept before use."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock = -1

    def __enter__(self) -> Self:
        """Take the directory. Raises ConfigError where another node runs in it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.path.chmod(0o700)
            self._lock = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise ConfigError(
                f"cannot use the run directory {self.path}: {error.strerror}; "
                "choose one that you may write to"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ConfigError(
                f"another node already runs in {self.path}; stop it, or give this one "
                "a run directory of its own"
            ) from error
        self._sweep()
        return self

    def __exit__(self, *_: object) -> None:
        self._remove_files()
        with contextlib.suppress(OSError):
            (self.path / LOCK_FILE).unlink()
        os.close(self._lock)
        with contextlib.suppress(OSError):
            self.path.rmdir()  # succeeds only where nothing else lies in it

    def _sweep(self) -> None:
        """End the daemon and remove the sockets that a killed run of this node left."""
        socket = str(self.path / CONTROL_SOCKET)
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = process.cmdline()
                if len(command) > 1 and f"-listen=/unix{socket}" in command:
                    log.warning("ending the daemon pid=%s of an earlier run", process.pid)
                    process.kill()
                    process.wait(STOP_TIMEOUT_S)
        self._remove_files()

    def _remove_files(self) -> None:
        for path in (*self.path.glob("*.sock"), self.path / IDENTITY_FILE):
            path.unlink(missing_ok=True)


class Daemon:
    """A running p2pd."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.last_lines: deque[str] = deque(maxlen=20)

    @classmethod
    @asynccontextmanager
    async def run(
        cls,
        identity: Identity,
        config: HostConfig,
        run_dir: Path,
        *,
        binary: Path | None = None,
        num_threads: int = 0,
    ) -> AsyncIterator[Self]:
        """Start the daemon, wait until it answers, and end it with the block.

        `num_threads` bounds how many processors it uses at a time; 0: all.
        Raises ConfigError where it cannot run as configured, TransportError where it hangs.
        """
        binary = binary or daemon_binary()
        if not os.access(binary, os.X_OK):
            raise ConfigError(
                f"the libp2p daemon is missing at {binary}; "
                "install it again with: pip install --force-reinstall --no-deps hivemind"
            )
        key_file = run_dir / IDENTITY_FILE
        _write_key(key_file, identity)
        limits = {"GOMAXPROCS": str(num_threads)} if num_threads else {}
        daemon = cls(await _spawn(binary, daemon_arguments(config, run_dir), limits))
        try:
            try:
                await daemon._wait_ready(identity, config)
            finally:
                key_file.unlink(missing_ok=True)
            yield daemon
        finally:
            await daemon._stop()

    async def _wait_ready(self, identity: Identity, config: HostConfig) -> None:
        try:
            async with asyncio.timeout(config.startup_timeout_s):
                while (line := await self._next_line()) is not None:
                    if line.startswith("Peer ID:"):
                        if line.split()[-1] != identity.peer_id:
                            raise TransportError(f"the daemon took another identity: {line}")
                        return
        except TimeoutError as error:
            raise TransportError(
                f"the libp2p daemon did not start in {config.startup_timeout_s:.0f} s; "
                "the machine may be overloaded: try again, or raise startup_timeout_s"
            ) from error
        raise _explain_failed_start(list(self.last_lines), config)

    async def _next_line(self) -> str | None:
        assert self._process.stdout is not None
        try:
            raw = await self._process.stdout.readline()
        except ValueError:  # a line beyond the reader's limit, which it has dropped
            return ""
        if not raw:
            return None
        line = raw.decode(errors="replace").rstrip()[:500]
        self.last_lines.append(line)
        log.debug("p2pd %s", line)
        return line

    async def watch(self) -> None:
        """Read what the daemon says until it ends. Raises TransportError then."""
        while await self._next_line() is not None:
            pass
        code = await self._process.wait()
        last = self.last_lines[-1] if self.last_lines else "it said nothing"
        raise TransportError(f"the libp2p daemon ended unexpectedly (exit {code}): {last}")

    async def _stop(self) -> None:
        try:
            await self._end()
        finally:
            # Its output may still be open at this point; a loop does not close with open pipes.
            self._process._transport.close()  # type: ignore[attr-defined]

    async def _end(self) -> None:
        for stop in (signal.SIGTERM, signal.SIGKILL):
            if self._process.returncode is not None:
                return
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(stop)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await self._process.wait()


def _write_key(path: Path, identity: Identity) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(identity.libp2p_private_key())


async def _spawn(
    binary: Path, arguments: list[str], variables: dict[str, str]
) -> asyncio.subprocess.Process:
    environment = {**os.environ, "GOLOG_LOG_LEVEL": "error", **variables}
    command = [sys.executable, "-I", "-S", "-c", _TIED_TO_PARENT, str(os.getpid()), str(binary)]
    try:
        return await asyncio.create_subprocess_exec(
            *command,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    except OSError as error:
        raise TransportError(f"cannot start the libp2p daemon: {error.strerror}") from error


def _explain_failed_start(lines: list[str], config: HostConfig) -> ConfigError:
    said = " / ".join(line for line in lines if line)[-400:] or "it said nothing"
    listen = ", ".join(config.listen)
    if "address already in use" in said:
        return ConfigError(
            f"cannot listen on {listen}: the port is in use by another program; "
            "choose another port, or 0 for any free one"
        )
    if "cannot assign requested address" in said:
        return ConfigError(
            f"cannot listen on {listen}: this machine has no such address; "
            "listen on /ip4/0.0.0.0/tcp/PORT and announce the public one"
        )
    if "permission denied" in said and "listen" in said:
        return ConfigError(f"may not listen on {listen}: choose a port above 1023")
    return ConfigError(f"the libp2p daemon could not start: {said}")
