"""`zoonet plan`: a swarm in a few words or a file, its trees, and clear errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from peers.cli import cli
from peers.swarm_sketch import bytes_of, parse_sites, parse_sketch
from zoonet.errors import ConfigError


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["plan", *arguments])


def report(*arguments: str) -> dict[str, Any]:
    result = plan("--json", *arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_the_summary_names_the_bytes_the_time_and_the_bottleneck() -> None:
    result = plan("--sites", "4+4", "--wan", "100", "--rtt", "50", "--size", "64MB")
    assert result.exit_code == 0
    assert "8 peers, 2 sites, " in result.output
    assert "64.0 MB of parameters" in result.output
    assert "between sites  128.0 MB (butterfly: 512.0 MB, 4.0 times as much)" in result.output
    assert "predicted      5." in result.output
    assert "bottleneck     the line of the site of a-01, up" in result.output


def test_told_how_long_a_step_takes_it_says_whether_to_wait() -> None:
    shape = ("--sites", "4+4", "--size", "64MB", "--steps", "25", "--step-ms", "1000")
    assert "meanwhile      6 steps ahead: " in plan(*shape, "--momentum", "0.6").output
    assert "meanwhile      wait: " in plan(*shape).output
    assert "meanwhile" not in plan("--sites", "4+4").output
    found = report(*shape, "--momentum", "0.6")["meanwhile"]
    assert found["steps"] == 6
    assert 0.1 < found["gain"] < 0.25


def test_explained_it_draws_a_tree_for_each_site_with_roots() -> None:
    output = plan("--explain", "--sites", "3+2+1").output
    assert output.count("root of chunks") == 3
    assert "owner" in output
    for name in ("a-01", "a-02", "a-03", "b-01", "b-02", "c-01"):
        assert name in output
    assert "slices" in output and "lines" in output


def test_the_json_holds_every_tree_and_adds_up() -> None:
    found = report("--sites", "6x4", "--codec", "int8")
    trees = found["trees"]

    assert sum(tree["num_values"] for tree in trees) == found["num_values"] == 16_000_000
    assert found["num_peers"] == 24
    assert len(found["sites"]) == 4
    assert found["wan_bytes"] == 2 * 3 * 16_000_000 * (1 + 2 / 256)
    assert found["butterfly_wan_bytes"] >= 5.8 * found["wan_bytes"]
    bottleneck = found["bottleneck"]
    assert found["predicted_s"] == bottleneck["busy_s"] + bottleneck["latency_s"]


def test_a_slow_line_of_one_site_is_the_bottleneck_and_the_site_averages_little() -> None:
    found = report("--sites", "4+1+2", "--wan", "100,5/50,100")
    assert found["bottleneck"]["peer"] == "b-01"
    assert found["bottleneck"]["link"] == "wan up"
    assert found["sites"][1]["root_share"] < 0.01


def test_a_file_describes_unequal_sites_with_followers(tmp_path: Path) -> None:
    file = tmp_path / "swarm.yaml"
    file.write_text(
        "size: 32MB\ncodec: e3m0\nrtt_ms: 30\nsites:\n"
        "  - {peers: 2, up_mbit_per_s: 200, down_mbit_per_s: 500}\n"
        "  - {peers: 1, followers: 1, up_mbit_per_s: 20}\n"
        "  - {peers: 0, followers: 2}\n"
    )
    found = report(str(file))
    assert found["num_peers"] == 6
    assert [len(site["peers"]) for site in found["sites"]] == [2, 2, 2]
    assert found["sites"][2]["root_share"] == 0


def test_a_file_of_json_is_read_too(tmp_path: Path) -> None:
    file = tmp_path / "swarm.json"
    file.write_text(json.dumps({"sites": [{"peers": 2}, {"peers": 2}]}))
    assert report(str(file)) == report("--sites", "2+2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--sites", "four"), "not such as 4+4"),
        (("--sites", "0+0"), "has no peers"),
        (("--sites", "200+200"), "the number of peers is 400"),
        (("--sites", "999x999"), "expected a whole number"),
        (("--sites", "2+2", "--wan", "1,2,3"), "3 lines for 2 sites"),
        (("--wan", "fast"), "not in Mbit/s"),
        (("--wan", "nan"), "up_mbit_per_s is nan"),
        (("--wan", "-5"), "up_mbit_per_s is -5"),
        (("--lan", "0"), "lan_mbit_per_s is 0"),
        (("--rtt", "-1"), "rtt_ms is -1"),
        (("--size", "much"), "not a number of bytes"),
        (("--size", "0MB"), "expected 4B to 10TB"),
        (("--codec", "int9"), "did you mean 'int8'?"),
    ],
)
def test_what_makes_no_sense_is_one_line_that_names_it(
    arguments: tuple[str, ...], message: str
) -> None:
    result = plan(*arguments)
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1
    assert message in result.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sites: [", "not YAML or JSON"),
        ("[]", "expected a mapping"),
        ("size: 1MB", "needs a list of sites"),
        ("sites: [4, 4]", r"sites\[0\] is 4, expected a mapping"),
        ("sites: [{peer: 4}]", "did you mean 'peers'?"),
        ("sites: [{peers: yes}]", r"sites\[0\].peers is True"),
        ("sites: [{peers: 2.5}]", r"sites\[0\].peers is 2.5"),
        ("sites: [{peers: 2}]\nsize: 64", "expected text such as 64MB"),
        ("sites: [{peers: 2}]\ncodec: [1]", "codec is [1], expected its name"),
        ("a: " + "[" * 5000, "not YAML or JSON"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_by_name(
    text: str, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "swarm.yaml"
    file.write_text(text)
    result = plan(str(file))
    assert result.exit_code == 1, result.output
    assert message.replace("\\", "") in result.output


def test_a_file_that_is_far_too_large_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "swarm.yaml"
    file.write_bytes(b"#" * 100_000)
    assert "larger than" in plan(str(file)).output


def test_sizes_are_read_in_both_kinds_of_units() -> None:
    assert [bytes_of(text) for text in ("12", "64MB", "1.5GiB", "8 kB")] == [
        12,
        64_000_000,
        3 << 29,
        8000,
    ]
    with pytest.raises(ConfigError):
        bytes_of("64mb")


def test_six_times_four_is_four_sites_of_six() -> None:
    assert [site.peers for site in parse_sites("6x4+1", "100", 1000)] == [6, 6, 6, 6, 1]


def test_a_description_has_defaults_for_everything_but_its_sites() -> None:
    sketch = parse_sketch({"sites": [{"peers": 3}]})
    assert len(sketch.contributors) == 3
    assert sketch.payload.num_values == 16_000_000


@pytest.mark.parametrize(
    ("codec", "num_bytes"), [("fp32", 4.0), ("bf16", 2.0), ("int8", 1 + 2 / 256), ("topk2", 0.018)]
)
def test_a_codec_costs_what_it_sends(codec: str, num_bytes: float) -> None:
    assert report("--codec", codec)["wan_bytes"] == round(2 * 16_000_000 * num_bytes)
