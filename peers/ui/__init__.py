"""What a person sees: a pure view of the swarm, and its renderings for terminals and files."""

from peers.ui.view import Event, PeerLine, SwarmView, fold, leave, printable

__all__ = ["Event", "PeerLine", "SwarmView", "fold", "leave", "printable"]
