"""What a person sees: a pure view of the swarm, and its renderings for terminals and files."""

from peers.ui.view import Event, LossPoint, PeerLine, SwarmView, fold, leave, printable, tick

__all__ = ["Event", "LossPoint", "PeerLine", "SwarmView", "fold", "leave", "printable", "tick"]
