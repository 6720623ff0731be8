"""What can be set about rounds. Everything has a default; deadlines are learned."""

from __future__ import annotations

from dataclasses import dataclass, field

from zoonet.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a coordinator waits, in seconds or as a share of what others took."""

    straggle_share: float = 0.5  # extra training time, of the median member's
    straggle_s: float = 1.0  # and at least this much
    straggle_factor: float = 8.0  # of the usual time, while not even half of the members are done
    guest_s: float = 1.0  # for joiners that train already to hand over what they have
    guest_share: float = 0.05  # and no more than this share of the round's training
    stop_s: float = 5.0  # for a stopped straggler to hand over what it has
    report_s: float = 1.0  # for others to report the same failure
    doubt_s: float = 3.0  # for anybody else to say who is at fault, where one has accused one
    vote_factor: float = 4.0  # of the time that the coordinator took to vote, for the others
    vote_s: float = 20.0  # and at least this much
    certify_s: float = 3.0  # for the certificate, after everyone has voted


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsConfig:
    """Settings of a job's rounds."""

    inner_steps: int = 25  # H, for a peer of median speed
    is_dynamic: bool = True  # other speeds take other numbers of steps
    ahead: float = 0.0  # of its steps, that a member may train while the round is averaged
    site_steps: int = 0  # of H, between two means among the members of a site; 0: there are none
    min_founders: int = 1  # the first round waits for this many
    max_members: int = 64
    beat_s: float = 0.5  # both sides of a round say this often that they are alive
    silence_s: float = 6.0  # a peer that says nothing for this long is lost
    applicant_s: float = 2.0  # a round waits this long for those who asked to join
    patience: Patience = field(default_factory=Patience)

    def __post_init__(self) -> None:
        if self.inner_steps < 1 or self.min_founders < 1 or self.max_members < 1:
            raise ConfigError("inner_steps, min_founders and max_members are at least 1")
        if not 0 <= self.ahead <= 8:
            raise ConfigError("ahead is between 0 and 8 rounds")
        if self.site_steps < 0 or (self.site_steps and self.ahead):
            raise ConfigError("site_steps is not negative, and 0 where members train ahead")
        if self.silence_s < 3 * self.beat_s:
            raise ConfigError("silence_s must allow for at least three beats")
