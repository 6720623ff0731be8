"""A swarm described in a few words or a small file, to plan for without having it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import yaml

from zoonet.averaging.links import PeerLinks
from zoonet.averaging.planner import Payload
from zoonet.codecs import codec
from zoonet.config.schema import shown, unknown_key
from zoonet.crypto import PeerId
from zoonet.errors import ConfigError

MAX_FILE_BYTES: Final = 64 * 1024
MAX_PEERS: Final = 256
MIN_MBIT_PER_S, MAX_MBIT_PER_S = 0.001, 10_000_000.0
BYTES_PER_MBIT: Final = 125_000.0
SAMPLE_VALUES: Final = 65536
TYPICAL_BYTES: Final = {"topk2": 0.018}  # a value, of codecs whose size depends on the values
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(B|kB|MB|GB|TB|KiB|MiB|GiB|TiB)?")
_UNITS: Final = {
    "B": 1,
    "kB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteSketch:
    """One site. Its peers share its line; rates are those of the whole site."""

    peers: int
    followers: int = 0
    up_mbit_per_s: float = 100.0
    down_mbit_per_s: float = 100.0
    lan_mbit_per_s: float = 1000.0  # each peer's own, each way


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmSketch:
    """A swarm, and what it averages."""

    sites: tuple[SiteSketch, ...]
    size: str = "64MB"  # of the vector, as fp32
    rtt_ms: float = 50.0  # between sites
    codec: str = "fp32"  # across sites
    lan_codec: str = "fp32"  # within them

    @property
    def payload(self) -> Payload:
        """What is averaged. Raises ConfigError."""
        return Payload(
            num_values=max(1, bytes_of(self.size) // 4),
            wan_bytes_per_value=bytes_per_value(self.codec),
            lan_bytes_per_value=bytes_per_value(self.lan_codec),
        )

    @property
    def contributors(self) -> tuple[PeerId, ...]:
        """Peers that are averaged: `a-01` is the first one of the first site."""
        return tuple(
            name_of(at, n) for at, site in enumerate(self.sites) for n in range(site.peers)
        )

    @property
    def followers(self) -> tuple[PeerId, ...]:
        """Peers that only receive."""
        return tuple(
            name_of(at, site.peers + n)
            for at, site in enumerate(self.sites)
            for n in range(site.followers)
        )

    @property
    def links(self) -> dict[PeerId, PeerLinks]:
        """What every peer would say of its links."""
        said: dict[PeerId, PeerLinks] = {}
        for at, site in enumerate(self.sites):
            num = site.peers + site.followers
            names = tuple(name_of(at, n) for n in range(num))
            sharing = max(1, site.peers) if site.peers else num
            for name in names:
                said[name] = PeerLinks(
                    near=tuple(other for other in names if other != name),
                    up_bytes_per_s=site.up_mbit_per_s * BYTES_PER_MBIT / sharing,
                    down_bytes_per_s=site.down_mbit_per_s * BYTES_PER_MBIT / sharing,
                    lan_bytes_per_s=site.lan_mbit_per_s * BYTES_PER_MBIT,
                )
        return said


def name_of(site: int, number: int) -> PeerId:
    """A name that stands where it should in the order of ids: a-01, ..., z-01, za-01."""
    letters = "z" * (site // 25) + "abcdefghijklmnopqrstuvwxy"[site % 25]
    return PeerId(f"{letters}-{number + 1:02}")


def bytes_per_value(name: str) -> float:
    """What a value takes on the wire. Raises ConfigError for a codec that there is not."""
    return TYPICAL_BYTES.get(name) or codec(name).max_bytes(SAMPLE_VALUES) / SAMPLE_VALUES


def bytes_of(size: str) -> int:
    """Read `64MB` or `1.5GiB`. Raises ConfigError."""
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise ConfigError(f"the size {shown(size)} is not a number of bytes, such as 64MB or 1GiB")
    return round(float(match[1]) * _UNITS[match[2] or "B"])


def parse_sites(sites: str, wan: str, lan: float) -> tuple[SiteSketch, ...]:
    """Read `4+4` or `6x4` (four sites of six), with `100` or `20/100,...` Mbit/s up and down.

    Raises ConfigError.
    """
    sizes: list[int] = []
    for term in sites.split("+"):
        match = re.fullmatch(r"\s*(\d{1,3})(?:x(\d{1,3}))?\s*", term)
        if match is None:
            raise ConfigError(f"the sites {shown(sites)} are not such as 4+4, 6x4 or 5+2+1")
        sizes += [int(match[1])] * int(match[2] or 1)
    lines = [_line(line) for line in wan.split(",")]
    if len(lines) == 1:
        lines *= len(sizes)
    if len(lines) != len(sizes):
        raise ConfigError(f"{len(lines)} lines for {len(sizes)} sites; give one, or one for each")
    return tuple(
        SiteSketch(peers=size, up_mbit_per_s=up, down_mbit_per_s=down, lan_mbit_per_s=lan)
        for size, (up, down) in zip(sizes, lines, strict=True)
    )


def _line(text: str) -> tuple[float, float]:
    up, _, down = text.partition("/")
    try:
        return float(up), float(down or up)
    except ValueError as error:
        raise ConfigError(
            f"the line {shown(text)} is not in Mbit/s, such as 100, or 20/100 for up and down"
        ) from error


def load_sketch(path: Path) -> SwarmSketch:
    """Read a description from YAML or JSON. Raises ConfigError that says what is wrong."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        document = yaml.safe_load(raw)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise ConfigError(f"{path} is not YAML or JSON: {problem}") from error
    return parse_sketch(document)


