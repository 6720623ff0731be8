"""Whether a peer's memory stays where it is while rounds go on and others come and go."""
