"""`zoonet key`: show the identity, or export its secret."""

from __future__ import annotations

import json

from peers import runtime
from zoonet.crypto import Identity


def identity_of(home: runtime.Home) -> Identity:
    """The key of a state directory, made on the first run. Raises KeyFileError."""
    return Identity.load_or_create(home.key_path, passphrase=runtime.passphrase())


def show(home: runtime.Home, *, as_json: bool) -> None:
    """Print the peer id and where the key lies."""
    peer_id = identity_of(home).peer_id
    if as_json:
        print(json.dumps({"peer_id": peer_id, "key_file": str(home.key_path)}))
    else:
        print(f"peer id   {peer_id}\nkey file  {home.key_path}")


def export(home: runtime.Home) -> None:
    """Print the secret, alone on its line."""
    print(identity_of(home).api_key)