def parse_sketch(document: object) -> SwarmSketch:
    """A description from what a file holds. Raises ConfigError."""
    values = _mapping(document, "the description", SwarmSketch)
    sites = values.pop("sites", None)
    if not isinstance(sites, list) or not sites:
        raise ConfigError("the description needs a list of sites, such as: sites: [{peers: 4}]")
    return checked(
        SwarmSketch(
            sites=tuple(
                SiteSketch(**({"peers": 0} | _mapping(site, f"sites[{at}]", SiteSketch)))
                for at, site in enumerate(sites)
            ),
            **values,
        )
    )


def _mapping(value: object, place: str, sketch: type[Any]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{place} is {shown(value)}, expected a mapping")
    known = [field.name for field in fields(sketch)]
    for key in value:
        if key not in known:
            raise unknown_key(place, key, known)
    return dict(value)


def checked(sketch: SwarmSketch) -> SwarmSketch:
    """The sketch, if it makes sense. Raises ConfigError."""
    for at, site in enumerate(sketch.sites):
        for name in ("peers", "followers"):
            _require(f"sites[{at}].{name}", getattr(site, name), 0, MAX_PEERS, whole=True)
        for name in ("up_mbit_per_s", "down_mbit_per_s", "lan_mbit_per_s"):
            _require(f"sites[{at}].{name}", getattr(site, name), MIN_MBIT_PER_S, MAX_MBIT_PER_S)
        if not site.peers + site.followers:
            raise ConfigError(f"sites[{at}] has no peers")
    _require("rtt_ms", sketch.rtt_ms, 0, 10_000)
    num_peers = len(sketch.contributors) + len(sketch.followers)
    _require("the number of peers", num_peers, 1, MAX_PEERS, whole=True)
    if not sketch.contributors:
        raise ConfigError("nobody contributes; give a site some peers")
    for field in ("codec", "lan_codec"):
        if not isinstance(getattr(sketch, field), str):
            raise ConfigError(f"{field} is {shown(getattr(sketch, field))}, expected its name")
        bytes_per_value(getattr(sketch, field))
    if not isinstance(sketch.size, str):
        raise ConfigError(f"size is {shown(sketch.size)}, expected text such as 64MB")
    if not 4 <= bytes_of(sketch.size) <= 10**13:
        raise ConfigError(f"size is {sketch.size}, expected 4B to 10TB")
    return sketch


def _require(name: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    kinds = (int,) if whole else (int, float)
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type,operator]
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} is {shown(value)}, expected {kind} from {low:g} to {high:g}")
