"""Whether this machine has the device that its owner names, before any job is taken."""

from __future__ import annotations

import torch

from zoonet.errors import ConfigError


def check_device(name: str) -> None:
    """Raise ConfigError where a trainer could not run on the device of that name here.

    Several, with commas between them, hold each model together. Nothing is allocated on them.
    "auto" always can.
    """
    names = name.split(",")
    if names == ["auto"]:
        return
    for each in names:
        _check_one(each)
    if len({torch.device(each).type for each in names}) > 1:
        raise ConfigError(f"--device {name!r} names devices of several kinds; take one kind")
    is_cpu = names[0] == "cpu"
    is_each_once = len(set(names)) == len(names) and all(":" in each for each in names)
    if len(names) > 1 and not is_cpu and not is_each_once:
        raise ConfigError(f"--device {name!r}: name each once, such as cuda:0,cuda:1")


def _check_one(name: str) -> None:
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"--device {name!r} names no device; {_choices()}") from error
    if str(device) not in ("cpu", *_accelerators(device.type)):
        raise ConfigError(f"--device {name!r} is not in this machine; {_choices()}")


def _accelerators(kind: str) -> list[str]:
    """Names of this machine's devices of a kind, such as "cuda"."""
    if kind == "cuda" and torch.cuda.is_available():
        return [kind, *(f"{kind}:{number}" for number in range(torch.cuda.device_count()))]
    if kind == "mps" and torch.backends.mps.is_available():
        return [kind, f"{kind}:0"]
    return []


def _choices() -> str:
    names = ("auto", "cpu", *_accelerators("cuda"), *_accelerators("mps"))
    return f"take one of {', '.join(names)}"
