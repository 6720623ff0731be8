"""What is installed: names, versions, the alias, and files that must agree with each other."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import zoo_compute
import zoonet
from zoonet.config import (
    CheckpointConfig,
    DataConfig,
    ModelConfig,
    PeersConfig,
    TrainingConfig,
    VerificationConfig,
)

SECTIONS = (
    ModelConfig,
    DataConfig,
    TrainingConfig,
    CheckpointConfig,
    VerificationConfig,
    PeersConfig,
)
ROOT = Path(__file__).parents[1]


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def pins() -> dict[str, str]:
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def requirements() -> list[Requirement]:
    parser = setup_cfg()
    blocks = [parser["options"]["install_requires"], *parser["options.extras_require"].values()]
    return [Requirement(line) for block in blocks for line in block.split("\n") if line]


PUBLIC = [
    "CheckpointConfig",
    "Client",
    "ComputeJob",
    "DataConfig",
    "ModelConfig",
    "Network",
    "PeersConfig",
    "Swarm",
    "SwarmConfig",
    "SwarmStatus",
    "TrainingConfig",
    "VerificationConfig",
    "join_world",
]


def test_the_public_names_are_these() -> None:
    assert sorted(name for name in zoonet._PUBLIC) == PUBLIC
    assert set(PUBLIC) <= set(dir(zoonet))


@pytest.mark.parametrize("name", PUBLIC)
def test_the_alias_has_the_very_same_thing(name: str) -> None:
    assert name in zoo_compute.__all__
    assert getattr(zoo_compute, name) is getattr(zoonet, name)


def test_the_alias_has_every_name_that_it_promises() -> None:
    for name in zoo_compute.__all__:
        assert getattr(zoo_compute, name) is not None


def test_importing_the_package_loads_neither_torch_nor_hivemind() -> None:
    program = "import sys, zoonet; print({'torch', 'hivemind'} & set(sys.modules) or 'none')"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "none\n"


@pytest.mark.parametrize("requirement", requirements(), ids=lambda r: r.name)
def test_every_requirement_has_a_tested_version_within_its_range(requirement: Requirement) -> None:
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_every_package_directory_is_installed() -> None:
    options = setup_cfg()["options"]
    assert options["package_dir"].split() == ["zoo_compute", "=", "zoonet/alias"]
    found = {
        ".".join(module.parent.relative_to(ROOT).parts)
        for top in ("zoonet", "peers")
        for module in (ROOT / top).rglob("*.py")
    }
    assert set(options["packages"].split()) == found - {"zoonet.alias"} | {"zoo_compute"}


def test_every_documented_install_passes_the_constraints() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "peers" / "Dockerfile"]
    for page in pages:
        for line in page.read_text().splitlines():
            if re.search(r"\bpip3? install\b", line):
                assert "-c .ci/constraints.txt" in line, f"{page.name}: {line}"


def test_the_job_page_names_every_key_with_its_default() -> None:
    page = (ROOT / "docs" / "submit_a_job.md").read_text()
    for section in SECTIONS:
        block = page.split(f"### `{section.SECTION}`")[1].split("###")[0]
        rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", block, re.MULTILINE))
        assert list(rows) == [f.name for f in fields(section)], section.SECTION
        for f in fields(section):
            if isinstance(f.default, int | float):
                assert rows[f.name].strip() == str(f.default).lower(), f"{section.SECTION}.{f.name}"
