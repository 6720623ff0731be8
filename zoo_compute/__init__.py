"""The name that the network was announced under: `from zoo_compute import Client`."""

from zoonet import *  # noqa: F403
from zoonet import __all__, __version__  # noqa: F401
