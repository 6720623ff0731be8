"""The exception tree: one branch for each thing that a caller can do about it.

::

    ZoonetError
     ├ ConfigError         the user fixes it
     │  ├ SpecError        a job file: names the line and the nearest valid key
     │  └ KeyFileError     a key file that is missing, readable by others or damaged
     ├ TransportError      retry, or try another peer
     │  ├ PeerUnreachable  no connection could be made
     │  ├ PeerTimeout      connected, but silent for longer than was learned to be normal
     │  ├ StreamClosed     the other side ended the stream in the middle
     │  └ ShardUnavailable no peer that could be reached holds the block
     ├ ProtocolViolation   blame: `.peer` did it, `.evidence` says what
     │  ├ InvalidRecord    a signed record that cannot be believed; `.reason` is counted
     │  ├ InvalidPart      a tensor part of the wrong size, dtype or with non-finite values
     │  └ DigestMismatch   bytes that do not hash to the name they were asked for by
     ├ RoundFailed         roll the round back; the local work carries on into the next
     │  └ QuorumLost       too few members signed the result
     ├ GroupFailed         form a process group of those who are left; `.missing` names the others
     ├ StorageError        the local disk: full, read-only or damaged
     ├ JobEnded            the submitter learns that there will be no model
     └ TrainingError       stop this job on this peer
        ├ WorkLost         this round's local work is lost, the job goes on
        │  ├ NonFiniteLoss the loss became NaN or infinite
        │  └ UnreadableSlot a data slot cannot be read, or is not what the job says
        └ OutOfDeviceMemory
"""

from __future__ import annotations


class ZoonetError(Exception):
    """Base of everything that zoonet raises on purpose."""


class ConfigError(ZoonetError):
    """The user's input is wrong; the message says what, where and what to do."""


class SpecError(ConfigError):
    """A job file is wrong. `line` is 1-based, or 0 where no line is to blame."""

    def __init__(self, message: str, *, line: int = 0) -> None:
        super().__init__(f"line {line}: {message}" if line else message)
        self.line = line


class KeyFileError(ConfigError):
    """The peer's key file cannot be used as it is."""


class TransportError(ZoonetError):
    """The network failed; another try or another peer may succeed."""


class PeerUnreachable(TransportError):
    """No connection to the peer could be made."""


class PeerTimeout(TransportError):
    """The peer said nothing for longer than it may."""


class StreamClosed(TransportError):
    """The stream ended before the message did."""


class ShardUnavailable(TransportError):
    """No reachable peer holds the block."""


class ProtocolViolation(ZoonetError):
    """A peer broke the protocol.

    `peer` is the culprit's id ("" where it is unknown), `evidence` what it sent, in words.
    """

    def __init__(self, peer: str, evidence: str) -> None:
        super().__init__(f"peer={peer[-8:] or '?'} {evidence}")
        self.peer = peer
        self.evidence = evidence


class InvalidRecord(ProtocolViolation):
    """A record that is malformed, forged, expired, oversized, misplaced or replayed.

    `reason` is one word from `zoonet.records.REASONS`: refusals are counted by it.
    """

    def __init__(self, peer: str, reason: str, evidence: str) -> None:
        super().__init__(peer, f"{reason}: {evidence}")
        self.reason = reason


class InvalidPart(ProtocolViolation):
    """A part of a tensor that has the wrong size or holds non-finite values."""


class DigestMismatch(ProtocolViolation):
    """Bytes that do not hash to their name."""


class RoundFailed(ZoonetError):
    """The round cannot be finished with these members; `missing` names those to leave out."""

    def __init__(self, message: str, *, missing: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.missing = missing


class QuorumLost(RoundFailed):
    """Half or more of the round's members did not sign its result."""


class GroupFailed(ZoonetError):
    """A process group cannot go on: `missing` died, left, fell silent or broke the protocol.

    Every operation that was under way raises it, and every later one.
    """

    def __init__(self, message: str, *, missing: frozenset[str] = frozenset()) -> None:
        super().__init__(message)
        self.missing = missing


class StorageError(ZoonetError):
    """The local disk refused: full, read-only or damaged."""


class JobEnded(ZoonetError):
    """A job ended without a model. `phase` is cancelled, expired or failed."""

    def __init__(self, job_id: str, phase: str, note: str) -> None:
        super().__init__(f"job {job_id} ended as {phase}" + (f": {note}" if note else ""))
        self.job_id = job_id
        self.phase = phase


class TrainingError(ZoonetError):
    """This peer cannot go on training this job."""


class WorkLost(TrainingError):
    """The local work of this round is lost; the peer goes on with the next one.

    `slots` are the data slots (as `zoonet.ranges`) that it was lost on, where they are known.
    """

    def __init__(self, message: str, *, slots: tuple[tuple[int, int], ...] = ()) -> None:
        super().__init__(message)
        self.slots = slots


class NonFiniteLoss(WorkLost):
    """The training loss, or its gradient, became NaN or infinite."""


class UnreadableSlot(WorkLost):
    """A data slot cannot be read from the local disk, or is not what the job says."""


class OutOfDeviceMemory(TrainingError):
    """The device has too little memory even for the smallest micro-batch."""
