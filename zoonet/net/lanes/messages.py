"""What two peers tell each other, over an authenticated stream, before a lane opens."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct

MAX_PLACES: Final = 32
TOKEN_BYTES: Final = 32
ASK: Final = "lanes/ask"
DIAL_BACK: Final = "lanes/dial-back"

Certificate = Annotated[bytes, Meta(min_length=64, max_length=2048)]  # DER
Channel = Annotated[str, Meta(min_length=1, max_length=200)]
Token = Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]
SocketName = Annotated[str, Meta(pattern=r"^(zoonet-lanes-[0-9a-f]{32})?$")]


class Place(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """An IP address and a TCP port."""

    host: Annotated[str, Meta(max_length=45)]
    port: Annotated[int, Meta(ge=1, le=65535)]


Places = Annotated[tuple[Place, ...], Meta(max_length=MAX_PLACES)]


class Ask(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """May I open a lane of this channel to you? I will show this certificate."""

    certificate: Certificate
    channel: Channel


class Offer(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Yes: at these places, with this token; I will show this certificate.

    On the same machine at the abstract socket `socket_name` ("" for none), where I answer
    `local_token` with `proof`. Neither of these two ever travels in clear, as `token` does.
    """

    certificate: Certificate
    token: Token
    places: Places
    local_token: Token
    proof: Token
    socket_name: SocketName


class DialBack(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """I may not reach you: dial me at these places, show this token, and take my lane there."""

    certificate: Certificate
    channel: Channel
    token: Token
    places: Places


class Dialling(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """I am dialling, and will show the certificate of my offer."""
