"""The DHT that a contender on hivemind is in: the first peer's is the others' way in."""

from __future__ import annotations

from hivemind import DHT

from experiments.testbed.contenders.base import Hello, Stage


class HivemindDht:
    """One peer's node, from `start` or `join` until `close`.

    It forks, and must do so before this process has threads: nothing here may be in one.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._dht: DHT | None = None

    def start(self) -> Hello:
        """Open the first peer's node and say where it is; others have nothing to say yet."""
        if self._stage.peer != 0:
            return {}
        self._dht = self._open([])
        return {"addresses": [str(address) for address in self._dht.get_visible_maddrs()]}

    def join(self, hellos: list[Hello]) -> DHT:
        """This peer's node, in the DHT of the first one."""
        if self._dht is None:
            self._dht = self._open(hellos[0]["addresses"])
        return self._dht

    def close(self) -> None:
        """End the node's process, if there is one."""
        if self._dht is not None:
            self._dht.shutdown()

    def _open(self, initial_peers: list[str]) -> DHT:
        return DHT(
            initial_peers=initial_peers,
            start=True,
            host_maddrs=[f"/ip4/{self._stage.address}/tcp/0"],
            startup_timeout=120.0,
        )
