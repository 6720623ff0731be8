"""This peer on the real network: streams, records and topics over one libp2p daemon.

The only package that imports hivemind.
"""

from zoonet.net.addresses import PeerAddress, parse_peer_address
from zoonet.net.config import HostConfig
from zoonet.net.host import Host

__all__ = ["Host", "HostConfig", "PeerAddress", "parse_peer_address"]
