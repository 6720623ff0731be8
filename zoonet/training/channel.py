"""The trainer's end of the pipe: blocking, with a look between two steps."""

from __future__ import annotations

import select
import socket

from zoonet.training.messages import (
    HEADER_BYTES,
    Command,
    Event,
    Stop,
    decode_command,
    encode,
    payload_size,
)


class PipeClosed(Exception):
    """The node is gone, or wants no trainer any more: the process ends."""


class Channel:
    """Reads commands from a connected socket and writes events to it."""

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe

    def receive(self) -> Command:
        """Wait for the next command. Raises PipeClosed."""
        return decode_command(self._read(payload_size(self._read(HEADER_BYTES))))

    def send(self, event: Event) -> None:
        """Write an event. Raises PipeClosed."""
        try:
            self._pipe.sendall(encode(event))
        except OSError as error:
            raise PipeClosed from error

    def poll(self) -> Command | None:
        """Return the command that has arrived, if one has; never waits. Raises PipeClosed."""
        readable, _, _ = select.select([self._pipe], [], [], 0)
        return self.receive() if readable else None

    def pending_stop(self) -> Stop | None:
        """Return the Stop that has arrived, if one has; never waits. Raises PipeClosed."""
        command = self.poll()
        if command is not None and not isinstance(command, Stop):
            raise RuntimeError(f"{type(command).__name__} arrived while another command ran")
        return command

    def _read(self, num_bytes: int) -> bytes:
        received = bytearray()
        while len(received) < num_bytes:
            try:
                part = self._pipe.recv(num_bytes - len(received))
            except OSError as error:
                raise PipeClosed from error
            if not part:
                raise PipeClosed
            received += part
        return bytes(received)
