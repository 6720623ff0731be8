"""P8 and P13: what a death in the middle of a round costs the others."""
